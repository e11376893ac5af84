from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.build.dockerfile import BaseImages, parse_base_images
from buildkit_tasks.platforms import Platform
from tests.support.growth import assert_linear


def base_images(text: str, **build_args: str) -> list[str]:
    return list(parse_base_images(text, build_args).images)


def test_bases_of_example() -> None:
    example = Path(__file__).parents[3] / "examples/hello/Dockerfile"
    bases = parse_base_images(example.read_text(encoding="utf-8"), {})
    assert bases == BaseImages(images=("golang:1.27", "alpine:latest"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM alpine", ["alpine"]),
        ("from alpine:3.20 as x", ["alpine:3.20"]),
        ("FROM --platform=$BUILDPLATFORM golang:1.17 AS build", ["golang:1.17"]),
        ("FROM docker.io/library/alpine@sha256:00", ["docker.io/library/alpine@sha256:00"]),
        ("FROM scratch\nCOPY x /", []),
        ("FROM a AS one\nFROM one AS two\nFROM TWO\nCOPY --from=One /x /x", ["a"]),
        ("FROM a\nFROM a", ["a"]),
        ("FROM a AS x\nFROM b\nCOPY --from=x / /\nCOPY --from=0 / /\nCOPY --from=c:1 / /", ["a", "b", "c:1"]),
        ("FROM a\nRUN --mount=type=bind,from=b,target=/x ls", ["a", "b"]),
        ("FROM a\nRUN --mount=type=cache,target=/x --mount=from=c,target=/y ls", ["a", "c"]),
        ("FROM a\nCOPY --chown=1:1 --from=b /x /y", ["a", "b"]),
        ("FROM a\nCOPY --from=$X /x /y", ["a"]),
        ("# FROM b\nFROM a\n  # FROM c\n", ["a"]),
        ("FROM \\\n  --platform=linux/amd64 \\\n  a \\\n  AS x", ["a"]),
        ("FROM \\\n# a comment in between\n  a", ["a"]),
        ("FROM a\nRUN echo FROM b", ["a"]),
        ("FROM a\r\nFROM b\r\n", ["a", "b"]),
        ("", []),
        ("FROM", []),
    ],
)
def test_base_images(text: str, expected: list[str]) -> None:
    assert base_images(text) == expected


@pytest.mark.parametrize(
    ("reference", "build_args", "expected"),
    [
        ("alpine:$V", {}, "alpine:3"),
        ("alpine:${V}", {}, "alpine:3"),
        ("alpine:$V", {"V": "4"}, "alpine:4"),
        ("${R}/alpine", {}, "my.example/alpine"),
        ("${NONE:-busybox}", {}, "busybox"),
        ("${NONE-busybox}", {"NONE": "alpine"}, "busybox"),
        ("${V:-9}", {}, "3"),
        ('"alpine"', {}, "alpine"),
    ],
)
def test_global_args(reference: str, build_args: dict[str, str], expected: str) -> None:
    text = f"ARG V=3 R='my.example'\nFROM {reference}\n"
    assert base_images(text, **build_args) == [expected]


def test_stage_args_are_ignored() -> None:
    assert base_images("ARG V=1\nFROM a:$V AS x\nARG V=2\nFROM b:$V\n") == ["a:1", "b:1"]


@pytest.mark.parametrize(
    ("text", "syntax"),
    [
        ("# syntax=docker/dockerfile:1\nFROM a", "docker/dockerfile:1"),
        ("#syntax = docker/dockerfile:1  \nFROM a", "docker/dockerfile:1"),
        ("# Syntax=x\nFROM a", "x"),
        ("# escape=`\n# check=skip=all\n# syntax=x\nFROM a", "x"),
        ("\ufeff# syntax=x\nFROM a", "x"),
        ("# a comment\n# syntax=x\nFROM a", ""),
        ("\n# syntax=x\nFROM a", ""),
        ("FROM a\n# syntax=x", ""),
        ("FROM a", ""),
    ],
)
def test_syntax_directive(text: str, syntax: str) -> None:
    assert parse_base_images(text, {}) == BaseImages(images=("a",), syntax=syntax)


