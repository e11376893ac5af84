"""All that a renderer shows of a report: its steps, one table, notes and a summary line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.report.model import (
    BuildResult,
    ImagesReport,
    MatrixReport,
    PushResult,
    Report,
    report_name,
)
from buildkit_tasks.report.notes import list_notes
from buildkit_tasks.report.rows import (
    EMPTY_CELL,
    Cell,
    Row,
    Severity,
    Step,
    failed_cell,
    list_platforms,
    plain_cell,
)
from buildkit_tasks.report.run_labels import command_label, cpu_label, distinguishing_columns
from buildkit_tasks.report.steps import list_steps, short_digest
from buildkit_tasks.report.summary_line import count_warnings, format_summary_line
from buildkit_tasks.report.text import pluralise, to_one_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.report.model import ImageReport

__all__ = ["Summary", "summarize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A report as its renderers show it; each of ``lines`` has a cell for each of ``columns``."""

    name: str
    ok: bool
    steps: tuple[Step, ...]
    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    summary_line: str

    @property
    def failures(self) -> Iterator[tuple[str, Row]]:
        """Return each row that has a problem, after its step's title."""
        return ((step.title, row) for step in self.steps for row in step.rows if row.problems)

    @property
    def warnings(self) -> Iterator[tuple[str, Row]]:
        """Return each row that has a warning, after its step's title."""
        return ((step.title, row) for step in self.steps for row in step.rows if row.warnings)

    @property
    def verdict(self) -> str:
        """Return ``ok``, ``ok, 2 warnings`` or ``FAILED``."""
        count = count_warnings(self.steps)
        if not self.ok:
            return "FAILED"
        return f"ok, {pluralise(count, 'warning', 'warnings')}" if count else "ok"

    @property
    def severity(self) -> Severity:
        """Return the severity of the whole report."""
        if not self.ok:
            return Severity.BAD
        return Severity.WARNING if count_warnings(self.steps) else Severity.GOOD

    @property
    def title(self) -> str:
        """Return the report's name and verdict."""
        return f"{self.name}: {self.verdict}"


def summarize(report: Report) -> Summary:
    """Return the summary that every renderer reads."""
    steps = list_steps(report)
    columns = _choose_columns(report, steps)
    return Summary(
        name=report_name(report),
        ok=report.ok,
        steps=steps,
        columns=columns,
        lines=tuple(
            tuple(line.get(column, EMPTY_CELL) for column in columns) for line in _list_lines(report, steps)
        ),
        notes=tuple(map(to_one_line, list_notes(report))),
        summary_line=to_one_line(format_summary_line(report, steps)),
    )


_Line = Mapping[str, Cell]  # cells by column

_COLUMNS = {
    "setup": ("Platform", "Runs through", "Flags", "Node", "Ready"),
    "build": ("Platform", "Node", "Digest", "Built"),
    "verify": ("Platform", "Digest", "Checks", "Verified"),
    "run": ("Platform", "Runs through", "CPU", "Command", "Ran", "Seconds"),
    "arch-matrix": ("Platform", "Runs through", "Built", "Verified", "CPU", "Command", "Ran", "Seconds"),
    "images": ("Image", "Platform", "Runs through", "Built", "Verified", "CPU", "Command", "Ran", "Seconds"),
    "push": ("Platform", "Digest", "Verified", "CPU", "Command", "Ran", "Seconds"),
}


# Of several images, which a task may only verify or run.
_STEP_OF_COLUMN = {
    "Built": "build",
    "Verified": "verify",
    "Ran": "run",
    "Runs through": "run",
    "Seconds": "run",
}


