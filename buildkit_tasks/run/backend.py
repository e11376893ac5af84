"""The interface of the runners: tasks, results, and the backend protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from buildkit_tasks.hints import format_hint
from buildkit_tasks.report.model import EmulatorSummary, Outcome, RunResult
from buildkit_tasks.run.outcomes import Expectation, ProcessResult, classify_outcome
from buildkit_tasks.run.qemu_env import explain_cpu_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.layers.entrypoint import FileLookup
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Platform

    ImageOpener = Callable[[str], AbstractContextManager[Image]]

__all__ = ["RunBackend", "RunTask", "explain_missing_loader", "explain_unstartable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTask:
    """One check on one platform and CPU model. ``timeout`` is in seconds.

    ``args`` replace the image's CMD, as arguments of ``docker run`` do; ``command`` is their unsplit form.
    ``cpu`` is the model for QEMU. If it is empty QEMU uses its default, and native programs run without QEMU.
    """

    platform: Platform
    expectation: Expectation
    timeout: float
    args: tuple[str, ...] = ()
    command: str = ""
    cpu: str = ""

    def make_result(
        self, outcome: Outcome, message: str = "", *, emulator: EmulatorSummary | None = None, **fields: Any
    ) -> RunResult:
        """Return a result of this task; ``fields`` are those of :class:`RunResult`."""
        return RunResult(
            platform=str(self.platform),
            command=self.command,
            cpu=self.cpu,
            outcome=outcome,
            message=message,
            emulated=emulator is not None,
            emulator=emulator,
            **fields,
        )

    def classify_result(
        self, process_result: ProcessResult, *, emulator: EmulatorSummary | None, **fields: Any
    ) -> RunResult:
        """Return the result for a guest that has ended like this."""
        emulator_path = emulator.path if emulator else ""
        cpu_error = explain_cpu_refusal(process_result, self.platform, emulator_path)
        outcome, message = classify_outcome(process_result, self.expectation, self.platform)
        if cpu_error:
            outcome, message = Outcome.NOT_REGISTERED, cpu_error
        elif outcome is Outcome.EMULATOR_CRASH and emulator is not None:
            message = f"{message} ({emulator_path or 'QEMU'}, version {emulator.version or 'unknown'})"
        return self.make_result(
            outcome, message, emulator=emulator, exit_code=process_result.exit_code,
            stdout=process_result.stdout,
            stderr=process_result.stderr, limited=process_result.is_limited, **fields,
        )  # fmt: skip


def explain_unstartable(
    config: ImageConfig, rootfs: FileLookup, platform: Platform
) -> tuple[Outcome, str] | None:
    """Return the outcome and the reason if the program that an image starts cannot run on the platform.

    ``wrong-arch`` is a program of another machine; one that is missing, or that no kernel starts, ``failed``.
    """
    from buildkit_tasks.oci.layers.entrypoint import find_programs
    from buildkit_tasks.verify.entrypoint import check_program, is_wrong_machine

    programs = find_programs(config, rootfs)
    checks = (check for program in programs for check in check_program(platform, program))
    failures = [check for check in checks if not check.ok]
    if not failures:
        return None
    outcome = Outcome.WRONG_ARCH if is_wrong_machine(failures[0]) else Outcome.FAILED
    reason = "; ".join(check.message for check in failures)
    return outcome, f"{reason}{format_hint(failures[0].hint)}"


def explain_missing_loader(config: ImageConfig, rootfs: FileLookup, platform: Platform) -> str:
    """Return that the loader of a program is missing, with a hint; empty if every one is in the image.

    The kernel reports it as a missing file, as if the program itself did not exist (execve(2), ENOENT).
    """
    from buildkit_tasks.oci.layers.entrypoint import find_programs
    from buildkit_tasks.verify.dynamic_linking import LOADER_HINT, describe_missing_loader

    files = (program.resolved for program in find_programs(config, rootfs))
    reasons = (describe_missing_loader(platform, file, rootfs, config) for file in files if file is not None)
    reason = next(filter(None, reasons), "")
    return f"{reason}{format_hint(LOADER_HINT)}" if reason else ""


class RunBackend(Protocol):
    """One image, ready to be run on its platforms."""

    @property
    def runner(self) -> str:
        """The runner's name: docker or sandbox."""

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms of the image."""

    def run(self, task: RunTask) -> RunResult:
        """Run a task and return its result. Several threads may call this at once."""

    def stop(self) -> None:
        """Kill all running guests, after an interruption."""
