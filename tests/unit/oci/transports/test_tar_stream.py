from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.transports import tar_stream as rewind
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive
from tests.support.oci import make_tar, symlink

SIZES = {"a": 1 << 20, "b": 300_000, "c": 5, "d": 1 << 20, "index.json": 90_000}
FILES = {name: os.urandom(size) for name, size in SIZES.items()}


class Opener:
    """Opens the same bytes again and again, and counts."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.opened: list[BinaryIO] = []

    def __call__(self) -> BinaryIO:
        self.opened.append(io.BytesIO(self.data))
        return self.opened[-1]

    @property
    def live(self) -> int:
        return sum(not stream.closed for stream in self.opened)


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewind, "_MAX_CACHED_MEMBER", 1000)


@pytest.fixture
def opener() -> Opener:
    return Opener(gzip.compress(make_tar(FILES), 1))


@pytest.fixture
def archive(opener: Opener) -> Iterator[StreamedArchive]:
    found = StreamedArchive(opener, "a.tar.gz")
    yield found
    found.close()
    assert opener.live == 0


def read(archive: StreamedArchive, name: str) -> bytes:
    with archive.open(name) as stream:
        return stream.read()


def test_small_members_and_documents_are_kept_from_the_first_walk(
    archive: StreamedArchive, opener: Opener
) -> None:
    assert {name: read(archive, name) for name in ("c", "index.json")} == {
        name: FILES[name] for name in ("c", "index.json")
    }
    assert len(opener.opened) == 1


def test_members_in_their_order_take_one_more_walk(archive: StreamedArchive, opener: Opener) -> None:
    assert {name: read(archive, name) for name in FILES} == FILES
    assert len(opener.opened) == 2


def test_members_in_any_order_are_the_same(archive: StreamedArchive, opener: Opener) -> None:
    for name in ("d", "b", "a", "a", "d"):
        assert read(archive, name) == FILES[name]
    assert len(opener.opened) == 1 + 4


def test_streams_that_overlap_have_a_walk_each(archive: StreamedArchive, opener: Opener) -> None:
    streams = {name: archive.open(name) for name in ("d", "a", "b")}
    starts = {name: stream.read(1000) for name, stream in streams.items()}
    assert {name: starts[name] + streams[name].read() for name in streams} == {
        name: FILES[name] for name in streams
    }
    assert opener.live == 3
    for stream in streams.values():
        stream.close()
    assert opener.live == 1  # the last is kept for the next member


def test_a_member_that_is_left_halfway_does_not_upset_the_next(
    archive: StreamedArchive, opener: Opener
) -> None:
    with archive.open("a") as stream:
        stream.read(10)
    assert read(archive, "b") == FILES["b"]
    assert len(opener.opened) == 2


def test_the_first_bytes_of_each_member_are_known(archive: StreamedArchive, opener: Opener) -> None:
    assert {name: archive.read_head(name) for name in FILES} == {
        name: data[:8] for name, data in FILES.items()
    }
    assert len(opener.opened) == 1


def test_a_member_that_is_not_there_is_named(archive: StreamedArchive) -> None:
    for ask in (archive.open, archive.read_head):
        with pytest.raises(MalformedImage, match=r"e is missing from a\.tar\.gz"):
            ask("e")


def test_links_are_noted_and_are_no_files() -> None:
    archive = StreamedArchive(Opener(make_tar({"a": b"x"}, [symlink("b/layer.tar", "../a")])), "x")
    assert (list(archive.archive_index.files), archive.archive_index.links) == (
        ["a"],
        {"b/layer.tar": "../a"},
    )


def test_an_archive_that_changes_between_two_walks_is_found_out(
    archive: StreamedArchive, opener: Opener
) -> None:
    opener.data = make_tar({"b": b"", "a": FILES["a"], "d": FILES["d"]})
    assert read(archive, "a") == FILES["a"]  # by its name, wherever it lies now
    with pytest.raises(MalformedImage, match=r"has changed while it was read: b no longer exists"):
        read(archive, "b")
    opener.data = make_tar({**FILES, "a": b"short"})
    with pytest.raises(MalformedImage, match="a no longer exists"):
        read(archive, "a")
    opener.data = make_tar(FILES)[:-200_000]
    with pytest.raises(MalformedImage, match="ends in the middle"):
        read(archive, "d")


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewind, "_MAX_CACHED_TOTAL", 2500)
    files = {f"blob{number}": bytes([number]) * 900 for number in range(5)}
    opener = Opener(make_tar(files))
    archive = StreamedArchive(opener, "x")
    assert {name: read(archive, name) for name in files} == files
    assert len(opener.opened) == 2
    assert sum(map(len, archive._cached.values())) == 1800
    archive.close()


def test_the_bytes_that_go_by_over_all_walks_are_bounded() -> None:
    size = 10_000_000
    limits = Limits(image_bytes=size)
    archive = StreamedArchive(Opener(make_tar({"a": bytes(2000), "b": bytes(size - 20480)})), "x", limits)
    for _ in range(4):
        read(archive, "a")
    with pytest.raises(LimitExceeded, match="was read 5 times") as caught:
        read(archive, "a")
    assert "uncompress the file" in str(caught.value.hint)
    archive.close()


def test_an_archive_larger_than_any_image_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="larger than 1000000 bytes uncompressed"):
        StreamedArchive(Opener(gzip.compress(make_tar(FILES))), "x", Limits(image_bytes=1_000_000))


def test_many_tiny_gzip_members_are_read_at_their_pace() -> None:
    data = make_tar({"a": bytes(40_000)})
    opener = Opener(b"".join(gzip.compress(data[at : at + 1], 1) for at in range(len(data))))
    archive = StreamedArchive(opener, "x")
    assert read(archive, "a") == bytes(40_000)
    archive.close()


def test_a_stream_whose_source_fails_is_refused() -> None:
    class Broken(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(MalformedImage, match="x cannot be read: Input/output error"):
        StreamedArchive(lambda: Broken(b"x"), "x")


def test_the_caps_are_those_of_every_image() -> None:
    assert StreamedArchive(Opener(make_tar({})), "x")._limits is LIMITS
