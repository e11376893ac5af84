"""A builder that is there against the one that is asked for."""

from __future__ import annotations

from typing import Any

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.host.builder.diff import diff_builder
from buildkit_tasks.host.builder.spec import BuilderSpec
from buildkit_tasks.host.builder.store import BuilderRecord, NodeRecord
from buildkit_tasks.report.model import BuilderSummary

HERE = "tcp://127.0.0.1:1"
# What buildx makes of settings' buildkitd.toml: it writes it anew.
REWRITTEN = """
[registry]

  [registry."docker.io"]
    mirrors = ["mirror.example.org"]

[worker]

  [worker.oci]
    max-parallelism = 3
"""


def node(name: str = "a", **more: Any) -> NodeRecord:
    return NodeRecord(name=name, endpoint=more.pop("endpoint", HERE), **more)


def told(*nodes: NodeRecord, driver: str = "docker-container", **settings: Any) -> list[str]:
    """The differences of a builder with these nodes."""
    wanted = BuilderSpec.from_settings(Settings(name="m", **settings))
    found = BuilderSummary(name="m", driver=driver)
    return diff_builder(wanted, found, BuilderRecord(driver=driver, nodes=nodes) if nodes else None)


def test_where_nothing_is_asked_nothing_differs() -> None:
    assert (
        told(node(driver_opts={"image": "x"}, platforms=("linux/arm64",), buildkitd_toml="debug = true"))
        == []
    )


def test_another_driver_is_all_that_is_told() -> None:
    settings: dict[str, Any] = {"driver_opt": ("a=b",), "parallelism": 3}
    assert told(node(), driver="kubernetes", **settings)[0].startswith("has the driver options")
    wanted = BuilderSpec.from_settings(Settings(name="m", driver="docker-container", **settings))
    found = BuilderSummary(name="m", driver="kubernetes")
    assert diff_builder(wanted, found, BuilderRecord(driver="kubernetes", nodes=(node(),))) == [
        "has driver kubernetes, and docker-container is asked for"
    ]


def test_options_that_are_missing_are_told_with_those_that_are_there() -> None:
    assert told(node(driver_opts={"image": "a", "network": "host"}), driver_opt=("image=b",)) == [
        "has the driver options image=a, network=host, and image=b are asked for"
    ]


def test_options_that_nobody_asked_for_are_no_difference() -> None:
    assert told(node(driver_opts={"image": "a", "network": "host"}), driver_opt=("image=a",)) == []


def test_nodes_are_compared_one_by_one() -> None:
    settings: dict[str, Any] = {
        "nodes": (f"name=a,endpoint={HERE},platform=linux/arm64", "name=b,endpoint=tcp://127.0.0.1:2"),
    }
    both = (node(platforms=("linux/arm64", "linux/386")), node("b", endpoint="tcp://127.0.0.1:2"))
    assert told(*both, driver="remote", **settings) == []
    assert told(node(platforms=("linux/386",)), both[1], driver="remote", **settings) == [
        "has on node a the platforms linux/386, and linux/arm64 are asked for"
    ]
    assert told(both[0], node("b", endpoint="tcp://127.0.0.1:3"), driver="remote", **settings) == [
        "has node b at tcp://127.0.0.1:3, and tcp://127.0.0.1:2 is asked for"
    ]


def test_a_node_too_many_is_a_difference_and_one_too_few_is_none() -> None:
    settings: dict[str, Any] = {"nodes": (f"name=a,endpoint={HERE}",)}
    assert told(node(), node("z"), driver="remote", **settings) == ["has nodes that are not asked for: z"]
    settings = {"nodes": (f"name=a,endpoint={HERE}", "name=b,endpoint=tcp://127.0.0.1:2")}
    assert told(node(), driver="remote", **settings) == []


def test_a_nodes_own_options_are_its_own() -> None:
    settings: dict[str, Any] = {
        "nodes": (f"name=a,endpoint={HERE},servername=x",),
        "driver_opt": ("timeout=5s",),
    }
    held = {"servername": "x", "timeout": "5s"}
    assert told(node(driver_opts=held), driver="remote", **settings) == []
    assert told(node(driver_opts={"timeout": "5s"}), driver="remote", **settings) == [
        "has on node a the driver options timeout=5s, and servername=x, timeout=5s are asked for"
    ]


def test_a_configuration_is_compared_by_what_it_means() -> None:
    settings: dict[str, Any] = {"mirrors": ("https://mirror.example.org",), "parallelism": 3}
    assert told(node(buildkitd_toml=REWRITTEN), **settings) == []


def test_the_first_thing_that_a_configuration_says_otherwise_is_told() -> None:
    before = "has another buildkitd.toml than the one that is asked for: "
    assert told(node(buildkitd_toml=REWRITTEN), mirrors=("mirror.example.org",), parallelism=4) == [
        before + "it has worker.oci.max-parallelism = 3, not 4"
    ]
    assert told(node(buildkitd_toml=REWRITTEN), parallelism=3) == [
        before + 'it also has registry.docker.io.mirrors = ["mirror.example.org"]'
    ]
    assert told(node(), parallelism=3) == [before + "it lacks worker.oci.max-parallelism = 3"]


def test_certificates_that_buildx_has_moved_are_no_difference(tmp_path: Any) -> None:
    asked = tmp_path / "buildkitd.toml"
    asked.write_text('[registry."r.example.org"]\n  ca = ["/home/me/ca.pem"]\n', encoding="utf-8")
    moved = '[registry."r.example.org"]\n  ca = ["/etc/buildkit/certs/r.example.org/ca.pem"]\n'
    assert told(node(buildkitd_toml=moved), buildkitd_config=str(asked)) == []


def test_entitlements_are_compared_where_buildx_starts_the_daemon() -> None:
    flags = ("--allow-insecure-entitlement=network.host",)
    assert told(node(buildkitd_flags=flags), allow=("network.host",)) == []
    assert told(node(buildkitd_flags=flags), allow=("network.host", "security.insecure")) == [
        "has no right to give builds the entitlements security.insecure"
    ]
    settings: dict[str, Any] = {"nodes": (f"name=a,endpoint={HERE}",), "allow": ("network.host",)}
    assert told(node(), driver="remote", **settings) == []


def test_the_engines_own_builder_can_be_asked_for_nothing() -> None:
    assert told(driver="docker") == []
    assert told(driver="docker", driver_opt=("a=b",)) == [
        "is the engine's own, which takes no nodes, options or configuration"
    ]
