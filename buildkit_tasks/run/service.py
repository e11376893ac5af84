"""Run an image on every platform asked for, several at once, in a sandbox or in an engine."""

from __future__ import annotations

import contextlib
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from buildkit_tasks.config.settings import Origin, SmokeCheck
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import Outcome, RunReport, RunResult
from buildkit_tasks.run.backend import Guests, GuestTask
from buildkit_tasks.run.outcomes import Expectation
from buildkit_tasks.run.sandbox.availability import SandboxClosed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.system.notify import Tell

    Opened = Callable[[], AbstractContextManager[Guests]]

__all__ = ["RunRequest", "Runners", "Watch", "run_emulated", "takes_engine"]

_DAEMON = "docker-daemon:"
_BOTH = ("max", "floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A check whose words were read; ``only`` are its platforms, none for all."""

    command: str
    words: tuple[str, ...]
    expectation: Expectation
    timeout: float
    only: tuple[Platform, ...]

    @classmethod
    def of(cls, check: SmokeCheck, timeout: float) -> Plan:
        """Read a check. Raises :class:`UsageError` for a command or an expectation that cannot be."""
        return cls(
            command=check.command,
            words=_words(check.command),
            expectation=Expectation(pattern=check.expect, exit_code=check.expect_exit),
            timeout=check.timeout or timeout,
            only=parse_platforms(check.platforms),
        )

    def task(self, platform: Platform, cpu: str) -> GuestTask:
        """This check on one platform and CPU."""
        return GuestTask(
            platform=platform,
            expectation=self.expectation,
            timeout=self.timeout,
            words=self.words,
            command=self.command,
            cpu=cpu,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Which image to run, where, on which CPU, and what it must do.

    ``cpu`` is max, floor, both or a QEMU model; ``timeout`` in seconds for each check that has none;
    ``jobs`` how many run at once (0: two for each processor).
    """

    image: str
    platforms: tuple[Platform, ...] = ()
    checks: tuple[SmokeCheck, ...] = (SmokeCheck(),)
    cpu: str = "max"
    timeout: float = 60.0
    jobs: int = 0

    @classmethod
    def of(cls, image: str, platforms: tuple[Platform, ...], settings: Settings) -> RunRequest:
        """What the settings ask for: their checks, unless somebody says now what to run or expect."""
        single = SmokeCheck(
            command=settings.command, expect=settings.expect, expect_exit=settings.expect_exit
        )
        ranks = (settings.origins.get(key, Origin.DEFAULT) for key in ("command", "expect", "expect_exit"))
        asked = max(ranks) >= Origin.ENVIRONMENT  # those of the file stand beside the checks, and below them
        return cls(
            image=image,
            platforms=platforms,
            checks=(single,) if asked or not settings.checks else settings.checks,
            cpu=settings.cpu,
            timeout=settings.timeout,
            jobs=settings.jobs,
        )

    @property
    def plans(self) -> list[Plan]:
        """The checks, read. Raises :class:`UsageError` for one that cannot be."""
        return [Plan.of(check, self.timeout) for check in self.checks]

    def tasks(self, plans: Sequence[Plan], held: Sequence[Platform]) -> list[GuestTask]:
        """Everything to run, platform by platform; ``held`` are those of the image."""
        return [
            plan.task(platform, cpu)
            for platform in self.platforms or held
            for plan in plans
            if not plan.only or platform in plan.only
            for cpu in self._models(platform)
        ]

    def _models(self, platform: Platform) -> list[str]:
        known = {"max": "", "floor": platform.cpu if platform.is_known else ""}
        return [known.get(each, each) for each in (_BOTH if self.cpu == "both" else (self.cpu,))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runners:
    """The two ways to run the image of a request; ``choice`` is auto, docker or sandbox."""

    choice: str
    sandbox: Opened
    docker: Opened
    tell: Tell

    @contextlib.contextmanager
    def open(self, image: str) -> Iterator[Guests]:
        """The one that was asked for; else the sandbox, where the kernel lets us have one."""
        if takes_engine(self.choice, image):
            with self.docker() as guests:
                yield guests
            return
        with contextlib.ExitStack() as stack:
            yield self._sandbox(stack) if self.choice == "sandbox" else self._either(stack)

    def _sandbox(self, stack: contextlib.ExitStack) -> Guests:
        return stack.enter_context(self.sandbox())

    def _either(self, stack: contextlib.ExitStack) -> Guests:
        try:
            return self._sandbox(stack)
        except SandboxClosed as closed:
            self.tell(f"{closed.message}: running in Docker")
        return stack.enter_context(self.docker())


def takes_engine(choice: str, image: str) -> bool:
    """Whether the Docker runner is meant: it was asked for, or the image is in an engine."""
    return choice == "docker" or (choice == "auto" and image.startswith(_DAEMON))


class Watch(Protocol):
    """Who is told of runs, from several threads."""

    def expect(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """What will run: platform, command and CPU, the last two empty for the default."""

    def __call__(self, result: RunResult) -> None:
        """How one of them ended."""


def run_emulated(request: RunRequest, runners: Runners, watch: Watch | None = None) -> RunReport:
    """Run the image on each platform, and with each check and CPU asked for.

    One failure does not stop the others; the report has results in the order asked for.
    """
    plans = request.plans
    with runners.open(request.image) as guests:

        def one(task: GuestTask) -> RunResult:
            result = _impossible(task, guests) or guests.run(task)
            if watch is not None:
                watch(result)
            return result

        tasks = request.tasks(plans, guests.platforms)
        if watch is not None:
            watch.expect((str(task.platform), task.command, task.cpu) for task in tasks)
        with ThreadPoolExecutor(max_workers=request.jobs or 2 * (os.cpu_count() or 1)) as pool:
            try:
                results = tuple(pool.map(one, tasks))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                guests.stop()
                raise
    return RunReport(subject=request.image, results=results)


def _words(command: str) -> tuple[str, ...]:
    """The command as a list."""
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"--command {command!r} cannot be split into words: {error}") from error


def _impossible(task: GuestTask, guests: Guests) -> RunResult | None:
    """The result of a task that nothing here can run."""
    platform = task.platform
    if platform not in guests.platforms:
        held = ", ".join(map(str, guests.platforms)) or "no platform"
        words = f"{platform} is not in the image, which holds {held}"
        message = f"{words}\n  next: inv build-multiarch --platform={platform}"
        return task.result(Outcome.FAILED, message, runner=guests.runner)
    if not platform.is_known:
        return task.result(
            Outcome.NOT_REGISTERED, f"{platform}: nothing here runs its programs", runner=guests.runner
        )
    return None
