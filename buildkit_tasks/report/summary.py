"""Any report as one small table of words, which every format for people draws in its own way."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from buildkit_tasks.report.cases import (
    first_failure,
    list_image_steps,
    list_platforms,
    list_runners,
    list_steps,
    report_name,
)
from buildkit_tasks.report.model import (
    BuildResult,
    BuiltPlatform,
    ImageReport,
    ImagesReport,
    MatrixReport,
    NamedTag,
    Output,
    PlatformSetup,
    PlatformVerdict,
    PushResult,
    Report,
    RunReport,
    RunResult,
    SetupReport,
    VerifyReport,
)
from buildkit_tasks.report.run_labels import (
    DEFAULT_CPU,
    command_label,
    cpu_label,
    describe_cpu_differences,
    describe_seconds,
    has_distinct_values,
)
from buildkit_tasks.report.summary_line import count_warnings, format_summary_line, format_warning_count
from buildkit_tasks.report.text import last_line, to_one_line, truncate_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "Cell",
    "Severity",
    "SummaryTable",
    "build_summary_table",
    "distinguishing_columns",
    "outcome_cell",
]

_MAX_CELL_WIDTH = 48  # characters; the whole of what is cut here stands below the table or in a report file
_MAX_NAME_WIDTH = 80  # characters of a name: a whole sha256 digest fits
_DIGEST_DIGITS = 12  # as many digits of a digest as `docker images` shows


class Severity(enum.StrEnum):
    """What words tell of, for a place that can show it: in colour, with a sign."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's words, in one line, and what they tell of."""

    text: str
    severity: Severity = Severity.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryTable:
    """Column heads, a row per platform, notes about the whole, and one closing line."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    summary_line: str
    ok: bool
    warning_count: int = 0

    @property
    def verdict(self) -> str:
        """The whole report in a word or two."""
        text = "ok" if self.ok else "FAILED"
        return (
            f"{text}, {format_warning_count(self.warning_count)}" if self.ok and self.warning_count else text
        )

    @property
    def severity(self) -> Severity:
        """What the report as a whole tells of."""
        if not self.ok:
            return Severity.BAD
        return Severity.WARNING if self.warning_count else Severity.GOOD


def build_summary_table(report: Report) -> SummaryTable:
    """Make the table of any report."""
    columns, rows = _build_body(report)
    return SummaryTable(
        name=report_name(report),
        columns=columns,
        rows=tuple(rows),
        notes=tuple(to_one_line(note) for note in _collect_notes(report)),
        summary_line=to_one_line(format_summary_line(report)),
        ok=report.ok,
        warning_count=count_warnings(list_steps(report)),
    )


_OK_CELL = Cell("ok", Severity.GOOD)

_TableRows = list[tuple[Cell, ...]]

_SETUP_COLUMNS = ("Platform", "Runs through", "Flags", "Node", "Ready")
_BUILD_COLUMNS = ("Platform", "Digest", "Built")
_VERIFY_COLUMNS = ("Platform", "Digest", "Checks", "Verified")
_RUN_COLUMNS = ("Platform", "Runs through", "Ran", "Seconds")
_MATRIX_COLUMNS = ("Platform", "Runs through", "Built", "Verified", "Ran", "Seconds")
_IMAGES_COLUMNS = ("Image", *_MATRIX_COLUMNS)
_PUSH_COLUMNS = ("Platform", "Digest", "Verified", "Ran", "Seconds")


def _build_body(report: Report) -> tuple[tuple[str, ...], _TableRows]:
    match report:
        case SetupReport():
            return _SETUP_COLUMNS, [_make_setup_row(row) for row in report.platforms]
        case BuildResult():
            return _build_pipeline_body(report.pushed) if report.pushed else _build_result_body(report)
        case VerifyReport():
            return _VERIFY_COLUMNS, [_make_verdict_row(verdict) for verdict in report.platforms]
        case RunReport():
            rows = [_make_run_row(result) for result in report.results]
            return _insert_run_columns(_RUN_COLUMNS, rows, report.results)
        case MatrixReport() | PushResult():
            return _build_pipeline_body(report)
        case ImagesReport():
            return _build_images_body(report)


def _build_pipeline_body(report: MatrixReport | PushResult) -> tuple[tuple[str, ...], _TableRows]:
    """A row for each run of one image, or for each platform that was not run."""
    platforms = list_platforms(list_steps(report))
    runs = [result for platform in platforms for result in _platform_runs(report, platform)]
    if isinstance(report, PushResult):
        return _insert_run_columns(
            _PUSH_COLUMNS, [row for platform in platforms for row in _iter_push_rows(report, platform)], runs
        )
    rows = [row for platform in platforms for row in _iter_matrix_rows(report, platform, report.setup)]
    return _insert_run_columns(_MATRIX_COLUMNS, rows, runs)


def _build_images_body(report: ImagesReport) -> tuple[tuple[str, ...], _TableRows]:
    """A row for each run of each image, or for each platform that was not run."""
    rows: _TableRows = []
    runs: list[RunResult | None] = []
    for image in report.images:
        platforms = list_platforms(list_image_steps(image))
        for platform in platforms:
            rows += [
                (_plain_cell(image.name), *row) for row in _iter_matrix_rows(image, platform, report.setup)
            ]
            runs += _platform_runs(image, platform)
        if not platforms:
            blank_cells = (Cell("-"), Cell("-"), _failed_cell(image.error), Cell("-"), Cell("-"), Cell("-"))
            rows.append((_plain_cell(image.name), *blank_cells))
            runs.append(None)
    return _insert_run_columns(_IMAGES_COLUMNS, rows, runs)


def distinguishing_columns(cpus: Iterable[str], commands: Iterable[str]) -> tuple[str, ...]:
    """The columns that tell runs apart: the CPU if any is not the default, the command if they differ."""
    cpu_column = ("CPU",) if has_distinct_values([DEFAULT_CPU, *cpus]) else ()
    return (*cpu_column, "Command") if has_distinct_values(commands) else cpu_column


def _insert_run_columns(
    columns: tuple[str, ...], rows: _TableRows, runs: Sequence[RunResult | None]
) -> tuple[tuple[str, ...], _TableRows]:
    """The table with those columns before ``Ran``; ``ran`` is the run of each row."""
    results = [result for result in runs if result]
    label_functions = {"CPU": cpu_label, "Command": command_label}
    for column in distinguishing_columns(map(cpu_label, results), map(command_label, results)):
        index = columns.index("Ran")
        columns = (*columns[:index], column, *columns[index:])
        cells = [_plain_cell(label_functions[column](result) if result else "") for result in runs]
        rows = [(*row[:index], cell, *row[index:]) for row, cell in zip(rows, cells, strict=True)]
    return columns, rows


def _make_setup_row(row: PlatformSetup) -> tuple[Cell, ...]:
    status = _OK_CELL if row.runs else _failed_cell(row.message or "does not run")
    return (
        _plain_cell(row.platform),
        _plain_cell(_handler_text(row)),
        _plain_cell(row.flags),
        _plain_cell(row.node),
        status,
    )


def _build_result_body(result: BuildResult) -> tuple[tuple[str, ...], _TableRows]:
    """A row for each platform; which node built it is told where there was more than one."""
    rows = [_make_build_row(result, row) for row in result.platforms]
    if len({row.node for row in result.platforms}) < 2:  # noqa: PLR2004 - several
        return _BUILD_COLUMNS, rows
    first, *other_columns = _BUILD_COLUMNS
    node_cells = [
        _plain_cell(f"{row.node}, {'native' if row.native else 'emulated'}") for row in result.platforms
    ]
    return (first, "Node", *other_columns), [
        (row[0], node, *row[1:]) for row, node in zip(rows, node_cells, strict=True)
    ]


def _make_build_row(result: BuildResult, row: BuiltPlatform) -> tuple[Cell, ...]:
    status = _OK_CELL if result.ok else _failed_cell("build")
    return _plain_cell(row.platform), _plain_cell(row.digest), status


def _make_verdict_row(verdict: PlatformVerdict) -> tuple[Cell, ...]:
    passed = sum(check.ok for check in verdict.checks)
    counts = f"{passed} of {len(verdict.checks)}"
    return (
        _plain_cell(verdict.platform),
        _plain_cell(_short_digest(verdict.digest)),
        Cell(counts),
        _verified_cell(verdict),
    )


def _make_run_row(result: RunResult) -> tuple[Cell, ...]:
    return (
        _plain_cell(result.platform),
        _plain_cell(_emulator_text(result)),
        outcome_cell(result),
        Cell(_format_seconds(result)),
    )


def _iter_matrix_rows(
    report: MatrixReport | ImageReport, platform: str, setup_report: SetupReport | None
) -> Iterator[tuple[Cell, ...]]:
    """A row for each run of a platform; what holds for all of them stands in the first."""
    setup = _pick_row(setup_report.platforms if setup_report else (), platform)
    built_platform = _pick_row(report.build.platforms if report.build else (), platform)
    verdict = _pick_row(report.verify.platforms if report.verify else (), platform)
    shared_cells = (
        _built_cell(report.build, built_platform),
        _verified_cell(verdict) if verdict else Cell("-"),
    )
    for result in _platform_runs(report, platform):
        run_cells = (
            (outcome_cell(result), Cell(_format_seconds(result))) if result else (Cell("-"), Cell("-"))
        )
        yield (_plain_cell(platform), _handler_cell(setup, result), *shared_cells, *run_cells)
        shared_cells = (Cell(""), Cell(""))


def _iter_push_rows(report: PushResult, platform: str) -> Iterator[tuple[Cell, ...]]:
    """A row for each run of a platform, as in the matrix."""
    built_platform = _pick_row(report.platforms, platform)
    verdict = _pick_row(report.verify.platforms if report.verify else (), platform)
    shared_cells = (
        _plain_cell(_short_digest(built_platform.digest) if built_platform else ""),
        _verified_cell(verdict) if verdict else Cell("-"),
    )
    for result in _platform_runs(report, platform):
        run_cells = (
            (outcome_cell(result), Cell(_format_seconds(result))) if result else (Cell("-"), Cell("-"))
        )
        yield (_plain_cell(platform), *shared_cells, *run_cells)
        shared_cells = (Cell(""), Cell(""))


def _platform_runs(report: MatrixReport | ImageReport | PushResult, platform: str) -> list[RunResult | None]:
    """The runs of a platform, or one that is none."""
    results = [result for result in report.run.results if result.platform == platform] if report.run else []
    return [*results] or [None]


class _HasPlatform(Protocol):
    @property
    def platform(self) -> str: ...


_RowT = TypeVar("_RowT", bound=_HasPlatform)


def _pick_row(rows: Sequence[_RowT], platform: str) -> _RowT | None:
    """Give a platform's row; of two for one platform, which a bad index can have, a failing one."""
    matches = [row for row in rows if row.platform == platform]
    failures = (row for row in matches if not getattr(row, "ok", True))
    return next(failures, matches[0] if matches else None)


