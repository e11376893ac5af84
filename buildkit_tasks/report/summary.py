"""Any report as one small table of words, which every format for people draws in its own way."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from buildkit_tasks.report.cases import (
    image_steps,
    name_of,
    platforms_of,
    runners_of,
    steps_of,
    verdict_message,
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
from buildkit_tasks.report.run_labels import DEFAULT_CPU, command_of, cpu_of, differences, seconds_of, varies
from buildkit_tasks.report.summary_line import closing_of, counted, warnings_in
from buildkit_tasks.report.text import last_line, one_line, shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Cell", "Table", "Tone", "ran_cell", "run_columns", "table_of"]

_CELL = 48  # characters; the whole of what is cut here stands below the table or in a report file
_LONGEST = 80  # characters of a name: a whole sha256 digest fits
_HEX = 12  # as many digits of a digest as `docker images` shows


class Tone(enum.StrEnum):
    """What words tell of, for a place that can show it: in colour, with a sign."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's words, in one line, and what they tell of."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Column heads, a row per platform, notes about the whole, and one closing line."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    closing: str
    ok: bool
    warnings: int = 0

    @property
    def verdict(self) -> str:
        """The whole report in a word or two."""
        words = "ok" if self.ok else "FAILED"
        return f"{words}, {counted(self.warnings)}" if self.ok and self.warnings else words

    @property
    def tone(self) -> Tone:
        """What the report as a whole tells of."""
        if not self.ok:
            return Tone.BAD
        return Tone.WARNING if self.warnings else Tone.GOOD


def table_of(report: Report) -> Table:
    """Make the table of any report."""
    columns, rows = _body(report)
    return Table(
        name=name_of(report),
        columns=columns,
        rows=tuple(rows),
        notes=tuple(one_line(note) for note in _notes(report)),
        closing=one_line(closing_of(report)),
        ok=report.ok,
        warnings=warnings_in(steps_of(report)),
    )


_GOOD = Cell("ok", Tone.GOOD)

_Rows = list[tuple[Cell, ...]]

_SETUP = ("Platform", "Runs through", "Flags", "Node", "Ready")
_BUILD = ("Platform", "Digest", "Built")
_VERIFY = ("Platform", "Digest", "Checks", "Verified")
_RUN = ("Platform", "Runs through", "Ran", "Seconds")
_MATRIX = ("Platform", "Runs through", "Built", "Verified", "Ran", "Seconds")
_IMAGES = ("Image", *_MATRIX)
_PUSH = ("Platform", "Digest", "Verified", "Ran", "Seconds")


def _body(report: Report) -> tuple[tuple[str, ...], _Rows]:
    match report:
        case SetupReport():
            return _SETUP, [_setup_row(row) for row in report.platforms]
        case BuildResult():
            return _line_body(report.pushed) if report.pushed else _built_body(report)
        case VerifyReport():
            return _VERIFY, [_verdict_row(verdict) for verdict in report.platforms]
        case RunReport():
            rows = [_run_row(result) for result in report.results]
            return _told_apart(_RUN, rows, report.results)
        case MatrixReport() | PushResult():
            return _line_body(report)
        case ImagesReport():
            return _images_body(report)


def _line_body(report: MatrixReport | PushResult) -> tuple[tuple[str, ...], _Rows]:
    """A row for each run of one image, or for each platform that was not run."""
    names = platforms_of(steps_of(report))
    ran = [result for name in names for result in _runs_on(report, name)]
    if isinstance(report, PushResult):
        return _told_apart(_PUSH, [row for name in names for row in _push_rows(report, name)], ran)
    rows = [row for name in names for row in _matrix_rows(report, name, report.setup)]
    return _told_apart(_MATRIX, rows, ran)


def _images_body(report: ImagesReport) -> tuple[tuple[str, ...], _Rows]:
    """A row for each run of each image, or for each platform that was not run."""
    rows: _Rows = []
    ran: list[RunResult | None] = []
    for image in report.images:
        names = platforms_of(image_steps(image))
        for name in names:
            rows += [(_plain(image.name), *row) for row in _matrix_rows(image, name, report.setup)]
            ran += _runs_on(image, name)
        if not names:
            nothing = (Cell("-"), Cell("-"), _failed(image.error), Cell("-"), Cell("-"), Cell("-"))
            rows.append((_plain(image.name), *nothing))
            ran.append(None)
    return _told_apart(_IMAGES, rows, ran)


def run_columns(cpus: Iterable[str], commands: Iterable[str]) -> tuple[str, ...]:
    """The columns that tell runs apart: the CPU if any is not the default, the command if they differ."""
    cpu = ("CPU",) if varies([DEFAULT_CPU, *cpus]) else ()
    return (*cpu, "Command") if varies(commands) else cpu


