from __future__ import annotations

import contextlib
import grp
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import access, daemon, ensure_engine, find_engine, private
from buildkit_tasks.host.engine.access import absent_error, connection_error
from buildkit_tasks.host.privileges import command_as_root
from buildkit_tasks.system.command import CommandResult
from tests.support.scripted import Scripted
from tests.support.users import call_as_nobody, needs_root

GROUP = "games"  # of every Debian, and nobody is not in it


class NoCommands(Scripted):
    """Fails in a child process, too, whose test cannot fail."""

    def run(self, *args: object, **_: object) -> CommandResult:
        raise AssertionError(f"nothing may be run or fetched: {args}")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that other users can read, with a short path, and no engine of this user."""
    path = Path(tempfile.mkdtemp(prefix="access-", dir="/tmp"))
    path.chmod(0o755)
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", *access._PROXY_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path / "runtime"))
    monkeypatch.setattr(access, "_SYSTEMD", path / "none")
    monkeypatch.setattr(daemon, "DEFAULT_ENDPOINT", f"unix://{path}/docker.sock")
    monkeypatch.setattr(private, "list_missing_capabilities", list)
    yield path
    shutil.rmtree(path)


@contextlib.contextmanager
def listening(path: Path, mode: int = 0o666, group: str = "root") -> Iterator[None]:
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(mode)
        os.chown(path, 0, grp.getgrnam(group).gr_gid)
        listener.listen()
        yield


def error_of_ordinary_user(folder: Path, **options: str) -> EngineError:
    """Return the error of the task that looks for an engine, which must fetch nothing."""
    settings = Settings(cache=str(folder / "cache"), **options)  # type: ignore[arg-type]

    def find() -> str:
        try:
            ensure_engine(settings, NoCommands(), print)
        except EngineError as error:
            reported = find_engine(settings, NoCommands())
            assert isinstance(reported, EngineError)
            return json.dumps([error.message, error.hint, reported.message, reported.hint])
        raise AssertionError("the engine can be used")

    message, hint, reported_message, reported_hint = json.loads(call_as_nobody(find))
    assert reported_message.startswith(message.partition(", and ")[0])
    assert reported_hint
    return EngineError(message, hint=hint)


@needs_root
@pytest.mark.parametrize("engine", ["auto", "system"])
def test_refused_to_ordinary_user(folder: Path, engine: str) -> None:
    with listening(folder / "docker.sock", 0o660, GROUP):
        error = error_of_ordinary_user(folder, engine=engine)
    daemon_name = f"the Docker daemon at unix://{folder}/docker.sock"
    assert error.message.startswith(f"permission denied: {daemon_name} serves group {GROUP}, not nobody")
    assert "rootless" in error.message
    assert "context" in error.message
    assert error.hint == f"{command_as_root(f'usermod -aG {GROUP} nobody')} && newgrp {GROUP}"


@needs_root
def test_refused_to_old_session(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = grp.struct_group((GROUP, "x", grp.getgrnam(GROUP).gr_gid, ["nobody"]))
    monkeypatch.setattr(grp, "getgrgid", lambda _: entry)
    with listening(folder / "docker.sock", 0o660, GROUP):
        assert error_of_ordinary_user(folder).hint == f"newgrp {GROUP}"


@needs_root
@pytest.mark.parametrize(("mode", "group"), [(0o600, GROUP), (0o660, "root")])
def test_socket_of_root(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, group: str) -> None:
    monkeypatch.setattr(access, "rerun_as_root", lambda: "sudo this")
    with listening(folder / "docker.sock", mode, group):
        error = error_of_ordinary_user(folder)
    assert "docker.sock serves root, not nobody" in error.message
    assert error.hint == "sudo this"


@needs_root
def test_folder_of_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "rerun_as_root", lambda: "sudo this")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/closed/docker.sock")
    with listening(folder / "closed/docker.sock"):
        (folder / "closed").chmod(0o700)
        error = error_of_ordinary_user(folder)
    assert error.message.startswith("permission denied: ")
    assert error.hint == "sudo this"


@needs_root
@pytest.mark.parametrize("refused", [True, False])
@pytest.mark.parametrize("other", ["rootless", "context"])
def test_other_engine_is_proposed(folder: Path, refused: bool, other: str) -> None:
    path = folder / ("runtime/docker.sock" if other == "rootless" else "mine.sock")
    if other == "context":
        metadata = folder / "contexts/meta/0123/meta.json"
        metadata.parent.mkdir(parents=True)
        document = {"Name": "mine", "Endpoints": {"docker": {"Host": f"unix://{path}"}}}
        metadata.write_text(json.dumps(document), encoding="utf-8")
    with listening(path), listening(folder / f"{'docker' if refused else 'x'}.sock", 0o660, GROUP):
        assert error_of_ordinary_user(folder).hint == f"export DOCKER_HOST=unix://{path}"


@needs_root
def test_absent_for_ordinary_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_tasks.host.engine.private.rerun_as_root", lambda: "sudo this")
    error = error_of_ordinary_user(folder)
    assert error.message == (
        f"no Docker daemon answers at unix://{folder}/docker.sock, and only root can start a private one"
    )
    assert error.hint == "sudo this"


@needs_root
def test_closed_docker_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME may be root's: what cannot be read there counts as missing, as for docker's CLI."""
    (folder / "closed/contexts/meta/0123").mkdir(parents=True)
    (folder / "closed/config.json").touch()
    (folder / "closed").chmod(0o700)
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "closed"))
    assert "no Docker daemon answers" in error_of_ordinary_user(folder).message


def test_stopped_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert absent_error("unix:///x", []).hint is None
    (folder / "none").mkdir()
    (folder / "dockerd").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(folder))
    assert absent_error("unix:///x", []).hint == command_as_root("systemctl start docker")


def test_no_engine_in_container(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root in an unprivileged container fetches no engine that it could not start."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(private, "list_missing_capabilities", lambda: ["CAP_SYS_ADMIN"])
    for engine in ("auto", "private"):
        with pytest.raises(
            EngineError, match="this container cannot start a private one: it lacks CAP_SYS_ADMIN"
        ):
            ensure_engine(Settings(cache=str(folder), engine=engine), NoCommands(), print)


@pytest.mark.usefixtures("folder")
def test_tcp_endpoint_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        assert connection_error(endpoint) is None
    assert isinstance(connection_error(endpoint), ConnectionRefusedError)
    monkeypatch.setenv("DOCKER_HOST", endpoint)

    def fetch() -> NoReturn:
        raise AssertionError("nothing may be fetched")

    assert str(daemon.find_system_engine(fetch, NoCommands())) == f"no Docker daemon answers at {endpoint}"
    monkeypatch.setenv("https_proxy", "http://proxy")
    assert connection_error(endpoint) is None


@pytest.mark.parametrize("endpoint", ["ssh://host", "npipe:////./pipe/docker_engine", "tcp://host:port"])
def test_other_endpoints_are_left_to_docker(endpoint: str) -> None:
    assert connection_error(endpoint) is None
