"""Values read from an ELF file: its header, its dynamic section, and evidence of the ISA it needs."""

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
    """One fact that a binary records about itself: where, about what, and the value."""

    source: str
    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}: {self.name}{'=' if self.source == GO_BUILDINFO else ' '}{self.value}"


GO_BUILDINFO = "Go build info"
"""The source of evidence from Go's build information."""
RUNTIME_DETECTION = "run-time detection"
"""The name of evidence that a binary queries the CPU's features at run time."""

_ISA_STRING_PATTERN = re.compile(r"rv(?:32|64|128)([a-z].*)\Z", re.ASCII)
_SINGLE_LETTER_PATTERN = re.compile(r"([a-wy])(?:[0-9]+p[0-9]+)?", re.ASCII)
_EXTENSION_VERSION_PATTERN = re.compile(r"[0-9]+p[0-9]+\Z", re.ASCII)


def riscv_extensions(arch: str) -> set[str]:
    """Return the extensions of an ISA string such as ``rv64i2p1_m2p0_zicsr2p0`` or ``rv64gc``.

    Versions are dropped, and supervisor extensions, which programs cannot use (RISC-V Unprivileged ISA,
    "ISA Extension Naming Conventions").
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
    """The ELF header (System V gABI, chapter 4); ``bits`` is EI_CLASS, ``byte_order`` EI_DATA."""

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
        """The entry of the architecture table, or None for a machine that is not in it."""
        return machine_from_elf(self.bits, self.byte_order, self.e_machine)

    @property
    def machine_name(self) -> str:
        """The OCI architecture, or the usual name of a machine that is not in the table."""
        if self.machine:
            return self.machine.architecture
        return foreign_machine_name(self.bits, self.byte_order, self.e_machine)

    @property
    def is_device_code(self) -> bool:
        """Whether a program loads this into another processor: GPU kernels, BPF objects, firmware."""
        return self.e_machine in DEVICE_MACHINES

    def describe(self) -> str:
        """Return a description such as ``ELF 64-bit little-endian, machine 62 (amd64)``."""
        return f"ELF {self.bits}-bit {self.byte_order}-endian, machine {self.e_machine} ({self.machine_name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """What an ELF file needs in order to start.

    ``interpreter`` is the path in PT_INTERP or empty; ``exec_error`` says why the kernel would refuse
    to start the file because of it (fs/binfmt_elf.c). ``is_dynamic`` tells whether there is a dynamic
    section; ``needed``, ``soname``, ``rpath`` and ``runpath`` are from there, the paths split at
    colons. ``evidence`` is about the instruction set and the ABI. ``problems`` lists what is damaged,
    ``unread_parts`` what may be intact but is not among the pieces kept of a large file.
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
