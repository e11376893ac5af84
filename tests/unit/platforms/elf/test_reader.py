from __future__ import annotations

import struct

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.model import Binary
from buildkit_tasks.platforms.elf.probe import build_probe_program
from buildkit_tasks.platforms.elf.reader import read_binary, read_elf_header
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from tests.support.elf import BASE, NEEDED, PT_INTERP, RPATH, RUNPATH, SONAME, STRSZ, STRTAB, Elf, go_info


def machine(name: str) -> Machine:
    return Platform.parse(name).machine


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)
def test_header_of_every_machine(machine: Machine) -> None:
    header = read_elf_header(build_probe_program(machine)[:64])
    assert header.machine is machine
    assert (header.bits, header.byte_order) == (machine.bits, machine.byte_order)
    assert (header.e_type, header.e_machine, header.e_flags) == (2, machine.e_machine, machine.e_flags)
    assert header.phnum == 1


def describe(program: bytes) -> str:
    return read_elf_header(program).describe()


def test_describe() -> None:
    amd64, s390x = (build_probe_program(machine(name)) for name in ("amd64", "s390x"))
    assert describe(amd64) == "ELF 64-bit little-endian, machine 62 (amd64)"
    assert describe(s390x) == "ELF 64-bit big-endian, machine 22 (s390x)"


def test_describe_unknown_machine() -> None:
    program = bytearray(build_probe_program(machine("amd64")))
    program[18] = 2
    assert describe(bytes(program)) == "ELF 64-bit little-endian, machine 2 (unknown)"


def test_x32_is_not_amd64() -> None:
    program = bytearray(build_probe_program(machine("386")))
    program[18] = 62
    assert read_elf_header(bytes(program)).machine is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (b"\x7fELF", "truncated"),
        (build_probe_program(MACHINES[0])[:40], "truncated"),
        (b"\x7fELF\x03\x01\x01".ljust(64, b"\0"), "class 3"),
        (b"\x7fELF\x02\x00\x01".ljust(64, b"\0"), "byte order 0"),
        (b"\x7fELF\x02\x01\x07".ljust(64, b"\0"), "version 7"),
    ],
)
def test_malformed_header(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        read_elf_header(data)


def read(elf: Elf) -> Binary:
    return read_binary(WholeFile(elf.build()))


@pytest.mark.parametrize("name", [machine.architecture for machine in MACHINES])
def test_dynamic_section_of_every_machine(name: str) -> None:
    dynamic = [
        (NEEDED, "libm.so.6"), (NEEDED, "libc.so.6"), (SONAME, "libme.so.1"),
        (RPATH, "/opt/a:/opt/b"), (RUNPATH, "$ORIGIN/../lib"),
    ]  # fmt: skip
    binary = read(Elf(machine=name, segments=[(PT_INTERP, b"/lib/ld.so\0")], dynamic=dynamic))
    assert binary.header.machine is machine(name)
    assert binary.interpreter == "/lib/ld.so"
    assert binary.is_dynamic
    assert binary.needed == ("libm.so.6", "libc.so.6")
    assert (binary.soname, binary.rpath) == ("libme.so.1", ("/opt/a", "/opt/b"))
    assert binary.runpath == ("$ORIGIN/../lib",)
    assert (binary.problems, binary.unread_parts) == ((), ())


def test_static_program() -> None:
    binary = read_binary(WholeFile(build_probe_program(machine("amd64"))))
    assert (binary.interpreter, binary.is_dynamic, binary.needed, binary.problems) == ("", False, (), ())


def test_static_pie() -> None:
    binary = read(Elf(dynamic=[]))
    assert (binary.is_dynamic, binary.needed, binary.problems) == (True, (), ())


def test_truncated_header() -> None:
    with pytest.raises(MalformedImage, match="truncated"):
        read_binary(WholeFile(Elf().build()[:60]))


def test_empty_segments_of_debug_file() -> None:
    assert read(Elf(segments=[(PT_INTERP, b"")])).problems == ()


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (b"/lib/ld.so", "without a terminating NUL"),
        (b"\0", "path of 1 bytes"),
        (b"/a".ljust(4097, b"\0"), "4097"),
        (b"\0\0", "empty"),
    ],
)
def test_malformed_interpreter(path: bytes, cause: str) -> None:
    binary = read(Elf(segments=[(PT_INTERP, path)], dynamic=[(NEEDED, "libc.so.6")]))
    assert binary.interpreter == ""
    assert cause in binary.exec_error
    assert binary.problems == ()
    assert binary.needed == ("libc.so.6",)


