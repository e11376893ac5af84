from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.host.builder import BuilderManager, manager, require_index
from buildkit_tasks.host.builder.store import parse_inspect_output
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from tests.support.fake_engine import make_engine
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from buildkit_tasks.system.command import CommandOptions

# The output of buildx 0.29 for a builder with two nodes, and for an engine's own.
TWO_NODES = """Name:          two
Driver:        docker-container
Last Activity: 2026-11-23 20:26:21 +0000 UTC

Nodes:
Name:                  n1
Endpoint:              unix:///run/one/docker.sock
Driver Options:        image="my/buildkit:1" network="host"
Status:                inactive
BuildKit daemon flags: --allow-insecure-entitlement=network.host
Platforms:             linux/amd64*, linux/arm64*

Name:                  n2
Endpoint:              unix:///run/two/docker.sock
Status:                inactive
BuildKit daemon flags: --allow-insecure-entitlement=network.host
Platforms:             linux/s390x*
"""

DEFAULT_BUILDER = """Name:          default
Driver:        docker
Last Activity: 2026-11-23 19:44:48 +0000 UTC

Nodes:
Name:             default
Endpoint:         default
Status:           running
BuildKit version: v0.0.0+unknown
Platforms:        linux/amd64, linux/amd64/v2, linux/arm64, linux/arm/v7, linux/arm/v6
Labels:
 org.mobyproject.buildkit.worker.containerd.namespace: moby
 org.mobyproject.buildkit.worker.executor:             containerd
GC Policy rule#0:
 All:            false
 Filters:        type==source.local,type==exec.cachemount,type==source.git.checkout
 Max Used Space: 3.346GiB
"""

NAME = "multi-platform-builder"
LOCAL_NODE, REMOTE_NODE = "name=here,endpoint=unix:///x,platform=linux/amd64", "name=there,endpoint=ssh://pi"
ONE_UNREACHABLE = f"""Name: {NAME}
Driver: docker-container

Nodes:
Name: here
Endpoint: unix:///x
Status: running
Platforms: linux/amd64*, linux/arm64

Name: there
Endpoint: ssh://pi
Error: error during connect: command [ssh pi] has exited with exit status 255, stderr=ssh: no route
Platforms:
"""
PLATFORMS = parse_platforms(["linux/amd64", "linux/arm64"])


def inspect_output(
    driver: str = "docker-container", platforms: str = "linux/amd64, linux/arm64", **more: str
) -> str:
    options = "".join(f"{key.replace('_', ' ').title()}: {value}\n" for key, value in more.items())
    return (
        f"Name: {NAME}\nDriver: {driver}\n\nNodes:\nName: {NAME}0\nEndpoint: unix:///x\n"
        f"Status: running\n{options}Platforms: {platforms}\n"
    )


def make_record(text: str) -> dict[str, Any]:
    """Return buildx's record of a builder with this inspect output; platforms with a star are fixed."""
    builder = parse_inspect_output(text)
    lines = [line for line in text.splitlines() if line.startswith("Platforms:")]
    nodes = []
    for node, line in zip(builder.nodes, lines, strict=True):
        fixed = [name.strip(" *") for name in line.partition(":")[2].split(",") if "*" in name]
        keys = ("os", "architecture", "variant")
        platforms = [dict(zip(keys, name.split("/"), strict=False)) for name in fixed]
        options = dict(option.split("=", 1) for option in node.driver_opt)
        record = {"Name": node.name, "Endpoint": node.endpoint}
        nodes.append({**record, "Platforms": platforms, "DriverOpts": options})
    return {"Name": builder.name, "Driver": builder.driver, "Nodes": nodes}


