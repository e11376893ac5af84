"""Run a platform's image in the Docker engine: one container, confined, with an init and a deadline."""

from __future__ import annotations

import contextlib
import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.emulate.outcomes import Ending, Expectation, judge
from buildkit_tasks.emulate.peek import wrong_program
from buildkit_tasks.errors import EngineError
from buildkit_tasks.processes import Process
from buildkit_tasks.results import EmulatorSummary, Outcome, PlatformSetup, RunResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docker import DockerClient

    from buildkit_tasks.emulate.loading import Loaded
    from buildkit_tasks.platforms import Platform

__all__ = ["LABEL", "Guest", "as_command", "reap", "run_guest"]

LABEL = "io.buildkit-tasks.owner"
_OUTPUT_CAP = 1 << 20
_CONFINED: dict[str, Any] = {
    # A fatal signal is not delivered to PID 1, and QEMU then hangs: an init passes it on.
    "init": True,
    "network_mode": "none",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": 256,
    "mem_limit": "1g",
    "nano_cpus": 1_000_000_000,
    "tmpfs": {"/tmp": "size=64m"},  # noqa: S108 - the guest's own
    "log_config": {"Type": "json-file", "Config": {"max-size": "4m", "max-file": "1"}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """What to run for one platform, and how it runs here."""

    platform: Platform
    image: Loaded
    setup: PlatformSetup
    command: tuple[str, ...]
    expectation: Expectation
    timeout: float

    @property
    def emulator(self) -> EmulatorSummary | None:
        """The emulator that the kernel starts for it; None where it runs natively."""
        if self.setup.native:
            return None
        return EmulatorSummary(path=self.setup.interpreter, version=self.setup.version)

    def result(self, outcome: Outcome, message: str = "", **more: Any) -> RunResult:
        """A result of this guest."""
        return RunResult(
            platform=str(self.platform),
            outcome=outcome,
            message=message,
            digest=self.image.digest,
            emulated=not self.setup.native,
            emulator=self.emulator,
            **more,
        )


def as_command(platform: Platform, image: str, command: Sequence[str]) -> list[str]:
    """The arguments of ``docker run`` that do the same, for a dry run."""
    flags = {
        "network": _CONFINED["network_mode"],
        "cap-drop": _CONFINED["cap_drop"][0],
        "security-opt": _CONFINED["security_opt"][0],
        "pids-limit": _CONFINED["pids_limit"],
        "memory": _CONFINED["mem_limit"],
        "cpus": _CONFINED["nano_cpus"] // 1_000_000_000,
        "tmpfs": "/tmp:size=64m",  # noqa: S108 - the guest's own
        "platform": platform,
    }
    bound = [f"--{name}={value}" for name, value in flags.items()]
    return ["run", "--rm", "--init", "--read-only", *bound, "--", image, *command]


def run_guest(client: DockerClient, guest: Guest) -> RunResult:
    """Run one platform's image and tell how it ended; its container is always removed.

    Raises :class:`EngineError` when the engine itself fails or stops answering.
    """
    from docker.errors import APIError, DockerException  # noqa: PLC0415
    from requests.exceptions import RequestException  # noqa: PLC0415

    try:
        with _container(client, guest) as container:
            return _look_and_run(client, guest, container)
    except APIError as error:
        if "exec format error" in str(error):
            return guest.result(
                Outcome.NOT_REGISTERED, f"the kernel has no handler for {guest.platform}: {error.explanation}"
            )
        return guest.result(Outcome.FAILED, f"the engine could not start it: {error.explanation}")
    except (DockerException, RequestException) as error:
        raise EngineError(
            f"the engine stopped answering: {error}",
            platform=guest.platform,
            hint=f"docker ps -a --filter label={LABEL} lists what may be left",
        ) from error


@contextlib.contextmanager
def _container(client: DockerClient, guest: Guest) -> Iterator[Mapping[str, Any]]:
    from docker.errors import NotFound  # noqa: PLC0415

    api = client.api
    made = api.create_container(
        guest.image.image,
        list(guest.command) or None,
        host_config=api.create_host_config(**_CONFINED),
        labels={LABEL: str(Process.of(os.getpid()))},
        # A classic store has one platform for each image, and older ones refuse to be asked.
        platform=str(guest.platform) if guest.image.digest else None,
    )
    try:
        yield api.inspect_container(made["Id"])
    finally:
        with contextlib.suppress(NotFound):
            api.remove_container(made["Id"], force=True, v=True)


def _look_and_run(client: DockerClient, guest: Guest, container: Mapping[str, Any]) -> RunResult:
    proof = (container.get("ImageManifestDescriptor") or {}).get("digest", guest.image.digest)
    if proof != guest.image.digest:
        return guest.result(
            Outcome.WRONG_ARCH, f"the engine chose manifest {proof}, not {guest.image.digest}"
        )
    wrong = wrong_program(client.api, container, guest.platform)
    if wrong:
        return guest.result(Outcome.WRONG_ARCH, wrong)
    started = time.monotonic()
    client.api.start(container["Id"])
    timed_out = not _ended(client, container["Id"], guest.timeout)
    seconds = round(time.monotonic() - started, 3)
    return _result(client, guest, container["Id"], seconds, timed_out=timed_out)


def _ended(client: DockerClient, container: str, timeout: float) -> bool:
    """Wait for the guest's end; past the deadline it is killed, since it may ignore TERM."""
    from requests.exceptions import ConnectionError as Disconnected  # noqa: PLC0415
    from requests.exceptions import ReadTimeout  # noqa: PLC0415

    try:
        client.api.wait(container, timeout=max(1, math.ceil(timeout)))
    except (ReadTimeout, Disconnected):
        # Both mean "not yet"; that the engine still answers is proved by the next call.
        if client.api.inspect_container(container)["State"]["Running"]:
            client.api.kill(container)
            return False
    return True


def _result(
    client: DockerClient, guest: Guest, container: str, seconds: float, *, timed_out: bool
) -> RunResult:
    state = client.api.inspect_container(container)["State"]
    stdout, stderr = (_captured(client, container, **{name: True}) for name in ("stdout", "stderr"))
    ending = Ending(
        exit_code=state["ExitCode"],
        stdout=stdout,
        stderr=stderr,
        emulated=not guest.setup.native,
        out_of_memory=bool(state.get("OOMKilled")),
    )
    outcome, message = judge(ending, guest.expectation, guest.platform)
    if timed_out:
        outcome, message = Outcome.TIMEOUT, f"it ran for more than {guest.timeout:g} s and was killed"
    return guest.result(
        outcome, message, exit_code=ending.exit_code, stdout=stdout, stderr=stderr, seconds=seconds
    )


def _captured(client: DockerClient, container: str, *, stdout: bool = False, stderr: bool = False) -> str:
    found = bytearray()
    for chunk in client.api.logs(container, stdout=stdout, stderr=stderr, stream=True):
        found += chunk
        if len(found) > _OUTPUT_CAP:
            del found[_OUTPUT_CAP:]
            break
    return found.decode(errors="replace")


def reap(client: DockerClient) -> None:
    """Remove the containers of runs whose process is gone (a killed task cannot tidy up)."""
    for container in client.api.containers(all=True, filters={"label": LABEL}):
        owner = Process.parse(container["Labels"][LABEL])
        if owner is not None and not owner.alive:
            client.api.remove_container(container["Id"], force=True, v=True)
