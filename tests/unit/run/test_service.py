from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from buildkit_tasks.config.settings import SettingOrigin, Settings, SmokeCheck
from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import Outcome, RunResult
from buildkit_tasks.run import service
from buildkit_tasks.run.backend import RunTask
from buildkit_tasks.run.sandbox.availability import SandboxUnavailable
from buildkit_tasks.run.service import BackendSelector, RunRequest, run_emulated

AMD64, ARM64, ARM_V6 = parse_platforms(["linux/amd64", "linux/arm64", "linux/arm/v6"])
IMAGE = "oci-archive:image.tar"


@dataclass
class FakeBackends:
    """Both backends, which record what they run; tasks of the platform ``slow`` end last."""

    platforms: Sequence[Platform] = (AMD64, ARM64, ARM_V6)
    unavailable: str = ""
    messages: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    ran: list[RunTask] = field(default_factory=list)
    slow: Platform | None = None
    stopped: bool = False
    interrupted: bool = False
    runner: str = "fake"

    def __post_init__(self) -> None:
        self.others_ended = threading.Event()

    def run(self, task: RunTask) -> RunResult:
        self.ran.append(task)
        if self.interrupted:
            raise KeyboardInterrupt
        if task.platform == self.slow:
            assert self.others_ended.wait(120)
        else:
            self.others_ended.set()
        return task.make_result(Outcome.PASSED)

    def stop(self) -> None:
        self.stopped = True

    def selector(self, runner: str = "auto") -> BackendSelector:
        return BackendSelector(
            runner=runner, open_sandbox=self._sandbox, open_docker=self._docker, notify=self.messages.append
        )

    @contextlib.contextmanager
    def _sandbox(self) -> Iterator[FakeBackends]:
        if self.unavailable:
            raise SandboxUnavailable(self.unavailable)
        self.opened.append("sandbox")
        yield self

    @contextlib.contextmanager
    def _docker(self) -> Iterator[FakeBackends]:
        self.opened.append("docker")
        yield self


@dataclass
class RecordingObserver:
    """Records what it is notified of."""

    expected: list[tuple[str, str, str]] = field(default_factory=list)
    ended: list[RunResult] = field(default_factory=list)

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        self.expected += runs

    def __call__(self, result: RunResult) -> None:
        self.ended.append(result)


@pytest.mark.parametrize(
    ("runner", "image", "opened"),
    [
        ("auto", IMAGE, "sandbox"),
        ("auto", "docker://r.example/app:1", "sandbox"),
        ("auto", "docker-daemon:app:1", "docker"),
        ("sandbox", "docker-daemon:app:1", "sandbox"),
        ("docker", IMAGE, "docker"),
    ],
)
def test_runner_selection(runner: str, image: str, opened: str) -> None:
    backends = FakeBackends()
    run_emulated(RunRequest(image=image), backends.selector(runner))
    assert backends.opened == [opened]


def test_auto_falls_back_to_docker() -> None:
    backends = FakeBackends(unavailable="the sandbox is not available: userns is off")
    assert run_emulated(RunRequest(image=IMAGE), backends.selector()).ok
    assert backends.opened == ["docker"]
    assert backends.messages == ["the sandbox is not available: userns is off: running in Docker"]


def test_requested_sandbox_unavailable() -> None:
    backends = FakeBackends(unavailable="userns is off")
    with pytest.raises(SandboxUnavailable, match="userns is off") as excinfo:
        run_emulated(RunRequest(image=IMAGE), backends.selector("sandbox"))
    assert excinfo.value.exit_code == 3
    assert "--runner=docker" in str(excinfo.value)
    assert backends.opened == []


def test_run_error_does_not_fall_back() -> None:
    backends = FakeBackends()

    @contextlib.contextmanager
    def failing_sandbox() -> Iterator[FakeBackends]:
        yield backends
        raise EngineError("later")

    selector = BackendSelector(
        runner="auto",
        open_sandbox=failing_sandbox,
        open_docker=backends._docker,
        notify=backends.messages.append,
    )
    with pytest.raises(EngineError, match="later"):
        run_emulated(RunRequest(image=IMAGE), selector)
    assert backends.opened == []


def test_results_keep_task_order() -> None:
    backends, observer = FakeBackends(slow=ARM64), RecordingObserver()
    request = RunRequest(image=IMAGE, platforms=(ARM64, AMD64), jobs=2)
    report = run_emulated(request, backends.selector(), observer)
    assert [result.platform for result in report.results] == ["linux/arm64", "linux/amd64"]
    assert [result.platform for result in observer.ended] == ["linux/amd64", "linux/arm64"]
    assert observer.expected == [("linux/arm64", "", ""), ("linux/amd64", "", "")]


def test_default_is_all_platforms() -> None:
    backends = FakeBackends()
    report = run_emulated(RunRequest(image=IMAGE), backends.selector())
    assert [result.platform for result in report.results] == ["linux/amd64", "linux/arm64", "linux/arm/v6"]