def _told_apart(
    columns: tuple[str, ...], rows: _Rows, ran: Sequence[RunResult | None]
) -> tuple[tuple[str, ...], _Rows]:
    """The table with those columns before ``Ran``; ``ran`` is the run of each row."""
    results = [result for result in ran if result]
    words = {"CPU": cpu_of, "Command": command_of}
    for name in run_columns(map(cpu_of, results), map(command_of, results)):
        at = columns.index("Ran")
        columns = (*columns[:at], name, *columns[at:])
        cells = [_plain(words[name](result) if result else "") for result in ran]
        rows = [(*row[:at], cell, *row[at:]) for row, cell in zip(rows, cells, strict=True)]
    return columns, rows


def _setup_row(row: PlatformSetup) -> tuple[Cell, ...]:
    ready = _GOOD if row.runs else _failed(row.message or "does not run")
    return (_plain(row.platform), _plain(_handler(row)), _plain(row.flags), _plain(row.node), ready)


def _built_body(result: BuildResult) -> tuple[tuple[str, ...], _Rows]:
    """A row for each platform; which node built it is told where there was more than one."""
    rows = [_built_row(result, row) for row in result.platforms]
    if len({row.node for row in result.platforms}) < 2:  # noqa: PLR2004 - several
        return _BUILD, rows
    first, *others = _BUILD
    nodes = [_plain(f"{row.node}, {'native' if row.native else 'emulated'}") for row in result.platforms]
    return (first, "Node", *others), [(row[0], node, *row[1:]) for row, node in zip(rows, nodes, strict=True)]


def _built_row(result: BuildResult, row: BuiltPlatform) -> tuple[Cell, ...]:
    built = _GOOD if result.ok else _failed("build")
    return _plain(row.platform), _plain(row.digest), built


def _verdict_row(verdict: PlatformVerdict) -> tuple[Cell, ...]:
    held = sum(check.ok for check in verdict.checks)
    checks = f"{held} of {len(verdict.checks)}"
    return _plain(verdict.platform), _plain(_short(verdict.digest)), Cell(checks), _verified(verdict)


def _run_row(result: RunResult) -> tuple[Cell, ...]:
    return _plain(result.platform), _plain(_emulator(result)), ran_cell(result), Cell(_seconds(result))


def _matrix_rows(
    report: MatrixReport | ImageReport, name: str, ready: SetupReport | None
) -> Iterator[tuple[Cell, ...]]:
    """A row for each run of a platform; what holds for all of them stands in the first."""
    setup = _pick(ready.platforms if ready else (), name)
    built = _pick(report.build.platforms if report.build else (), name)
    verdict = _pick(report.verify.platforms if report.verify else (), name)
    once = (_built(report.build, built), _verified(verdict) if verdict else Cell("-"))
    for result in _runs_on(report, name):
        ran = (ran_cell(result), Cell(_seconds(result))) if result else (Cell("-"), Cell("-"))
        yield (_plain(name), _through(setup, result), *once, *ran)
        once = (Cell(""), Cell(""))


def _push_rows(report: PushResult, name: str) -> Iterator[tuple[Cell, ...]]:
    """A row for each run of a platform, as in the matrix."""
    built = _pick(report.platforms, name)
    verdict = _pick(report.verify.platforms if report.verify else (), name)
    once = (_plain(_short(built.digest) if built else ""), _verified(verdict) if verdict else Cell("-"))
    for result in _runs_on(report, name):
        ran = (ran_cell(result), Cell(_seconds(result))) if result else (Cell("-"), Cell("-"))
        yield (_plain(name), *once, *ran)
        once = (Cell(""), Cell(""))


def _runs_on(report: MatrixReport | ImageReport | PushResult, name: str) -> list[RunResult | None]:
    """The runs of a platform, or one that is none."""
    mine = [result for result in report.run.results if result.platform == name] if report.run else []
    return [*mine] or [None]


class _OfPlatform(Protocol):
    @property
    def platform(self) -> str: ...


_Row = TypeVar("_Row", bound=_OfPlatform)


def _pick(rows: Sequence[_Row], platform: str) -> _Row | None:
    """Give a platform's row; of two for one platform, which a bad index can have, a failing one."""
    found = [row for row in rows if row.platform == platform]
    bad = (row for row in found if not getattr(row, "ok", True))
    return next(bad, found[0] if found else None)


def _plain(text: str) -> Cell:
    return Cell(shortened(one_line(text), _LONGEST) or "-")


def _failed(why: str) -> Cell:
    return Cell(shortened(f"FAILED {one_line(why)}", _CELL), Tone.BAD)


