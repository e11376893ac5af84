"""A table on the terminal that is updated while images run, and removed before the report is printed.

Nothing is drawn in CI, without a terminal, on a dumb one, or if all runs end within 0.4 seconds. The
thread that draws imports rich.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from buildkit_tasks.report.rows import MAX_CELL_WIDTH, Cell
from buildkit_tasks.report.run_labels import (
    DEFAULT_CPU,
    IMAGE_COMMAND,
    command_label,
    cpu_label,
    distinguishing_columns,
)
from buildkit_tasks.report.steps import outcome_cell
from buildkit_tasks.report.terminal import (
    has_unicode,
    make_empty_table,
    make_terminal_console,
    needs_colour,
    style_cell,
)
from buildkit_tasks.report.text import to_one_line, truncate_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

    from buildkit_tasks.report.model import RunResult

__all__ = ["LiveTable", "open_live_table"]

_INITIAL_DELAY = 0.4  # seconds before the table is drawn: most images have run by then
_REFRESH_INTERVAL = 0.2  # seconds
_FRAME_LINES = 6  # borders, header and footer
_DUMB_TERMINALS = ("dumb", "unknown")


@contextlib.contextmanager
def open_live_table(stream: TextIO, environ: Mapping[str, str]) -> Iterator[LiveTable | None]:
    """Give the table to call with each result, or None where no table can be drawn."""
    if not stream.isatty() or environ.get("CI") or environ.get("TERM") in _DUMB_TERMINALS:
        yield None
        return
    live = LiveTable(stream, colour=needs_colour(stream, environ))
    try:
        yield live
    finally:
        live.close()


@dataclass(slots=True)
class _LiveRow:
    """One run by platform, command and CPU, with its result once it has ended."""

    platform: str
    command: str
    cpu: str
    result: RunResult | None = None

    @property
    def passed(self) -> bool:
        """Return True if the run has ended and passed."""
        return self.result is not None and self.result.ok

    @property
    def cells(self) -> dict[str, Cell]:
        """Return the cells by column."""
        result = self.result
        return {
            "Platform": Cell(_shorten_cell(self.platform)),
            "CPU": Cell(_shorten_cell(self.cpu)),
            "Command": Cell(_shorten_cell(self.command)),
            "Ran": Cell("running") if result is None else outcome_cell(result),
            "Seconds": Cell("" if result is None else f"{result.seconds:.2f}"),
        }


def _shorten_cell(text: str) -> str:
    return truncate_line(to_one_line(text), MAX_CELL_WIDTH)


class LiveTable:
    """The table; call it with a result, from any thread, to update its row."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        self._rows: list[_LiveRow] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._started_at = 0.0

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """Add a row for each run: platform, command and CPU, the last two empty for the default."""
        with self._lock:
            self._rows += [
                _LiveRow(platform, command or IMAGE_COMMAND, cpu or DEFAULT_CPU)
                for platform, command, cpu in runs
            ]
            self._start_thread()

    def __call__(self, result: RunResult) -> None:
        """Update the row of a run that has ended; add one if the run was not expected."""
        with self._lock:
            self._find_row(result).result = result
            self._start_thread()

    def close(self) -> None:
        """Stop drawing and remove the table from the terminal."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _find_row(self, result: RunResult) -> _LiveRow:
        row = _LiveRow(result.platform, command_label(result), cpu_label(result))
        candidates = [
            candidate
            for candidate in self._rows
            if candidate.result is None
            and (candidate.platform, candidate.command) == (row.platform, row.command)
        ]
        # The result of a run that could not be started has no CPU: any row of its platform will do.
        default = candidates[0] if candidates else None
        match = next((candidate for candidate in candidates if candidate.cpu == row.cpu), default)
        if match is None:
            self._rows.append(row)
        return match or row

    def _start_thread(self) -> None:
        if self._thread is None:
            self._started_at = time.monotonic()
            self._thread = threading.Thread(target=self._draw_until_closed, name="live-runs", daemon=True)
            self._thread.start()

    def _draw_until_closed(self) -> None:
        if self._closed.wait(_INITIAL_DELAY):
            return
        from rich.live import Live

        console = make_terminal_console(self._stream, colour=self._colour)

        def render() -> RenderableType:
            # The window may have been resized; rich would ask standard input for its size.
            console.size = _terminal_size(self._stream)
            return self._render(console.height)

        # If the terminal is closed, printing the report will fail with an error.
        with (
            contextlib.suppress(OSError, ValueError),
            Live(
                console=console,
                get_renderable=render,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),  # not if it is written to a log file
            ) as live,
        ):
            live.refresh()
            while not self._closed.wait(_REFRESH_INTERVAL):
                live.refresh()

    def _render(self, height: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            rows = [dataclasses.replace(row) for row in self._rows]
        ended_count = sum(row.result is not None for row in rows)
        seconds = time.monotonic() - self._started_at
        footer = Text(f"  {ended_count} of {len(rows)} ended, {seconds:.0f} s")
        return Group(self._build_table(_fit_rows(rows, height - _FRAME_LINES)), footer)

    def _build_table(self, rows: Sequence[_LiveRow]) -> RichTable:
        extra_columns = distinguishing_columns((row.cpu for row in rows), (row.command for row in rows))
        columns = ("Platform", *extra_columns, "Ran", "Seconds")
        ascii_only = not has_unicode(self._stream)
        table = make_empty_table(ascii_only=ascii_only)
        for column in columns:
            # In a narrow terminal only the long columns are shortened.
            is_short = column not in ("Ran", "Command")
            table.add_column(column, no_wrap=is_short, justify="right" if column == "Seconds" else "left")
        for row in rows:
            cells = row.cells
            table.add_row(
                *(_crop_text(style_cell(cells[column]), ascii_only=ascii_only) for column in columns)
            )
        return table


def _crop_text(text: Text, *, ascii_only: bool) -> Text:
    """Keep text in one line, however narrow its column is."""
    text.no_wrap, text.overflow = True, "crop" if ascii_only else "ellipsis"
    return text


def _terminal_size(stream: TextIO) -> tuple[int, int]:
    columns, lines = os.get_terminal_size(stream.fileno())
    return columns or 80, lines or 24


def _fit_rows(rows: Sequence[_LiveRow], max_rows: int) -> Sequence[_LiveRow]:
    """Leave passed rows out if there are too many: a table higher than the terminal cannot be removed."""
    if len(rows) <= max_rows:
        return rows
    return [row for row in rows if not row.passed][: max(1, max_rows)]