def _plain_cell(text: str) -> Cell:
    return Cell(truncate_line(to_one_line(text), _MAX_NAME_WIDTH) or "-")


def _failed_cell(reason: str) -> Cell:
    return Cell(truncate_line(f"FAILED {to_one_line(reason)}", _MAX_CELL_WIDTH), Severity.BAD)


def _handler_cell(setup: PlatformSetup | None, result: RunResult | None) -> Cell:
    if setup is None:
        return _plain_cell(_emulator_text(result) if result else "")
    if not setup.runs:
        return _failed_cell(_handler_text(setup))
    # On an old CPU the host's own programs go through an emulator too.
    return _plain_cell(_emulator_text(result) if result and result.emulator else _handler_text(setup))


def _handler_text(row: PlatformSetup) -> str:
    if row.native:
        return "native"
    name = row.handler or row.interpreter.rpartition("/")[2]
    if name:
        return f"{name} {row.version}"
    return "emulated there" if row.node and row.runs else "not registered"


def _emulator_text(result: RunResult) -> str:
    if result.emulator is None:
        return "emulated" if result.emulated else "native"
    emulator = result.emulator
    return f"{emulator.path.rpartition('/')[2]} {emulator.version}"


def _built_cell(build: BuildResult | None, row: BuiltPlatform | None) -> Cell:
    if build is None or row is None:
        return Cell("-")
    return Cell(_short_digest(row.digest) or "ok", Severity.GOOD) if build.ok else _failed_cell("build")


