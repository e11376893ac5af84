"""Check the program of a container that was not started yet, through the engine's archive endpoint."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

from buildkit_tasks.oci.layers.rootfs import FileNode, FileType, ResolvedPath
from buildkit_tasks.oci.layers.tar import TarReader
from buildkit_tasks.oci.model import ImageConfig
from buildkit_tasks.run.backend import explain_missing_loader, explain_unstartable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker.api import APIClient

    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import Outcome

__all__ = ["explain_missing_loader_in_container", "explain_unstartable_container"]

_MAX_ARCHIVE_BYTES = 64 * 1024  # a tar header, possibly with pax records, and the head
_HEAD_BYTES = 8192  # an ELF header and its loader's path, which Go's linker puts below byte 4096
_GO_MODE_DIR, _GO_MODE_SYMLINK = 1 << 31, 1 << 27  # Go's os.FileMode, as the API returns it


def explain_unstartable_container(
    api: APIClient, container: Mapping[str, Any], platform: Platform
) -> tuple[Outcome, str] | None:
    """Return the outcome and the reason if the program that a container starts cannot run on the platform.

    ``container`` is what the engine's inspect endpoint returns. The file system that is read is the one
    that the guest will see, whatever store or source the image came from.
    """
    config = _parse_config(container["Config"], platform)
    return explain_unstartable(config, _ContainerFiles(api, container["Id"]), platform)


def explain_missing_loader_in_container(
    api: APIClient, container: Mapping[str, Any], platform: Platform
) -> str:
    """Return that the loader of a container's program is missing, with a hint; empty if it is not."""
    config = _parse_config(container["Config"], platform)
    return explain_missing_loader(config, _ContainerFiles(api, container["Id"]), platform)


def _parse_config(container_config: Mapping[str, Any], platform: Platform) -> ImageConfig:
    return ImageConfig(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        entrypoint=tuple(container_config.get("Entrypoint") or ()),
        cmd=tuple(container_config.get("Cmd") or ()),
        env=tuple(container_config.get("Env") or ()),
        working_dir=container_config.get("WorkingDir") or "",
        user=container_config.get("User") or "",
        diff_ids=(),
    )


class _ContainerFiles:
    """The files of a container (``GET /containers/{id}/archive``)."""

    def __init__(self, api: APIClient, container_id: str) -> None:
        self._api = api
        self._container_id = container_id

    def find_file(self, path: str) -> ResolvedPath | None:
        """Return the regular file at an absolute path; None without one."""
        resolved = self._find(path)
        return resolved if resolved is not None and resolved.node.type is FileType.FILE else None

    def is_directory(self, path: str) -> bool:
        """Return True if there is a directory at an absolute path."""
        resolved = self._find(path)
        return resolved is not None and resolved.node.type is FileType.DIRECTORY

    def _find(self, path: str, max_links: int = 1) -> ResolvedPath | None:
        from docker.errors import APIError, NotFound

        try:
            chunks, file_stat = self._api.get_archive(self._container_id, path)
        except NotFound:
            return None
        except APIError as error:  # for example a path below a file
            if error.is_client_error():
                return None
            raise
        with contextlib.closing(chunks):
            if file_stat["mode"] & _GO_MODE_SYMLINK:
                # linkTarget is resolved completely, inside the container's root.
                return self._find(file_stat["linkTarget"], max_links - 1) if max_links else None
            mode, size = file_stat["mode"] & 0o777, file_stat["size"]
            if file_stat["mode"] & _GO_MODE_DIR:
                return ResolvedPath(path, FileNode.make_directory(mode=mode))
            return ResolvedPath(
                path, FileNode(type=FileType.FILE, mode=mode, size=size, head=_read_head(chunks))
            )


def _read_head(chunks: Iterator[bytes]) -> bytes:
    """Return the first bytes of the only file in an archive."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        if len(buffer) >= _MAX_ARCHIVE_BYTES:
            break
    reader = TarReader(io.BytesIO(buffer))
    next(reader)
    return reader.read(_HEAD_BYTES)
