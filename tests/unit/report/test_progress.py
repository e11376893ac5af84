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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

import pytest

from buildkit_tasks.report import LiveTable, open_live_table
from buildkit_tasks.report import progress as live
from buildkit_tasks.report.model import EmulatorSummary, RunResult
from tests.support.report_samples import TEN, bad_run, good_run
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


CURSOR_UP, ERASE_LINE, HIDE_CURSOR, SHOW_CURSOR = "\x1b[1A", "\x1b[2K", "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A pseudo-terminal, and its screen by the few control sequences that rich's live table uses."""

    def __init__(self, lines: int = 24, columns: int = 100) -> None:
        self.lines = lines
        self.master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.file: TextIO = os.fdopen(slave, "w", encoding="utf-8")
        self.output = ""
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
            self.output = raw.decode(errors="ignore")

    def close(self) -> None:
        self.file.close()
        self._reader.join(5)
        os.close(self.master)

    def screen(self) -> list[str]:
        """Return the lines on the screen, and before them those that were scrolled away."""
        screen, row, column, top = [""], 0, 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.output):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                screen += [""] * (row + 1 - len(screen))
                top = max(top, row + 1 - self.lines)
            elif part == CURSOR_UP:
                row = max(top, row - 1)  # the cursor cannot move above the screen
            elif part == ERASE_LINE:
                screen[row] = ""
            elif not part.startswith("\x1b"):
                screen[row] = screen[row].ljust(column)[:column] + part + screen[row][column + len(part) :]
                column += len(part)
        return screen

    def wait_for(self, text: str) -> bool:
        """Return True as soon as a text was written; fail if it is not."""
        wait_until(lambda: text in self.output)
        return True

    def remaining_lines(self) -> list[str]:
        """Return the lines on the screen that are not empty, after all output has arrived."""
        print("(end)", file=self.file, flush=True)
        assert self.wait_for("(end)\r\n")
        return [line for line in self.screen() if line.strip() and line != "(end)"]


@contextlib.contextmanager
def open_terminal(lines: int = 24, columns: int = 100) -> Iterator[Terminal]:
    terminal = Terminal(lines, columns)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with open_terminal() as terminal:
        yield terminal