def _short_digest(digest: str) -> str:
    return to_one_line(digest.rpartition(":")[2])[:_DIGEST_DIGITS]


def _verified_cell(verdict: PlatformVerdict) -> Cell:
    failure = first_failure(verdict)
    if failure:
        return _failed_cell(failure)
    warning_count = len(verdict.warnings)
    return Cell(f"ok, {format_warning_count(warning_count)}", Severity.WARNING) if warning_count else _OK_CELL


def outcome_cell(result: RunResult) -> Cell:
    """How a run ended, with the last thing that it said."""
    last_output = last_line(result.stdout) or last_line(result.stderr)
    if not result.ok:
        return _failed_cell(f"{result.outcome.value}: {last_output or result.message}")
    return Cell(
        truncate_line(f"ok: {to_one_line(last_output)}" if last_output else "ok", _MAX_CELL_WIDTH),
        Severity.GOOD,
    )


def _format_seconds(result: RunResult) -> str:
    return f"{result.seconds:.2f}"


def _collect_notes(report: Report) -> list[str]:
    match report:
        case SetupReport():
            return _setup_notes(report)
        case BuildResult():
            return _build_notes(report) + (_collect_notes(report.pushed) if report.pushed else [])
        case VerifyReport():
            return [f"image: {report.subject} {report.digest}"]
        case RunReport():
            return [f"image: {report.subject}", *_run_notes(report)]
        case MatrixReport() | PushResult():
            notes = _push_notes(report) if isinstance(report, PushResult) else _matrix_notes(report)
            return notes + (_run_notes(report.run) if report.run else [])
        case ImagesReport():
            setup = _setup_notes(report.setup) if report.setup else []
            return [
                *setup,
                *(f"{image.name}: {note}" for image in report.images for note in _image_notes(image)),
            ]


