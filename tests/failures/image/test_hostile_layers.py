"""Unpack hostile layers: nothing outside of the root is ever touched."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.transports.layout import OciLayout
from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.support.oci import (
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MemoryImage,
    hello,
    make_tar,
    platform_json,
    put_manifest,
    single_platform_image,
    write_layout_dir,
)
from tests.support.unpacking import (
    Entry,
    directory,
    file,
    hard_link,
    layer_tar,
    platform_descriptor,
    symlink,
    tar_entry,
    unpack_error,
    unpack_layers,
)
from tests.unit.oci.layers.test_tar import END, header, metadata, padded, pax

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PLATFORM = "linux/amd64"


def image(blob: bytes, tar: bytes, media_type: str = LAYER_GZIP, **descriptor: object) -> MemoryImage:
    """Return an image of one layer, stored unchanged; ``descriptor`` may contradict it."""
    memory = MemoryImage()
    stored = {**memory.put(blob, media_type), **descriptor}
    config = {
        **platform_json(PLATFORM),
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.from_bytes(tar))]},
    }
    entry = put_manifest(memory, config, [stored])
    return memory.set_index([{**entry, "platform": platform_json(PLATFORM)}])


def fails(source: MemoryImage, place: Path, kind: type[BuildkitTasksError], limits: Limits = LIMITS) -> str:
    """Return the error message. Unpacking must fail within bounded time and memory and leave nothing."""
    place.mkdir(exist_ok=True)
    started = time.monotonic()
    tracemalloc.start()
    with pytest.raises(kind) as caught:
        unpack(source, platform_descriptor(source), place / "root", limits=limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(place.iterdir()) == []
    assert peak < 32 << 20
    assert time.monotonic() - started < 60
    assert caught.value.exit_code == (5 if kind is LimitExceeded else 1)
    return caught.value.message


# A blob that is not a regular file.


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "folder"])
@pytest.mark.timeout(60)
def test_layer_must_be_a_regular_file(kind: str, tmp_path: Path) -> None:
    memory = hello([PLATFORM])
    digest = next(digest for digest, data in memory.blobs.items() if data.startswith(b"\x1f\x8b"))
    path = write_layout_dir(memory, tmp_path / "layout") / "blobs/sha256" / digest.partition(":")[2]
    path.rename(path.with_name("elsewhere"))
    if kind == "symlink":
        path.symlink_to("elsewhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFSOCK | 0o600)
    roots = RootfsCache(tmp_path / "roots", 1 << 30, None)
    source = OciLayout(tmp_path / "layout")
    entry = Image(source).platform_manifests[0][1]
    with pytest.raises(MalformedImage, match=digest), roots.acquire(source, entry):
        pytest.fail("it was unpacked")
    assert [each.name for each in (tmp_path / "roots").iterdir()] == [".lock"]


# Nested indexes.


def test_index_is_not_unpacked(tmp_path: Path) -> None:
    source = hello([PLATFORM])
    with pytest.raises(MalformedImage, match="not an image manifest"):
        unpack(source, source.root_descriptor(), tmp_path / "root")
    assert list(tmp_path.iterdir()) == []


# Path traversal.


@dataclass(frozen=True)
class Outside:
    """The files outside of the root."""

    place: Path
    folder: Path

    def look(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for path in (self.folder, *self.folder.rglob("*")):
            about = path.lstat()
            times = about.st_mtime_ns, about.st_ctime_ns
            found[str(path)] = (about.st_mode, about.st_uid, about.st_nlink, about.st_size, *times)
        return found


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    """Yield files outside of the root, and check afterwards that they are unchanged."""
    found = Outside(tmp_path / "place", tmp_path / "outside")
    found.place.mkdir()
    for name in ("a/b", "etc"):
        (found.folder / name).mkdir(parents=True)
    for name in ("file", "a/file", "etc/hosts"):
        (found.folder / name).write_bytes(b"")
    before = found.look()
    yield found
    assert found.look() == before
    assert {path.name for path in found.place.iterdir()} <= {"root"}


OUT = "{out}"
CLIMB = "../" * 30
ATTACKS: dict[str, list[list[Entry]]] = {
    "a file through a link to the outside": [[symlink("l", OUT), file("l/new", b"x")]],
    "a file through a link of a lower layer": [
        [symlink("l", OUT)],
        [file("l/new", b"x"), file("l/file", b"x")],
    ],
    "a file through a link that climbs": [[symlink("l", f"{CLIMB}{OUT}"), file("l/file", b"x")]],
    "a file through two links": [[symlink("m", OUT), symlink("l", "m/a"), file("l/file", b"x")]],
    "a file over a link to the outside": [[symlink("l", f"{OUT}/file")], [file("l", b"x", mode=0o777)]],
    "a folder over a link to the outside": [
        [symlink("l", OUT)],
        [directory("l", mode=0o777, mtime=1), file("l/new")],
    ],
    "a folder through a link": [
        [symlink("l", OUT), directory("l/a", mode=0o777, mtime=1), directory("l/new")]
    ],
    "a link through a link": [[symlink("l", OUT), symlink("l/new", "x"), symlink("l/file", "x")]],
    "a FIFO through a link": [[symlink("l", OUT), tar_entry("l/file", tarfile.FIFOTYPE)]],
    "a device that takes away": [
        [symlink("l", OUT), tar_entry("l/file", tarfile.CHRTYPE), tar_entry("l/a", tarfile.BLKTYPE)]
    ],
    "a whiteout through a link": [[symlink("l", OUT)], [file("l/.wh.file"), file("l/.wh.a")]],
    "an opaque folder through a link": [[symlink("l", OUT)], [file("l/.wh..wh..opq")]],
    "an opaque folder with a link in it": [[symlink("d/l", OUT), file("d/x")], [file("d/.wh..wh..opq")]],
    "a whiteout of a link": [[symlink("l", OUT)], [file(".wh.l")]],
    "a whiteout of a folder with a link in it": [
        [symlink("d/l", OUT), symlink("d/e/l", OUT)],
        [file(".wh.d")],
    ],
    "a file over a folder with a link in it": [
        [symlink("d/l", OUT), symlink("d/e/l", f"{OUT}/a")],
        [file("d")],
    ],
    "a link that is swapped": [
        [directory("d"), file("d/x"), symlink("d", OUT), file("d/file", b"x"), file("d/y")]
    ],
    "a link in the way of /etc/hosts": [[symlink("etc", f"{OUT}/etc")]],
    "a link as /etc/hosts": [[symlink("etc/hosts", f"{OUT}/etc/hosts")]],
    "links where something is mounted": [[symlink(name, OUT) for name in ("tmp", "proc", "sys", "dev")]],
    "a link to where a process sees its root": [
        [symlink("l", f"/proc/self/root{OUT}"), file("l/file", b"x")]
    ],
    "a link to a descriptor": [[symlink("l", "/proc/self/fd/3"), file("l/x", b"x")]],
    "a link to where we stand": [[symlink("l", "/proc/self/cwd"), file("l/x", b"x")]],
    "a name from the root": [[file(f"{OUT}/file", b"x"), directory(f"{OUT}/a", mode=0o777)]],
    "equal links": [[symlink("l", OUT), symlink("m", OUT), file("m", b"x"), file("l/file", b"x")]],
}
REFUSED_ATTACKS: dict[str, list[list[Entry]]] = {
    "a name that climbs": [[file(f"{CLIMB}{OUT}/file", b"x")]],
    "a name that climbs later": [[file(f"a/{CLIMB}{OUT}/file", b"x")]],
    "a folder that climbs": [[directory(f"a/../../{OUT}", mode=0o777)]],
    "a whiteout that climbs": [[file("a/x")], [file(f"{CLIMB}{OUT}/.wh.file")]],
    "a whiteout of what is above": [[file("a/x")], [file("a/.wh...")]],
    "a hard link to the outside": [[hard_link("h", f"{OUT}/file")]],
    "a hard link that climbs": [[hard_link("h", f"{CLIMB}{OUT}/file"), file("h", b"x")]],
    "a hard link through a link": [[symlink("l", OUT), hard_link("h", "l/file"), file("h", b"x")]],
    "a hard link through a link of a lower layer": [[symlink("l", OUT)], [hard_link("h", "l/a/file")]],
    "a hard link to a name above": [[symlink("l", "."), hard_link("h", "l/..")]],
}


def aimed(attack: list[list[Entry]], out: Path) -> list[list[Entry]]:
    """Return the layers with their targets replaced by paths that exist outside."""

    def at(info: tarfile.TarInfo) -> tarfile.TarInfo:
        copy = tarfile.TarInfo(info.name.replace(OUT, str(out)))
        copy.type, copy.mode, copy.size, copy.mtime = info.type, info.mode, info.size, info.mtime
        copy.linkname = info.linkname.replace(OUT, str(out))
        return copy

    return [[(at(info), data) for info, data in items] for items in attack]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_outside_is_touched(attack: list[list[Entry]], outside: Outside) -> None:
    root = unpack_layers(outside.place, *aimed(attack, outside.folder))
    assert stat.S_ISDIR(root.lstat().st_mode)


@pytest.mark.parametrize("attack", REFUSED_ATTACKS.values(), ids=REFUSED_ATTACKS)
def test_escaping_path_is_rejected(attack: list[list[Entry]], outside: Outside) -> None:
    assert unpack_error(outside.place, *aimed(attack, outside.folder))


def test_working_dir_stays_inside(outside: Outside) -> None:
    out = str(outside.folder)
    for number, folder in enumerate((f"{out}/new", "/l/new", f"/{CLIMB}{out}/new", "l/../l/new")):
        done = outside.place.parent / f"done{number}"
        unpack_layers(outside.place, [symlink("l", out)], WorkingDir=folder).rename(done)


def test_root_removal_stays_inside(outside: Outside) -> None:
    source = single_platform_image(
        [
            layer_tar(
                symlink("l", str(outside.folder)),
                symlink("d/e/l", str(outside.folder)),
                directory("d", mode=0),
            )
        ]
    )
    with RootfsCache(outside.place.parent / "roots", 0, None).acquire(
        source, platform_descriptor(source)
    ) as root:
        assert (root.path / "l").is_symlink()
    assert [each.name for each in (outside.place.parent / "roots").iterdir()] == [".lock"]


# Decompression bombs.


def zeros(size: int) -> tuple[bytes, int]:
    """Return the start of an archive with one file of zeros, and the file's size."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT), size


