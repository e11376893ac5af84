"""Unpack hostile layers: files outside of the root must not change."""

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
from tests.unit.oci.layers.test_tar import END, header, metadata_entry, padded, pax_record

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


def check_rejected(
    source: MemoryImage, parent: Path, error_type: type[BuildkitTasksError], limits: Limits = LIMITS
) -> str:
    """Check that unpacking fails in bounded CPU time and memory and leaves no file; return the message."""
    parent.mkdir(exist_ok=True)
    started = time.process_time()
    tracemalloc.start()
    with pytest.raises(error_type) as caught:
        unpack(source, platform_descriptor(source), parent / "root", limits=limits)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(parent.iterdir()) == []
    assert peak < 32 << 20
    assert time.process_time() - started < 60
    assert caught.value.exit_code == (5 if error_type is LimitExceeded else 1)
    return caught.value.message


# A blob that is not a regular file.


@pytest.mark.parametrize("kind", ["symlink", "fifo", "socket", "directory"])
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
    elif kind == "directory":
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
    """A directory outside of the root, and the parent directory of the root."""

    parent: Path
    directory: Path

    def stat_files(self) -> dict[str, tuple[int, ...]]:
        result: dict[str, tuple[int, ...]] = {}
        for path in (self.directory, *self.directory.rglob("*")):
            status = path.lstat()
            times = status.st_mtime_ns, status.st_ctime_ns
            result[str(path)] = (status.st_mode, status.st_uid, status.st_nlink, status.st_size, *times)
        return result


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    """Create files outside of the root, and check afterwards that they are unchanged."""
    outside = Outside(tmp_path / "parent", tmp_path / "outside")
    outside.parent.mkdir()
    for name in ("a/b", "etc"):
        (outside.directory / name).mkdir(parents=True)
    for name in ("file", "a/file", "etc/hosts"):
        (outside.directory / name).write_bytes(b"")
    before = outside.stat_files()
    yield outside
    assert outside.stat_files() == before
    assert {path.name for path in outside.parent.iterdir()} <= {"root"}


