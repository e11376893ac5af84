from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from buildkit_tasks.config.settings import SettingOrigin, Settings, SmokeCheck
from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import Outcome, RunResult
from buildkit_tasks.run.backend import RunTask
from buildkit_tasks.run.sandbox.availability import SandboxUnavailable
from buildkit_tasks.run.service import BackendSelector, RunRequest, run_emulated

AMD64, ARM64, SIX = parse_platforms(["linux/amd64", "linux/arm64", "linux/arm/v6"])
IMAGE = "oci-archive:image.tar"


@dataclass
class Fakes:
    """Both runners, of which each notes what it was given; guests of ``slow`` end last."""

    platforms: Sequence[Platform] = (AMD64, ARM64, SIX)
    closed: str = ""
    told: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    ran: list[RunTask] = field(default_factory=list)
    slow: Platform | None = None
    stopped: bool = False
    interrupted: bool = False
    runner: str = "fake"

    def __post_init__(self) -> None:
        self.others = threading.Event()

    def run(self, task: RunTask) -> RunResult:
        self.ran.append(task)
        if self.interrupted:
            raise KeyboardInterrupt
        if task.platform == self.slow:
            assert self.others.wait(10)
        else:
            self.others.set()
        return task.make_result(Outcome.PASSED)

    def stop(self) -> None:
        self.stopped = True

    def runners(self, choice: str = "auto") -> BackendSelector:
        return BackendSelector(
            runner=choice, open_sandbox=self._sandbox, open_docker=self._docker, notify=self.told.append
        )

    @contextlib.contextmanager
    def _sandbox(self) -> Iterator[Fakes]:
        if self.closed:
            raise SandboxUnavailable(self.closed)
        self.opened.append("sandbox")
        yield self

    @contextlib.contextmanager
    def _docker(self) -> Iterator[Fakes]:
        self.opened.append("docker")
        yield self


@dataclass
class Seen:
    """Who watches."""

    expected: list[tuple[str, str, str]] = field(default_factory=list)
    ended: list[RunResult] = field(default_factory=list)

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        self.expected += runs

    def __call__(self, result: RunResult) -> None:
        self.ended.append(result)


@pytest.mark.parametrize(
    ("choice", "image", "taken"),
    [
        ("auto", IMAGE, "sandbox"),
        ("auto", "docker://r.example/app:1", "sandbox"),
        ("auto", "docker-daemon:app:1", "docker"),
        ("sandbox", "docker-daemon:app:1", "sandbox"),
        ("docker", IMAGE, "docker"),
    ],
)
def test_the_runner_is_the_one_asked_for_else_the_sandbox(choice: str, image: str, taken: str) -> None:
    fakes = Fakes()
    run_emulated(RunRequest(image=image), fakes.runners(choice))
    assert fakes.opened == [taken]


def test_where_there_is_no_sandbox_auto_says_why_and_takes_docker() -> None:
    fakes = Fakes(closed="the sandbox is not available: it is closed")
    assert run_emulated(RunRequest(image=IMAGE), fakes.runners()).ok
    assert fakes.opened == ["docker"]
    assert fakes.told == ["the sandbox is not available: it is closed: running in Docker"]


def test_a_sandbox_that_was_asked_for_is_not_replaced() -> None:
    fakes = Fakes(closed="it is closed")
    with pytest.raises(SandboxUnavailable, match="it is closed") as caught:
        run_emulated(RunRequest(image=IMAGE), fakes.runners("sandbox"))
    assert caught.value.exit_code == 3
    assert "--runner=docker" in str(caught.value)
    assert fakes.opened == []


def test_an_error_while_guests_run_in_the_sandbox_is_no_reason_for_docker() -> None:
    fakes = Fakes()

    @contextlib.contextmanager
    def broken() -> Iterator[Fakes]:
        yield fakes
        raise EngineError("later")

    runners = BackendSelector(
        runner="auto", open_sandbox=broken, open_docker=fakes._docker, notify=fakes.told.append
    )
    with pytest.raises(EngineError, match="later"):
        run_emulated(RunRequest(image=IMAGE), runners)
    assert fakes.opened == []


def test_results_are_in_the_order_asked_for_whoever_ends_first() -> None:
    fakes, seen = Fakes(slow=ARM64), Seen()
    request = RunRequest(image=IMAGE, platforms=(ARM64, AMD64), jobs=2)
    report = run_emulated(request, fakes.runners(), seen)
    assert [result.platform for result in report.results] == ["linux/arm64", "linux/amd64"]
    assert [result.platform for result in seen.ended] == ["linux/amd64", "linux/arm64"]
    assert seen.expected == [("linux/arm64", "", ""), ("linux/amd64", "", "")]


