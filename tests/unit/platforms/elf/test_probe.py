from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from buildkit_tasks.platforms import MACHINES, Machine, native_platform
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program

each_machine = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)


@each_machine
def test_pyelftools_reads_probe(machine: Machine) -> None:
    elf = ELFFile(io.BytesIO(build_probe_program(machine)))
    assert elf.elfclass == machine.bits
    assert elf.little_endian == (machine.byte_order == "little")
    assert elf.header["e_flags"] == machine.e_flags
    assert elf.header["e_type"] == "ET_EXEC"
    segment = elf.get_segment(0)
    assert segment["p_type"] == "PT_LOAD"
    assert segment["p_vaddr"] <= elf.header["e_entry"] < segment["p_vaddr"] + segment["p_filesz"]


@each_machine
def test_probe_matches_binfmt_magic(machine: Machine) -> None:
    program = build_probe_program(machine)
    start = bytes(byte & mask for byte, mask in zip(program, machine.mask, strict=False))
    assert start == bytes(byte & mask for byte, mask in zip(machine.magic, machine.mask, strict=True))


@each_machine
def test_status_changes_only_code(machine: Machine) -> None:
    one, other = build_probe_program(machine, 0), build_probe_program(machine, 127)
    assert one != other
    assert one[:64] == other[:64]


def test_headers_are_distinct() -> None:
    assert len({build_probe_program(machine)[:20] for machine in MACHINES}) == len(MACHINES)


def test_native_probe_exit_status(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    path.write_bytes(build_probe_program(native_platform().machine))
    path.chmod(0o755)
    assert subprocess.run([path], check=False, timeout=10).returncode == PROBE_STATUS
