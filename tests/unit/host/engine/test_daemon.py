from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import DeadlineExceeded, EngineError, SettingsError
from buildkit_tasks.host.engine import ensure_engine
from buildkit_tasks.host.engine.daemon import ClientTools, Engine, describe_engine, find_system_engine
from tests.support.scripted import Scripted

TOOLS = ClientTools(docker=("docker",), buildx=("docker", "buildx"))
CONTAINERD = [["driver-type", "io.containerd.snapshotter.v1"]]
INFO = {"ServerVersion": "28.1", "Architecture": "aarch64", "KernelVersion": os.uname().release}


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty directory with the configuration of docker's CLI."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def refuse_tools() -> NoReturn:
    raise AssertionError("the client programs are not needed")


def find_engine() -> str:
    error = find_system_engine(refuse_tools, Scripted())
    assert isinstance(error, EngineError)
    return error.message


def describe(endpoint: str = "unix:///x", **info: object) -> Engine:
    commands = Scripted().expect("docker info *", stdout=json.dumps(INFO | info))
    return describe_engine("system", endpoint, TOOLS, {}, commands)


def write_context(folder: Path, name: str, host: str) -> None:
    path = folder / "contexts/meta/0123/meta.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def test_describe_engine() -> None:
    engine = describe(DriverStatus=CONTAINERD, RegistryConfig={"Mirrors": ["https://m.example/"]})
    assert (engine.version, engine.store, str(engine.platform)) == ("28.1", "containerd", "linux/arm64")
    assert engine.mirrors == ("https://m.example/",)
    assert describe(DriverStatus=[["Backing Filesystem", "extfs"]]).store == "graph"


@pytest.mark.parametrize(
    ("endpoint", "kernel", "is_local"),
    [
        ("unix:///x", os.uname().release, True),
        ("unix:///x", "6.6.0-linuxkit", False),  # Docker Desktop's virtual machine
        ("tcp://10.0.0.1:2375", os.uname().release, False),
        ("ssh://host", os.uname().release, False),
    ],
)
def test_local_engine(endpoint: str, kernel: str, is_local: bool) -> None:
    assert describe(endpoint, KernelVersion=kernel).is_local is is_local


def test_engine_without_daemon_behind_its_client() -> None:
    with pytest.raises(EngineError, match="at unix:///x does not answer: Cannot connect"):
        describe(ServerVersion="", ServerErrors=["Cannot connect"])


def test_denied_by_daemon() -> None:
    with pytest.raises(EngineError, match="refuses this user: authorization denied by plugin x"):
        describe(ServerVersion="", ServerErrors=["authorization denied by plugin x"])


def test_unreadable_docker_config(docker_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A HOME that is another user's has no configuration, as for docker's CLI."""

    def deny(*_: object, **__: object) -> NoReturn:
        raise PermissionError(13, "Permission denied")

    write_context(docker_config, "mine", "unix:///missing/context.sock")
    monkeypatch.setattr(Path, "read_text", deny)
    assert find_engine() == "no Docker daemon answers at unix:///var/run/docker.sock"


def test_hanging_daemon() -> None:
    commands = Scripted().expect("docker info *", error=DeadlineExceeded("too long"))
    with pytest.raises(EngineError, match="did not answer within 30 s"):
        describe_engine("system", "unix:///x", TOOLS, {}, commands)


def test_docker_host_beats_context(docker_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_context(docker_config, "mine", "unix:///missing/context.sock")
    monkeypatch.setenv("DOCKER_CONTEXT", "mine")
    assert find_engine() == "no Docker daemon answers at unix:///missing/context.sock"
    monkeypatch.setenv("DOCKER_HOST", "unix:///missing/host.sock")
    assert find_engine() == "no Docker daemon answers at unix:///missing/host.sock"


def test_context_of_config_file(docker_config: Path) -> None:
    write_context(docker_config, "mine", "unix:///missing/context.sock")
    (docker_config / "config.json").write_text('{"currentContext": "mine"}')
    assert find_engine() == "no Docker daemon answers at unix:///missing/context.sock"


def test_unknown_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONTEXT", "other")
    with pytest.raises(SettingsError, match="docker context 'other' does not exist"):
        find_engine()


def test_listening_daemon_is_described(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("s"))  # the path of a socket is limited to 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("x.sock")
        listener.listen()
        monkeypatch.setattr("buildkit_tasks.host.engine.daemon.DEFAULT_ENDPOINT", "unix:x.sock")
        commands = Scripted().expect("docker info *", stdout=json.dumps(INFO))
        engine = find_system_engine(lambda: TOOLS, commands)
    assert isinstance(engine, Engine)
    assert (engine.endpoint, engine.context) == ("unix:x.sock", "default")


@pytest.mark.parametrize(
    ("uid", "options", "hint"),
    [
        (0, [], "inv setup-builder --engine=auto"),
        (1000, [], "su -c 'env INVOKE_BUILDKIT_ENGINE=auto /bin/inv build-multiarch'"),
        (1000, ["--engine=system"], "su -c 'env INVOKE_BUILDKIT_ENGINE=auto /bin/inv build-multiarch'"),
        (
            1000,
            ["--engine", "system", "-t", "a:1"],
            "su -c 'env INVOKE_BUILDKIT_ENGINE=auto /bin/inv build-multiarch -t a:1'",
        ),
    ],
)
def test_private_engine_is_not_started_against_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, options: list[str], hint: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///missing/host.sock")
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("shutil.which", lambda name, **_: f"/bin/{name}" if name != "sudo" else None)
    monkeypatch.setattr("sys.argv", ["inv", "build-multiarch", *options])
    monkeypatch.setattr("buildkit_tasks.host.privileges.find_typed_command", lambda: ("inv",))
    monkeypatch.setattr("buildkit_tasks.host.engine.private.list_missing_capabilities", list)
    settings = Settings(engine="system", cache=str(tmp_path))
    with pytest.raises(EngineError, match=r"answers at unix:///missing/host\.sock") as excinfo:
        ensure_engine(settings, Scripted(), print)
    assert excinfo.value.hint == hint
