"""Any report as one small table of words, which the terminal and Markdown draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from buildkit_tasks.report.cases import STEPS, Case, Step, check_message, name_of, steps_of
from buildkit_tasks.report.text import last_line, one_line, shortened
from buildkit_tasks.results import (
    BuildResult,
    BuiltPlatform,
    MatrixReport,
    Output,
    PlatformSetup,
    PlatformVerdict,
    Report,
    RunReport,
    RunResult,
    SetupReport,
    VerifyReport,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Cell", "Table", "table_of"]

_CELL = 48  # characters; the whole of what is cut here stands below the table or in a report file
_SENTENCE = 200  # likewise
_LONGEST = 80  # characters of a name: a whole sha256 digest fits
_HEX = 12  # as many digits of a digest as `docker images` shows


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's words, in one line, and whether they tell of something good, bad or neither."""

    text: str
    ok: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Column heads, a row per platform, notes about the whole, and one closing line."""

    name: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]
    closing: str
    ok: bool


def table_of(report: Report) -> Table:
    """Make the table of any report."""
    columns, rows = _body(report)
    return Table(
        name=name_of(report),
        columns=columns,
        rows=tuple(rows),
        notes=tuple(one_line(note) for note in _notes(report)),
        closing=one_line(_closing(report)),
        ok=report.ok,
    )


_Rows = list[tuple[Cell, ...]]

_SETUP = ("Platform", "Runs through", "Flags", "Node", "Ready")
_BUILD = ("Platform", "Digest", "Built")
_VERIFY = ("Platform", "Digest", "Checks", "Verified")
_RUN = ("Platform", "Runs through", "Ran", "Seconds")
_MATRIX = ("Platform", "Runs through", "Built", "Verified", "Ran", "Seconds")


def _body(report: Report) -> tuple[tuple[str, ...], _Rows]:
    match report:
        case SetupReport():
            return _SETUP, [_setup_row(row) for row in report.platforms]
        case BuildResult():
            return _BUILD, [_built_row(report, row) for row in report.platforms]
        case VerifyReport():
            return _VERIFY, [_verdict_row(verdict) for verdict in report.platforms]
        case RunReport():
            return _RUN, [_run_row(result) for result in report.results]
        case MatrixReport():
            return _MATRIX, [_matrix_row(report, name) for name in _names(steps_of(report))]


def _setup_row(row: PlatformSetup) -> tuple[Cell, ...]:
    ready = Cell("ok", ok=True) if row.runs else _failed(row.message or "does not run")
    return (_plain(row.platform), _plain(_handler(row)), _plain(row.flags), _plain(row.node), ready)


def _built_row(result: BuildResult, row: BuiltPlatform) -> tuple[Cell, ...]:
    built = Cell("ok", ok=True) if result.ok else _failed("build")
    return _plain(row.platform), _plain(row.digest), built


def _verdict_row(verdict: PlatformVerdict) -> tuple[Cell, ...]:
    held = sum(check.ok for check in verdict.checks)
    checks = f"{held} of {len(verdict.checks)}"
    return _plain(verdict.platform), _plain(_short(verdict.digest)), Cell(checks), _verified(verdict)


def _run_row(result: RunResult) -> tuple[Cell, ...]:
    return _plain(result.platform), _plain(_emulator(result)), _ran(result), Cell(_seconds(result))


def _matrix_row(report: MatrixReport, name: str) -> tuple[Cell, ...]:
    setup = _pick(report.setup.platforms if report.setup else (), name)
    built = _pick(report.build.platforms if report.build else (), name)
    verdict = _pick(report.verify.platforms if report.verify else (), name)
    result = _pick(report.run.results if report.run else (), name)
    return (
        _plain(name),
        _through(setup, result),
        _built(report.build, built),
        _verified(verdict) if verdict else Cell("-"),
        _ran(result) if result else Cell("-"),
        Cell(_seconds(result)) if result else Cell("-"),
    )


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
    return Cell(shortened(f"FAILED {one_line(why)}", _CELL), ok=False)


def _through(setup: PlatformSetup | None, result: RunResult | None) -> Cell:
    if setup is None:
        return _plain(_emulator(result) if result else "")
    return _plain(_handler(setup)) if setup.runs else _failed(_handler(setup))


def _handler(row: PlatformSetup) -> str:
    if row.native:
        return "native"
    name = row.handler or row.interpreter.rpartition("/")[2]
    return f"{name} {row.version}" if name else "not registered"


def _emulator(result: RunResult) -> str:
    if result.emulator is None:
        return "emulated" if result.emulated else "native"
    emulator = result.emulator
    return f"{emulator.path.rpartition('/')[2]} {emulator.version}"


def _built(build: BuildResult | None, row: BuiltPlatform | None) -> Cell:
    if build is None or row is None:
        return Cell("-")
    return Cell(_short(row.digest) or "ok", ok=True) if build.ok else _failed("build")


def _short(digest: str) -> str:
    return one_line(digest.rpartition(":")[2])[:_HEX]


def _verified(verdict: PlatformVerdict) -> Cell:
    bad = [check for check in verdict.checks if not check.ok]
    return _failed(check_message(bad[0])) if bad else Cell("ok", ok=True)


def _ran(result: RunResult) -> Cell:
    said = last_line(result.stdout) or last_line(result.stderr)
    if not result.ok:
        return _failed(f"{result.outcome.value}: {said or result.message}")
    return Cell(shortened(f"ok: {one_line(said)}" if said else "ok", _CELL), ok=True)


def _seconds(result: RunResult) -> str:
    return f"{result.seconds:.2f}"


def _notes(report: Report) -> list[str]:
    match report:
        case SetupReport():
            return _of_setup(report)
        case BuildResult():
            return _of_build(report)
        case VerifyReport():
            return [f"image: {report.subject} {report.digest}"]
        case RunReport():
            return [f"image: {report.subject}"]
        case MatrixReport():
            setup = _of_setup(report.setup) if report.setup else []
            return setup + (_of_build(report.build) if report.build else [])


def _of_setup(report: SetupReport) -> list[str]:
    engine, builder = report.engine, report.builder
    why = f": {builder.reason}" if builder.reason else ""
    return [
        f"engine: {engine.kind} {engine.version} at {engine.endpoint}, {engine.store} store",
        f"builder: {builder.name} ({builder.driver}){why}",
    ]


def _of_build(result: BuildResult) -> list[str]:
    outputs = ", ".join(_output(output) for output in result.outputs)
    bases = f"bases: {result.bases}"
    return [f"image: {outputs} {result.digest}", f"built in {result.seconds:.1f} seconds, {bases}"]


def _output(output: Output) -> str:
    where = output.dest or output.ref
    return f"{output.type}:{where}" if where else output.type


_DONE = {"setup": "are ready", "build": "built", "verify": "verified", "run": "ran as expected"}


def _closing(report: Report) -> str:
    steps = steps_of(report)
    names = _names(steps)
    holding = [name for name in names if all(case.held for case in _of(steps, name))]
    matrix = isinstance(report, MatrixReport)
    done = "hold" if matrix else _DONE[name_of(report)]
    counted = f"{len(holding)} of {len(names)} platforms {done}"
    if report.ok and holding == names:
        return f"{counted}: built, verified and run." if matrix else f"{counted}."
    return f"{counted}.{_gaps(steps, names)}{_stop(steps)}"


def _names(steps: Iterable[Step]) -> list[str]:
    """Every platform, in the order of the first step that names it."""
    return list(dict.fromkeys(case.platform for step in steps for case in step.cases if case.platform))


def _of(steps: Iterable[Step], platform: str) -> list[Case]:
    return [case for step in steps for case in step.cases if case.platform == platform]


def _gaps(steps: Sequence[Step], names: list[str]) -> str:
    """Say which platforms failed, where they first did, and which were left out of a step."""
    texts = [_first_gap(steps, name) for name in ["", *names]]
    found = ", ".join(text for text in texts if text)
    return f" FAILED: {found}." if found else ""


def _first_gap(steps: Sequence[Step], platform: str) -> str:
    for step in steps:
        if step.name not in STEPS:
            continue
        mine = [case for case in step.cases if case.platform == platform]
        if any(case.problems for case in mine):
            return f"{platform} ({step.name})" if platform else step.name
        if any(case.skipped for case in mine) and _was_reached(step):
            return f"{platform} (left out of {step.name})"
    return ""


def _was_reached(step: Step) -> bool:
    return any(not case.skipped for case in step.cases)


def _stop(steps: Sequence[Step]) -> str:
    """Say where the line stopped, with the first line of its error; the rest stands below."""
    stops = [case.problems[0] for step in steps if step.name not in STEPS for case in step.cases]
    if not stops:
        return ""
    first = shortened(stops[0].message.partition("\n")[0], _SENTENCE)
    return f" Stopped {dict(stops[0].facts)['stopped']}: {first}"
