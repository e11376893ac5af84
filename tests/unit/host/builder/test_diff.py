from __future__ import annotations

from typing import Any

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.host.builder.diff import diff_builder
from buildkit_tasks.host.builder.spec import BuilderSpec
from buildkit_tasks.host.builder.store import BuilderRecord, NodeRecord
from buildkit_tasks.report.model import BuilderSummary

ENDPOINT = "tcp://127.0.0.1:1"
# How buildx stores a buildkitd.toml: it reformats it.
REFORMATTED = """
[registry]

  [registry."docker.io"]
    mirrors = ["mirror.example.org"]

[worker]

  [worker.oci]
    max-parallelism = 3
"""


def node(name: str = "a", **more: Any) -> NodeRecord:
    return NodeRecord(name=name, endpoint=more.pop("endpoint", ENDPOINT), **more)


def diff(*nodes: NodeRecord, actual: str = "docker-container", **settings: Any) -> list[str]:
    """Compare a builder with these nodes and the driver ``actual`` with the settings."""
    spec = BuilderSpec.from_settings(Settings(name="m", **settings))
    record = BuilderRecord(driver=actual, nodes=nodes) if nodes else None
    return diff_builder(spec, BuilderSummary(name="m", driver=actual), record)


def test_no_settings_no_difference() -> None:
    extras = node(driver_opts={"image": "x"}, platforms=("linux/arm64",), buildkitd_toml="debug = true")
    assert diff(extras) == []


def test_driver_differs() -> None:
    settings: dict[str, Any] = {"driver_opt": ("a=b",), "parallelism": 3}
    assert diff(node(), actual="kubernetes", **settings)[0].startswith("has the driver options")
    assert diff(node(), actual="kubernetes", driver="docker-container", **settings) == [
        "has driver kubernetes instead of docker-container"
    ]


def test_driver_option_is_missing() -> None:
    assert diff(node(driver_opts={"image": "a", "network": "host"}), driver_opt=("image=b",)) == [
        "has the driver options image=a, network=host instead of image=b"
    ]


def test_extra_driver_options() -> None:
    assert diff(node(driver_opts={"image": "a", "network": "host"}), driver_opt=("image=a",)) == []


def test_node_differs() -> None:
    settings: dict[str, Any] = {
        "nodes": (f"name=a,endpoint={ENDPOINT},platform=linux/arm64", "name=b,endpoint=tcp://127.0.0.1:2")
    }
    both = (node(platforms=("linux/arm64", "linux/386")), node("b", endpoint="tcp://127.0.0.1:2"))
    assert diff(*both, actual="remote", **settings) == []
    assert diff(node(platforms=("linux/386",)), both[1], actual="remote", **settings) == [
        "has on node a the platforms linux/386 instead of linux/arm64"
    ]
    assert diff(both[0], node("b", endpoint="tcp://127.0.0.1:3"), actual="remote", **settings) == [
        "has node b at tcp://127.0.0.1:3 instead of tcp://127.0.0.1:2"
    ]


def test_extra_and_missing_nodes() -> None:
    settings: dict[str, Any] = {"nodes": (f"name=a,endpoint={ENDPOINT}",)}
    extra = diff(node(), node("z"), actual="remote", **settings)
    assert extra == ["has nodes that are not in the settings: z"]
    settings = {"nodes": (f"name=a,endpoint={ENDPOINT}", "name=b,endpoint=tcp://127.0.0.1:2")}
    assert diff(node(), actual="remote", **settings) == []


def test_driver_options_of_node() -> None:
    settings: dict[str, Any] = {
        "nodes": (f"name=a,endpoint={ENDPOINT},servername=x",),
        "driver_opt": ("timeout=5s",),
    }
    driver_opts = {"servername": "x", "timeout": "5s"}
    assert diff(node(driver_opts=driver_opts), actual="remote", **settings) == []
    assert diff(node(driver_opts={"timeout": "5s"}), actual="remote", **settings) == [
        "has on node a the driver options timeout=5s instead of servername=x, timeout=5s"
    ]


def test_config_is_compared_by_value() -> None:
    settings: dict[str, Any] = {"mirrors": ("https://mirror.example.org",), "parallelism": 3}
    assert diff(node(buildkitd_toml=REFORMATTED), **settings) == []


def test_first_config_difference() -> None:
    prefix = "has another buildkitd.toml: "
    assert diff(node(buildkitd_toml=REFORMATTED), mirrors=("mirror.example.org",), parallelism=4) == [
        prefix + "it has worker.oci.max-parallelism = 3, not 4"
    ]
    assert diff(node(buildkitd_toml=REFORMATTED), parallelism=3) == [
        prefix + 'it also has registry.docker.io.mirrors = ["mirror.example.org"]'
    ]
    assert diff(node(), parallelism=3) == [prefix + "it lacks worker.oci.max-parallelism = 3"]


def test_paths_of_certificates_are_ignored(tmp_path: Any) -> None:
    config = tmp_path / "buildkitd.toml"
    config.write_text('[registry."r.example.org"]\n  ca = ["/home/me/ca.pem"]\n', encoding="utf-8")
    copied = '[registry."r.example.org"]\n  ca = ["/etc/buildkit/certs/r.example.org/ca.pem"]\n'
    assert diff(node(buildkitd_toml=copied), buildkitd_config=str(config)) == []


def test_entitlements_differ() -> None:
    flags = ("--allow-insecure-entitlement=network.host",)
    assert diff(node(buildkitd_flags=flags), allow=("network.host",)) == []
    assert diff(node(buildkitd_flags=flags), allow=("network.host", "security.insecure")) == [
        "does not allow the entitlements security.insecure"
    ]
    settings: dict[str, Any] = {"nodes": (f"name=a,endpoint={ENDPOINT}",), "allow": ("network.host",)}
    assert diff(node(), actual="remote", **settings) == []


def test_docker_driver_has_no_options() -> None:
    assert diff(actual="docker") == []
    assert diff(actual="docker", driver_opt=("a=b",)) == [
        "is the engine's own builder, which has no nodes, options or configuration"
    ]
