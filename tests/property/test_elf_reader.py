from __future__ import annotations

import contextlib
import io
import struct
import time

from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine
from buildkit_tasks.platforms.elf.probe import build_probe_program
from buildkit_tasks.platforms.elf.reader import read_binary, read_elf_header, read_interpreter
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from tests.support.binaries import (
    BASE,
    NEEDED,
    PT_INTERP,
    PT_NOTE,
    RPATH,
    RUNPATH,
    SONAME,
    Elf,
    attributes,
    go_info,
    x86_note,
)

rows = st.sampled_from(MACHINES)


@given(rows, st.integers(0, 127), st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_a_header_is_read_as_pyelftools_reads_it(row: Machine, status: int, flags: int, abi: int) -> None:
    program = bytearray(build_probe_program(row, status))
    at = 36 if row.bits == 32 else 48
    program[at : at + 4] = flags.to_bytes(4, "little" if row.byte_order == "little" else "big")
    program[7] = abi
    mine, oracle = read_elf_header(bytes(program)), ELFFile(io.BytesIO(program))
    assert (mine.bits, mine.byte_order == "little") == (oracle.elfclass, oracle.little_endian)
    names = ("e_flags", "e_entry", "e_phoff", "e_phnum", "e_phentsize")
    read = (mine.e_flags, mine.entry_point, mine.phoff, mine.phnum, mine.phentsize)
    assert read == tuple(oracle[name] for name in names)
    assert oracle["e_type"] == "ET_EXEC"
    assert mine.e_type == 2
    assert mine.os_abi == abi


@given(rows, st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=12), st.integers(0, 200))
def test_row_45_a_mutated_program_is_read_or_malformed(
    row: Machine, damage: list[tuple[int, int]], keep: int
) -> None:
    program = bytearray(build_probe_program(row).ljust(200, b"\0"))
    for at, byte in damage:
        program[at] = byte
    data = bytes(program[:keep])
    with contextlib.suppress(MalformedImage):
        assert read_elf_header(data).describe().startswith("ELF ")
    with contextlib.suppress(MalformedImage):
        read_interpreter(data)


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic_are_read_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedImage):
        read_interpreter(b"\x7fELF" + data)


def full(row: Machine) -> bytes:
    """A program with something in every place that is looked at."""
    riscv = attributes("riscv", [(4, 16), (5, "rv64gc_v1p0")])
    sections = {
        ".go.buildinfo": go_info("go1.26.8", "path\tx\nbuild\tGOARM=7\n"),
        ".ARM.attributes": attributes("aeabi", [(5, "7-A"), (6, 10), (12, 1), (28, 1)]),
        ".riscv.attributes": riscv,
        ".dynstr": b"getauxval\0",
    }
    segments = [
        (PT_INTERP, b"/lib/ld.so\0"),
        (PT_NOTE, x86_note(3)),
        (0x70000003, riscv if row.architecture == "riscv64" else bytes(24)),
    ]
    dynamic: list[tuple[int, str | int]] = [
        (NEEDED, "libc.so.6"),
        (SONAME, "libx.so"),
        (RPATH, "/a:/b"),
        (RUNPATH, "$ORIGIN"),
    ]
    elf = Elf(
        machine=row.architecture, sections=sections, segments=segments, dynamic=dynamic, entry=BASE + 65
    )
    return elf.build()


FULL = {row.architecture: full(row) for row in MACHINES}
bytes_and_places = st.tuples(
    st.integers(0, 1 << 12), st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255)
)


@given(rows, st.lists(bytes_and_places, max_size=12), st.integers(0, 1 << 12))
def test_row_45_a_mutated_file_gives_a_binary_or_a_malformed_header(
    row: Machine, damage: list[tuple[int, int]], keep: int
) -> None:
    program = bytearray(FULL[row.architecture])
    for at, byte in damage:
        program[at % len(program)] = byte
    for data in (bytes(program), bytes(program[: keep % len(program)])):
        with contextlib.suppress(MalformedImage):
            header = read_elf_header(data)
            binary = read_binary(WholeFile(data))
            assert binary.header == header
            assert binary.unread_parts == ()


@given(rows, st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(1, 900)), max_size=4))
def test_pieces_of_a_file_never_say_more_than_the_whole(row: Machine, spans: list[tuple[int, int]]) -> None:
    data = FULL[row.architecture]
    whole = read_binary(WholeFile(data))
    kept = [(at % len(data), data[at % len(data) :][:size]) for at, size in spans]
    some = read_binary(PartialFile(len(data), [(0, data[:64]), *kept]))
    assert some.problems == ()
    assert set(some.evidence) <= set(whole.evidence)
    assert set(some.needed) <= set(whole.needed)
    assert some.interpreter in ("", whole.interpreter)


def test_row_45_the_worst_file_of_four_megabytes_takes_less_than_a_second() -> None:
    names: list[tuple[int, str | int]] = [(NEEDED, "n" * 4000), *[(NEEDED, 1)] * 15_000]
    loads = [(1, b"")] * 1100
    notes = (PT_NOTE, bytes(1 << 16))
    program = bytearray(
        Elf(
            machine="arm", dynamic=names, segments=[*loads, notes], sections={".ARM.attributes": b"A" * 9}
        ).build()
    )
    table = len(program)
    program += bytes(40) * 65_000
    struct.pack_into("<I", program, 32, table)
    struct.pack_into("<HHH", program, 46, 40, 65_000, 1)
    start = time.process_time()
    read_binary(WholeFile(bytes(program)))
    assert time.process_time() - start < 1
