"""Open an image by name: a transport of containers-transports(5), a path or a registry reference."""

from __future__ import annotations

import contextlib
import os
import shlex
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import RegistryError, UsageError
from buildkit_tasks.oci.reference import check_no_login
from buildkit_tasks.oci.transports.names import ARCHIVE_SUFFIXES, check_forgotten_suffix, check_prefix
from buildkit_tasks.system.csv_fields import format_csv_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.oci.transports.docker_daemon import ImageExporter

    RegistryOpener = Callable[[str], AbstractContextManager[Source]]

__all__ = ["find_local_output", "open_image"]

_BUILD_HINT = "inv build-multiarch -o type=oci,dest=dist/image.tar"


@contextmanager
def open_image(
    name: str, *, export: ImageExporter | None = None, registry_opener: RegistryOpener | None = None
) -> Iterator[Image]:
    """Open an image and close it on exit.

    ``name`` is ``docker://REF``, ``docker-daemon:REF``, ``docker-archive:FILE[:NAME|:@N]``,
    ``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]``, a path, whose format is detected, or a registry
    reference. NAME selects one of several images in a file.

    ``export`` opens the stream of `docker save`; ``docker-daemon:`` needs it. ``registry_opener`` opens a
    reference; the default is :func:`buildkit_tasks.oci.registry.open_registry`.

    Raises :class:`UsageError` for a path that does not exist or does not contain an image.
    """
    from buildkit_tasks.oci.image import Image

    with _open_transport(name, export, registry_opener or _open_registry) as source:
        yield Image.wrap(source)


def find_local_output(name: str) -> Path | None:
    """Return the directory of a local output, named by ``dir:DIR`` or by its path.

    Return None for any other image; a directory that is named by its path must not be an OCI layout.
    Raises :class:`UsageError` if DIR is not a directory, and for a path whose files are archives of images.
    """
    transport, colon, details = name.partition(":")
    if colon and transport == "dir":
        path = _require_path(details, "dir:DIR")
        if not _path_exists(path) or not path.is_dir():
            raise UsageError(f"{path} is not a directory", hint=_build_hint("type=local", details))
        return path
    path = Path(name)
    if not name or not _path_exists(path) or not path.is_dir() or _is_layout(path):
        return None
    _check_not_archives(path)
    return path


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
    if source is not None:
        return source
    return _open_bare_reference(name, registry_opener)


@contextmanager
def _open_bare_reference(name: str, registry_opener: RegistryOpener) -> Iterator[Source]:
    """Open a reference without a prefix; if that fails, say that no file has the name, either."""
    with registry_opener(name) as source:
        try:
            source.root_descriptor()
        except RegistryError as error:
            message = f"{error.message}; there is no file or folder {name!r} either"
            raise RegistryError(message, hint=error.hint) from error
        yield source


