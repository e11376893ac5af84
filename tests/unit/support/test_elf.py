"""The ELF files that tests build are read correctly by pyelftools too."""

from __future__ import annotations

import io
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from buildkit_tasks.platforms import MACHINES, Machine
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import WholeFile
from tests.support.elf import ISA_NEEDED, Elf, elf


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.architecture)
def test_two_readers_agree(machine: Machine) -> None:
    platform = f"linux/{machine.architecture}"
    data = elf(
        platform, interpreter="/lib/ld.so", needed=["liba.so", "libb.so"], soname="libc.so", runpath="/x:/y"
    )
    binary = read_binary(WholeFile(data))
    assert binary.problems == ()
    assert binary.header.machine is machine
    assert (binary.interpreter, binary.needed) == ("/lib/ld.so", ("liba.so", "libb.so"))
    assert (binary.soname, binary.rpath, binary.runpath) == ("libc.so", (), ("/x", "/y"))
    oracle: Any = ELFFile(io.BytesIO(data))
    tags = [
        (tag.entry.d_tag, getattr(tag, tag.entry.d_tag[3:].lower(), ""))
        for segment in oracle.iter_segments("PT_DYNAMIC")
        for tag in segment.iter_tags()
    ]
    assert ("DT_NEEDED", "libb.so") in tags
    assert ("DT_RUNPATH", "/x:/y") in tags
    assert [each.get_interp_name() for each in oracle.iter_segments("PT_INTERP")] == ["/lib/ld.so"]


def test_sections_match_pyelftools() -> None:
    oracle: Any = ELFFile(io.BytesIO(Elf(sections={".text": b"code", ".data": b"x"}).build()))
    sections = [(section.name, section.data()) for section in oracle.iter_sections()]
    assert sections[:3] == [("", b""), (".text", b"code"), (".data", b"x")]


def test_plain_file_is_static() -> None:
    binary = read_binary(WholeFile(elf("linux/amd64")))
    assert (binary.is_dynamic, binary.interpreter, binary.evidence) == (False, "", ())


def test_x86_isa_note() -> None:
    binary = read_binary(WholeFile(elf("linux/amd64", isa=[(ISA_NEEDED, 0b111)])))
    assert [str(item) for item in binary.evidence] == ["x86 ISA note: needed x86-64-v3"]
