from __future__ import annotations

import functools
import json
import os
import re
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


class Harness:
    """A host with docker and buildx, whose daemon listens and whose commands are scripted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = Kernel(folder=folder / "binfmt_misc").mount_binfmt_misc()
        self.commands.expect("*/.probe-*/amd64", returncode=PROBE_STATUS)
        self.commands.expect("*/.probe-*/arm64", error=OSError(8, "Exec format error"))
        self.settings = Settings(cache=str(folder / "cache"))
        self.expect_engine()

    def expect_engine(self, *, store: str = "io.containerd.snapshotter.v1") -> None:
        info = {
            "ServerVersion": "28.5.2",
            "Architecture": "x86_64",
            "KernelVersion": os.uname().release,
            "DriverStatus": [["driver-type", store]],
            "RegistryConfig": {"Mirrors": None},
        }
        self.commands.expect("*/docker info *", stdout=json.dumps(info))

    def add_builder(self, driver: str, status: str = "Status: running") -> None:
        record = self.folder / "buildx" / "instances" / NAME
        record.parent.mkdir(parents=True)
        node = {"Name": "x", "Endpoint": "y", "Platforms": None}
        record.write_text(json.dumps({"Name": NAME, "Driver": driver, "Nodes": [node]}), encoding="utf-8")
        text = f"Name: {NAME}\nDriver: {driver}\n\nNodes:\nName: x\nEndpoint: y\n{status}\n"
        self.commands.expect(f"*/docker buildx inspect {NAME}", stdout=text)

    def diagnose(self) -> Diagnosis:
        return diagnose_environment(
            Pipeline(settings=self.settings, commands=self.commands, notify=lambda _: None)
        )

    def find(self, name: str) -> Finding:
        (finding,) = [each for each in self.diagnose().findings if each.name == name]
        return finding


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
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
        yield Harness(tmp_path)


@pytest.fixture(autouse=True)
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hints be those for root, whoever runs the tests."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("buildkit_tasks.host.engine.private.list_missing_capabilities", list)


def test_missing_emulator(harness: Harness) -> None:
    diagnosis = harness.diagnose()
    assert [(finding.name, finding.ok) for finding in diagnosis.findings] == [
        ("engine", True),
        ("builder", True),
        ("linux/amd64", True),
        ("linux/arm64", False),
        ("sandbox", True),
        ("registry", True),
    ]
    assert (diagnosis.ok, diagnosis.next) == (False, "inv setup-builder")
    assert "no emulator is registered" in harness.find("linux/arm64").message


def test_diagnosis_changes_nothing(harness: Harness) -> None:
    before = sorted(path for path in harness.folder.rglob("*") if "cache" not in path.parts)
    harness.diagnose()
    assert sorted(path for path in harness.folder.rglob("*") if "cache" not in path.parts) == before
    assert not any(call.mutates for call in harness.commands.calls)
    assert harness.commands.written == []


def test_complete_host(harness: Harness) -> None:
    machine = Platform.parse("linux/arm64").machine
    harness.commands.add(Entry("qemu-aarch64", "/q", "F", machine.magic, machine.mask))
    harness.commands.expect("*/.probe-*/arm64", returncode=PROBE_STATUS)
    diagnosis = harness.diagnose()
    assert (diagnosis.ok, diagnosis.next) == (True, "inv build-multiarch")
    assert harness.find("linux/arm64").message == "qemu-aarch64 (/q, F)"
    assert harness.find("linux/amd64").message == "native"


def test_broken_handler(harness: Harness) -> None:
    machine = Platform.parse("linux/arm64").machine
    harness.commands.add(Entry("qemu-aarch64", "/gone", "F", machine.magic, machine.mask))
    finding = harness.find("linux/arm64")
    assert (finding.ok, finding.next) == (False, "inv setup-builder --recreate")
    assert "/gone" in finding.message


def test_engine_finding(harness: Harness) -> None:
    assert harness.find("engine").message == "system 28.5.2 at unix:docker.sock, containerd image store"


def test_builder_finding(harness: Harness) -> None:
    assert harness.find("builder").message == f"no {NAME}; the engine's own builder is used"
    harness.add_builder("docker-container")
    assert harness.find("builder").message == f"{NAME} (docker-container): x running"


@pytest.mark.parametrize("driver", ["docker-container", "kubernetes"])
def test_unreachable_node(harness: Harness, driver: str) -> None:
    if driver == "kubernetes":
        harness.settings = replace(harness.settings, driver=driver)
    harness.add_builder(driver, "Error: no route")
    finding = harness.find("builder")
    assert (finding.ok, finding.message) == (False, "node x cannot be reached: no route")
    assert finding.next


def test_remote_builder(harness: Harness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        node = f"name=a,endpoint=tcp://127.0.0.1:{closed.getsockname()[1]}"
    harness.settings = replace(harness.settings, driver="remote", nodes=(node,))
    assert [(finding.name, finding.ok) for finding in harness.diagnose().findings] == [
        ("builder", False),
        ("sandbox", True),
    ]
    assert "node a: nothing listens at tcp://127.0.0.1:" in harness.find("builder").message
    harness.settings = replace(harness.settings, driver="kubernetes", nodes=())
    assert harness.find("builder").message == f"there is no {NAME}"
    harness.add_builder("kubernetes")
    assert harness.find("builder").message == f"{NAME} (kubernetes): x running"


def test_graph_store_needs_builder(harness: Harness) -> None:
    harness.expect_engine(store="overlay2")
    finding = harness.find("builder")
    assert (finding.ok, finding.next) == (False, "inv setup-builder")


def test_no_daemon(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:nothing.sock")
    diagnosis = harness.diagnose()
    engine = diagnosis.findings[0]
    assert (engine.name, engine.ok, engine.next) == ("engine", False, "inv setup-builder")
    assert engine.message.endswith("and no private engine is running")
    assert "no Docker daemon answers at unix:nothing.sock" in engine.message
    assert [each.name for each in diagnosis.findings[1:]] == ["linux/amd64", "linux/arm64", "sandbox"]
    assert harness.commands.matching_calls("*docker*") == []


def test_ordinary_user_without_daemon(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:nothing.sock")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("buildkit_tasks.host.engine.private.rerun_as_root", lambda: "sudo this")
    engine = harness.find("engine")
    assert "only root can start a private one" in engine.message
    assert engine.next == "sudo this"  # an engine that root sets up serves root only


def test_unwritable_cache(harness: Harness) -> None:
    """All else is diagnosed as well."""
    names = [finding.name for finding in harness.diagnose().findings]
    (harness.folder / "file").touch()
    harness.settings = replace(harness.settings, cache=str(harness.folder / "file/cache"))
    diagnosis = harness.diagnose()
    assert [finding.name for finding in diagnosis.findings] == ["cache", *names]
    assert not diagnosis.findings[0].ok
    assert "XDG_CACHE_HOME, or the key `cache`" in diagnosis.findings[0].message
    assert diagnosis.next == 'export INVOKE_BUILDKIT_CACHE="$(mktemp -d)"'


def test_unwritable_buildx_store(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    (harness.folder / "file").touch()
    monkeypatch.setenv("BUILDX_CONFIG", str(harness.folder / "file/buildx"))
    finding = harness.find("builder")
    assert (finding.ok, finding.next) == (False, 'export BUILDX_CONFIG="$(mktemp -d)"')
    assert "BUILDX_CONFIG" in finding.message


def test_closed_docker_config(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_tasks.host.builder.buildx.is_docker_config_closed", lambda: True)
    finding = harness.find("builder")
    assert (finding.ok, finding.next) == (False, 'export DOCKER_CONFIG="$(mktemp -d)"')


def test_no_sandbox(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    assert harness.find("sandbox").ok

    def refuse_namespace(_: Supervisor) -> None:
        raise KernelRefusal("unshare user namespace", 1)

    monkeypatch.setattr(Supervisor, "__init__", refuse_namespace)
    finding = harness.find("sandbox")
    assert finding.ok
    assert finding.message.startswith(
        "the sandbox is not available: could not unshare user namespace: Operation not permitted"
    )
    assert finding.message.endswith("images run in the engine")


def test_no_docker(harness: Harness) -> None:
    (harness.folder / "bin" / "docker").unlink()
    assert harness.diagnose().findings[0].message == "docker with buildx is not installed"


def test_malformed_docker_config(harness: Harness) -> None:
    config = harness.folder / "config.json"
    config.write_text('{"auths": ', encoding="utf-8")
    with pytest.raises(SettingsError) as excinfo:
        harness.diagnose()
    assert str(config) in excinfo.value.message
    assert excinfo.value.exit_code == 2
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


def test_old_packages(harness: Harness) -> None:
    complete = harness.folder / "cache/debian/qemu/.complete"
    complete.parent.mkdir(parents=True)
    complete.touch()
    assert not [each for each in harness.diagnose().findings if each.name == "packages"]
    os.utime(complete, (1, 1))
    finding = harness.find("packages")
    assert finding.ok
    message = r"qemu-user in the cache are \d+ days old: `.*buildkit.tasks setup-builder` fetches them again"
    assert re.fullmatch(message, finding.message)