class Harness:
    """The builders of an engine, with scripted buildx commands and a real store directory."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = folder / "buildx" / "instances"
        self.store.mkdir(parents=True, exist_ok=True)
        self.commands = Scripted()
        self.messages: list[str] = []
        self.registry_checks = 0
        self.engine = make_engine(
            version=settings.pop("version", "28"),
            store=settings.pop("store", "containerd"),
            env={"BUILDX_CONFIG": str(folder / "buildx")},
        )
        self.builders = BuilderManager(
            engine=self.engine,
            settings=Settings(cache=str(folder / "cache"), **settings),
            commands=self.commands,
            notify=self.messages.append,
        )

    def add_builder(self, text: str, name: str = NAME) -> None:
        (self.store / name).write_text(json.dumps(make_record(text)), encoding="utf-8")
        self.commands.expect(f"docker buildx inspect {name}", stdout=text)

    def expect_create(self, text: str, **answer: Any) -> None:
        """Let ``buildx create`` add a builder with this inspect output."""

        def create(_: list[str], __: CommandOptions) -> None:
            self.add_builder(text)

        self.commands.expect("docker buildx create *", effect=create, **answer)

    def expect_remove(self) -> None:
        self.commands.expect("docker buildx rm --force *", effect=lambda *_: (self.store / NAME).unlink())

    def set_image(self, *, present: bool, name: str = "moby/buildkit:buildx-stable-1") -> None:
        self.commands.expect(f"docker image inspect --format=ok -- {name}", returncode=0 if present else 1)

    def ensure(self, *, registry: bool = False, recreate: bool = False) -> BuilderSummary:
        def is_registry_reachable() -> bool:
            self.registry_checks += 1
            return registry

        return self.builders.ensure(PLATFORMS, is_registry_reachable, recreate=recreate)

    @property
    def mutating_steps(self) -> list[str]:
        return [call.argv[2] for call in self.commands.calls if call.mutates]


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def test_parse_inspect_output() -> None:
    assert parse_inspect_output(TWO_NODES) == BuilderSummary(
        name="two",
        driver="docker-container",
        nodes=(
            NodeSummary(
                name="n1",
                endpoint="unix:///run/one/docker.sock",
                status="inactive",
                platforms=("linux/amd64", "linux/arm64"),
                driver_opt=("image=my/buildkit:1", "network=host"),
            ),
            NodeSummary(
                name="n2",
                endpoint="unix:///run/two/docker.sock",
                status="inactive",
                platforms=("linux/s390x",),
            ),
        ),
    )


def test_parse_inspect_output_of_docker_driver() -> None:
    builder = parse_inspect_output(DEFAULT_BUILDER)
    assert (builder.name, builder.driver, len(builder.nodes)) == ("default", "docker", 1)
    assert builder.nodes[0].platforms[-2:] == ("linux/arm/v7", "linux/arm/v6")


def test_parse_inspect_output_without_platforms() -> None:
    builder = parse_inspect_output(
        "Name: x\nDriver: docker-container\n\nNodes:\nName: x0\nEndpoint: y\nPlatforms:\n"
    )
    assert builder.nodes == (NodeSummary(name="x0", endpoint="y"),)


def test_create_with_present_image(harness: Harness) -> None:
    harness.set_image(present=True)
    harness.expect_create(inspect_output())
    builder = harness.ensure()
    assert (builder.name, builder.driver) == (NAME, "docker-container")
    assert builder.reason == "the engine has its image moby/buildkit:buildx-stable-1"
    assert harness.registry_checks == 0
    (create,) = harness.commands.matching_calls("* create *")
    assert create.argv == (
        "docker", "buildx", "create", f"--name={NAME}", "--driver=docker-container", "--bootstrap",
    )  # fmt: skip
    assert create.mutates
    assert dict(create.options.env) == dict(harness.engine.env)


def test_create_with_pulled_image(harness: Harness) -> None:
    harness.set_image(present=False)
    harness.expect_create(inspect_output())
    assert harness.ensure(registry=True).reason == "its image moby/buildkit:buildx-stable-1 can be pulled"


def test_default_builder_without_image(harness: Harness) -> None:
    harness.set_image(present=False)
    builder = harness.ensure(registry=False)
    assert (builder.name, builder.driver) == ("default", "docker")
    reason = "the engine lacks moby/buildkit:buildx-stable-1 and Docker Hub does not answer"
    assert builder.reason == reason
    assert harness.commands.matching_calls("* create *") == []


def test_driver_of_settings(tmp_path: Path) -> None:
    docker = Harness(tmp_path, driver="docker")
    assert (docker.ensure(registry=True).driver, docker.registry_checks, docker.commands.calls) == (
        "docker",
        0,
        [],
    )
    container = Harness(tmp_path, driver="docker-container")
    container.expect_create(inspect_output())
    assert (container.ensure().reason, container.registry_checks) == ("set in the settings", 0)


@pytest.mark.parametrize("options", [("image=mine:1", "network=host"), ("image=mine:1,network=host",)])
def test_create_with_driver_options(tmp_path: Path, options: tuple[str, ...]) -> None:
    harness = Harness(tmp_path, driver_opt=options)
    harness.set_image(present=True, name="mine:1")
    harness.expect_create(inspect_output())
    assert harness.ensure().reason == "the engine has its image mine:1"
    (create,) = harness.commands.matching_calls("* create *")
    assert create.argv[5:-1] == ("--driver-opt=image=mine:1", "--driver-opt=network=host")


def test_ensure_keeps_matching_builder(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    builder = harness.ensure()
    assert (builder.name, builder.driver) == (NAME, "docker-container")
    assert harness.commands.lines == [f"docker buildx inspect {NAME}"]


RESTARTING = (
    "listing workers: failed to list workers: Unavailable: connection error",
    "Error response from daemon: Container 133a80 is restarting, wait until the container is running",
)


@pytest.mark.parametrize("error", RESTARTING)
def test_wait_for_restarted_buildkit(harness: Harness, error: str) -> None:
    harness.add_builder(inspect_output())
    harness.commands.expect(f"docker buildx inspect {NAME}", stdout=inspect_output(Error=error), times=2)
    assert harness.ensure().nodes[0].error == ""
    assert harness.commands.lines == [f"docker buildx inspect {NAME}"] * 3


def test_buildkit_that_does_not_restart(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "_RESTART_SECONDS", 0.0)
    harness.add_builder(inspect_output(Error=RESTARTING[0]))
    with pytest.raises(BuilderError, match="cannot be reached: listing workers: failed to list workers"):
        harness.ensure()


def test_other_driver_is_error(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver="docker")
    harness.add_builder(inspect_output())
    with pytest.raises(BuilderError) as excinfo:
        harness.ensure()
    assert excinfo.value.message == f"builder '{NAME}' has driver docker-container instead of docker"
    assert (excinfo.value.hint, excinfo.value.exit_code) == ("inv setup-builder --recreate", 3)


def test_other_driver_options_are_error(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver_opt=("network=host", "image=b"))
    harness.add_builder(inspect_output(driver_options='image="a" network="host"'))
    with pytest.raises(BuilderError) as excinfo:
        harness.ensure()
    assert excinfo.value.message == (
        f"builder '{NAME}' has the driver options image=a, network=host instead of image=b, network=host"
    )
    assert excinfo.value.hint == "inv setup-builder --recreate"


def test_extra_driver_options_are_kept(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver_opt=("network=host",))
    harness.add_builder(inspect_output(driver_options='image="a" network="host"'))
    assert harness.ensure().name == NAME


def test_recreate(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    harness.expect_remove()
    harness.set_image(present=True)
    harness.expect_create(inspect_output())
    harness.ensure(recreate=True)
    assert harness.mutating_steps == ["rm", "create"]


def test_unreachable_node_is_error(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver="docker-container", nodes=(LOCAL_NODE, REMOTE_NODE))
    harness.add_builder(ONE_UNREACHABLE)
    with pytest.raises(BuilderError) as excinfo:
        harness.ensure()
    message = "node there: ssh://pi cannot be reached: ssh: no route"
    assert (excinfo.value.message, excinfo.value.exit_code) == (message, 3)
    assert "--fallback=emulate" in str(excinfo.value.hint)
    assert harness.mutating_steps == []


def test_fallback_drops_unreachable_node(tmp_path: Path) -> None:
    harness = Harness(
        tmp_path, driver="docker-container", nodes=(LOCAL_NODE, REMOTE_NODE), fallback="emulate"
    )
    harness.add_builder(ONE_UNREACHABLE)
    harness.commands.expect("docker buildx create *")
    builder = harness.ensure()
    assert [(node.name, node.fixed) for node in builder.nodes] == [("here", ("linux/amd64", "linux/arm64"))]
    assert harness.messages == [
        "node there is not used, others emulate its platforms: ssh://pi cannot be reached: ssh: no route"
    ]
    assert "--leave" in next(call.argv for call in harness.commands.calls if call.mutates)


def test_fallback_needs_a_reachable_node(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver="docker-container", nodes=(REMOTE_NODE,), fallback="emulate")
    head, _, nodes = ONE_UNREACHABLE.partition("Name: here")
    harness.add_builder(head + nodes[nodes.index("Name: there") :])
    with pytest.raises(BuilderError, match="node there: ssh://pi cannot be reached: ssh: no route"):
        harness.ensure()
    assert harness.mutating_steps == []


def test_recreate_needs_reachable_nodes(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver="docker-container", nodes=(LOCAL_NODE, REMOTE_NODE))
    harness.add_builder(ONE_UNREACHABLE)
    with pytest.raises(BuilderError, match="node there: ssh://pi cannot be reached"):
        harness.ensure(recreate=True)
    assert harness.mutating_steps == []


def test_recreate_without_former_node(tmp_path: Path) -> None:
    harness = Harness(tmp_path, driver="docker-container", nodes=(LOCAL_NODE,))
    harness.add_builder(ONE_UNREACHABLE)
    harness.expect_remove()
    harness.expect_create(ONE_UNREACHABLE.partition("\nName: there")[0])
    harness.commands.expect("docker buildx inspect --bootstrap *")
    assert [node.name for node in harness.ensure(recreate=True).nodes] == ["here"]


def test_recreate_keeps_default_builder(tmp_path: Path) -> None:
    harness = Harness(tmp_path, name="default")
    harness.commands.expect("docker buildx inspect default", stdout=DEFAULT_BUILDER)
    assert harness.ensure(recreate=True).driver == "docker"
    assert harness.mutating_steps == []


def test_restart_for_missing_platform(harness: Harness) -> None:
    harness.add_builder(inspect_output(platforms="linux/amd64"))
    harness.commands.expect("docker buildx stop *")
    harness.commands.expect(
        "docker buildx inspect --bootstrap *", effect=lambda *_: harness.add_builder(inspect_output())
    )
    builder = harness.ensure()
    assert builder.nodes[0].platforms == ("linux/amd64", "linux/arm64")
    assert harness.messages == [f"restarting builder {NAME} to detect linux/arm64"]
    assert harness.mutating_steps == ["stop", "inspect"]


def test_remove_checks_result(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    harness.commands.expect("docker buildx rm --force *", stderr="ERROR: context deadline exceeded")
    with pytest.raises(BuilderError, match="could not be removed: context deadline exceeded") as excinfo:
        harness.builders.remove(NAME)
    assert excinfo.value.hint == f"docker buildx rm {NAME}"


def test_remove_ignores_error_if_removed(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    harness.commands.expect(
        "docker buildx rm --force *", returncode=1, effect=lambda *_: (harness.store / NAME).unlink()
    )
    assert harness.builders.remove(NAME)


def test_remove_keeps_state(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    harness.expect_remove()
    assert harness.builders.remove(NAME, keep_state=True)
    assert harness.commands.lines[1] == f"docker buildx rm --force --keep-state {NAME}"


def test_remove_missing_or_default(harness: Harness) -> None:
    harness.commands.expect("docker buildx inspect default", stdout=DEFAULT_BUILDER)
    assert not harness.builders.remove(NAME)
    assert not harness.builders.remove("default")
    assert harness.commands.lines == ["docker buildx inspect default"]


def test_find_without_record(harness: Harness) -> None:
    assert harness.builders.find(NAME) is None
    assert harness.commands.calls == []


def test_find_removed_builder(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    stderr = f'ERROR: no builder "{NAME}" found\n'
    harness.commands.expect("docker buildx inspect *", returncode=1, stderr=stderr)
    assert harness.builders.find(NAME) is None


def test_builder_that_buildx_cannot_read_is_error(harness: Harness) -> None:
    harness.add_builder(inspect_output())
    harness.commands.expect("docker buildx inspect *", returncode=1, stderr="ERROR: permission denied\n")
    with pytest.raises(BuilderError, match=f"cannot read builder '{NAME}': permission denied"):
        harness.ensure()
    assert harness.mutating_steps == []


def test_builder_that_another_process_creates_meanwhile(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def wait_for_lock(*_: object, **__: object) -> Iterator[None]:
        harness.add_builder(inspect_output())
        yield

    monkeypatch.setattr(manager, "file_lock", wait_for_lock)
    harness.set_image(present=True)
    assert harness.ensure().name == NAME
    assert harness.mutating_steps == []


def test_damaged_record_is_error(harness: Harness) -> None:
    (harness.store / NAME).write_text('{"Name": "x", "Nodes": [', encoding="utf-8")
    with pytest.raises(BuilderError, match="cannot be read") as excinfo:
        harness.ensure()
    assert str(harness.store / NAME) in excinfo.value.message
    assert harness.commands.calls == []


@pytest.mark.parametrize("name", ["--privileged", "", "-x", "a b", "x\n", "a/b", "../x", "1x"])
def test_invalid_name_runs_nothing(harness: Harness, name: str) -> None:
    with pytest.raises(UsageError):
        harness.builders.find(name)
    assert harness.commands.calls == []


def test_failed_create_is_removed(harness: Harness) -> None:
    harness.set_image(present=True)
    harness.expect_create(inspect_output(), returncode=1, stderr="ERROR: failed to start\n")
    harness.expect_remove()
    with pytest.raises(BuilderError, match="could not be created: failed to start") as excinfo:
        harness.ensure()
    assert excinfo.value.hint
    assert not (harness.store / NAME).exists()


def test_create_without_result(harness: Harness) -> None:
    harness.set_image(present=True)
    harness.commands.expect("docker buildx create *")
    with pytest.raises(BuilderError, match="could not be created"):
        harness.ensure()


def test_dry_run_shows_recreation(harness: Harness) -> None:
    harness.commands.dry_run = True
    harness.set_image(present=True)
    harness.add_builder(inspect_output())
    assert harness.ensure(recreate=True).driver == "docker-container"
    assert [line.split()[2] for line in harness.commands.dry_run_lines] == ["rm", "create"]


def test_planned_engine_runs_nothing(tmp_path: Path) -> None:
    harness = Harness(tmp_path, version="")
    assert harness.ensure().driver == "docker"
    assert harness.commands.calls == []


def test_require_index(tmp_path: Path) -> None:
    default = BuilderSummary(name="default", driver="docker", reason="Docker Hub does not answer")
    container = BuilderSummary(name="x", driver="docker-container")
    graph, containerd = Harness(tmp_path, store="graph").engine, Harness(tmp_path).engine
    require_index(default, containerd)
    require_index(container, graph)
    with pytest.raises(BuilderError, match="Docker Hub does not answer") as excinfo:
        require_index(default, graph)
    assert "--engine=private" in (excinfo.value.hint or "")


def test_create_forgets_native_platforms(harness: Harness) -> None:
    harness.builders.buildx.native_platforms.save(NAME, {f"{NAME}0": "linux/s390x"})
    harness.set_image(present=True)
    harness.expect_create(inspect_output())
    assert harness.ensure().nodes[0].native == "linux/amd64"
