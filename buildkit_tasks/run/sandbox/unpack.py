"""One platform's image unpacked into a folder, every digest, size and diff_id checked on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import config_of, manifest_of
from buildkit_tasks.oci.layers.stream import check_diff_id, check_layer_count, open_layer
from buildkit_tasks.oci.layers.tar import OwnedReader
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.run.sandbox.openat2 import READ, remove
from buildkit_tasks.run.sandbox.rootfs_writer import FULL, DiskFull, Tree

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit_tasks.oci.model import Descriptor, Digest, ImageConfig, Manifest
    from buildkit_tasks.oci.source import Source

__all__ = ["Unpacked", "unpack", "unpack_sized"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """The image's configuration, and about how many bytes its files take."""

    config: ImageConfig
    size: int


def unpack(
    source: Source,
    manifest_descriptor: Descriptor,
    place: Path,
    *,
    shift: int | None = None,
    limits: Limits = LIMITS,
) -> ImageConfig:
    """Make a new folder ``place`` the root file system of one platform's image; gives its config.

    With ``shift``, for which one has to be root, what belongs to N in the image belongs to ``shift`` + N
    on disk; without it everything belongs to who unpacks. Raises :class:`MalformedImage`,
    :class:`LimitExceeded`, also for a full disk, and :class:`EmulatorError` for a disk that cannot be
    written; there is no ``place`` then.
    """
    return unpack_sized(source, manifest_descriptor, place, shift=shift, limits=limits).config


def unpack_sized(
    source: Source, entry: Descriptor, place: Path, *, shift: int | None = None, limits: Limits = LIMITS
) -> Unpacked:
    """The same, and how much was unpacked."""
    manifest = manifest_of(source, entry)
    config = config_of(source, manifest)
    check_layer_count(manifest, config.diff_ids)
    image = f"{entry.platform or config.platform} ({entry.digest})"
    try:
        place.mkdir(mode=0o700)
        try:
            with Tree(place, shift, limits) as tree:
                _fill(tree, source, manifest, config, limits)
        except BaseException:
            _undo(place)
            raise
    except (DiskFull, OSError) as error:
        raise _told(error, image, place) from error
    return Unpacked(config=config, size=tree.size)


def _told(error: DiskFull | OSError, image: str, place: Path) -> Exception:
    """What it means that the disk takes no more, or nothing."""
    if isinstance(error, OSError) and error.errno not in FULL:
        cause = f"{image} cannot be unpacked into {place.parent}: {error.strerror}"
        return EmulatorError(cause, hint=f"ls -ld {place.parent}")
    missing = error.missing if isinstance(error, DiskFull) else 1
    return LimitExceeded(
        f"the disk is full while unpacking {image}: at least {missing} bytes more are needed",
        hint=f"df -h {place.parent}",
    )


def _fill(tree: Tree, source: Source, manifest: Manifest, config: ImageConfig, limits: Limits) -> None:
    left = limits.image
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True), 1):
        capped = dataclasses.replace(limits, layer=min(limits.layer, left))
        try:
            left -= _apply(tree, source, layer, diff_id, capped)
        except DiskFull as full:
            raise DiskFull(full.missing + sum(each.size for each in manifest.layers[number:])) from full
    tree.complete(config.working_dir)


def _apply(tree: Tree, source: Source, layer: Descriptor, diff_id: Digest, limits: Limits) -> int:
    """Lay one layer over the others; gives its size.

    A blob with other bytes than its digest promises is reported as that, whatever else they upset.
    """
    with open_layer(source, layer, algorithm=diff_id.algorithm, limits=limits) as stream:
        try:
            tree.add(OwnedReader(stream, max_entries=limits.entries))
            found = stream.finish()
        except MalformedImage as error:
            stream.check_blob()
            raise MalformedImage(f"layer {layer.digest}: {error.message}") from error
    check_diff_id(layer, found, diff_id)
    return stream.size


def _undo(place: Path) -> None:
    """Leave nothing; should that fail, what led here is still what is told."""
    with contextlib.suppress(OSError):
        above = os.open(place.parent, READ)
        try:
            remove(above, os.fsencode(place.name))
        finally:
            os.close(above)
