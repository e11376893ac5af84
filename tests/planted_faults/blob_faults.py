"""Faults of blobs: digests, sizes, media types, and hostile layers."""

from __future__ import annotations

import gzip
import sys
import tarfile
from collections.abc import Callable

from tests.planted_faults.bases import Parts
from tests.planted_faults.index_faults import AMD64, ARM64
from tests.planted_faults.planting import Catch, Planted, Question, fault
from tests.support import edits
from tests.support.oci import LAYER_ZSTD, Json, MemoryImage, directory, flip, make_tar, symlink

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TWO = Question(platforms=[AMD64, ARM64])
TOP = 3  # the number of the example's own layer, above the three of its base
CAUGHT = Catch("integrity", ARM64)


def _damaged(
    parts: Parts, which: Callable[[MemoryImage], str], damage: Callable[[bytes], bytes] = flip
) -> Planted:
    """The example with other bytes behind a digest that stays as it is."""
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    image, digest = edits.copy_image(sound), which(sound)
    image.blobs[digest] = damage(image.blobs[digest])
    return Planted(image=image, control=sound, question=TWO)


def _layer(image: MemoryImage) -> str:
    return str(edits.read_manifest(image, ARM64)["layers"][TOP]["digest"])


@fault("a bit of a layer was flipped", CAUGHT, says="holds other bytes", layer=TOP, task=1)
def bit_of_a_layer(parts: Parts) -> Planted:
    return _damaged(parts, _layer)


@fault("a bit of a configuration was flipped", CAUGHT, says="holds other bytes")
def bit_of_a_config(parts: Parts) -> Planted:
    return _damaged(parts, lambda image: str(edits.read_manifest(image, ARM64)["config"]["digest"]))


@fault("a bit of a manifest was flipped", CAUGHT, says="holds other bytes")
def bit_of_a_manifest(parts: Parts) -> Planted:
    return _damaged(parts, lambda image: str(edits.find_entry(image, ARM64)["digest"]))


@fault("a bit of the index was flipped", Catch("integrity", AMD64), CAUGHT, says="holds other bytes")
def bit_of_the_index(parts: Parts) -> Planted:
    return _damaged(parts, lambda image: str(image.root_descriptor().digest))


@fault("a layer is cut off", CAUGHT, layer=TOP, says="bytes")
def layer_cut_off(parts: Parts) -> Planted:
    return _damaged(parts, _layer, lambda data: data[:-1000])


@fault("a layer's blob was replaced by that of another platform", CAUGHT, layer=TOP)
def blob_of_another_platform(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    theirs = sound.blobs[edits.read_manifest(sound, AMD64)["layers"][TOP]["digest"]]
    return _damaged(parts, _layer, lambda _: theirs)


def _relabelled(parts: Parts, change: Callable[[Json], object]) -> Planted:
    """The example with another descriptor of a layer, everything above made anew."""
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    image = edits.change_manifest(sound, ARM64, lambda manifest: change(manifest["layers"][TOP]))
    return Planted(image=image, control=sound, question=TWO)


@fault("a layer's size is off by one", CAUGHT, layer=TOP, says="are stated")
def size_off_by_one(parts: Parts) -> Planted:
    return _relabelled(parts, lambda layer: layer.update(size=layer["size"] + 1))


@fault("a gzip layer is called zstd", CAUGHT, layer=TOP, says="zstd", task=1)
def gzip_called_zstd(parts: Parts) -> Planted:
    return _relabelled(parts, lambda layer: layer.update(mediaType=LAYER_ZSTD))


@fault("a layer that is no layer", CAUGHT, layer=TOP, says="application/json")
def media_type_of_no_layer(parts: Parts) -> Planted:
    return _relabelled(parts, lambda layer: layer.update(mediaType="application/json"))


@fault("a layer is not there", CAUGHT, layer=TOP, says="missing")
def layer_missing(parts: Parts) -> Planted:
    planted = _damaged(parts, _layer)
    del planted.image.blobs[_layer(planted.control)]
    return planted


def _hostile(parts: Parts, tar: bytes) -> Planted:
    """The example with one more layer, every digest right."""
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    image = edits.add_layer(sound, ARM64, tar)
    control = edits.add_files(sound, ARM64, {"opt/hello.txt": b"hello"})
    return Planted(image=image, control=control, question=Question(platforms=[AMD64, ARM64], parity="off"))


@fault("an entry of a layer leads out of it (../)", CAUGHT, layer=TOP + 1, says="contains '..'", task=1)
def entry_leads_out(parts: Parts) -> Planted:
    return _hostile(parts, make_tar({"../../etc/cron.d/job": b"* * * * * root true\n"}))


@fault(
    "an entry of a layer goes through a file as if it were a folder", CAUGHT, layer=TOP + 1, says="directory"
)
def entry_below_a_file(parts: Parts) -> Planted:
    return _hostile(parts, make_tar({"a": b"", "a/b": b""}))


@fault("an entry of a layer claims 2^62 bytes", CAUGHT, layer=TOP + 1)
def entry_of_a_hostile_size(parts: Parts) -> Planted:
    info = directory("huge")
    info.type, info.size = tarfile.REGTYPE, 1 << 62
    return _hostile(parts, info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))


@fault("a layer's archive ends in the middle of a file", CAUGHT, layer=TOP + 1)
def archive_cut_off(parts: Parts) -> Planted:
    return _hostile(parts, make_tar({"file": b"x" * 5000})[:2048])


@fault("a header of a layer's archive has a wrong checksum", CAUGHT, layer=TOP + 1, says="checksum")
def header_checksum(parts: Parts) -> Planted:
    return _hostile(parts, flip(make_tar({"file": b"x"}), 0))


@fault("a layer unpacks to a thousand times its size", Catch("limit", ARM64), layer=TOP + 1, task=5)
def layer_bomb(parts: Parts) -> Planted:
    planted = _hostile(parts, make_tar({}, [symlink("here", "there")]))
    huge = directory("huge")
    huge.type, huge.size = tarfile.REGTYPE, 1 << 30
    bomb = zstd.compress(huge.tobuf() + bytes((1 << 30) + 1024))
    made = edits.copy_image(planted.image)
    layer = made.put(bomb, LAYER_ZSTD)
    image = edits.change_manifest(
        made, ARM64, lambda manifest: manifest["layers"].__setitem__(TOP + 1, layer)
    )
    return Planted(image=image, control=planted.control, question=planted.question)


@fault("gzip with something behind its last member", CAUGHT, layer=TOP)
def gzip_with_a_tail(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    made = edits.copy_image(sound)
    data = sound.blobs[_layer(sound)] + b"and a few words more"
    assert gzip.decompress(sound.blobs[_layer(sound)])
    kind = edits.read_manifest(sound, ARM64)["layers"][TOP]["mediaType"]
    layer = made.put(data, kind)
    image = edits.change_manifest(made, ARM64, lambda manifest: manifest["layers"].__setitem__(TOP, layer))
    return Planted(image=image, control=sound, question=TWO)
