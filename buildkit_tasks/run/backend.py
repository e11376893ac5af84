"""What both runners take and give: one task for each platform, check and CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from buildkit_tasks.report.model import EmulatorSummary, Outcome, RunResult
from buildkit_tasks.run.outcomes import Ending, Expectation, judge
from buildkit_tasks.run.qemu_env import refused_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.layers.entrypoint import Files
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

    OpenImage = Callable[[str], AbstractContextManager[Source]]

__all__ = ["GuestTask", "Guests", "wrong_program"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestTask:
    """One thing to run on one platform; ``timeout`` in seconds.

    ``words`` replace the image's CMD, as arguments of ``docker run`` do; ``command`` is how they were
    written. ``cpu`` is the model that QEMU emulates, empty for its default, with which the host's own
    programs run without it.
    """

    platform: Platform
    expectation: Expectation
    timeout: float
    words: tuple[str, ...] = ()
    command: str = ""
    cpu: str = ""

    def result(
        self, outcome: Outcome, message: str = "", *, emulator: EmulatorSummary | None = None, **more: Any
    ) -> RunResult:
        """A result of this task."""
        return RunResult(
            platform=str(self.platform),
            command=self.command,
            outcome=outcome,
            message=message,
            emulated=emulator is not None,
            emulator=emulator,
            **more,
        )

    def judged(self, ending: Ending, *, emulator: EmulatorSummary | None, **more: Any) -> RunResult:
        """The result of a guest that has ended so."""
        path = emulator.path if emulator else ""
        refused = refused_model(ending, self.platform, path)
        outcome, message = judge(ending, self.expectation, self.platform)
        if refused:
            outcome, message = Outcome.NOT_REGISTERED, refused
        elif outcome is Outcome.EMULATOR_CRASH and emulator is not None:
            message = f"{message} ({path or 'QEMU'}, version {emulator.version or 'unknown'})"
        return self.result(
            outcome, message, emulator=emulator, exit_code=ending.exit_code, stdout=ending.stdout,
            stderr=ending.stderr, limited=ending.limited, **more,
        )  # fmt: skip


def wrong_program(config: ImageConfig, files: Files, platform: Platform) -> str:
    """The words why what an image would start is not for the platform; empty if it is."""
    from buildkit_tasks.oci.layers.entrypoint import programs_of
    from buildkit_tasks.verify import program_checks

    programs = programs_of(config, files)
    checks = (check for program in programs for check in program_checks(platform, program))
    return "; ".join(check.message for check in checks if not check.ok)


class Guests(Protocol):
    """One image, ready to be run."""

    @property
    def runner(self) -> str:
        """Which runner it is: docker or sandbox."""

    @property
    def platforms(self) -> Sequence[Platform]:
        """The platforms that the image holds."""

    def run(self, task: GuestTask) -> RunResult:
        """Run it and tell how it ended; may be called by several threads at once."""

    def stop(self) -> None:
        """End whatever runs: it was interrupted."""