@pytest.fixture(autouse=True)
def _no_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw immediately, except where a test sets a delay."""
    monkeypatch.setattr(live, "_INITIAL_DELAY", 0)
    monkeypatch.setattr(live, "_REFRESH_INTERVAL", 0.01)


def emulate_on(cpu: str, result: RunResult) -> RunResult:
    return replace(result, emulated=True, emulator=EmulatorSummary(path="/q/qemu-arm", cpu=cpu))


def test_rows_until_removed(terminal: Terminal) -> None:
    print("before", file=terminal.file, flush=True)
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([(name, "", "") for name in TEN[:3]])
        assert terminal.wait_for("0 of 3 ended")
        assert [line.split()[1:4] for line in terminal.screen() if line.startswith("│ linux")] == [
            [name, "│", "running"] for name in TEN[:3]
        ]
        live_table(good_run(TEN[1], seconds=1.25))
        live_table(bad_run(TEN[0], message="why"))
        assert terminal.wait_for("2 of 3 ended")
        assert terminal.wait_for("ok: Hello from arm64")
        failed, passed, running = (line for line in terminal.screen() if line.startswith("│ linux"))
        assert "FAILED why" in failed
        assert "1.25" in passed
        assert "running" in running
    assert terminal.remaining_lines() == ["before"]
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)


def test_quick_runs_draw_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_INITIAL_DELAY", 60)
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([("linux/arm64", "", "")])
        live_table(good_run("linux/arm64"))
    assert terminal.remaining_lines() == []
    assert terminal.output == "(end)\r\n"


def test_no_runs_draw_nothing(terminal: Terminal) -> None:
    before = threading.active_count()
    with open_live_table(terminal.file, {}):
        assert threading.active_count() == before
    assert terminal.output == ""


@pytest.mark.parametrize("environ", [{"CI": "true"}, {"TERM": "dumb"}, {"TERM": "unknown"}])
def test_no_table_in_ci(terminal: Terminal, environ: dict[str, str]) -> None:
    with open_live_table(terminal.file, environ) as live_table:
        assert live_table is None


def test_no_table_without_terminal() -> None:
    with open_live_table(io.StringIO(), {}) as live_table:
        assert live_table is None


@pytest.mark.parametrize(("environ", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_colours(terminal: Terminal, environ: dict[str, str], coloured: bool) -> None:
    with open_live_table(terminal.file, environ) as live_table:
        assert live_table is not None
        live_table(good_run("linux/arm64"))
        assert terminal.wait_for("1 of 1 ended")
    assert terminal.remaining_lines() == []
    assert ("\x1b[32m" in terminal.output) is coloured


def test_cpu_and_command_columns(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {"NO_COLOR": "1"}) as live_table:
        assert live_table is not None
        runs = [("linux/arm/v6", command, cpu) for command in ("", "uname -m") for cpu in ("", "arm1176")]
        live_table.expect_runs(runs)
        assert terminal.wait_for("0 of 4 ended")
        live_table(emulate_on("arm1176", replace(good_run("linux/arm/v6", "armv6l"), command="uname -m")))
        assert terminal.wait_for("ok: armv6l")
        rows = [
            [cell.strip() for cell in line.split("│")[2:5]] for line in terminal.screen() if "linux" in line
        ]
    assert rows == [
        ["max", "(the image's own)", "running"],
        ["arm1176", "(the image's own)", "running"],
        ["max", "uname -m", "running"],
        ["arm1176", "uname -m", "ok: armv6l"],
    ]


def test_result_without_cpu(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([("linux/arm64", "", "cortex-a53")])
        live_table(replace(bad_run("linux/arm64"), emulator=None))
        assert terminal.wait_for("1 of 1 ended")


def test_unexpected_result(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table(good_run("linux/arm64"))
        live_table(good_run("linux/arm64"))
        assert terminal.wait_for("2 of 2 ended")


def test_two_equal_runs(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([("linux/arm64", "", "")] * 2)
        live_table(good_run("linux/arm64"))
        assert terminal.wait_for("1 of 2 ended")
        live_table(good_run("linux/arm64"))
        assert terminal.wait_for("2 of 2 ended")


def test_results_from_many_threads(terminal: Terminal) -> None:
    names = [f"linux/p{number}" for number in range(400)]
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([(name, "", "") for name in names])
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: live_table(good_run(name)), names))
        assert terminal.wait_for("400 of 400 ended")


def test_more_rows_than_lines() -> None:
    with open_terminal(lines=12, columns=60) as terminal:
        with open_live_table(terminal.file, {}) as live_table:
            assert live_table is not None
            live_table.expect_runs([(f"linux/p{number}", "", "") for number in range(40)])
            assert terminal.wait_for("0 of 40 ended")
            assert len([line for line in terminal.screen() if "linux/p" in line]) == 6
            live_table(good_run("linux/p0", stdout="w " * 200))
            live_table(bad_run("linux/p1", stdout="w " * 200))
            assert terminal.wait_for("2 of 40 ended")
            screen = "\n".join(terminal.screen())
            assert "linux/p0 " not in screen
            assert "linux/p1 " in screen
        assert terminal.remaining_lines() == []


HOSTILE = "\x1b[2J\x1b]0;x\x07\u202e[red]\r\n::error::x"


def test_output_is_escaped(terminal: Terminal) -> None:
    with open_live_table(terminal.file, {"NO_COLOR": "1"}) as live_table:
        assert live_table is not None
        live_table.expect_runs([("linux/arm64", HOSTILE, ""), (HOSTILE, "", "")])
        live_table(replace(good_run("linux/arm64", HOSTILE), command=HOSTILE))
        live_table(bad_run(HOSTILE, stderr=HOSTILE, message=HOSTILE))
        assert terminal.wait_for("2 of 2 ended")
    assert terminal.remaining_lines() == []
    assert "[red]" in terminal.output
    assert not {"\x07", "\u202e"} & set(terminal.output)
    assert set(re.findall(r"\x1b.[0-9;?]*.", terminal.output)) <= {
        CURSOR_UP,
        ERASE_LINE,
        HIDE_CURSOR,
        SHOW_CURSOR,
    }


def test_stderr_is_above_table(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.file)
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([("linux/arm64", "", "")])
        assert terminal.wait_for("0 of 1 ended")
        sys.stderr.write("look at this\n")
        assert terminal.wait_for("look at this")
        assert terminal.wait_for("0 of 1 ended")
    assert terminal.remaining_lines() == ["look at this"]
    assert sys.stderr is terminal.file


def test_redirected_stderr_is_untouched(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with open_live_table(terminal.file, {}) as live_table:
        assert live_table is not None
        live_table.expect_runs([("linux/arm64", "", "")])
        assert terminal.wait_for("0 of 1 ended")
        sys.stderr.write("for the log\n")
    assert log.getvalue() == "for the log\n"
    assert terminal.remaining_lines() == []
    assert "for the log" not in terminal.output


def test_closed_terminal() -> None:
    master, slave = os.openpty()
    file: TextIO = os.fdopen(slave, "w", encoding="utf-8")
    os.close(master)
    live_table = LiveTable(file, colour=False)
    live_table.expect_runs([("linux/arm64", "", "")])
    thread = live_table._thread
    assert thread is not None
    wait_until(lambda: not thread.is_alive())
    live_table(good_run("linux/arm64"))
    live_table.close()
    with contextlib.suppress(OSError):  # its buffer cannot be flushed any more
        file.close()


def test_ascii_terminal() -> None:
    with open_terminal() as terminal:
        terminal.file.reconfigure(encoding="ascii", errors="backslashreplace")  # type: ignore[attr-defined]
        with open_live_table(terminal.file, {}) as live_table:
            assert live_table is not None
            live_table(good_run("linux/arm64"))
            assert terminal.wait_for("1 of 1 ended")
        assert terminal.output.isascii()
        assert "| linux/arm64 |" in terminal.output


def test_interrupt_removes_table(terminal: Terminal) -> None:
    def raise_interrupt() -> None:
        with open_live_table(terminal.file, {}) as live_table:
            assert live_table is not None
            live_table(good_run("linux/arm64"))
            assert terminal.wait_for("1 of 1 ended")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raise_interrupt()
    assert terminal.remaining_lines() == []
    assert terminal.output.rindex(SHOW_CURSOR) > terminal.output.rindex(HIDE_CURSOR)


def test_rich_is_imported_only_to_draw() -> None:
    code = """
import sys
from buildkit_tasks.report import LiveTable, open_live_table
with open_live_table(sys.stdout, {}) as live_table:
    assert live_table is None
live_table = LiveTable(sys.stdout, colour=False)
live_table.expect_runs([("linux/arm64", "", "")])
live_table.close()
print(*sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "buildkit_tasks.report.progress" in process.stdout.split()
    assert "rich" not in process.stdout.split()
