"""Any report as steps, cases and problems: what every renderer shows in its own way.

A step (setup, build, verify, run) has one case per platform, and a run one for each CPU and command
of a platform. A report that does not hold always
has a case with a problem, so that no renderer can show a failure as nothing at all. A warning is
told like a problem, and makes nothing fail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from buildkit_tasks.report.model import (
    BuildResult,
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
from buildkit_tasks.report.run_labels import names_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "LEFT_OUT",
    "STEPS",
    "Case",
    "Problem",
    "Step",
    "check_message",
    "describe",
    "failing",
    "image_steps",
    "name_of",
    "platforms_of",
    "runners_of",
    "shown",
    "steps_of",
    "verdict_message",
    "warned",
]

STEPS = ("setup", "build", "verify", "run")

LEFT_OUT = "left-out"  # the kind of problem of a platform that a step should have had and has not

_MOST = 20  # problems of one platform that a place of little room shows

_NONE = "(none)"  # what stands for an empty value where its absence matters

# The image is not to blame: nothing ran it, or what ran it broke.
_ENVIRONMENT = (Outcome.NOT_REGISTERED, Outcome.EMULATOR_CRASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that does not hold, or as a warning holds and is worth a look.

    ``facts`` are named details, in the order to show them. ``environment`` tells a place that
    cannot do the work from an image that is wrong.
    """

    kind: str
    message: str
    facts: tuple[tuple[str, str], ...] = ()
    environment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One platform in one step; ``platform`` is empty where a problem is about the whole step.

    ``label`` tells it from the other cases of its platform, and is empty where there is none.
    """

    platform: str
    label: str = ""
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    seconds: float = 0.0
    stdout: str = ""
    stderr: str = ""
    skipped: str = ""

    @property
    def name(self) -> str:
        """What to call it in its step."""
        return self.label or self.platform

    @property
    def held(self) -> bool:
        """Whether this was reached and nothing was wrong."""
        return not self.problems and not self.skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The cases of one step; ``seconds`` is what the step says it took.

    ``facts`` are named details of the step as a whole.
    """

    name: str
    cases: tuple[Case, ...]
    seconds: float = 0.0
    facts: tuple[tuple[str, str], ...] = ()


def name_of(report: Report) -> str:
    """Give a report the name of the task or step that it comes from."""
    if isinstance(report, MatrixReport):
        return "arch-matrix"
    if isinstance(report, ImagesReport):
        return "images"
    if isinstance(report, PushResult):
        return "push"
    names = {SetupReport: "setup", BuildResult: "build", VerifyReport: "verify", RunReport: "run"}
    return names[type(report)]


def steps_of(report: Report) -> tuple[Step, ...]:
    """Give the steps of a report: one, or for a matrix all four and where the line stopped.

    With several images each has steps of its own, which its name begins.
    """
    if isinstance(report, MatrixReport):
        return tuple(_line(report, STEPS, "arch-matrix"))
    if isinstance(report, ImagesReport):
        return tuple(_images(report))
    if isinstance(report, PushResult):
        return tuple(_push(report))
    if isinstance(report, BuildResult) and report.pushed is not None:
        return (_step(replace(report, ok=True)), *_push(report.pushed))
    return (_step(report),)


def image_steps(image: ImageReport) -> tuple[Step, ...]:
    """Give the steps of one of several images, and where it stopped."""
    return tuple(_line(image, STEPS[1:], ""))


def failing(report: Report) -> Iterator[tuple[str, Case]]:
    """Give every case that has a problem, with its step's name."""
    for step in steps_of(report):
        yield from ((step.name, case) for case in step.cases if case.problems)


def warned(report: Report) -> Iterator[tuple[str, Case]]:
    """Give every case that has a warning, with its step's name."""
    for step in steps_of(report):
        yield from ((step.name, case) for case in step.cases if case.warnings)


def shown(problems: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], int]:
    """Give as many problems as a screen has room for, and how many those leave out.

    An image can have one wrong binary or a thousand.
    """
    return problems[:_MOST], max(0, len(problems) - _MOST)


