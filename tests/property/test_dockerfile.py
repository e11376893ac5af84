"""Parsing a Dockerfile never fails: BuildKit reports its errors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.build.dockerfile import parse_base_images

TOKENS = st.sampled_from(
    ["FROM", "ARG", "COPY", "RUN", "AS", "scratch", "--from=", "--mount=from=", "$A", "${A:-", "}", "=",
     "\\", "`", "\n", " ", '"', "'", "#", "syntax", "escape=`", "alpine:3", "\ufeff", "\r", "\t", "\x85"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(TOKENS, max_size=40).map("".join))


@given(TEXTS, st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3))
def test_any_text(text: str, build_args: dict[str, str]) -> None:
    bases = parse_base_images(text, build_args)
    assert len(set(bases.images)) == len(bases.images)
    assert "scratch" not in bases.images


@given(st.from_regex(r"[a-c0-9][abc:/._0-9-]*", fullmatch=True))
def test_any_base_name(name: str) -> None:
    assert parse_base_images(f"FROM --platform=$BUILDPLATFORM {name} AS stage\n", {}).images == (name,)
