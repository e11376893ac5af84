from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, known_platforms, parse_platforms

known = st.sampled_from(known_platforms())
pieces = st.sampled_from(["linux", "amd64", "arm", "arm64", "v7", "v8", "/", ",", " ", "--", "\n", "x", ""])


@given(known)
def test_what_a_platform_prints_parses_to_itself(platform: Platform) -> None:
    assert Platform.parse(str(platform)) == platform
    assert Platform.parse(str(platform).upper()) == platform
    assert Platform.parse(str(platform).removeprefix("linux/")) == platform


@given(known)
def test_normalising_again_changes_nothing(platform: Platform) -> None:
    assert Platform.normalize(platform.os, platform.architecture, platform.variant) == platform


@given(st.text(), st.text(), st.text())
def test_what_an_image_states_is_normalised_once_and_for_all(system: str, machine: str, variant: str) -> None:
    once = Platform.normalize(system, machine, variant)
    assert Platform.normalize(once.os, once.architecture, once.variant) == once


@given(st.text() | st.lists(pieces).map("".join))
def test_any_text_is_a_known_platform_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Platform.parse(text) in known_platforms()


@given(st.lists(known), st.booleans())
def test_a_list_is_each_platform_once_in_order(platforms: list[Platform], commas: bool) -> None:
    names = [str(platform) for platform in platforms]
    found = parse_platforms([",".join(names)] if commas else names)
    assert list(found) == list(dict.fromkeys(platforms))
