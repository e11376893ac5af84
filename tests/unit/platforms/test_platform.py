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
        (" Linux/ARM64 ", "linux/arm64"),
    ],
)
def test_the_usual_spellings_mean_one_platform(text: str, platform: str) -> None:
    assert str(Platform.parse(text)) == platform


@pytest.mark.parametrize(
    "text", ["", "linux/", "--privileged", "linux/arm/v7/x", "linux/arm64\nlinux/386", "a b", "linux/../x"]
)
def test_row_56_text_that_is_no_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Platform.parse(text)


@pytest.mark.parametrize("text", ["linux/zz", "plan9/amd64", "linux/arm/v4"])
def test_an_unknown_platform_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError, match="unknown platform") as caught:
        Platform.parse(text)
    assert caught.value.hint


def test_a_slip_of_the_finger_gets_the_platform_that_was_meant() -> None:
    with pytest.raises(UsageError) as caught:
        Platform.parse("linux/amd46")
    assert caught.value.hint == "did you mean linux/amd64?"


def test_lists_keep_their_order_and_drop_repetitions() -> None:
    found = parse_platforms(["linux/arm64,amd64", "aarch64", ""])
    assert [str(platform) for platform in found] == ["linux/arm64", "linux/amd64"]


def test_a_slug_names_tests_and_tags() -> None:
    assert [Platform.parse(text).slug for text in ("arm/v7", "amd64")] == ["arm-v7", "amd64"]


def test_an_image_may_state_a_platform_that_nobody_knows() -> None:
    assert Platform.normalize("plan9", "z80", "v1") == Platform("plan9", "z80", "v1")


def test_each_known_platform_has_what_the_other_rooms_ask_of_it() -> None:
    for platform in known_platforms():
        assert platform.machine.architecture == platform.architecture
        assert platform.debian_architecture
        assert platform.baseline_cpu


def test_variants_have_their_own_debian_and_cpu() -> None:
    assert Platform.parse("arm/v6").debian_architecture == "armel"
    assert Platform.parse("arm/v6").baseline_cpu == "arm1176"
    assert Platform.parse("arm/v7").debian_architecture == "armhf"


def test_magic_and_mask_are_twenty_bytes_and_no_two_match() -> None:
    for row in MACHINES:
        assert len(row.magic) == len(row.mask) == 20
    masked = {bytes(a & b for a, b in zip(row.magic, row.mask, strict=True)) for row in MACHINES}
    assert len(masked) == len(MACHINES)


def test_an_elf_header_of_no_row_is_none() -> None:
    assert machine_from_elf(1, 1, 62) is None
    assert machine_from_elf(2, 1, 62) is not None


def test_the_running_machine_has_a_platform() -> None:
    assert native_platform() in known_platforms()


def on(text: str) -> Platform:
    """A platform as an image or a machine states it, known or not."""
    return Platform.normalize(*text.split("/"))


def names(host: str) -> list[str]:
    return [str(platform) for platform in accepted_platforms(on(host))]


# The lists are containerd's: TestOnly of its platforms package has the same cases.
def test_a_machine_takes_its_own_platform_first_and_then_older_ones() -> None:
    assert names("linux/amd64") == ["linux/amd64", "linux/386"]
    assert names("linux/amd64/v3") == ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]
    assert names("linux/386") == ["linux/386"]
    assert names("linux/arm/v5") == ["linux/arm/v5"]
    assert names("linux/arm") == ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
    assert names("linux/riscv64") == ["linux/riscv64"]
    assert names("linux/arm64") == [
        "linux/arm64", "linux/arm/v8", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5",
    ]  # fmt: skip


def test_armv9_takes_what_it_branched_from() -> None:
    assert names("linux/arm64/v9")[:4] == [f"linux/arm64/{level}" for level in ("v9", "v8.5", "v8.4", "v8.3")]
    assert names("linux/arm64/v9.1")[:3] == ["linux/arm64/v9.1", "linux/arm64/v9", "linux/arm64/v8.6"]
    assert names("linux/arm64/v8.1")[:3] == ["linux/arm64/v8.1", "linux/arm64", "linux/arm/v8"]
    assert names("linux/arm64/v9")[-1] == "linux/arm/v5"


def test_a_variant_that_nobody_knows_is_taken_by_itself_alone() -> None:
    assert names("linux/arm64/odd") == ["linux/arm64/odd", "linux/arm/odd"]
    assert names("plan9/z80/x") == ["plan9/z80/x"]


@pytest.mark.parametrize(
    ("host", "wanted", "taken"),
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
def test_an_image_is_taken_or_not_as_by_containerd(host: str, wanted: str, *, taken: bool) -> None:
    assert is_compatible(on(host), on(wanted)) is taken


def test_the_newest_that_a_machine_can_run_is_its_best_match() -> None:
    arms = [on(f"linux/arm/{variant}") for variant in ("v5", "v7", "v6")]
    assert find_best_match(on("linux/arm64"), arms) == on("linux/arm/v7")
    assert find_best_match(on("linux/arm/v6"), arms) == on("linux/arm/v6")
    assert find_best_match(on("linux/arm64"), [*arms, on("linux/arm64")]) == on("linux/arm64")
    assert find_best_match(on("linux/s390x"), arms) is None
    assert find_best_match(on("linux/amd64/v3"), [on("linux/amd64"), on("linux/amd64/v2")]) == on(
        "linux/amd64/v2"
    )


def test_variants_without_their_letter_are_the_same() -> None:
    assert on("linux/arm/7") == on("linux/arm/v7")
    assert on("linux/arm64/8") == on("linux/arm64")
    assert on("linux/amd64/2") == Platform("linux", "amd64", "2")


@pytest.mark.parametrize(
    ("text", "title", "go"),
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
def test_a_platforms_name_promises_a_level(text: str, title: str, go: str) -> None:
    promise = on(text).baseline
    assert promise is not None
    assert (promise.title, promise.go_value) == (title, go)


def test_where_there_are_no_levels_there_is_no_promise() -> None:
    assert [on(text).baseline for text in ("linux/s390x", "linux/loong64", "plan9/z80")] == [None, None, None]


def test_every_level_has_one_name_and_every_saying_one_level() -> None:
    for row in MACHINES:
        levels = [level.name for level in row.isa_levels]
        said = [
            value for level in row.isa_levels for value in (level.go_value, *level.evidence_values) if value
        ]
        assert len(set(levels)) == len(levels)
        assert len(said) - len(set(said)) == sum(
            level.go_value in level.evidence_values for level in row.isa_levels if level.go_value
        )


def test_every_architecture_has_loaders_of_both_libraries_and_a_library_folder() -> None:
    for row in MACHINES:
        assert any("ld-musl-" in path for path in row.elf_interpreters)
        assert any("ld-musl-" not in path for path in row.elf_interpreters)
        assert all("-linux-gnu" in name for name in row.multiarch_triplets)
        assert row.multiarch_triplets


def test_a_foreign_machine_has_a_name_and_no_row() -> None:
    assert foreign_machine_name(64, "little", 50) == "ia64"
    assert foreign_machine_name(32, "big", 0xFFFF) == "unknown"
    assert foreign_machine_name(64, "little", 190) == "CUDA"


@pytest.mark.parametrize("text", ["lin/v/amd64", "a/b/c", "x/linux/amd64"])
def test_three_parts_without_a_system_that_is_known_are_no_platform(text: str) -> None:
    with pytest.raises(UsageError, match="unknown platform"):
        Platform.parse(text)
