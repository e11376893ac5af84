"""Run a platform's image in the Docker engine: one container, confined, with an init and a deadline."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.report.model import EmulatorSummary, Outcome, PlatformSetup, RunResult
from buildkit_tasks.run.docker.container_files import wrong_program
from buildkit_tasks.run.docker.monitor import PROCESSES_CAP, Followed, attached, follow
from buildkit_tasks.run.docker.timeouts import LABEL, answering, ask_to_remove, is_silence
from buildkit_tasks.run.outcomes import Ending
from buildkit_tasks.run.qemu_env import STEERING
from buildkit_tasks.system.process import Process

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docker import DockerClient

    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.backend import GuestTask
    from buildkit_tasks.run.docker.load import Loaded

__all__ = ["LABEL", "Guest", "as_command", "reap", "run_guest"]

_FORK_REFUSED = re.compile(
    r"[^\n]*(?:fork|clone|thread|process)[^\n]{0,80}(?:Resource temporarily unavailable|errno=11\b)[^\n]*"
)
_CONFINED: dict[str, Any] = {
    # A fatal signal is not delivered to PID 1, and QEMU then hangs: an init passes it on.
    "init": True,
    "network_mode": "none",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "pids_limit": PROCESSES_CAP,
    "mem_limit": "1g",
    "memswap_limit": "1g",  # memory and swap together: else a hog would go on in the host's swap
    "nano_cpus": 1_000_000_000,
    "tmpfs": {"/tmp": "size=64m"},  # noqa: S108 - the guest's own
    "log_config": {"Type": "none"},  # its output is read as it comes, and kept nowhere else
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A task, the image to run for it, and how its platform runs here."""

    task: GuestTask
    image: Loaded
    setup: PlatformSetup

    @property
    def emulator(self) -> EmulatorSummary | None:
        """The emulator that the kernel starts for it; None where it runs natively."""
        if self.setup.native:
            return None
        return EmulatorSummary(path=self.setup.interpreter, version=self.setup.version, cpu=self.task.cpu)

    def result(self, outcome: Outcome, message: str = "") -> RunResult:
        """A result of this guest, which was not run."""
        return self.task.result(outcome, message, emulator=self.emulator, digest=self.image.digest)


def as_command(platform: Platform, image: str, command: Sequence[str], cpu: str = "") -> list[str]:
    """The arguments of ``docker run`` that do the same, for a dry run."""
    flags = {
        "network": _CONFINED["network_mode"],
        "cap-drop": _CONFINED["cap_drop"][0],
        "security-opt": _CONFINED["security_opt"][0],
        "pids-limit": _CONFINED["pids_limit"],
        "memory": _CONFINED["mem_limit"],
        "memory-swap": _CONFINED["memswap_limit"],
        "cpus": _CONFINED["nano_cpus"] // 1_000_000_000,
        "tmpfs": "/tmp:size=64m",  # noqa: S108 - the guest's own
        "platform": platform,
        **({"env": f"QEMU_CPU={cpu}"} if cpu else {}),
    }
    bound = [f"--{name}={value}" for name, value in flags.items()]
    return ["run", "--rm", "--init", "--read-only", *bound, "--", image, *command]


def run_guest(client: DockerClient, guest: Guest) -> RunResult:
    """Run one platform's image and tell how it ended; its container is removed whatever happens.

    Raises :class:`EngineError` when the engine stops answering, with what may be left.
    """
    from docker.errors import APIError

    if guest.task.cpu and guest.setup.native:
        return guest.result(Outcome.NOT_REGISTERED, _no_emulator(guest))
    try:
        with (
            answering(client, "a container", platform=guest.task.platform),
            _container(client, guest) as container,
        ):
            return _look_and_run(client, guest, container)
    except APIError as error:
        if "exec format error" in str(error):
            words = f"the kernel has no handler for {guest.task.platform}: {error.explanation}"
            return guest.result(Outcome.NOT_REGISTERED, words)
        return guest.result(Outcome.FAILED, f"the engine could not start it: {error.explanation}")


