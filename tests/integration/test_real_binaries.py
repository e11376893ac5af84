"""What is read of real programs: Go's own builds for every level, and Debian's packages.

pyelftools and ``go version -m`` are second opinions. No engine is needed, but a Go toolchain and the
Debian archive are: real parts, as everywhere in this folder.
"""

from __future__ import annotations

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import ARMAttributesSection, RISCVAttributesSection

from buildkit_tasks.errors import EngineError
from buildkit_tasks.platforms import MACHINES, Platform
from buildkit_tasks.platforms.elf.isa_check import (
    arm_float_abi,
    isa_problems,
    isa_warnings,
    missing_isa_info_reason,
)
from buildkit_tasks.platforms.elf.model import Binary
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from tests.support.go_builder import GoBuilder

Programs = dict[tuple[str, str], Path]

# Platform, Go's setting, and what the program needs beyond the platform's promise. Each takes Go some
# seconds, as its runtime is compiled for it; the rest of the levels only when they are asked for.
LEVELS = [
    ("linux/arm/v6", "GOARM=6", ""),
    ("linux/arm/v6", "GOARM=7", "needs ARMv7 (Go build info: GOARM=7)"),
    ("linux/amd64", "GOAMD64=v3", "needs x86-64-v3 (Go build info: GOAMD64=v3)"),
    ("linux/arm64", "GOARM64=v9.0", "needs Armv9.0-A (Go build info: GOARM64=v9.0)"),
    ("linux/ppc64le", "GOPPC64=power8", ""),
    ("linux/riscv64", "GORISCV64=rva22u64", "needs RVA22U64 (Go build info: GORISCV64=rva22u64)"),
    ("linux/mips64le", "GOMIPS64=hardfloat", ""),
    ("linux/s390x", "", ""),
]
MORE_LEVELS = [
    ("linux/arm/v5", "GOARM=5", ""),
    ("linux/arm/v6", "GOARM=7,softfloat", "needs ARMv7 (Go build info: GOARM=7,softfloat)"),
    ("linux/amd64", "GOAMD64=v1", ""),
    ("linux/amd64", "GOAMD64=v2", "needs x86-64-v2 (Go build info: GOAMD64=v2)"),
    ("linux/amd64", "GOAMD64=v4", "needs x86-64-v4 (Go build info: GOAMD64=v4)"),
    ("linux/386", "GO386=sse2", ""),
    ("linux/386", "GO386=softfloat", ""),
    ("linux/arm64", "GOARM64=v8.0", ""),
    (
        "linux/arm64",
        "GOARM64=v8.0,lse",
        "needs the atomics of Armv8.1-A (LSE) (Go build info: GOARM64=v8.0,lse)",
    ),
    ("linux/ppc64le", "GOPPC64=power10", "needs POWER10 (Go build info: GOPPC64=power10)"),
    ("linux/riscv64", "GORISCV64=rva20u64", ""),
    ("linux/riscv64", "GORISCV64=rva23u64", "needs RVA23U64 (Go build info: GORISCV64=rva23u64)"),
    ("linux/mips64le", "GOMIPS64=softfloat", ""),
    ("linux/loong64", "", ""),
]
if os.environ.get("ALL_GO_LEVELS"):
    LEVELS += MORE_LEVELS


def platform(name: str) -> Platform:
    return Platform.parse(name)


def seen(path: Path) -> Binary:
    return read_binary(WholeFile(path.read_bytes()))


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> GoBuilder:
    return GoBuilder.prepare(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="module")
def programs(go: GoBuilder) -> Programs:
    """An empty Go program for each level."""

    def build(level: tuple[str, str, str]) -> tuple[tuple[str, str], Path]:
        name, setting, _ = level
        key, _, value = setting.partition("=")
        return (name, setting), go.build(name, **({key: value} if key else {}))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        return dict(pool.map(build, LEVELS))


@pytest.mark.parametrize(("name", "setting", "need"), LEVELS)
def test_go_levels(programs: Programs, name: str, setting: str, need: str) -> None:
    binary = seen(programs[name, setting])
    problems = isa_problems(platform(name), binary)
    assert [text.partition(";")[0] for text in problems] == ([need] if need else [])
    assert binary.header.machine is platform(name).machine
    assert (binary.interpreter, binary.problems, binary.unread_parts) == ("", (), ())
    assert isa_warnings(platform(name), binary) == ()


def test_required_level_is_enough(programs: Programs) -> None:
    for name, built in (
        ("linux/arm/v7", ("linux/arm/v6", "GOARM=7")),
        ("linux/amd64/v3", ("linux/amd64", "GOAMD64=v3")),
        ("linux/arm64/v9", ("linux/arm64", "GOARM64=v9.0")),
    ):
        assert isa_problems(platform(name), seen(programs[built])) == ()


