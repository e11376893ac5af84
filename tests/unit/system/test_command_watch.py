"""A command is ended when its watch function reports an error."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import BuilderError, BuildkitTasksError
from buildkit_tasks.system import command as commands
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner

if TYPE_CHECKING:
    from pathlib import Path

SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")
SHORT_SLEEP = (sys.executable, "-c", "import time; time.sleep(0.3)")


@pytest.fixture(autouse=True)
def _short_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "_WATCH_INTERVAL", 0.05)


class FakeWatch:
    def __init__(self, *results: BuildkitTasksError | None) -> None:
        self.results = list(results)
        self.call_count = 0

    def __call__(self) -> BuildkitTasksError | None:
        self.call_count += 1
        return self.results.pop(0) if self.results else None


def test_watch_error_ends_stream() -> None:
    error = BuilderError("node b: says nothing")
    started = time.monotonic()
    with pytest.raises(BuilderError) as excinfo:
        SubprocessRunner(stream_output=io.StringIO()).stream(
            SLEEP, CommandOptions(watch=FakeWatch(None, error))
        )
    assert excinfo.value is error
    assert time.monotonic() - started < 10


def test_watch_error_ends_run() -> None:
    with pytest.raises(BuilderError):
        SubprocessRunner().run(SLEEP, CommandOptions(watch=FakeWatch(BuilderError("x"))))


def test_watch_is_called_repeatedly() -> None:
    watch = FakeWatch()
    assert SubprocessRunner().run(SHORT_SLEEP, CommandOptions(watch=watch)).ok
    assert watch.call_count > 1
    call_count = watch.call_count
    time.sleep(0.2)
    assert watch.call_count <= call_count + 1  # no calls after the end


def test_success_beats_watch_error(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )

    def watch() -> BuildkitTasksError | None:
        return BuilderError("the command succeeds nevertheless") if ready.exists() else None

    assert SubprocessRunner().run([sys.executable, "-c", code, str(ready)], CommandOptions(watch=watch)).ok
