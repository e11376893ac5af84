from __future__ import annotations

import io
import tarfile
import tracemalloc
from typing import cast

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar import BLOCK_SIZE, DIRECTORY, REGULAR, SYMLINK, TarEntry, TarReader
from tests.support.oci import folder, hard_link, make_tar, member, symlink


class Pipe(io.BytesIO):
    """A stream that can only be read on."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise AssertionError("a pipe was asked to seek")


def entries(data: bytes, **options: int) -> list[TarEntry]:
    seeking = list(TarReader(io.BytesIO(data), **options))
    assert list(TarReader(Pipe(data), **options)) == seeking
    return seeking


def header(
    name: bytes = b"a", size: bytes = b"0", kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """A header written field by field, with a right checksum whatever is in it."""
    raw = bytearray(BLOCK_SIZE)
    raw[0 : len(name)] = name
    raw[100:107] = b"0000644"
    raw[124 : 124 + len(size)] = size
    raw[156:157] = kind
    raw[257 : 257 + len(magic)] = magic
    return signed(raw)


def signed(raw: bytearray) -> bytes:
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_SIZE)


def extended(data: bytes, kind: bytes = b"x") -> bytes:
    return header(size=b"%o" % len(data), kind=kind) + block(data)


def pax(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


END = bytes(2 * BLOCK_SIZE)


def test_entries_have_name_type_size_link_and_mode() -> None:
    data = make_tar(
        {"a": b"x" * 700}, [folder("d"), symlink("s", "a"), hard_link("h", "a"), member("f", b"6")]
    )
    found = entries(data)
    assert [(e.name, e.type, e.size, e.linkname) for e in found] == [
        ("a", REGULAR, 700, ""),
        ("d/", DIRECTORY, 0, ""),
        ("s", SYMLINK, 0, "a"),
        ("h", "1", 0, "a"),
        ("f", "6", 0, ""),
    ]
    assert found[0].mode == 0o755
    assert data[found[0].offset : found[0].offset + 700] == b"x" * 700


def test_data_are_read_as_far_as_wanted_and_the_next_entry_is_found() -> None:
    reader = TarReader(Pipe(make_tar({"a": b"0123456789", "b": b"xyz"})))
    next(reader)
    assert (reader.read(4), reader.read(4), reader.read(4), reader.read(4)) == (b"0123", b"4567", b"89", b"")
    assert next(reader).name == "b"
    assert reader.read(100) == b"xyz"


def test_data_that_are_cut_off_are_noticed_while_they_are_read() -> None:
    reader = TarReader(Pipe(make_tar({"a": b"x" * 2000})[:1000]))
    next(reader)
    assert reader.read(400) == b"x" * 400
    with pytest.raises(MalformedImage, match="middle of a file"):
        reader.read(2000)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links_are_whole(form: int) -> None:
    name, target = "ordner/" * 40 + "übung", "../" * 60 + "ziel"
    found = entries(make_tar({name: b"1"}, [symlink(f"{name}l", target)], form))
    assert [(e.name, e.linkname) for e in found] == [(name, ""), (f"{name}l", target)]


def test_a_ustar_prefix_is_part_of_the_name() -> None:
    name = "p" * 100 + "/" + "n" * 90
    assert entries(make_tar({name: b""}, form=tarfile.USTAR_FORMAT))[0].name == name


def test_base_256_sizes_are_read() -> None:
    data = header(size=b"\x80" + (600).to_bytes(11, "big")) + block(b"y" * 600) + header(b"b") + END
    assert [(e.name, e.size) for e in entries(data)] == [("a", 600), ("b", 0)]


def test_a_pax_size_counts_instead_of_the_headers() -> None:
    data = extended(pax(b"size", b"600")) + header(size=b"1") + block(b"y" * 600) + header(b"b") + END
    assert [(e.name, e.size) for e in entries(data)] == [("a", 600), ("b", 0)]


def test_a_global_pax_header_changes_nothing_as_in_go() -> None:
    data = extended(pax(b"path", b"evil"), b"g") + header(b"good") + END
    assert [(e.name, e.linkname) for e in entries(data)] == [("good", "")]


def test_a_folder_of_old_is_an_empty_file_with_a_slash() -> None:
    assert entries(header(b"d/", kind=b"\0") + END)[0].type == DIRECTORY
    assert entries(header(b"f", kind=b"\0") + END)[0].type == REGULAR


def test_a_folder_of_old_has_no_data_whatever_its_size_says_and_is_told_by_its_whole_name() -> None:
    data = header(b"d/", size=b"1000", kind=b"\0") + header(b"b") + END
    assert [(e.name, e.type, e.size) for e in entries(data)] == [("d/", DIRECTORY, 0), ("b", REGULAR, 0)]
    renamed = extended(pax(b"path", b"long/")) + header(b"long", kind=b"\0") + END
    assert [(e.name, e.type) for e in entries(renamed)] == [("long/", DIRECTORY)]


def test_of_several_pax_headers_the_last_counts_alone_as_in_go() -> None:
    data = extended(pax(b"path", b"one")) + extended(pax(b"linkpath", b"two")) + header(b"a", kind=b"2") + END
    assert [(e.name, e.linkname) for e in entries(data)] == [("a", "two")]


def test_a_global_pax_header_drops_what_was_said_before_it_as_in_go() -> None:
    data = extended(pax(b"path", b"one")) + extended(pax(b"comment", b"x"), b"g") + header(b"a") + END
    assert [e.name for e in entries(data)] == ["a"]


@pytest.mark.parametrize("first", [True, False])
def test_a_gnu_name_counts_more_than_a_pax_one_as_in_go(first: bool) -> None:
    headers = [extended(b"gnu\0", b"L"), extended(pax(b"path", b"pax"))]
    data = b"".join(headers if first else headers[::-1]) + header(b"a") + END
    assert [e.name for e in entries(data)] == ["gnu"]


def test_a_prefix_is_read_whatever_the_version_says_as_in_go() -> None:
    raw = bytearray(header(b"a", magic=b"ustar\x0099"))
    raw[345:348] = b"dir"
    assert [e.name for e in entries(signed(raw) + END)] == ["dir/a"]


def test_the_padding_after_the_last_file_may_be_missing() -> None:
    data = header(size=b"3") + b"xyz"
    assert [e.size for e in entries(data)] == [3]
    with pytest.raises(MalformedImage, match="middle of a file"):
        entries(data[:-1])


def test_a_checksum_of_signed_bytes_holds_too() -> None:
    raw = bytearray(header("ü".encode()))
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in raw)
    assert entries(bytes(raw) + END)[0].name == "ü"


def test_an_archive_may_end_without_zero_blocks_but_not_go_on_after_one() -> None:
    assert [e.name for e in entries(header())] == ["a"]
    assert [e.name for e in entries(header() + bytes(BLOCK_SIZE))] == ["a"]
    with pytest.raises(MalformedImage, match="a single zero block"):
        entries(header() + bytes(BLOCK_SIZE) + header(b"hidden") + END)


def test_what_follows_the_end_is_no_entry() -> None:
    assert [e.name for e in entries(header() + END + header(b"hidden"))] == ["a"]


@pytest.mark.parametrize(
    "size",
    [
        b"\x80" + (1 << 62).to_bytes(11, "big"),
        b"\xff" * 12,
        b"\xff" + b"\0" * 11,
        b"\x80" + b"\xff" * 11,
        b"-1",
        b"0x10",
        b"1_0",
        b"8",
    ],
)
def test_row_44_negative_huge_and_unreadable_sizes_are_refused(size: bytes) -> None:
    with pytest.raises(MalformedImage, match=r"an invalid size of|not an octal number"):
        entries(header(size=size) + END)


@pytest.mark.parametrize("size", [b"4611686018427387904", b"-1", b"1e3", b"9" * 4000, b" 1"])
def test_row_44_a_pax_size_that_is_none_is_refused(size: bytes) -> None:
    with pytest.raises(MalformedImage, match="an invalid size of"):
        entries(extended(pax(b"size", size)) + header() + END)


def test_one_damaged_byte_in_a_header_is_found() -> None:
    whole = header(b"name", size=b"00000000000")
    for at in set(range(BLOCK_SIZE)) - {155}:  # what stands there ends the checksum, whatever it is
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        with pytest.raises(MalformedImage):
            entries(bytes(damaged) + END)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (header()[:100], "middle of a header"),
        (header(size=b"1000") + b"x" * 100, "middle of a file"),
        (header(size=b"2000") + b"x" * BLOCK_SIZE, "middle of a file"),
        (extended(pax(b"path", b"b")), "before its entry"),
        (header(kind=b"L", size=b"5") + block(b"name\0") + END, "before its entry"),
        (header(kind=b"S") + END, "sparse"),
        (extended(pax(b"GNU.sparse.major", b"1")) + header() + END, "sparse"),
    ],
)
def test_what_is_cut_off_or_not_supported_is_refused(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        entries(data)


@pytest.mark.parametrize(
    "record",
    [
        b"path=x\n",
        b"0 path=x\n",
        b"99 path=x\n",
        b"9 path=x ",
        b"5 ab\n",
        b"-9 path=x\n",
        b"9  path=x\n",
        b"99999999999 path=x\n",
    ],
)
def test_a_malformed_pax_record_is_refused(record: bytes) -> None:
    with pytest.raises(MalformedImage, match="malformed pax record"):
        entries(extended(record) + header() + END)


def test_pax_names_have_bounds() -> None:
    assert entries(extended(pax(b"path", b"n" * 4096)) + header() + END)[0].name == "n" * 4096
    for name in (b"n" * 4097, b"a\0b"):
        with pytest.raises(MalformedImage, match="too long or contains a NUL"):
            entries(extended(pax(b"path", name)) + header() + END)


def test_a_gnu_name_has_bounds() -> None:
    with pytest.raises(MalformedImage, match="metadata record of 5000 bytes"):
        entries(extended(b"n" * 5000, b"L") + header() + END)


def test_row_42_a_pax_bomb_is_refused_before_it_takes_memory() -> None:
    claim = header(size=b"%o" % (1 << 30), kind=b"x")
    tracemalloc.start()
    with pytest.raises(MalformedImage, match="metadata record of 1073741824 bytes"):
        entries(claim + END)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_row_42_a_header_of_very_many_records_is_refused() -> None:
    with pytest.raises(MalformedImage, match="malformed pax record"):
        entries(extended(pax(b"a", b"b") * 100_000) + header() + END)


class Repeated(io.RawIOBase):
    """One block again and again, without holding them."""

    def __init__(self, unit: bytes, count: int) -> None:
        super().__init__()
        self._unit, self._left = unit * 128, count * len(unit)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._left, len(self._unit))
        buffer[:size] = self._unit[:size]
        self._left -= size
        return size


def test_row_43_very_many_entries_take_no_memory() -> None:
    stream = io.BufferedReader(cast("io.RawIOBase", Repeated(header(b"name"), 100_000)), 1 << 16)
    tracemalloc.start()
    assert sum(1 for _ in TarReader(stream)) == 100_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_row_43_entries_have_a_cap_and_metadata_count() -> None:
    assert len(entries(header() * 3 + END, max_entries=3)) == 3
    with pytest.raises(LimitExceeded, match="too many entries"):
        entries(header() * 4 + END, max_entries=3)
    with pytest.raises(LimitExceeded, match="too many entries"):
        entries(extended(pax(b"path", b"b")) * 4 + header() + END, max_entries=4)
