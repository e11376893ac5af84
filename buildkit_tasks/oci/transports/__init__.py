"""An image by its name: the transports of containers-transports(5), paths, and registry references."""

from __future__ import annotations

import contextlib
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.oci.transports.docker_daemon import ImageExporter

    RegistryOpener = Callable[[str], AbstractContextManager[Source]]

__all__ = ["find_local_output", "open_image"]

_BUILD_HINT = "build one that can be read with: inv build-multiarch -o type=oci,dest=dist/image.tar"
_KNOWN_TRANSPORTS = "docker://, docker-daemon:, docker-archive:, oci:, oci-archive:, dir:"
_ARCHIVE_SUFFIXES = (".tar", ".oci", ".tgz", ".gz", ".zst")


@contextmanager
def open_image(
    name: str, *, export: ImageExporter | None = None, registry_opener: RegistryOpener | None = None
) -> Iterator[Source]:
    """Open ``docker://REF``, ``docker-daemon:REF``, ``docker-archive:FILE[:NAME|:@N]``,
    ``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]``, a path, which is looked into, or a reference.

    NAME chooses among several images of one file. ``export`` opens an engine's save stream, without
    it no engine can be read; ``registry`` opens a reference, without it the usual client does.
    Raises :class:`UsageError` for a path that does not exist and for what holds no image.
    """  # noqa: D205 - the names fill a line
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(_open_transport(name, export, registry_opener or _open_registry))


def find_local_output(name: str) -> Path | None:
    """The folder that ``dir:DIR`` or a path means, if it is a local output: files without a manifest.

    None for everything else, an OCI layout included. Raises :class:`UsageError` if ``dir:`` does
    not name a folder.
    """
    transport, colon, details = name.partition(":")
    if colon and transport == "dir":
        path = _require_path(details, "dir:DIR")
        if not _path_exists(path) or not path.is_dir():
            raise UsageError(f"{path} is no folder", hint=_BUILD_HINT)
        return path
    path = Path(name)
    return path if name and _path_exists(path) and path.is_dir() and not _is_layout(path) else None


def _open_transport(
    name: str, export: ImageExporter | None, registry_opener: RegistryOpener
) -> AbstractContextManager[Source]:
    transport, colon, details = name.partition(":")
    if colon and transport in _OPENERS:
        return _OPENERS[transport](details)
    if colon and transport == "docker-daemon":
        return _open_docker_daemon(details, export)
    if name.startswith("docker://"):
        return registry_opener(name.removeprefix("docker://"))
    source = _open_path(name)
    if source is None and "://" in name:
        raise UsageError(
            f"{name}: no image is read from {transport!r}", hint=f"known are: {_KNOWN_TRANSPORTS}"
        )
    return registry_opener(name) if source is None else source


def _open_registry(reference: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.registry import open_registry

    return open_registry(reference)


def _open_docker_daemon(reference: str, export: ImageExporter | None) -> AbstractContextManager[Source]:
    if not reference:
        raise UsageError("no image is named", hint="write it as docker-daemon:NAME:TAG")
    from buildkit_tasks.oci.transports.docker_daemon import DaemonSource

    if export is None:
        what = f"docker-daemon:{reference} lies in a Docker engine"
        raise UsageError(f"{what}, which is not asked here", hint=_BUILD_HINT)
    return DaemonSource(reference, export)


def _open_oci_layout(details: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.layout import OciLayout

    path, image_name = _split_image_name(details, "oci:DIR")
    if not path.is_dir():
        raise UsageError(f"{path} is no folder", hint=f"write it as oci-archive:{path}")
    return contextlib.nullcontext(OciLayout(path, image_name))


def _open_oci_archive(details: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.oci_archive import OciArchive

    path, image_name = _split_image_name(details, "oci-archive:FILE")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, no archive", hint=f"write it as oci:{path}")
    return OciArchive(path, image_name)


def _open_docker_archive(details: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.docker_archive import open_docker_archive

    path, image_name = _split_image_name(details, "docker-archive:FILE")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, no archive", hint=f"write it as oci:{path}")
    return open_docker_archive(path, image_name)


def _open_path(name: str) -> AbstractContextManager[Source] | None:
    """What lies at the path; None if there is nothing and it may be a registry reference."""
    if not name:
        raise UsageError("no image is named", hint=_BUILD_HINT)
    path = Path(name)
    if not _path_exists(path):
        if name.startswith((".", "/", "~")) or path.suffix in _ARCHIVE_SUFFIXES:
            raise UsageError(f"{name} does not exist", hint=_BUILD_HINT)
        return None
    if not path.is_dir():
        return _open_archive_file(path)
    return _open_oci_layout(name) if _is_layout(path) else _reject_local_output(name)


def _open_archive_file(path: Path) -> AbstractContextManager[Source]:
    """An OCI archive or one of `docker save`: both may have an ``index.json``."""
    from buildkit_tasks.oci.transports.docker_archive import open_saved_image
    from buildkit_tasks.oci.transports.oci_archive import open_tar_archive

    archive = open_tar_archive(path)
    try:
        return open_saved_image(archive)
    except UsageError:
        archive.close()
        raise UsageError(
            f"{path} is no image: it has neither index.json nor manifest.json", hint=_BUILD_HINT
        ) from None
    except BaseException:
        archive.close()
        raise


def _reject_local_output(details: str) -> AbstractContextManager[Source]:
    """Local outputs are files alone: whoever can check those asks :func:`local_folder` first."""
    path = _require_path(details, "dir:DIR")
    raise UsageError(f"{path} is a local output folder, which has no manifests to read", hint=_BUILD_HINT)


def _reject_containers_storage(_: str) -> AbstractContextManager[Source]:
    hint = "skopeo copy containers-storage:NAME oci-archive:image.tar, then name that file"
    raise UsageError("images cannot be read from containers-storage", hint=hint)


_OPENERS: dict[str, Callable[[str], AbstractContextManager[Source]]] = {
    "docker-archive": _open_docker_archive,
    "oci": _open_oci_layout,
    "oci-archive": _open_oci_archive,
    "dir": _reject_local_output,
    "containers-storage": _reject_containers_storage,
}


def _is_layout(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in ("index.json", "oci-layout"))


def _split_image_name(details: str, syntax: str) -> tuple[Path, str | None]:
    """Part ``PATH:NAME``. Both may have colons: the path is the first part of it all that exists."""
    _require_path(details, syntax)
    parts = details.split(":")
    for count in (len(parts), *range(1, len(parts))):
        path = Path(":".join(parts[:count]))
        if parts[0] and _path_exists(path):
            return path, ":".join(parts[count:]) or None
    raise UsageError(f"{parts[0] or details} does not exist", hint=_BUILD_HINT)


def _require_path(details: str, syntax: str) -> Path:
    if not details:
        raise UsageError("the image has no path", hint=f"write it as {syntax}")
    return Path(details)


def _path_exists(path: Path) -> bool:
    """Whether it exists; a text that cannot be a path names nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