def test_matches_go_version_m(go: GoBuilder, programs: Programs) -> None:
    paths = {str(path): path for path in programs.values()}
    told: dict[str, dict[str, str]] = {}
    for line in go.run("version", "-m", *paths).splitlines():
        if not line.startswith("\t"):
            name, _, version = line.rpartition(": ")
            told[name] = {"version": version}
        else:
            kind, _, rest = line.strip().partition("\t")
            if kind == "path":
                told[name]["path"] = rest
            elif kind == "build" and (rest.startswith(("GO", "CGO_ENABLED", "-buildmode="))):
                key, _, value = rest.partition("=")
                told[name][key] = value
    assert len(told) == len(LEVELS)
    for name, path in paths.items():
        mine = {item.name: item.value for item in seen(path).evidence if item.source == "Go build info"}
        assert mine == told[name]


def test_go_without_section_headers(programs: Programs) -> None:
    data = bytearray(programs["linux/amd64", "GOAMD64=v3"].read_bytes())
    data[40:48] = bytes(8)  # e_shoff
    data[60:64] = bytes(4)  # e_shnum and e_shstrndx
    assert isa_problems(platform("linux/amd64"), read_binary(WholeFile(bytes(data))))


def test_partial_go_program(programs: Programs) -> None:
    data = programs["linux/riscv64", "GORISCV64=rva22u64"].read_bytes()
    at = data.index(b"\xff Go buildinf:", 1 << 16)
    front, tail = data[: 1 << 16], data[-(1 << 16) :]
    pieces = [(0, front), (at - 16, data[at - 16 : at + (1 << 12)]), (len(data) - len(tail), tail)]
    whole = read_binary(WholeFile(data))
    some = read_binary(PartialFile(len(data), pieces))
    assert (some.evidence, some.unread_parts, some.problems) == (whole.evidence, (), ())


ARCHITECTURES = tuple(dict.fromkeys([row.debian_architecture for row in MACHINES] + ["armel"]))


SUITES = ("testing", "stable", "oldstable", "oldoldstable")
PACKAGES = ("coreutils", "libgcrypt20", "busybox-static")


