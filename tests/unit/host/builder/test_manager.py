from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.host.builder import BuilderManager, require_index
from buildkit_tasks.host.builder.store import parse_inspect_output
from buildkit_tasks.host.engine.daemon import ClientTools, Engine
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import BuilderSummary, NodeSummary
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from buildkit_tasks.system.command import CommandOptions

# What buildx 0.29 printed for a builder of two nodes, and for an engine's own.
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

ENGINES_OWN = """Name:          default
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
HERE, THERE = "name=here,endpoint=unix:///x,platform=linux/amd64", "name=there,endpoint=ssh://pi"
ONE_GONE = f"""Name: {NAME}
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


def described(
    driver: str = "docker-container", platforms: str = "linux/amd64, linux/arm64", **more: str
) -> str:
    options = "".join(f"{key.replace('_', ' ').title()}: {value}\n" for key, value in more.items())
    return (
        f"Name: {NAME}\nDriver: {driver}\n\nNodes:\nName: {NAME}0\nEndpoint: unix:///x\n"
        f"Status: running\n{options}Platforms: {platforms}\n"
    )


def recorded(text: str) -> dict[str, Any]:
    """What buildx's store has of a builder that it describes so; a starred platform is a fixed one."""
    found = parse_inspect_output(text)
    lines = [line for line in text.splitlines() if line.startswith("Platforms:")]
    nodes = []
    for node, line in zip(found.nodes, lines, strict=True):
        fixed = [name.strip(" *") for name in line.partition(":")[2].split(",") if "*" in name]
        keys = ("os", "architecture", "variant")
        stated = [dict(zip(keys, name.split("/"), strict=False)) for name in fixed]
        options = dict(option.split("=", 1) for option in node.driver_opt)
        named = {"Name": node.name, "Endpoint": node.endpoint}
        nodes.append({**named, "Platforms": stated, "DriverOpts": options})
    return {"Name": found.name, "Driver": found.driver, "Nodes": nodes}


class Bench:
    """Builders of an engine whose buildx is scripted; its store is a real folder."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.store = folder / "buildx" / "instances"
        self.store.mkdir(parents=True, exist_ok=True)
        self.run = Scripted()
        self.told: list[str] = []
        self.asked_registry = 0
        store = settings.pop("store", "containerd")
        self.engine = Engine(
            kind="system",
            endpoint="unix:///x",
            version=settings.pop("version", "28"),
            store=store,
            platform=Platform.parse("amd64"),
            is_local=True,
            tools=ClientTools(docker=("docker",), buildx=("docker", "buildx")),
            env={"BUILDX_CONFIG": str(folder / "buildx")},
        )
        chosen = Settings(cache=str(folder / "cache"), **settings)
        self.builders = BuilderManager(
            engine=self.engine, settings=chosen, commands=self.run, notify=self.told.append
        )

    def holds(self, text: str, name: str = NAME) -> None:
        """Let buildx's store have a builder."""
        (self.store / name).write_text(json.dumps(recorded(text)), encoding="utf-8")
        self.run.expect(f"docker buildx inspect {name}", stdout=text)

    def makes(self, text: str, **answer: Any) -> None:
        """Let ``buildx create`` make it."""

        def create(_: list[str], __: CommandOptions) -> None:
            self.holds(text)

        self.run.expect("docker buildx create *", effect=create, **answer)

    def removes(self) -> None:
        self.run.expect("docker buildx rm --force *", effect=lambda *_: (self.store / NAME).unlink())

    def image(self, *, here: bool, name: str = "moby/buildkit:buildx-stable-1") -> None:
        self.run.expect(f"docker image inspect --format=ok -- {name}", returncode=0 if here else 1)

    def registry(self, *, answers: bool) -> Callable[[], bool]:
        def asked() -> bool:
            self.asked_registry += 1
            return answers

        return asked

    def ensure(self, *, answers: bool = False, recreate: bool = False) -> BuilderSummary:
        return self.builders.ensure(PLATFORMS, self.registry(answers=answers), recreate=recreate)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_builder_of_several_nodes_is_read_whole() -> None:
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


