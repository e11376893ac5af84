from __future__ import annotations

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import (
    MACHINES,
    Platform,
    known_platforms,
    machine_of_elf,
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
    assert Platform.normalised("plan9", "z80", "v1") == Platform("plan9", "z80", "v1")


def test_each_known_platform_has_what_the_other_rooms_ask_of_it() -> None:
    for platform in known_platforms():
        assert platform.machine.architecture == platform.architecture
        assert platform.debian
        assert platform.cpu


def test_variants_have_their_own_debian_and_cpu() -> None:
    assert Platform.parse("arm/v6").debian == "armel"
    assert Platform.parse("arm/v6").cpu == "arm1176"
    assert Platform.parse("arm/v7").debian == "armhf"


def test_magic_and_mask_are_twenty_bytes_and_no_two_match() -> None:
    for row in MACHINES:
        assert len(row.magic) == len(row.mask) == 20
    masked = {bytes(a & b for a, b in zip(row.magic, row.mask, strict=True)) for row in MACHINES}
    assert len(masked) == len(MACHINES)


def test_an_elf_header_of_no_row_is_none() -> None:
    assert machine_of_elf(1, 1, 62) is None
    assert machine_of_elf(2, 1, 62) is not None


def test_the_running_machine_has_a_platform() -> None:
    assert native_platform() in known_platforms()