def platforms_of(steps: Iterable[Step]) -> list[str]:
    """Every platform that any step names, in the order in which they first came up."""
    return list(dict.fromkeys(case.platform for step in steps for case in step.cases if case.platform))


def describe(problem: Problem) -> str:
    """Give the whole message of a problem: what it says, then each fact on a line of its own."""
    facts = (f"{name}: {value}" for name, value in problem.facts if value)
    return "\n".join([problem.message, *facts])


def check_message(check: Check) -> str:
    """Give what a check says, or what can be said of it when it says nothing."""
    return check.message or f"expected {check.expected or _NONE}, found {check.actual or _NONE}"


def verdict_message(verdict: PlatformVerdict) -> str:
    """Give what the first failing check of a platform says, and nothing if the platform holds."""
    if not verdict.checks:
        return f"nothing was checked for {verdict.platform}"
    bad = (check_message(check) for check in verdict.checks if not check.ok)
    return next(bad, "")


def _step(report: SetupReport | BuildResult | VerifyReport | RunReport) -> Step:
    match report:
        case SetupReport():
            ready = tuple(_setup(row) for row in report.platforms)
            return Step(name="setup", cases=ready or (_nothing_in(report.builder.name),))
        case BuildResult():
            return Step(name="build", cases=_build(report), seconds=report.seconds)
        case VerifyReport():
            cases = tuple(_verdict(verdict) for verdict in report.platforms)
            return Step(name="verify", cases=cases or (_nothing_in(report.subject),))
        case RunReport():
            return _runs(report)


def _setup(row: PlatformSetup) -> Case:
    if row.runs:
        return Case(platform=row.platform)
    registered = row.native or row.handler
    problem = Problem(
        kind="does-not-run" if registered else "not-registered",
        message=row.message or f"programs for {row.platform} do not run here",
        facts=(
            ("handler", row.handler),
            ("interpreter", row.interpreter),
            ("flags", row.flags),
            ("version", row.version),
            ("node", row.node),
        ),
        environment=True,
    )
    return Case(platform=row.platform, problems=(problem,))


def _build(result: BuildResult) -> tuple[Case, ...]:
    failed = Problem(kind="build", message="the build failed", facts=(("builder", result.builder),))
    problems = () if result.ok else (failed,)
    platforms = [built.platform for built in result.platforms] or [""]
    return tuple(Case(platform=platform, problems=problems) for platform in platforms)


def _verdict(verdict: PlatformVerdict) -> Case:
    bad = tuple(_of_check(check, verdict.digest) for check in verdict.checks if not check.ok)
    if not verdict.checks:
        bad = (Problem(kind="no-checks", message=verdict_message(verdict)),)
    warnings = tuple(_of_check(check, verdict.digest) for check in verdict.warnings)
    return Case(platform=verdict.platform, problems=bad, warnings=warnings)


def _of_check(check: Check, digest: str) -> Problem:
    compared = bool(check.expected or check.actual)
    facts = (
        ("expected", check.expected or _NONE * compared),
        ("actual", check.actual or _NONE * compared),
        ("path", check.path),
        ("layer", check.layer),
        ("manifest", digest),
    )
    return Problem(kind=check.name, message=check_message(check), facts=facts)


def _nothing_in(subject: str) -> Case:
    problem = Problem(kind="no-platforms", message=f"no platform was looked at in {subject}")
    return Case(platform="", problems=(problem,))


def _runs(report: RunReport) -> Step:
    names = names_of(report.results)
    cases = tuple(_run(result, name) for result, name in zip(report.results, names, strict=True))
    return Step(
        name="run",
        cases=cases or (_nothing_in(report.subject),),
        seconds=sum(case.seconds for case in cases),
        facts=tuple(("runner", runner) for runner in runners_of(report)),
    )


