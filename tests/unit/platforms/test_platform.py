from __future__ import annotations

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import (
    MACHINES,
    Platform,
    accepted_platforms,
    find_best_match,
    foreign_machine_name,
    is_compatible,
    known_platforms,
    machine_from_elf,
    native_platform,
    parse_platforms,
    platform_of_uname,
)


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", "linux/amd64"),
        ("amd64", "linux/amd64"),
        ("x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("arm", "linux/arm/v7"),
        ("armhf", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("i386", "linux/386"),
        ("ppc64el", "linux/ppc64le"),
        ("loongarch64", "linux/loong64"),
        ("x86-64", "linux/amd64"),
        ("linux/mips64el", "linux/mips64le"),
        ("armv7l", "linux/arm/v7"),
        ("armv6l", "linux/arm/v6"),
        ("armv5tel", "linux/arm/v5"),
        (" Linux/ARM64 ", "linux/arm64"),
    ],
)
def test_parse_aliases(text: str, platform: str) -> None:
    assert str(Platform.parse(text)) == platform


@pytest.mark.parametrize(
    "text", ["", "linux/", "--privileged", "linux/arm/v7/x", "linux/arm64\nlinux/386", "a b", "linux/../x"]
)
def test_parse_malformed_platform(text: str) -> None:
    with pytest.raises(UsageError):
        Platform.parse(text)


@pytest.mark.parametrize("text", ["linux/zz", "plan9/amd64", "linux/arm/v4"])
def test_parse_unknown_platform(text: str) -> None:
    with pytest.raises(UsageError, match="unknown platform") as excinfo:
        Platform.parse(text)
    assert "did you mean" in excinfo.value.message or excinfo.value.hint


def test_parse_suggests_platform() -> None:
    with pytest.raises(UsageError, match=r"did you mean linux/amd64\?"):
        Platform.parse("linux/amd46")


@pytest.mark.parametrize("text", ["mine", "linux/all", "host"])
def test_parse_suggests_nothing_far(text: str) -> None:
    with pytest.raises(UsageError) as excinfo:
        Platform.parse(text)
    assert excinfo.value.message == f"unknown platform {text!r}"
    assert str(excinfo.value.hint).startswith("use one of linux/amd64, ")


def test_parse_platforms_drops_repeats() -> None:
    platforms = parse_platforms(["linux/arm64,amd64", "aarch64", ""])
    assert [str(platform) for platform in platforms] == ["linux/arm64", "linux/amd64"]


def test_slug() -> None:
    assert [Platform.parse(text).slug for text in ("arm/v7", "amd64")] == ["arm-v7", "amd64"]


def test_normalize_unknown_platform() -> None:
    assert Platform.normalize("plan9", "z80", "v1") == Platform("plan9", "z80", "v1")


def test_known_platforms_are_complete() -> None:
    for platform in known_platforms():
        assert platform.machine.architecture == platform.architecture
        assert platform.debian_architecture
        assert platform.baseline_cpu


def test_variant_overrides_machine() -> None:
    assert Platform.parse("arm/v6").debian_architecture == "armel"
    assert Platform.parse("arm/v6").baseline_cpu == "arm1176"
    assert Platform.parse("arm/v7").debian_architecture == "armhf"


def test_baseline_build_options() -> None:
    assert Platform.parse("linux/amd64").baseline_build_options == ("GOAMD64=v1 (Go)", "-march=x86-64 (C)")
    assert Platform.parse("linux/s390x").baseline_build_options == ()


def test_magics_are_distinct() -> None:
    for machine in MACHINES:
        assert len(machine.magic) == len(machine.mask) == 20
    masked = {bytes(a & b for a, b in zip(each.magic, each.mask, strict=True)) for each in MACHINES}
    assert len(masked) == len(MACHINES)


def test_machine_from_elf() -> None:
    assert machine_from_elf(32, "little", 62) is None
    for machine in MACHINES:
        assert machine_from_elf(machine.bits, machine.byte_order, machine.e_machine) is machine


def test_native_platform_is_known() -> None:
    assert native_platform() in known_platforms()


def normalize(text: str) -> Platform:
    """Split and normalise a platform, known or not."""
    return Platform.normalize(*text.split("/"))


def accepted_names(host: str) -> list[str]:
    return [str(platform) for platform in accepted_platforms(normalize(host))]


# The same cases as TestOnly of containerd's platforms package.
def test_accepted_platforms() -> None:
    assert accepted_names("linux/amd64") == ["linux/amd64", "linux/386"]
    assert accepted_names("linux/amd64/v3") == [
        "linux/amd64/v3",
        "linux/amd64/v2",
        "linux/amd64",
        "linux/386",
    ]
    assert accepted_names("linux/386") == ["linux/386"]
    assert accepted_names("linux/arm/v5") == ["linux/arm/v5"]
    assert accepted_names("linux/arm") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert accepted_names("linux/riscv64") == ["linux/riscv64"]
    assert accepted_names("linux/arm64") == [
        "linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5",
    ]  # fmt: skip


def test_accepted_platforms_of_armv9() -> None:
    assert accepted_names("linux/arm64/v9")[:4] == [
        f"linux/arm64/{level}" for level in ("v9", "v8.5", "v8.4", "v8.3")
    ]
    assert accepted_names("linux/arm64/v9.1")[:3] == [
        "linux/arm64/v9.1",
        "linux/arm64/v9",
        "linux/arm64/v8.6",
    ]
    assert accepted_names("linux/arm64/v8.1")[:3] == ["linux/arm64/v8.1", "linux/arm64", "linux/arm/v8"]
    assert accepted_names("linux/arm64/v9")[-1] == "linux/arm/v5"


