from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.host.builder.buildx import create_args, fix_platforms_args, leave_args
from buildkit_tasks.host.builder.spec import DEFAULT_IMAGE, BuilderSpec, NodeSpec, split_driver_opts
from buildkit_tasks.platforms import parse_platforms

ALLOW_FLAG = "--allow-insecure-entitlement"
REMOTE_NODE = "name=a,endpoint=tcp://127.0.0.1:1234"


def make_spec(**settings: Any) -> BuilderSpec:
    return BuilderSpec.from_settings(Settings(**settings))


def create_all_args(spec: BuilderSpec, driver: str, config: str = "") -> list[list[str]]:
    """Return the arguments that create each node."""
    return [
        create_args(spec, node, driver, config, first=number == 0)
        for number, node in enumerate(spec.effective_nodes)
    ]


def test_parse_node(tmp_path: Path) -> None:
    for name in ("ca", "cert", "key"):
        (tmp_path / name).touch()
    files = ",".join(f"{name}={tmp_path / name}" for name in ("ca", "cert", "key"))
    text = f"{REMOTE_NODE},platform=linux/arm64,platform=linux/arm/v7,{files},servername=b.example.org"
    assert NodeSpec.parse(text) == NodeSpec(
        name="a",
        endpoint="tcp://127.0.0.1:1234",
        platforms=parse_platforms(["linux/arm64", "linux/arm/v7"]),
        driver_opts=(
            f"cacert={tmp_path}/ca", f"cert={tmp_path}/cert", f"key={tmp_path}/key",
            "servername=b.example.org",
        ),
    )  # fmt: skip


def test_parse_quoted_node() -> None:
    node = NodeSpec.parse('name=a,"platforms=linux/arm64,linux/arm/v7","driver-opt=label=a,b"')
    assert [str(platform) for platform in node.platforms] == ["linux/arm64", "linux/arm/v7"]
    assert node.driver_opts == ("label=a,b",)


@pytest.mark.parametrize("key", ["key", "cert", "ca"])
def test_missing_tls_file(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match=f"node a: {key}: {tmp_path}/none is not a file"):
        NodeSpec.parse(f"{REMOTE_NODE},{key}={tmp_path}/none")


def test_tls_server_name() -> None:
    assert NodeSpec.parse(f"{REMOTE_NODE},servername=x").driver_opts == ("servername=x",)


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
def test_parse_invalid_node(text: str) -> None:
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
def test_address(endpoint: str, address: tuple[str, int] | None) -> None:
    assert NodeSpec.parse(f"name=a,endpoint={endpoint}").address == address


def test_node_names_are_unique() -> None:
    with pytest.raises(UsageError, match="node names are not unique: a, a"):
        make_spec(nodes=(REMOTE_NODE, "name=a,endpoint=tcp://127.0.0.1:2"))


@pytest.mark.parametrize(
    "settings",
    [
        {"driver": "docker", "nodes": (REMOTE_NODE,)},
        {"driver": "docker", "driver_opt": ("a=b",)},
        {"driver": "docker", "parallelism": 2},
        {"driver": "remote", "nodes": ("name=a",)},
        {"driver": "remote", "nodes": (REMOTE_NODE, "name=b")},
        {"driver": "remote", "nodes": (REMOTE_NODE,), "parallelism": 2},
    ],
)
def test_driver_does_not_support_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as excinfo:
        make_spec(**settings)
    assert excinfo.value.hint


