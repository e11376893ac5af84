from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from buildkit_tasks.report.model import Check
from buildkit_tasks.verify import VerifyOptions, verify
from buildkit_tasks.verify.binaries import compile_globs
from tests.support.elf import ISA_NEEDED, ISA_USED, Elf, Target, attributes, elf, target_of
from tests.support.oci import hard_link, make_tar, probe_program, single_platform_image, symlink

AMD64, ARM64, ARM_V6, ARM_V7 = "linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"
SOFT_FLOAT, HARD_FLOAT = 0x05000200, 0x05000400


def verify_files(
    files: Mapping[str, bytes], platform: str = AMD64, *allowed: str, **start: object
) -> list[Check]:
    image = single_platform_image([make_tar(files)], platform, **start)
    return list(verify(image, (), "the image", VerifyOptions(allow_foreign=allowed)).platforms[0].checks)


def select(name: str, results: list[Check]) -> list[Check]:
    return [check for check in results if check.name == name]


def select_one(name: str, results: list[Check]) -> Check:
    matching = select(name, results)
    assert len(matching) == 1, matching
    return matching[0]


def arm_binary(flags: int) -> bytes:
    return elf(dataclasses.replace(target_of(ARM_V7), flags=flags), needed=["libc.so.6"])


def test_matching_binaries_are_counted() -> None:
    check = select_one(
        "binaries", verify_files({"a": probe_program(AMD64), "lib/b.so": elf(AMD64), "text": b"x"})
    )
    assert (check.ok, check.message) == (True, "2 binaries")


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_foreign_file_of_any_type(kind: int) -> None:
    results = verify_files({"opt/deep/er/file": elf(ARM64, kind=kind), "main": probe_program(AMD64)})
    check = select_one("binaries", results)
    assert (check.ok, check.path) == (False, "/opt/deep/er/file")
    assert (check.expected, check.actual) == ("amd64", "arm64")
    assert check.layer.startswith("sha256:")
    assert "linux/amd64: /opt/deep/er/file is made for arm64, not for amd64" in check.message


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target(bits=32, order="little", machine=62), "x32, ILP32 on x86-64"),
        (Target(bits=64, order="big", machine=183), "arm64, big-endian"),
        (Target(bits=64, order="big", machine=8), "mips64, big-endian"),
        (Target(bits=32, order="big", machine=20), "powerpc, 32-bit"),
        (Target(bits=64, order="little", machine=0x1234), "unknown"),
    ],
)
def test_machine_names(target: Target, name: str) -> None:
    assert (
        f"is made for {name}, not for amd64"
        in select_one("binaries", verify_files({"a": elf(target)})).message
    )


def test_many_foreign_files() -> None:
    results = select("binaries", verify_files({f"f{number}": elf(ARM64) for number in range(103)}))
    assert len(results) == 101
    assert not any(check.ok for check in results)
    assert results[-1].message == "3 more files are not made for amd64"
    assert len({check.path for check in results[:-1]}) == 100


@pytest.mark.parametrize("code", [247, 190, 224, 94])
def test_device_code(code: int) -> None:
    target = Target(bits=64, order="little", machine=code)
    check = select_one("binaries", verify_files({"kernel.o": elf(target, kind=1), "a": probe_program(AMD64)}))
    assert (check.ok, check.message) == (True, "1 binary, 1 for other processors (such as /kernel.o)")


@pytest.mark.parametrize(
    "pattern", ["/opt/*", "/opt/tools/arm64", "opt/tools/*", "tools/*", "arm64", "*/arm64", "**/tools/**"]
)
def test_allowed_globs(pattern: str) -> None:
    check = select_one("binaries", verify_files({"opt/tools/arm64": elf(ARM64)}, AMD64, pattern))
    assert (check.ok, check.message) == (True, "0 binaries, 1 foreign and allowed (such as /opt/tools/arm64)")


@pytest.mark.parametrize(
    "pattern", ["/tools/*", "opt", "/opt", "ools/arm64", "arm6", "OPT/*", "/opt/tools/arm6[5]"]
)
def test_globs_without_match(pattern: str) -> None:
    assert not select_one("binaries", verify_files({"opt/tools/arm64": elf(ARM64)}, AMD64, pattern)).ok


def test_no_globs() -> None:
    assert not compile_globs([])("/any")


def test_allowed_instruction_set() -> None:
    files = {"opt/v3/lib.so": elf(AMD64, isa=[(ISA_NEEDED, 4)])}
    assert not select_one("instruction-set", verify_files(files)).ok
    assert select_one("instruction-set", verify_files(files, AMD64, "/opt/v3/*")).ok


def test_optional_instruction_set_is_warning() -> None:
    sections = {".ARM.attributes": attributes("aeabi", [(6, 14)]), ".rodata": b"x\0/proc/cpuinfo\0"}
    files = {"lib.so": Elf(machine="arm", sections=sections).build()}
    checks = select("instruction-set", verify_files(files, ARM_V7))
    assert [(check.ok, check.warning, check.path) for check in checks] == [
        (True, True, "/lib.so"),
        (True, False, ""),
    ]


def test_entrypoint_is_counted() -> None:
    results = verify_files({"main": probe_program(AMD64)}, Entrypoint=["/main"])
    assert select_one("binaries", results).message == "1 binary"