def _choose_columns(report: Report, steps: Iterable[Step]) -> tuple[str, ...]:
    """Return the columns of a report, without those that would be the same in every line."""
    runs = [row.run for step in steps for row in step.rows if row.run]
    hidden = {"CPU", "Command"} - set(distinguishing_columns(map(cpu_label, runs), map(command_label, runs)))
    if isinstance(report, BuildResult):
        if report.pushed:
            return _choose_columns(report.pushed, steps)
        hidden |= {"Node"} if len({built.node for built in report.platforms}) <= 1 else set()
    if isinstance(report, ImagesReport) and report.images:
        present = {step.name for step in steps}
        hidden |= {column for column, step in _STEP_OF_COLUMN.items() if step not in present}
    return tuple(column for column in _COLUMNS[report_name(report)] if column not in hidden)


def _list_lines(report: Report, steps: Sequence[Step]) -> Iterable[_Line]:
    match report:
        case MatrixReport():
            return _join_rows(list_platforms(steps), steps)
        case ImagesReport():
            return _list_image_lines(report, steps)
        case PushResult():
            pushed = (Row(platform=each.platform, digest=each.digest) for each in report.platforms)
            return _join_rows(list_platforms(steps), [Step(name="build", rows=tuple(pushed)), *steps])
        case BuildResult(pushed=PushResult() as push):
            return _list_lines(push, steps[1:])
        case _:
            return (row.cells for row in steps[0].rows if row.cells)


def _list_image_lines(report: ImagesReport, steps: Sequence[Step]) -> Iterator[_Line]:
    shared = [step for step in steps if not step.image]
    for image in report.images:
        image_cell = {"Image": plain_cell(image.name)}
        own = [step for step in steps if step.image == image.name]
        platforms = list_platforms(own)
        yield from (image_cell | line for line in _join_rows(platforms, [*shared, *own]))
        if not platforms:
            yield image_cell | {_error_column(image): failed_cell(image.error)}


def _error_column(image: ImageReport) -> str:
    """Return the column of the first step, which an image without any platform has not reached."""
    return next((column for column, step in _STEP_OF_COLUMN.items() if step in image.steps), "Verified")


def _join_rows(platforms: Iterable[str], steps: Iterable[Step]) -> Iterator[dict[str, Cell]]:
    """Yield a line for each run of each platform, or one for a platform that was not run.

    Cells that are the same for all runs of a platform are blank after its first line::

        linux/arm/v6  qemu-arm 10.0.2  5d4c3f0e9a71  ok  max      ok: Hello from arm
        linux/arm/v6  qemu-arm 10.0.2                    arm1176  FAILED illegal-instruction: ...
    """
    rows_of_step = {step.name: step.rows for step in steps}
    for platform in platforms:
        rows = {
            name: [row for row in rows if row.platform == platform] for name, rows in rows_of_step.items()
        }
        setup, build, verify = (_pick_row(rows.get(name, ())) for name in ("setup", "build", "verify"))
        shared = {
            "Digest": plain_cell(short_digest(build.digest)),
            "Built": _built_cell(build),
            "Verified": verify.cells.get("Verified", EMPTY_CELL),
        }
        for run in rows.get("run") or [Row()]:
            runs_through = _runs_through_cell(setup, run)
            yield {**run.cells, "Platform": plain_cell(platform), "Runs through": runs_through, **shared}
            shared = dict.fromkeys(shared, Cell(""))


def _pick_row(rows: Sequence[Row]) -> Row:
    """Return a failed row if there is one: a malformed index can have a platform twice."""
    return next((row for row in rows if row.problems), rows[0] if rows else Row())


def _built_cell(build: Row) -> Cell:
    if build.problems or not build.cells:
        return build.cells.get("Built", EMPTY_CELL)
    return Cell(short_digest(build.digest) or "ok", Severity.GOOD)


def _runs_through_cell(setup: Row, run: Row) -> Cell:
    """Return the emulator of the run if it is known, otherwise the handler that was set up.

    On an older CPU model the host's own programs are emulated too. What was not started ran through nothing.
    """
    handler = setup.cells.get("Runs through")
    if handler and setup.problems:
        return failed_cell(handler.text)
    if handler and not (run.run and (run.run.emulator or not run.run.has_started)):
        return handler
    return run.cells.get("Runs through", EMPTY_CELL)
