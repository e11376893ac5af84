"""Collect what a file records about the instruction set and the ABI that it was built for.

:mod:`buildkit_tasks.platforms.elf.isa_check` compares it with a platform's baseline. The sources are
e_flags (the psABI supplements of Arm, MIPS, RISC-V, 64-bit PowerPC ELF V2 and LoongArch), the build
attributes of Arm and RISC-V, x86 ISA notes ("Linux Extensions to gABI", ``.note.gnu.property``), and
Go build information for every machine.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.build_attributes import MAX_ATTRIBUTES_SIZE, read_attributes
from buildkit_tasks.platforms.elf.go_buildinfo import find_go_build_info, read_go_build_info
from buildkit_tasks.platforms.elf.model import GO_BUILDINFO, RUNTIME_DETECTION, Evidence, riscv_extensions
from buildkit_tasks.platforms.elf.segments import PT_GNU_PROPERTY, PT_NOTE, PT_PROCESSOR, ElfFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from buildkit_tasks.platforms.elf.segments import Segment

__all__ = ["collect_evidence"]

_FLAGS, _X86 = "ELF flags", "x86 ISA note"
_MAX_DATA_SEARCH = 1 << 26  # bytes of the data segment that are searched for Go's magic
_MAX_NOTES_SIZE = 1 << 18  # bytes of all notes of a file; those of real programs are some hundred
_MAX_STRING_SEARCH = 1 << 23  # bytes; larger sections hold data, not strings

# How a program queries the CPU's extensions: a function of glibc, files of the kernel, a RISC-V syscall.
_CPU_FEATURE_QUERIES = (b"getauxval", b"/proc/cpuinfo", b"/proc/self/auxv", b"riscv_hwprobe")

# EI_OSABI of systems whose programs do not run on Linux.
_FOREIGN_OS_ABIS = {2: "NetBSD", 6: "Solaris", 9: "FreeBSD", 12: "OpenBSD"}


def collect_evidence(elf: ElfFile) -> Iterator[Evidence]:
    """Yield all evidence in a fixed order; malformed parts are added to ``elf.problems``."""
    header = elf.header
    if header.os_abi in _FOREIGN_OS_ABIS:
        yield Evidence("ELF header", "OS ABI", _FOREIGN_OS_ABIS[header.os_abi])
    if header.e_type in (2, 3):  # ET_EXEC and ET_DYN, which the kernel and the loader start
        yield from _read_or_report(_read_go_build_info, elf)
    for reader in _READERS_BY_MACHINE.get(header.e_machine, ()):
        yield from _read_or_report(reader, elf)


def _read_or_report(reader: Callable[[ElfFile], Iterator[Evidence]], elf: ElfFile) -> list[Evidence]:
    try:
        return list(reader(elf))
    except MalformedImage as error:
        elf.problems.append(error.message)
        return []


def _read_go_build_info(elf: ElfFile) -> Iterator[Evidence]:
    offset = _find_go_header(elf)
    if offset < 0:
        return
    try:
        build = read_go_build_info(offset, elf.view.read_at, elf.read_address)
    except MalformedImage:
        # The strings may be in a part of a large file that was not kept.
        if elf.is_complete:
            raise
        elf.report_unreadable("Go build info", offset, 0)
        return
    if build is None:
        return
    yield Evidence(GO_BUILDINFO, "version", build.version)
    if build.path:
        yield Evidence(GO_BUILDINFO, "path", build.path)
    for name, value in build.settings.items():
        if name.startswith("GO") or name in ("CGO_ENABLED", "-buildmode"):
            yield Evidence(GO_BUILDINFO, name, value)


def _find_go_header(elf: ElfFile) -> int:
    """Return the header's offset, or -1; without sections, search the data segment as Go's reader does."""
    section = elf.find_section(b".go.buildinfo")
    if section is not None:
        if not elf.view.read_at(section[0], 1):
            elf.report_unreadable("Go build info", section[0], section[1])
        return section[0]
    segment = None if elf.has_sections else elf.find_data_segment()
    if segment is None:
        return -1
    return find_go_build_info(
        elf.view, segment.offset, segment.offset + min(segment.file_size, _MAX_DATA_SEARCH)
    )


_ARM_ARCHITECTURES = (
    "Pre-v4", "v4", "v4T", "v5T", "v5TE", "v5TEJ", "v6", "v6KZ", "v6T2", "v6K", "v7", "v6-M", "v6S-M",
    "v7E-M", "v8", "v8-R", "v8-M.baseline", "v8-M.mainline", "v8.1", "v8.2", "v8.3", "v8.1-M.mainline", "v9",
)  # fmt: skip
_ARM_FP = ("none", "VFPv1", "VFPv2", "VFPv3", "VFPv3-D16", "VFPv4", "VFPv4-D16", "FP-ARMv8", "FP-ARMv8-D16")
_ARM_ATTRIBUTES = (
    # tag, name, meaning of each value
    (6, "CPU architecture", _ARM_ARCHITECTURES),
    (9, "Thumb", ("none", "Thumb", "Thumb-2", "yes")),
    (10, "FP architecture", _ARM_FP),
    (12, "SIMD architecture", ("none", "NEON", "NEONv2", "NEON-ARMv8", "NEON-ARMv8.1")),
    (28, "float ABI", ("soft", "hard", "toolchain", "either")),
)


def _read_arm_flags(elf: ElfFile) -> Iterator[Evidence]:
    flags = elf.header.e_flags
    if flags >> 24:
        yield Evidence(_FLAGS, "EABI", str(flags >> 24))
    if flags >> 24 == 5 and flags & 0x600:  # the flags mean something else before EABI 5
        yield Evidence(_FLAGS, "float ABI", "hard" if flags & 0x400 else "soft")


def _read_arm_entry_point(elf: ElfFile) -> Iterator[Evidence]:
    """Look for Thumb-2 at the entry point: it proves ARMv7 (or v6T2), run-time detection or not.

    An odd entry point is Thumb code. Its 32-bit instructions are Thumb-2, except for BL and BLX
    (Arm Architecture Reference Manual, "Thumb instruction set encoding"). Only the first instructions
    are decoded, because data may follow them.
    """
    entry = elf.header.entry_point
    if not entry & 1:
        return
    instructions = elf.read_address(entry - 1, 8)
    halfwords = [
        int.from_bytes(instructions[offset : offset + 2], elf.header.byte_order)
        for offset in range(0, len(instructions), 2)
    ]
    index = 0
    while index + 1 < len(halfwords):
        first, second = halfwords[index] >> 11, halfwords[index + 1] >> 11
        if first < 0b11101:  # a 16-bit instruction
            index += 1
        elif first == 0b11110 and second in (0b11101, 0b11111):  # BLX and BL
            index += 2
        else:
            yield Evidence("entry point", "instructions", "Thumb-2")
            return


def _read_arm_attributes(elf: ElfFile) -> Iterator[Evidence]:
    attributes = _read_attributes_section(elf, b".ARM.attributes", "aeabi")
    if not attributes:
        return
    source = ".ARM.attributes"
    if name := attributes.get(5):
        yield Evidence(source, "CPU name", str(name))
    if profile := attributes.get(7):
        yield Evidence(source, "CPU profile", _format_profile(profile))
    for tag, name, values in _ARM_ATTRIBUTES:
        value = attributes.get(tag, 0)
        if isinstance(value, int) and (tag in attributes or tag == 28):  # Tag_ABI_VFP_args is 0 if absent
            yield Evidence(source, name, values[value] if value < len(values) else f"unknown ({value})")
    # Plain ARMv7 without NEON is the compiler's target: functions selected at run time use NEON or ARMv8.
    if attributes.get(12) or attributes.get(6) not in (None, 0, 1, 2, 3, 4, 5, 10):
        yield from _find_runtime_detection(elf)


def _find_runtime_detection(elf: ElfFile) -> Iterator[Evidence]:
    """Look for strings that suggest that the binary checks the CPU before it uses optional extensions."""
    ranges = [elf.find_section(name) for name in (b".dynstr", b".rodata")]
    whole_file = (0, elf.view.size)
    for offset, size in [section for section in ranges if section] or [whole_file]:
        end = offset + min(size, _MAX_STRING_SEARCH)
        for query in _CPU_FEATURE_QUERIES:
            if elf.view.find(query, offset, end) >= 0:
                yield Evidence("strings", RUNTIME_DETECTION, query.decode())
                return


def _format_profile(value: int | str) -> str:
    return chr(value) if isinstance(value, int) and 0x20 < value < 0x7F else str(value)  # ASCII


def _read_attributes_section(elf: ElfFile, name: bytes, vendor: str) -> dict[int, int | str]:
    section = elf.find_section(name)
    if section is None and vendor == "riscv" and (segment := elf.find_segment(PT_PROCESSOR)):
        section = segment.offset, segment.file_size
    if section is None:
        return {}
    data = elf.read(name.decode(), section[0], min(section[1], MAX_ATTRIBUTES_SIZE))
    return read_attributes(data, vendor, elf.header.byte_order) if len(data) == section[1] else {}


_X86_LEVELS = ("x86-64 baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4")
_NT_GNU_PROPERTY_TYPE_0, _X86_ISA_1_NEEDED, _X86_ISA_1_USED = 5, 0xC0008002, 0xC0010002


def _read_x86_notes(elf: ElfFile) -> Iterator[Evidence]:
    property_segment = elf.find_segment(PT_GNU_PROPERTY)
    segments = (
        [property_segment]
        if property_segment
        else [segment for segment in elf.segments if segment.p_type == PT_NOTE]
    )
    yield from dict.fromkeys(_iter_x86_properties(elf, segments))  # without duplicates, in order


def _iter_x86_properties(elf: ElfFile, segments: Iterable[Segment]) -> Iterator[Evidence]:
    alignment, remaining = elf.header.bits // 8, _MAX_NOTES_SIZE
    for segment in segments:
        data = elf.read("notes", segment.offset, min(segment.file_size, remaining))
        for note_type, owner, descriptor in _iter_notes(data, 4 if segment.alignment <= 4 else alignment):
            if (note_type, owner) == (_NT_GNU_PROPERTY_TYPE_0, b"GNU\0"):
                yield from _parse_x86_properties(descriptor, alignment)
        remaining -= segment.file_size
        if remaining < 0:
            elf.problems.append(f"more than {_MAX_NOTES_SIZE} bytes of notes: the rest was not read")
            return


def _parse_x86_properties(data: bytes, alignment: int) -> Iterator[Evidence]:
    offset = 0
    while offset + 8 <= len(data):
        property_type, size = struct.unpack_from("<II", data, offset)
        if property_type in (_X86_ISA_1_NEEDED, _X86_ISA_1_USED) and size == 4 and offset + 12 <= len(data):
            isa_bits = int.from_bytes(data[offset + 8 : offset + 12], "little")
            if isa_bits & 0xF:
                level = (isa_bits & 0xF).bit_length() - 1
                yield Evidence(
                    _X86, "needed" if property_type == _X86_ISA_1_NEEDED else "used", _X86_LEVELS[level]
                )
        offset += 8 + -(-size // alignment) * alignment


def _iter_notes(data: bytes, alignment: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield type, owner and descriptor of each note (System V gABI, chapter 5, "Note Section")."""
    offset = 0
    while offset + 12 <= len(data):
        name_size, descriptor_size, note_type = struct.unpack_from("<III", data, offset)
        descriptor_offset = offset + -(-(12 + name_size) // alignment) * alignment
        yield (
            note_type,
            data[offset + 12 : offset + 12 + name_size],
            data[descriptor_offset : descriptor_offset + descriptor_size],
        )
        offset = descriptor_offset + -(-descriptor_size // alignment) * alignment


_MIPS_LEVELS = (
    "mips1", "mips2", "mips3", "mips4", "mips5", "mips32", "mips64", "mips32r2", "mips64r2", "mips32r6",
    "mips64r6",
)  # fmt: skip
_MIPS_ABIS = {0x1000: "o32", 0x2000: "o64", 0x3000: "eabi32", 0x4000: "eabi64"}
_MIPS_FP = ("any", "double", "single", "soft", "old-64", "xx", "64", "64A")


def _read_mips_flags(elf: ElfFile) -> Iterator[Evidence]:
    flags = elf.header.e_flags
    level = flags >> 28
    name = _MIPS_LEVELS[level] if level < len(_MIPS_LEVELS) else f"unknown ({level})"
    yield Evidence(_FLAGS, "MIPS architecture", name)
    default_abi = "n64" if elf.header.bits == 64 else "o32"
    yield Evidence(_FLAGS, "MIPS ABI", "n32" if flags & 0x20 else _MIPS_ABIS.get(flags & 0xF000, default_abi))
    if flags & 0x400:
        yield Evidence(_FLAGS, "NaN", "2008")


def _read_mips_abiflags(elf: ElfFile) -> Iterator[Evidence]:
    """Read ``.MIPS.abiflags``, which linked files have as a segment (PT_MIPS_ABIFLAGS)."""
    segment = elf.find_segment(PT_PROCESSOR)
    if segment is None:
        return
    data = elf.read(".MIPS.abiflags", segment.offset, 24)
    if len(data) < 24 or data[0:2] != b"\0\0":  # Elf_Internal_ABIFlags_v0: 24 bytes, version 0
        return
    fp_abi, ases = data[7], int.from_bytes(data[12:16], elf.header.byte_order)
    if fp_abi:
        yield Evidence(
            ".MIPS.abiflags", "float ABI", _MIPS_FP[fp_abi] if fp_abi < len(_MIPS_FP) else str(fp_abi)
        )
    if ases & 0x200:
        yield Evidence(".MIPS.abiflags", "ASE", "MSA")
        yield from _find_runtime_detection(elf)


def _read_riscv_flags(elf: ElfFile) -> Iterator[Evidence]:
    flags = elf.header.e_flags
    yield Evidence(_FLAGS, "float ABI", ("soft", "single", "double", "quad")[flags >> 1 & 3])
    if flags & 1:
        yield Evidence(_FLAGS, "compressed", "yes")
    if flags & 8:
        yield Evidence(_FLAGS, "RVE", "yes")


_RISCV_BASELINE_EXTENSIONS = frozenset(Platform("linux", "riscv64").machine.isa_levels[0].extensions.split())


def _read_riscv_attributes(elf: ElfFile) -> Iterator[Evidence]:
    arch = _read_attributes_section(elf, b".riscv.attributes", "riscv").get(5)
    if not arch:
        return
    yield Evidence(".riscv.attributes", "arch", str(arch))
    if riscv_extensions(str(arch)) - _RISCV_BASELINE_EXTENSIONS:
        yield from _find_runtime_detection(elf)


def _read_ppc64_flags(elf: ElfFile) -> Iterator[Evidence]:
    if version := elf.header.e_flags & 3:
        yield Evidence(_FLAGS, "PPC64 ABI", f"v{version}")


def _read_loongarch_flags(elf: ElfFile) -> Iterator[Evidence]:
    flags = elf.header.e_flags
    abis = {1: "soft", 2: "single", 3: "double"}
    yield Evidence(_FLAGS, "float ABI", abis.get(flags & 7, f"unknown ({flags & 7})"))
    yield Evidence(_FLAGS, "object ABI", f"v{flags >> 6 & 3}")


_READERS_BY_MACHINE: dict[int, tuple[Callable[[ElfFile], Iterator[Evidence]], ...]] = {
    3: (_read_x86_notes,),
    8: (_read_mips_flags, _read_mips_abiflags),
    21: (_read_ppc64_flags,),
    40: (_read_arm_flags, _read_arm_entry_point, _read_arm_attributes),
    62: (_read_x86_notes,),
    243: (_read_riscv_flags, _read_riscv_attributes),
    258: (_read_loongarch_flags,),
}
