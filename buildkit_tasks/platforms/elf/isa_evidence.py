"""Gather what a file says about the instruction set and the ABI that it was made for.

Nothing here judges: see :mod:`buildkit_tasks.platforms.elf.isa_check`. Sources, by machine: the e_flags and
their meaning (psABI supplements of Arm, MIPS, RISC-V, 64-bit PowerPC ELF V2 and LoongArch), Arm's and
RISC-V's build attributes, x86 ISA notes ("Linux Extensions to gABI", ``.note.gnu.property``), and Go
build info in any file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.build_attributes import MAX_ATTRIBUTES, read_attributes
from buildkit_tasks.platforms.elf.go_buildinfo import find_go, read_go
from buildkit_tasks.platforms.elf.model import CHOICE, GO_BUILDINFO, Evidence, riscv_extensions
from buildkit_tasks.platforms.elf.segments import PT_GNU_PROPERTY, PT_NOTE, PT_PROCESSOR, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["gather"]

_FLAGS, _X86 = "ELF flags", "x86 ISA note"
_MAX_DATA = 1 << 26  # of a data segment that is searched for Go's magic
_MAX_NOTE = 1 << 16
_MAX_SEARCH = 1 << 23  # of strings; more are data

# How a program asks which extensions the machine has: glibc's call, the kernel's files, RISC-V's call.
_QUESTIONS = (b"getauxval", b"/proc/cpuinfo", b"/proc/self/auxv", b"riscv_hwprobe")

# EI_OSABI of systems whose programs no Linux kernel can serve.
_SYSTEMS = {2: "NetBSD", 6: "Solaris", 9: "FreeBSD", 12: "OpenBSD"}


def gather(layout: Layout) -> Iterator[Evidence]:
    """Everything found, in a fixed order; what is malformed goes to the layout's problems."""
    header = layout.header
    if header.abi in _SYSTEMS:
        yield Evidence("ELF header", "OS ABI", _SYSTEMS[header.abi])
    if header.type in (2, 3):  # the kernel and the loader start no others
        yield from _sound(_go, layout)
    for read in _BY_MACHINE.get(header.machine, ()):
        yield from _sound(read, layout)


def _sound(read: Callable[[Layout], Iterator[Evidence]], layout: Layout) -> list[Evidence]:
    try:
        return list(read(layout))
    except MalformedImage as error:
        layout.problems.append(error.message)
        return []


def _go(layout: Layout) -> Iterator[Evidence]:
    at = _go_header(layout)
    if at < 0:
        return
    try:
        build = read_go(at, layout.view.at, layout.at_address)
    except MalformedImage:
        # Its strings may lie in a piece of a large file that was not kept.
        if layout.is_whole:
            raise
        layout.missing("Go build info", at, 0)
        return
    if build is None:
        return
    yield Evidence(GO_BUILDINFO, "version", build.version)
    if build.path:
        yield Evidence(GO_BUILDINFO, "path", build.path)
    for name, value in build.settings.items():
        if name.startswith("GO") or name in ("CGO_ENABLED", "-buildmode"):
            yield Evidence(GO_BUILDINFO, name, value)


def _go_header(layout: Layout) -> int:
    """Where the header lies, or -1. A file without sections is searched as Go's own reader does."""
    section = layout.section(b".go.buildinfo")
    if section is not None:
        if not layout.view.at(section[0], 1):
            layout.missing("Go build info", section[0], section[1])
        return section[0]
    segment = None if layout.has_sections else layout.data_segment()
    if segment is None:
        return -1
    return find_go(layout.view, segment.offset, segment.offset + min(segment.size, _MAX_DATA))


_ARM_ARCHITECTURES = (
    "Pre-v4", "v4", "v4T", "v5T", "v5TE", "v5TEJ", "v6", "v6KZ", "v6T2", "v6K", "v7", "v6-M", "v6S-M",
    "v7E-M", "v8", "v8-R", "v8-M.baseline", "v8-M.mainline", "v8.1", "v8.2", "v8.3", "v8.1-M.mainline", "v9",
)  # fmt: skip
_ARM_FP = ("none", "VFPv1", "VFPv2", "VFPv3", "VFPv3-D16", "VFPv4", "VFPv4-D16", "FP-ARMv8", "FP-ARMv8-D16")
_ARM_NUMBERS = (
    # tag, name, the meanings of its values
    (6, "CPU architecture", _ARM_ARCHITECTURES),
    (9, "Thumb", ("none", "Thumb", "Thumb-2", "yes")),
    (10, "FP architecture", _ARM_FP),
    (12, "SIMD architecture", ("none", "NEON", "NEONv2", "NEON-ARMv8", "NEON-ARMv8.1")),
    (28, "float ABI", ("soft", "hard", "toolchain", "either")),
)


