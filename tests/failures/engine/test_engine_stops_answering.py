from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker import DockerClient
from docker.errors import ImageNotFound

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.daemon import API_SECONDS, ClientTools
from buildkit_tasks.host.engine.private import ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.host.engine.sdk import connect_client
from buildkit_tasks.oci.image import Image
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import Outcome, PlatformSetup, RunResult
from buildkit_tasks.run.backend import RunTask
from buildkit_tasks.run.docker.container import ContainerRun, remove_stale_containers, run_container
from buildkit_tasks.run.docker.load import load_into_engine
from buildkit_tasks.run.docker.timeouts import OWNER_LABEL
from buildkit_tasks.run.outcomes import Expectation
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.process import Process
from tests.support import census, guests
from tests.support.engine.fake import CONTAINER, FakeEngine
from tests.support.oci import MemoryImage, add_platform, hello, make_tar
from tests.support.waiting import wait_until

ARM64 = Platform.parse("linux/arm64")
CLIENT_TIMEOUT = 0.4  # seconds, instead of API_SECONDS
_GUEST_TIMEOUT = 300.0  # seconds; until then a guest that does not end by itself is not killed
COMMANDS = SubprocessRunner(dry_run_output=sys.stderr)

# Requests of a run before and after its container is created.
BEFORE_CREATE = ("GET /images/*/json", "POST /containers/create")
AFTER_CREATE = (
    "GET /containers/*/json",
    "GET /containers/*/archive",
    "POST /containers/*/attach",
    "POST /containers/*/start",
    "GET /_ping",  # during the run
    "POST /containers/*/kill",
    "POST /containers/*/wait",
    "DELETE /containers/*",
)


def _engine(endpoint: str) -> Engine:
    return Engine(
        kind="private", endpoint=endpoint, version="28", store="graph",
        platform=Platform.parse("linux/amd64"),
        is_local=True, tools=ClientTools(docker=("docker",), buildx=("buildx",)),
        env={"DOCKER_HOST": endpoint},
    )  # fmt: skip


def _run(client: DockerClient, engine: Engine, image: str | MemoryImage, timeout: float) -> RunResult:
    """Run an image that the engine has, or one that is loaded into it."""
    name, memory = (image, MemoryImage()) if isinstance(image, str) else ("memory", image)
    setup = PlatformSetup(platform="linux/arm64", native=False, interpreter="/q/qemu-aarch64", runs=True)
    image_context = contextlib.nullcontext(Image(memory))
    with load_into_engine(name, (ARM64,), engine, client, lambda _: image_context) as images:
        task = RunTask(platform=ARM64, expectation=Expectation(), timeout=timeout)
        return run_container(client, ContainerRun(task=task, image=images[ARM64], setup=setup))


def _set_timeout(client: DockerClient, seconds: float) -> None:
    api: Any = client.api  # typed as an int
    api.timeout = seconds


def _record_timeouts(client: DockerClient) -> list[float]:
    """Return a list to which the timeout of each request is added."""
    timeouts: list[float] = []
    api: Any = client.api
    send = api.send

    def record(request: object, **options: Any) -> object:
        timeouts.append(options["timeout"])
        return send(request, **options)

    api.send = record
    return timeouts


@contextlib.contextmanager
def _fake_engine(
    path: Path, request: str, *, close_connections: bool = False, empty: bool = False
) -> Iterator[tuple[FakeEngine, DockerClient]]:
    """Run an engine that stops answering at a request, and a client of it."""
    fake = FakeEngine(path / "docker.sock", request, close_connections=close_connections, empty=empty)
    with fake.serving():
        client = DockerClient(base_url=fake.endpoint, version="1.48")
        _set_timeout(client, CLIENT_TIMEOUT)
        with contextlib.closing(client):
            yield fake, client


def _run_until(
    path: Path,
    request: str,
    image: str | MemoryImage = "docker-daemon:x:1",
    *,
    close_connections: bool = False,
) -> tuple[EngineError, list[str]]:
    """Return the error of a run whose engine stops answering at a request, and all requests."""
    timeout = 0.3 if request.endswith("/kill") else _GUEST_TIMEOUT
    empty = not isinstance(image, str)
    with _fake_engine(path, request, close_connections=close_connections, empty=empty) as (fake, client):
        timeouts = _record_timeouts(client)
        with pytest.raises(EngineError) as caught:
            _run(client, _engine(fake.endpoint), image, timeout)
        assert max(timeouts) <= 1  # of a request, in seconds; None, for no timeout, is a TypeError
        unanswered = fake.requests[fake.requests.index(request) :]
        assert set(unanswered[1:]) <= {"GET /_ping", "DELETE /containers/*", "DELETE /images/*"}
        assert len(unanswered) == len(set(unanswered))
        assert caught.value.exit_code == 3
        command = f"DOCKER_HOST={fake.endpoint} docker ps -a --filter label={OWNER_LABEL}"
        assert caught.value.hint == command
        return caught.value, fake.requests


def test_api_timeout() -> None:
    assert API_SECONDS == 30


@pytest.mark.parametrize("request_", BEFORE_CREATE)
def test_timeout_before_create(tmp_path: Path, request_: str) -> None:
    error, requests = _run_until(tmp_path, request_)
    assert error.message.startswith(f"the engine stopped answering: no response for {CLIENT_TIMEOUT:g} s")
    assert CONTAINER[:12] not in error.message
    assert "DELETE /containers/*" not in requests