def test_name_beyond_string_table() -> None:
    binary = read(Elf(dynamic=[(NEEDED, "libc.so.6"), (NEEDED, 1 << 60)]))
    assert binary.needed == ("libc.so.6",)
    assert binary.problems == ("a name in the dynamic section is not terminated within 0 bytes",)


def test_name_beyond_stated_size() -> None:
    program = Elf(dynamic=[(NEEDED, "libc.so.6")]).build()
    size = struct.pack("<QQ", STRSZ, len("\0libc.so.6\0"))
    assert read_binary(WholeFile(program)).needed == ("libc.so.6",)
    assert read_binary(WholeFile(program.replace(size, struct.pack("<QQ", STRSZ, 5)))).needed == ()


def test_entries_after_the_end() -> None:
    assert read(Elf(dynamic=[(NEEDED, "libc.so.6"), (0, 0)])).needed == ()


def test_name_too_long() -> None:
    binary = read(Elf(dynamic=[(NEEDED, "x" * 5000)]))
    assert binary.needed == ()
    assert binary.problems == ("a name in the dynamic section is not terminated within 4096 bytes",)


def test_string_table_not_loaded() -> None:
    elf = Elf(dynamic=[(NEEDED, "libc.so.6")])
    program = bytearray(elf.build())
    at = program.index(struct.pack("<QQ", STRTAB, BASE + elf.offsets["strings"]))
    struct.pack_into("<Q", program, at + 8, (1 << 64) - 1)
    binary = read_binary(WholeFile(bytes(program)))
    assert (binary.is_dynamic, binary.needed) == (True, ())
    assert binary.problems == (
        "the dynamic section's strings are at 0xffffffffffffffff, which is not loaded",
    )


def test_too_many_names() -> None:
    binary = read(Elf(dynamic=[(NEEDED, "x"), *[(NEEDED, 1)] * 15_000]))
    assert len(binary.needed) == 2048
    assert binary.problems == ("15001 names in the dynamic section: only 2048 were read",)


def test_too_many_program_headers() -> None:
    program = bytearray(Elf(dynamic=[(NEEDED, "libc.so.6")]).build().ljust(1 << 17, b"\0"))
    struct.pack_into("<H", program, 56, 1171)
    binary = read_binary(WholeFile(bytes(program)))
    assert binary.problems == ("1171 program headers: the kernel does not load that many",)
    assert binary.needed == ("libc.so.6",)


@pytest.mark.parametrize(
    ("form", "at", "value", "problem"),
    [
        ("<H", 54, 32, "program headers of 32 bytes each"),
        ("<H", 58, 40, "section headers of 40 bytes each"),
        ("<H", 62, 9, "section names in section 9 of 3"),
        ("<Q", 32, 1 << 63, "program headers at byte 9223372036854775808: past the end"),
        ("<Q", 40, 1 << 63, "section headers at byte 9223372036854775808: past the end"),
        ("<H", 60, 900, "section headers at byte"),
    ],
)
def test_damaged_header_tables(form: str, at: int, value: int, problem: str) -> None:
    program = bytearray(Elf(sections={".text": b"x"}).build())
    struct.pack_into(form, program, at, value)
    problems = read_binary(WholeFile(bytes(program))).problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_partial_file_without_sections() -> None:
    whole = Elf(sections={".text": bytes(5000)}, dynamic=[(NEEDED, "libc.so.6")]).build()
    binary = read_binary(PartialFile(len(whole), [(0, whole[:4096])]))
    assert (binary.problems, binary.needed) == ((), ("libc.so.6",))
    start = read_elf_header(whole).shoff
    assert binary.unread_parts == (f"section headers at byte {start}: that part of the file was not kept",)