def test_truncated_program() -> None:
    results = select("binaries", verify_files({"a": elf(AMD64, needed=["libc.so.6"])[:200]}))
    assert [(check.ok, check.warning) for check in results] == [
        *[(True, True)] * (len(results) - 1),
        (True, False),
    ]
    assert results[0].message.startswith("/a is damaged or was not read completely: ")


def test_entrypoint_is_reported_once() -> None:
    results = verify_files({"main": elf(ARM64), "other": elf(ARM64)}, AMD64, Entrypoint=["/main"])
    assert select_one("entrypoint-arch", results).path == "/main"
    assert select_one("binaries", results).path == "/other"


def test_damaged_file() -> None:
    results = select("binaries", verify_files({"cut": probe_program(AMD64)[:20], "a": probe_program(AMD64)}))
    assert [(check.ok, check.warning) for check in results] == [(True, True), (True, False)]
    assert results[0].path == "/cut"
    assert results[0].message == (
        "/cut starts like an ELF file and cannot be read as one: a truncated ELF header"
    )


def test_links() -> None:
    tar = make_tar({"a": elf(ARM64)}, [symlink("s", "a"), hard_link("h", "a")])
    report = verify(single_platform_image([tar], AMD64), (), "the image")
    paths = [check.path for check in report.platforms[0].checks if check.name == "binaries"]
    assert sorted(paths) == ["/a", "/h"]


def test_path_that_is_not_utf8() -> None:
    tar = make_tar({"caf?": elf(ARM64)}).replace(b"caf?", b"caf\xe9")
    tar = tar[:148] + b"%06o\0 " % (sum(tar[:148]) + sum(tar[156:512]) + 8 * 32) + tar[156:]
    report = verify(single_platform_image([tar], AMD64), (), "the image")
    check = select_one("binaries", list(report.platforms[0].checks))
    check.path.encode()
    assert check.path.startswith("/caf\\")


# The instruction set.


@pytest.mark.parametrize(
    ("bits", "platform", "ok"),
    [
        (0b0001, "linux/amd64", True),
        (0b0010, "linux/amd64", False),
        (0b0111, "linux/amd64/v3", True),
        (0b1000, "linux/amd64/v3", False),
        (0b1111, "linux/amd64/v4", True),
    ],
)
def test_isa_note_against_baseline(bits: int, platform: str, ok: bool) -> None:
    check = select_one(
        "instruction-set", verify_files({"a": elf(platform, isa=[(ISA_NEEDED, bits)])}, platform)
    )
    assert (check.ok, check.expected) == (ok, platform)
    assert ("needs x86-64-v" in check.message) == (not ok)


def test_isa_note_of_used_features() -> None:
    check = select_one("instruction-set", verify_files({"a": elf(AMD64, isa=[(ISA_USED, 0b1000)])}))
    assert (check.ok, check.message) == (True, "none in 1 of 1, which proves nothing")


def test_files_without_isa_info() -> None:
    files = {"a": elf(AMD64), "b": elf(AMD64), "c": elf(AMD64, isa=[(ISA_NEEDED, 1)])}
    assert select_one("instruction-set", verify_files(files)).message == (
        "x86 ISA note in 1; none in 2 of 3, which proves nothing"
    )


def test_no_binaries() -> None:
    assert select("instruction-set", verify_files({"a": b"text"})) == []


def test_many_files_above_baseline() -> None:
    above_baseline = elf(AMD64, isa=[(ISA_NEEDED, 4)])
    results = select("instruction-set", verify_files({f"f{number}": above_baseline for number in range(102)}))
    assert len(results) == 101
    assert results[-1].message == "2 more binaries need more than the baseline of linux/amd64"


def test_other_operating_system() -> None:
    target = dataclasses.replace(target_of(AMD64), abi=9)
    check = select_one("instruction-set", verify_files({"a": elf(target)}))
    assert (check.ok, check.path) == (False, "/a")
    assert "needs FreeBSD" in check.message


# Floating point.


def test_mixed_float_abis() -> None:
    files = {
        "lib/a.so": arm_binary(HARD_FLOAT),
        "lib/b.so": arm_binary(HARD_FLOAT),
        "opt/c.so": arm_binary(SOFT_FLOAT),
    }
    check = select_one("float-abi", verify_files(files, ARM_V7))
    assert (check.ok, check.path, check.expected, check.actual) == (False, "/opt/c.so", "hard", "soft")
    assert check.layer.startswith("sha256:")
    assert "/opt/c.so passes floating-point numbers in integer registers (soft or softfp)" in check.message
    assert "they cannot be loaded into one process" in check.message


@pytest.mark.parametrize("flags", [HARD_FLOAT, SOFT_FLOAT, 0x05000000])
def test_one_float_abi(flags: int) -> None:
    assert (
        select(
            "float-abi", verify_files({"lib/a.so": arm_binary(flags), "lib/b.so": arm_binary(flags)}, ARM_V7)
        )
        == []
    )


def test_static_programs_mix_float_abis() -> None:
    static = elf(dataclasses.replace(target_of(ARM_V7), flags=SOFT_FLOAT))
    assert (
        select("float-abi", verify_files({"lib/a.so": arm_binary(HARD_FLOAT), "bin/tool": static}, ARM_V7))
        == []
    )


# Unknown machines.


@pytest.mark.parametrize("platform", ["windows/amd64", "linux/z80"])
def test_unknown_machine(platform: str) -> None:
    results = verify_files({"a": elf(ARM64)}, platform)
    assert select("binaries", results) == select("instruction-set", results) == []
