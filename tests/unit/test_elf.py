from __future__ import annotations

import io
import struct

import pytest

from buildkit_tasks.binaries.elf import interpreter, read_elf
from buildkit_tasks.binaries.probe import probe_program
from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine, Platform


def machine(name: str) -> Machine:
    return Platform.parse(name).machine


def with_interpreter(row: Machine, path: bytes, size: int | None = None) -> bytes:
    """A probe whose one segment is made a PT_INTERP that points past the code."""
    program = bytearray(probe_program(row))
    header = read_elf(bytes(program))
    order = "<" if row.order == "little" else ">"
    span = (len(program), len(path) if size is None else size)
    if row.bits == 64:
        struct.pack_into(f"{order}IIQQQQ", program, header.phoff, 3, 4, span[0], 0, 0, span[1])
    else:
        struct.pack_into(f"{order}IIIII", program, header.phoff, 3, span[0], 0, 0, span[1])
    return bytes(program) + path


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.architecture)
def test_every_architectures_program_is_told_by_its_header(row: Machine) -> None:
    header = read_elf(probe_program(row)[:64])
    assert header.row is row
    assert (header.bits, header.order, header.machine) == (row.bits, row.order, row.elf_machine)
    assert (header.type, header.flags, header.phnum) == (2, row.elf_flags, 1)


def test_a_header_says_in_words_what_it_is() -> None:
    assert (
        read_elf(probe_program(machine("amd64"))).describe() == "ELF 64-bit little-endian, machine 62 (amd64)"
    )
    assert read_elf(probe_program(machine("s390x"))).describe() == "ELF 64-bit big-endian, machine 22 (s390x)"


def test_a_machine_that_no_row_has_is_unknown() -> None:
    program = bytearray(probe_program(machine("amd64")))
    program[18] = 2
    assert read_elf(bytes(program)).describe() == "ELF 64-bit little-endian, machine 2 (unknown)"


def test_an_x32_program_is_not_amd64() -> None:
    program = bytearray(probe_program(machine("386")))
    program[18] = 62
    assert read_elf(bytes(program)).row is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "no ELF file"),
        (b"#!/bin/sh\n", "no ELF file"),
        (b"\x7fELF", "truncated"),
        (probe_program(MACHINES[0])[:40], "truncated"),
        (b"\x7fELF\x03\x01\x01".ljust(64, b"\0"), "class 3"),
        (b"\x7fELF\x02\x00\x01".ljust(64, b"\0"), "byte order 0"),
        (b"\x7fELF\x02\x01\x07".ljust(64, b"\0"), "version 7"),
    ],
)
def test_row_45_nonsense_is_refused_with_its_cause(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        read_elf(data)


@pytest.mark.parametrize("name", ["amd64", "arm", "s390x"])
def test_a_dynamic_program_names_its_loader_and_a_static_one_none(name: str) -> None:
    program = with_interpreter(machine(name), b"/lib/ld.so.1\0")
    assert interpreter(program) == "/lib/ld.so.1"
    assert interpreter(io.BytesIO(program)) == "/lib/ld.so.1"
    assert interpreter(probe_program(machine(name))) is None


@pytest.mark.parametrize(
    ("path", "size"), [(b"/lib/ld.so", None), (b"\0", None), (b"/a\0", 4097), (b"/a\0", 100), (b"", 1 << 60)]
)
def test_row_45_a_loader_path_without_end_or_bounds_is_refused(path: bytes, size: int | None) -> None:
    with pytest.raises(MalformedImage, match="interpreter path"):
        interpreter(with_interpreter(machine("amd64"), path, size))


def test_row_45_huge_counts_and_offsets_end_at_once() -> None:
    program = bytearray(probe_program(machine("amd64")))
    struct.pack_into("<H", program, 56, 0xFFFF)
    with pytest.raises(MalformedImage, match="truncated"):
        interpreter(bytes(program))
    struct.pack_into("<Q", program, 32, (1 << 64) - 1)
    with pytest.raises(MalformedImage, match="offset"):
        interpreter(bytes(program))


def test_row_45_program_headers_of_another_size_are_refused() -> None:
    program = bytearray(probe_program(machine("amd64")))
    struct.pack_into("<H", program, 54, 1)
    with pytest.raises(MalformedImage, match="1 bytes each"):
        interpreter(bytes(program))