def test_an_engines_own_builder_is_read_without_its_labels_and_policies() -> None:
    found = parse_inspect_output(ENGINES_OWN)
    assert (found.name, found.driver, len(found.nodes)) == ("default", "docker", 1)
    assert found.nodes[0].platforms[-2:] == ("linux/arm/v7", "linux/arm/v6")


def test_a_builder_that_is_not_running_offers_nothing() -> None:
    found = parse_inspect_output(
        "Name: x\nDriver: docker-container\n\nNodes:\nName: x0\nEndpoint: y\nPlatforms:\n"
    )
    assert found.nodes == (NodeSummary(name="x0", endpoint="y"),)


def test_where_its_image_is_here_a_builder_is_made_without_asking_the_registry(bench: Bench) -> None:
    bench.image(here=True)
    bench.makes(described())
    found = bench.ensure()
    assert (found.name, found.driver) == (NAME, "docker-container")
    assert found.reason == "its image moby/buildkit:buildx-stable-1 is here"
    assert bench.asked_registry == 0
    (made,) = bench.run.asked("* create *")
    assert made.argv == (
        "docker", "buildx", "create", f"--name={NAME}", "--driver=docker-container", "--bootstrap",
    )  # fmt: skip
    assert made.mutates
    assert dict(made.call.env) == dict(bench.engine.env)


def test_where_the_registry_answers_a_builder_is_made(bench: Bench) -> None:
    bench.image(here=False)
    bench.makes(described())
    assert bench.ensure(answers=True).reason == "its image moby/buildkit:buildx-stable-1 can be pulled"


def test_where_no_builder_image_can_be_had_the_engines_own_serves_and_says_why(bench: Bench) -> None:
    bench.image(here=False)
    found = bench.ensure(answers=False)
    assert (found.name, found.driver) == ("default", "docker")
    assert found.reason == "moby/buildkit:buildx-stable-1 is not here and Docker Hub does not answer"
    assert bench.run.asked("* create *") == []


def test_a_driver_that_is_asked_for_is_not_second_guessed(tmp_path: Path) -> None:
    own = Bench(tmp_path, driver="docker")
    assert (own.ensure(answers=True).driver, own.asked_registry, own.run.calls) == ("docker", 0, [])
    container = Bench(tmp_path, driver="docker-container")
    container.makes(described())
    assert (container.ensure().reason, container.asked_registry) == ("asked for", 0)


@pytest.mark.parametrize("options", [("image=mine:1", "network=host"), ("image=mine:1,network=host",)])
def test_driver_options_reach_buildx_and_name_the_image(tmp_path: Path, options: tuple[str, ...]) -> None:
    bench = Bench(tmp_path, driver_opt=options)
    bench.image(here=True, name="mine:1")
    bench.makes(described())
    assert bench.ensure().reason == "its image mine:1 is here"
    (made,) = bench.run.asked("* create *")
    assert made.argv[5:-1] == ("--driver-opt=image=mine:1", "--driver-opt=network=host")


def test_what_is_there_and_fits_is_used_as_it_is(bench: Bench) -> None:
    bench.holds(described())
    found = bench.ensure()
    assert (found.name, found.driver) == (NAME, "docker-container")
    assert bench.run.lines == [f"docker buildx inspect {NAME}"]


def test_row_13_another_driver_is_shown_with_what_mends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, driver="docker")
    bench.holds(described())
    with pytest.raises(BuilderError) as caught:
        bench.ensure()
    assert caught.value.message == f"builder '{NAME}' has driver docker-container, and docker is asked for"
    assert (caught.value.hint, caught.value.exit_code) == ("inv setup-builder --recreate", 3)


def test_row_13_other_driver_options_are_shown_with_what_mends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, driver_opt=("network=host", "image=b"))
    bench.holds(described(driver_options='image="a" network="host"'))
    with pytest.raises(BuilderError) as caught:
        bench.ensure()
    assert caught.value.message == (
        f"builder '{NAME}' has the driver options image=a, network=host, "
        "and image=b, network=host are asked for"
    )
    assert caught.value.hint == "inv setup-builder --recreate"


