"""What is read of an ELF file: its header, what its linker wrote, and what it says about its ISA."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.platforms.architectures import DEVICES, Machine, foreign_machine, machine_of_elf

if TYPE_CHECKING:
    from buildkit_tasks.platforms.elf.view import Order

__all__ = ["CHOICE", "GO_BUILDINFO", "Binary", "ElfHeader", "Evidence", "riscv_extensions"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that a binary says about itself: where it is said, what about, and the words."""

    source: str
    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}: {self.name}{'=' if self.source == GO_BUILDINFO else ' '}{self.value}"


GO_BUILDINFO = "Go build info"
CHOICE = "asks the machine"


_BASE = re.compile(r"rv(?:32|64|128)([a-z].*)\Z", re.ASCII)
_SINGLE = re.compile(r"([a-wy])(?:[0-9]+p[0-9]+)?", re.ASCII)
_VERSION = re.compile(r"[0-9]+p[0-9]+\Z", re.ASCII)


def riscv_extensions(arch: str) -> set[str]:
    """The extensions in an ISA string such as ``rv64i2p1_m2p0_zicsr2p0`` or ``rv64gc``, without versions.

    RISC-V Unprivileged ISA, "ISA Extension Naming Conventions". Supervisor extensions are left out:
    they do not concern programs.
    """
    match = _BASE.match(arch.lower()[:4096])
    if match is None:
        return set()
    found: set[str] = set()
    for part in match[1].split("_"):
        if part.startswith(("z", "x")):
            found.add(_VERSION.sub("", part))
        elif not part.startswith("s"):
            found.update(_SINGLE.findall(part))
    if "g" in found:
        found |= {"i", "m", "a", "f", "d", "zicsr", "zifencei"}
    return found - {"g"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfHeader:
    """The fields of an ELF header by their meaning; ``type`` is e_type, ``abi`` EI_OSABI."""

    bits: int
    order: Order
    abi: int
    type: int
    machine: int
    flags: int
    entry: int
    phoff: int
    phentsize: int
    phnum: int
    shoff: int
    shentsize: int
    shnum: int
    shstrndx: int

    @property
    def row(self) -> Machine | None:
        """The architecture table's row, or None for a machine that is not in it."""
        return machine_of_elf(1 if self.bits == 32 else 2, 1 if self.order == "little" else 2, self.machine)

    @property
    def name(self) -> str:
        """The machine's name: the architecture table's, or what the world calls a foreign one."""
        row = self.row
        return row.architecture if row else foreign_machine(self.bits, self.order, self.machine)

    @property
    def is_device_code(self) -> bool:
        """Whether a program carries this for another processor: a GPU's kernels, a BPF object, firmware."""
        return self.machine in DEVICES

    def describe(self) -> str:
        """Say it in words: ``ELF 64-bit little-endian, machine 62 (amd64)``."""
        return f"ELF {self.bits}-bit {self.order}-endian, machine {self.machine} ({self.name})"


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
    refused: str = ""
    dynamic: bool = False
    needed: tuple[str, ...] = ()
    soname: str = ""
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    problems: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