def _tell(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it with a failing test


def _fetch(folder: Path, architecture: str) -> list[Path]:
    """The programs of the newest suite that has the architecture; several packages by one apt."""
    for suite in SUITES:
        packages = PackageSet(names=PACKAGES, suite=suite, architectures=(architecture,))
        try:
            prefix = install_packages(
                folder / f"{architecture}-{suite}", [packages], SubprocessRunner(), _tell
            )
        except EngineError as error:
            if suite == SUITES[-1]:
                raise
            _tell(f"{architecture}: {error}")
        else:
            break
    files = sorted(path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    elves = [path for path in files if path.read_bytes().startswith(b"\x7fELF")]
    kinds = ("busybox", "libgcrypt.so", "cat", "ls", "sort")
    found = [path for path in elves if path.name.startswith(kinds[:2]) or path.name in kinds[2:]]
    assert len(found) == len(kinds)
    return found


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Some programs and a library of Debian for every architecture that we name, by its name."""
    folder = tmp_path_factory.mktemp("debian")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        found = pool.map(lambda name: _fetch(folder, name), ARCHITECTURES)
        return dict(zip(ARCHITECTURES, found, strict=True))


def of(architecture: str) -> Platform:
    """The platform on which that architecture of Debian runs, the oldest there is."""
    rows = [row for row in MACHINES if row.debian_architecture == architecture]
    return platform(rows[0].architecture if rows else "arm/v5")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_debian_binaries_pass(debian: dict[str, list[Path]], architecture: str) -> None:
    for path in debian[architecture]:
        binary = seen(path)
        assert (binary.problems, binary.unread_parts) == ((), ())
        assert binary.header.machine is of(architecture).machine
        assert isa_problems(of(architecture), binary) == ()


def test_debian_loaders_are_known(debian: dict[str, list[Path]]) -> None:
    for architecture, paths in debian.items():
        machine = of(architecture).machine
        loaders = {seen(path).interpreter for path in paths} - {""}
        assert len(loaders) == 1
        assert loaders <= set(machine.elf_interpreters)
        folders = {path.parent.name for path in paths if path.name.startswith("libgcrypt.so")}
        assert folders <= set(machine.multiarch_triplets)
        assert len(folders) == 1


def test_armhf_and_armel_float_abi(debian: dict[str, list[Path]]) -> None:
    assert {arm_float_abi(seen(path)) for path in debian["armhf"]} == {"hard"}
    assert {arm_float_abi(seen(path)) for path in debian["armel"]} == {"soft"}


def test_armhf_needs_armv7(debian: dict[str, list[Path]]) -> None:
    v6 = platform("linux/arm/v6")
    programs = [path for path in debian["armhf"] if not path.name.startswith("lib")]
    assert len(programs) >= 4
    for path in programs:
        assert isa_problems(v6, seen(path))[0].startswith("needs ARMv7 (")


def test_runtime_dispatch_is_a_warning(
    debian: dict[str, list[Path]],
) -> None:
    library = next(path for path in debian["armhf"] if path.name.startswith("libgcrypt.so"))
    binary = seen(library)
    assert isa_problems(platform("linux/arm/v7"), binary) == ()
    doubts = isa_warnings(platform("linux/arm/v7"), binary)
    assert [text.partition(" (")[0] for text in doubts] == ["has code for ARMv8"]


def test_s390x_records_nothing(debian: dict[str, list[Path]]) -> None:
    for path in debian["s390x"]:
        assert seen(path).evidence == ()
        assert missing_isa_info_reason(seen(path)) == "s390x files record no level of the instruction set"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pyelftools_reads_the_same(debian: dict[str, list[Path]], architecture: str) -> None:
    for path in debian[architecture]:
        data = path.read_bytes()
        binary, oracle = read_binary(WholeFile(data)), ELFFile(io.BytesIO(data))
        names = ("e_flags", "e_entry", "e_phoff", "e_phnum", "e_shoff", "e_shnum", "e_shstrndx")
        header = binary.header
        mine = (header.e_flags, header.entry_point, header.phoff, header.phnum, header.shoff, header.shnum)
        assert (*mine, header.shstrndx) == tuple(oracle[name] for name in names)
        assert names_of(binary) == oracle_names(oracle)
        assert attributes_of(binary) == oracle_attributes(oracle)
        assert isa_of(binary) == oracle_isa(oracle)


def names_of(binary: Binary) -> dict[str, list[str]]:
    found = {
        "interp": [binary.interpreter], "needed": list(binary.needed), "soname": [binary.soname],
        "rpath": [":".join(binary.rpath)], "runpath": [":".join(binary.runpath)],
    }  # fmt: skip
    return {name: values for name, values in found.items() if values not in ([], [""])}


def oracle_names(oracle: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for segment in oracle.iter_segments("PT_INTERP"):
        found["interp"] = [segment.get_interp_name()]
    for section in oracle.iter_sections():
        if not isinstance(section, DynamicSection):
            continue
        for tag in section.iter_tags():
            kind = str(tag.entry.d_tag).removeprefix("DT_").lower()
            if kind in ("needed", "soname", "rpath", "runpath"):
                found.setdefault(kind, []).append(getattr(tag, kind))
    return found


ARM_ARCHITECTURES = {"v5TE": 4, "v6": 6, "v6KZ": 7, "v7": 10, "v8": 14}
ARM_FLOATS = {"soft": 0, "hard": 1}


def attributes_of(binary: Binary) -> dict[str, object]:
    found: dict[str, object] = {}
    for item in binary.evidence:
        if (item.source, item.name) == (".ARM.attributes", "CPU architecture"):
            found["TAG_CPU_ARCH"] = ARM_ARCHITECTURES[item.value]
        elif (item.source, item.name) == (".ARM.attributes", "CPU name"):
            found["TAG_CPU_NAME"] = item.value
        elif (item.source, item.name, item.value) == (".ARM.attributes", "float ABI", "hard"):
            found["TAG_ABI_VFP_ARGS"] = ARM_FLOATS[item.value]
        elif item.source == ".riscv.attributes":
            found["TAG_ARCH"] = item.value
    return found


def oracle_attributes(oracle: Any) -> dict[str, object]:
    found: dict[str, object] = {}
    for section in oracle.iter_sections():
        if not isinstance(section, (ARMAttributesSection, RISCVAttributesSection)):
            continue
        for subsection in section.iter_subsections():
            for part in subsection.iter_subsubsections():
                for attribute in part.iter_attributes():
                    if attribute.tag in ("TAG_CPU_ARCH", "TAG_CPU_NAME", "TAG_ABI_VFP_ARGS", "TAG_ARCH"):
                        found[attribute.tag] = attribute.value
    return found


def isa_of(binary: Binary) -> dict[str, str]:
    return {item.name: item.value for item in binary.evidence if item.source == "x86 ISA note"}


ISA_KINDS = {0xC0008002: "needed", 0xC0010002: "used"}
ISA_LEVELS = ("x86-64 baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def oracle_isa(oracle: Any) -> dict[str, str]:
    """pyelftools takes the notes apart; the properties that it has no names for are numbers in it."""
    found: dict[str, str] = {}
    if oracle["e_machine"] not in ("EM_386", "EM_X86_64"):
        return found
    for segment in oracle.iter_segments("PT_NOTE"):
        for note in segment.iter_notes():
            if note["n_type"] != "NT_GNU_PROPERTY_TYPE_0":
                continue
            for prop in note["n_desc"]:
                kind = ISA_KINDS.get(prop["pr_type"]) if isinstance(prop["pr_type"], int) else None
                kind = kind or ("needed" if "ISA_1_NEEDED" in str(prop["pr_type"]) else None)
                bits = prop["pr_data"]
                value = int.from_bytes(bits, "little") if isinstance(bits, bytes) else bits
                if kind and isinstance(value, int):
                    found[kind] = ISA_LEVELS[value.bit_length() - 1]
    return found
