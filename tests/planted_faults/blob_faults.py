"""Faults of blobs: digests, sizes, media types and malicious layers."""

from __future__ import annotations

import gzip
import sys
import tarfile
from collections.abc import Callable

from tests.planted_faults.bases import Samples
from tests.planted_faults.index_faults import AMD64, ARM64
from tests.planted_faults.planting import Finding, PlantedImage, VerifyRequest, declare_fault
from tests.support import edits
from tests.support.oci import LAYER_ZSTD, Json, MemoryImage, directory, flip, make_tar, symlink

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TWO_PLATFORMS = VerifyRequest(platforms=[AMD64, ARM64])
TOP = 3  # index of the layer of examples/hello; its base has three
CORRUPT_ARM64 = Finding("integrity", ARM64)


def _with_damaged_blob(
    samples: Samples, find_digest: Callable[[MemoryImage], str], damage: Callable[[bytes], bytes] = flip
) -> PlantedImage:
    """Change the content of a blob in examples/hello, and keep its digest."""
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    image, digest = edits.copy_image(valid), find_digest(valid)
    image.blobs[digest] = damage(image.blobs[digest])
    return PlantedImage(image, valid, request=TWO_PLATFORMS)


def _layer_digest(image: MemoryImage) -> str:
    return str(edits.read_manifest(image, ARM64)["layers"][TOP]["digest"])


@declare_fault(
    "one bit of a layer is flipped", CORRUPT_ARM64, message="holds other bytes", layer=TOP, exit_status=1
)
def flipped_bit_in_layer(samples: Samples) -> PlantedImage:
    return _with_damaged_blob(samples, _layer_digest)


@declare_fault("one bit of a config is flipped", CORRUPT_ARM64, message="holds other bytes")
def flipped_bit_in_config(samples: Samples) -> PlantedImage:
    return _with_damaged_blob(
        samples, lambda image: str(edits.read_manifest(image, ARM64)["config"]["digest"])
    )


@declare_fault("one bit of a manifest is flipped", CORRUPT_ARM64, message="holds other bytes")
def flipped_bit_in_manifest(samples: Samples) -> PlantedImage:
    return _with_damaged_blob(samples, lambda image: str(edits.find_entry(image, ARM64)["digest"]))


@declare_fault(
    "one bit of the index is flipped", Finding("integrity", AMD64), CORRUPT_ARM64, message="holds other bytes"
)
def flipped_bit_in_index(samples: Samples) -> PlantedImage:
    return _with_damaged_blob(samples, lambda image: str(image.root_descriptor().digest))


@declare_fault("a layer is truncated", CORRUPT_ARM64, layer=TOP, message="bytes")
def layer_truncated(samples: Samples) -> PlantedImage:
    return _with_damaged_blob(samples, _layer_digest, lambda data: data[:-1000])