@pytest.mark.parametrize("driver", ["docker-container", "kubernetes", "auto"])
def test_tls_files_are_for_driver_remote(driver: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("x", encoding="utf-8")
    node = f"name=a,endpoint=tcp://127.0.0.1:2376,ca={tmp_path}/ca.pem"
    with pytest.raises(
        UsageError, match="node a: TLS files are for a BuildKit, with --driver=remote"
    ) as excinfo:
        make_spec(driver=driver, nodes=(node,)).check_creatable()
    assert "docker context create a" in str(excinfo.value.hint)
    make_spec(driver="auto", nodes=(node,))  # valid for an existing remote builder


def test_new_remote_builder_needs_nodes() -> None:
    spec = make_spec(driver="remote")
    with pytest.raises(UsageError, match="needs the endpoint of each BuildKit"):
        spec.check_creatable()
    make_spec(driver="remote", nodes=(REMOTE_NODE,)).check_creatable()


@pytest.mark.parametrize("driver", ["docker", "remote"])
def test_mirrors_are_no_requirement(driver: str) -> None:
    mirrored = make_spec(driver=driver, mirrors=("https://mirror.example.org",))
    assert (mirrored.has_buildkitd_settings, mirrored.has_requirements) == (False, False)
    assert "mirror.example.org" in make_spec(mirrors=("https://mirror.example.org",)).buildkitd_toml


def test_split_driver_opts() -> None:
    assert split_driver_opts(["image=x,network=host", '"label=a,b"']) == (
        "image=x",
        "network=host",
        "label=a,b",
    )
    assert make_spec(driver_opt=("network=host,image=mine:1",)).image == "mine:1"
    assert make_spec().image == DEFAULT_IMAGE


def test_create_args_of_nodes() -> None:
    other = "name=b,endpoint=tcp://127.0.0.1:2,driver-opt=timeout=5s"
    spec = make_spec(name="m", driver="remote", nodes=(REMOTE_NODE, other), driver_opt=("servername=x",))
    assert create_all_args(spec, "remote") == [
        ["create", "--name=m", "--driver=remote", "--node=a", "--driver-opt=servername=x",
         "--", "tcp://127.0.0.1:1234"],
        ["create", "--name=m", "--append", "--driver=remote", "--node=b", "--driver-opt=servername=x",
         "--driver-opt=timeout=5s", "--", "tcp://127.0.0.1:2"],
    ]  # fmt: skip


def test_create_args_option_with_comma() -> None:
    spec = make_spec(name="m", driver="docker-container", driver_opt=('"env.LIST=a,b"',))
    assert '--driver-opt="env.LIST=a,b"' in create_all_args(spec, "docker-container")[0]


def test_create_args_of_daemon() -> None:
    spec = make_spec(name="m", allow=("network.host", "security.insecure"))
    assert create_all_args(spec, "docker-container", "/x.toml") == [
        ["create", "--name=m", "--driver=docker-container", "--buildkitd-config=/x.toml",
         f"--buildkitd-flags={ALLOW_FLAG}=network.host {ALLOW_FLAG}=security.insecure", "--bootstrap"],
    ]  # fmt: skip


def test_create_args_of_daemon_without_configuration() -> None:
    (args,) = create_all_args(make_spec(name="m", allow=("network.host",)), "docker-container")
    assert [arg for arg in args if "buildkitd" in arg] == [f"--buildkitd-flags={ALLOW_FLAG}=network.host"]


def test_create_args_kubernetes() -> None:
    options = ("namespace=ci", "replicas=3", '"nodeselector=kubernetes.io/arch=arm64"', "rootless=true")
    spec = make_spec(name="k", driver="kubernetes", driver_opt=options)
    assert create_all_args(spec, "kubernetes", "/x.toml") == [
        ["create", "--name=k", "--driver=kubernetes", "--driver-opt=namespace=ci",
         "--driver-opt=replicas=3", "--driver-opt=nodeselector=kubernetes.io/arch=arm64",
         "--driver-opt=rootless=true", "--buildkitd-config=/x.toml", "--bootstrap"],
    ]  # fmt: skip


def test_create_args_kubernetes_nodes() -> None:
    nodes = (
        "name=amd,platform=linux/amd64,driver-opt=nodeselector=kubernetes.io/arch=amd64",
        "name=arm,platform=linux/arm64,driver-opt=nodeselector=kubernetes.io/arch=arm64",
    )
    spec = make_spec(name="k", driver="kubernetes", nodes=nodes, driver_opt=("namespace=ci",))
    assert create_all_args(spec, "kubernetes") == [
        ["create", "--name=k", *more, "--driver=kubernetes", f"--node={name}", "--driver-opt=namespace=ci",
         f"--driver-opt=nodeselector=kubernetes.io/arch={architecture}"]
        for more, name, architecture in (([], "amd", "amd64"), (["--append"], "arm", "arm64"))
    ]  # fmt: skip


def test_fix_platforms_and_leave_args() -> None:
    assert fix_platforms_args("m", "a", "tcp://h:1", ("linux/arm64", "linux/arm/v7")) == [
        "create", "--name=m", "--append", "--node=a", "--platform=linux/arm64,linux/arm/v7", "--", "tcp://h:1",
    ]  # fmt: skip
    assert leave_args("m", "a") == ["create", "--name=m", "--leave", "--node=a"]
