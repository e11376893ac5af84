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
from buildkit_tasks.platforms.elf.view import ByteOrder, PartialFile, WholeFile
from tests.support.elf import BASE, PT_OTHER, Elf, go_info

MODULES = (
    "path\texample.org/hello\nmod\texample.org/hello\t(devel)\t\ndep\texample.org/x\tv1.2.3\th1:abc=\n"
    'build\t-compiler=gc\nbuild\t-ldflags="-X a=b"\nbuild\tGOARCH=arm\nbuild\tGOARM=6,softfloat\n'
)


def read(data: bytes) -> GoBuildInfo | None:
    view = WholeFile(data)
    return read_go_build_info(0, view.read_at, lambda address, size: view.read_at(address - BASE, size))


def test_inline_strings() -> None:
    build = read(go_info("go1.26.8", MODULES))
    assert build is not None
    assert (build.version, build.path) == ("go1.26.8", "example.org/hello")
    assert build.settings["GOARM"] == "6,softfloat"
    assert build.settings["-ldflags"] == "-X a=b"


def pointers(size: int, order: ByteOrder, version: bytes, modules: bytes) -> bytes:
    """Return build information in the format before Go 1.18: two addresses of string headers."""
    headers = 32
    strings = headers + 4 * size
    values = (
        BASE + headers, BASE + headers + 2 * size,
        BASE + strings, len(version), BASE + strings + len(version), len(modules),
    )  # fmt: skip
    pointers, string_headers = values[:2], values[2:]

    def pack(values: tuple[int, ...]) -> bytes:
        return b"".join(value.to_bytes(size, order) for value in values)

    header = GO_MAGIC + bytes([size, 1 if order == "big" else 0]) + pack(pointers)
    return header.ljust(headers, b"\0") + pack(string_headers) + version + modules


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("order", ["little", "big"])
def test_pointers_to_strings(size: int, order: ByteOrder) -> None:
    build = read(pointers(size, order, b"go1.17.13", b"0" * 16 + b"path\tx\n" + b"1" * 16))
    assert build == GoBuildInfo(version="go1.17.13", path="x")


def test_without_modules() -> None:
    assert read(pointers(8, "little", b"go1.13", b"")) == GoBuildInfo(version="go1.13")
    assert read(go_info("go1.20", "")) == GoBuildInfo(version="go1.20")


def test_without_magic() -> None:
    assert read(b"no build info".ljust(64)) is None
    assert read(GO_MAGIC) is None


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (go_info("go1.26", MODULES)[:-5], "truncated"),
        (go_info("go1.26", "")[:32] + b"\xff" * 10, "unterminated length"),
        (go_info("go1.26", "")[:32] + b"\xff" * 8 + b"\x01", "string of"),
        (go_info("g" * 300, ""), "string of 300 bytes"),
        (go_info("go1.26", "")[:32], "unterminated length"),
        (GO_MAGIC + b"\3\0" + pointers(8, "little", b"", b"")[16:], "of 3 bytes"),
        (pointers(8, "little", b"go1.17", b"x")[:60], "truncated"),
    ],
)
def test_malformed_build_info(data: bytes, cause: str) -> None:
    with pytest.raises(MalformedImage, match=cause):
        read(data)


def test_found_by_section() -> None:
    binary = read_binary(WholeFile(Elf(sections={".go.buildinfo": go_info("go1.26.8", MODULES)}).build()))
    assert {item.name: item.value for item in binary.evidence} == {
        "version": "go1.26.8", "path": "example.org/hello", "GOARCH": "arm", "GOARM": "6,softfloat",
    }  # fmt: skip
    assert {item.source for item in binary.evidence} == {"Go build info"}


def test_found_in_writable_segment() -> None:
    info = go_info("go1.26.8", MODULES)
    writable = Elf(segments=[(PT_OTHER, info)], load_flags=6)
    assert [item.value for item in read_binary(WholeFile(writable.build())).evidence][:1] == ["go1.26.8"]
    read_only = Elf(segments=[(PT_OTHER, info)], load_flags=4)
    assert read_binary(WholeFile(read_only.build())).evidence == ()


def test_segment_not_searched_with_sections() -> None:
    info = go_info("go1.26.8", MODULES)
    assert read_binary(WholeFile(Elf(sections={".data": info}, load_flags=6).build())).evidence == ()


def test_header_alignment() -> None:
    data = b"x" * 8 + go_info("go1.1", "") + b"x" * 6
    assert find_go_build_info(WholeFile(data), 0, len(data)) == -1
    aligned = data + bytes(-len(data) % 16)
    assert find_go_build_info(WholeFile(aligned + GO_MAGIC), 0, 1 << 20) == len(aligned)


def test_build_info_not_kept() -> None:
    elf = Elf(sections={".go.buildinfo": go_info("go1.26.8", MODULES), ".text": bytes(1 << 12)})
    whole = elf.build()
    at = elf.offsets[".go.buildinfo"]
    tail = (len(whole) - 2048, whole[-2048:])
    for kept in (at, at + 80):
        binary = read_binary(PartialFile(len(whole), [(0, whole[:kept]), tail]))
        assert binary.problems == ()
        assert binary.unread_parts == (f"Go build info at byte {at}: that part of the file was not kept",)


def test_damaged_build_info_is_problem() -> None:
    damaged = go_info("go1.26.8", MODULES)[:32] + b"\xff" * 12
    assert read_binary(WholeFile(Elf(sections={".go.buildinfo": damaged}).build())).problems == (
        "Go build info: unterminated length",
    )


def test_modules_in_bss() -> None:
    # In programs of Go 1.15 that were built without modules, the pointer is into .bss.
    elf = Elf(sections={".go.buildinfo": bytes(64)})
    end = BASE + len(elf.build()) + 32
    version = b"go1.15.9"
    info = bytearray(GO_MAGIC + bytes([8, 0])).ljust(48, b"\0") + version
    at = BASE + elf.offsets[".go.buildinfo"]
    info[16:32] = (at + 32).to_bytes(8, "little") + end.to_bytes(8, "little")
    info[32:48] = (at + 48).to_bytes(8, "little") + len(version).to_bytes(8, "little")
    program = bytearray(Elf(sections={".go.buildinfo": bytes(info).ljust(64, b"\0")}).build())
    assert read_binary(WholeFile(bytes(program))).problems
    program[64 + 40 : 64 + 48] = (1 << 20).to_bytes(8, "little")  # p_memsz of PT_LOAD
    binary = read_binary(WholeFile(bytes(program)))
    assert ([item.value for item in binary.evidence], binary.problems) == (["go1.15.9"], ())
