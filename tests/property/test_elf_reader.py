from __future__ import annotations

import contextlib
import io

from elftools.elf.elffile import ELFFile
from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.binaries.elf import interpreter, read_elf
from buildkit_tasks.binaries.probe import probe_program
from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine

rows = st.sampled_from(MACHINES)


@given(rows, st.integers(0, 127), st.integers(0, 2**32 - 1), st.integers(0, 255))
def test_a_header_is_read_as_pyelftools_reads_it(row: Machine, status: int, flags: int, abi: int) -> None:
    program = bytearray(probe_program(row, status))
    at = 36 if row.bits == 32 else 48
    program[at : at + 4] = flags.to_bytes(4, "little" if row.order == "little" else "big")
    program[7] = abi
    mine, oracle = read_elf(bytes(program)), ELFFile(io.BytesIO(program))
    assert (mine.bits, mine.order == "little") == (oracle.elfclass, oracle.little_endian)
    names = ("e_flags", "e_entry", "e_phoff", "e_phnum", "e_phentsize")
    read = (mine.flags, mine.entry, mine.phoff, mine.phnum, mine.phentsize)
    assert read == tuple(oracle[name] for name in names)
    assert oracle["e_type"] == "ET_EXEC"
    assert mine.type == 2
    assert mine.abi == abi


@given(rows, st.lists(st.tuples(st.integers(0, 119), st.integers(0, 255)), max_size=12), st.integers(0, 200))
def test_row_45_a_mutated_program_is_read_or_malformed(
    row: Machine, damage: list[tuple[int, int]], keep: int
) -> None:
    program = bytearray(probe_program(row).ljust(200, b"\0"))
    for at, byte in damage:
        program[at] = byte
    data = bytes(program[:keep])
    with contextlib.suppress(MalformedImage):
        assert read_elf(data).describe().startswith("ELF ")
    with contextlib.suppress(MalformedImage):
        interpreter(data)


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic_are_read_or_malformed(data: bytes) -> None:
    with contextlib.suppress(MalformedImage):
        interpreter(b"\x7fELF" + data)
