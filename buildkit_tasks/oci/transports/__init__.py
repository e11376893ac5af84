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
    from buildkit_tasks.oci.transports.docker_daemon import Export

    OpenRegistry = Callable[[str], AbstractContextManager[Source]]

__all__ = ["local_folder", "open_image"]

_BUILD = "build one that can be read with: inv build-multiarch -o type=oci,dest=dist/image.tar"
_KNOWN = "docker://, docker-daemon:, docker-archive:, oci:, oci-archive:, dir:"
_ARCHIVES = (".tar", ".oci", ".tgz", ".gz", ".zst")


@contextmanager
def open_image(
    name: str, *, export: Export | None = None, registry: OpenRegistry | None = None
) -> Iterator[Source]:
    """Open ``docker://REF``, ``docker-daemon:REF``, ``docker-archive:FILE[:NAME|:@N]``,
    ``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]``, a path, which is looked into, or a reference.

    NAME chooses among several images of one file. ``export`` opens an engine's save stream, without
    it no engine can be read; ``registry`` opens a reference, without it the usual client does.
    Raises :class:`UsageError` for a path that does not exist and for what holds no image.
    """  # noqa: D205 - the names fill a line
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(_opened(name, export, registry or _usual_registry))


def local_folder(name: str) -> Path | None:
    """The folder that ``dir:DIR`` or a path means, if it is a local output: files without a manifest.

    None for everything else, an OCI layout included. Raises :class:`UsageError` if ``dir:`` does
    not name a folder.
    """
    transport, colon, rest = name.partition(":")
    if colon and transport == "dir":
        path = _path_of(rest, "dir:DIR")
        if not _exists(path) or not path.is_dir():
            raise UsageError(f"{path} is no folder", hint=_BUILD)
        return path
    path = Path(name)
    return path if name and _exists(path) and path.is_dir() and not _is_layout(path) else None


def _opened(name: str, export: Export | None, registry: OpenRegistry) -> AbstractContextManager[Source]:
    transport, colon, rest = name.partition(":")
    if colon and transport in _TRANSPORTS:
        return _TRANSPORTS[transport](rest)
    if colon and transport == "docker-daemon":
        return _from_engine(rest, export)
    if name.startswith("docker://"):
        return registry(name.removeprefix("docker://"))
    found = _existing(name)
    if found is None and "://" in name:
        raise UsageError(f"{name}: no image is read from {transport!r}", hint=f"known are: {_KNOWN}")
    return registry(name) if found is None else found


def _usual_registry(reference: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.registry import open_registry

    return open_registry(reference)


def _from_engine(reference: str, export: Export | None) -> AbstractContextManager[Source]:
    if not reference:
        raise UsageError("no image is named", hint="write it as docker-daemon:NAME:TAG")
    from buildkit_tasks.oci.transports.docker_daemon import DaemonImage

    if export is None:
        where = f"docker-daemon:{reference} lies in a Docker engine"
        raise UsageError(f"{where}, which is not asked here", hint=_BUILD)
    return DaemonImage(reference, export)


def _oci(rest: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.layout import Layout

    path, chosen = _split(rest, "oci:DIR")
    if not path.is_dir():
        raise UsageError(f"{path} is no folder", hint=f"write it as oci-archive:{path}")
    return contextlib.nullcontext(Layout(path, chosen))


def _oci_archive(rest: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.oci_archive import Archive

    path, chosen = _split(rest, "oci-archive:FILE")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, no archive", hint=f"write it as oci:{path}")
    return Archive(path, chosen)


def _docker_archive(rest: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.docker_archive import open_docker_archive

    path, chosen = _split(rest, "docker-archive:FILE")
    if path.is_dir():
        raise UsageError(f"{path} is a folder, no archive", hint=f"write it as oci:{path}")
    return open_docker_archive(path, chosen)


def _existing(name: str) -> AbstractContextManager[Source] | None:
    """What lies at the path; None if there is nothing and it may be a registry reference."""
    if not name:
        raise UsageError("no image is named", hint=_BUILD)
    path = Path(name)
    if not _exists(path):
        if name.startswith((".", "/", "~")) or path.suffix in _ARCHIVES:
            raise UsageError(f"{name} does not exist", hint=_BUILD)
        return None
    if not path.is_dir():
        return _file(path)
    return _oci(name) if _is_layout(path) else _no_source(name)


def _file(path: Path) -> AbstractContextManager[Source]:
    """An OCI archive or one of `docker save`: both may have an ``index.json``."""
    from buildkit_tasks.oci.transports.docker_archive import image_in
    from buildkit_tasks.oci.transports.oci_archive import open_members

    members = open_members(path)
    try:
        return image_in(members)
    except UsageError:
        members.close()
        raise UsageError(
            f"{path} is no image: it has neither index.json nor manifest.json", hint=_BUILD
        ) from None
    except BaseException:
        members.close()
        raise


def _no_source(rest: str) -> AbstractContextManager[Source]:
    """Local outputs are files alone: whoever can check those asks :func:`local_folder` first."""
    path = _path_of(rest, "dir:DIR")
    raise UsageError(f"{path} is a local output folder, which has no manifests to read", hint=_BUILD)


def _containers_storage(_: str) -> AbstractContextManager[Source]:
    hint = "skopeo copy containers-storage:NAME oci-archive:image.tar, then name that file"
    raise UsageError("images cannot be read from containers-storage", hint=hint)


_TRANSPORTS: dict[str, Callable[[str], AbstractContextManager[Source]]] = {
    "docker-archive": _docker_archive,
    "oci": _oci,
    "oci-archive": _oci_archive,
    "dir": _no_source,
    "containers-storage": _containers_storage,
}


def _is_layout(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in ("index.json", "oci-layout"))


def _split(rest: str, form: str) -> tuple[Path, str | None]:
    """Part ``PATH:NAME``. Both may have colons: the path is the first part of it all that exists."""
    _path_of(rest, form)
    parts = rest.split(":")
    for count in (len(parts), *range(1, len(parts))):
        path = Path(":".join(parts[:count]))
        if parts[0] and _exists(path):
            return path, ":".join(parts[count:]) or None
    raise UsageError(f"{parts[0] or rest} does not exist", hint=_BUILD)


def _path_of(rest: str, form: str) -> Path:
    if not rest:
        raise UsageError("the image has no path", hint=f"write it as {form}")
    return Path(rest)


def _exists(path: Path) -> bool:
    """Whether it exists; a text that cannot be a path names nothing."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