def test_gzip_bomb_hits_layer_limit(tmp_path: Path) -> None:
    head, size = zeros(1 << 30)
    packed = gzip.compress(head) + gzip.compress(bytes(64 << 20)) * (size >> 26)
    message = fails(image(packed, b""), tmp_path / "place", LimitExceeded, Limits(layer_bytes=100 << 20))
    assert "larger than" in message


def test_zstd_bomb_hits_ratio_limit(tmp_path: Path) -> None:
    head, size = zeros(1 << 34)
    packed = zstd.compress(head) + zstd.compress(bytes(64 << 20)) * (size >> 26)
    assert "decompression bomb" in fails(image(packed, b"", LAYER_ZSTD), tmp_path / "place", LimitExceeded)


def test_image_limit_during_last_layer(tmp_path: Path) -> None:
    layers = [make_tar({str(number): bytes(30 << 20)}) for number in range(3)]
    assert "larger than" in fails(
        single_platform_image(layers), tmp_path / "place", LimitExceeded, Limits(image_bytes=64 << 20)
    )


# PAX bombs.


@pytest.mark.parametrize(
    "data",
    [
        header(size=b"%o" % (1 << 30), kind=b"x") + bytes(5 << 20),
        header(size=b"%o" % (1 << 30), kind=b"g") + bytes(5 << 20),
        header(size=b"%o" % (1 << 30), kind=b"L") + bytes(5 << 20),
        metadata(pax(b"comment", b"x" * ((1 << 20) + 1))),
        metadata(b"".join(pax(b"k%d" % number, b"v") for number in range(2000))),
        metadata(pax(b"path", b"p" * 5000)),
        metadata(pax(b"uid", b"9" * 4400)) + header(),
        metadata(pax(b"mtime", b"9" * 900_000)) + header(),
    ],
    ids=["x", "g", "L", "comment", "records", "path", "uid", "mtime"],
)
def test_pax_bomb_is_rejected(data: bytes, tmp_path: Path) -> None:
    tar = data + END
    fails(image(gzip.compress(tar), tar), tmp_path / "place", MalformedImage)


