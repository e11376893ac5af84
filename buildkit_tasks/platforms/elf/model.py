"""What is read of an ELF file: its header, what its linker wrote, and what it says about its ISA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.platforms.architectures import (
    DEVICE_MACHINES,
    Machine,
    foreign_machine_name,
    machine_from_elf,
)

if TYPE_CHECKING:
    from buildkit_tasks.platforms.elf.view import ByteOrder

__all__ = ["GO_BUILDINFO", "RUNTIME_DETECTION", "Binary", "ElfHeader", "Evidence", "riscv_extensions"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that a binary says about itself: where it is said, what about, and the words."""

    source: str
    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}: {self.name}{'=' if self.source == GO_BUILDINFO else ' '}{self.value}"


GO_BUILDINFO = "Go build info"
RUNTIME_DETECTION = "asks the machine"


_ISA_STRING_PATTERN = re.compile(r"rv(?:32|64|128)([a-z].*)\Z", re.ASCII)
_SINGLE_LETTER_PATTERN = re.compile(r"([a-wy])(?:[0-9]+p[0-9]+)?", re.ASCII)
_EXTENSION_VERSION_PATTERN = re.compile(r"[0-9]+p[0-9]+\Z", re.ASCII)


def riscv_extensions(arch: str) -> set[str]:
    """The extensions in an ISA string such as ``rv64i2p1_m2p0_zicsr2p0`` or ``rv64gc``, without versions.

    RISC-V Unprivileged ISA, "ISA Extension Naming Conventions". Supervisor extensions are left out:
    they do not concern programs.
    """
    match = _ISA_STRING_PATTERN.match(arch.lower()[:4096])
    if match is None:
        return set()
    extensions: set[str] = set()
    for part in match[1].split("_"):
        if part.startswith(("z", "x")):
            extensions.add(_EXTENSION_VERSION_PATTERN.sub("", part))
        elif not part.startswith("s"):
            extensions.update(_SINGLE_LETTER_PATTERN.findall(part))
    if "g" in extensions:
        extensions |= {"i", "m", "a", "f", "d", "zicsr", "zifencei"}
    return extensions - {"g"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfHeader:
    """The fields of an ELF header by their meaning; ``type`` is e_type, ``abi`` EI_OSABI."""

    bits: int
    byte_order: ByteOrder
    os_abi: int
    e_type: int
    e_machine: int
    e_flags: int
    entry_point: int
    phoff: int
    phentsize: int
    phnum: int
    shoff: int
    shentsize: int
    shnum: int
    shstrndx: int

    @property
    def machine(self) -> Machine | None:
        """The architecture table's row, or None for a machine that is not in it."""
        return machine_from_elf(
            1 if self.bits == 32 else 2, 1 if self.byte_order == "little" else 2, self.e_machine
        )

    @property
    def machine_name(self) -> str:
        """The machine's name: the architecture table's, or what the world calls a foreign one."""
        machine = self.machine
        return (
            machine.architecture
            if machine
            else foreign_machine_name(self.bits, self.byte_order, self.e_machine)
        )

    @property
    def is_device_code(self) -> bool:
        """Whether a program carries this for another processor: a GPU's kernels, a BPF object, firmware."""
        return self.e_machine in DEVICE_MACHINES

    def describe(self) -> str:
        """Say it in words: ``ELF 64-bit little-endian, machine 62 (amd64)``."""
        return f"ELF {self.bits}-bit {self.byte_order}-endian, machine {self.e_machine} ({self.machine_name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """An ELF file in what matters for starting it.

    ``interpreter`` is PT_INTERP's path or empty, ``refused`` why a kernel would not start it for its
    sake (fs/binfmt_elf.c); ``dynamic`` whether it has a dynamic section;
    ``needed``, ``soname``, ``rpath`` and ``runpath`` are that section's, the paths split at colons.
    ``evidence`` is all that was found about the instruction set and the ABI. ``problems`` names
    what is damaged, ``unread`` what may be sound but was not kept of a large file.
    """

    header: ElfHeader
    interpreter: str = ""
    exec_error: str = ""
    is_dynamic: bool = False
    needed: tuple[str, ...] = ()
    soname: str = ""
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    problems: tuple[str, ...] = ()
    unread_parts: tuple[str, ...] = ()
