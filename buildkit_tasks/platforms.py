"""Platforms, and the one table of architectures.

A platform is written ``os/architecture[/variant]`` as in the OCI image index specification
(section "Image Index Property Descriptions", ``platform``); names are normalised as containerd's
``platforms`` package does (``aarch64`` is ``arm64``, ``arm`` alone is ``arm/v7``, ``arm64/v8`` is
``arm64``). No other file spells an architecture list.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "DEVICES",
    "MACHINES",
    "Machine",
    "Platform",
    "foreign_machine",
    "known_platforms",
    "machine_of_elf",
    "native_platform",
    "parse_platforms",
    "platform_of_uname",
]

_FOREIGN: dict[tuple[int, str, int], str] = {}
DEVICES = {190: "CUDA", 224: "AMD GPU", 247: "BPF"}
_ELF_CLASS = {32: 1, 64: 2}
_ELF_DATA = {"little": 1, "big": 2}
_ET_EXEC = 2
_ET_EXEC_OR_DYN_MASK = 0xFE


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A named level of an architecture, and what Go and Debian call it."""

    name: str
    go: tuple[str, str] | None = None
    debian: str = ""
    cpu: str = ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One architecture under all the names that the field has for it.

    ``architecture`` is OCI's name and Go's GOARCH; ``uname`` what ``uname -m`` prints; ``qemu`` the
    suffix of QEMU's user-mode binary; ``bits``, ``order`` and ``elf_machine`` the ELF header's
    EI_CLASS, EI_DATA and e_machine (System V gABI, chapter 4); ``elf_flags`` the e_flags of a
    program made for it (psABI supplements); ``cpu`` the oldest QEMU CPU model that the plain
    name promises; ``default_variant`` the variant that is meant when none is written;
    ``exit_code`` is machine code that ends a process with the status in its low byte
    (see :mod:`buildkit_tasks.binaries.probe`).
    """

    architecture: str
    uname: tuple[str, ...]
    qemu: str
    bits: int
    order: str
    elf_machine: int
    debian: str = ""
    elf_flags: int = 0
    cpu: str = ""
    default_variant: str = ""
    implied_variant: str = ""
    variants: tuple[Variant, ...] = ()
    exit_code: str = ""

    @cached_property
    def magic(self) -> bytes:
        """The first 20 bytes of this architecture's executables, as binfmt_misc matches them.

        See the kernel's Documentation/admin-guide/binfmt-misc.rst.
        """
        ident = b"\x7fELF" + bytes([_ELF_CLASS[self.bits], _ELF_DATA[self.order], 1])
        return ident.ljust(16, b"\0") + self._half(_ET_EXEC) + self._half(self.elf_machine)

    @cached_property
    def mask(self) -> bytes:
        """Which bits of :attr:`magic` count: all but the OS ABI; ET_DYN matches like ET_EXEC."""
        ident = b"\xff" * 7 + b"\0" * 2 + b"\xff" * 7
        return ident + self._half(0xFF00 | _ET_EXEC_OR_DYN_MASK) + b"\xff\xff"

    def _half(self, value: int) -> bytes:
        return value.to_bytes(2, "little" if self.order == "little" else "big")


MACHINES: tuple[Machine, ...] = (
    Machine(
        architecture="amd64",
        uname=("x86_64",),
        qemu="x86_64",
        bits=64,
        order="little",
        elf_machine=62,
        debian="amd64",
        cpu="qemu64",
        implied_variant="v1",
        variants=(
            Variant(name="v1", go=("GOAMD64", "v1"), cpu="qemu64"),
            Variant(name="v2", go=("GOAMD64", "v2"), cpu="Nehalem"),
            Variant(name="v3", go=("GOAMD64", "v3"), cpu="Haswell"),
            Variant(name="v4", go=("GOAMD64", "v4"), cpu="Skylake-Server"),
        ),
        # mov edi, STATUS; mov eax, 60 (exit); syscall
        exit_code="bf SS 00 00 00  b8 3c 00 00 00  0f 05",
    ),
    Machine(
        architecture="arm64",
        uname=("aarch64", "arm64"),
        qemu="aarch64",
        bits=64,
        order="little",
        elf_machine=183,
        debian="arm64",
        cpu="cortex-a53",
        implied_variant="v8",
        variants=(Variant(name="v8", go=("GOARM64", "v8.0")), Variant(name="v9", cpu="max")),
        # movz x0, #STATUS (bits 5..20: see probe.py); movz x8, #93 (exit); svc #0
        exit_code="I5:d2800000  a8 0b 80 d2  01 00 00 d4",
    ),
    Machine(
        architecture="arm",
        uname=("armv7l", "armv6l", "armv5tel", "armv8l"),
        qemu="arm",
        bits=32,
        order="little",
        elf_machine=40,
        elf_flags=0x05000000,
        debian="armhf",
        cpu="cortex-a8",
        default_variant="v7",
        variants=(
            Variant(name="v5", go=("GOARM", "5"), debian="armel", cpu="arm926"),
            Variant(name="v6", go=("GOARM", "6"), debian="armel", cpu="arm1176"),
            Variant(name="v7", go=("GOARM", "7"), debian="armhf", cpu="cortex-a8"),
        ),
        # mov r0, #STATUS; mov r7, #1 (exit); svc #0
        exit_code="SS 00 a0 e3  01 70 a0 e3  00 00 00 ef",
    ),
    Machine(
        architecture="386",
        uname=("i686", "i386", "i586", "i486"),
        qemu="i386",
        bits=32,
        order="little",
        elf_machine=3,
        debian="i386",
        cpu="qemu32",
        # mov ebx, STATUS; mov eax, 1 (exit); int 0x80
        exit_code="bb SS 00 00 00  b8 01 00 00 00  cd 80",
    ),
    Machine(
        architecture="ppc64le",
        uname=("ppc64le",),
        qemu="ppc64le",
        bits=64,
        order="little",
        elf_machine=21,
        elf_flags=2,
        debian="ppc64el",
        cpu="power8",
        # li r3, STATUS; li r0, 1 (exit); sc
        exit_code="SS 00 60 38  01 00 00 38  02 00 00 44",
    ),
    Machine(
        architecture="s390x",
        uname=("s390x",),
        qemu="s390x",
        bits=64,
        order="big",
        elf_machine=22,
        debian="s390x",
        cpu="qemu",
        # lghi %r2, STATUS; svc 1 (exit)
        exit_code="a7 29 00 SS  0a 01",
    ),
    Machine(
        architecture="riscv64",
        uname=("riscv64",),
        qemu="riscv64",
        bits=64,
        order="little",
        elf_machine=243,
        elf_flags=5,
        debian="riscv64",
        cpu="sifive-u54",
        # addi a0, zero, STATUS (bits 20..31); addi a7, zero, 93 (exit); ecall
        exit_code="I20:00000513  93 08 d0 05  73 00 00 00",
    ),
    Machine(
        architecture="mips64le",
        uname=("mips64",),
        qemu="mips64el",
        bits=64,
        order="little",
        elf_machine=8,
        elf_flags=0x80000006,
        debian="mips64el",
        cpu="MIPS64R2-generic",
        # addiu $a0, $zero, STATUS; addiu $v0, $zero, 5058 (n64 exit); syscall
        exit_code="SS 00 04 24  c2 13 02 24  0c 00 00 00",
    ),
    Machine(
        architecture="loong64",
        uname=("loongarch64",),
        qemu="loongarch64",
        bits=64,
        order="little",
        elf_machine=258,
        elf_flags=0x43,
        debian="loong64",
        cpu="la464",
        # ori $a0, $zero, STATUS (bits 10..21); ori $a7, $zero, 93 (exit); syscall 0
        exit_code="I10:03800004  0b 74 81 03  00 00 2b 00",
    ),
)

_BY_ARCHITECTURE = {machine.architecture: machine for machine in MACHINES}

# Other spellings, as containerd's platforms.Normalize and `uname -m` have them.
_ALIASES = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv5": ("arm", "v5"),
    "armv6": ("arm", "v6"),
    "armv6l": ("arm", "v6"),
    "armv7": ("arm", "v7"),
    "armv7l": ("arm", "v7"),
    "i386": ("386", ""),
    "i686": ("386", ""),
    "ppc64el": ("ppc64le", ""),
    "mips64el": ("mips64le", ""),
    "loongarch64": ("loong64", ""),
}

_GRAMMAR = re.compile(r"[a-z0-9_-]+(?:/[a-z0-9_.-]+){0,2}\Z", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """An operating system, an architecture and a variant; ``str()`` gives its usual spelling."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @property
    def slug(self) -> str:
        """The name in test ids and tags, without the operating system: ``arm-v7``."""
        return "-".join(part for part in (self.architecture, self.variant) if part)

    @property
    def machine(self) -> Machine:
        """This platform's row of the architecture table."""
        return _BY_ARCHITECTURE[self.architecture]

    @property
    def debian(self) -> str:
        """Debian's name for the architecture whose packages run on this platform."""
        return self._variant_row().debian or self.machine.debian

    @property
    def cpu(self) -> str:
        """The oldest QEMU CPU model that this platform's name promises."""
        return self._variant_row().cpu or self.machine.cpu

    def _variant_row(self) -> Variant:
        rows = (row for row in self.machine.variants if row.name == self.variant)
        return next(rows, Variant(name=""))

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Read ``linux/arm/v7``, ``arm64`` or another usual spelling, normalised.

        Raises :class:`UsageError` with the nearest known platform for anything that the table
        does not have: buildx itself would build ``linux/zz`` and exit 0.
        """
        name = text.strip().lower()
        if not _GRAMMAR.match(name):
            raise UsageError(f"{text!r} is no platform", hint="write it as linux/arm64")
        parts = name.split("/")
        if parts[0] not in ("linux", "windows", "darwin", "freebsd", "wasip1"):
            parts.insert(0, "linux")
        return _known(text, *parts)

    @classmethod
    def normalised(cls, os_name: str, architecture: str, variant: str = "") -> Platform:
        """The platform that an image states, its spelling normalised but nothing refused."""
        architecture, implied = _ALIASES.get(architecture, (architecture, ""))
        variant = variant or implied
        machine = _BY_ARCHITECTURE.get(architecture)
        if machine is not None:
            variant = variant or machine.default_variant
            variant = "" if variant == machine.implied_variant else variant
        return cls(os_name, architecture, variant)


def _known(text: str, os_name: str, architecture: str = "", variant: str = "") -> Platform:
    platform = Platform.normalised(os_name, architecture, variant)
    if platform not in known_platforms():
        raise UsageError(f"unknown platform {text!r}", hint=_nearest(text))
    return platform


def known_platforms() -> list[Platform]:
    """Every platform that the table can name, plain ones before their variants."""
    return list(_all_platforms())


def _all_platforms() -> Iterator[Platform]:
    for machine in MACHINES:
        if not machine.default_variant:
            yield Platform("linux", machine.architecture)
        for row in machine.variants:
            if row.name != machine.implied_variant:
                yield Platform("linux", machine.architecture, row.name)


def _nearest(text: str) -> str:
    """The known platform whose name after ``linux/`` is most like this one."""
    names = {str(platform).removeprefix("linux/"): platform for platform in known_platforms()}
    wanted = text.strip().lower().removeprefix("linux/")
    nearest = functools.partial(difflib.get_close_matches, wanted, n=1, cutoff=0.5)
    close = nearest(list(names)) or nearest(list(_ALIASES))
    if not close:
        return f"known are {', '.join(map(str, names.values()))}"
    return f"did you mean {names.get(close[0]) or Platform.parse(close[0])}?"


def parse_platforms(values: Iterable[str]) -> tuple[Platform, ...]:
    """Read platforms given one by one or separated by commas, in order, each once."""
    texts = (part for value in values for part in value.split(",") if part.strip())
    return tuple(dict.fromkeys(Platform.parse(text) for text in texts))


def native_platform() -> Platform:
    """The platform of the running kernel, from ``uname -m``."""
    return platform_of_uname(os.uname().machine)


def platform_of_uname(name: str) -> Platform:
    """The platform of a kernel whose ``uname -m`` is ``name``."""
    rows = (machine.architecture for machine in MACHINES if name in machine.uname)
    architecture, variant = _ALIASES.get(name) or (next(rows, name), "")
    return Platform.normalised("linux", architecture, variant)


def machine_of_elf(elf_class: int, elf_data: int, elf_machine: int) -> Machine | None:
    """The row whose executables carry these EI_CLASS, EI_DATA and e_machine, if there is one."""
    for row in MACHINES:
        if (_ELF_CLASS[row.bits], _ELF_DATA[row.order], row.elf_machine) == (
            elf_class,
            elf_data,
            elf_machine,
        ):
            return row
    return None


def foreign_machine(bits: int, order: str, elf_machine: int) -> str:
    """What the world calls a machine that is not in the table; ``unknown`` if nobody does."""
    return _FOREIGN.get((bits, order, elf_machine), "unknown")