def test_driver_options_that_it_has_among_others_are_no_difference(tmp_path: Path) -> None:
    bench = Bench(tmp_path, driver_opt=("network=host",))
    bench.holds(described(driver_options='image="a" network="host"'))
    assert bench.ensure().name == NAME


def test_recreate_removes_it_and_makes_it_anew(bench: Bench) -> None:
    bench.holds(described())
    bench.removes()
    bench.image(here=True)
    bench.makes(described())
    bench.ensure(recreate=True)
    steps = [each.argv[2] for each in bench.run.calls if each.mutates]
    assert steps == ["rm", "create"]


def test_an_engine_that_is_not_reached_is_told_of_in_its_own_words(tmp_path: Path) -> None:
    bench = Bench(tmp_path, driver="docker-container", nodes=(HERE, THERE))
    bench.holds(ONE_GONE)
    with pytest.raises(BuilderError) as caught:
        bench.ensure()
    told = "node there: ssh://pi cannot be reached: ssh: no route"
    assert (caught.value.message, caught.value.exit_code) == (told, 3)
    assert "--fallback=emulate" in str(caught.value.hint)
    assert not [each for each in bench.run.calls if each.mutates]


def test_with_fallback_an_engine_that_is_not_reached_leaves_the_builder(tmp_path: Path) -> None:
    bench = Bench(tmp_path, driver="docker-container", nodes=(HERE, THERE), fallback="emulate")
    bench.holds(ONE_GONE)
    bench.run.expect("docker buildx create *")
    found = bench.ensure()
    assert [(node.name, node.fixed) for node in found.nodes] == [("here", ("linux/amd64", "linux/arm64"))]
    assert bench.told == ["node there is left out, others emulate: ssh://pi cannot be reached: ssh: no route"]
    assert "--leave" in next(each.argv for each in bench.run.calls if each.mutates)


def test_a_builder_whose_nodes_could_not_be_made_again_is_not_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path, driver="docker-container", nodes=(HERE, THERE))
    bench.holds(ONE_GONE)
    with pytest.raises(BuilderError, match="node there: ssh://pi cannot be reached"):
        bench.ensure(recreate=True)
    assert not [each for each in bench.run.calls if each.mutates]


def test_a_node_that_is_no_longer_asked_for_does_not_keep_a_builder_from_being_made_anew(
    tmp_path: Path,
) -> None:
    bench = Bench(tmp_path, driver="docker-container", nodes=(HERE,))
    bench.holds(ONE_GONE)
    bench.removes()
    bench.makes(ONE_GONE.partition("\nName: there")[0])
    bench.run.expect("docker buildx inspect --bootstrap *")
    assert [node.name for node in bench.ensure(recreate=True).nodes] == ["here"]


def test_recreate_never_removes_the_engines_own(tmp_path: Path) -> None:
    bench = Bench(tmp_path, name="default")
    bench.run.expect("docker buildx inspect default", stdout=ENGINES_OWN)
    assert bench.ensure(recreate=True).driver == "docker"
    assert not any(each.mutates for each in bench.run.calls)


def test_a_running_builder_is_started_again_when_it_lacks_a_platform(bench: Bench) -> None:
    bench.holds(described(platforms="linux/amd64"))
    bench.run.expect("docker buildx stop *")
    bench.run.expect("docker buildx inspect --bootstrap *", effect=lambda *_: bench.holds(described()))
    found = bench.ensure()
    assert found.nodes[0].platforms == ("linux/amd64", "linux/arm64")
    assert bench.told == [f"starting builder {NAME} again, so that it sees linux/arm64"]


def test_removal_is_believed_only_when_it_is_gone(bench: Bench) -> None:
    bench.holds(described())
    bench.run.expect("docker buildx rm --force *", stderr="ERROR: context deadline exceeded")
    with pytest.raises(
        BuilderError, match="could not be removed: ERROR: context deadline exceeded"
    ) as caught:
        bench.builders.remove(NAME)
    assert caught.value.hint == f"docker buildx rm {NAME}"


def test_row_16_a_removal_that_timed_out_and_yet_happened_is_a_removal(bench: Bench) -> None:
    bench.holds(described())
    bench.run.expect(
        "docker buildx rm --force *", returncode=1, effect=lambda *_: (bench.store / NAME).unlink()
    )
    assert bench.builders.remove(NAME)


