"""Which node builds which platform."""

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


def assigned(platforms: str, *nodes: NodeSummary, driver: str = "remote") -> list[tuple[str, str, bool]]:
    builder = BuilderSummary(name="m", driver=driver, nodes=nodes)
    found = assign_nodes(parse_platforms(platforms.split()), builder)
    return [(str(each.platform), each.node, each.is_native) for each in found]


def test_a_platforms_own_machine_builds_it() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/arm64", *EVERYTHING))
    assert assigned("linux/amd64 linux/arm64 linux/riscv64", *nodes) == [
        ("linux/amd64", "a", True),
        ("linux/arm64", "b", True),
        ("linux/riscv64", "a", False),
    ]


def test_where_it_is_fixed_it_is_built_be_it_emulated() -> None:
    nodes = (
        node("a", "linux/amd64", *EVERYTHING, fixed=("linux/arm64",)),
        node("b", "linux/arm64", *EVERYTHING, fixed=("linux/amd64",)),
    )
    assert assigned("linux/amd64 linux/arm64", *nodes) == [
        ("linux/amd64", "b", False),
        ("linux/arm64", "a", False),
    ]


def test_what_no_node_offers_is_an_error_that_says_what_each_offers() -> None:
    nodes = (node("a", "linux/amd64", "linux/amd64"), NodeSummary(name="b", endpoint="x", error="is dead"))
    with pytest.raises(BuilderError) as caught:
        assigned("linux/s390x", *nodes)
    assert str(caught.value).startswith(
        "linux/s390x: no node of builder 'm' builds it (a: linux/amd64; b: is dead)"
    )
    assert caught.value.exit_code == 3


def test_the_engines_own_builder_builds_everything_and_says_what_is_native() -> None:
    own = node("default", "linux/amd64")
    assert assigned("linux/amd64 linux/arm64", own, driver="docker") == [
        ("linux/amd64", "default", True),
        ("linux/arm64", "default", False),
    ]


def test_what_a_dry_run_would_make_has_no_nodes_yet() -> None:
    assert assigned("linux/arm64") == [("linux/arm64", "", False)]


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
def test_a_machine_runs_its_own_programs_and_those_of_older_ones(
    machine: str, platform: str, native: bool
) -> None:
    assert is_native(node("a", machine), Platform.parse(platform)) is native


def test_buildkit_names_its_own_machine_first_unless_something_is_fixed() -> None:
    assert infer_native_platform(node("a", "", "linux/arm64", "linux/amd64")) == "linux/arm64"
    assert infer_native_platform(node("a", "", "linux/arm64", fixed=("linux/arm64",))) == ""
    assert infer_native_platform(node("a")) == ""


def test_every_platform_is_fixed_on_exactly_one_node() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/arm64", *EVERYTHING))
    found = choose_fixed_platforms(nodes, {})
    assert found["b"][:1] == ("linux/arm64",)
    assert sorted(sum(found.values(), ())) == sorted(EVERYTHING)


def test_what_is_asked_of_a_node_stays_there_and_the_rest_goes_to_the_others() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/amd64", *EVERYTHING))
    found = choose_fixed_platforms(nodes, {"b": parse_platforms(["linux/arm64"])})
    assert found == {"a": ("linux/amd64", "linux/arm/v7", "linux/riscv64"), "b": ("linux/arm64",)}


def test_what_only_a_node_of_which_something_is_asked_can_do_goes_there_too() -> None:
    nodes = (node("a", "linux/amd64", "linux/amd64"), node("b", "linux/arm64", *EVERYTHING))
    found = choose_fixed_platforms(nodes, {"b": parse_platforms(["linux/arm64"])})
    assert found == {"a": ("linux/amd64",), "b": ("linux/arm64", "linux/arm/v7", "linux/riscv64")}


def test_the_same_nodes_give_the_same_platforms_again() -> None:
    nodes = (node("a", "linux/amd64", *EVERYTHING), node("b", "linux/arm64", *EVERYTHING))
    first = choose_fixed_platforms(nodes, {})
    assert choose_fixed_platforms(nodes, first) == first
