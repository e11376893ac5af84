from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, known_platforms, parse_platforms

known = st.sampled_from(known_platforms())
tokens = st.sampled_from(["linux", "amd64", "arm", "arm64", "v7", "v8", "/", ",", " ", "--", "\n", "x", ""])


@given(known)
def test_parse_round_trip(platform: Platform) -> None:
    assert Platform.parse(str(platform)) == platform
    assert Platform.parse(str(platform).upper()) == platform
    assert Platform.parse(str(platform).removeprefix("linux/")) == platform


@given(known)
def test_known_platforms_are_normal(platform: Platform) -> None:
    assert Platform.normalize(platform.os, platform.architecture, platform.variant) == platform


@given(st.text(), st.text(), st.text())
def test_normalize_is_idempotent(os: str, architecture: str, variant: str) -> None:
    once = Platform.normalize(os, architecture, variant)
    assert Platform.normalize(once.os, once.architecture, once.variant) == once


@given(st.text() | st.lists(tokens).map("".join))
def test_parse_any_text(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert Platform.parse(text) in known_platforms()


@given(st.lists(known), st.booleans())
def test_parse_platforms_drops_repeats(platforms: list[Platform], commas: bool) -> None:
    names = [str(platform) for platform in platforms]
    parsed = parse_platforms([",".join(names)] if commas else names)
    assert list(parsed) == list(dict.fromkeys(platforms))
