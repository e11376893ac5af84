"""A table that fills in on a terminal while guests run, and is gone before the report is shown.

Where nobody looks, nothing is written: no terminal, a dumb one, or CI. Where all guests end before
anyone could read it, neither; rich is imported by the thread that draws, if it comes to that.
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

from buildkit_tasks.report.run_labels import DEFAULT_CPU, OWN_COMMAND, command_of, cpu_of
from buildkit_tasks.report.summary import Cell, ran_cell, run_columns
from buildkit_tasks.report.terminal import bare_table, has_unicode, terminal, text_of, wants_colour
from buildkit_tasks.report.text import one_line, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from rich.console import RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

    from buildkit_tasks.report.model import RunResult

__all__ = ["LiveRuns", "live_runs"]

_PATIENCE = 0.4  # seconds for which nothing is drawn: most images have run by then
_PAUSE = 0.2  # seconds between two pictures
_AROUND = 6  # lines of the table, and below it, that are no rows
_DUMB = ("dumb", "unknown")


@contextlib.contextmanager
def live_runs(stream: TextIO, environ: Mapping[str, str]) -> Iterator[LiveRuns | None]:
    """Give what is told of each run as it ends, or None where no table can be drawn."""
    if not stream.isatty() or environ.get("CI") or environ.get("TERM") in _DUMB:
        yield None
        return
    live = LiveRuns(stream, colour=wants_colour(stream, environ))
    try:
        yield live
    finally:
        live.close()


@dataclass(slots=True)
class _Row:
    """One run, by platform, command and CPU, and its result as soon as there is one."""

    platform: str
    command: str
    cpu: str
    result: RunResult | None = None

    @property
    def passed(self) -> bool:
        """Whether it has ended, and well."""
        return self.result is not None and self.result.ok

    @property
    def cells(self) -> dict[str, Cell]:
        """What the table says of it, by column."""
        ended = self.result
        return {
            "Platform": Cell(_short(self.platform)),
            "CPU": Cell(_short(self.cpu)),
            "Command": Cell(_short(self.command)),
            "Ran": Cell("running") if ended is None else ran_cell(ended),
            "Seconds": Cell("" if ended is None else f"{ended.seconds:.2f}"),
        }


def _short(text: str) -> str:
    return shortened(one_line(text), 48)


class LiveRuns:
    """The table; a call with a result fills in its row, from any thread."""

    def __init__(self, stream: TextIO, *, colour: bool) -> None:
        self._stream = stream
        self._colour = colour
        self._rows: list[_Row] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._since = 0.0

    def expect(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """Say what will run: platform, command and CPU, the last two empty for the default."""
        with self._lock:
            self._rows += [
                _Row(platform, command or OWN_COMMAND, cpu or DEFAULT_CPU) for platform, command, cpu in runs
            ]
            self._begin()

    def __call__(self, result: RunResult) -> None:
        """Fill in the row of a run that has ended; one that nobody expected gets a row of its own."""
        with self._lock:
            self._row(result).result = result
            self._begin()

    def close(self) -> None:
        """Take the table away; the terminal is as it was."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _row(self, result: RunResult) -> _Row:
        row = _Row(result.platform, command_of(result), cpu_of(result))
        mine = [
            each
            for each in self._rows
            if each.result is None and (each.platform, each.command) == (row.platform, row.command)
        ]
        # What could not be started ran on no CPU, and may stand for any.
        found = next((each for each in mine if each.cpu == row.cpu), mine[0] if mine else None)
        if found is None:
            self._rows.append(row)
        return found or row

    def _begin(self) -> None:
        if self._thread is None:
            self._since = time.monotonic()
            self._thread = threading.Thread(target=self._draw, name="live-runs", daemon=True)
            self._thread.start()

    def _draw(self) -> None:
        if self._ended.wait(_PATIENCE):
            return
        from rich.live import Live

        console = terminal(self._stream, colour=self._colour)

        def picture() -> RenderableType:
            console.size = _size(self._stream)  # it may have changed; rich asks that of standard input
            return self._picture(console.height)

        # The terminal may go away: whoever is left to read the report is told then.
        with (
            contextlib.suppress(OSError, ValueError),
            Live(
                console=console,
                get_renderable=picture,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=sys.stderr.isatty(),  # else it is somebody's log
            ) as live,
        ):
            live.refresh()
            while not self._ended.wait(_PAUSE):
                live.refresh()

    def _picture(self, height: int) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            rows = [dataclasses.replace(row) for row in self._rows]
        ended = sum(row.result is not None for row in rows)
        seconds = time.monotonic() - self._since
        below = Text(f"  {ended} of {len(rows)} have ended, {seconds:.0f} s")
        return Group(self._table(_fitting(rows, height - _AROUND)), below)

    def _table(self, rows: Sequence[_Row]) -> RichTable:
        told = run_columns((row.cpu for row in rows), (row.command for row in rows))
        names = ("Platform", *told, "Ran", "Seconds")
        plain = not has_unicode(self._stream)
        table = bare_table(plain=plain)
        for name in names:
            # Where room is short, it is the long ones that are cut.
            short = name not in ("Ran", "Command")
            table.add_column(name, no_wrap=short, justify="right" if name == "Seconds" else "left")
        for row in rows:
            cells = row.cells
            table.add_row(*(_cut(text_of(cells[name]), plain=plain) for name in names))
        return table


def _cut(text: Text, *, plain: bool) -> Text:
    """In one line, however narrow."""
    text.no_wrap, text.overflow = True, "crop" if plain else "ellipsis"
    return text


def _size(stream: TextIO) -> tuple[int, int]:
    columns, lines = os.get_terminal_size(stream.fileno())
    return columns or 80, lines or 24


def _fitting(rows: Sequence[_Row], room: int) -> Sequence[_Row]:
    """As many rows as there are lines for: what is higher than its terminal cannot be taken away again."""
    if len(rows) <= room:
        return rows
    return [row for row in rows if not row.passed][: max(1, room)]
