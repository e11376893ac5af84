from __future__ import annotations

import io
import tarfile
import tracemalloc
from typing import cast

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar import BLOCK_SIZE, DIRECTORY, REGULAR, SYMLINK, TarEntry, TarReader
from tests.support.oci import directory, hard_link, make_tar, member, symlink


class Pipe(io.BytesIO):
    """A stream that cannot seek."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise AssertionError("the reader seeks in a pipe")


def read_entries(data: bytes, **options: int) -> list[TarEntry]:
    seeking = list(TarReader(io.BytesIO(data), **options))
    assert list(TarReader(Pipe(data), **options)) == seeking
    return seeking


def header(
    name: bytes = b"a", size: bytes = b"0", kind: bytes = b"0", magic: bytes = b"ustar\x0000"
) -> bytes:
    """Return a header of these field values with a correct checksum."""
    raw = bytearray(BLOCK_SIZE)
    raw[0 : len(name)] = name
    raw[100:107] = b"0000644"
    raw[124 : 124 + len(size)] = size
    raw[156:157] = kind
    raw[257 : 257 + len(magic)] = magic
    return with_checksum(raw)


def with_checksum(raw: bytearray) -> bytes:
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_SIZE)


def metadata_entry(data: bytes, kind: bytes = b"x") -> bytes:
    return header(size=b"%o" % len(data), kind=kind) + padded(data)


def pax_record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


END = bytes(2 * BLOCK_SIZE)


def test_entry_fields() -> None:
    data = make_tar(
        {"a": b"x" * 700}, [directory("d"), symlink("s", "a"), hard_link("h", "a"), member("f", b"6")]
    )
    entries = read_entries(data)
    assert [(entry.name, entry.type, entry.size, entry.linkname) for entry in entries] == [
        ("a", REGULAR, 700, ""),
        ("d/", DIRECTORY, 0, ""),
        ("s", SYMLINK, 0, "a"),
        ("h", "1", 0, "a"),
        ("f", "6", 0, ""),
    ]
    assert entries[0].mode == 0o755
    assert data[entries[0].offset : entries[0].offset + 700] == b"x" * 700


def test_partial_read_then_next_entry() -> None:
    reader = TarReader(Pipe(make_tar({"a": b"0123456789", "b": b"xyz"})))
    next(reader)
    assert (reader.read(4), reader.read(4), reader.read(4), reader.read(4)) == (b"0123", b"4567", b"89", b"")
    assert next(reader).name == "b"
    assert reader.read(100) == b"xyz"


def test_truncated_data() -> None:
    reader = TarReader(Pipe(make_tar({"a": b"x" * 2000})[:1000]))
    next(reader)
    assert reader.read(400) == b"x" * 400
    with pytest.raises(MalformedImage, match="middle of a file"):
        reader.read(2000)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links(form: int) -> None:
    name, target = "ordner/" * 40 + "übung", "../" * 60 + "ziel"
    entries = read_entries(make_tar({name: b"1"}, [symlink(f"{name}l", target)], form))
    assert [(entry.name, entry.linkname) for entry in entries] == [(name, ""), (f"{name}l", target)]


def test_ustar_prefix() -> None:
    name = "p" * 100 + "/" + "n" * 90
    assert read_entries(make_tar({name: b""}, form=tarfile.USTAR_FORMAT))[0].name == name


def test_base_256_size() -> None:
    data = header(size=b"\x80" + (600).to_bytes(11, "big")) + padded(b"y" * 600) + header(b"b") + END
    assert [(entry.name, entry.size) for entry in read_entries(data)] == [("a", 600), ("b", 0)]


def test_pax_size_overrides_header() -> None:
    data = (
        metadata_entry(pax_record(b"size", b"600"))
        + header(size=b"1")
        + padded(b"y" * 600)
        + header(b"b")
        + END
    )
    assert [(entry.name, entry.size) for entry in read_entries(data)] == [("a", 600), ("b", 0)]


def test_global_pax_header_is_ignored() -> None:
    data = metadata_entry(pax_record(b"path", b"evil"), b"g") + header(b"good") + END
    assert [(entry.name, entry.linkname) for entry in read_entries(data)] == [("good", "")]


def test_v7_directory_entry() -> None:
    assert read_entries(header(b"d/", kind=b"\0") + END)[0].type == DIRECTORY
    assert read_entries(header(b"f", kind=b"\0") + END)[0].type == REGULAR


def test_v7_directory_entry_ignores_size() -> None:
    data = header(b"d/", size=b"1000", kind=b"\0") + header(b"b") + END
    assert [(entry.name, entry.type, entry.size) for entry in read_entries(data)] == [
        ("d/", DIRECTORY, 0),
        ("b", REGULAR, 0),
    ]
    renamed = metadata_entry(pax_record(b"path", b"long/")) + header(b"long", kind=b"\0") + END
    assert [(entry.name, entry.type) for entry in read_entries(renamed)] == [("long/", DIRECTORY)]


def test_last_pax_header_wins() -> None:
    data = (
        metadata_entry(pax_record(b"path", b"one"))
        + metadata_entry(pax_record(b"linkpath", b"two"))
        + header(b"a", kind=b"2")
        + END
    )
    assert [(entry.name, entry.linkname) for entry in read_entries(data)] == [("a", "two")]


def test_global_pax_header_drops_pax() -> None:
    data = (
        metadata_entry(pax_record(b"path", b"one"))
        + metadata_entry(pax_record(b"comment", b"x"), b"g")
        + header(b"a")
        + END
    )
    assert [entry.name for entry in read_entries(data)] == ["a"]


@pytest.mark.parametrize("first", [True, False])
def test_gnu_name_overrides_pax(first: bool) -> None:
    headers = [metadata_entry(b"gnu\0", b"L"), metadata_entry(pax_record(b"path", b"pax"))]
    data = b"".join(headers if first else headers[::-1]) + header(b"a") + END
    assert [entry.name for entry in read_entries(data)] == ["gnu"]


def test_prefix_with_any_version() -> None:
    raw = bytearray(header(b"a", magic=b"ustar\x0099"))
    raw[345:348] = b"dir"
    assert [entry.name for entry in read_entries(with_checksum(raw) + END)] == ["dir/a"]


def test_missing_final_padding() -> None:
    data = header(size=b"3") + b"xyz"
    assert [entry.size for entry in read_entries(data)] == [3]
    with pytest.raises(MalformedImage, match="middle of a file"):
        read_entries(data[:-1])


def test_signed_checksum() -> None:
    raw = bytearray(header("ü".encode()))
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(byte - 256 if byte > 127 else byte for byte in raw)
    assert read_entries(bytes(raw) + END)[0].name == "ü"


@pytest.mark.parametrize("difference", [-65536, -65521, -1, 1, 65521, 65536, 2 * 65536])
@pytest.mark.parametrize("filler", [b"", b"\xff" * 300])
def test_wrong_checksum(filler: bytes, difference: int) -> None:
    """Compare the whole sum: archive/tar does not read a header whose sum differs by a modulus."""
    raw = bytearray(header())
    raw[157 : 157 + 100] = filler[:100].ljust(100, b"\0")
    raw[265 : 265 + 80] = filler[:80].ljust(80, b"\0")
    raw[345:500] = filler[:155].ljust(155, b"\0")
    raw[148:156] = b" " * 8
    total = sum(raw)
    assert (total > 65521) == bool(filler)
    raw[148:156] = b"%06o\0 " % total
    assert len(read_entries(bytes(raw) + END)) == 1
    if total + difference >= 0:
        raw[148:156] = b"%07o\0" % (total + difference)
        with pytest.raises(MalformedImage, match="checksum is wrong"):
            read_entries(bytes(raw) + END)


def test_checksum_in_base_256() -> None:
    raw = bytearray(header())
    raw[148:156] = b" " * 8
    raw[148:156] = b"\x80" + sum(raw).to_bytes(7, "big")
    with pytest.raises(MalformedImage, match="is not an octal number"):
        read_entries(bytes(raw) + END)


def test_end_of_archive() -> None:
    assert [entry.name for entry in read_entries(header())] == ["a"]
    assert [entry.name for entry in read_entries(header() + bytes(BLOCK_SIZE))] == ["a"]
    with pytest.raises(MalformedImage, match="a single zero block"):
        read_entries(header() + bytes(BLOCK_SIZE) + header(b"hidden") + END)


def test_size_of_link_is_ignored() -> None:
    data = header(kind=b"1", size=b"1000") + header(b"b") + END
    assert [(entry.name, entry.size) for entry in read_entries(data)] == [("a", 0), ("b", 0)]


def test_data_after_end_is_ignored() -> None:
    assert [entry.name for entry in read_entries(header() + END + header(b"hidden"))] == ["a"]


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
def test_invalid_sizes(size: bytes) -> None:
    with pytest.raises(MalformedImage, match=r"an invalid size of|not an octal number"):
        read_entries(header(size=size) + END)


@pytest.mark.parametrize("size", [b"4611686018427387904", b"-1", b"1e3", b"9" * 4000, b" 1"])
def test_invalid_pax_size(size: bytes) -> None:
    with pytest.raises(MalformedImage, match="an invalid size of"):
        read_entries(metadata_entry(pax_record(b"size", size)) + header() + END)


def test_damaged_header() -> None:
    valid = header(b"name", size=b"00000000000")
    for at in set(range(BLOCK_SIZE)) - {155}:  # any byte may end the checksum
        damaged = bytearray(valid)
        damaged[at] ^= 0x41
        with pytest.raises(MalformedImage):
            read_entries(bytes(damaged) + END)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (header()[:100], "middle of a header"),
        (header(size=b"1000") + b"x" * 100, "middle of a file"),
        (header(size=b"2000") + b"x" * BLOCK_SIZE, "middle of a file"),
        (metadata_entry(pax_record(b"path", b"b")), "before its entry"),
        (header(kind=b"L", size=b"5") + padded(b"name\0") + END, "before its entry"),
        (header(kind=b"S") + END, "sparse"),
        (metadata_entry(pax_record(b"GNU.sparse.major", b"1")) + header() + END, "sparse"),
    ],
)
def test_truncated_or_unsupported(data: bytes, cause: str) -> None:
    for stream in (io.BytesIO(data), Pipe(data)):
        with pytest.raises(MalformedImage, match=cause):
            list(TarReader(stream))


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
def test_malformed_pax_record(record: bytes) -> None:
    with pytest.raises(MalformedImage, match="malformed pax record"):
        read_entries(metadata_entry(record) + header() + END)


def test_pax_name_limit() -> None:
    assert (
        read_entries(metadata_entry(pax_record(b"path", b"n" * 4096)) + header() + END)[0].name == "n" * 4096
    )
    for name in (b"n" * 4097, b"a\0b"):
        with pytest.raises(MalformedImage, match="too long or contains a NUL"):
            read_entries(metadata_entry(pax_record(b"path", name)) + header() + END)


def test_gnu_name_limit() -> None:
    with pytest.raises(MalformedImage, match="metadata record of 5000 bytes"):
        read_entries(metadata_entry(b"n" * 5000, b"L") + header() + END)


def test_huge_pax_header() -> None:
    huge_header = header(size=b"%o" % (1 << 30), kind=b"x")
    tracemalloc.start()
    with pytest.raises(MalformedImage, match="metadata record of 1073741824 bytes"):
        read_entries(huge_header + END)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_pax_record_limit() -> None:
    assert len(read_entries(metadata_entry(pax_record(b"a", b"b") * 1024) + header() + END)) == 1
    for count in (1025, 100_000):
        with pytest.raises(MalformedImage, match="malformed pax record"):
            read_entries(metadata_entry(pax_record(b"a", b"b") * count) + header() + END)


class RepeatedBlock(io.RawIOBase):
    """A stream of one block, repeated without holding it in memory."""

    def __init__(self, unit: bytes, count: int) -> None:
        super().__init__()
        self._unit, self._remaining = unit * 128, count * len(unit)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._remaining, len(self._unit))
        buffer[:size] = self._unit[:size]
        self._remaining -= size
        return size


def test_many_entries_in_constant_memory() -> None:
    stream = io.BufferedReader(cast("io.RawIOBase", RepeatedBlock(header(b"name"), 30_000)), 1 << 16)
    tracemalloc.start()
    assert sum(1 for _ in TarReader(stream)) == 30_000
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_entry_limit() -> None:
    assert len(read_entries(header() * 3 + END, max_entries=3)) == 3
    with pytest.raises(LimitExceeded, match="too many entries"):
        read_entries(header() * 4 + END, max_entries=3)
    with pytest.raises(LimitExceeded, match="too many entries"):
        read_entries(metadata_entry(pax_record(b"path", b"b")) * 4 + header() + END, max_entries=4)
