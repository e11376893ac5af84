"""An image by its name, and what follows from a source's two methods.

Names are those of containers-transports(5). The functions hold for every source: which platforms
an image has, their manifests and configurations.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.archive import Archive
from buildkit_tasks.oci.blobs import Source, open_verified, read_blob
from buildkit_tasks.oci.layout import Layout
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.platforms import Platform

__all__ = [
    "Source",
    "config_of",
    "index_of",
    "manifest_of",
    "open_image",
    "open_verified",
    "platform_manifests",
    "read_blob",
]

_DEPTH = 3  # an index in an index.json, and one more: deeper ones are nobody's image
_BUILD = "build one that can be read with: inv build-multiarch -o type=oci,dest=dist/image.tar"
_ELSEWHERE = {
    "docker": "a registry",
    "docker-daemon": "a Docker engine",
    "docker-archive": "a `docker save` archive",
    "dir": "a local output folder",
    "containers-storage": "containers-storage",
}


def index_of(source: Source) -> Index:
    """The image's index; of an image that is a single manifest, an index of just that."""
    root = source.root()
    if root.media_type in INDEX_TYPES:
        return parse_index(read_blob(source, root, LIMITS.document), root.media_type)
    return Index(media_type=root.media_type, manifests=(root,))


def manifest_of(source: Source, descriptor: Descriptor) -> Manifest:
    """The manifest that an index entry points to."""
    if descriptor.media_type not in MANIFEST_TYPES:
        raise MalformedImage(f"{descriptor.digest} is {descriptor.media_type!r}, which is no image manifest")
    return parse_manifest(read_blob(source, descriptor, LIMITS.document), descriptor.media_type)


def config_of(source: Source, manifest: Manifest) -> ImageConfig:
    """The configuration of one platform's image."""
    if manifest.is_artifact:
        raise MalformedImage(f"the config is {manifest.config.media_type!r}, which is no image config")
    return parse_config(read_blob(source, manifest.config, LIMITS.document))


def platform_manifests(source: Source) -> tuple[tuple[Platform, Descriptor], ...]:
    """Every platform that the image names, with its manifest's descriptor, in the index's order.

    Attestations and artifacts are no platforms. A platform that is there twice is there twice in
    the answer. An entry without a platform has the one that its configuration states.
    """
    found: list[tuple[Platform, Descriptor]] = []
    for count, entry in enumerate(_entries(source, index_of(source), _DEPTH)):
        if count >= LIMITS.manifests:
            raise LimitExceeded(f"the image index has more than {LIMITS.manifests} entries")
        found += _pairs(source, entry)
    return tuple(found)


def _entries(source: Source, index: Index, depth: int) -> Iterator[Descriptor]:
    """Every entry, an index before what is in it, so that counting them bounds the reading."""
    for entry in index.manifests:
        yield entry
        if entry.media_type in INDEX_TYPES:
            if depth == 1:
                raise MalformedImage(f"{entry.digest}: indexes are nested more than {_DEPTH} deep")
            nested = parse_index(read_blob(source, entry, LIMITS.document), entry.media_type)
            yield from _entries(source, nested, depth - 1)


def _pairs(source: Source, entry: Descriptor) -> Iterator[tuple[Platform, Descriptor]]:
    if entry.media_type not in MANIFEST_TYPES or entry.is_attestation:
        return
    if entry.platform is not None:
        yield entry.platform, entry
        return
    manifest = manifest_of(source, entry)
    if not manifest.is_artifact:
        yield config_of(source, manifest).platform, entry


@contextmanager
def open_image(name: str) -> Iterator[Source]:
    """Open ``oci:DIR[:NAME]``, ``oci-archive:FILE[:NAME]`` or a path, which is looked into.

    NAME chooses among several images of one layout. Raises :class:`UsageError` for a path that
    does not exist and for images that lie elsewhere: in a registry, in an engine.
    """
    transport, colon, rest = name.partition(":")
    if colon and transport in ("oci", "oci-archive"):
        path, chosen = _split(rest)
    elif colon and transport in _ELSEWHERE:
        raise UsageError(f"{name}: verify-arch cannot read from {_ELSEWHERE[transport]} yet", hint=_BUILD)
    else:
        path, chosen = _existing(name), None
    with _opened(path, transport if colon else "", chosen) as source:
        yield source


@contextmanager
def _opened(path: Path, transport: str, chosen: str | None) -> Iterator[Source]:
    if not path.exists():
        raise UsageError(f"{path} does not exist", hint=_BUILD)
    if path.is_dir():
        if transport == "oci-archive":
            raise UsageError(f"{path} is a folder, no archive", hint=f"write it as oci:{path}")
        yield Layout(path, chosen)
        return
    if transport == "oci":
        raise UsageError(f"{path} is no folder", hint=f"write it as oci-archive:{path}")
    with Archive(path, chosen) as archive:
        yield archive


def _split(rest: str) -> tuple[Path, str | None]:
    """Part ``PATH:NAME``; a path that exists as a whole may have colons itself."""
    path, colon, chosen = rest.rpartition(":")
    if not rest:
        raise UsageError("the image has no path", hint="write it as oci:DIR or oci-archive:FILE")
    if not colon or Path(rest).exists():
        return Path(rest), None
    return Path(path), chosen


def _existing(name: str) -> Path:
    """Take the path, or say that a registry reference cannot be read."""
    if not name:
        raise UsageError("no image is named", hint=_BUILD)
    path = Path(name)
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or path.suffix in (".tar", ".oci"):
        raise UsageError(f"{name} does not exist", hint=_BUILD)
    raise UsageError(
        f"{name}: no such path, and verify-arch cannot read from {_ELSEWHERE['docker']} yet", hint=_BUILD
    )
