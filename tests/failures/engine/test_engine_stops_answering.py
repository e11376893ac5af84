from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
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
from buildkit_tasks.host.engine.private import PrivateEnginePaths, ensure_private_engine, stop_private_engine
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
from tests.support.oci import Memory, add_platform, hello, make_tar

ARM64 = Platform.parse("linux/arm64")
PATIENCE = 0.4  # seconds instead of 30: the client's own time-out
TOOLS = SubprocessRunner(dry_run_output=sys.stderr)

BEFORE = ("GET /images/*/json", "POST /containers/create")
AFTER = (
    "GET /containers/*/json",
    "GET /containers/*/archive",
    "POST /containers/*/attach",
    "POST /containers/*/start",
    "GET /_ping",  # in the middle of the run
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


def _run(client: DockerClient, engine: Engine, image: str | Memory, timeout: float) -> RunResult:
    """Run an image that the engine has, or one that is loaded for it."""
    name, memory = (image, Memory()) if isinstance(image, str) else ("memory", image)
    setup = PlatformSetup(platform="linux/arm64", native=False, interpreter="/q/qemu-aarch64", runs=True)
    opened = contextlib.nullcontext(Image(memory))
    with load_into_engine(name, (ARM64,), engine, client, lambda _: opened) as images:
        task = RunTask(platform=ARM64, expectation=Expectation(), timeout=timeout)
        return run_container(client, ContainerRun(task=task, image=images[ARM64], setup=setup))


def _have_patience(client: DockerClient, seconds: float) -> None:
    api: Any = client.api  # typed as whole seconds
    api.timeout = seconds


@contextlib.contextmanager
def _asking(
    path: Path, request: str, *, hangs_up: bool = False, empty: bool = False
) -> Iterator[tuple[FakeEngine, DockerClient]]:
    fake = FakeEngine(path / "docker.sock", request, hangs_up=hangs_up, empty=empty)
    with fake.serving():
        client = DockerClient(base_url=fake.endpoint, version="1.48")
        _have_patience(client, PATIENCE)
        with contextlib.closing(client):
            yield fake, client


def _broken_off(
    path: Path, request: str, image: str | Memory = "docker-daemon:x:1", *, hangs_up: bool = False
) -> tuple[EngineError, list[str]]:
    """The error when the engine falls silent at a request, and what the engine was asked."""
    timeout = 0.3 if request.endswith("/kill") else 30.0
    empty = not isinstance(image, str)
    with _asking(path, request, hangs_up=hangs_up, empty=empty) as (fake, client):
        started = time.monotonic()
        with pytest.raises(EngineError) as caught:
            _run(client, _engine(fake.endpoint), image, timeout)
        assert time.monotonic() - started < 3.5
        assert request in fake.asked
        assert caught.value.exit_code == 3
        listed = f"DOCKER_HOST={fake.endpoint} docker ps -a --filter label={OWNER_LABEL}"
        assert caught.value.hint == listed
        return caught.value, fake.asked


def test_the_engine_has_thirty_seconds() -> None:
    assert API_SECONDS == 30


@pytest.mark.parametrize("request_", BEFORE)
def test_silence_before_there_is_a_container_is_an_error(tmp_path: Path, request_: str) -> None:
    error, asked = _broken_off(tmp_path, request_)
    assert error.message.startswith(f"the engine stopped answering: no response for {PATIENCE:g} s")
    assert CONTAINER[:12] not in error.message
    assert "DELETE /containers/*" not in asked


@pytest.mark.parametrize("request_", AFTER)
def test_silence_names_the_container_that_may_be_left_and_asks_once_for_its_removal(
    tmp_path: Path, request_: str
) -> None:
    error, asked = _broken_off(tmp_path, request_)
    assert error.message == (
        f"the engine stopped answering: no response for {PATIENCE:g} s;"
        f" the container {CONTAINER[:12]} may be left"
    )
    assert str(error.platform) == "linux/arm64"
    assert asked.count("DELETE /containers/*") == 1


@pytest.mark.parametrize("request_", [*BEFORE, *AFTER])
def test_an_engine_that_hangs_up_is_an_error_of_the_same_kind(tmp_path: Path, request_: str) -> None:
    error, _ = _broken_off(tmp_path, request_, hangs_up=True)
    assert error.message.startswith("the engine stopped answering: ")


def test_silence_while_an_image_is_loaded_names_it(tmp_path: Path) -> None:
    error, asked = _broken_off(tmp_path, "POST /images/load", hello(("linux/arm64",)))
    assert error.message.startswith(f"the engine stopped answering: no response for {PATIENCE:g} s")
    assert re.search(r"; so may sha256:[0-9a-f]{64}, loaded for the run$", error.message)
    assert asked.count("DELETE /images/*") == 1


def test_silence_in_the_run_of_a_loaded_image_names_both(tmp_path: Path) -> None:
    error, asked = _broken_off(tmp_path, "POST /containers/*/start", hello(("linux/arm64",)))
    assert re.search(
        r" the container c{12} may be left; so may sha256:[0-9a-f]{64}, loaded for the run$", error.message
    )
    assert asked[-2:] == ["DELETE /containers/*", "DELETE /images/*"]


def test_silence_when_a_loaded_image_is_removed_names_it(tmp_path: Path) -> None:
    error, _ = _broken_off(tmp_path, "DELETE /images/*", hello(("linux/arm64",)))
    assert re.search(r"; the image sha256:[0-9a-f]{64} may be left$", error.message)


def test_silence_at_the_list_of_leftovers_is_an_error_too(tmp_path: Path) -> None:
    with _asking(tmp_path, "GET /containers/json") as (_, client), pytest.raises(EngineError) as caught:
        remove_stale_containers(client)
    assert caught.value.message == f"the engine stopped answering: no response for {PATIENCE:g} s"


def test_the_same_engine_gives_a_result_when_it_answers(tmp_path: Path) -> None:
    with _asking(tmp_path, "nothing at all /wait") as (fake, client):
        result = _run(client, _engine(fake.endpoint), "docker-daemon:x:1", 30.0)
    assert (result.outcome, result.stdout) == (Outcome.PASSED, "hello\n")
    assert fake.asked[-1] == "DELETE /containers/*"


@pytest.fixture
def beside(engine: Engine) -> Iterator[tuple[Engine, Process]]:
    """An engine of its own and its process, which may be stopped without harm to others."""
    assert engine.version
    name = "row-55"
    try:
        found = ensure_private_engine(load_settings(), TOOLS, lambda _: None, name=name)
    except EngineError as error:
        pytest.skip(f"no private engine beside this one: {error}")
    process = Process.parse(
        PrivateEnginePaths(cache_folder(load_settings()), name).process_file.read_text(encoding="utf-8")
    )
    assert process is not None
    yield found, process
    if process.is_alive:
        os.kill(process.pid, signal.SIGCONT)
    stop_private_engine(load_settings(), TOOLS, lambda _: None, name=name)


def test_a_real_engine_that_is_stopped_in_mid_run_is_told_and_tidies_up_once_it_goes_on(
    beside: tuple[Engine, Process], tmp_path: Path
) -> None:
    engine, process = beside
    before = census.take(engine, tmp_path)
    layer = make_tar({"main": guests.ignore_signals("linux/arm64")})
    deaf = Memory()
    deaf.index([add_platform(deaf, "linux/arm64", [layer], Entrypoint=["/main"])])
    with contextlib.closing(connect_client(engine)) as client:
        _have_patience(client, 2)
        timer = threading.Timer(1.5, os.kill, (process.pid, signal.SIGSTOP))
        timer.start()
        started = time.monotonic()
        try:
            with pytest.raises(EngineError, match="no response for 2 s") as caught:
                _run(client, engine, deaf, 60.0)
            seconds = time.monotonic() - started
        finally:
            timer.join()
            os.kill(process.pid, signal.SIGCONT)
    assert "may be left" in caught.value.message
    assert f"DOCKER_HOST={engine.endpoint}" in (caught.value.hint or "")
    assert seconds < 15
    # It was asked to remove what is left, and does; an image only if its container is gone by then.
    deadline = time.monotonic() + 20
    with contextlib.closing(connect_client(engine)) as client:
        while client.api.containers(all=True) and time.monotonic() < deadline:
            time.sleep(0.2)
        (image,) = re.findall(r"so may (sha256:[0-9a-f]{64}), loaded", caught.value.message)
        with contextlib.suppress(ImageNotFound):
            client.api.remove_image(image)
    assert before.differences(census.take(engine, tmp_path)) == {}