def test_without_platforms_all_that_the_image_holds_are_run() -> None:
    fakes = Fakes()
    report = run_emulated(RunRequest(image=IMAGE), fakes.runners())
    assert [result.platform for result in report.results] == ["linux/amd64", "linux/arm64", "linux/arm/v6"]


def test_a_platform_that_the_image_lacks_is_a_failure_of_its_own() -> None:
    fakes = Fakes(platforms=(AMD64,))
    report = run_emulated(RunRequest(image=IMAGE, platforms=(ARM64, AMD64)), fakes.runners())
    assert [result.outcome for result in report.results] == [Outcome.FAILED, Outcome.PASSED]
    message, _, then = report.results[0].message.partition("\n")
    assert message == "linux/arm64 is not in the image, which holds linux/amd64"
    assert report.results[0].runner == "fake"
    assert then == "  try: inv build-multiarch --platform=linux/arm64"
    assert [task.platform for task in fakes.ran] == [AMD64]


@pytest.mark.parametrize("platform", [Platform("windows", "amd64"), Platform("linux", "mips")], ids=str)
@pytest.mark.parametrize("cpu", ["max", "both"])
def test_a_platform_that_nothing_here_runs_is_told(platform: Platform, cpu: str) -> None:
    fakes = Fakes(platforms=(platform, AMD64))
    report = run_emulated(RunRequest(image=IMAGE, cpu=cpu), fakes.runners())
    found = {result.platform: result.outcome for result in report.results}
    assert found == {str(platform): Outcome.NOT_REGISTERED, "linux/amd64": Outcome.PASSED}
    assert {task.platform for task in fakes.ran} == {AMD64}


def test_every_check_runs_on_its_platforms() -> None:
    fakes = Fakes(platforms=(AMD64, SIX))
    checks = (
        SmokeCheck(command="app --version", timeout=5.0),
        SmokeCheck(command="test", platforms=("arm/v6",)),
    )
    run_emulated(RunRequest(image=IMAGE, checks=checks, timeout=60.0, jobs=1), fakes.runners())
    assert [(task.platform, task.args, task.timeout) for task in fakes.ran] == [
        (AMD64, ("app", "--version"), 5.0),
        (SIX, ("app", "--version"), 5.0),
        (SIX, ("test",), 60.0),
    ]


@pytest.mark.parametrize(
    ("cpu", "models"),
    [("max", [""]), ("floor", ["arm1176"]), ("both", ["", "arm1176"]), ("cortex-a7", ["cortex-a7"])],
)
def test_the_cpu_is_a_model_or_the_default(cpu: str, models: list[str]) -> None:
    fakes = Fakes(platforms=(SIX,))
    run_emulated(RunRequest(image=IMAGE, cpu=cpu, jobs=1), fakes.runners())
    assert [task.cpu for task in fakes.ran] == models


@pytest.mark.parametrize(
    "check",
    [SmokeCheck(command="it's"), SmokeCheck(expect="("), SmokeCheck(platforms=("linux/zz",))],
    ids=["words", "expression", "platform"],
)
def test_what_cannot_be_read_is_told_before_anything_is_opened(check: SmokeCheck) -> None:
    fakes = Fakes()
    with pytest.raises(UsageError):
        run_emulated(RunRequest(image=IMAGE, checks=(check,)), fakes.runners())
    assert fakes.opened == []


def test_an_interruption_ends_what_runs() -> None:
    fakes = Fakes(interrupted=True)
    with pytest.raises(KeyboardInterrupt):
        run_emulated(RunRequest(image=IMAGE), fakes.runners())
    assert fakes.stopped


CHECKS = (SmokeCheck(command="a"), SmokeCheck(command="b"))


@pytest.mark.parametrize(
    ("origin", "commands"),
    [
        (SettingOrigin.PYPROJECT, ["a", "b"]),
        (SettingOrigin.INVOKE, ["a", "b"]),
        (SettingOrigin.ENVIRONMENT, ["now"]),
        (SettingOrigin.FLAG, ["now"]),
    ],
)
def test_a_command_said_now_stands_for_the_suite(origin: SettingOrigin, commands: list[str]) -> None:
    settings = Settings(checks=CHECKS, command="now", origins={"command": origin})
    assert [check.command for check in RunRequest.from_settings(IMAGE, (), settings).checks] == commands


def test_without_a_suite_the_settings_are_the_only_check() -> None:
    settings = Settings(command="a", expect="b", expect_exit=3)
    request = RunRequest.from_settings(IMAGE, (), settings)
    assert request.checks == (SmokeCheck(command="a", expect="b", expect_exit=3),)