def runners_of(report: RunReport) -> list[str]:
    """Give what ran the image: one runner, unless it changed on the way."""
    return list(dict.fromkeys(result.runner for result in report.results))


def _run(result: RunResult, name: str) -> Case:
    return Case(
        platform=result.platform,
        label="" if name == result.platform else name,
        problems=() if result.ok else (_of_run(result),),
        seconds=result.seconds,
        stdout=result.stdout,
        stderr=result.stderr,
    )


def _of_run(result: RunResult) -> Problem:
    emulator = result.emulator
    said = (emulator.path, emulator.version, emulator.cpu) if emulator else ()
    return Problem(
        kind=result.outcome.value,
        message=result.message or f"the run on {result.platform} ended as {result.outcome.value}",
        facts=(
            ("command", result.command),
            ("exit code", "" if result.exit_code is None else str(result.exit_code)),
            ("runner", result.runner),
            ("emulator", " ".join(part for part in said if part)),
            ("manifest", result.digest),
        ),
        environment=result.outcome in _ENVIRONMENT,
    )


def _images(report: ImagesReport) -> Iterator[Step]:
    if report.setup:
        yield _step(report.setup)
    for image in report.images:
        for step in image_steps(image):
            yield replace(step, name=f"{image.name}: {step.name}" if step.name else image.name)
    if report.error or not report.images:
        yield Step(name="images", cases=(_stopped(report.error, ["build"]),))


def _push(report: PushResult) -> Iterator[Step]:
    """The proofs that were made, and the push itself: its case says where no tag was named."""
    proofs = [_step(proof) for proof in (report.verify, report.run) if proof is not None]
    bad = {case.platform for step in proofs for case in step.cases if case.problems}
    yield from (_filled(step, [built.platform for built in report.platforms], bad) for step in proofs)
    pushed = tuple(Case(platform=built.platform) for built in report.platforms)
    if not report.ok:
        facts = (("digest", report.digest),)
        named = "tags were named all the same" if report.tags else "no tag was named"
        problem = Problem(kind="not-named", message=f"{named}: what was pushed is not proved", facts=facts)
        pushed = (Case(platform="", problems=(problem,)),)
    yield Step(name="push", cases=pushed, seconds=report.seconds)


def _line(report: MatrixReport | ImageReport, names: Sequence[str], whole: str) -> Iterator[Step]:
    """The steps by these names, and under the name of the ``whole`` where the line stopped."""
    values = {name: getattr(report, name) for name in names}
    reached = {name: _step(value) for name, value in values.items() if value is not None}
    platforms = platforms_of(reached.values())
    bad = {case.platform for step in reached.values() for case in step.cases if case.problems}
    for name in names:
        yield _filled(reached.get(name, Step(name=name, cases=())), platforms, bad)
    missing = [name for name in names if name not in reached]
    if report.error or missing:
        yield Step(name=whole, cases=(_stopped(report.error, missing),))


def _filled(step: Step, platforms: list[str], bad: set[str]) -> Step:
    """Add a case for each platform that this step has none for.

    A step that was reached and passed over a platform of which nothing else says why has a
    problem there: without one, a matrix that does not hold would look as if it did.
    """
    known = {case.platform for case in step.cases}
    absent = (name for name in platforms if name not in known)
    passed_over = bool(known - {""})
    added = (_left_out(step, name) if passed_over and name not in bad else _skipped(name) for name in absent)
    return replace(step, cases=(*step.cases, *added))


def _skipped(platform: str) -> Case:
    return Case(platform=platform, skipped="not reached")


def _left_out(step: Step, platform: str) -> Case:
    problem = Problem(kind=LEFT_OUT, message=f"{platform} was left out of {step.name}")
    return Case(platform=platform, problems=(problem,))


def _stopped(error: str, missing: list[str]) -> Case:
    where = f"before {missing[0]}" if missing else "after run"
    problem = Problem(
        kind="stopped",
        message=error or "no error was given",
        facts=(("stopped", where),),
        environment=True,
    )
    return Case(platform="", problems=(problem,))
