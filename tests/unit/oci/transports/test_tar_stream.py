from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.transports import tar_stream
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive
from tests.support.oci import make_tar, symlink

SIZES = {"a": 1 << 20, "b": 300_000, "c": 5, "d": 1 << 20, "index.json": 90_000}
FILES = {name: os.urandom(size) for name, size in SIZES.items()}


class Opener:
    """Opens a new stream of the same bytes on each call, and records it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened: list[BinaryIO] = []

    def __call__(self) -> BinaryIO:
        self.opened.append(io.BytesIO(self.data))
        return self.opened[-1]

    @property
    def open_count(self) -> int:
        return sum(not stream.closed for stream in self.opened)


@pytest.fixture(autouse=True)
def _cache_only_tiny_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "_MAX_CACHED_MEMBER", 1000)


@pytest.fixture
def opener() -> Opener:
    return Opener(gzip.compress(make_tar(FILES), 1))


@pytest.fixture
def archive(opener: Opener) -> Iterator[StreamedArchive]:
    archive = StreamedArchive(opener, "a.tar.gz")
    yield archive
    archive.close()
    assert opener.open_count == 0


def read_member(archive: StreamedArchive, name: str) -> bytes:
    with archive.open(name) as stream:
        return stream.read()


def test_small_members_are_cached(archive: StreamedArchive, opener: Opener) -> None:
    assert {name: read_member(archive, name) for name in ("c", "index.json")} == {
        name: FILES[name] for name in ("c", "index.json")
    }
    assert len(opener.opened) == 1


def test_ordered_reads_need_one_pass(archive: StreamedArchive, opener: Opener) -> None:
    assert {name: read_member(archive, name) for name in FILES} == FILES
    assert len(opener.opened) == 2


def test_reads_in_any_order(archive: StreamedArchive, opener: Opener) -> None:
    for name in ("d", "b", "a", "a", "d"):
        assert read_member(archive, name) == FILES[name]
    assert len(opener.opened) == 1 + 4


def test_overlapping_streams(archive: StreamedArchive, opener: Opener) -> None:
    streams = {name: archive.open(name) for name in ("d", "a", "b")}
    starts = {name: stream.read(1000) for name, stream in streams.items()}
    assert {name: starts[name] + streams[name].read() for name in streams} == {
        name: FILES[name] for name in streams
    }
    assert opener.open_count == 3
    for stream in streams.values():
        stream.close()
    assert opener.open_count == 1  # the last pass is kept for the next member


def test_partly_read_member(archive: StreamedArchive, opener: Opener) -> None:
    with archive.open("a") as stream:
        stream.read(10)
    assert read_member(archive, "b") == FILES["b"]
    assert len(opener.opened) == 2


def test_read_head(archive: StreamedArchive, opener: Opener) -> None:
    assert {name: archive.read_head(name) for name in FILES} == {
        name: data[:8] for name, data in FILES.items()
    }
    assert len(opener.opened) == 1


def test_missing_member(archive: StreamedArchive) -> None:
    for method in (archive.open, archive.read_head):
        with pytest.raises(MalformedImage, match=r"e is missing from a\.tar\.gz"):
            method("e")


def test_links() -> None:
    archive = StreamedArchive(Opener(make_tar({"a": b"x"}, [symlink("b/layer.tar", "../a")])), "x")
    assert (list(archive.archive_index.files), archive.archive_index.links) == (
        ["a"],
        {"b/layer.tar": "../a"},
    )


def test_archive_changes_between_passes(archive: StreamedArchive, opener: Opener) -> None:
    opener.data = make_tar({"b": b"", "a": FILES["a"], "d": FILES["d"]})
    assert read_member(archive, "a") == FILES["a"]  # found by its name, at any offset
    with pytest.raises(MalformedImage, match=r"has changed while it was read: b no longer exists"):
        read_member(archive, "b")
    opener.data = make_tar({**FILES, "a": b"short"})
    with pytest.raises(MalformedImage, match="a no longer exists"):
        read_member(archive, "a")
    opener.data = make_tar(FILES)[:-200_000]
    with pytest.raises(MalformedImage, match="ends in the middle"):
        read_member(archive, "d")


def test_cache_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "_MAX_CACHED_TOTAL", 2500)
    files = {f"blob{number}": bytes([number]) * 900 for number in range(5)}
    opener = Opener(make_tar(files))
    archive = StreamedArchive(opener, "x")
    assert {name: read_member(archive, name) for name in files} == files
    assert len(opener.opened) == 2
    assert sum(map(len, archive._cached.values())) == 1800
    archive.close()


def test_total_read_limit() -> None:
    size = 10_000_000
    limits = Limits(image_bytes=size)
    archive = StreamedArchive(Opener(make_tar({"a": bytes(2000), "b": bytes(size - 20480)})), "x", limits)
    for _ in range(4):
        read_member(archive, "a")
    with pytest.raises(LimitExceeded, match="was read 5 times") as excinfo:
        read_member(archive, "a")
    assert "uncompress the file" in str(excinfo.value.hint)
    archive.close()


def test_image_size_limit() -> None:
    with pytest.raises(LimitExceeded, match="larger than 1000000 bytes uncompressed"):
        StreamedArchive(Opener(gzip.compress(make_tar(FILES))), "x", Limits(image_bytes=1_000_000))


def test_many_tiny_gzip_members() -> None:
    data = make_tar({"a": bytes(40_000)})
    opener = Opener(b"".join(gzip.compress(data[offset : offset + 1], 1) for offset in range(len(data))))
    archive = StreamedArchive(opener, "x")
    assert read_member(archive, "a") == bytes(40_000)
    archive.close()


def test_source_fails() -> None:
    class BrokenStream(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(MalformedImage, match="x cannot be read: Input/output error"):
        StreamedArchive(lambda: BrokenStream(b"x"), "x")


def test_default_limits() -> None:
    assert StreamedArchive(Opener(make_tar({})), "x")._limits is LIMITS