def _no_emulator(guest: Guest) -> str:
    return (
        f"{guest.task.platform} runs natively in this engine, without QEMU: it cannot be run as CPU model"
        f" {guest.task.cpu!r} there; --runner=sandbox can"
    )


@contextlib.contextmanager
def _container(client: DockerClient, guest: Guest) -> Iterator[Mapping[str, Any]]:
    api = client.api
    made = api.create_container(
        guest.image.image,
        list(guest.task.words) or None,
        environment=_environment(guest),
        host_config=api.create_host_config(**_CONFINED),
        labels={LABEL: str(Process.of(os.getpid()))},
        # A classic store has one platform for each image, and older ones refuse to be asked.
        platform=str(guest.task.platform) if guest.image.digest else None,
    )
    with _removed_afterwards(client, made["Id"], guest.task.platform):
        yield api.inspect_container(made["Id"])


def _environment(guest: Guest) -> list[str]:
    """QEMU's own variables: which model, and none from the image; a name without a value takes it away."""
    if guest.setup.native:
        return []
    chosen = [f"QEMU_CPU={guest.task.cpu}"] if guest.task.cpu else []
    return chosen + [name for name in STEERING if not (chosen and name == "QEMU_CPU")]


@contextlib.contextmanager
def _removed_afterwards(client: DockerClient, container: str, platform: Platform) -> Iterator[None]:
    with answering(client, f"the container {container[:12]}", platform=platform):
        try:
            yield
        except BaseException as error:
            if is_silence(error):  # it would not say that it removes it either
                ask_to_remove(client, "containers", container, force=True, v=True)
            else:
                _remove(client, container)
            raise
        _remove(client, container)


def _remove(client: DockerClient, container: str) -> None:
    from docker.errors import NotFound

    with contextlib.suppress(NotFound):
        client.api.remove_container(container, force=True, v=True)


def _look_and_run(client: DockerClient, guest: Guest, container: Mapping[str, Any]) -> RunResult:
    proof = (container.get("ImageManifestDescriptor") or {}).get("digest", guest.image.digest)
    if proof != guest.image.digest:
        return guest.result(
            Outcome.WRONG_ARCH, f"the engine chose manifest {proof}, not {guest.image.digest}"
        )
    wrong = wrong_program(client.api, container, guest.task.platform)
    if wrong:
        return guest.result(Outcome.WRONG_ARCH, wrong)
    with attached(client.api, container["Id"]) as stream:
        client.api.start(container["Id"])
        seen = follow(client.api, container["Id"], stream, guest.task.timeout)
    return _result(guest, client.api.inspect_container(container["Id"])["State"], seen)


def _result(guest: Guest, state: Mapping[str, Any], seen: Followed) -> RunResult:
    """What the daemon's own state and the output say."""
    failed = state["ExitCode"] != guest.task.expectation.exit_code
    ending = Ending(
        exit_code=state["ExitCode"],
        stdout=seen.stdout,
        stderr=seen.stderr,
        emulated=not guest.setup.native,
        out_of_memory=bool(state.get("OOMKilled")),
        cpu=guest.task.cpu,
        limit=seen.limit or (_refused_process(seen.stderr) if failed else ""),
        timed_out=guest.task.timeout if seen.timed_out else 0.0,
    )
    return guest.task.judged(ending, emulator=guest.emulator, seconds=seen.seconds, digest=guest.image.digest)


def _refused_process(stderr: str) -> str:
    """Words for a guest that came to its end too soon after its cap of processes to be seen at it."""
    said = _FORK_REFUSED.search(stderr)
    return f"it may have {PROCESSES_CAP} processes and says {said[0].strip()!r}" if said else ""


def reap(client: DockerClient) -> None:
    """Remove the containers of runs whose process is gone (a killed task cannot tidy up)."""
    with answering(client):
        for container in client.api.containers(all=True, filters={"label": LABEL}):
            owner = Process.parse(container["Labels"][LABEL])
            if owner is not None and not owner.alive:
                _remove(client, container["Id"])
