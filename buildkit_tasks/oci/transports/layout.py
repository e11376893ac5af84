"""The oci transport: read and write an OCI image layout directory.

OCI image specification, "Image Layout": ``oci-layout``, ``index.json`` and ``blobs/``.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.document_keys import LAYOUT, check_keys
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    IMAGE_NAME_ANNOTATION,
    INDEX_TYPES,
    OCI_INDEX,
    Descriptor,
    Digest,
    Index,
    parse_index,
)
from buildkit_tasks.oci.source import Source, open_verified
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.system.files import replace_directory

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "MAX_VERSION_SIZE",
    "OciLayout",
    "check_layout_version",
    "choose_root",
    "collect_entry_names",
    "make_index_entry",
    "missing_blob_error",
    "write_layout",
]

MAX_VERSION_SIZE = 4096  # bytes of oci-layout

_REF_NAME_ANNOTATION = "org.opencontainers.image.ref.name"
_LAYOUT_VERSION = {"imageLayoutVersion": "1.0.0"}


class OciLayout:
    """The image in a layout directory; ``name`` selects one of several."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._name = name
        self._index = b""

    def root_descriptor(self) -> Descriptor:
        """Return the image of ``index.json``; see :func:`choose_root`."""
        if not (self._path / "index.json").exists():
            raise UsageError(f"{self._path} is not an OCI image layout: it has no index.json")
        check_layout_version(self._read_file("oci-layout", MAX_VERSION_SIZE))
        self._index = self._read_file("index.json", LIMITS.document_bytes)
        return choose_root(self._index, self._name)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """Open the blob with that digest, or ``index.json`` if that is the image's index."""
        digest = descriptor.digest
        path = self._path / digest.blob_path
        if self._index and not path.exists() and Digest.from_bytes(self._index, digest.algorithm) == digest:
            path = self._path / "index.json"
        if not os.path.lexists(path):
            raise missing_blob_error(descriptor, str(digest), "the layout")
        return _open_layout_file(path, str(digest))

    def _read_file(self, name: str, limit: int) -> bytes:
        with _open_layout_file(self._path / name, name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise LimitExceeded(f"{name} has more than {limit} bytes")
        return data


def _open_layout_file(path: Path, description: str) -> BinaryIO:
    """Open a regular file. O_NONBLOCK: opening a FIFO does not wait for its writer."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MalformedImage(f"{description} is missing from the layout") from None
    except OSError as error:
        cause = "it is a symbolic link" if path.is_symlink() else error.strerror
        raise MalformedImage(f"{description} cannot be read: {cause}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise MalformedImage(f"{description} is not a regular file")
    return os.fdopen(fd, "rb", buffering=0)


def missing_blob_error(descriptor: Descriptor, name: str, location: str) -> MalformedImage:
    """Return the error for a missing blob, which may be a foreign layer.

    OCI image specification, "Non-Distributable Layers": these are downloaded from the descriptor's
    ``urls``, which we never do.
    """
    if descriptor.urls or descriptor.is_foreign_layer:
        return MalformedImage(f"{descriptor.digest} is a foreign layer, which is not part of this image")
    return MalformedImage(f"{name} is missing from {location}")


def check_layout_version(data: bytes) -> None:
    """Raise :class:`MalformedImage` unless an ``oci-layout`` file states the only version, 1.0.0."""
    document = load_object(data, "oci-layout")
    check_keys(document, LAYOUT, "oci-layout")
    version = document.get("imageLayoutVersion")
    if version != _LAYOUT_VERSION["imageLayoutVersion"]:
        raise MalformedImage(f"oci-layout has version {version!r}; only 1.0.0 is supported")


def choose_root(data: bytes, name: str | None) -> Descriptor:
    """Return the image of an ``index.json``.

    ============================================== ==========================================
    entries                                        image
    ============================================== ==========================================
    one, or several with the same digest           that entry
    several manifests, none of them named          ``index.json`` itself, as an image index
    several, at least one named or an index        the one that ``name`` selects
    ============================================== ==========================================

    ``name`` is compared with an entry's ref.name and containerd's image name. Raises :class:`UsageError`,
    with the names, if it does not select exactly one image.
    """
    index = parse_index(data)
    if name is not None:
        return _choose_by_name(index, name)
    entries = {entry.digest: entry for entry in index.manifests}
    if not entries:
        raise MalformedImage("index.json lists no image")
    if len(entries) == 1:
        return next(iter(entries.values()))
    if any(entry.media_type in INDEX_TYPES or collect_entry_names(entry) for entry in entries.values()):
        raise UsageError(f"the layout has {len(entries)} images", hint=_describe_names(index))
    return Descriptor(media_type=OCI_INDEX, digest=Digest.from_bytes(data), size=len(data))


def _choose_by_name(index: Index, name: str) -> Descriptor:
    matches = {entry.digest: entry for entry in index.manifests if name in collect_entry_names(entry)}
    if len(matches) != 1:
        count = "no image" if not matches else f"{len(matches)} images"
        raise UsageError(f"the layout has {count} named {name!r}", hint=_describe_names(index))
    return next(iter(matches.values()))


def collect_entry_names(entry: Descriptor) -> set[str]:
    """Return the names of an entry of an ``index.json``."""
    keys = (_REF_NAME_ANNOTATION, IMAGE_NAME_ANNOTATION)
    return {entry.annotations[key] for key in keys if key in entry.annotations}


def _describe_names(index: Index) -> str:
    names = sorted({name for entry in index.manifests for name in collect_entry_names(entry)})
    if not names:
        return "give each image a name in its annotation org.opencontainers.image.ref.name"
    return f"add one of these names after a colon: {', '.join(names)}"


def write_layout(source: Source, path: Path) -> Descriptor:
    """Write an image to a new layout directory; return its root.

    Digests and sizes are checked. The directory is written under a temporary name and renamed, so that
    ``path`` is complete or does not exist. Raises :class:`UsageError` if it exists and is not empty.
    """
    if path.is_symlink() or (path.exists() and not _is_empty_dir(path)):
        raise UsageError(f"{path} already exists", hint=f"remove {path}, or use another directory")
    with replace_directory(path) as staging:
        return _write_image(source, staging)


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _write_image(source: Source, staging: Path) -> Descriptor:
    image = Image.wrap(source)
    for descriptor in {each.digest: each for each in image.reachable()}.values():
        _copy_blob(image, descriptor, staging)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [make_index_entry(image.root)]}
    _write_file(staging / "index.json", json.dumps(index).encode())
    _write_file(staging / "oci-layout", json.dumps(_LAYOUT_VERSION).encode())
    return image.root


def _copy_blob(source: Source, descriptor: Descriptor, staging: Path) -> None:
    path = staging / descriptor.digest.blob_path
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_verified(source, descriptor) as stream, path.open("xb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _write_file(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def make_index_entry(root: Descriptor) -> dict[str, Any]:
    """Return the entry of an ``index.json`` for an image, without a name."""
    entry: dict[str, Any] = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
    if root.platform is not None:
        parts = {"os": root.platform.os, "architecture": root.platform.architecture}
        variant = {"variant": root.platform.variant} if root.platform.variant else {}
        entry["platform"] = parts | variant
    return entry
