from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import pytest

from buildkit_tasks.report import LiveTable, open_live_table
from buildkit_tasks.report import progress as live
from buildkit_tasks.report.model import EmulatorSummary, RunResult
from tests.support.report_samples import TEN, bad_run, good_run

if TYPE_CHECKING:
    from collections.abc import Iterator


UP, WIPE, HIDE, SHOW = "\x1b[1A", "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A terminal of some lines, and what stands on it, by the few codes that a live table needs."""

    def __init__(self, lines: int = 24, columns: int = 100) -> None:
        self.lines = lines
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.file: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.written = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        raw = b""
        while True:
            try:
                more = os.read(self.master, 65536)
            except OSError:
                return
            raw += more
            self.written = raw.decode(errors="ignore")

    def close(self) -> None:
        self.file.close()
        self._reader.join(5)
        os.close(self.master)

    def screen(self) -> list[str]:
        """The lines on it, and above it those that went out of its reach."""
        shown, row, column, top = [""], 0, 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.written):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                shown += [""] * (row + 1 - len(shown))
                top = max(top, row + 1 - self.lines)
            elif part == UP:
                row = max(top, row - 1)  # nothing moves the cursor to where it has scrolled away from
            elif part == WIPE:
                shown[row] = ""
            elif not part.startswith("\x1b"):
                shown[row] = shown[row].ljust(column)[:column] + part + shown[row][column + len(part) :]
                column += len(part)
        return shown

    def saw(self, text: str) -> bool:
        """Whether something was written within a while."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if text in self.written:
                return True
            time.sleep(0.01)
        return False

    def left(self) -> list[str]:
        """What stands on it when all that was written has arrived, without empty lines."""
        print("(end)", file=self.file, flush=True)
        assert self.saw("(end)\r\n")
        return [line for line in self.screen() if line.strip() and line != "(end)"]


@contextlib.contextmanager
def opened(lines: int = 24, columns: int = 100) -> Iterator[Terminal]:
    made = Terminal(lines, columns)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with opened() as made:
        yield made


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No patience, unless a test brings it back."""
    monkeypatch.setattr(live, "_INITIAL_DELAY", 0)
    monkeypatch.setattr(live, "_REFRESH_INTERVAL", 0.01)


def on(cpu: str, result: RunResult) -> RunResult:
    return replace(result, emulated=True, emulator=EmulatorSummary(path="/q/qemu-arm", cpu=cpu))


def test_rows_are_running_until_they_have_passed_or_failed_and_are_gone_at_the_end(
    terminal: Terminal,
) -> None:
    print("before", file=terminal.file, flush=True)
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([(name, "", "") for name in TEN[:3]])
        assert terminal.saw("0 of 3 have ended")
        assert [line.split()[1:4] for line in terminal.screen() if line.startswith("│ linux")] == [
            [name, "│", "running"] for name in TEN[:3]
        ]
        watch(good_run(TEN[1], seconds=1.25))
        watch(bad_run(TEN[0], message="why"))
        assert terminal.saw("2 of 3 have ended")
        assert terminal.saw("ok: Hello from arm64")
        failed, passed, running = (line for line in terminal.screen() if line.startswith("│ linux"))
        assert "FAILED failed: why" in failed
        assert "1.25" in passed
        assert "running" in running
    assert terminal.left() == ["before"]
    assert terminal.written.rindex(SHOW) > terminal.written.rindex(HIDE)


def test_runs_that_end_at_once_draw_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_INITIAL_DELAY", 60)
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([("linux/arm64", "", "")])
        watch(good_run("linux/arm64"))
    assert terminal.left() == []
    assert terminal.written == "(end)\r\n"


def test_where_nothing_is_told_nothing_is_drawn(terminal: Terminal) -> None:
    before = threading.active_count()
    with open_live_table(terminal.file, {}):
        time.sleep(0.05)
        assert threading.active_count() == before
    assert terminal.written == ""


@pytest.mark.parametrize("environ", [{"CI": "true"}, {"TERM": "dumb"}, {"TERM": "unknown"}])
def test_in_ci_and_on_a_dumb_terminal_there_is_nobody_to_tell(
    terminal: Terminal, environ: dict[str, str]
) -> None:
    with open_live_table(terminal.file, environ) as watch:
        assert watch is None


def test_what_is_no_terminal_has_nobody_to_tell() -> None:
    with open_live_table(io.StringIO(), {}) as watch:
        assert watch is None