def _arm_flags(layout: Layout) -> Iterator[Evidence]:
    flags = layout.header.flags
    if flags >> 24:
        yield Evidence(_FLAGS, "EABI", str(flags >> 24))
    if flags >> 24 == 5 and flags & 0x600:  # the flags mean something else before EABI 5
        yield Evidence(_FLAGS, "float ABI", "hard" if flags & 0x400 else "soft")


def _arm_entry(layout: Layout) -> Iterator[Evidence]:
    """Thumb-2 where a program starts: a proof of ARMv7 (or v6T2), whatever it chooses later.

    An odd entry point is Thumb code. Its 32-bit instructions are Thumb-2's, except for BL and BLX
    (Arm Architecture Reference Manual, "Thumb instruction set encoding"). Only the first ones are
    looked at: data follow soon.
    """
    entry = layout.header.entry
    if not entry & 1:
        return
    code = layout.at_address(entry - 1, 8)
    halves = [int.from_bytes(code[at : at + 2], layout.header.order) for at in range(0, len(code), 2)]
    at = 0
    while at + 1 < len(halves):
        first, second = halves[at] >> 11, halves[at + 1] >> 11
        if first < 0b11101:  # a 16-bit instruction
            at += 1
        elif first == 0b11110 and second in (0b11101, 0b11111):  # BLX and BL
            at += 2
        else:
            yield Evidence("entry point", "instructions", "Thumb-2")
            return


def _arm_attributes(layout: Layout) -> Iterator[Evidence]:
    found = _attributes(layout, b".ARM.attributes", "aeabi")
    if not found:
        return
    source = ".ARM.attributes"
    if name := found.get(5):
        yield Evidence(source, "CPU name", str(name))
    if profile := found.get(7):
        yield Evidence(source, "CPU profile", _letter(profile))
    for tag, name, values in _ARM_NUMBERS:
        value = found.get(tag, 0)
        if isinstance(value, int) and (tag in found or tag == 28):  # absent means 0, soft
            yield Evidence(source, name, values[value] if value < len(values) else f"unknown ({value})")
    # Plain ARMv7 without NEON is a compiler's word: nobody writes that by hand, for a choice.
    if found.get(12) or found.get(6) not in (None, 0, 1, 2, 3, 4, 5, 10):
        yield from _choice(layout)


def _choice(layout: Layout) -> Iterator[Evidence]:
    """A sign that the binary looks at the machine before it uses all that its attributes name."""
    places = [layout.section(name) for name in (b".dynstr", b".rodata")]
    whole = (0, layout.view.size)
    for offset, size in [place for place in places if place] or [whole]:
        end = offset + min(size, _MAX_SEARCH)
        for question in _QUESTIONS:
            if layout.view.find(question, offset, end) >= 0:
                yield Evidence("strings", CHOICE, question.decode())
                return


def _letter(value: int | str) -> str:
    return chr(value) if isinstance(value, int) and 0x20 < value < 0x7F else str(value)  # ASCII


def _attributes(layout: Layout, name: bytes, vendor: str) -> dict[int, int | str]:
    place = layout.section(name)
    if place is None and vendor == "riscv" and (segment := layout.of_kind(PT_PROCESSOR)):
        place = segment.offset, segment.size
    if place is None:
        return {}
    data = layout.read(name.decode(), place[0], min(place[1], MAX_ATTRIBUTES))
    return read_attributes(data, vendor, layout.header.order) if len(data) == place[1] else {}


_X86_LEVELS = ("x86-64 baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4")
_GNU_PROPERTIES, _ISA_NEEDED, _ISA_USED = 5, 0xC0008002, 0xC0010002


def _x86_notes(layout: Layout) -> Iterator[Evidence]:
    note = layout.of_kind(PT_GNU_PROPERTY)
    segments = [note] if note else [segment for segment in layout.segments if segment.kind == PT_NOTE]
    align = layout.header.bits // 8
    for segment in segments:
        data = layout.read("notes", segment.offset, min(segment.size, _MAX_NOTE))
        for kind, owner, value in _notes(data, 4 if segment.align <= 4 else align):
            if (kind, owner) == (_GNU_PROPERTIES, b"GNU\0"):
                yield from _x86_levels(value, align)