def _through(setup: PlatformSetup | None, result: RunResult | None) -> Cell:
    if setup is None:
        return _plain(_emulator(result) if result else "")
    if not setup.runs:
        return _failed(_handler(setup))
    # On an old CPU the host's own programs go through an emulator too.
    return _plain(_emulator(result) if result and result.emulator else _handler(setup))


def _handler(row: PlatformSetup) -> str:
    if row.native:
        return "native"
    name = row.handler or row.interpreter.rpartition("/")[2]
    if name:
        return f"{name} {row.version}"
    return "emulated there" if row.node and row.runs else "not registered"


def _emulator(result: RunResult) -> str:
    if result.emulator is None:
        return "emulated" if result.emulated else "native"
    emulator = result.emulator
    return f"{emulator.path.rpartition('/')[2]} {emulator.version}"


def _built(build: BuildResult | None, row: BuiltPlatform | None) -> Cell:
    if build is None or row is None:
        return Cell("-")
    return Cell(_short(row.digest) or "ok", Tone.GOOD) if build.ok else _failed("build")


def _short(digest: str) -> str:
    return one_line(digest.rpartition(":")[2])[:_HEX]


def _verified(verdict: PlatformVerdict) -> Cell:
    wrong = verdict_message(verdict)
    if wrong:
        return _failed(wrong)
    number = len(verdict.warnings)
    return Cell(f"ok, {counted(number)}", Tone.WARNING) if number else _GOOD


def ran_cell(result: RunResult) -> Cell:
    """How a run ended, with the last thing that it said."""
    said = last_line(result.stdout) or last_line(result.stderr)
    if not result.ok:
        return _failed(f"{result.outcome.value}: {said or result.message}")
    return Cell(shortened(f"ok: {one_line(said)}" if said else "ok", _CELL), Tone.GOOD)


def _seconds(result: RunResult) -> str:
    return f"{result.seconds:.2f}"


def _notes(report: Report) -> list[str]:
    match report:
        case SetupReport():
            return _of_setup(report)
        case BuildResult():
            return _of_build(report) + (_notes(report.pushed) if report.pushed else [])
        case VerifyReport():
            return [f"image: {report.subject} {report.digest}"]
        case RunReport():
            return [f"image: {report.subject}", *_of_run(report)]
        case MatrixReport() | PushResult():
            before = _of_push(report) if isinstance(report, PushResult) else _of_matrix(report)
            return before + (_of_run(report.run) if report.run else [])
        case ImagesReport():
            setup = _of_setup(report.setup) if report.setup else []
            return [
                *setup,
                *(f"{image.name}: {note}" for image in report.images for note in _of_image(image)),
            ]


def _of_matrix(report: MatrixReport) -> list[str]:
    setup = _of_setup(report.setup) if report.setup else []
    pushed = report.build.pushed if report.build else None
    built = _of_build(report.build) if report.build else []
    return [*setup, *built, *(_of_push(pushed) if pushed else [])]


def _of_push(report: PushResult) -> list[str]:
    tags = [f"{tag.ref}: {_moved(tag)}" for tag in report.tags] or ["no tag was named"]
    return [f"pushed {report.digest} in {report.seconds:.1f} seconds", *tags]


def _moved(tag: NamedTag) -> str:
    if not tag.moved:
        return "named it before"
    return f"moved, from {tag.previous}" if tag.previous else "new"


def _of_image(image: ImageReport) -> list[str]:
    built = _of_build(image.build) if image.build else []
    named = [f"named: {', '.join(tag.ref for tag in image.tags)}"] if image.tags else []
    return built + (_of_run(image.run) if image.run else []) + named


def _of_run(report: RunReport) -> list[str]:
    """What ran it, how long each platform took, and what ran on one CPU only."""
    runners = [f"run by: {', '.join(runners_of(report))}"] if report.results else []
    return [*runners, *seconds_of(report.results), *differences(report.results)]


def _of_setup(report: SetupReport) -> list[str]:
    engine, builder = report.engine, report.builder
    why = f": {builder.reason}" if builder.reason else ""
    return [
        f"engine: {engine.kind} {engine.version} at {engine.endpoint}, {engine.store} store"
        if engine.endpoint
        else "engine: none is needed, BuildKit runs elsewhere",
        f"builder: {builder.name} ({builder.driver}){why}",
    ]


def _of_build(result: BuildResult) -> list[str]:
    outputs = ", ".join(_output(output) for output in result.outputs)
    bases = f"bases: {result.bases}"
    return [f"image: {outputs} {result.digest}", f"built in {result.seconds:.1f} seconds, {bases}"]


def _output(output: Output) -> str:
    where = output.dest or output.ref
    return f"{output.type}:{where}" if where else output.type