def _matrix_notes(report: MatrixReport) -> list[str]:
    setup = _setup_notes(report.setup) if report.setup else []
    push_result = report.build.pushed if report.build else None
    build_lines = _build_notes(report.build) if report.build else []
    return [*setup, *build_lines, *(_push_notes(push_result) if push_result else [])]


def _push_notes(report: PushResult) -> list[str]:
    tag_lines = [f"{tag.ref}: {_describe_move(tag)}" for tag in report.tags] or ["no tag was named"]
    return [f"pushed {report.digest} in {report.seconds:.1f} seconds", *tag_lines]


def _describe_move(tag: NamedTag) -> str:
    if not tag.moved:
        return "named it before"
    return f"moved, from {tag.previous}" if tag.previous else "new"


def _image_notes(image: ImageReport) -> list[str]:
    build_lines = _build_notes(image.build) if image.build else []
    tag_lines = [f"named: {', '.join(tag.ref for tag in image.tags)}"] if image.tags else []
    return build_lines + (_run_notes(image.run) if image.run else []) + tag_lines


def _run_notes(report: RunReport) -> list[str]:
    """What ran it, how long each platform took, and what ran on one CPU only."""
    runner_lines = [f"run by: {', '.join(list_runners(report))}"] if report.results else []
    return [*runner_lines, *describe_seconds(report.results), *describe_cpu_differences(report.results)]


def _setup_notes(report: SetupReport) -> list[str]:
    engine, builder = report.engine, report.builder
    reason = f": {builder.reason}" if builder.reason else ""
    return [
        f"engine: {engine.kind} {engine.version} at {engine.endpoint}, {engine.store} store"
        if engine.endpoint
        else "engine: none is needed, BuildKit runs elsewhere",
        f"builder: {builder.name} ({builder.driver}){reason}",
    ]


def _build_notes(result: BuildResult) -> list[str]:
    outputs = ", ".join(_format_output(output) for output in result.outputs)
    bases = f"bases: {result.bases}"
    return [f"image: {outputs} {result.digest}", f"built in {result.seconds:.1f} seconds, {bases}"]


def _format_output(output: Output) -> str:
    destination = output.dest or output.ref
    return f"{output.type}:{destination}" if destination else output.type
