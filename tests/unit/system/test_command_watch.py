"""A command that waits for something else is ended when that is found to be gone."""

from __future__ import annotations

import io
import sys
import time

import pytest

from buildkit_tasks.errors import BuilderError, BuildkitTasksError
from buildkit_tasks.system import command as commands
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner

SLEEPS = (sys.executable, "-c", "import time; time.sleep(60)")
ENDS = (sys.executable, "-c", "import time; time.sleep(0.3)")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_WATCH_INTERVAL", 0.05)


class Watch:
    def __init__(self, *answers: BuildkitTasksError | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> BuildkitTasksError | None:
        self.asked += 1
        return self.answers.pop(0) if self.answers else None


def test_what_a_watch_finds_ends_a_streamed_command_and_is_raised() -> None:
    gone = BuilderError("node b: says nothing")
    started = time.monotonic()
    with pytest.raises(BuilderError) as caught:
        SubprocessRunner(stream_output=io.StringIO()).stream(SLEEPS, CommandOptions(watch=Watch(None, gone)))
    assert caught.value is gone
    assert time.monotonic() - started < 10


def test_it_ends_one_that_is_run_too() -> None:
    with pytest.raises(BuilderError):
        SubprocessRunner().run(SLEEPS, CommandOptions(watch=Watch(BuilderError("x"))))


def test_a_watch_that_finds_nothing_is_asked_again_and_again() -> None:
    watch = Watch()
    assert SubprocessRunner().run(ENDS, CommandOptions(watch=watch)).ok
    assert watch.asked > 1
    asked = watch.asked
    time.sleep(0.2)
    assert watch.asked <= asked + 1  # not after its end


def test_a_command_that_has_succeeded_is_a_success_whatever_is_found() -> None:
    def found() -> BuildkitTasksError:
        time.sleep(0.5)  # meanwhile the command ends
        return BuilderError("too late")

    assert SubprocessRunner().run(ENDS, CommandOptions(watch=found)).ok