OUT = "{out}"
PARENTS = "../" * 30
ATTACKS: dict[str, list[list[Entry]]] = {
    "a file through a link to the outside": [[symlink("l", OUT), file("l/new", b"x")]],
    "a file through a link of a lower layer": [
        [symlink("l", OUT)],
        [file("l/new", b"x"), file("l/file", b"x")],
    ],
    "a file through a link with ..": [[symlink("l", f"{PARENTS}{OUT}"), file("l/file", b"x")]],
    "a file through two links": [[symlink("m", OUT), symlink("l", "m/a"), file("l/file", b"x")]],
    "a file over a link to the outside": [[symlink("l", f"{OUT}/file")], [file("l", b"x", mode=0o777)]],
    "a directory over a link to the outside": [
        [symlink("l", OUT)],
        [directory("l", mode=0o777, mtime=1), file("l/new")],
    ],
    "a directory through a link": [
        [symlink("l", OUT), directory("l/a", mode=0o777, mtime=1), directory("l/new")]
    ],
    "a link through a link": [[symlink("l", OUT), symlink("l/new", "x"), symlink("l/file", "x")]],
    "a FIFO through a link": [[symlink("l", OUT), tar_entry("l/file", tarfile.FIFOTYPE)]],
    "devices through a link": [
        [symlink("l", OUT), tar_entry("l/file", tarfile.CHRTYPE), tar_entry("l/a", tarfile.BLKTYPE)]
    ],
    "a whiteout through a link": [[symlink("l", OUT)], [file("l/.wh.file"), file("l/.wh.a")]],
    "an opaque whiteout through a link": [[symlink("l", OUT)], [file("l/.wh..wh..opq")]],
    "an opaque whiteout of a directory with a link": [
        [symlink("d/l", OUT), file("d/x")],
        [file("d/.wh..wh..opq")],
    ],
    "a whiteout of a link": [[symlink("l", OUT)], [file(".wh.l")]],
    "a whiteout of a directory with a link": [
        [symlink("d/l", OUT), symlink("d/e/l", OUT)],
        [file(".wh.d")],
    ],
    "a file over a directory with a link": [
        [symlink("d/l", OUT), symlink("d/e/l", f"{OUT}/a")],
        [file("d")],
    ],
    "a link that replaces a directory": [
        [directory("d"), file("d/x"), symlink("d", OUT), file("d/file", b"x"), file("d/y")]
    ],
    "a link as /etc": [[symlink("etc", f"{OUT}/etc")]],
    "a link as /etc/hosts": [[symlink("etc/hosts", f"{OUT}/etc/hosts")]],
    "links as mount points": [[symlink(name, OUT) for name in ("tmp", "proc", "sys", "dev")]],
    "a link through /proc/self/root": [[symlink("l", f"/proc/self/root{OUT}"), file("l/file", b"x")]],
    "a link to a file descriptor": [[symlink("l", "/proc/self/fd/3"), file("l/x", b"x")]],
    "a link to the working directory": [[symlink("l", "/proc/self/cwd"), file("l/x", b"x")]],
    "absolute names": [[file(f"{OUT}/file", b"x"), directory(f"{OUT}/a", mode=0o777)]],
    "a file over one of two equal links": [
        [symlink("l", OUT), symlink("m", OUT), file("m", b"x"), file("l/file", b"x")]
    ],
}
REFUSED_ATTACKS: dict[str, list[list[Entry]]] = {
    "a name with ..": [[file(f"{PARENTS}{OUT}/file", b"x")]],
    "a name with .. in the middle": [[file(f"a/{PARENTS}{OUT}/file", b"x")]],
    "a directory with ..": [[directory(f"a/../../{OUT}", mode=0o777)]],
    "a whiteout with ..": [[file("a/x")], [file(f"{PARENTS}{OUT}/.wh.file")]],
    "a whiteout of ..": [[file("a/x")], [file("a/.wh...")]],
    "a hard link to the outside": [[hard_link("h", f"{OUT}/file")]],
    "a hard link with ..": [[hard_link("h", f"{PARENTS}{OUT}/file"), file("h", b"x")]],
    "a hard link through a link": [[symlink("l", OUT), hard_link("h", "l/file"), file("h", b"x")]],
    "a hard link through a link of a lower layer": [[symlink("l", OUT)], [hard_link("h", "l/a/file")]],
    "a hard link to .. through a link": [[symlink("l", "."), hard_link("h", "l/..")]],
}


def insert_target(attack: list[list[Entry]], target: Path) -> list[list[Entry]]:
    """Return the layers with the path of the outside directory for :data:`OUT`."""

    def insert(info: tarfile.TarInfo) -> tarfile.TarInfo:
        copy = tarfile.TarInfo(info.name.replace(OUT, str(target)))
        copy.type, copy.mode, copy.size, copy.mtime = info.type, info.mode, info.size, info.mtime
        copy.linkname = info.linkname.replace(OUT, str(target))
        return copy

    return [[(insert(info), data) for info, data in entries] for entries in attack]


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_nothing_outside_is_touched(attack: list[list[Entry]], outside: Outside) -> None:
    root = unpack_layers(outside.parent, *insert_target(attack, outside.directory))
    assert stat.S_ISDIR(root.lstat().st_mode)


@pytest.mark.parametrize("attack", REFUSED_ATTACKS.values(), ids=REFUSED_ATTACKS)
def test_escaping_path_is_rejected(attack: list[list[Entry]], outside: Outside) -> None:
    assert unpack_error(outside.parent, *insert_target(attack, outside.directory))


def test_working_dir_stays_inside(outside: Outside) -> None:
    out = str(outside.directory)
    for number, folder in enumerate((f"{out}/new", "/l/new", f"/{PARENTS}{out}/new", "l/../l/new")):
        unpacked = outside.parent.parent / f"unpacked{number}"
        unpack_layers(outside.parent, [symlink("l", out)], WorkingDir=folder).rename(unpacked)


def test_root_removal_stays_inside(outside: Outside) -> None:
    source = single_platform_image(
        [
            layer_tar(
                symlink("l", str(outside.directory)),
                symlink("d/e/l", str(outside.directory)),
                directory("d", mode=0),
            )
        ]
    )
    with RootfsCache(outside.parent.parent / "roots", 0, None).acquire(
        source, platform_descriptor(source)
    ) as root:
        assert (root.path / "l").is_symlink()
    assert [each.name for each in (outside.parent.parent / "roots").iterdir()] == [".lock"]


