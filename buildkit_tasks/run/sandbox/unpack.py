"""Unpack one platform's image into a directory; every digest, size and diff_id is checked on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EmulatorError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.stream import check_diff_id, check_layer_count, open_layer
from buildkit_tasks.oci.layers.tar import OwnerTarReader
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.run.sandbox.openat2 import DIRECTORY_FLAGS, remove_tree
from buildkit_tasks.run.sandbox.rootfs_writer import DISK_FULL_ERRORS, DiskFull, RootfsWriter

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit_tasks.oci.model import Descriptor, Digest, ImageConfig, Manifest
    from buildkit_tasks.oci.source import Source

__all__ = ["UnpackedImage", "unpack"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpackedImage:
    """The image's configuration, and roughly how many bytes its files take on disk."""

    config: ImageConfig
    size: int


def unpack(
    source: Source,
    descriptor: Descriptor,
    destination: Path,
    *,
    id_offset: int | None = None,
    limits: Limits = LIMITS,
) -> UnpackedImage:
    """Unpack one platform's image into the new directory ``destination``.

    With ``id_offset``, which only root can use, an owner N of the image becomes ``id_offset`` + N on disk;
    without it every file belongs to the calling user. Raises :class:`MalformedImage`,
    :class:`LimitExceeded` (also for a full disk), or :class:`EmulatorError` if the disk cannot be written;
    what was unpacked is removed then.
    """
    image = Image.wrap(source)
    manifest, config = image.manifest(descriptor), image.config(descriptor)
    check_layer_count(manifest, config.diff_ids)
    image_name = f"{descriptor.platform or config.platform} ({descriptor.digest})"
    try:
        destination.mkdir(mode=0o700)
        try:
            with RootfsWriter(destination, id_offset, limits) as writer:
                _apply_layers(writer, source, manifest, config, limits)
        except BaseException:
            _remove_destination(destination)
            raise
    except (DiskFull, OSError) as error:
        raise _translate_os_error(error, image_name, destination) from error
    return UnpackedImage(config=config, size=writer.size)


def _translate_os_error(error: DiskFull | OSError, image_name: str, destination: Path) -> Exception:
    """Translate an error of writing to LimitExceeded (disk full) or EmulatorError."""
    if isinstance(error, OSError) and error.errno not in DISK_FULL_ERRORS:
        message = f"{image_name} cannot be unpacked into {destination.parent}: {error.strerror}"
        return EmulatorError(message, hint=f"ls -ld {destination.parent}")
    missing_bytes = error.missing_bytes if isinstance(error, DiskFull) else 1
    return LimitExceeded(
        f"the disk is full while unpacking {image_name}: at least {missing_bytes} bytes more are needed",
        hint=f"df -h {destination.parent}",
    )


def _apply_layers(
    writer: RootfsWriter, source: Source, manifest: Manifest, config: ImageConfig, limits: Limits
) -> None:
    bytes_left = limits.image_bytes
    for number, (layer, diff_id) in enumerate(zip(manifest.layers, config.diff_ids, strict=True), 1):
        layer_limits = dataclasses.replace(limits, layer_bytes=min(limits.layer_bytes, bytes_left))
        try:
            bytes_left -= _apply_layer(writer, source, layer, diff_id, layer_limits)
        except DiskFull as error:
            raise DiskFull(
                error.missing_bytes + sum(each.size for each in manifest.layers[number:])
            ) from error
    writer.complete(config.working_dir)


def _apply_layer(
    writer: RootfsWriter, source: Source, layer: Descriptor, diff_id: Digest, limits: Limits
) -> int:
    """Apply one layer and return its uncompressed size in bytes.

    Bytes that do not match the blob's digest are reported as that, whatever other error they cause first.
    """
    with open_layer(source, layer, algorithm=diff_id.algorithm, limits=limits) as stream:
        try:
            writer.apply_layer(OwnerTarReader(stream, max_entries=limits.entries))
            actual_diff_id = stream.finish()
        except MalformedImage as error:
            stream.verify_blob()
            raise MalformedImage(f"layer {layer.digest}: {error.message}") from error
    check_diff_id(layer, actual_diff_id, diff_id)
    return stream.size


def _remove_destination(destination: Path) -> None:
    """Remove it; if that fails, the error that led here is still the one that is raised."""
    with contextlib.suppress(OSError):
        parent_fd = os.open(destination.parent, DIRECTORY_FLAGS)
        try:
            remove_tree(parent_fd, os.fsencode(destination.name))
        finally:
            os.close(parent_fd)
