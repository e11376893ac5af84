from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Platform
from buildkit_tasks.platforms.elf.build_attributes import read_attributes
from buildkit_tasks.platforms.elf.isa_check import (
    arm_float_abi,
    isa_problems,
    isa_warnings,
    missing_isa_info_reason,
)
from buildkit_tasks.platforms.elf.model import Evidence, riscv_extensions
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import ByteOrder, WholeFile
from tests.support.binaries import PT_NOTE, Elf, attributes, x86_note

PT_PROCESSOR = 0x70000003
PLATFORMS = [Platform("linux", row.architecture, level.name) for row in MACHINES for level in row.isa_levels]
PLATFORMS += [Platform("linux", "s390x"), Platform("linux", "arm64", "odd"), Platform("plan9", "z80")]

orders: st.SearchStrategy[ByteOrder] = st.sampled_from(("little", "big"))
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
# Tags with a meaning of their own are left out: these follow the rule of parity.
numbers = st.tuples(st.integers(33, 500).map(lambda tag: tag * 2), st.integers(0, 1 << 63))
strings = st.tuples(st.integers(33, 500).map(lambda tag: tag * 2 + 1), texts)


@given(st.lists(numbers | strings, max_size=20), st.sampled_from(("aeabi", "riscv")), orders)
def test_attributes_are_read_as_they_were_written(
    pairs: list[tuple[int, int | str]], vendor: str, order: ByteOrder
) -> None:
    assert read_attributes(attributes(vendor, pairs, order), vendor, order) == dict(pairs)


@given(st.binary(max_size=300), st.sampled_from(("aeabi", "riscv")), orders)
def test_row_45_any_bytes_are_attributes_or_malformed(data: bytes, vendor: str, order: ByteOrder) -> None:
    for section in (data, b"A" + data):
        with contextlib.suppress(MalformedImage):
            read_attributes(section, vendor, order)


SECTION = attributes("aeabi", [(5, "7-A"), (6, 10), (7, 65), (32, 1), (67, "2.09"), (28, 1), (200, 1 << 40)])


@given(st.lists(st.tuples(st.integers(0, len(SECTION) - 1), st.integers(0, 255)), max_size=8))
def test_row_45_damaged_attributes_are_a_problem_of_the_binary_at_most(damage: list[tuple[int, int]]) -> None:
    data = bytearray(SECTION)
    for at, byte in damage:
        data[at] = byte
    binary = read_binary(WholeFile(Elf(machine="arm", sections={".ARM.attributes": bytes(data)}).build()))
    assert len(binary.problems) <= 1
    assert arm_float_abi(binary) in ("hard", "soft", "")


@given(st.binary(max_size=200), st.integers(0, 3), st.sampled_from(["amd64", "386"]))
def test_row_45_any_bytes_are_notes(junk: bytes, level: int, machine: str) -> None:
    note = x86_note(level + 1, align=8 if machine == "amd64" else 4)
    whole = read_binary(WholeFile(Elf(machine=machine, segments=[(PT_NOTE, note + junk)]).build()))
    assert ("x86 ISA note", "needed") in {(item.source, item.name) for item in whole.evidence}
    read_binary(WholeFile(Elf(machine=machine, segments=[(PT_NOTE, junk)]).build()))


@given(st.sampled_from(MACHINES), st.integers(0, 2**32 - 1), st.binary(max_size=60), st.integers(0, 255))
def test_any_flags_and_any_processors_segment_are_judged(
    row: object, flags: int, data: bytes, abi: int
) -> None:
    name = getattr(row, "architecture")  # noqa: B009 - the strategy's type is the table's
    binary = read_binary(
        WholeFile(Elf(machine=name, flags=flags, abi=abi, segments=[(PT_PROCESSOR, data)]).build())
    )
    for platform in PLATFORMS:
        isa_problems(platform, binary)
        isa_warnings(platform, binary)
    assert isinstance(missing_isa_info_reason(binary), str)


sources = st.sampled_from(
    [
        ("Go build info", "GOARM"), ("Go build info", "GOARM64"), ("Go build info", "GOAMD64"),
        ("Go build info", "GOPPC64"), ("Go build info", "GORISCV64"), ("Go build info", "GOOS"),
        (".riscv.attributes", "arch"), (".ARM.attributes", "CPU architecture"),
        ("strings", "asks the machine"),
    ]
)  # fmt: skip
words = st.text(max_size=30) | st.from_regex(r"v[0-9](\.[0-9]{1,2})?(,[a-z]+)*", fullmatch=True)


@given(st.lists(st.tuples(sources, words), max_size=4), st.sampled_from(PLATFORMS))
def test_any_words_of_a_hostile_binary_are_judged(
    said: list[tuple[tuple[str, str], str]], platform: Platform
) -> None:
    evidence = tuple(Evidence(*name, value) for name, value in said)
    for row in MACHINES:
        plain = read_binary(WholeFile(Elf(machine=row.architecture).build()))
        binary = type(plain)(header=plain.header, evidence=evidence)
        for problem in isa_problems(platform, binary):
            assert problem.startswith("needs ")
        for doubt in isa_warnings(platform, binary):
            assert doubt.startswith("has code for ")


names = st.lists(st.from_regex(r"[zx][a-z]{2,6}", fullmatch=True), max_size=6, unique=True)


@given(names, st.integers(0, 9), st.integers(0, 9))
def test_versions_of_extensions_do_not_matter(extensions: list[str], major: int, minor: int) -> None:
    version = f"{major}p{minor}"
    arch = "_".join([f"rv64i{version}", *(f"{name}{version}" for name in extensions)])
    assert riscv_extensions(arch) == {"i", *extensions} == riscv_extensions("_".join(["rv64i", *extensions]))
