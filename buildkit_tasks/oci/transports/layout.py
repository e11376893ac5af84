"""An OCI image layout in a folder: reading one, and keeping an image as one.

OCI image specification, "Image Layout": ``oci-layout``, ``index.json`` and ``blobs/``.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    Descriptor,
    Digest,
    Index,
    parse_index,
    parse_manifest,
)
from buildkit_tasks.oci.source import Source, open_verified, read_blob
from buildkit_tasks.oci.strict_json import load_object

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Layout",
    "check_layout_version",
    "choose_root",
    "entry_names",
    "not_here",
    "write_layout",
]

_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"
_VERSION = {"imageLayoutVersion": "1.0.0"}
_VERSION_LIMIT = 4096
_FOREIGN = (".nondistributable.", ".foreign.")


class Layout:
    """The image in a layout folder; ``name`` chooses one if there are several."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._path = path
        self._name = name
        self._index = b""

    def root(self) -> Descriptor:
        """The image that ``index.json`` holds; see :func:`choose_root`."""
        if not (self._path / "index.json").exists():
            raise UsageError(f"{self._path} is no OCI image layout: it has no index.json")
        check_layout_version(self._read("oci-layout", _VERSION_LIMIT))
        self._index = self._read("index.json", LIMITS.document)
        return choose_root(self._index, self._name)

    def open(self, descriptor: Descriptor) -> BinaryIO:
        """The blob of that digest, or ``index.json`` where that is the image's index."""
        digest = descriptor.digest
        path = self._path / "blobs" / digest.algorithm / digest.hex
        if self._index and not path.exists() and Digest.of(self._index, digest.algorithm) == digest:
            path = self._path / "index.json"
        if not os.path.lexists(path):
            raise not_here(descriptor, str(digest), "the layout")
        return _open_regular(path, str(digest))

    def _read(self, name: str, limit: int) -> bytes:
        with _open_regular(self._path / name, name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise LimitExceeded(f"{name} has more than {limit} bytes")
        return data


def _open_regular(path: Path, what: str) -> BinaryIO:
    """Open without following a link and without waiting for a FIFO's writer."""
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise MalformedImage(f"{what} is missing from the layout") from None
    except OSError as error:
        cause = "it is a symbolic link" if path.is_symlink() else error.strerror
        raise MalformedImage(f"{what} cannot be read: {cause}") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise MalformedImage(f"{what} is no regular file")
    return os.fdopen(number, "rb", buffering=0)


def not_here(descriptor: Descriptor, name: str, where: str) -> MalformedImage:
    """What to say of a blob that is missing: foreign layers may be.

    OCI image specification, "Non-Distributable Layers": their content lies at the descriptor's
    ``urls``, which are never followed here.
    """
    if descriptor.urls or any(word in descriptor.media_type for word in _FOREIGN):
        return MalformedImage(f"{descriptor.digest} is a foreign layer, which this image does not carry")
    return MalformedImage(f"{name} is missing from {where}")


def check_layout_version(data: bytes) -> None:
    """Refuse an ``oci-layout`` file of another version than the only one there is, 1.0.0."""
    version = load_object(data, "oci-layout").get("imageLayoutVersion")
    if version != _VERSION["imageLayoutVersion"]:
        raise MalformedImage(f"oci-layout states version {version!r}; 1.0.0 is known")


def choose_root(data: bytes, name: str | None) -> Descriptor:
    """The image that these bytes of an ``index.json`` mean.

    One entry is the image; so are several for the same digest (one image, many tags). Several
    platform manifests make ``index.json`` itself the image's index. Otherwise ``name`` has to
    choose by the entry's ref.name or containerd's image name: :class:`UsageError` lists them.
    """
    index = parse_index(data)
    if name is not None:
        return _named(index, name)
    entries = {entry.digest: entry for entry in index.manifests}
    if not entries:
        raise MalformedImage("index.json lists no image")
    if len(entries) == 1:
        return next(iter(entries.values()))
    if any(entry.media_type in INDEX_TYPES or entry_names(entry) for entry in entries.values()):
        raise UsageError(f"the layout holds {len(entries)} images", hint=_choices(index))
    return Descriptor(media_type=OCI_INDEX, digest=Digest.of(data), size=len(data))


def _named(index: Index, name: str) -> Descriptor:
    found = {entry.digest: entry for entry in index.manifests if name in entry_names(entry)}
    if len(found) != 1:
        count = "no image" if not found else f"{len(found)} images"
        raise UsageError(f"the layout holds {count} named {name!r}", hint=_choices(index))
    return next(iter(found.values()))


def entry_names(entry: Descriptor) -> set[str]:
    """The names that an entry of an ``index.json`` has."""
    return {entry.annotations[key] for key in (_REF_NAME, _IMAGE_NAME) if key in entry.annotations}


def _choices(index: Index) -> str:
    names = sorted({name for entry in index.manifests for name in entry_names(entry)})
    return f"add one of these after a colon: {', '.join(names)}" if names else "none of them has a name"


def write_layout(source: Source, path: Path) -> Descriptor:
    """Copy everything that the image reaches into a new layout folder; gives the root.

    Digests and sizes are checked on the way. Written beside, then renamed: ``path`` is complete
    or is not there. Raises :class:`UsageError` if it already holds something.
    """
    if path.is_symlink() or (path.exists() and not _is_empty_folder(path)):
        raise UsageError(f"{path} is already there", hint=f"remove {path}, or choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        root = _fill(source, staging)
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return root


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _fill(source: Source, staging: Path) -> Descriptor:
    root = source.root()
    for descriptor in {each.digest: each for each in reachable(source, root)}.values():
        _copy_blob(source, descriptor, staging)
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry_of(root)]}
    _write(staging / "index.json", json.dumps(index).encode())
    _write(staging / "oci-layout", json.dumps(_VERSION).encode())
    return root


def reachable(source: Source, root: Descriptor) -> Iterator[Descriptor]:
    """The descriptor and what it leads to; a blob of another media type leads nowhere.

    Each document is read once, however many entries name it: indexes that fan out stay small.
    """
    todo, seen = [root], set()
    while todo:
        here = todo.pop()
        if (here.digest, here.media_type) not in seen:
            seen.add((here.digest, here.media_type))
            yield here
            todo += reversed(_children(source, here))


def _children(source: Source, descriptor: Descriptor) -> tuple[Descriptor, ...]:
    if descriptor.media_type in INDEX_TYPES:
        data = read_blob(source, descriptor, LIMITS.document)
        return parse_index(data, descriptor.media_type).manifests
    if descriptor.media_type in MANIFEST_TYPES:
        data = read_blob(source, descriptor, LIMITS.document)
        manifest = parse_manifest(data, descriptor.media_type)
        return (manifest.config, *manifest.layers)
    return ()


def _copy_blob(source: Source, descriptor: Descriptor, staging: Path) -> None:
    folder = staging / "blobs" / descriptor.digest.algorithm
    folder.mkdir(parents=True, exist_ok=True)
    with open_verified(source, descriptor) as stream, (folder / descriptor.digest.hex).open("xb") as file:
        shutil.copyfileobj(stream, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def entry_of(root: Descriptor) -> dict[str, Any]:
    """The entry of an ``index.json`` for an image, without a name."""
    entry: dict[str, Any] = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
    if root.platform is not None:
        parts = {"os": root.platform.os, "architecture": root.platform.architecture}
        variant = {"variant": root.platform.variant} if root.platform.variant else {}
        entry["platform"] = parts | variant
    return entry