def test_partial_file_with_both_ends() -> None:
    info = go_info("go1.24.0", "build\tGOAMD64=v3\n")
    elf = Elf(sections={".filler": bytes(1 << 20), ".go.buildinfo": info}, dynamic=[(NEEDED, "libc.so.6")])
    whole = elf.build()
    ends = PartialFile(len(whole), [(0, whole[:4096]), (len(whole) - 8192, whole[-8192:])])
    assert read_binary(ends) == read_binary(WholeFile(whole))
    assert [item.name for item in read_binary(ends).evidence] == ["version", "GOAMD64"]


@pytest.mark.parametrize(
    ("name", "bits", "e_machine", "expected"),
    [
        ("s390x", 64, 9999, "unknown"),
        ("386", 32, 62, "x32, ILP32 on x86-64"),
        ("amd64", 64, 50, "ia64"),
        ("amd64", 64, 247, "BPF"),
        ("arm", 32, 183, "arm64 ILP32"),
    ],
)
def test_foreign_machine_name(name: str, bits: int, e_machine: int, expected: str) -> None:
    program = bytearray(build_probe_program(machine(name)))
    byte_order = machine(name).byte_order
    struct.pack_into("<H" if byte_order == "little" else ">H", program, 18, e_machine)
    header = read_elf_header(bytes(program))
    assert (header.bits, header.machine, header.machine_name) == (bits, None, expected)
    assert header.describe().endswith(f"machine {e_machine} ({expected})")
    assert header.is_device_code == (e_machine == 247)


def test_partial_dynamic_section() -> None:
    elf = Elf(dynamic=[(NEEDED, "libc.so.6"), (NEEDED, "libm.so.6")])
    whole = elf.build()
    at = elf.offsets[0]
    binary = read_binary(PartialFile(len(whole), [(0, whole[: at + 24])]))
    assert (binary.is_dynamic, binary.needed, binary.problems) == (True, (), ())
    assert binary.unread_parts == (f"the dynamic section at byte {at}: that part of the file was not kept",)


def test_partial_interpreter() -> None:
    elf = Elf(segments=[(PT_INTERP, b"/lib/ld.so\0")])
    whole = elf.build()
    at = elf.offsets[0]
    binary = read_binary(PartialFile(len(whole), [(0, whole[: at + 4])]))
    assert (binary.interpreter, binary.problems) == ("", ())
    assert binary.unread_parts == (
        f"the interpreter's path at byte {at}: that part of the file was not kept",
    )


def test_partial_string_table() -> None:
    elf = Elf(dynamic=[(NEEDED, "libc.so.6")])
    whole = elf.build()
    at = elf.offsets["strings"]
    ends = [(0, whole[: at + 5]), (elf.offsets[0], whole[elf.offsets[0] :])]
    binary = read_binary(PartialFile(len(whole), ends))
    assert (binary.is_dynamic, binary.needed, binary.problems) == (True, (), ())
    assert binary.unread_parts == (
        f"strings of the dynamic section at byte {at + 1}: that part of the file was not kept",
    )


def test_no_program_headers() -> None:
    program = bytearray(Elf(dynamic=[(NEEDED, "libc.so.6")]).build())
    struct.pack_into("<H", program, 56, 0)
    binary = read_binary(WholeFile(bytes(program)))
    assert (binary.is_dynamic, binary.needed, binary.problems) == (False, (), ())


def make_go_program(count: int) -> bytes:
    """Return a file with three sections that states ``count`` in the first header, for 65,280 and more."""
    info = go_info("go1.24.0", "build\tGOAMD64=v3\n")
    program = bytearray(Elf(sections={".go.buildinfo": info}).build())
    struct.pack_into("<HH", program, 60, 0, 0xFFFF)
    headers = read_elf_header(bytes(program)).shoff
    struct.pack_into("<QI", program, headers + 32, count, 2)
    return bytes(program)


def test_section_count_in_first_section() -> None:
    binary = read_binary(WholeFile(make_go_program(3)))
    assert [item.name for item in binary.evidence] == ["version", "GOAMD64"]
    assert binary.problems == ()


def test_too_many_sections() -> None:
    problems = read_binary(WholeFile(make_go_program(70_000))).problems
    assert problems[0] == "70000 sections: only 65536 of them were read"


def test_section_name_without_section() -> None:
    program = bytearray(make_go_program(3))
    struct.pack_into("<I", program, read_elf_header(bytes(program)).shoff + 64, 0)
    assert read_binary(WholeFile(bytes(program))).evidence == ()