def test_platform_not_in_image() -> None:
    backends = FakeBackends(platforms=(AMD64,))
    report = run_emulated(RunRequest(image=IMAGE, platforms=(ARM64, AMD64)), backends.selector())
    assert [result.outcome for result in report.results] == [Outcome.FAILED, Outcome.PASSED]
    message, _, hint = report.results[0].message.partition("\n")
    assert message == "linux/arm64 is not in the image, which holds linux/amd64"
    assert report.results[0].runner == "fake"
    assert hint.startswith("  try: ")
    assert hint.endswith(" build-multiarch --platform=linux/arm64")
    assert [task.platform for task in backends.ran] == [AMD64]


@pytest.mark.parametrize("platform", [Platform("windows", "amd64"), Platform("linux", "mips")], ids=str)
@pytest.mark.parametrize("cpu", ["max", "both"])
def test_unsupported_platform(platform: Platform, cpu: str) -> None:
    backends = FakeBackends(platforms=(platform, AMD64))
    report = run_emulated(RunRequest(image=IMAGE, cpu=cpu), backends.selector())
    outcomes = {result.platform: result.outcome for result in report.results}
    assert outcomes == {str(platform): Outcome.NOT_REGISTERED, "linux/amd64": Outcome.PASSED}
    assert {task.platform for task in backends.ran} == {AMD64}


def test_check_platforms() -> None:
    backends = FakeBackends(platforms=(AMD64, ARM_V6))
    checks = (
        SmokeCheck(command="app --version", timeout=5.0),
        SmokeCheck(command="test", platforms=("arm/v6",)),
    )
    run_emulated(RunRequest(image=IMAGE, checks=checks, timeout=60.0, jobs=1), backends.selector())
    assert [(task.platform, task.args, task.timeout) for task in backends.ran] == [
        (AMD64, ("app", "--version"), 5.0),
        (ARM_V6, ("app", "--version"), 5.0),
        (ARM_V6, ("test",), 60.0),
    ]


@pytest.mark.parametrize(
    ("cpu", "models"),
    [("max", [""]), ("floor", ["arm1176"]), ("both", ["", "arm1176"]), ("cortex-a7", ["cortex-a7"])],
)
def test_cpu_models(cpu: str, models: list[str]) -> None:
    backends = FakeBackends(platforms=(ARM_V6,))
    run_emulated(RunRequest(image=IMAGE, cpu=cpu, jobs=1), backends.selector())
    assert [task.cpu for task in backends.ran] == models


@pytest.mark.parametrize(
    "check",
    [SmokeCheck(command="it's"), SmokeCheck(expect="("), SmokeCheck(platforms=("linux/zz",))],
    ids=["command", "expression", "platform"],
)
def test_invalid_check(check: SmokeCheck) -> None:
    backends = FakeBackends()
    with pytest.raises(UsageError):
        run_emulated(RunRequest(image=IMAGE, checks=(check,)), backends.selector())
    assert backends.opened == []


def test_interrupt_stops_backend() -> None:
    backends = FakeBackends(interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        run_emulated(RunRequest(image=IMAGE), backends.selector())
    assert backends.stopped


class InterruptedBackends(FakeBackends):
    """The first run is interrupted; the others end when the backend is stopped."""

    def __post_init__(self) -> None:
        self.stop_requested = threading.Event()

    def run(self, task: RunTask) -> RunResult:
        self.ran.append(task)
        if task.platform == AMD64:
            raise KeyboardInterrupt
        assert self.stop_requested.wait(120)
        return task.make_result(Outcome.PASSED)

    def stop(self) -> None:
        self.stop_requested.set()


def test_interrupt_starts_no_waiting_run() -> None:
    backends = InterruptedBackends()
    with pytest.raises(KeyboardInterrupt):
        run_emulated(RunRequest(image=IMAGE, jobs=1), backends.selector())
    assert ARM_V6 not in [task.platform for task in backends.ran]


def test_jobs_limit_runs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def make_pool(max_workers: int) -> ThreadPoolExecutor:
        sizes.append(max_workers)
        return ThreadPoolExecutor(max_workers)

    monkeypatch.setattr(service, "ThreadPoolExecutor", make_pool)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for jobs in (0, 1):
        run_emulated(RunRequest(image=IMAGE, jobs=jobs), FakeBackends().selector())
    assert sizes == [8, 1]


TWO_CHECKS = (SmokeCheck(command="a"), SmokeCheck(command="b"))


@pytest.mark.parametrize(
    ("origin", "commands"),
    [
        (SettingOrigin.PYPROJECT, ["a", "b"]),
        (SettingOrigin.INVOKE, ["a", "b"]),
        (SettingOrigin.ENVIRONMENT, ["new"]),
        (SettingOrigin.FLAG, ["new"]),
    ],
)
def test_command_overrides_checks(origin: SettingOrigin, commands: list[str]) -> None:
    settings = Settings(checks=TWO_CHECKS, command="new", origins={"command": origin})
    assert [check.command for check in RunRequest.from_settings(IMAGE, (), settings).checks] == commands


def test_default_check() -> None:
    settings = Settings(command="a", expect="b", expect_exit=3)
    request = RunRequest.from_settings(IMAGE, (), settings)
    assert request.checks == (SmokeCheck(command="a", expect="b", expect_exit=3),)
