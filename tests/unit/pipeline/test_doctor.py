from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import SettingsError
from buildkit_tasks.host.emulation import emulators
from buildkit_tasks.host.emulation.binfmt import HandlerTable
from buildkit_tasks.pipeline.doctor import Diagnosis, Finding, diagnose_environment
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS
from buildkit_tasks.run.sandbox.supervisor import KernelRefusal, Supervisor
from buildkit_tasks.system import reachability as reach
from tests.support.scripted import Entry, Kernel

NAME = "multi-platform-builder"


class Bench:
    """A machine with docker and buildx, whose daemon listens and whose answers are scripted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = Kernel(folder=folder / "binfmt_misc").mount_binfmt_misc()
        self.run.expect("*/.probe-*/amd64", returncode=PROBE_STATUS)
        self.run.expect("*/.probe-*/arm64", error=OSError(8, "Exec format error"))
        self.settings = Settings(cache=str(folder / "cache"))
        self.engine()

    def engine(self, *, store: str = "io.containerd.snapshotter.v1") -> None:
        info = {
            "ServerVersion": "28.5.2",
            "Architecture": "x86_64",
            "KernelVersion": os.uname().release,
            "DriverStatus": [["driver-type", store]],
            "RegistryConfig": {"Mirrors": None},
        }
        self.run.expect("*/docker info *", stdout=json.dumps(info))

    def builder(self, driver: str, status: str = "Status: running") -> None:
        record = self.folder / "buildx" / "instances" / NAME
        record.parent.mkdir(parents=True)
        node = {"Name": "x", "Endpoint": "y", "Platforms": None}
        record.write_text(json.dumps({"Name": NAME, "Driver": driver, "Nodes": [node]}), encoding="utf-8")
        text = f"Name: {NAME}\nDriver: {driver}\n\nNodes:\nName: x\nEndpoint: y\n{status}\n"
        self.run.expect(f"*/docker buildx inspect {NAME}", stdout=text)

    def diagnosis(self) -> Diagnosis:
        return diagnose_environment(
            Pipeline(settings=self.settings, commands=self.run, notify=lambda _: None)
        )

    def finding(self, name: str) -> Finding:
        (found,) = [each for each in self.diagnosis().findings if each.name == name]
        return found


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for program in (tmp_path / "bin" / "docker", tmp_path / "cli-plugins" / "docker-buildx"):
        program.parent.mkdir()
        program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("BUILDX_CONFIG", str(tmp_path / "buildx"))
    monkeypatch.setattr(reach, "DOCKER_HUB", "http://127.0.0.1:9")
    monkeypatch.setattr(
        emulators, "HandlerTable", functools.partial(HandlerTable, mount_point=tmp_path / "binfmt_misc")
    )
    with socket.socket(socket.AF_UNIX) as listener:
        # A socket's path may have 107 bytes: it is bound from inside its folder.
        monkeypatch.chdir(tmp_path)
        listener.bind("docker.sock")
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", "unix:docker.sock")
        yield Bench(tmp_path)


def test_a_machine_that_lacks_an_emulator_is_told_the_next_command(bench: Bench) -> None:
    diagnosis = bench.diagnosis()
    assert [(each.name, each.ok) for each in diagnosis.findings] == [
        ("engine", True),
        ("builder", True),
        ("linux/amd64", True),
        ("linux/arm64", False),
        ("sandbox", True),
        ("registry", True),
    ]
    assert (diagnosis.ok, diagnosis.next) == (False, "inv setup-builder")
    assert "no emulator is registered" in bench.finding("linux/arm64").message


def test_nothing_is_changed_by_looking(bench: Bench) -> None:
    before = sorted(path for path in bench.folder.rglob("*") if "cache" not in path.parts)
    bench.diagnosis()
    assert sorted(path for path in bench.folder.rglob("*") if "cache" not in path.parts) == before
    assert not any(each.mutates for each in bench.run.calls)
    assert bench.run.written == []


def test_a_machine_that_has_all_may_build_at_once(bench: Bench) -> None:
    machine = Platform.parse("linux/arm64").machine
    bench.run.add(Entry("qemu-aarch64", "/q", "F", machine.magic, machine.mask))
    bench.run.expect("*/.probe-*/arm64", returncode=PROBE_STATUS)
    diagnosis = bench.diagnosis()
    assert (diagnosis.ok, diagnosis.next) == (True, "inv build-multiarch")
    assert bench.finding("linux/arm64").message == "qemu-aarch64 (/q, F)"
    assert bench.finding("linux/amd64").message == "native"


def test_a_handler_that_does_not_work_needs_recreate(bench: Bench) -> None:
    machine = Platform.parse("linux/arm64").machine
    bench.run.add(Entry("qemu-aarch64", "/gone", "F", machine.magic, machine.mask))
    found = bench.finding("linux/arm64")
    assert (found.ok, found.next) == (False, "inv setup-builder --recreate")
    assert "/gone" in found.message


def test_the_engine_is_described(bench: Bench) -> None:
    assert bench.finding("engine").message == "system 28.5.2 at unix:docker.sock, containerd image store"


def test_the_builder_is_named_or_who_serves_instead(bench: Bench) -> None:
    assert bench.finding("builder").message == f"no {NAME}; the engine's own builder is used"
    bench.builder("docker-container")
    assert bench.finding("builder").message == f"{NAME} (docker-container): x running"


@pytest.mark.parametrize("driver", ["docker-container", "kubernetes"])
def test_a_node_that_buildx_does_not_reach_is_missing(bench: Bench, driver: str) -> None:
    if driver == "kubernetes":
        bench.settings = replace(bench.settings, driver=driver)
    bench.builder(driver, "Error: no route")
    found = bench.finding("builder")
    assert (found.ok, found.message) == (False, "node x cannot be reached: no route")
    assert found.next


def test_of_a_builder_elsewhere_the_nodes_are_looked_at_and_no_engine_is_missed(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        node = f"name=a,endpoint=tcp://127.0.0.1:{closed.getsockname()[1]}"
    bench.settings = replace(bench.settings, driver="remote", nodes=(node,))
    assert [(each.name, each.ok) for each in bench.diagnosis().findings] == [
        ("builder", False),
        ("sandbox", True),
    ]
    assert "node a: nobody listens at tcp://127.0.0.1:" in bench.finding("builder").message
    bench.settings = replace(bench.settings, driver="kubernetes", nodes=())
    assert bench.finding("builder").message == f"there is no {NAME}"
    bench.builder("kubernetes")
    assert bench.finding("builder").message == f"{NAME} (kubernetes): x running"


def test_a_graph_store_needs_a_builder(bench: Bench) -> None:
    bench.engine(store="overlay2")
    found = bench.finding("builder")
    assert (found.ok, found.next) == (False, "inv setup-builder")


def test_without_a_daemon_the_private_engine_is_the_next_step(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:nothing.sock")
    diagnosis = bench.diagnosis()
    engine = diagnosis.findings[0]
    assert (engine.name, engine.ok, engine.next) == ("engine", False, "inv setup-builder")
    assert "no Docker daemon answers at unix:nothing.sock" in engine.message
    assert [each.name for each in diagnosis.findings[1:]] == ["linux/amd64", "linux/arm64", "sandbox"]
    assert bench.run.asked("*docker*") == []


def test_where_there_is_no_sandbox_the_engine_is_said_to_serve(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.finding("sandbox").ok

    def refuse(_: Supervisor) -> None:
        raise KernelRefusal("unshare user namespace", 1)

    monkeypatch.setattr(Supervisor, "__init__", refuse)
    found = bench.finding("sandbox")
    assert found.ok
    assert found.message.startswith(
        "the sandbox is not available: could not unshare user namespace: Operation not permitted"
    )
    assert found.message.endswith("images run in the engine")


def test_without_docker_or_buildx_that_is_the_message(bench: Bench) -> None:
    (bench.folder / "bin" / "docker").unlink()
    assert bench.diagnosis().findings[0].message == "there is no docker with buildx here"


def test_row_18_a_malformed_docker_configuration_is_named_and_not_rewritten(bench: Bench) -> None:
    config = bench.folder / "config.json"
    config.write_text('{"auths": ', encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        bench.diagnosis()
    assert str(config) in caught.value.message
    assert caught.value.exit_code == 2
    assert config.read_text(encoding="utf-8") == '{"auths": '


def test_a_diagnosis_is_lines_for_people_and_a_document_for_programs() -> None:
    diagnosis = Diagnosis(
        findings=(
            Finding(name="engine", ok=True, message="28"),
            Finding(name="linux/arm64", ok=False, message="no emulator", next="do one"),
            Finding(name="builder", ok=False, message="none", next="do two"),
        )
    )
    assert diagnosis.to_text().splitlines() == [
        "ok       engine       28",
        "MISSING  linux/arm64  no emulator",
        "MISSING  builder      none",
        "try: do one",
    ]
    assert diagnosis.to_dict() == {
        "ok": False,
        "findings": [
            {"name": "engine", "ok": True, "message": "28", "next": ""},
            {"name": "linux/arm64", "ok": False, "message": "no emulator", "next": "do one"},
            {"name": "builder", "ok": False, "message": "none", "next": "do two"},
        ],
        "next": "do one",
    }
