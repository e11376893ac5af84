"""Run an image on every requested platform, several at once, in the sandbox or in Docker."""

from __future__ import annotations

import contextlib
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from buildkit_tasks.config.settings import SettingOrigin, SmokeCheck
from buildkit_tasks.errors import UsageError
from buildkit_tasks.hints import format_hint
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import Outcome, RunReport, RunResult
from buildkit_tasks.run.backend import RunBackend, RunTask
from buildkit_tasks.run.outcomes import Expectation
from buildkit_tasks.run.sandbox.availability import SandboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.system.notify import Notify

    BackendOpener = Callable[[], AbstractContextManager[RunBackend]]

__all__ = ["BackendSelector", "RunObserver", "RunRequest", "needs_engine", "run_emulated"]

_DOCKER_DAEMON_PREFIX = "docker-daemon:"
_BOTH_CPUS = ("max", "floor")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A parsed smoke check; empty ``platforms`` means all."""

    command: str
    args: tuple[str, ...]
    expectation: Expectation
    timeout: float
    platforms: tuple[Platform, ...]

    @classmethod
    def from_check(cls, check: SmokeCheck, timeout: float) -> RunPlan:
        """Parse a check. Raises :class:`UsageError` for an invalid command, expectation or platform."""
        return cls(
            command=check.command,
            args=_split_command(check.command),
            expectation=Expectation(pattern=check.expect, exit_code=check.expect_exit),
            timeout=check.timeout or timeout,
            platforms=parse_platforms(check.platforms),
        )

    def make_task(self, platform: Platform, cpu: str) -> RunTask:
        """Return the task for this check on one platform and CPU model."""
        return RunTask(
            platform=platform,
            expectation=self.expectation,
            timeout=self.timeout,
            args=self.args,
            command=self.command,
            cpu=cpu,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """Which image to run, on which platforms and CPU, and with which checks.

    Empty ``platforms`` means all of the image. ``cpu`` is max, floor, both or a QEMU model. ``timeout`` is in
    seconds, for checks without their own. ``jobs`` is how many tasks run at once (0: two per processor).
    """

    image: str
    platforms: tuple[Platform, ...] = ()
    checks: tuple[SmokeCheck, ...] = (SmokeCheck(),)
    cpu: str = "max"
    timeout: float = 60.0
    jobs: int = 0

    @classmethod
    def from_settings(cls, image: str, platforms: tuple[Platform, ...], settings: Settings) -> RunRequest:
        """Return the request of the settings.

        A command or expectation of the environment or of a flag replaces the configured checks; one of a
        file applies only if there are none.
        """
        single_check = SmokeCheck(
            command=settings.command, expect=settings.expect, expect_exit=settings.expect_exit
        )
        origins = (
            settings.origins.get(key, SettingOrigin.DEFAULT) for key in ("command", "expect", "expect_exit")
        )
        is_overridden = max(origins) >= SettingOrigin.ENVIRONMENT
        return cls(
            image=image,
            platforms=platforms,
            checks=(single_check,) if is_overridden or not settings.checks else settings.checks,
            cpu=settings.cpu,
            timeout=settings.timeout,
            jobs=settings.jobs,
        )

    @property
    def plans(self) -> list[RunPlan]:
        """The parsed checks. Raises :class:`UsageError` for an invalid one."""
        return [RunPlan.from_check(check, self.timeout) for check in self.checks]

    def make_tasks(self, plans: Sequence[RunPlan], image_platforms: Sequence[Platform]) -> list[RunTask]:
        """Return the tasks in order of platform, check and CPU model."""
        return [
            plan.make_task(platform, cpu)
            for platform in self.platforms or image_platforms
            for plan in plans
            if not plan.platforms or platform in plan.platforms
            for cpu in self._list_cpu_models(platform)
        ]

    def _list_cpu_models(self, platform: Platform) -> list[str]:
        named_models = {"max": "", "floor": platform.baseline_cpu if platform.is_known else ""}
        return [named_models.get(each, each) for each in (_BOTH_CPUS if self.cpu == "both" else (self.cpu,))]


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSelector:
    """Selects the runner for an image; ``runner`` is auto, docker or sandbox.

    ``check_cpu`` raises :class:`UsageError` if the requested CPU model does not exist on a platform.
    """

    runner: str
    open_sandbox: BackendOpener
    open_docker: BackendOpener
    notify: Notify
    check_cpu: Callable[[Iterable[Platform]], None] = lambda _: None

    @contextlib.contextmanager
    def open(self, image: str) -> Iterator[RunBackend]:
        """Yield the requested backend; for auto the sandbox, or Docker if the sandbox is unavailable."""
        if needs_engine(self.runner, image):
            with self.open_docker() as backend:
                yield backend
            return
        with contextlib.ExitStack() as stack:
            yield (
                self._enter_sandbox(stack)
                if self.runner == "sandbox"
                else self._enter_sandbox_or_docker(stack)
            )

    def _enter_sandbox(self, stack: contextlib.ExitStack) -> RunBackend:
        return stack.enter_context(self.open_sandbox())

    def _enter_sandbox_or_docker(self, stack: contextlib.ExitStack) -> RunBackend:
        try:
            return self._enter_sandbox(stack)
        except SandboxUnavailable as error:
            self.notify(f"{error.message}: running in Docker")
        return stack.enter_context(self.open_docker())


def needs_engine(runner: str, image: str) -> bool:
    """Return True if the Docker runner is requested, or if the image is in an engine and any will do."""
    return runner == "docker" or (runner == "auto" and image.startswith(_DOCKER_DAEMON_PREFIX))


class RunObserver(Protocol):
    """Receives the progress of runs, from several threads."""

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """Announce the runs: platform, command and CPU model; the last two are empty for the default."""

    def __call__(self, result: RunResult) -> None:
        """Report the result of one run."""


def run_emulated(
    request: RunRequest, selector: BackendSelector, observer: RunObserver | None = None
) -> RunReport:
    """Run the image on each platform, with each check and CPU model.

    A failure does not stop the others. The report has the results in the order of the tasks.
    """
    plans = request.plans
    with selector.open(request.image) as backend:

        def run_task(task: RunTask) -> RunResult:
            result = _reject_unrunnable(task, backend) or backend.run(task)
            if observer is not None:
                observer(result)
            return result

        tasks = request.make_tasks(plans, backend.platforms)
        selector.check_cpu(task.platform for task in tasks if task.platform in backend.platforms)
        if observer is not None:
            observer.expect_runs((str(task.platform), task.command, task.cpu) for task in tasks)
        with ThreadPoolExecutor(max_workers=request.jobs or 2 * (os.cpu_count() or 1)) as pool:
            try:
                results = tuple(pool.map(run_task, tasks))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                backend.stop()
                raise
    return RunReport(subject=request.image, results=results)


def _split_command(command: str) -> tuple[str, ...]:
    """Split a command as a POSIX shell does."""
    try:
        return tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"--command {command!r} cannot be split into arguments: {error}") from error


def _reject_unrunnable(task: RunTask, backend: RunBackend) -> RunResult | None:
    """Return a failed result if the task cannot run at all, else None."""
    platform = task.platform
    if platform not in backend.platforms:
        image_platforms = ", ".join(map(str, backend.platforms)) or "no platform"
        problem = f"{platform} is not in the image, which holds {image_platforms}"
        message = f"{problem}{format_hint(f'inv build-multiarch --platform={platform}')}"
        return task.make_result(Outcome.FAILED, message, runner=backend.runner)
    if not platform.is_known:
        return task.make_result(
            Outcome.NOT_REGISTERED,
            f"{platform} is not a platform that can be run here",
            runner=backend.runner,
        )
    return None
