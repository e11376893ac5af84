"""The ELF reader on real programs: Go builds for every level, and Debian packages.

The results are compared with pyelftools and ``go version -m``. The tests need a Go toolchain and the
Debian archive, but no engine.
"""

from __future__ import annotations

import io
import itertools
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
from buildkit_tasks.platforms.elf.model import Binary, ElfHeader
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from tests.support.go_builder import GoBuilder

pytestmark = pytest.mark.interop  # Go compiles its runtime for each level

Programs = dict[tuple[str, str], Path]

# Platform, Go setting, and what the program needs beyond the platform's baseline. Go compiles its runtime
# for each level, which takes some seconds, so MORE_LEVELS are built only if ALL_GO_LEVELS is set.
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


def parse_elf(path: Path) -> Binary:
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
    binary = parse_elf(programs[name, setting])
    problems = isa_problems(Platform.parse(name), binary)
    assert [text.partition(";")[0] for text in problems] == ([need] if need else [])
    assert binary.header.machine is Platform.parse(name).machine
    assert (binary.interpreter, binary.problems, binary.unread_parts) == ("", (), ())
    assert isa_warnings(Platform.parse(name), binary) == ()


def test_required_level_is_enough(programs: Programs) -> None:
    for name, built in (
        ("linux/arm/v7", ("linux/arm/v6", "GOARM=7")),
        ("linux/amd64/v3", ("linux/amd64", "GOAMD64=v3")),
        ("linux/arm64/v9", ("linux/arm64", "GOARM64=v9.0")),
    ):
        assert isa_problems(Platform.parse(name), parse_elf(programs[built])) == ()


def test_matches_go_version_m(go: GoBuilder, programs: Programs) -> None:
    paths = {str(path): path for path in programs.values()}
    expected = parse_go_version(go.run("version", "-m", *paths))
    assert len(expected) == len(LEVELS)
    for name, path in paths.items():
        evidence = parse_elf(path).evidence
        build_info = {item.name: item.value for item in evidence if item.source == "Go build info"}
        assert build_info == expected[name]


def parse_go_version(output: str) -> dict[str, dict[str, str]]:
    """Return the build information of each program in the output of ``go version -m``."""
    build_info: dict[str, dict[str, str]] = {}
    for line in output.splitlines():
        if not line.startswith("\t"):
            name, _, version = line.rpartition(": ")
            build_info[name] = {"version": version}
            continue
        kind, _, rest = line.strip().partition("\t")
        if kind == "path":
            build_info[name]["path"] = rest
        elif kind == "build" and rest.startswith(("GO", "CGO_ENABLED", "-buildmode=")):
            key, _, value = rest.partition("=")
            build_info[name][key] = value
    return build_info


def test_go_without_section_headers(programs: Programs) -> None:
    data = bytearray(programs["linux/amd64", "GOAMD64=v3"].read_bytes())
    data[40:48] = bytes(8)  # e_shoff
    data[60:64] = bytes(4)  # e_shnum and e_shstrndx
    assert isa_problems(Platform.parse("linux/amd64"), read_binary(WholeFile(bytes(data))))


def test_partial_go_program(programs: Programs) -> None:
    data = programs["linux/riscv64", "GORISCV64=rva22u64"].read_bytes()
    offset = data.index(b"\xff Go buildinf:", 1 << 16)
    head, tail = data[: 1 << 16], data[-(1 << 16) :]
    pieces = [(0, head), (offset - 16, data[offset - 16 : offset + (1 << 12)]), (len(data) - len(tail), tail)]
    whole = read_binary(WholeFile(data))
    partial = read_binary(PartialFile(len(data), pieces))
    assert (partial.evidence, partial.unread_parts, partial.problems) == (whole.evidence, (), ())


ARCHITECTURES = tuple(dict.fromkeys([row.debian_architecture for row in MACHINES] + ["armel"]))
SUITES = ("testing", "stable", "oldstable", "oldoldstable")
PACKAGES = ("coreutils", "libgcrypt20", "busybox-static")


