"""A command is ended when its watch function reports an error."""

from __future__ import annotations

import io
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import BuilderError, BuildkitTasksError
from buildkit_tasks.system import command as commands
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_WATCH_INTERVAL", 0.05)


class FakeWatch:
    def __init__(self, *results: BuildkitTasksError | None) -> None:
        self.results = list(results)

    def __call__(self) -> BuildkitTasksError | None:
        return self.results.pop(0) if self.results else None


pytestmark = pytest.mark.timeout(120)  # less than the commands sleep


def test_watch_error_ends_stream() -> None:
    error = BuilderError("node b: says nothing")
    with pytest.raises(BuilderError) as excinfo:
        SubprocessRunner(stream_output=io.StringIO()).stream(
            SLEEP, CommandOptions(watch=FakeWatch(None, error))
        )
    assert excinfo.value is error


def test_watch_error_ends_run() -> None:
    with pytest.raises(BuilderError):
        SubprocessRunner().run(SLEEP, CommandOptions(watch=FakeWatch(BuilderError("x"))))


def test_watch_is_called_repeatedly(tmp_path: Path) -> None:
    stop_file = tmp_path / "stop"
    calls: list[None] = []

    def watch() -> BuildkitTasksError | None:
        calls.append(None)
        if len(calls) == 3:
            stop_file.touch()
        return None

    code = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    argv = (sys.executable, "-c", code, str(stop_file))
    assert SubprocessRunner().run(argv, CommandOptions(watch=watch)).ok
    wait_until(lambda: not [thread for thread in threading.enumerate() if "poll_watch" in thread.name])


def test_success_beats_watch_error(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )

    def watch() -> BuildkitTasksError | None:
        return BuilderError("the command succeeds nevertheless") if ready.exists() else None

    assert SubprocessRunner().run([sys.executable, "-c", code, str(ready)], CommandOptions(watch=watch)).ok
