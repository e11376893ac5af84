from __future__ import annotations

import contextlib
import io
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.tar import TarEntry, TarReader

letters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
parts = st.text(letters, min_size=1, max_size=40).filter(lambda part: part not in (".", ".."))
paths = st.lists(parts, min_size=1, max_size=6).map("/".join)
kinds = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
members = st.tuples(paths, kinds, st.binary(max_size=1500), paths, st.integers(0, 0o7777))
formats = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


def write_tar(files: list[tuple[str, bytes, bytes, str, int]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, data, link, mode in files:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            info.linkname = link if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            info.size = len(data) if kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Pipe(io.BytesIO):
    """A stream that cannot seek."""

    def seekable(self) -> bool:
        return False


def read_all(stream: io.BytesIO, chunk: int) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(stream, max_entries=10_000)
    return [(entry, b"".join(iter(lambda: reader.read(chunk), b""))) for entry in reader]


@given(st.lists(members, max_size=6), formats, st.integers(1, 2000))
def test_same_as_tarfile(files: list[tuple[str, bytes, bytes, str, int]], form: int, chunk: int) -> None:
    data = write_tar(files, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        oracle = [
            (info.name, info.type, info.size, info.linkname, info.mode, info.offset_data)
            for info in archive.getmembers()
        ]
    entries = read_all(Pipe(data), chunk)
    assert entries == read_all(io.BytesIO(data), chunk)
    ours = [(e.name.rstrip("/"), e.type.encode(), e.size, e.linkname, e.mode, e.offset) for e, _ in entries]
    assert ours == oracle
    assert [data for _, data in entries] == [d if k == tarfile.REGTYPE else b"" for _, k, d, _, _ in files]


@given(
    st.lists(members, min_size=1, max_size=4),
    formats,
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8),
    st.integers(0, 1500),
)
def test_any_damage(
    files: list[tuple[str, bytes, bytes, str, int]], form: int, damage: list[tuple[int, int]], cut: int
) -> None:
    data = bytearray(write_tar(files, form))
    for at, byte in damage:
        data[at % len(data)] = byte
    for stream in (io.BytesIO(data[: len(data) - cut]), Pipe(data[: len(data) - cut])):
        with contextlib.suppress(MalformedImage, LimitExceeded):
            read_all(stream, 700)


@given(st.binary(max_size=2048))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(MalformedImage, LimitExceeded):
        read_all(io.BytesIO(data), 512)


@given(st.lists(members, min_size=1, max_size=4), formats, st.data())
def test_any_header_field(
    files: list[tuple[str, bytes, bytes, str, int]], form: int, data: st.DataObject
) -> None:
    raw = bytearray(write_tar(files, form))
    at = data.draw(st.sampled_from([100, 124, 156, 157, 257, 345]))
    field = data.draw(st.binary(min_size=1, max_size=12))
    raw[at : at + len(field)] = field
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    with contextlib.suppress(MalformedImage, LimitExceeded):
        assert read_all(io.BytesIO(raw), 700) == read_all(Pipe(raw), 700)