def _x86_levels(data: bytes, align: int) -> Iterator[Evidence]:
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind in (_ISA_NEEDED, _ISA_USED) and size == 4 and at + 12 <= len(data):
            bits = int.from_bytes(data[at + 8 : at + 12], "little")
            if bits & 0xF:
                level = (bits & 0xF).bit_length() - 1
                yield Evidence(_X86, "needed" if kind == _ISA_NEEDED else "used", _X86_LEVELS[level])
        at += 8 + -(-size // align) * align


def _notes(data: bytes, align: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Kind, owner and content of each note (gABI, chapter 5, "Note Section")."""
    at = 0
    while at + 12 <= len(data):
        name, size, kind = struct.unpack_from("<III", data, at)
        start = at + -(-(12 + name) // align) * align
        yield kind, data[at + 12 : at + 12 + name], data[start : start + size]
        at = start + -(-size // align) * align


_MIPS_LEVELS = (
    "mips1", "mips2", "mips3", "mips4", "mips5", "mips32", "mips64", "mips32r2", "mips64r2", "mips32r6",
    "mips64r6",
)  # fmt: skip
_MIPS_ABIS = {0x1000: "o32", 0x2000: "o64", 0x3000: "eabi32", 0x4000: "eabi64"}
_MIPS_FP = ("any", "double", "single", "soft", "old-64", "xx", "64", "64A")


def _mips_flags(layout: Layout) -> Iterator[Evidence]:
    flags = layout.header.flags
    level = flags >> 28
    name = _MIPS_LEVELS[level] if level < len(_MIPS_LEVELS) else f"unknown ({level})"
    yield Evidence(_FLAGS, "MIPS architecture", name)
    plain = "n64" if layout.header.bits == 64 else "o32"  # ELF has two classes
    yield Evidence(_FLAGS, "MIPS ABI", "n32" if flags & 0x20 else _MIPS_ABIS.get(flags & 0xF000, plain))
    if flags & 0x400:
        yield Evidence(_FLAGS, "NaN", "2008")


def _mips_abiflags(layout: Layout) -> Iterator[Evidence]:
    """``.MIPS.abiflags``, which has a segment of its own in linked files."""
    segment = layout.of_kind(PT_PROCESSOR)
    if segment is None:
        return
    data = layout.read(".MIPS.abiflags", segment.offset, 24)
    if len(data) < 24 or data[0:2] != b"\0\0":  # Elf_Internal_ABIFlags_v0
        return
    fp, ases = data[7], int.from_bytes(data[12:16], layout.header.order)
    if fp:
        yield Evidence(".MIPS.abiflags", "float ABI", _MIPS_FP[fp] if fp < len(_MIPS_FP) else str(fp))
    if ases & 0x200:
        yield Evidence(".MIPS.abiflags", "ASE", "MSA")
        yield from _choice(layout)


def _riscv_flags(layout: Layout) -> Iterator[Evidence]:
    flags = layout.header.flags
    yield Evidence(_FLAGS, "float ABI", ("soft", "single", "double", "quad")[flags >> 1 & 3])
    if flags & 1:
        yield Evidence(_FLAGS, "compressed", "yes")
    if flags & 8:
        yield Evidence(_FLAGS, "RVE", "yes")


_PLAIN_RISCV = frozenset(Platform("linux", "riscv64").machine.ladder[0].extensions.split())


def _riscv_attributes(layout: Layout) -> Iterator[Evidence]:
    arch = _attributes(layout, b".riscv.attributes", "riscv").get(5)
    if not arch:
        return
    yield Evidence(".riscv.attributes", "arch", str(arch))
    if riscv_extensions(str(arch)) - _PLAIN_RISCV:
        yield from _choice(layout)


def _ppc64_flags(layout: Layout) -> Iterator[Evidence]:
    if version := layout.header.flags & 3:
        yield Evidence(_FLAGS, "PPC64 ABI", f"v{version}")


def _loongarch_flags(layout: Layout) -> Iterator[Evidence]:
    flags = layout.header.flags
    abis = {1: "soft", 2: "single", 3: "double"}
    yield Evidence(_FLAGS, "float ABI", abis.get(flags & 7, f"unknown ({flags & 7})"))
    yield Evidence(_FLAGS, "object ABI", f"v{flags >> 6 & 3}")


_BY_MACHINE: dict[int, tuple[Callable[[Layout], Iterator[Evidence]], ...]] = {
    3: (_x86_notes,),
    8: (_mips_flags, _mips_abiflags),
    21: (_ppc64_flags,),
    40: (_arm_flags, _arm_entry, _arm_attributes),
    62: (_x86_notes,),
    243: (_riscv_flags, _riscv_attributes),
    258: (_loongarch_flags,),
}
