"""What is asked of a builder: ``--node`` and the settings around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.host.builder.buildx import create_args, fix_platforms_args, leave_args
from buildkit_tasks.host.builder.spec import DEFAULT_IMAGE, BuilderSpec, NodeSpec, split_driver_opts
from buildkit_tasks.platforms import parse_platforms

FLAG = "--allow-insecure-entitlement"
REMOTE = "name=a,endpoint=tcp://127.0.0.1:1234"


def wanted(**settings: Any) -> BuilderSpec:
    return BuilderSpec.from_settings(Settings(**settings))


def created(builder: BuilderSpec, driver: str, config: str = "") -> list[list[str]]:
    """How each node is made."""
    return [
        create_args(builder, node, driver, config, first=number == 0)
        for number, node in enumerate(builder.effective_nodes)
    ]


def test_a_node_is_read_whole(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    files = ",".join(f"{name}={tmp_path / name}" for name in ("ca", "cert", "key"))
    text = f"{REMOTE},platform=linux/arm64,platform=linux/arm/v7,{files},servername=b.example.org"
    assert NodeSpec.parse(text) == NodeSpec(
        name="a",
        endpoint="tcp://127.0.0.1:1234",
        platforms=parse_platforms(["linux/arm64", "linux/arm/v7"]),
        driver_opts=(
            f"cacert={tmp_path}/ca", f"cert={tmp_path}/cert", f"key={tmp_path}/key",
            "servername=b.example.org",
        ),
    )  # fmt: skip


def test_quotes_keep_several_platforms_and_options_with_commas_in_one_node() -> None:
    node = NodeSpec.parse('name=a,"platforms=linux/arm64,linux/arm/v7","driver-opt=label=a,b"')
    assert [str(platform) for platform in node.platforms] == ["linux/arm64", "linux/arm/v7"]
    assert node.driver_opts == ("label=a,b",)


@pytest.mark.parametrize("name", ["servername", "key", "cert", "ca"])
def test_material_that_is_no_file_is_named_with_its_node(tmp_path: Path, name: str) -> None:
    if name == "servername":
        assert NodeSpec.parse(f"{REMOTE},servername=x").driver_opts == ("servername=x",)
        return
    with pytest.raises(UsageError, match=f"node a: {name} names {tmp_path}/none, which is no file"):
        NodeSpec.parse(f"{REMOTE},{name}={tmp_path}/none")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "endpoint=tcp://h:1",
        "name=",
        "name=--rm",
        "name=a b",
        "name=a,name=b",
        "name=a,endpoint=tcp://h:1,endpoint=tcp://h:2",
        "name=a,endpoint=--help",
        "name=a,endpoint=tcp://h",
        "name=a,endpoint=tcp://h:123456",
        "name=a,endpoint=tcp://h:1/x",
        "name=a,endpoint=http://h:1",
        "name=a,endpoint=ssh://",
        "name=a,endpoint=unix:///x y",
        "name=a,platform=linux/zz",
        "name=a,color=red",
        "name=a,arm64",
        'name=a,"endpoint',
        "name=a\nname=b",
    ],
)
def test_row_56_what_is_no_node_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        NodeSpec.parse(text)


@pytest.mark.parametrize(
    ("endpoint", "address"),
    [
        ("tcp://127.0.0.1:1234", ("127.0.0.1", 1234)),
        ("tcp://[::1]:1234", ("::1", 1234)),
        ("tcp://arm.example.org:80", ("arm.example.org", 80)),
        ("ssh://me@host", None),
        ("unix:///run/buildkit/buildkitd.sock", None),
        ("docker-container://name", None),
        ("my-context", None),
    ],
)
def test_only_a_tcp_endpoint_has_an_address(endpoint: str, address: tuple[str, int] | None) -> None:
    assert NodeSpec.parse(f"name=a,endpoint={endpoint}").address == address


def test_two_nodes_of_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match="two nodes have one name: a, a"):
        wanted(nodes=(REMOTE, "name=a,endpoint=tcp://127.0.0.1:2"))


@pytest.mark.parametrize(
    "settings",
    [
        {"driver": "docker", "nodes": (REMOTE,)},
        {"driver": "docker", "driver_opt": ("a=b",)},
        {"driver": "docker", "parallelism": 2},
        {"driver": "remote", "nodes": ("name=a",)},
        {"driver": "remote", "nodes": (REMOTE, "name=b")},
        {"driver": "remote", "nodes": (REMOTE,), "parallelism": 2},
    ],
)
def test_a_driver_that_cannot_have_what_is_asked_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        wanted(**settings)
    assert caught.value.hint


@pytest.mark.parametrize("driver", ["docker-container", "kubernetes", "auto"])
def test_tls_material_of_an_engine_lies_in_a_docker_context(driver: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x", encoding="utf-8")
    node = f"name=a,endpoint=tcp://127.0.0.1:2376,ca={tmp_path}/ca.pem"
    with pytest.raises(UsageError, match="node a: its TLS material goes with --driver=remote") as caught:
        wanted(driver=driver, nodes=(node,)).check_creatable()
    assert "docker context create a" in str(caught.value.hint)
    wanted(driver="auto", nodes=(node,))  # of a remote builder that is there


def test_a_remote_builder_that_is_there_needs_no_nodes_and_a_new_one_does() -> None:
    found = wanted(driver="remote")
    with pytest.raises(UsageError, match="where each BuildKit is"):
        found.check_creatable()
    wanted(driver="remote", nodes=(REMOTE,)).check_creatable()


@pytest.mark.parametrize("driver", ["docker", "remote"])
def test_a_mirror_is_for_our_own_reading_too_and_no_demand_on_a_builder(driver: str) -> None:
    mirrored = wanted(driver=driver, mirrors=("https://mirror.example.org",))
    assert (mirrored.has_buildkitd_settings, mirrored.has_requirements) == (False, False)
    assert "mirror.example.org" in wanted(mirrors=("https://mirror.example.org",)).buildkitd_toml


def test_options_are_split_as_buildx_splits_them() -> None:
    assert split_driver_opts(["image=x,network=host", '"label=a,b"']) == (
        "image=x",
        "network=host",
        "label=a,b",
    )
    assert wanted(driver_opt=("network=host,image=mine:1",)).image == "mine:1"
    assert wanted().image == DEFAULT_IMAGE


def test_every_node_of_a_remote_builder_is_made_with_its_own_options() -> None:
    other = "name=b,endpoint=tcp://127.0.0.1:2,driver-opt=timeout=5s"
    builder = wanted(name="m", driver="remote", nodes=(REMOTE, other), driver_opt=("servername=x",))
    assert created(builder, "remote") == [
        ["create", "--name=m", "--driver=remote", "--node=a", "--driver-opt=servername=x",
         "--", "tcp://127.0.0.1:1234"],
        ["create", "--name=m", "--append", "--driver=remote", "--node=b", "--driver-opt=servername=x",
         "--driver-opt=timeout=5s", "--", "tcp://127.0.0.1:2"],
    ]  # fmt: skip


def test_an_option_with_a_comma_stays_one_option() -> None:
    builder = wanted(name="m", driver="docker-container", driver_opt=('"env.LIST=a,b"',))
    assert '--driver-opt="env.LIST=a,b"' in created(builder, "docker-container")[0]


def test_buildkits_configuration_and_entitlements_go_to_daemons_that_buildx_starts() -> None:
    builder = wanted(name="m", allow=("network.host", "security.insecure"))
    assert created(builder, "docker-container", "/x.toml") == [
        ["create", "--name=m", "--driver=docker-container", "--buildkitd-config=/x.toml",
         f"--buildkitd-flags={FLAG}=network.host {FLAG}=security.insecure", "--bootstrap"],
    ]  # fmt: skip


def test_kubernetes_is_given_its_options_word_for_word() -> None:
    options = ("namespace=ci", "replicas=3", '"nodeselector=kubernetes.io/arch=arm64"', "rootless=true")
    builder = wanted(name="k", driver="kubernetes", driver_opt=options)
    assert created(builder, "kubernetes", "/x.toml") == [
        ["create", "--name=k", "--driver=kubernetes", "--driver-opt=namespace=ci",
         "--driver-opt=replicas=3", "--driver-opt=nodeselector=kubernetes.io/arch=arm64",
         "--driver-opt=rootless=true", "--buildkitd-config=/x.toml", "--bootstrap"],
    ]  # fmt: skip


def test_kubernetes_may_have_a_node_for_each_machine() -> None:
    nodes = (
        "name=amd,platform=linux/amd64,driver-opt=nodeselector=kubernetes.io/arch=amd64",
        "name=arm,platform=linux/arm64,driver-opt=nodeselector=kubernetes.io/arch=arm64",
    )
    builder = wanted(name="k", driver="kubernetes", nodes=nodes, driver_opt=("namespace=ci",))
    assert created(builder, "kubernetes") == [
        ["create", "--name=k", *more, "--driver=kubernetes", f"--node={name}", "--driver-opt=namespace=ci",
         f"--driver-opt=nodeselector=kubernetes.io/arch={machine}"]
        for more, name, machine in (([], "amd", "amd64"), (["--append"], "arm", "arm64"))
    ]  # fmt: skip


def test_platforms_are_fixed_on_a_node_that_is_there_and_nodes_leave() -> None:
    assert fix_platforms_args("m", "a", "tcp://h:1", ("linux/arm64", "linux/arm/v7")) == [
        "create", "--name=m", "--append", "--node=a", "--platform=linux/arm64,linux/arm/v7", "--", "tcp://h:1",
    ]  # fmt: skip
    assert leave_args("m", "a") == ["create", "--name=m", "--leave", "--node=a"]
