from __future__ import annotations

from typing import Any, NoReturn

import pytest

from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import Outcome, PlatformSetup
from buildkit_tasks.run.backend import RunTask
from buildkit_tasks.run.docker import container
from buildkit_tasks.run.docker.container import ContainerRun, build_run_args, run_container
from buildkit_tasks.run.docker.load import LoadedImage
from buildkit_tasks.run.docker.monitor import ContainerResult
from buildkit_tasks.run.outcomes import Expectation, ProcessResult
from buildkit_tasks.run.qemu_env import QEMU_ENV_VARS

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


def test_out_of_memory_and_timeout() -> None:
    result = container._classify_run(make_run(), {"ExitCode": 0, "OOMKilled": True}, container_result())
    assert (result.outcome, result.limited) == (Outcome.FAILED, True)
    late = container._classify_run(make_run(), {"ExitCode": 137}, container_result(timed_out=True))
    assert (late.outcome, late.message) == (Outcome.TIMEOUT, "it ran for more than 7 s and was killed")
    assert not late.limited
