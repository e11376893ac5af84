"""The numbers of system calls are those of the kernel's headers for each architecture."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.run.sandbox.seccomp import NUMBERS
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import fetch_newest_package

pytestmark = pytest.mark.interop

# The column of the numbers for each table of the kernel. Debian's package has those of all architectures.
HEADERS = {
    "x86/asm/unistd_64.h": 0,
    "x86/asm/unistd_32.h": 1,
    "arm64/asm/unistd_64.h": 2,
    "riscv/asm/unistd_64.h": 2,
    "loongarch/asm/unistd_64.h": 2,
    "arm/asm/unistd-eabi.h": 3,
    "powerpc/asm/unistd_64.h": 4,
    "s390/asm/unistd_64.h": 5,
}


@pytest.fixture(scope="module")
def headers() -> Path:
    folder, commands = cache_folder(load_settings()) / "debian", SubprocessRunner(dry_run_output=sys.stderr)
    return fetch_newest_package("linux-libc-dev", ["amd64"], folder, commands, print)["amd64"]


@pytest.mark.parametrize(("name", "column"), HEADERS.items())
def test_numbers(headers: Path, name: str, column: int) -> None:
    text = (headers / "usr/lib/linux/uapi" / name).read_text(encoding="utf-8")
    # On ARM a number is added to __NR_SYSCALL_BASE, which is 0.
    definitions = re.findall(r"#define __NR_(\w+)\s+(?:\(__NR_SYSCALL_BASE \+ )?(\d+)", text)
    expected = {call: int(number) for call, number in definitions}
    assert len(expected) > 300
    known = {call: numbers[column] for call, numbers in NUMBERS.items() if numbers[column] >= 0}
    assert known == {call: number for call, number in expected.items() if call in NUMBERS}