# Very many entries.


@pytest.mark.parametrize(
    "entries",
    [
        lambda number: file(f"d{number % 7}/{number}"),
        lambda number: directory(f"{number}"),
        lambda number: symlink(f"{number}", "x"),
        lambda number: file(f"{number}/" * 40 + "x"),
        lambda number: file(f".wh.{number}"),
    ],
    ids=["files", "folders", "links", "folders that no entry is for", "whiteouts"],
)
def test_too_many_entries_are_rejected(entries: Callable[[int], Entry], tmp_path: Path) -> None:
    source = single_platform_image([layer_tar(*map(entries, range(1200)))])
    assert "too many" in fails(source, tmp_path / "place", LimitExceeded, Limits(entries=1000, nodes=900))


def test_many_entries_take_little_memory(tmp_path: Path) -> None:
    tar = b"".join(header(b"%d/%d" % (number % 100, number)) for number in range(20_000)) + END
    source = image(gzip.compress(tar, 1), tar)
    tracemalloc.start()
    unpack(source, platform_descriptor(source), tmp_path / "root")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert sum(len(list(os.scandir(each))) for each in (tmp_path / "root").glob("[0-9]*")) == 20_000


# Invalid sizes.


@pytest.mark.parametrize(
    "data",
    [
        header(size=b"\x80" + (1 << 62).to_bytes(11, "big")),
        header(size=b"\xff" * 12),
        header(size=b"-0000000001\0"),
        header(size=b"77777777777\0"),
        metadata(pax(b"size", b"-1")) + header(),
        metadata(pax(b"size", b"%d" % (1 << 62))) + header(),
        metadata(pax(b"size", b"1e9")) + header(),
        header(size=b"4000") + padded(b"x" * 100),
    ],
    ids=[
        "2^62",
        "negative",
        "a minus",
        "8 GiB that are not there",
        "pax -1",
        "pax 2^62",
        "pax 1e9",
        "cut off",
    ],
)
def test_invalid_size_is_rejected(data: bytes, tmp_path: Path) -> None:
    for media_type, packed in ((LAYER_GZIP, gzip.compress(data)), (LAYER_TAR, data)):
        fails(image(packed, data, media_type), tmp_path / "place", MalformedImage)


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
def test_layer_size_mismatch_is_rejected(change: int, tmp_path: Path) -> None:
    tar = layer_tar(file("x", b"1" * 5000))
    packed = gzip.compress(tar)
    source = image(packed, tar, size=len(packed) + change)
    assert str(Digest.from_bytes(packed)) in fails(source, tmp_path / "place", MalformedImage)
