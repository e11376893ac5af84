from __future__ import annotations

import io
import struct

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.model import Binary
from buildkit_tasks.platforms.elf.probe import build_probe_program
from buildkit_tasks.platforms.elf.reader import read_binary, read_elf_header, read_interpreter
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from tests.support.binaries import BASE, NEEDED, PT_INTERP, RPATH, RUNPATH, SONAME, Elf, go_info


def machine(name: str) -> Machine:
    return Platform.parse(name).machine


def with_interpreter(row: Machine, path: bytes, size: int | None = None) -> bytes:
    """A probe whose one segment is made a PT_INTERP that points past the code."""
    program = bytearray(build_probe_program(row))
    header = read_elf_header(bytes(program))
    order = "<" if row.byte_order == "little" else ">"
    span = (len(program), len(path) if size is None else size)
    if row.bits == 64:
        struct.pack_into(f"{order}IIQQQQ", program, header.phoff, 3, 4, span[0], 0, 0, span[1])
    else:
        struct.pack_into(f"{order}IIIII", program, header.phoff, 3, span[0], 0, 0, span[1])
    return bytes(program) + path


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.architecture)
def test_every_architectures_program_is_told_by_its_header(row: Machine) -> None:
    header = read_elf_header(build_probe_program(row)[:64])
    assert header.machine is row
    assert (header.bits, header.byte_order, header.e_machine) == (row.bits, row.byte_order, row.e_machine)
    assert (header.e_type, header.e_flags, header.phnum) == (2, row.e_flags, 1)


def test_a_header_says_in_words_what_it_is() -> None:
    assert (
        read_elf_header(build_probe_program(machine("amd64"))).describe()
        == "ELF 64-bit little-endian, machine 62 (amd64)"
    )
    assert (
        read_elf_header(build_probe_program(machine("s390x"))).describe()
        == "ELF 64-bit big-endian, machine 22 (s390x)"
    )


def test_a_machine_that_no_row_has_is_unknown() -> None:
    program = bytearray(build_probe_program(machine("amd64")))
    program[18] = 2
    assert read_elf_header(bytes(program)).describe() == "ELF 64-bit little-endian, machine 2 (unknown)"


