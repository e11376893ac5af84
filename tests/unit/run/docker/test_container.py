from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import docker
import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import Outcome, PlatformSetup
from buildkit_tasks.run.backend import RunTask
from buildkit_tasks.run.docker import container
from buildkit_tasks.run.docker.container import (
    OWNER_LABEL,
    ContainerRun,
    build_run_args,
    remove_stale_containers,
    run_container,
)
from buildkit_tasks.run.docker.load import LoadedImage
from buildkit_tasks.run.docker.monitor import ContainerResult
from buildkit_tasks.run.outcomes import Expectation, ProcessResult
from buildkit_tasks.run.qemu_env import QEMU_ENV_VARS
from buildkit_tasks.system.process import Process
from tests.support.elf import elf
from tests.support.growth import assert_linear
from tests.support.oci import directory, make_tar

ARM64 = Platform.parse("linux/arm64")


def make_run(*, native: bool = False, cpu: str = "", expect_exit: int = 0) -> ContainerRun:
    setup = PlatformSetup(
        platform="linux/arm64", native=native, interpreter="/q/qemu-aarch64", version="11.1.2", runs=True
    )
    task = RunTask(platform=ARM64, expectation=Expectation(exit_code=expect_exit), timeout=7, cpu=cpu)
    return ContainerRun(task=task, image=LoadedImage(image_id="i", digest="d"), setup=setup)


def container_result(stderr: str = "", **fields: Any) -> ContainerResult:
    return ContainerResult(stdout="", stderr=stderr, seconds=1.0, **fields)


def test_cpu_refusal_outcome() -> None:
    stderr = "qemu-aarch64: unable to find CPU model 'nosuch'\n"
    process_result = ProcessResult(exit_code=1, stdout="", stderr=stderr, emulated=True, cpu="nosuch")
    run = make_run(cpu="nosuch")
    result = run.task.classify_result(process_result, emulator=run.emulator)
    assert result.outcome is Outcome.NOT_REGISTERED
    assert "'/q/qemu-aarch64 -cpu help'" in result.message


def test_emulator_crash_has_version() -> None:
    stderr = "qemu-aarch64: QEMU internal SIGBUS {code=ADRERR, addr=0x20000}"
    process_result = ProcessResult(exit_code=135, stdout="", stderr=stderr, emulated=True)
    result = make_run().task.classify_result(process_result, emulator=make_run().emulator)
    assert result.outcome is Outcome.EMULATOR_CRASH
    assert result.message == f"the emulator crashed: {stderr} (/q/qemu-aarch64, version 11.1.2)"


class UnusedClient:
    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"the engine was asked for {name}")


def test_native_platform_with_cpu() -> None:
    client: Any = UnusedClient()
    result = run_container(client, make_run(native=True, cpu="qemu64"))
    assert result.outcome is Outcome.NOT_REGISTERED
    assert "--runner=sandbox" in result.message
    assert "'qemu64'" in result.message


def test_qemu_environment() -> None:
    assert container._build_environment(make_run(native=True)) == []
    assert container._build_environment(make_run()) == list(QEMU_ENV_VARS)
    environment = container._build_environment(make_run(cpu="cortex-a53"))
    assert environment[0] == "QEMU_CPU=cortex-a53"
    assert sorted(name.partition("=")[0] for name in environment) == sorted(QEMU_ENV_VARS)
    assert len(set(QEMU_ENV_VARS)) == len(QEMU_ENV_VARS)


class FakeApi:
    """An engine that creates a container of the image's manifest ``chosen``."""

    def __init__(self, chosen: str = "d", labels: Mapping[str, str] | None = None) -> None:
        self.chosen = chosen
        self.labels = labels or {}
        self.host_config: dict[str, Any] = {}
        self.removed: list[str] = []

    def create_host_config(self, **options: Any) -> dict[str, Any]:
        self.host_config = docker.APIClient(version="1.45").create_host_config(**options)
        return self.host_config

    def create_container(self, *_: object, **__: object) -> dict[str, str]:
        return {"Id": "new"}

    def inspect_container(self, container_id: str) -> dict[str, Any]:
        return {"Id": container_id, "ImageManifestDescriptor": {"digest": self.chosen}, "Config": {}}

    def containers(self, **_: object) -> list[dict[str, Any]]:
        return [{"Id": name, "Labels": {OWNER_LABEL: owner}} for name, owner in self.labels.items()]

    def remove_container(self, container_id: str, **_: object) -> None:
        self.removed.append(container_id)


def make_client(api: FakeApi) -> Any:
    return SimpleNamespace(api=api)


def test_other_manifest_is_not_run() -> None:
    api = FakeApi(chosen="e")
    result = run_container(make_client(api), make_run())
    assert (result.outcome, result.message) == (Outcome.WRONG_ARCH, "the engine chose manifest e, not d")
    assert api.removed == ["new"]


