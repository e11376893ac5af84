"""The tests' own ELF files are read as they were meant, by another reader as well."""

from __future__ import annotations

import io
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from buildkit_tasks.platforms import MACHINES, Machine
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import WholeFile
from tests.support.elf import ISA_NEEDED, elf


@pytest.mark.parametrize("row", MACHINES, ids=lambda row: row.architecture)
def test_what_was_asked_for_is_read_by_two_readers(row: Machine) -> None:
    platform = f"linux/{row.architecture}"
    data = elf(
        platform, interpreter="/lib/ld.so", needed=["liba.so", "libb.so"], soname="libc.so", runpath="/x:/y"
    )
    found = read_binary(WholeFile(data))
    assert found.problems == ()
    assert found.header.machine is row
    assert (found.interpreter, found.needed, found.soname) == (
        "/lib/ld.so",
        ("liba.so", "libb.so"),
        "libc.so",
    )
    assert (found.rpath, found.runpath) == ((), ("/x", "/y"))
    theirs: Any = ELFFile(io.BytesIO(data))
    tags = [
        (tag.entry.d_tag, getattr(tag, tag.entry.d_tag[3:].lower(), ""))
        for segment in theirs.iter_segments("PT_DYNAMIC")
        for tag in segment.iter_tags()
    ]
    assert ("DT_NEEDED", "libb.so") in tags
    assert ("DT_RUNPATH", "/x:/y") in tags
    assert [each.get_interp_name() for each in theirs.iter_segments("PT_INTERP")] == ["/lib/ld.so"]


def test_a_file_of_which_nothing_is_asked_is_static() -> None:
    found = read_binary(WholeFile(elf("linux/amd64")))
    assert (found.is_dynamic, found.interpreter, found.evidence) == (False, "", ())


def test_a_note_tells_the_level_of_x86() -> None:
    found = read_binary(WholeFile(elf("linux/amd64", isa=[(ISA_NEEDED, 0b111)])))
    assert [(item.source, item.name, item.value) for item in found.evidence] == [
        ("x86 ISA note", "needed", "x86-64-v3")
    ]
