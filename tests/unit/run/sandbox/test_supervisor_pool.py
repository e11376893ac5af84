from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildkit_tasks.platforms import MACHINES, Machine
from buildkit_tasks.run.sandbox.supervisor_pool import _copy_with_mark


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)
def test_marked_copy_is_not_matched(tmp_path: Path, machine: Machine) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(machine.magic.ljust(64, b"\0"))
    program.chmod(0o755)
    copy = _copy_with_mark(program, tmp_path / "emulators")

    def is_matched(data: bytes) -> bool:
        pairs = zip(data, machine.magic, machine.mask, strict=False)
        return all((byte ^ magic) & mask == 0 for byte, magic, mask in pairs)

    assert is_matched(program.read_bytes())
    assert not is_matched(copy.read_bytes())
    before, after = program.read_bytes(), copy.read_bytes()
    assert after[:9] + after[16:] == before[:9] + before[16:]  # only padding of e_ident differs
    assert copy.stat().st_mode & 0o777 == 0o755
    assert _copy_with_mark(program, tmp_path / "emulators") == copy


def test_new_version_is_copied_again(tmp_path: Path) -> None:
    program = tmp_path / "qemu"
    program.write_bytes(b"a" * 64)
    first = _copy_with_mark(program, tmp_path / "emulators")
    program.write_bytes(b"b" * 65)
    second = _copy_with_mark(program, tmp_path / "emulators")
    program.write_bytes(b"c" * 65)
    os.utime(program, (1, 1))
    third = _copy_with_mark(program, tmp_path / "emulators")
    assert [path.read_bytes()[:1] for path in (first, second, third)] == [b"a", b"b", b"c"]