# Decompression bombs.


def zeros(size: int) -> tuple[bytes, int]:
    """Return the start of an archive with one file of zeros, and the file's size."""
    info = tarfile.TarInfo("zeros")
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT), size


def test_gzip_bomb_hits_layer_limit(tmp_path: Path) -> None:
    head, size = zeros(1 << 30)
    packed = gzip.compress(head) + gzip.compress(bytes(64 << 20)) * (size >> 26)
    message = check_rejected(
        image(packed, b""), tmp_path / "parent", LimitExceeded, Limits(layer_bytes=100 << 20)
    )
    assert "larger than" in message


def test_zstd_bomb_hits_ratio_limit(tmp_path: Path) -> None:
    head, size = zeros(1 << 34)
    packed = zstd.compress(head) + zstd.compress(bytes(64 << 20)) * (size >> 26)
    assert "decompression bomb" in check_rejected(
        image(packed, b"", LAYER_ZSTD), tmp_path / "parent", LimitExceeded
    )


def test_image_limit_during_last_layer(tmp_path: Path) -> None:
    layers = [make_tar({str(number): bytes(30 << 20)}) for number in range(3)]
    assert "larger than" in check_rejected(
        single_platform_image(layers), tmp_path / "parent", LimitExceeded, Limits(image_bytes=64 << 20)
    )


# PAX bombs.


@pytest.mark.parametrize(
    "data",
    [
        header(size=b"%o" % (1 << 30), kind=b"x") + bytes(5 << 20),
        header(size=b"%o" % (1 << 30), kind=b"g") + bytes(5 << 20),
        header(size=b"%o" % (1 << 30), kind=b"L") + bytes(5 << 20),
        metadata_entry(pax_record(b"comment", b"x" * ((1 << 20) + 1))),
        metadata_entry(b"".join(pax_record(b"k%d" % number, b"v") for number in range(2000))),
        metadata_entry(pax_record(b"path", b"p" * 5000)),
        metadata_entry(pax_record(b"uid", b"9" * 4400)) + header(),
        metadata_entry(pax_record(b"mtime", b"9" * 900_000)) + header(),
    ],
    ids=["x", "g", "L", "comment", "records", "path", "uid", "mtime"],
)
def test_pax_bomb_is_rejected(data: bytes, tmp_path: Path) -> None:
    tar = data + END
    check_rejected(image(gzip.compress(tar), tar), tmp_path / "parent", MalformedImage)


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
    ids=["files", "directories", "links", "implicit directories", "whiteouts"],
)
def test_too_many_entries_are_rejected(entries: Callable[[int], Entry], tmp_path: Path) -> None:
    source = single_platform_image([layer_tar(*map(entries, range(1200)))])
    assert "too many" in check_rejected(
        source, tmp_path / "parent", LimitExceeded, Limits(entries=1000, nodes=900)
    )


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
        metadata_entry(pax_record(b"size", b"-1")) + header(),
        metadata_entry(pax_record(b"size", b"%d" % (1 << 62))) + header(),
        metadata_entry(pax_record(b"size", b"1e9")) + header(),
        header(size=b"4000") + padded(b"x" * 100),
    ],
    ids=[
        "2^62",
        "negative",
        "minus sign",
        "8 GiB without data",
        "pax -1",
        "pax 2^62",
        "pax 1e9",
        "truncated",
    ],
)
def test_invalid_size_is_rejected(data: bytes, tmp_path: Path) -> None:
    for media_type, packed in ((LAYER_GZIP, gzip.compress(data)), (LAYER_TAR, data)):
        check_rejected(image(packed, data, media_type), tmp_path / "parent", MalformedImage)


@pytest.mark.parametrize("change", [-1, 1, 1 << 40])
def test_layer_size_mismatch_is_rejected(change: int, tmp_path: Path) -> None:
    tar = layer_tar(file("x", b"1" * 5000))
    packed = gzip.compress(tar)
    source = image(packed, tar, size=len(packed) + change)
    assert str(Digest.from_bytes(packed)) in check_rejected(source, tmp_path / "parent", MalformedImage)