@pytest.mark.parametrize("request_", AFTER_CREATE)
def test_timeout_after_create(tmp_path: Path, request_: str) -> None:
    error, requests = _run_until(tmp_path, request_)
    assert error.message == (
        f"the engine stopped answering: no response for {CLIENT_TIMEOUT:g} s;"
        f" the container {CONTAINER[:12]} may be left"
    )
    assert str(error.platform) == "linux/arm64"
    assert requests.count("DELETE /containers/*") == 1


@pytest.mark.parametrize("request_", [*BEFORE_CREATE, *AFTER_CREATE])
def test_engine_closes_connection(tmp_path: Path, request_: str) -> None:
    error, _ = _run_until(tmp_path, request_, close_connections=True)
    assert error.message.startswith("the engine stopped answering: ")


def test_timeout_of_image_load(tmp_path: Path) -> None:
    error, requests = _run_until(tmp_path, "POST /images/load", hello(("linux/arm64",)))
    assert error.message.startswith(f"the engine stopped answering: no response for {CLIENT_TIMEOUT:g} s")
    assert re.search(r"; so may sha256:[0-9a-f]{64}, loaded for the run$", error.message)
    assert requests.count("DELETE /images/*") == 1


def test_timeout_with_loaded_image(tmp_path: Path) -> None:
    error, requests = _run_until(tmp_path, "POST /containers/*/start", hello(("linux/arm64",)))
    assert re.search(
        r" the container c{12} may be left; so may sha256:[0-9a-f]{64}, loaded for the run$", error.message
    )
    assert requests[-2:] == ["DELETE /containers/*", "DELETE /images/*"]


def test_timeout_of_image_removal(tmp_path: Path) -> None:
    error, _ = _run_until(tmp_path, "DELETE /images/*", hello(("linux/arm64",)))
    assert re.search(r"; the image sha256:[0-9a-f]{64} may be left$", error.message)


def test_timeout_of_container_list(tmp_path: Path) -> None:
    with _fake_engine(tmp_path, "GET /containers/json") as (_, client), pytest.raises(EngineError) as caught:
        remove_stale_containers(client)
    assert caught.value.message == f"the engine stopped answering: no response for {CLIENT_TIMEOUT:g} s"


def test_run_without_timeout(tmp_path: Path) -> None:
    with _fake_engine(tmp_path, "never requested /wait") as (fake, client):
        result = _run(client, _engine(fake.endpoint), "docker-daemon:x:1", 30.0)
    assert (result.outcome, result.stdout) == (Outcome.PASSED, "hello\n")
    assert fake.requests[-1] == "DELETE /containers/*"


@pytest.fixture
def second_engine(engine: Engine) -> Iterator[tuple[Engine, Process]]:
    """Another private engine and its process, which a test may stop."""
    assert engine.version
    name = "stopped"
    try:
        started = ensure_private_engine(load_settings(), COMMANDS, lambda _: None, name=name)
    except EngineError as error:
        pytest.skip(f"no second private engine: {error}")
    process = Process.parse(
        PrivateEnginePaths(cache_folder(load_settings()), name).process_file.read_text(encoding="utf-8")
    )
    assert process is not None
    yield started, process
    if process.is_alive:
        os.kill(process.pid, signal.SIGCONT)
    stop_private_engine(load_settings(), COMMANDS, lambda _: None, name=name)


def _pause_when_running(engine: Engine, process: Process) -> None:
    """Stop the engine's process once it runs a container."""
    with contextlib.closing(connect_client(engine)) as client:
        wait_until(client.api.containers)
    os.kill(process.pid, signal.SIGSTOP)


def test_run_reports_paused_engine(second_engine: tuple[Engine, Process], tmp_path: Path) -> None:
    engine, process = second_engine
    before = census.take(engine, tmp_path)
    layer = make_tar({"main": guests.ignore_signals("linux/arm64")})
    image = MemoryImage()
    image.set_index([add_platform(image, "linux/arm64", [layer], Entrypoint=["/main"])])
    with contextlib.closing(connect_client(engine)) as client:
        _set_timeout(client, 2)
        pausing = threading.Thread(target=_pause_when_running, args=(engine, process))
        pausing.start()
        try:
            with pytest.raises(EngineError, match="no response for 2 s") as caught:
                _run(client, engine, image, _GUEST_TIMEOUT)
        finally:
            pausing.join()
            os.kill(process.pid, signal.SIGCONT)
    assert "may be left" in caught.value.message
    assert f"DOCKER_HOST={engine.endpoint}" in (caught.value.hint or "")
    cause: Any = caught.value.__cause__
    assert "/kill" not in cause.request.path_url  # noticed before the timeout of the guest
    # The engine now handles the requests to remove them, but the image only if its container is gone.
    with contextlib.closing(connect_client(engine)) as client:
        wait_until(lambda: not client.api.containers(all=True))
        (image_id,) = re.findall(r"so may (sha256:[0-9a-f]{64}), loaded", caught.value.message)
        with contextlib.suppress(ImageNotFound):
            client.api.remove_image(image_id)
    assert before.differences(census.take(engine, tmp_path)) == {}