def test_the_state_is_kept_when_asked_for(bench: Bench) -> None:
    bench.holds(described())
    bench.removes()
    assert bench.builders.remove(NAME, keep_state=True)
    assert bench.run.lines[1] == f"docker buildx rm --force --keep-state {NAME}"


def test_what_is_not_there_and_the_engines_own_are_not_removed(bench: Bench) -> None:
    bench.run.expect("docker buildx inspect default", stdout=ENGINES_OWN)
    assert not bench.builders.remove(NAME)
    assert not bench.builders.remove("default")
    assert bench.run.lines == ["docker buildx inspect default"]


def test_a_builder_that_the_store_does_not_have_is_not_asked_for(bench: Bench) -> None:
    assert bench.builders.find(NAME) is None
    assert bench.run.calls == []


def test_a_builder_that_went_away_meanwhile_is_none(bench: Bench) -> None:
    bench.holds(described())
    said = f'ERROR: no builder "{NAME}" found\n'
    bench.run.expect("docker buildx inspect *", returncode=1, stderr=said)
    assert bench.builders.find(NAME) is None


def test_row_15_a_store_that_cannot_be_read_is_no_missing_builder(bench: Bench) -> None:
    (bench.store / NAME).write_text('{"Name": "x", "Nodes": [', encoding="utf-8")
    with pytest.raises(BuilderError, match="cannot be read") as caught:
        bench.ensure()
    assert str(bench.store / NAME) in caught.value.message
    assert bench.run.calls == []


@pytest.mark.parametrize("name", ["--privileged", "", "-x", "a b", "x\n", "a/b", "../x", "1x"])
def test_row_56_a_name_that_is_none_is_refused_before_anything_runs(bench: Bench, name: str) -> None:
    with pytest.raises(UsageError):
        bench.builders.find(name)
    assert bench.run.calls == []


def test_a_builder_that_does_not_come_up_is_removed_again_and_told(bench: Bench) -> None:
    bench.image(here=True)
    bench.makes(described(), returncode=1, stderr="ERROR: failed to start\n")
    bench.removes()
    with pytest.raises(BuilderError, match="could not be made: ERROR: failed to start") as caught:
        bench.ensure()
    assert caught.value.hint
    assert not (bench.store / NAME).exists()


def test_a_success_without_a_builder_is_none(bench: Bench) -> None:
    bench.image(here=True)
    bench.run.expect("docker buildx create *")
    with pytest.raises(BuilderError, match="could not be made"):
        bench.ensure()


def test_a_dry_run_shows_how_it_would_be_made_anew(bench: Bench) -> None:
    bench.run.dry_run = True
    bench.image(here=True)
    bench.holds(described())
    found = bench.ensure(recreate=True)
    assert found.driver == "docker-container"
    assert [line.split()[2] for line in bench.run.shown] == ["rm", "create"]


def test_before_the_engine_runs_nothing_is_asked(tmp_path: Path) -> None:
    bench = Bench(tmp_path, version="")
    assert bench.ensure().driver == "docker"
    assert bench.run.calls == []


def test_an_engine_that_cannot_make_an_index_is_told_from_one_that_can(tmp_path: Path) -> None:
    own = BuilderSummary(name="default", driver="docker", reason="Docker Hub does not answer")
    container = BuilderSummary(name="x", driver="docker-container")
    graph, containerd = Bench(tmp_path, store="graph").engine, Bench(tmp_path).engine
    require_index(own, containerd)
    require_index(container, graph)
    with pytest.raises(BuilderError, match="Docker Hub does not answer") as caught:
        require_index(own, graph)
    assert "--engine=private" in (caught.value.hint or "")


def test_what_was_noted_of_a_builder_of_the_same_name_is_forgotten_when_one_is_made(bench: Bench) -> None:
    bench.builders.buildx.native_platforms.save(NAME, {f"{NAME}0": "linux/s390x"})
    bench.image(here=True)
    bench.makes(described())
    assert bench.ensure().nodes[0].native == "linux/amd64"
