"""Run one task in a container, confined, with an init process and a deadline."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.report.model import EmulatorSummary, Outcome, PlatformSetup, RunResult
from buildkit_tasks.run.docker.container_files import (
    explain_missing_loader_in_container,
    explain_unstartable_container,
)
from buildkit_tasks.run.docker.monitor import PIDS_LIMIT, ContainerResult, attach_output, monitor
from buildkit_tasks.run.docker.timeouts import (
    OWNER_LABEL,
    is_connection_error,
    request_removal,
    translate_connection_errors,
)
from buildkit_tasks.run.outcomes import MISSING_PROGRAM_STATUSES, ProcessResult
from buildkit_tasks.run.qemu_env import QEMU_ENV_VARS
from buildkit_tasks.system.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docker import DockerClient

    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.backend import RunTask
    from buildkit_tasks.run.docker.load import LoadedImage

__all__ = ["OWNER_LABEL", "ContainerRun", "build_run_args", "remove_stale_containers", "run_container"]

# A guest chooses what it prints, so the repetition is bounded, and starts only at one of these words.
_FORK_ERROR = re.compile(
    r"(?:fork|clone|thread|process)[^\n]{0,80}?(?:Resource temporarily unavailable|errno=11\b)"
)
_TMP_OPTIONS = "size=64m,nr_inodes=16384"  # empty files take memory of the kernel only
_HOST_CONFIG: dict[str, Any] = {
    # The kernel does not deliver fatal signals of PID 1 to itself, and QEMU would hang: PID 1 is an init.
    "init": True,
    "network_mode": "none",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": PIDS_LIMIT,
    "mem_limit": "1g",
    "memswap_limit": "1g",  # memory plus swap: without it the guest could use the host's swap
    "nano_cpus": 1_000_000_000,
    "tmpfs": {"/tmp": _TMP_OPTIONS},  # noqa: S108 - the guest's own
    "log_config": {"Type": "none"},  # the output is read from the attached stream
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerRun:
    """A task, its image in the engine, and how the engine's host runs the platform."""

    task: RunTask
    image: LoadedImage
    setup: PlatformSetup

    @property
    def emulator(self) -> EmulatorSummary | None:
        """The emulator that the kernel starts for the program; None if it runs natively."""
        if self.setup.native:
            return None
        return EmulatorSummary(path=self.setup.interpreter, version=self.setup.version, cpu=self.task.cpu)

    def make_result(self, outcome: Outcome, message: str = "") -> RunResult:
        """Return a result for a guest that was not run."""
        return self.task.make_result(outcome, message, digest=self.image.digest)


def build_run_args(platform: Platform, image: str, args: Sequence[str], cpu: str = "") -> list[str]:
    """Return the equivalent arguments of ``docker run``, for a dry run."""
    flags = {
        "network": _HOST_CONFIG["network_mode"],
        "cap-drop": _HOST_CONFIG["cap_drop"][0],
        "security-opt": _HOST_CONFIG["security_opt"][0],
        "pids-limit": _HOST_CONFIG["pids_limit"],
        "memory": _HOST_CONFIG["mem_limit"],
        "memory-swap": _HOST_CONFIG["memswap_limit"],
        "cpus": _HOST_CONFIG["nano_cpus"] // 1_000_000_000,
        "tmpfs": f"/tmp:{_TMP_OPTIONS}",  # noqa: S108 - likewise
        "platform": platform,
        **({"env": f"QEMU_CPU={cpu}"} if cpu else {}),
    }
    options = [f"--{name}={value}" for name, value in flags.items()]
    return ["run", "--rm", "--init", "--read-only", *options, "--", image, *args]


def run_container(client: DockerClient, run: ContainerRun) -> RunResult:
    """Run a task and return its result; the container is always removed.

    Raises :class:`EngineError`, which names what may be left, if the engine stops answering.
    """
    from docker.errors import APIError

    if run.task.cpu and run.setup.native:
        return run.make_result(Outcome.NOT_REGISTERED, _explain_missing_emulator(run))
    try:
        with (
            translate_connection_errors(client, "a container", platform=run.task.platform),
            _create_container(client, run) as container,
        ):
            return _check_and_run(client, run, container)
    except APIError as error:
        if "exec format error" in str(error):
            message = f"the kernel has no handler for {run.task.platform}: {error.explanation}"
            return run.make_result(Outcome.NOT_REGISTERED, message)
        return run.make_result(Outcome.FAILED, f"the engine could not start it: {error.explanation}")