def test_accepted_platforms_of_unknown_variant() -> None:
    assert accepted_names("linux/arm64/odd") == ["linux/arm64/odd", "linux/arm/odd"]
    assert accepted_names("plan9/z80/x") == ["plan9/z80/x"]


@pytest.mark.parametrize(
    ("host", "platform", "expected"),
    [
        ("linux/arm/v7", "linux/arm/v6", True),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("linux/arm64", "linux/arm/v7", True),
        ("linux/arm64", "linux/arm64/v8", True),
        ("linux/arm64", "linux/arm64/v9", False),
        ("linux/arm/v8", "linux/arm64", False),
        ("linux/amd64", "linux/amd64/v2", False),
        ("linux/amd64/v3", "linux/amd64/v1", True),
        ("linux/amd64", "linux/386", True),
        ("linux/386", "linux/amd64", False),
        ("linux/amd64", "windows/amd64", False),
        ("linux/amd64", "linux/arm64", False),
        ("linux/s390x", "linux/s390x", True),
    ],
)
def test_is_compatible(host: str, platform: str, *, expected: bool) -> None:
    assert is_compatible(normalize(host), normalize(platform)) is expected


def test_best_match_is_newest() -> None:
    arms = [normalize(f"linux/arm/{variant}") for variant in ("v5", "v7", "v6")]
    assert find_best_match(normalize("linux/arm64"), arms) == normalize("linux/arm/v7")
    assert find_best_match(normalize("linux/arm/v6"), arms) == normalize("linux/arm/v6")
    assert find_best_match(normalize("linux/arm64"), [*arms, normalize("linux/arm64")]) == normalize(
        "linux/arm64"
    )
    assert find_best_match(normalize("linux/s390x"), arms) is None
    assert find_best_match(
        normalize("linux/amd64/v3"), [normalize("linux/amd64"), normalize("linux/amd64/v2")]
    ) == normalize("linux/amd64/v2")


def test_normalize_numeric_variants() -> None:
    assert normalize("linux/arm/7") == normalize("linux/arm/v7")
    assert normalize("linux/arm/8") == normalize("linux/arm/v8")
    assert normalize("linux/arm64/8") == normalize("linux/arm64")
    assert normalize("linux/amd64/2") == Platform("linux", "amd64", "2")


@pytest.mark.parametrize(
    ("text", "title", "go_value"),
    [
        ("linux/amd64", "x86-64 (baseline)", "v1"),
        ("linux/amd64/v3", "x86-64-v3", "v3"),
        ("linux/arm", "ARMv7", "7"),
        ("linux/arm/v6", "ARMv6", "6"),
        ("linux/arm/v8", "ARMv8", ""),
        ("linux/arm/v4", "ARMv5", "5"),
        ("linux/arm64", "Armv8.0-A", "v8.0"),
        ("linux/386", "x86 with SSE2", "sse2"),
        ("linux/ppc64le", "POWER8", "power8"),
        ("linux/ppc64le/power10", "POWER10", "power10"),
        ("linux/riscv64", "RVA20U64 (rv64gc)", "rva20u64"),
        ("linux/mips64le", "MIPS64 release 2", ""),
    ],
)
def test_baseline(text: str, title: str, go_value: str) -> None:
    baseline = normalize(text).baseline
    assert baseline is not None
    assert (baseline.title, baseline.go_value) == (title, go_value)


def test_no_baseline_without_levels() -> None:
    assert [normalize(text).baseline for text in ("linux/s390x", "linux/loong64", "plan9/z80")] == [
        None,
        None,
        None,
    ]


def test_names_are_unambiguous() -> None:
    names = [name for machine in MACHINES for name in (machine.architecture, *machine.aliases)]
    names += [name for machine in MACHINES for level in machine.variants for name in level.aliases]
    assert len(set(names)) == len(names)
    for name in names:
        assert Platform.parse(name) == platform_of_uname(name)


def test_levels_without_variant_have_no_alias() -> None:
    assert [level.name for machine in MACHINES for level in machine.extra_levels if level.aliases] == []


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("x86_64", "amd64"),
        ("armv5tel", "arm/v5"),
        ("armv8l", "arm/v7"),
        ("i586", "386"),
        ("mips64", "mips64le"),
    ],
)
def test_platform_of_uname(name: str, platform: str) -> None:
    assert platform_of_uname(name) == Platform.parse(platform)


def test_isa_records() -> None:
    recorded = [machine.architecture for machine in MACHINES if machine.has_isa_records]
    assert recorded == ["amd64", "arm", "386", "riscv64", "mips64le"]


def test_isa_levels_are_unambiguous() -> None:
    for machine in MACHINES:
        levels = machine.isa_levels
        values = [value for level in levels for value in {level.go_value, *level.evidence_values} if value]
        assert len({level.name for level in levels}) == len(levels)
        assert len(set(values)) == len(values)


def test_every_machine_has_loaders() -> None:
    for machine in MACHINES:
        assert any("ld-musl-" not in path for path in machine.elf_interpreters)  # glibc's
        assert all("-linux-gnu" in name for name in machine.multiarch_triplets)
        assert machine.multiarch_triplets


def test_foreign_machine_name() -> None:
    assert foreign_machine_name(64, "little", 50) == "ia64"
    assert foreign_machine_name(32, "big", 0xFFFF) == "unknown"
    assert foreign_machine_name(64, "little", 190) == "CUDA"


@pytest.mark.parametrize("text", ["lin/v/amd64", "a/b/c", "x/linux/amd64"])
def test_parse_unknown_os(text: str) -> None:
    with pytest.raises(UsageError, match="unknown platform"):
        Platform.parse(text)