@declare_fault("a layer has the content of another platform's layer", CORRUPT_ARM64, layer=TOP)
def blob_of_another_platform(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    other = valid.blobs[edits.read_manifest(valid, AMD64)["layers"][TOP]["digest"]]
    return _with_damaged_blob(samples, _layer_digest, lambda _: other)


def _with_layer_descriptor(samples: Samples, change: Callable[[Json], object]) -> PlantedImage:
    """Change the descriptor of a layer in examples/hello, and recompute the digests above it."""
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    image = edits.change_manifest(valid, ARM64, lambda manifest: change(manifest["layers"][TOP]))
    return PlantedImage(image, valid, request=TWO_PLATFORMS)


@declare_fault("the size of a layer is off by one", CORRUPT_ARM64, layer=TOP, message="are stated")
def layer_size_off_by_one(samples: Samples) -> PlantedImage:
    return _with_layer_descriptor(samples, lambda layer: layer.update(size=layer["size"] + 1))


@declare_fault(
    "a gzip layer has the media type of zstd", CORRUPT_ARM64, layer=TOP, message="zstd", exit_status=1
)
def gzip_layer_as_zstd(samples: Samples) -> PlantedImage:
    return _with_layer_descriptor(samples, lambda layer: layer.update(mediaType=LAYER_ZSTD))


@declare_fault(
    "a layer has a media type that is not a layer's", CORRUPT_ARM64, layer=TOP, message="application/json"
)
def unknown_layer_media_type(samples: Samples) -> PlantedImage:
    return _with_layer_descriptor(samples, lambda layer: layer.update(mediaType="application/json"))


@declare_fault("the blob of a layer is missing", CORRUPT_ARM64, layer=TOP, message="missing")
def layer_missing(samples: Samples) -> PlantedImage:
    planted = _with_damaged_blob(samples, _layer_digest)
    del planted.image.blobs[_layer_digest(planted.control)]
    return planted


def _with_added_layer(samples: Samples, tar: bytes) -> PlantedImage:
    """Add a layer to examples/hello, with the right digests."""
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    image = edits.add_layer(valid, ARM64, tar)
    control = edits.add_files(valid, ARM64, {"opt/hello.txt": b"hello"})
    return PlantedImage(image, control, request=VerifyRequest(platforms=[AMD64, ARM64], parity="off"))


@declare_fault(
    "a path in a layer contains `..`", CORRUPT_ARM64, layer=TOP + 1, message="contains '..'", exit_status=1
)
def path_traversal(samples: Samples) -> PlantedImage:
    return _with_added_layer(samples, make_tar({"../../etc/cron.d/job": b"* * * * * root true\n"}))


@declare_fault(
    "the parent of an entry in a layer is a regular file", CORRUPT_ARM64, layer=TOP + 1, message="directory"
)
def entry_below_a_file(samples: Samples) -> PlantedImage:
    return _with_added_layer(samples, make_tar({"a": b"", "a/b": b""}))


@declare_fault("an entry of a layer has a size of 2^62 bytes", CORRUPT_ARM64, layer=TOP + 1)
def huge_entry_size(samples: Samples) -> PlantedImage:
    info = directory("huge")
    info.type, info.size = tarfile.REGTYPE, 1 << 62
    return _with_added_layer(samples, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@declare_fault("the archive of a layer is truncated", CORRUPT_ARM64, layer=TOP + 1)
def tar_truncated(samples: Samples) -> PlantedImage:
    return _with_added_layer(samples, make_tar({"file": b"x" * 5000})[:2048])


@declare_fault(
    "a tar header in a layer has a wrong checksum", CORRUPT_ARM64, layer=TOP + 1, message="checksum"
)
def wrong_tar_checksum(samples: Samples) -> PlantedImage:
    return _with_added_layer(samples, flip(make_tar({"file": b"x"}), 0))


@declare_fault("a layer is a decompression bomb", Finding("limit", ARM64), layer=TOP + 1, exit_status=5)
def decompression_bomb(samples: Samples) -> PlantedImage:
    planted = _with_added_layer(samples, make_tar({}, [symlink("here", "there")]))
    huge = directory("huge")
    huge.type, huge.size = tarfile.REGTYPE, 1 << 30
    bomb = zstd.compress(huge.tobuf() + bytes((1 << 30) + 1024))
    image = _replace_layer_blob(planted.image, TOP + 1, bomb, LAYER_ZSTD)
    return PlantedImage(image, planted.control, request=planted.request)


def _replace_layer_blob(image: MemoryImage, index: int, blob: bytes, media_type: str) -> MemoryImage:
    changed = edits.copy_image(image)
    layer = changed.put(blob, media_type)
    return edits.change_manifest(
        changed, ARM64, lambda manifest: manifest["layers"].__setitem__(index, layer)
    )


@declare_fault("bytes follow the last gzip member of a layer", CORRUPT_ARM64, layer=TOP)
def bytes_after_gzip(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    layer = edits.read_manifest(valid, ARM64)["layers"][TOP]
    blob = valid.blobs[layer["digest"]]
    assert gzip.decompress(blob)
    image = _replace_layer_blob(valid, TOP, blob + b"trailing bytes", layer["mediaType"])
    return PlantedImage(image, valid, request=TWO_PLATFORMS)
