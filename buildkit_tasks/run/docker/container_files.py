"""Look into a container that was not started yet, whether its program is for the platform."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH, Found, Node, NodeType
from buildkit_tasks.oci.layers.tar import TarReader
from buildkit_tasks.oci.model import ImageConfig
from buildkit_tasks.run import backend as guests

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker.api import APIClient

    from buildkit_tasks.platforms import Platform

__all__ = ["wrong_program"]

_ENOUGH = 64 * 1024  # a tar header, perhaps one with extended attributes, and the head
_HEAD = 256  # an ELF header, or a `#!` line
_GO_MODE_DIR, _GO_MODE_SYMLINK = 1 << 31, 1 << 27  # Go's os.FileMode, which the API gives


def wrong_program(api: APIClient, container: Mapping[str, Any], platform: Platform) -> str:
    """The words why what this container would start is not for the platform; empty if it is.

    ``container`` is the engine's description of it. What is looked at is the very file system that
    the guest will see, whatever store or source the image came from.
    """
    config = _config(container["Config"], platform)
    return guests.wrong_program(config, _ContainerFiles(api, container["Id"]), platform)


def _config(stated: Mapping[str, Any], platform: Platform) -> ImageConfig:
    return ImageConfig(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        entrypoint=tuple(stated.get("Entrypoint") or ()),
        cmd=tuple(stated.get("Cmd") or ()),
        env=tuple(stated.get("Env") or ()),
        working_dir=stated.get("WorkingDir") or "",
        user=stated.get("User") or "",
        diff_ids=(),
    )


class _ContainerFiles:
    """The files of a container, through the engine's archive endpoint."""

    def __init__(self, api: APIClient, container: str) -> None:
        self._api = api
        self._container = container

    def find_command(self, name: str, path_env: str = DEFAULT_PATH, working_dir: str = "/") -> Found | None:
        """The file that starting ``name`` would run."""
        if "/" in name:
            return self._file(name if name.startswith("/") else f"{working_dir}/{name}")
        candidates = (
            self._file(f"{folder}/{name}") for folder in path_env.split(":") if folder.startswith("/")
        )
        return next((found for found in candidates if found is not None and found.node.mode & 0o111), None)

    def _file(self, path: str, links: int = 1) -> Found | None:
        from docker.errors import APIError, NotFound

        try:
            chunks, status = self._api.get_archive(self._container, path)
        except NotFound:
            return None
        except APIError as error:  # a path through a file, for one
            if error.is_client_error():
                return None
            raise
        with contextlib.closing(chunks):
            if status["mode"] & _GO_MODE_SYMLINK:
                # The engine has resolved the link inside the container's root: once is enough.
                return self._file(status["linkTarget"], links - 1) if links else None
            if status["mode"] & _GO_MODE_DIR:
                return None
            mode, size = status["mode"] & 0o777, status["size"]
            return Found(path, Node(type=NodeType.FILE, mode=mode, size=size, head=_head(chunks)))


def _head(chunks: Iterator[bytes]) -> bytes:
    """The first bytes of the only file in an archive."""
    start = bytearray()
    for chunk in chunks:
        start += chunk
        if len(start) >= _ENOUGH:
            break
    reader = TarReader(io.BytesIO(start))
    next(reader)
    return reader.read(_HEAD)
