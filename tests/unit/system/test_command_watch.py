"""A command is ended when its watch function reports an error."""

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
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_WATCH_INTERVAL", 0.05)


class Watch:
    def __init__(self, *answers: BuildkitTasksError | None) -> None:
        self.answers = list(answers)
        self.asked = 0

    def __call__(self) -> BuildkitTasksError | None:
        self.asked += 1
        return self.answers.pop(0) if self.answers else None


def test_watch_error_ends_stream() -> None:
    gone = BuilderError("node b: says nothing")
    started = time.monotonic()
    with pytest.raises(BuilderError) as caught:
        SubprocessRunner(stream_output=io.StringIO()).stream(SLEEPS, CommandOptions(watch=Watch(None, gone)))
    assert caught.value is gone
    assert time.monotonic() - started < 10


def test_watch_error_ends_run() -> None:
    with pytest.raises(BuilderError):
        SubprocessRunner().run(SLEEPS, CommandOptions(watch=Watch(BuilderError("x"))))


def test_watch_is_called_repeatedly() -> None:
    watch = Watch()
    assert SubprocessRunner().run(ENDS, CommandOptions(watch=watch)).ok
    assert watch.asked > 1
    asked = watch.asked
    time.sleep(0.2)
    assert watch.asked <= asked + 1  # no calls after the end


def test_success_beats_watch_error() -> None:
    def watch() -> BuildkitTasksError:
        time.sleep(0.5)  # the command ends meanwhile
        return BuilderError("too late")

    assert SubprocessRunner().run(ENDS, CommandOptions(watch=watch)).ok
