"""What both runners take and give: one task for each platform, check and CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from buildkit_tasks.report.model import EmulatorSummary, Outcome, RunResult
from buildkit_tasks.run.outcomes import Expectation, ProcessResult, classify_outcome
from buildkit_tasks.run.qemu_env import explain_cpu_refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.layers.entrypoint import FileLookup
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

    ImageOpener = Callable[[str], AbstractContextManager[Source]]

__all__ = ["RunBackend", "RunTask", "explain_program_mismatch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTask:
    """One thing to run on one platform; ``timeout`` in seconds.

    ``words`` replace the image's CMD, as arguments of ``docker run`` do; ``command`` is how they were
    written. ``cpu`` is the model that QEMU emulates, empty for its default, with which the host's own
    programs run without it.
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
        """A result of this task."""
        return RunResult(
            platform=str(self.platform),
            command=self.command,
            outcome=outcome,
            message=message,
            emulated=emulator is not None,
            emulator=emulator,
            **fields,
        )

    def classify_result(
        self, process_result: ProcessResult, *, emulator: EmulatorSummary | None, **fields: Any
    ) -> RunResult:
        """The result of a guest that has ended so."""
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


def explain_program_mismatch(config: ImageConfig, rootfs: FileLookup, platform: Platform) -> str:
    """The words why what an image would start is not for the platform; empty if it is."""
    from buildkit_tasks.oci.layers.entrypoint import find_programs
    from buildkit_tasks.verify import check_program

    programs = find_programs(config, rootfs)
    checks = (check for program in programs for check in check_program(platform, program))
    return "; ".join(check.message for check in checks if not check.ok)


class RunBackend(Protocol):
    """One image, ready to be run."""

    @property
    def runner(self) -> str:
        """Which runner it is: docker or sandbox."""

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms that the image holds."""

    def run(self, task: RunTask) -> RunResult:
        """Run it and tell how it ended; may be called by several threads at once."""

    def stop(self) -> None:
        """End whatever runs: it was interrupted."""
