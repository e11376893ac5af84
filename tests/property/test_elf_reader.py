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
from buildkit_tasks.platforms.elf.reader import read_binary, read_elf_header
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from tests.support.elf import (
    BASE,
    ISA_NEEDED,
    NEEDED,
    PT_INTERP,
    PT_LOAD,
    PT_NOTE,
    PT_PROCESSOR,
    RPATH,
    RUNPATH,
    SONAME,
    Elf,
    attributes,
    go_info,
    x86_note,
)

machines = st.sampled_from(MACHINES)


@given(machines, st.integers(0, 127), st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_header_matches_pyelftools(machine: Machine, status: int, flags: int, abi: int) -> None:
    program = bytearray(build_probe_program(machine, status))
    at = 36 if machine.bits == 32 else 48
    program[at : at + 4] = flags.to_bytes(4, "little" if machine.byte_order == "little" else "big")
    program[7] = abi
    header, oracle = read_elf_header(bytes(program)), ELFFile(io.BytesIO(program))
    assert (header.bits, header.byte_order == "little") == (oracle.elfclass, oracle.little_endian)
    names = ("e_flags", "e_entry", "e_phoff", "e_phnum", "e_phentsize")
    fields = (header.e_flags, header.entry_point, header.phoff, header.phnum, header.phentsize)
    assert fields == tuple(oracle[name] for name in names)
    assert oracle["e_type"] == "ET_EXEC"
    assert header.e_type == 2
    assert header.os_abi == abi


@given(
    machines, st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=12), st.integers(0, 200)
)
def test_mutated_probe(machine: Machine, damage: list[tuple[int, int]], keep: int) -> None:
    program = bytearray(build_probe_program(machine).ljust(200, b"\0"))
    for at, byte in damage:
        program[at] = byte
    data = bytes(program[:keep])
    with contextlib.suppress(MalformedImage):
        assert read_elf_header(data).describe().startswith("ELF ")


@given(st.binary(max_size=300))
def test_any_bytes_after_magic(data: bytes) -> None:
    with contextlib.suppress(MalformedImage):
        read_binary(WholeFile(b"\x7fELF" + data))


def build_full_binary(machine: Machine) -> bytes:
    """Build a program with a value in every section and segment that is read."""
    riscv = attributes("riscv", [(4, 16), (5, "rv64gc_v1p0")])
    sections = {
        ".go.buildinfo": go_info("go1.26.8", "path\tx\nbuild\tGOARM=7\n"),
        ".ARM.attributes": attributes("aeabi", [(5, "7-A"), (6, 10), (12, 1), (28, 1)]),
        ".riscv.attributes": riscv,
        ".dynstr": b"getauxval\0",
    }
    segments = [
        (PT_INTERP, b"/lib/ld.so\0"),
        (PT_NOTE, x86_note((ISA_NEEDED, 0b111))),
        (PT_PROCESSOR, riscv if machine.architecture == "riscv64" else bytes(24)),
    ]
    dynamic: list[tuple[int, str | int]] = [
        (NEEDED, "libc.so.6"),
        (SONAME, "libx.so"),
        (RPATH, "/a:/b"),
        (RUNPATH, "$ORIGIN"),
    ]
    elf = Elf(
        machine=machine.architecture, sections=sections, segments=segments, dynamic=dynamic, entry=BASE + 65
    )
    return elf.build()


FULL_BINARIES = {machine.architecture: build_full_binary(machine) for machine in MACHINES}
mutations = st.tuples(st.integers(0, 1 << 12), st.sampled_from([0, 1, 127, 128, 255]) | st.integers(0, 255))


@given(machines, st.lists(mutations, max_size=12), st.integers(0, 1 << 12))
def test_mutated_binary(machine: Machine, damage: list[tuple[int, int]], keep: int) -> None:
    program = bytearray(FULL_BINARIES[machine.architecture])
    for at, byte in damage:
        program[at % len(program)] = byte
    for data in (bytes(program), bytes(program[: keep % len(program)])):
        with contextlib.suppress(MalformedImage):
            header = read_elf_header(data)
            binary = read_binary(WholeFile(data))
            assert binary.header == header
            assert binary.unread_parts == ()


@given(machines, st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(1, 900)), max_size=4))
def test_partial_binary(machine: Machine, spans: list[tuple[int, int]]) -> None:
    data = FULL_BINARIES[machine.architecture]
    whole = read_binary(WholeFile(data))
    pieces = [(at % len(data), data[at % len(data) :][:size]) for at, size in spans]
    partial = read_binary(PartialFile(len(data), [(0, data[:64]), *pieces]))
    assert partial.problems == ()
    assert set(partial.evidence) <= set(whole.evidence)
    assert set(partial.needed) <= set(whole.needed)
    assert partial.interpreter in ("", whole.interpreter)


def test_large_tables_take_under_a_second() -> None:
    names: list[tuple[int, str | int]] = [(NEEDED, "n" * 4000), *[(NEEDED, 1)] * 15_000]
    loads = [(PT_LOAD, b"")] * 1100
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