def test_container_is_confined() -> None:
    api = FakeApi(chosen="e")
    run_container(make_client(api), make_run())
    confinement = {
        "Init": True,
        "NetworkMode": "none",
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "PidsLimit": 256,
        "Memory": 1 << 30,
        "MemorySwap": 1 << 30,
    }
    assert api.host_config.items() >= confinement.items()
    assert "Privileged" not in api.host_config
    assert "Binds" not in api.host_config


def test_only_containers_of_ended_tasks_are_stale() -> None:
    owners = {
        "ended": f"{os.getpid()}-1",  # the pid has been reused
        "running": str(Process.from_pid(os.getpid())),
        "of others": "their label",
    }
    api = FakeApi(labels=owners)
    remove_stale_containers(make_client(api))
    assert api.removed == ["ended"]


def test_run_args_have_cpu() -> None:
    assert "--env=QEMU_CPU=cortex-a53" in build_run_args(ARM64, "IMAGE", ("/x", "-y"), "cortex-a53")
    args = build_run_args(ARM64, "IMAGE", ("/x", "-y"))
    assert args[-4:] == ["--", "IMAGE", "/x", "-y"]
    assert not any("QEMU_CPU" in arg for arg in args)


@pytest.mark.parametrize(
    "stderr",
    [
        "sh: can't fork: Resource temporarily unavailable",
        "bash: fork: retry: Resource temporarily unavailable",
        "runtime: failed to create new OS thread (have 250 already; errno=11)",
    ],
)
def test_fork_error_is_a_limit(stderr: str) -> None:
    state = {"ExitCode": 2, "OOMKilled": False}
    result = container._classify_run(make_run(), state, container_result(f"first\n{stderr}\n"))
    assert (result.outcome, result.limited) == (Outcome.FAILED, True)
    assert result.message == f"the guest went over a limit: it may have 256 processes and printed {stderr!r}"
    # A guest that handles the error, or fails for another reason, has not met the limit.
    assert container._classify_run(make_run(expect_exit=2), state, container_result(stderr)).ok
    assert not container._classify_run(make_run(), state, container_result("fork failed")).limited


@pytest.mark.parametrize("text", ["fork", "f", "fork ", "fork\n", "thread errno=1", "\n"])
def test_search_for_fork_errors_takes_linear_time(text: str) -> None:
    assert_linear(container._explain_fork_error, lambda size: text * (size // len(text)), 1 << 20)


class FilesApi(FakeApi):
    """A container of one program, whose file system is ``files``, that ended with a status."""

    def __init__(self, status: int, files: Mapping[str, bytes]) -> None:
        super().__init__()
        self.status = status
        self.archive = {f"/{name}": make_tar({name: data}) for name, data in files.items()}
        self.directories = {"/srv": make_tar({}, [directory("srv")])}

    def inspect_container(self, container_id: str) -> dict[str, Any]:
        state = {"ExitCode": self.status}
        return {**super().inspect_container(container_id), "Config": {"Cmd": ["/app"]}, "State": state}

    def get_archive(self, _: str, path: str) -> tuple[Any, dict[str, Any]]:
        if path not in self.archive | self.directories:
            raise docker.errors.NotFound("no such file")
        mode = 0o755 | (1 << 31 if path in self.directories else 0)
        data = (self.archive | self.directories)[path]
        return (chunk for chunk in [data]), {"mode": mode, "size": len(data), "linkTarget": ""}

    def start(self, _: str) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "loader", "is_explained"),
    [(127, "", True), (255, "", True), (1, "", False), (127, "lib/ld-linux-aarch64.so.1", False)],
)
def test_missing_loader(
    monkeypatch: pytest.MonkeyPatch, status: int, loader: str, *, is_explained: bool
) -> None:
    result = container_result("exec /app failed: No such file or directory")
    monkeypatch.setattr(container, "attach_output", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(container, "monitor", lambda *_: result)
    files = {"app": elf("linux/arm64", interpreter="/lib/ld-linux-aarch64.so.1"), loader or "other": b""}
    message = run_container(make_client(FilesApi(status, files)), make_run()).message
    assert f"exit status {status}, expected 0: exec /app failed" in message
    explanation = "/app cannot start: its loader /lib/ld-linux-aarch64.so.1 is not in the image"
    assert (explanation in message) is is_explained


def test_directory_as_program() -> None:
    api = FilesApi(0, {})
    api.directories["/app"] = api.directories["/srv"]
    result = run_container(make_client(api), make_run())
    assert result.outcome is Outcome.FAILED
    assert "'/app' is a directory, not a program" in result.message


def test_out_of_memory_and_timeout() -> None:
    result = container._classify_run(make_run(), {"ExitCode": 0, "OOMKilled": True}, container_result())
    assert (result.outcome, result.limited) == (Outcome.FAILED, True)
    killed = container._classify_run(make_run(), {"ExitCode": 137, "OOMKilled": True}, container_result())
    assert (killed.outcome, killed.limited) == (Outcome.FAILED, True)
    late = container._classify_run(make_run(), {"ExitCode": 137}, container_result(timed_out=True))
    assert (late.outcome, late.message) == (Outcome.TIMEOUT, "it ran for more than 7 s and was killed")
    assert not late.limited