@pytest.mark.parametrize(("environ", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_colours_are_those_of_the_report(terminal: Terminal, environ: dict[str, str], coloured: bool) -> None:
    with open_live_table(terminal.file, environ) as watch:
        assert watch is not None
        watch(good_run("linux/arm64"))
        assert terminal.saw("1 of 1 have ended")
    assert terminal.left() == []
    assert ("\x1b[32m" in terminal.written) is coloured


def test_cpus_and_commands_have_columns_where_they_tell_runs_apart(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {"NO_COLOR": "1"}) as watch:
        assert watch is not None
        runs = [("linux/arm/v6", command, cpu) for command in ("", "uname -m") for cpu in ("", "arm1176")]
        watch.expect_runs(runs)
        assert terminal.saw("0 of 4 have ended")
        watch(on("arm1176", replace(good_run("linux/arm/v6", "armv6l"), command="uname -m")))
        assert terminal.saw("ok: armv6l")
        rows = [
            [cell.strip() for cell in line.split("│")[2:5]] for line in terminal.screen() if "linux" in line
        ]
    assert rows == [
        ["max", "(the image's own)", "running"],
        ["arm1176", "(the image's own)", "running"],
        ["max", "uname -m", "running"],
        ["arm1176", "uname -m", "ok: armv6l"],
    ]


def test_what_was_never_started_fills_a_row_of_its_platform(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([("linux/arm64", "", "cortex-a53")])
        watch(replace(bad_run("linux/arm64"), emulator=None))
        assert terminal.saw("1 of 1 have ended")


def test_a_result_that_nobody_expected_has_a_row_too(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch(good_run("linux/arm64"))
        watch(good_run("linux/arm64"))
        assert terminal.saw("2 of 2 have ended")


def test_two_runs_that_are_alike_fill_two_rows(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([("linux/arm64", "", "")] * 2)
        watch(good_run("linux/arm64"))
        assert terminal.saw("1 of 2 have ended")
        watch(good_run("linux/arm64"))
        assert terminal.saw("2 of 2 have ended")


def test_many_threads_may_tell_at_once(terminal: Terminal) -> None:
    names = [f"linux/p{number}" for number in range(400)]
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([(name, "", "") for name in names])
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: watch(good_run(name)), names))
        assert terminal.saw("400 of 400 have ended")


def test_more_rows_than_lines_leave_those_out_that_passed_and_nothing_behind() -> None:
    with opened(lines=12, columns=60) as low:
        with open_live_table(low.file, {}) as watch:
            assert watch is not None
            watch.expect_runs([(f"linux/p{number}", "", "") for number in range(40)])
            assert low.saw("0 of 40 have ended")
            assert len([line for line in low.screen() if "linux/p" in line]) == 6
            watch(good_run("linux/p0", stdout="w " * 200))
            watch(bad_run("linux/p1", stdout="w " * 200))
            assert low.saw("2 of 40 have ended")
            shown = "\n".join(low.screen())
            assert "linux/p0 " not in shown
            assert "linux/p1 " in shown
        assert low.left() == []


HOSTILE = "\x1b[2J\x1b]0;x\x07\u202e[red]\r\n::error::x"


def test_what_a_guest_prints_does_not_command_the_terminal(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {"NO_COLOR": "1"}) as watch:
        assert watch is not None
        watch.expect_runs([("linux/arm64", HOSTILE, ""), (HOSTILE, "", "")])
        watch(replace(good_run("linux/arm64", HOSTILE), command=HOSTILE))
        watch(bad_run(HOSTILE, stderr=HOSTILE, message=HOSTILE))
        assert terminal.saw("2 of 2 have ended")
    assert terminal.left() == []
    assert "[red]" in terminal.written
    assert not {"\x07", "\u202e"} & set(terminal.written)
    assert set(re.findall(r"\x1b.[0-9;?]*.", terminal.written)) <= {UP, WIPE, HIDE, SHOW}


def test_a_message_of_ours_stands_above_the_table(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.file)
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([("linux/arm64", "", "")])
        assert terminal.saw("0 of 1 have ended")
        sys.stderr.write("look at this\n")
        assert terminal.saw("look at this")
        assert terminal.saw("0 of 1 have ended")
    assert terminal.left() == ["look at this"]
    assert sys.stderr is terminal.file


def test_a_log_of_our_messages_is_not_drawn_into_the_table(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with open_live_table(terminal.file, {}) as watch:
        assert watch is not None
        watch.expect_runs([("linux/arm64", "", "")])
        assert terminal.saw("0 of 1 have ended")
        sys.stderr.write("for the log\n")
    assert log.getvalue() == "for the log\n"
    assert terminal.left() == []
    assert "for the log" not in terminal.written


def test_a_terminal_that_goes_away_ends_nothing() -> None:
    master, slave = os.openpty()
    file: TextIO = os.fdopen(slave, "w", encoding="utf-8")
    os.close(master)
    watch = LiveTable(file, colour=False)
    watch.expect_runs([("linux/arm64", "", "")])
    time.sleep(0.1)
    watch(good_run("linux/arm64"))
    watch.close()
    assert watch._thread is not None
    assert not watch._thread.is_alive()
    with contextlib.suppress(OSError):  # what is left in its buffer has nowhere to go
        file.close()


def test_a_terminal_without_unicode_gets_plain_lines() -> None:
    with opened() as made:
        made.file.reconfigure(encoding="ascii", errors="backslashreplace")  # type: ignore[attr-defined]
        with open_live_table(made.file, {}) as watch:
            assert watch is not None
            watch(good_run("linux/arm64"))
            assert made.saw("1 of 1 have ended")
        assert made.written.isascii()
        assert "| linux/arm64 |" in made.written


def test_the_table_is_taken_away_when_the_runs_are_interrupted(terminal: Terminal) -> None:
    def interrupted() -> None:
        with open_live_table(terminal.file, {}) as watch:
            assert watch is not None
            watch(good_run("linux/arm64"))
            assert terminal.saw("1 of 1 have ended")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert terminal.left() == []
    assert terminal.written.rindex(SHOW) > terminal.written.rindex(HIDE)


def test_rich_is_not_imported_where_nothing_is_drawn() -> None:
    code = (
        "import sys\nfrom buildkit_tasks.report import LiveTable, open_live_table\n"
        "with open_live_table(sys.stdout, {}) as watch: assert watch is None\n"
        "watch = LiveTable(sys.stdout, colour=False)\nwatch.expect_runs([('linux/arm64', '', "
        "'')])\nwatch.close()\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "buildkit_tasks.report.progress" in done.stdout.split()
    assert "rich" not in done.stdout.split()
