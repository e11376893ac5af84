from __future__ import annotations

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms.elf.go_buildinfo import (
    GO_MAGIC,
    GoBuildInfo,
    find_go_build_info,
    read_go_build_info,
)
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from tests.support.binaries import BASE, Elf, go_info

MODULES = (
    "path\texample.org/hello\nmod\texample.org/hello\t(devel)\t\ndep\texample.org/x\tv1.2.3\th1:abc=\n"
    'build\t-compiler=gc\nbuild\t-ldflags="-X a=b"\nbuild\tGOARCH=arm\nbuild\tGOARM=6,softfloat\n'
)


def read(data: bytes, at: int = 0) -> GoBuildInfo | None:
    view = WholeFile(data)
    return read_go_build_info(at, view.read_at, lambda address, size: view.read_at(address - BASE, size))


def test_the_inline_form_since_go_1_18_is_read() -> None:
    build = read(go_info("go1.26.8", MODULES))
    assert build is not None
    assert (build.version, build.path) == ("go1.26.8", "example.org/hello")
    assert build.settings["GOARM"] == "6,softfloat"
    assert build.settings["-ldflags"] == "-X a=b"


def pointers(size: int, order: str, version: bytes, modules: bytes) -> bytes:
    """The form before Go 1.18: two addresses of string headers."""
    end = "big" if order == "big" else "little"
    body = bytearray(64 + 4 * size)
    at = [64, 64 + 2 * size]
    text = [len(body), len(body) + len(version)]
    body += version + modules
    body[:16] = GO_MAGIC + bytes([size, 1 if order == "big" else 0])

    def put(place: int, value: int) -> None:
        body[place : place + size] = value.to_bytes(size, "big" if end == "big" else "little")

    for number, data in enumerate((version, modules)):
        put(16 + number * size, BASE + at[number])
        put(at[number], BASE + text[number])
        put(at[number] + size, len(data))
    return bytes(body)


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("order", ["little", "big"])
def test_the_pointer_form_before_go_1_18_is_read(size: int, order: str) -> None:
    build = read(pointers(size, order, b"go1.17.13", b"0" * 16 + b"path\tx\n" + b"1" * 16))
    assert build == GoBuildInfo(version="go1.17.13", path="x")


def test_a_program_without_modules_has_a_version_only() -> None:
    assert read(pointers(8, "little", b"go1.13", b"")) == GoBuildInfo(version="go1.13")
    assert read(go_info("go1.20", "")) == GoBuildInfo(version="go1.20")


def test_without_the_magic_there_is_nothing() -> None:
    assert read(b"no build info".ljust(64)) is None
    assert read(GO_MAGIC) is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (go_info("go1.26", MODULES)[:-5], "cut off"),
        (go_info("go1.26", "")[:32] + b"\xff" * 10, "no end"),
        (go_info("go1.26", "")[:32] + b"\xff" * 8 + b"\x01", "string of"),
        (go_info("g" * 300, ""), "string of 300 bytes"),
        (go_info("go1.26", "")[:32], "no end"),
        (GO_MAGIC + b"\3\0" + pointers(8, "little", b"", b"")[16:], "of 3 bytes"),
        (pointers(8, "little", b"go1.17", b"x")[:90], "cut off"),
    ],
)  # fmt: skip
def test_row_45_build_info_that_leads_nowhere_is_malformed(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        read(data)


def test_the_section_is_found_by_its_name() -> None:
    binary = read_binary(WholeFile(Elf(sections={".go.buildinfo": go_info("go1.26.8", MODULES)}).build()))
    said = {item.name: item.value for item in binary.evidence}
    assert said == {
        "version": "go1.26.8", "path": "example.org/hello", "GOARCH": "arm", "GOARM": "6,softfloat",
    }  # fmt: skip
    assert {item.source for item in binary.evidence} == {"Go build info"}


def test_without_sections_the_writable_segment_is_searched() -> None:
    info = go_info("go1.26.8", MODULES)
    packed = Elf(segments=[(0x60000000, info)], load_flags=6)
    assert [item.value for item in read_binary(WholeFile(packed.build())).evidence][:1] == ["go1.26.8"]
    read_only = Elf(segments=[(0x60000000, info)], load_flags=4)
    assert read_binary(WholeFile(read_only.build())).evidence == ()


def test_a_file_with_sections_is_not_searched() -> None:
    info = go_info("go1.26.8", MODULES)
    assert read_binary(WholeFile(Elf(sections={".data": info}, load_flags=6).build())).evidence == ()


def test_the_header_is_aligned() -> None:
    data = b"x" * 8 + go_info("go1.1", "") + b"x" * 6
    assert find_go_build_info(WholeFile(data), 0, len(data)) == -1
    assert (
        find_go_build_info(WholeFile(data + bytes(-len(data) % 16) + GO_MAGIC), 0, 1 << 20)
        == len(data) + -len(data) % 16
    )


def test_build_info_of_a_large_file_that_was_not_kept_is_unread() -> None:
    elf = Elf(sections={".go.buildinfo": go_info("go1.26.8", MODULES), ".text": bytes(1 << 12)})
    whole = elf.build()
    at = elf.places[".go.buildinfo"]
    tail = (len(whole) - 2048, whole[-2048:])
    for kept in (at, at + 80):
        binary = read_binary(PartialFile(len(whole), [(0, whole[:kept]), tail]))
        assert binary.problems == ()
        assert binary.unread_parts == (f"Go build info at byte {at}: that part of the file was not kept",)


def test_row_45_damaged_build_info_is_a_problem_of_the_binary() -> None:
    damaged = go_info("go1.26.8", MODULES)[:32] + b"\xff" * 12
    assert read_binary(WholeFile(Elf(sections={".go.buildinfo": damaged}).build())).problems == (
        "Go build info with a length that has no end",
    )


def test_a_module_text_that_lies_in_zeroed_memory_is_empty() -> None:
    # Go 1.15's programs that were built without modules point into .bss.
    elf = Elf(sections={".go.buildinfo": bytes(64)})
    end = BASE + len(elf.build()) + 32
    version = b"go1.15.9"
    info = bytearray(GO_MAGIC + bytes([8, 0])).ljust(48, b"\0") + version
    at = BASE + elf.places[".go.buildinfo"]
    info[16:32] = (at + 32).to_bytes(8, "little") + end.to_bytes(8, "little")
    info[32:48] = (at + 48).to_bytes(8, "little") + len(version).to_bytes(8, "little")
    program = bytearray(Elf(sections={".go.buildinfo": bytes(info).ljust(64, b"\0")}).build())
    assert read_binary(WholeFile(bytes(program))).problems
    program[64 + 40 : 64 + 48] = (1 << 20).to_bytes(8, "little")  # p_memsz of the segment that is loaded
    binary = read_binary(WholeFile(bytes(program)))
    assert ([item.value for item in binary.evidence], binary.problems) == (["go1.15.9"], ())
