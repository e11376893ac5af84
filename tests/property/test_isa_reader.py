from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.build_attributes import read_attributes
from buildkit_tasks.platforms.elf.isa_check import (
    arm_float_abi,
    isa_problems,
    isa_warnings,
    missing_isa_info_reason,
)
from buildkit_tasks.platforms.elf.model import RUNTIME_DETECTION, Evidence, riscv_extensions
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import ByteOrder, WholeFile
from tests.support.elf import ISA_NEEDED, PT_NOTE, PT_PROCESSOR, Elf, attributes, x86_note

PLATFORMS = [
    Platform("linux", machine.architecture, level.name)
    for machine in MACHINES
    for level in machine.isa_levels
]
PLATFORMS += [Platform("linux", "s390x"), Platform("linux", "arm64", "odd"), Platform("plan9", "z80")]

orders: st.SearchStrategy[ByteOrder] = st.sampled_from(("little", "big"))
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
# Even tags have numbers and odd tags strings, except for the tags below 66, which are not used here.
numbers = st.tuples(st.integers(33, 500).map(lambda tag: tag * 2), st.integers(0, 1 << 63))
strings = st.tuples(st.integers(33, 500).map(lambda tag: tag * 2 + 1), texts)


@given(st.lists(numbers | strings, max_size=20), st.sampled_from(("aeabi", "riscv")), orders)
def test_attributes_round_trip(pairs: list[tuple[int, int | str]], vendor: str, order: ByteOrder) -> None:
    assert read_attributes(attributes(vendor, pairs, order), vendor, order) == dict(pairs)


@given(st.binary(max_size=300), st.sampled_from(("aeabi", "riscv")), orders)
def test_any_bytes_as_attributes(data: bytes, vendor: str, order: ByteOrder) -> None:
    for section in (data, b"A" + data):
        with contextlib.suppress(MalformedImage):
            read_attributes(section, vendor, order)


SECTION = attributes("aeabi", [(5, "7-A"), (6, 10), (7, 65), (32, 1), (67, "2.09"), (28, 1), (200, 1 << 40)])


@given(st.lists(st.tuples(st.integers(0, len(SECTION) - 1), st.integers(0, 255)), max_size=8))
def test_mutated_attributes(damage: list[tuple[int, int]]) -> None:
    data = bytearray(SECTION)
    for at, byte in damage:
        data[at] = byte
    binary = read_binary(WholeFile(Elf(machine="arm", sections={".ARM.attributes": bytes(data)}).build()))
    assert len(binary.problems) <= 1
    assert arm_float_abi(binary) in ("hard", "soft", "")


@given(st.binary(max_size=200), st.integers(0, 3), st.sampled_from(["amd64", "386"]))
def test_any_bytes_after_note(junk: bytes, level: int, machine: str) -> None:
    note = x86_note((ISA_NEEDED, 1 << level), align=8 if machine == "amd64" else 4)
    binary = read_binary(WholeFile(Elf(machine=machine, segments=[(PT_NOTE, note + junk)]).build()))
    assert ("x86 ISA note", "needed") in {(item.source, item.name) for item in binary.evidence}
    read_binary(WholeFile(Elf(machine=machine, segments=[(PT_NOTE, junk)]).build()))


@given(st.sampled_from(MACHINES), st.integers(0, 2**32 - 1), st.binary(max_size=60), st.integers(0, 255))
def test_any_flags_and_processor_segment(machine: Machine, flags: int, data: bytes, abi: int) -> None:
    elf = Elf(machine=machine.architecture, flags=flags, abi=abi, segments=[(PT_PROCESSOR, data)])
    binary = read_binary(WholeFile(elf.build()))
    for platform in PLATFORMS:
        isa_problems(platform, binary)
        isa_warnings(platform, binary)
    assert isinstance(missing_isa_info_reason(binary), str)


sources = st.sampled_from(
    [
        ("Go build info", "GOARM"), ("Go build info", "GOARM64"), ("Go build info", "GOAMD64"),
        ("Go build info", "GOPPC64"), ("Go build info", "GORISCV64"), ("Go build info", "GOOS"),
        (".riscv.attributes", "arch"), (".ARM.attributes", "CPU architecture"),
        ("strings", RUNTIME_DETECTION),
    ]
)  # fmt: skip
values = st.text(max_size=30) | st.from_regex(r"v[0-9](\.[0-9]{1,2})?(,[a-z]+)*", fullmatch=True)


@given(st.lists(st.tuples(sources, values), max_size=4), st.sampled_from(PLATFORMS))
def test_any_evidence(items: list[tuple[tuple[str, str], str]], platform: Platform) -> None:
    evidence = tuple(Evidence(*name, value) for name, value in items)
    for machine in MACHINES:
        plain = read_binary(WholeFile(Elf(machine=machine.architecture).build()))
        binary = type(plain)(header=plain.header, evidence=evidence)
        for problem in isa_problems(platform, binary):
            assert problem.startswith("needs ")
        for warning in isa_warnings(platform, binary):
            assert warning.startswith("has code for ")


names = st.lists(st.from_regex(r"[zx][a-z]{2,6}", fullmatch=True), max_size=6, unique=True)


@given(names, st.integers(0, 9), st.integers(0, 9))
def test_extension_versions_are_dropped(extensions: list[str], major: int, minor: int) -> None:
    version = f"{major}p{minor}"
    arch = "_".join([f"rv64i{version}", *(f"{name}{version}" for name in extensions)])
    assert riscv_extensions(arch) == {"i", *extensions} == riscv_extensions("_".join(["rv64i", *extensions]))