def _open_registry(reference: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.registry import open_registry

    return open_registry(reference)


def _open_docker_daemon(reference: str, export: ImageExporter | None) -> AbstractContextManager[Source]:
    if reference.startswith("//"):
        fixed = f"docker-daemon:{reference.strip('/')}"
        raise UsageError(f"unknown image name 'docker-daemon:{reference}'", hint=fixed)
    if not reference:
        raise UsageError("docker-daemon: needs an image name", hint="write it as docker-daemon:NAME:TAG")
    check_no_login(reference)
    from buildkit_tasks.oci.transports.docker_daemon import DaemonSource

    if export is None:
        message = f"docker-daemon:{reference} is in a Docker engine, which this operation does not use"
        raise UsageError(message, hint=_BUILD_HINT)
    return DaemonSource(reference, export)


def _open_oci_layout(details: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.layout import OciLayout

    path, image_name = _split_image_name(details, "oci:DIR")
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory", hint=f"write it as oci-archive:{path}")
    return contextlib.nullcontext(OciLayout(path, image_name))


def _open_oci_archive(details: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.oci_archive import OciArchive

    return OciArchive(*_split_archive_name(details, "oci-archive:FILE"))


def _open_docker_archive(details: str) -> AbstractContextManager[Source]:
    from buildkit_tasks.oci.transports.docker_archive import open_docker_archive

    return open_docker_archive(*_split_archive_name(details, "docker-archive:FILE"))


def _open_path(name: str) -> AbstractContextManager[Source] | None:
    """Open the image at a path; return None if nothing exists there and it may be a registry reference."""
    if not name:
        raise UsageError("the image name is empty", hint=_BUILD_HINT)
    path = Path(name)
    if not _path_exists(path):
        check_prefix(name)
        if name.startswith((".", "/", "~")) or path.suffix in ARCHIVE_SUFFIXES:
            _check_permission(path)
            raise UsageError(f"{name} does not exist", hint=_build_hint("type=oci", name))
        check_forgotten_suffix(name)
        return None
    if not path.is_dir():
        return _open_archive_file(path)
    if _is_layout(path):
        return _open_oci_layout(name)
    _check_not_archives(path)
    return _reject_local_output(name)


def _open_archive_file(path: Path) -> AbstractContextManager[Source]:
    """Open an OCI archive or one of `docker save`; both may have an ``index.json``."""
    from buildkit_tasks.oci.transports.docker_archive import open_saved_image
    from buildkit_tasks.oci.transports.oci_archive import open_tar_archive

    archive = open_tar_archive(path)
    try:
        return open_saved_image(archive)
    except UsageError:
        archive.close()
        raise UsageError(
            f"{path} is not an image: it has neither index.json nor manifest.json", hint=_BUILD_HINT
        ) from None
    except BaseException:
        archive.close()
        raise


def _check_not_archives(folder: Path) -> None:
    """Raise :class:`UsageError` for a directory such as ``dist``, into which a build has written archives."""
    try:
        files = sorted(folder.iterdir())
    except OSError:  # the reader of the directory says why
        return
    if files and all(file.suffix in ARCHIVE_SUFFIXES and file.is_file() for file in files):
        message = f"{folder} is neither an image nor a local output, but a folder with archives"
        raise UsageError(message, hint=f"write it as {files[0]}")


def _reject_local_output(details: str) -> AbstractContextManager[Source]:
    """Reject a local output, which is not an image: callers that can use one call find_local_output first."""
    path = _require_path(details, "dir:DIR")
    raise UsageError(f"{path} is a local output directory, which has no manifests", hint=_BUILD_HINT)


def _reject_containers_storage(_: str) -> AbstractContextManager[Source]:
    hint = "skopeo copy containers-storage:NAME oci-archive:image.tar, then use that file"
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


def _split_archive_name(details: str, syntax: str) -> tuple[Path, str | None]:
    path, image_name = _split_image_name(details, syntax)
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not an archive", hint=f"write it as oci:{path}")
    return path, image_name


def _split_image_name(details: str, syntax: str) -> tuple[Path, str | None]:
    """Split ``PATH[:NAME]``. Both may contain colons: the path is the shortest prefix that exists.

    A path of that whole name takes precedence.
    """
    _require_path(details, syntax)
    parts = details.split(":")
    for count in (len(parts), *range(1, len(parts))):
        path = Path(":".join(parts[:count]))
        if parts[0] and _path_exists(path):
            return path, ":".join(parts[count:]) or None
    if details.startswith("//"):
        fixed = syntax.partition(":")[0] + f":{details.lstrip('/')}"
        raise UsageError(f"{details} does not exist", hint=fixed)
    name = parts[0] or details
    hint = _build_hint("type=oci,tar=false" if syntax == "oci:DIR" else "type=oci", name)
    if syntax.startswith("docker-archive:"):  # buildx writes that format for a single platform only
        hint += f", then use oci-archive:{name}"
    raise UsageError(f"{name} does not exist", hint=hint)


def _build_hint(output: str, path: str) -> str:
    """Return the command that builds what was not found, where it was looked for."""
    row = format_csv_row([*output.split(","), f"dest={path}"])
    return f"inv build-multiarch -o {shlex.quote(row)}"


def _require_path(details: str, syntax: str) -> Path:
    if not details:
        raise UsageError("the image name has no path", hint=f"write it as {syntax}")
    return Path(details)


def _check_permission(path: Path) -> None:
    """Raise :class:`UsageError` if it cannot be told whether the path exists."""
    try:
        path.stat()
    except PermissionError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (OSError, ValueError):
        pass  # it does not exist


def _path_exists(path: Path) -> bool:
    """Return True if the path exists; False also for text that is not a possible path."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