def _explain_missing_emulator(run: ContainerRun) -> str:
    return (
        f"{run.task.platform} runs natively in this engine, without QEMU, so CPU model {run.task.cpu!r}"
        " cannot be emulated; --runner=sandbox can"
    )


@contextlib.contextmanager
def _create_container(client: DockerClient, run: ContainerRun) -> Iterator[Mapping[str, Any]]:
    api = client.api
    created = api.create_container(
        run.image.image_id,
        list(run.task.args) or None,
        environment=_build_environment(run),
        host_config=api.create_host_config(**_HOST_CONFIG),
        labels={OWNER_LABEL: str(Process.from_pid(os.getpid()))},
        # A classic store has one platform per image, and old engines reject the parameter.
        platform=str(run.task.platform) if run.image.digest else None,
    )
    with _remove_on_exit(client, created["Id"], run.task.platform):
        yield api.inspect_container(created["Id"])


def _build_environment(run: ContainerRun) -> list[str]:
    """Set QEMU_CPU and unset QEMU's other variables, which the image may set: a bare name unsets one."""
    if run.setup.native:
        return []
    cpu_env = [f"QEMU_CPU={run.task.cpu}"] if run.task.cpu else []
    return cpu_env + [name for name in QEMU_ENV_VARS if not (cpu_env and name == "QEMU_CPU")]


@contextlib.contextmanager
def _remove_on_exit(client: DockerClient, container_id: str, platform: Platform) -> Iterator[None]:
    with translate_connection_errors(client, f"the container {container_id[:12]}", platform=platform):
        try:
            yield
        except BaseException as error:
            if is_connection_error(error):  # it would not answer the removal either
                request_removal(client, "containers", container_id, force=True, v=True)
            else:
                _remove_container(client, container_id)
            raise
        _remove_container(client, container_id)


def _remove_container(client: DockerClient, container_id: str) -> None:
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        client.api.remove_container(container_id, force=True, v=True)


def _check_and_run(client: DockerClient, run: ContainerRun, container: Mapping[str, Any]) -> RunResult:
    manifest_digest = (container.get("ImageManifestDescriptor") or {}).get("digest", run.image.digest)
    if manifest_digest != run.image.digest:
        return run.make_result(
            Outcome.WRONG_ARCH, f"the engine chose manifest {manifest_digest}, not {run.image.digest}"
        )
    problem = explain_unstartable_container(client.api, container, run.task.platform)
    if problem:
        return run.make_result(*problem)
    with attach_output(client.api, container["Id"]) as stream:
        client.api.start(container["Id"])
        container_result = monitor(client.api, container["Id"], stream, run.task.timeout)
    state = client.api.inspect_container(container["Id"])["State"]
    missing_loader = ""
    if state["ExitCode"] in MISSING_PROGRAM_STATUSES:
        missing_loader = explain_missing_loader_in_container(client.api, container, run.task.platform)
    return _classify_run(run, state, container_result, missing_loader)


def _classify_run(
    run: ContainerRun, state: Mapping[str, Any], container_result: ContainerResult, missing_loader: str = ""
) -> RunResult:
    """Return the result from the engine's State of the container and from what was monitored."""
    failed = state["ExitCode"] != run.task.expectation.exit_code
    process_result = ProcessResult(
        exit_code=state["ExitCode"],
        stdout=container_result.stdout,
        stderr=container_result.stderr,
        emulated=not run.setup.native,
        out_of_memory=bool(state.get("OOMKilled")),
        cpu=run.task.cpu,
        missing_loader=missing_loader,
        limit_exceeded=container_result.limit_exceeded
        or (_explain_fork_error(container_result.stderr) if failed else ""),
        timeout_exceeded=run.task.timeout if container_result.timed_out else 0.0,
    )
    return run.task.classify_result(
        process_result, emulator=run.emulator, seconds=container_result.seconds, digest=run.image.digest
    )


def _explain_fork_error(stderr: str) -> str:
    """Return the limit that a guest seems to have met: it may end before its process count is polled."""
    match = _FORK_ERROR.search(stderr)
    if match is None:
        return ""
    line = stderr[stderr.rfind("\n", 0, match.start()) + 1 :].partition("\n")[0]
    return f"it may have {PIDS_LIMIT} processes and printed {line.strip()!r}"


def remove_stale_containers(client: DockerClient) -> None:
    """Remove the containers of processes that no longer run: a killed task leaves them."""
    with translate_connection_errors(client):
        for container in client.api.containers(all=True, filters={"label": OWNER_LABEL}):
            owner = Process.parse(container["Labels"][OWNER_LABEL])
            if owner is not None and not owner.is_alive:
                _remove_container(client, container["Id"])
