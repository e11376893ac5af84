"""Turn any report into steps of rows.

A report that is not ok always has a row with a problem, so that no renderer can leave a failure out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from buildkit_tasks.report.model import (
    BuildResult,
    BuiltPlatform,
    Check,
    ImageReport,
    ImagesReport,
    MatrixReport,
    Outcome,
    PlatformSetup,
    PlatformVerdict,
    PushResult,
    Report,
    RunReport,
    RunResult,
    SetupReport,
    VerifyReport,
)
from buildkit_tasks.report.rows import (
    MAX_CELL_WIDTH,
    OK_CELL,
    Cell,
    Problem,
    Row,
    Severity,
    Step,
    describe_kind,
    failed_cell,
    list_platforms,
    plain_cell,
)
from buildkit_tasks.report.run_labels import command_label, cpu_label, runner_label, unique_labels
from buildkit_tasks.report.text import last_line, pluralise, to_one_line, truncate_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "LEFT_OUT",
    "STEPS",
    "STOPPED",
    "list_runners",
    "list_steps",
    "outcome_cell",
    "short_digest",
]

STEPS = ("setup", "build", "verify", "run")

# Kinds of problems that the steps of a pipeline can have.
LEFT_OUT = "left-out"  # a step has no result for a platform that the other steps have
STOPPED = "stopped"  # the pipeline did not reach its end

_EMPTY_VALUE = "(none)"  # of an expected or actual value, if the other one is given
_DIGEST_DIGITS = 12  # as many digits of a digest as `docker images` shows

# The outcomes for which the image is not to blame: nothing ran it, or the emulator failed.
_ENVIRONMENT_OUTCOMES = (Outcome.NOT_REGISTERED, Outcome.EMULATOR_CRASH)


def list_steps(report: Report) -> tuple[Step, ...]:
    """Return the steps of a report in their order; the last one says where a pipeline stopped.

    ====================  ======================================================================
    report                steps
    ====================  ======================================================================
    of one step           that step
    build that pushed     build, and the steps of the push
    push                  verify and run as far as they were asked for, push
    arch-matrix           setup, build, verify, run; with an error also "arch-matrix"
    several images        setup if asked for; the task's steps of each image, and if it has an
                          error a step without a name; "images" if there was none to begin with
    ====================  ======================================================================
    """
    match report:
        case MatrixReport():
            return tuple(_pipeline_steps(report, STEPS, "arch-matrix"))
        case ImagesReport():
            return tuple(_images_steps(report))
        case PushResult():
            return tuple(_push_steps(report))
        case BuildResult(pushed=PushResult() as pushed):
            # The build itself is done: if it is not ok, its push failed, and has the problem.
            return (_make_step(replace(report, ok=True)), *_push_steps(pushed))
        case _:
            return (_make_step(report),)


def _pipeline_steps(
    report: MatrixReport | ImageReport, names: Sequence[str], stop_name: str
) -> Iterator[Step]:
    reports = {name: getattr(report, name) for name in names}
    steps = [_make_step(value) if value else Step(name=name, rows=()) for name, value in reports.items()]
    yield from _fill_steps(steps, list_platforms(steps))
    missing = [name for name, value in reports.items() if value is None]
    if report.error or missing:
        yield Step(name=stop_name, rows=(_stopped_row(report.error, missing),))


def _images_steps(report: ImagesReport) -> Iterator[Step]:
    if report.setup:
        yield _make_step(report.setup)
    for image in report.images:
        steps = _push_steps(image.push) if image.push else _pipeline_steps(image, image.steps, "")
        yield from (replace(step, image=image.name) for step in steps)
    if report.error or not report.images:
        yield Step(name="images", rows=(_stopped_row(report.error, ["build"]),))


def _push_steps(report: PushResult) -> Iterator[Step]:
    steps = [_make_step(step_report) for step_report in (report.verify, report.run) if step_report]
    yield from _fill_steps(steps, [built.platform for built in report.platforms])
    rows = tuple(Row(platform=built.platform) for built in report.platforms)
    yield Step(name="push", rows=rows if report.ok else (_untagged_row(report),), seconds=report.seconds)


def _fill_steps(steps: Sequence[Step], platforms: Sequence[str]) -> Iterator[Step]:
    """Add a row for each platform that a step has no row for.

    ==========================  =========================================  ===============
    the step has                another step has a problem of the platform  row
    ==========================  =========================================  ===============
    no platform at all          either                                     skipped
    rows of other platforms     yes                                        skipped
    rows of other platforms     no                                         problem LEFT_OUT
    ==========================  =========================================  ===============

    Without the last one, nothing would say why such a matrix is not ok.
    """
    failed = {row.platform for step in steps for row in step.rows if row.problems}
    for step in steps:
        present = set(list_platforms([step]))
        skipped = {name for name in platforms if not present or name in failed}
        added = (
            Row(platform=name, skipped="not reached") if name in skipped else _left_out_row(step, name)
            for name in platforms
            if name not in present
        )
        yield replace(step, rows=(*step.rows, *added))


def _make_step(report: SetupReport | BuildResult | VerifyReport | RunReport) -> Step:
    match report:
        case SetupReport():
            rows = tuple(map(_setup_row, report.platforms))
            return Step(name="setup", rows=rows or (_no_platforms_row(report.builder.name),))
        case BuildResult():
            return Step(name="build", rows=tuple(_build_rows(report)), seconds=report.seconds)
        case VerifyReport():
            rows = tuple(map(_verdict_row, report.platforms))
            return Step(name="verify", rows=rows or (_no_platforms_row(report.subject),))
        case RunReport():
            return _run_step(report)


# Rows of each step


def _setup_row(setup: PlatformSetup) -> Row:
    status = OK_CELL if setup.runs else failed_cell(setup.message or "does not run")
    cells = {
        "Platform": plain_cell(setup.platform),
        "Runs through": plain_cell(_handler_text(setup)),
        "Flags": plain_cell(setup.flags),
        "Node": plain_cell(setup.node),
        "Ready": status,
    }
    return Row(platform=setup.platform, cells=cells, problems=() if setup.runs else (_setup_problem(setup),))


def _handler_text(setup: PlatformSetup) -> str:
    if setup.native:
        return "native"
    name = setup.handler or setup.interpreter.rpartition("/")[2]
    if name:
        return f"{name} {setup.version}"
    return "emulated there" if setup.node and setup.runs else "not registered"


def _setup_problem(setup: PlatformSetup) -> Problem:
    return Problem(
        kind="does-not-run" if setup.native or setup.handler else "not-registered",
        message=setup.message or f"programs for {setup.platform} do not run here",
        facts=(
            ("handler", setup.handler),
            ("interpreter", setup.interpreter),
            ("flags", setup.flags),
            ("version", setup.version),
            ("node", setup.node),
        ),
        is_environment_error=True,
    )


def _build_rows(report: BuildResult) -> Iterator[Row]:
    failure = Problem(kind="build", message="the build failed", facts=(("builder", report.builder),))
    problems = () if report.ok else (failure,)
    for built in report.platforms:
        cells = _build_cells(built, ok=report.ok)
        yield Row(platform=built.platform, digest=built.digest, cells=cells, problems=problems)
    if not report.platforms:
        yield Row(problems=problems)


def _build_cells(built: BuiltPlatform, *, ok: bool) -> dict[str, Cell]:
    return {
        "Platform": plain_cell(built.platform),
        "Node": plain_cell(f"{built.node}, {'native' if built.native else 'emulated'}"),
        "Digest": plain_cell(built.digest),
        "Built": OK_CELL if ok else failed_cell("build"),
    }


def _verdict_row(verdict: PlatformVerdict) -> Row:
    problems = tuple(_check_problem(check, verdict.digest) for check in verdict.checks if not check.ok)
    if not verdict.checks:
        problems = (Problem(kind="no-checks", message=f"nothing was checked for {verdict.platform}"),)
    warnings = tuple(_check_problem(check, verdict.digest) for check in verdict.warnings)
    cells = {
        "Platform": plain_cell(verdict.platform),
        "Digest": plain_cell(short_digest(verdict.digest)),
        "Checks": Cell(f"{sum(check.ok for check in verdict.checks)} of {len(verdict.checks)}"),
        "Verified": _verified_cell(problems, warnings),
    }
    return Row(
        platform=verdict.platform, digest=verdict.digest, cells=cells, problems=problems, warnings=warnings
    )


def _check_problem(check: Check, digest: str) -> Problem:
    expected, actual = check.expected, check.actual
    if expected or actual:
        expected, actual = expected or _EMPTY_VALUE, actual or _EMPTY_VALUE
    default_message = f"expected {expected or _EMPTY_VALUE}, found {actual or _EMPTY_VALUE}"
    return Problem(
        kind=check.name,
        message=check.message or default_message,
        facts=(
            ("expected", expected),
            ("actual", actual),
            ("path", check.path),
            ("layer", check.layer),
            ("manifest", digest),
        ),
        hint=check.hint,
    )


def _verified_cell(problems: Sequence[Problem], warnings: Sequence[Problem]) -> Cell:
    if problems:
        return failed_cell(problems[0].message)
    if warnings:
        return Cell(f"ok, {pluralise(len(warnings), 'warning', 'warnings')}", Severity.WARNING)
    return OK_CELL


def short_digest(digest: str) -> str:
    """Return the first 12 hexadecimal digits of a digest."""
    return to_one_line(digest.rpartition(":")[2])[:_DIGEST_DIGITS]


def _run_step(report: RunReport) -> Step:
    labels = unique_labels(report.results)
    rows = tuple(_run_row(result, label) for result, label in zip(report.results, labels, strict=True))
    return Step(
        name="run",
        rows=rows or (_no_platforms_row(report.subject),),
        seconds=sum(result.seconds for result in report.results),
        facts=tuple(("runner", runner) for runner in list_runners(report)),
    )


def list_runners(report: RunReport) -> list[str]:
    """Return what ran the image: one runner, unless it changed during the run."""
    return list(dict.fromkeys(result.runner for result in report.results))


def _run_row(result: RunResult, label: str) -> Row:
    cells = {
        "Platform": plain_cell(result.platform),
        "Runs through": plain_cell(runner_label(result)),
        "CPU": plain_cell(cpu_label(result)),
        "Command": plain_cell(command_label(result)),
        "Ran": outcome_cell(result),
        "Seconds": Cell(f"{result.seconds:.2f}"),
    }
    return Row(
        platform=result.platform,
        label="" if label == result.platform else label,
        digest=result.digest,
        cells=cells,
        problems=() if result.ok else (_run_problem(result),),
        run=result,
    )


def outcome_cell(result: RunResult) -> Cell:
    """Return how a run ended: with the last line that it printed, or the cause why it failed."""
    output = last_line(result.stdout) or last_line(result.stderr)
    if not result.ok:
        cause = result.message.partition("\n")[0] or output
        return failed_cell(": ".join(filter(None, (describe_kind(result.outcome.value), cause))))
    text = f"ok: {to_one_line(output)}" if output else "ok"
    return Cell(truncate_line(text, MAX_CELL_WIDTH), Severity.GOOD)


def _run_problem(result: RunResult) -> Problem:
    emulator = result.emulator
    emulator_details = (emulator.path, emulator.version, emulator.cpu) if emulator else ()
    return Problem(
        kind=result.outcome.value,
        message=result.message or f"the run on {result.platform} ended as {result.outcome.value}",
        facts=(
            ("command", result.command),
            ("exit code", "" if result.exit_code is None else str(result.exit_code)),
            ("runner", result.runner),
            ("emulator", " ".join(filter(None, emulator_details))),
            ("manifest", result.digest),
        ),
        is_environment_error=result.outcome in _ENVIRONMENT_OUTCOMES,
    )


# Rows of problems that no step reports itself


def _no_platforms_row(subject: str) -> Row:
    return Row(problems=(Problem(kind="no-platforms", message=f"no platform was checked in {subject}"),))


def _left_out_row(step: Step, platform: str) -> Row:
    problem = Problem(kind=LEFT_OUT, message=f"{platform} was left out of {step.name}")
    return Row(platform=platform, problems=(problem,))


def _stopped_row(error: str, missing_steps: Sequence[str]) -> Row:
    problem = Problem(
        kind=STOPPED,
        message=error or "no error was given",
        facts=(("stopped", f"before the end of {missing_steps[0]}" if missing_steps else "after run"),),
        is_environment_error=True,
    )
    return Row(problems=(problem,))


def _untagged_row(report: PushResult) -> Row:
    tags = "tags were set anyway" if report.tags else "no tag was set"
    message = f"{tags}: what was pushed is not verified"
    return Row(problems=(Problem(kind="not-named", message=message, facts=(("digest", report.digest),)),))