def test_an_x32_program_is_not_amd64() -> None:
    program = bytearray(build_probe_program(machine("386")))
    program[18] = 62
    assert read_elf_header(bytes(program)).machine is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "no ELF file"),
        (b"#!/bin/sh\n", "no ELF file"),
        (b"\x7fELF", "truncated"),
        (build_probe_program(MACHINES[0])[:40], "truncated"),
        (b"\x7fELF\x03\x01\x01".ljust(64, b"\0"), "class 3"),
        (b"\x7fELF\x02\x00\x01".ljust(64, b"\0"), "byte order 0"),
        (b"\x7fELF\x02\x01\x07".ljust(64, b"\0"), "version 7"),
    ],
)
def test_row_45_nonsense_is_refused_with_its_cause(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        read_elf_header(data)


@pytest.mark.parametrize("name", ["amd64", "arm", "s390x"])
def test_a_dynamic_program_names_its_loader_and_a_static_one_none(name: str) -> None:
    program = with_interpreter(machine(name), b"/lib/ld.so.1\0")
    assert read_interpreter(program) == "/lib/ld.so.1"
    assert read_interpreter(io.BytesIO(program)) == "/lib/ld.so.1"
    assert read_interpreter(build_probe_program(machine(name))) is None


@pytest.mark.parametrize(
    ("path", "size"), [(b"/lib/ld.so", None), (b"\0", None), (b"/a\0", 4097), (b"/a\0", 100), (b"", 1 << 60)]
)
def test_row_45_a_loader_path_without_end_or_bounds_is_refused(path: bytes, size: int | None) -> None:
    with pytest.raises(MalformedImage, match="interpreter path"):
        read_interpreter(with_interpreter(machine("amd64"), path, size))


def test_row_45_huge_counts_and_offsets_end_at_once() -> None:
    program = bytearray(build_probe_program(machine("amd64")))
    struct.pack_into("<H", program, 56, 0xFFFF)
    with pytest.raises(MalformedImage, match="truncated"):
        read_interpreter(bytes(program))
    struct.pack_into("<Q", program, 32, (1 << 64) - 1)
    with pytest.raises(MalformedImage, match="offset"):
        read_interpreter(bytes(program))


def test_row_45_program_headers_of_another_size_are_refused() -> None:
    program = bytearray(build_probe_program(machine("amd64")))
    struct.pack_into("<H", program, 54, 1)
    with pytest.raises(MalformedImage, match="1 bytes each"):
        read_interpreter(bytes(program))


def seen(elf: Elf) -> Binary:
    return read_binary(WholeFile(elf.build()))


TEN_MACHINES = [row.architecture for row in MACHINES]


@pytest.mark.parametrize("name", TEN_MACHINES)
def test_what_a_dynamic_file_needs_is_read_in_every_class_and_byte_order(name: str) -> None:
    dynamic = [
        (NEEDED, "libm.so.6"), (NEEDED, "libc.so.6"), (SONAME, "libme.so.1"),
        (RPATH, "/opt/a:/opt/b"), (RUNPATH, "$ORIGIN/../lib"),
    ]  # fmt: skip
    binary = seen(Elf(machine=name, segments=[(PT_INTERP, b"/lib/ld.so\0")], dynamic=dynamic))
    assert binary.header.machine is machine(name)
    assert binary.interpreter == "/lib/ld.so"
    assert binary.is_dynamic
    assert binary.needed == ("libm.so.6", "libc.so.6")
    assert (binary.soname, binary.rpath) == ("libme.so.1", ("/opt/a", "/opt/b"))
    assert binary.runpath == ("$ORIGIN/../lib",)
    assert (binary.problems, binary.unread_parts) == ((), ())


def test_a_static_program_needs_nothing() -> None:
    binary = read_binary(WholeFile(build_probe_program(machine("amd64"))))
    assert (binary.interpreter, binary.is_dynamic, binary.needed, binary.problems) == ("", False, (), ())


def test_a_static_pie_is_dynamic_and_needs_nothing() -> None:
    binary = seen(Elf(dynamic=[]))
    assert (binary.is_dynamic, binary.needed, binary.problems) == (True, (), ())


def test_only_a_malformed_header_is_refused() -> None:
    with pytest.raises(MalformedImage, match="truncated"):
        read_binary(WholeFile(Elf().build()[:60]))


def test_emptied_segments_of_a_debugging_file_are_no_damage() -> None:
    assert seen(Elf(segments=[(PT_INTERP, b"")])).problems == ()


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        (b"/lib/ld.so", "without its end"),
        (b"\0", "path of 1 bytes"),
        (b"/a".ljust(4097, b"\0"), "4097"),
        (b"\0\0", "empty"),
    ],
)
def test_row_45_a_kernel_refuses_a_damaged_loader_path_and_it_is_no_path(path: bytes, cause: str) -> None:
    binary = seen(Elf(segments=[(PT_INTERP, path)], dynamic=[(NEEDED, "libc.so.6")]))
    assert binary.interpreter == ""
    assert cause in binary.exec_error
    assert binary.problems == ()
    assert binary.needed == ("libc.so.6",)


def test_row_45_a_name_beyond_the_string_table_is_a_problem() -> None:
    binary = seen(Elf(dynamic=[(NEEDED, "libc.so.6"), (NEEDED, 1 << 60)]))
    assert binary.needed == ("libc.so.6",)
    assert binary.problems == ("a name in the dynamic section has no end within 0 bytes",)


def test_row_45_a_name_longer_than_a_path_may_be_is_a_problem() -> None:
    binary = seen(Elf(dynamic=[(NEEDED, "x" * 5000)]))
    assert binary.needed == ()
    assert binary.problems == ("a name in the dynamic section has no end within 4096 bytes",)


def test_row_45_a_string_table_that_is_not_loaded_is_a_problem() -> None:
    elf = Elf(dynamic=[(NEEDED, "libc.so.6")])
    program = bytearray(elf.build())
    at = program.index(struct.pack("<QQ", 5, BASE + elf.places["strings"]))
    struct.pack_into("<Q", program, at + 8, (1 << 64) - 1)
    binary = read_binary(WholeFile(bytes(program)))
    assert (binary.is_dynamic, binary.needed) == (True, ())
    assert binary.problems == (
        "the dynamic section's strings are at 0xffffffffffffffff, which is not loaded",
    )


def test_row_45_a_hundred_thousand_names_are_read_up_to_the_cap() -> None:
    binary = seen(Elf(dynamic=[(NEEDED, "x"), *[(NEEDED, 1)] * 15_000]))
    assert len(binary.needed) == 2048
    assert binary.problems == ("15001 names in the dynamic section: only 2048 were read",)


