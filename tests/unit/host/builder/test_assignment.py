from __future__ import annotations

import pytest

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.assignment import (
    assign_nodes,
    choose_fixed_platforms,
    infer_native_platform,
    is_native,
)
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import BuilderSummary, NodeSummary

EVERYTHING = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/riscv64")


def node(name: str, native: str = "", *platforms: str, fixed: tuple[str, ...] = ()) -> NodeSummary:
    return NodeSummary(name=name, endpoint="x", native=native, platforms=platforms, fixed=fixed)


def assign(platforms: str, *nodes: NodeSummary, driver: str = "remote") -> list[tuple[str, str, bool]]:
    builder = BuilderSummary(name="m", driver=driver, nodes=nodes)
    assignments = assign_nodes(parse_platforms(platforms.split()), builder)
    return [(str(each.platform), each.node, each.is_native) for each in assignments]


def test_native_node_is_preferred() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/arm64", *EVERYTHING))
    assert assign("linux/amd64 linux/arm64 linux/riscv64", *nodes) == [
        ("linux/amd64", "a", True),
        ("linux/arm64", "b", True),
        ("linux/riscv64", "a", False),
    ]


def test_fixed_platforms_win() -> None:
    nodes = (
        node("a", "linux/amd64", *EVERYTHING, fixed=("linux/arm64",)),
        node("b", "linux/arm64", *EVERYTHING, fixed=("linux/amd64",)),
    )
    assert assign("linux/amd64 linux/arm64", *nodes) == [
        ("linux/amd64", "b", False),
        ("linux/arm64", "a", False),
    ]


def test_no_node_for_platform() -> None:
    nodes = (node("a", "linux/amd64", "linux/amd64"), NodeSummary(name="b", endpoint="x", error="is dead"))
    with pytest.raises(BuilderError) as excinfo:
        assign("linux/s390x", *nodes)
    assert str(excinfo.value).startswith(
        "linux/s390x: no node of builder 'm' can build it (a: linux/amd64; b: is dead)"
    )
    assert excinfo.value.exit_code == 3


def test_docker_driver_builds_everything() -> None:
    own = node("default", "linux/amd64")
    assert assign("linux/amd64 linux/arm64", own, driver="docker") == [
        ("linux/amd64", "default", True),
        ("linux/arm64", "default", False),
    ]


def test_dry_run_has_no_nodes() -> None:
    assert assign("linux/arm64") == [("linux/arm64", "", False)]


@pytest.mark.parametrize(
    ("machine", "platform", "native"),
    [
        ("linux/amd64", "linux/386", True),
        ("linux/arm64", "linux/arm64", True),
        ("linux/arm64", "linux/amd64", False),
        ("linux/arm/v7", "linux/arm/v6", True),
        ("linux/arm/v6", "linux/arm/v7", False),
        ("", "linux/amd64", False),
    ],
)
def test_is_native(machine: str, platform: str, native: bool) -> None:
    assert is_native(node("a", machine), Platform.parse(platform)) is native


def test_infer_native_platform() -> None:
    assert infer_native_platform(node("a", "", "linux/arm64", "linux/amd64")) == "linux/arm64"
    assert infer_native_platform(node("a", "", "linux/arm64", fixed=("linux/arm64",))) == ""
    assert infer_native_platform(node("a")) == ""


def test_each_platform_is_fixed_once() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/arm64", *EVERYTHING))
    fixed = choose_fixed_platforms(nodes, {})
    assert fixed["b"][:1] == ("linux/arm64",)
    assert sorted(sum(fixed.values(), ())) == sorted(EVERYTHING)


def test_requested_platforms_stay() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/amd64", *EVERYTHING))
    fixed = choose_fixed_platforms(nodes, {"b": parse_platforms(["linux/arm64"])})
    assert fixed == {"a": ("linux/amd64", "linux/arm/v7", "linux/riscv64"), "b": ("linux/arm64",)}


def test_only_possible_node_gets_the_rest() -> None:
    nodes = (node("a", "linux/amd64", "linux/amd64"), node("b", "linux/arm64", *EVERYTHING))
    fixed = choose_fixed_platforms(nodes, {"b": parse_platforms(["linux/arm64"])})
    assert fixed == {"a": ("linux/amd64",), "b": ("linux/arm64", "linux/arm/v7", "linux/riscv64")}


def test_fixed_platforms_are_stable() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/arm64", *EVERYTHING))
    first = choose_fixed_platforms(nodes, {})
    assert choose_fixed_platforms(nodes, first) == first