def _log(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it with a failing test


def _install(folder: Path, architecture: str) -> Path:
    """Install PACKAGES from the newest suite that has the architecture; return their directory."""
    for suite in SUITES[:-1]:
        try:
            return _install_from(suite, folder, architecture)
        except EngineError as error:
            _log(f"{architecture}: {error}")
    return _install_from(SUITES[-1], folder, architecture)


def _install_from(suite: str, folder: Path, architecture: str) -> Path:
    packages = PackageSet(names=PACKAGES, suite=suite, architectures=(architecture,))
    return install_packages(folder / f"{architecture}-{suite}", [packages], SubprocessRunner(), _log)


def _find_binaries(prefix: Path) -> list[Path]:
    """Return busybox, libgcrypt and three of the coreutils."""
    files = sorted(path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    elf_files = [path for path in files if path.read_bytes().startswith(b"\x7fELF")]
    prefixes, names = ("busybox", "libgcrypt.so"), ("cat", "ls", "sort")
    binaries = [path for path in elf_files if path.name.startswith(prefixes) or path.name in names]
    assert len(binaries) == len(prefixes) + len(names)
    return binaries


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Programs and a library of each Debian architecture, by its name."""
    folder = tmp_path_factory.mktemp("debian")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        binaries = pool.map(lambda name: _find_binaries(_install(folder, name)), ARCHITECTURES)
        return dict(zip(ARCHITECTURES, binaries, strict=True))


def debian_platform(architecture: str) -> Platform:
    """Return the oldest platform on which a Debian architecture runs."""
    rows = [row for row in MACHINES if row.debian_architecture == architecture]
    return Platform.parse(rows[0].architecture if rows else "arm/v5")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_debian_binaries_pass(debian: dict[str, list[Path]], architecture: str) -> None:
    for path in debian[architecture]:
        binary = parse_elf(path)
        assert (binary.problems, binary.unread_parts) == ((), ())
        assert binary.header.machine is debian_platform(architecture).machine
        assert isa_problems(debian_platform(architecture), binary) == ()


def test_debian_loaders_are_known(debian: dict[str, list[Path]]) -> None:
    for architecture, paths in debian.items():
        machine = debian_platform(architecture).machine
        loaders = {parse_elf(path).interpreter for path in paths} - {""}
        assert len(loaders) == 1
        assert loaders <= set(machine.elf_interpreters)
        folders = {path.parent.name for path in paths if path.name.startswith("libgcrypt.so")}
        assert folders <= set(machine.multiarch_triplets)
        assert len(folders) == 1


def test_armhf_and_armel_float_abi(debian: dict[str, list[Path]]) -> None:
    assert {arm_float_abi(parse_elf(path)) for path in debian["armhf"]} == {"hard"}
    assert {arm_float_abi(parse_elf(path)) for path in debian["armel"]} == {"soft"}


def test_armhf_needs_armv7(debian: dict[str, list[Path]]) -> None:
    v6 = Platform.parse("linux/arm/v6")
    programs = [path for path in debian["armhf"] if not path.name.startswith("lib")]
    assert len(programs) >= 4
    for path in programs:
        assert isa_problems(v6, parse_elf(path))[0].startswith("needs ARMv7 (")


def test_runtime_dispatch_is_a_warning(debian: dict[str, list[Path]]) -> None:
    library = next(path for path in debian["armhf"] if path.name.startswith("libgcrypt.so"))
    binary = parse_elf(library)
    assert isa_problems(Platform.parse("linux/arm/v7"), binary) == ()
    warnings = isa_warnings(Platform.parse("linux/arm/v7"), binary)
    assert [text.partition(" (")[0] for text in warnings] == ["has code for ARMv8"]


def test_s390x_has_no_isa_info(debian: dict[str, list[Path]]) -> None:
    for path in debian["s390x"]:
        assert parse_elf(path).evidence == ()
        assert (
            missing_isa_info_reason(parse_elf(path)) == "s390x files record no level of the instruction set"
        )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_matches_pyelftools(debian: dict[str, list[Path]], architecture: str) -> None:
    for path in debian[architecture]:
        data = path.read_bytes()
        binary, elf_file = read_binary(WholeFile(data)), ELFFile(io.BytesIO(data))
        assert header_fields(binary.header) == tuple(elf_file[name] for name in HEADER_FIELDS)
        assert dynamic_names(binary) == pyelftools_names(elf_file)
        assert cpu_attributes(binary) == pyelftools_attributes(elf_file)
        assert x86_isa_levels(binary) == pyelftools_isa_levels(elf_file)


HEADER_FIELDS = ("e_flags", "e_entry", "e_phoff", "e_phnum", "e_shoff", "e_shnum", "e_shstrndx")


def header_fields(header: ElfHeader) -> tuple[int, ...]:
    """Return the values of HEADER_FIELDS."""
    program_headers = (header.phoff, header.phnum)
    section_headers = (header.shoff, header.shnum, header.shstrndx)
    return (header.e_flags, header.entry_point, *program_headers, *section_headers)


def dynamic_names(binary: Binary) -> dict[str, list[str]]:
    names = {
        "interp": [binary.interpreter], "needed": list(binary.needed), "soname": [binary.soname],
        "rpath": [":".join(binary.rpath)], "runpath": [":".join(binary.runpath)],
    }  # fmt: skip
    return {kind: values for kind, values in names.items() if values not in ([], [""])}


def pyelftools_names(elf_file: Any) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for segment in elf_file.iter_segments("PT_INTERP"):
        names["interp"] = [segment.get_interp_name()]
    sections = [section for section in elf_file.iter_sections() if isinstance(section, DynamicSection)]
    for tag in (tag for section in sections for tag in section.iter_tags()):
        kind = str(tag.entry.d_tag).removeprefix("DT_").lower()
        if kind in ("needed", "soname", "rpath", "runpath"):
            names.setdefault(kind, []).append(getattr(tag, kind))
    return names


# Tag_CPU_arch and Tag_ABI_VFP_args: Addenda to, and Errata in, the ABI for the Arm Architecture.
ARM_ARCHITECTURES = {"v5TE": 4, "v6": 6, "v6KZ": 7, "v7": 10, "v8": 14}
ARM_HARD_FLOAT = 1


def cpu_attributes(binary: Binary) -> dict[str, object]:
    attributes: dict[str, object] = {}
    for item in binary.evidence:
        if (item.source, item.name) == (".ARM.attributes", "CPU architecture"):
            attributes["TAG_CPU_ARCH"] = ARM_ARCHITECTURES[item.value]
        elif (item.source, item.name) == (".ARM.attributes", "CPU name"):
            attributes["TAG_CPU_NAME"] = item.value
        elif (item.source, item.name, item.value) == (".ARM.attributes", "float ABI", "hard"):
            attributes["TAG_ABI_VFP_ARGS"] = ARM_HARD_FLOAT
        elif item.source == ".riscv.attributes":
            attributes["TAG_ARCH"] = item.value
    return attributes


def pyelftools_attributes(elf_file: Any) -> dict[str, object]:
    tags = ("TAG_CPU_ARCH", "TAG_CPU_NAME", "TAG_ABI_VFP_ARGS", "TAG_ARCH")
    return {
        attribute.tag: attribute.value
        for section in elf_file.iter_sections()
        if isinstance(section, (ARMAttributesSection, RISCVAttributesSection))
        for subsection in section.iter_subsections()
        for subsubsection in subsection.iter_subsubsections()
        for attribute in subsubsection.iter_attributes()
        if attribute.tag in tags
    }


def x86_isa_levels(binary: Binary) -> dict[str, str]:
    return {item.name: item.value for item in binary.evidence if item.source == "x86 ISA note"}


# GNU_PROPERTY_X86_ISA_1_NEEDED and _USED (x86-64 psABI): a property that pyelftools has no name for has a
# number as its type.
ISA_PROPERTIES = {0xC0008002: "needed", 0xC0010002: "used"}
ISA_LEVELS = ("x86-64 baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4")


def pyelftools_isa_levels(elf_file: Any) -> dict[str, str]:
    levels: dict[str, str] = {}
    if elf_file["e_machine"] not in ("EM_386", "EM_X86_64"):
        return levels
    notes = [note for segment in elf_file.iter_segments("PT_NOTE") for note in segment.iter_notes()]
    properties = [note["n_desc"] for note in notes if note["n_type"] == "NT_GNU_PROPERTY_TYPE_0"]
    for prop in itertools.chain.from_iterable(properties):
        kind = "needed" if "ISA_1_NEEDED" in str(prop["pr_type"]) else ISA_PROPERTIES.get(prop["pr_type"])
        bits = prop["pr_data"]
        value = int.from_bytes(bits, "little") if isinstance(bits, bytes) else bits
        if kind and isinstance(value, int):
            levels[kind] = ISA_LEVELS[value.bit_length() - 1]
    return levels