def test_row_45_more_program_headers_than_any_kernel_loads_are_not_read() -> None:
    program = bytearray(Elf(dynamic=[(NEEDED, "libc.so.6")]).build().ljust(1 << 17, b"\0"))
    struct.pack_into("<H", program, 56, 1171)
    binary = read_binary(WholeFile(bytes(program)))
    assert binary.problems == ("1171 program headers: no kernel loads that many",)
    assert binary.needed == ("libc.so.6",)


@pytest.mark.parametrize(
    ("form", "at", "value", "problem"),
    [
        ("<H", 54, 32, "program headers of 32 bytes each"),
        ("<H", 58, 40, "section headers of 40 bytes each"),
        ("<H", 62, 9, "section names in section 9 of 3"),
        ("<Q", 32, 1 << 63, "program headers at byte 9223372036854775808 goes past"),
        ("<Q", 40, 1 << 63, "section headers at byte 9223372036854775808 goes past"),
        ("<H", 60, 900, "section headers at byte"),
    ],
)
def test_row_45_tables_that_lead_nowhere_are_problems(form: str, at: int, value: int, problem: str) -> None:
    program = bytearray(Elf(sections={".text": b"x"}).build())
    struct.pack_into(form, program, at, value)
    problems = read_binary(WholeFile(bytes(program))).problems
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_what_was_not_kept_of_a_large_file_is_no_problem_of_the_file() -> None:
    whole = Elf(sections={".text": bytes(5000)}, dynamic=[(NEEDED, "libc.so.6")]).build()
    binary = read_binary(PartialFile(len(whole), [(0, whole[:4096])]))
    assert (binary.problems, binary.needed) == ((), ("libc.so.6",))
    start = read_elf_header(whole).shoff
    assert binary.unread_parts == (f"section headers at byte {start}: that part of the file was not kept",)


def test_two_kept_ends_are_enough_for_a_large_file() -> None:
    info = go_info("go1.24.0", "build\tGOAMD64=v3\n")
    elf = Elf(sections={".filler": bytes(1 << 20), ".go.buildinfo": info}, dynamic=[(NEEDED, "libc.so.6")])
    whole = elf.build()
    ends = PartialFile(len(whole), [(0, whole[:4096]), (len(whole) - 8192, whole[-8192:])])
    assert read_binary(ends) == read_binary(WholeFile(whole))
    assert [item.name for item in read_binary(ends).evidence] == ["version", "GOAMD64"]


@pytest.mark.parametrize(
    ("name", "bits", "number", "said"),
    [
        ("s390x", 64, 43, "sparc64"),
        ("s390x", 64, 21, "ppc64, big-endian"),
        ("386", 32, 62, "x32, ILP32 on x86-64"),
        ("386", 32, 8, "mipsle"),
        ("amd64", 64, 50, "ia64"),
        ("amd64", 64, 247, "BPF"),
        ("arm", 32, 183, "arm64 ILP32"),
    ],
)
def test_a_foreign_machine_is_called_by_its_name(name: str, bits: int, number: int, said: str) -> None:
    row = machine(name)
    program = bytearray(build_probe_program(row))
    struct.pack_into("<H" if row.byte_order == "little" else ">H", program, 18, number)
    header = read_elf_header(bytes(program))
    assert (header.bits, header.machine, header.machine_name) == (bits, None, said)
    assert header.describe().endswith(f"machine {number} ({said})")
    assert header.is_device_code == (number == 247)


def test_a_dynamic_section_that_was_kept_in_part_is_no_problem_of_the_file() -> None:
    elf = Elf(dynamic=[(NEEDED, "libc.so.6"), (NEEDED, "libm.so.6")])
    whole = elf.build()
    at = elf.places[0]
    binary = read_binary(PartialFile(len(whole), [(0, whole[: at + 24])]))
    assert (binary.is_dynamic, binary.needed, binary.problems) == (True, (), ())
    assert binary.unread_parts == (f"the dynamic section at byte {at}: that part of the file was not kept",)


def test_a_loader_path_that_was_kept_in_part_is_no_path() -> None:
    elf = Elf(segments=[(PT_INTERP, b"/lib/ld.so\0")])
    whole = elf.build()
    at = elf.places[0]
    binary = read_binary(PartialFile(len(whole), [(0, whole[: at + 4])]))
    assert (binary.interpreter, binary.problems) == ("", ())
    assert binary.unread_parts == (
        f"the interpreter's path at byte {at}: that part of the file was not kept",
    )
