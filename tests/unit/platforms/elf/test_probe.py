from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from buildkit_tasks.platforms import MACHINES, Machine, machine_from_elf, native_platform
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program

each_machine = pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.architecture)


@each_machine
def test_the_header_is_what_pyelftools_reads(row: Machine) -> None:
    elf = ELFFile(io.BytesIO(build_probe_program(row)))
    assert elf.elfclass == row.bits
    assert elf.little_endian == (row.byte_order == "little")
    assert elf.header["e_flags"] == row.e_flags
    assert elf.header["e_type"] == "ET_EXEC"
    segment = elf.get_segment(0)
    assert segment["p_type"] == "PT_LOAD"
    assert segment["p_vaddr"] <= elf.header["e_entry"] < segment["p_vaddr"] + segment["p_filesz"]


@each_machine
def test_the_file_is_found_again_in_the_table_and_by_the_kernels_magic(row: Machine) -> None:
    program = build_probe_program(row)
    number = int.from_bytes(program[18:20], "little" if row.byte_order == "little" else "big")
    assert machine_from_elf(program[4], program[5], number) is row
    start = bytes(byte & mask for byte, mask in zip(program, row.mask, strict=False))
    assert start == bytes(byte & mask for byte, mask in zip(row.magic, row.mask, strict=True))


@each_machine
def test_the_status_changes_only_the_instructions(row: Machine) -> None:
    one, other = build_probe_program(row, 0), build_probe_program(row, 127)
    assert one != other
    assert one[:64] == other[:64]


def test_no_two_architectures_share_a_header() -> None:
    assert len({build_probe_program(row)[:20] for row in MACHINES}) == len(MACHINES)


def test_this_machines_own_probe_ends_with_its_status(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    path.write_bytes(build_probe_program(native_platform().machine))
    path.chmod(0o755)
    assert subprocess.run([path], check=False, timeout=10).returncode == PROBE_STATUS
