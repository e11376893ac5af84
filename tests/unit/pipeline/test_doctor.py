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
from buildkit_tasks.system import reachability
from tests.support.scripted import Entry, Kernel

NAME = "multi-platform-builder"


class Bench:
    """A host with docker and buildx, whose daemon listens and whose commands are scripted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = Kernel(folder=folder / "binfmt_misc").mount_binfmt_misc()
        self.commands.expect("*/.probe-*/amd64", returncode=PROBE_STATUS)
        self.commands.expect("*/.probe-*/arm64", error=OSError(8, "Exec format error"))
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
        self.commands.expect("*/docker info *", stdout=json.dumps(info))

    def builder(self, driver: str, status: str = "Status: running") -> None:
        record = self.folder / "buildx" / "instances" / NAME
        record.parent.mkdir(parents=True)
        node = {"Name": "x", "Endpoint": "y", "Platforms": None}
        record.write_text(json.dumps({"Name": NAME, "Driver": driver, "Nodes": [node]}), encoding="utf-8")
        text = f"Name: {NAME}\nDriver: {driver}\n\nNodes:\nName: x\nEndpoint: y\n{status}\n"
        self.commands.expect(f"*/docker buildx inspect {NAME}", stdout=text)

    def diagnosis(self) -> Diagnosis:
        return diagnose_environment(
            Pipeline(settings=self.settings, commands=self.commands, notify=lambda _: None)
        )

    def finding(self, name: str) -> Finding:
        (finding,) = [each for each in self.diagnosis().findings if each.name == name]
        return finding


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for program in (tmp_path / "bin" / "docker", tmp_path / "cli-plugins" / "docker-buildx"):
        program.parent.mkdir()
        program.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("BUILDX_CONFIG", str(tmp_path / "buildx"))
    monkeypatch.setattr(reachability, "DOCKER_HUB", "http://127.0.0.1:9")
    monkeypatch.setattr(
        emulators, "HandlerTable", functools.partial(HandlerTable, mount_point=tmp_path / "binfmt_misc")
    )
    with socket.socket(socket.AF_UNIX) as listener:
        # The path of a socket has at most 107 bytes: bind a relative one.
        monkeypatch.chdir(tmp_path)
        listener.bind("docker.sock")
        listener.listen()
        monkeypatch.setenv("DOCKER_HOST", "unix:docker.sock")
        yield Bench(tmp_path)


def test_missing_emulator(bench: Bench) -> None:
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


def test_diagnosis_changes_nothing(bench: Bench) -> None:
    before = sorted(path for path in bench.folder.rglob("*") if "cache" not in path.parts)
    bench.diagnosis()
    assert sorted(path for path in bench.folder.rglob("*") if "cache" not in path.parts) == before
    assert not any(each.mutates for each in bench.commands.calls)
    assert bench.commands.written == []


def test_complete_host(bench: Bench) -> None:
    machine = Platform.parse("linux/arm64").machine
    bench.commands.add(Entry("qemu-aarch64", "/q", "F", machine.magic, machine.mask))
    bench.commands.expect("*/.probe-*/arm64", returncode=PROBE_STATUS)
    diagnosis = bench.diagnosis()
    assert (diagnosis.ok, diagnosis.next) == (True, "inv build-multiarch")
    assert bench.finding("linux/arm64").message == "qemu-aarch64 (/q, F)"
    assert bench.finding("linux/amd64").message == "native"


def test_broken_handler(bench: Bench) -> None:
    machine = Platform.parse("linux/arm64").machine
    bench.commands.add(Entry("qemu-aarch64", "/gone", "F", machine.magic, machine.mask))
    finding = bench.finding("linux/arm64")
    assert (finding.ok, finding.next) == (False, "inv setup-builder --recreate")
    assert "/gone" in finding.message


def test_engine_finding(bench: Bench) -> None:
    assert bench.finding("engine").message == "system 28.5.2 at unix:docker.sock, containerd image store"


def test_builder_finding(bench: Bench) -> None:
    assert bench.finding("builder").message == f"no {NAME}; the engine's own builder is used"
    bench.builder("docker-container")
    assert bench.finding("builder").message == f"{NAME} (docker-container): x running"


@pytest.mark.parametrize("driver", ["docker-container", "kubernetes"])
def test_unreachable_node(bench: Bench, driver: str) -> None:
    if driver == "kubernetes":
        bench.settings = replace(bench.settings, driver=driver)
    bench.builder(driver, "Error: no route")
    finding = bench.finding("builder")
    assert (finding.ok, finding.message) == (False, "node x cannot be reached: no route")
    assert finding.next


def test_remote_builder(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        node = f"name=a,endpoint=tcp://127.0.0.1:{closed.getsockname()[1]}"
    bench.settings = replace(bench.settings, driver="remote", nodes=(node,))
    assert [(each.name, each.ok) for each in bench.diagnosis().findings] == [
        ("builder", False),
        ("sandbox", True),
    ]
    assert "node a: nothing listens at tcp://127.0.0.1:" in bench.finding("builder").message
    bench.settings = replace(bench.settings, driver="kubernetes", nodes=())
    assert bench.finding("builder").message == f"there is no {NAME}"
    bench.builder("kubernetes")
    assert bench.finding("builder").message == f"{NAME} (kubernetes): x running"


def test_graph_store_needs_builder(bench: Bench) -> None:
    bench.engine(store="overlay2")
    finding = bench.finding("builder")
    assert (finding.ok, finding.next) == (False, "inv setup-builder")


def test_no_daemon(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:nothing.sock")
    diagnosis = bench.diagnosis()
    engine = diagnosis.findings[0]
    assert (engine.name, engine.ok, engine.next) == ("engine", False, "inv setup-builder")
    assert "no Docker daemon answers at unix:nothing.sock" in engine.message
    assert [each.name for each in diagnosis.findings[1:]] == ["linux/amd64", "linux/arm64", "sandbox"]
    assert bench.commands.matching_calls("*docker*") == []


def test_no_sandbox(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.finding("sandbox").ok

    def refuse(_: Supervisor) -> None:
        raise KernelRefusal("unshare user namespace", 1)

    monkeypatch.setattr(Supervisor, "__init__", refuse)
    finding = bench.finding("sandbox")
    assert finding.ok
    assert finding.message.startswith(
        "the sandbox is not available: could not unshare user namespace: Operation not permitted"
    )
    assert finding.message.endswith("images run in the engine")


def test_no_docker(bench: Bench) -> None:
    (bench.folder / "bin" / "docker").unlink()
    assert bench.diagnosis().findings[0].message == "docker with buildx is not installed"


def test_malformed_docker_config(bench: Bench) -> None:
    config = bench.folder / "config.json"
    config.write_text('{"auths": ', encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        bench.diagnosis()
    assert str(config) in caught.value.message
    assert caught.value.exit_code == 2
    assert config.read_text(encoding="utf-8") == '{"auths": '


def test_text_and_document() -> None:
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