def test_line_continuation() -> None:
    assert base_images("FROM a AS x\nRUN v=`date`\nFROM b\n") == ["a", "b"]
    assert base_images("# escape=`\nFROM `\n a\nRUN dir C:\\\nFROM b\n") == ["a", "b"]


def uses(text: str, target: str = "", **build_args: str) -> list[str]:
    """Return the image and platform of each use in a build for arm64 on amd64."""
    bases = replace(parse_base_images(text, build_args), target=target)
    found = bases.list_uses(Platform.parse("linux/arm64"), Platform.parse("linux/amd64"))
    return [f"{use.image} {use.platform}" for use in found]


@pytest.mark.parametrize(
    ("line", "platform"),
    [
        ("FROM a", "linux/arm64"),
        ("FROM --platform=$TARGETPLATFORM a", "linux/arm64"),
        ("FROM --platform=$BUILDPLATFORM a", "linux/amd64"),
        ("FROM --platform=${BUILDPLATFORM:-linux/386} a", "linux/amd64"),
        ("FROM --platform=linux/$BUILDARCH a AS x", "linux/amd64"),
        ("FROM --platform=linux/arm/v7 a", "linux/arm/v7"),
        ("FROM --platform=$P a", "linux/s390x"),
        ("FROM --platform=$NONE a", "linux/arm64"),
        ("FROM --platform=no/such/thing/x a", "linux/arm64"),
    ],
)
def test_platform_of_base(line: str, platform: str) -> None:
    assert uses(f"ARG P=linux/386 BUILDPLATFORM\n{line}\n", P="linux/s390x") == [f"a {platform}"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("", ["e linux/arm64", "b linux/amd64", "c linux/arm64", "d linux/arm64"]),
        ("two", ["b linux/amd64"]),
        ("0", ["a linux/arm64"]),
        ("none", ["e linux/arm64", "b linux/amd64", "c linux/arm64", "d linux/arm64"]),
    ],
)
def test_needed_stages(target: str, expected: list[str]) -> None:
    text = """
FROM a AS unused
FROM --platform=$BUILDPLATFORM b AS one
FROM one AS Two
FROM e AS final-arm64
FROM x AS final-amd64
FROM final-$TARGETARCH
COPY --from=two /x /x
COPY --from=c /y /y
RUN --mount=from=d,target=/d true
COPY --from=1 /z /z
"""
    assert sorted(uses(text, target)) == sorted(expected)


def test_unnamed_stages_are_no_base() -> None:
    assert uses("FROM scratch\nFROM scratch\nCOPY --from=0 /a /a\nCOPY --from=7 /b /b\n") == ["7 linux/arm64"]
    assert uses("") == []


# Growth.


def list_all_uses(text: str) -> int:
    platform = Platform.parse("linux/arm64")
    return len(parse_base_images(text, {}).list_uses(platform, platform))


def diamonds(count: int) -> str:
    """Return stages that each need the one before twice: 2**count paths lead to the first."""
    stages = (f"FROM s{number} AS s{number + 1}\nCOPY --from=s{number} / /" for number in range(count))
    return "FROM alpine AS s0\n" + "\n".join(stages)


def test_stages_are_visited_once() -> None:
    assert list_all_uses(diamonds(3000)) == 1


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        ("RUN ", "--mount="),
        ("RUN --mount=type=bind,from=x", ",from"),
        ("", "COPY --from=a / /\n"),
        ("", "FROM a AS b\n"),
        ("FROM ", "${a-"),
        ("ARG A=" + "a" * 1000 + "\nFROM ", "$A"),
        ("COPY --from=", "9"),
    ],
)
def test_cost_of_dockerfile(start: str, piece: str) -> None:
    assert_linear(list_all_uses, lambda size: f"FROM a\n{start}{piece * (size // len(piece))}\n", 1 << 20)


def test_cost_of_stages() -> None:
    assert_linear(list_all_uses, diamonds, 20_000)
