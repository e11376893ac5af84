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
from buildkit_tasks.report.run_labels import unique_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "LEFT_OUT",
    "STEPS",
    "Case",
    "Problem",
    "Step",
    "describe_check",
    "describe_problem",
    "first_failure",
    "iter_failures",
    "iter_warnings",
    "limit_problems",
    "list_image_steps",
    "list_platforms",
    "list_runners",
    "list_steps",
    "report_name",
]

STEPS = ("setup", "build", "verify", "run")

LEFT_OUT = "left-out"  # the kind of problem of a platform that a step should have had and has not

_MAX_SHOWN = 20  # problems of one platform that a place of little room shows

_EMPTY_VALUE = "(none)"  # what stands for an empty value where its absence matters

# The image is not to blame: nothing ran it, or what ran it broke.
_ENVIRONMENT_OUTCOMES = (Outcome.NOT_REGISTERED, Outcome.EMULATOR_CRASH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that does not hold, or as a warning holds and is worth a look.

    ``facts`` are named details, in the order to show them. ``environment`` tells a place that
    cannot do the work from an image that is wrong.
    """

    kind: str
    message: str
    facts: tuple[tuple[str, str], ...] = ()
    is_environment_error: bool = False


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
    def passed(self) -> bool:
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


def report_name(report: Report) -> str:
    """Give a report the name of the task or step that it comes from."""
    if isinstance(report, MatrixReport):
        return "arch-matrix"
    if isinstance(report, ImagesReport):
        return "images"
    if isinstance(report, PushResult):
        return "push"
    step_names = {SetupReport: "setup", BuildResult: "build", VerifyReport: "verify", RunReport: "run"}
    return step_names[type(report)]


def list_steps(report: Report) -> tuple[Step, ...]:
    """Give the steps of a report: one, or for a matrix all four and where the line stopped.

    With several images each has steps of its own, which its name begins.
    """
    if isinstance(report, MatrixReport):
        return tuple(_pipeline_steps(report, STEPS, "arch-matrix"))
    if isinstance(report, ImagesReport):
        return tuple(_images_steps(report))
    if isinstance(report, PushResult):
        return tuple(_push_steps(report))
    if isinstance(report, BuildResult) and report.pushed is not None:
        return (_make_step(replace(report, ok=True)), *_push_steps(report.pushed))
    return (_make_step(report),)


def list_image_steps(image: ImageReport) -> tuple[Step, ...]:
    """Give the steps of one of several images, and where it stopped."""
    return tuple(_pipeline_steps(image, STEPS[1:], ""))


def iter_failures(report: Report) -> Iterator[tuple[str, Case]]:
    """Give every case that has a problem, with its step's name."""
    for step in list_steps(report):
        yield from ((step.name, case) for case in step.cases if case.problems)


def iter_warnings(report: Report) -> Iterator[tuple[str, Case]]:
    """Give every case that has a warning, with its step's name."""
    for step in list_steps(report):
        yield from ((step.name, case) for case in step.cases if case.warnings)


def limit_problems(problems: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], int]:
    """Give as many problems as a screen has room for, and how many those leave out.

    An image can have one wrong binary or a thousand.
    """
    return problems[:_MAX_SHOWN], max(0, len(problems) - _MAX_SHOWN)


def list_platforms(steps: Iterable[Step]) -> list[str]:
    """Every platform that any step names, in the order in which they first came up."""
    return list(dict.fromkeys(case.platform for step in steps for case in step.cases if case.platform))


def describe_problem(problem: Problem) -> str:
    """Give the whole message of a problem: what it says, then each fact on a line of its own."""
    facts = (f"{name}: {value}" for name, value in problem.facts if value)
    return "\n".join([problem.message, *facts])


def describe_check(check: Check) -> str:
    """Give what a check says, or what can be said of it when it says nothing."""
    return check.message or f"expected {check.expected or _EMPTY_VALUE}, found {check.actual or _EMPTY_VALUE}"


def first_failure(verdict: PlatformVerdict) -> str:
    """Give what the first failing check of a platform says, and nothing if the platform holds."""
    if not verdict.checks:
        return f"nothing was checked for {verdict.platform}"
    messages = (describe_check(check) for check in verdict.checks if not check.ok)
    return next(messages, "")


def _make_step(report: SetupReport | BuildResult | VerifyReport | RunReport) -> Step:
    match report:
        case SetupReport():
            setup_cases = tuple(_setup_case(row) for row in report.platforms)
            return Step(name="setup", cases=setup_cases or (_no_platforms_case(report.builder.name),))
        case BuildResult():
            return Step(name="build", cases=_build_cases(report), seconds=report.seconds)
        case VerifyReport():
            cases = tuple(_verdict_case(verdict) for verdict in report.platforms)
            return Step(name="verify", cases=cases or (_no_platforms_case(report.subject),))
        case RunReport():
            return _run_step(report)


def _setup_case(row: PlatformSetup) -> Case:
    if row.runs:
        return Case(platform=row.platform)
    is_registered = row.native or row.handler
    problem = Problem(
        kind="does-not-run" if is_registered else "not-registered",
        message=row.message or f"programs for {row.platform} do not run here",
        facts=(
            ("handler", row.handler),
            ("interpreter", row.interpreter),
            ("flags", row.flags),
            ("version", row.version),
            ("node", row.node),
        ),
        is_environment_error=True,
    )
    return Case(platform=row.platform, problems=(problem,))


def _build_cases(result: BuildResult) -> tuple[Case, ...]:
    failure = Problem(kind="build", message="the build failed", facts=(("builder", result.builder),))
    problems = () if result.ok else (failure,)
    platforms = [built.platform for built in result.platforms] or [""]
    return tuple(Case(platform=platform, problems=problems) for platform in platforms)


def _verdict_case(verdict: PlatformVerdict) -> Case:
    problems = tuple(_check_problem(check, verdict.digest) for check in verdict.checks if not check.ok)
    if not verdict.checks:
        problems = (Problem(kind="no-checks", message=first_failure(verdict)),)
    warnings = tuple(_check_problem(check, verdict.digest) for check in verdict.warnings)
    return Case(platform=verdict.platform, problems=problems, warnings=warnings)


def _check_problem(check: Check, digest: str) -> Problem:
    has_values = bool(check.expected or check.actual)
    facts = (
        ("expected", check.expected or _EMPTY_VALUE * has_values),
        ("actual", check.actual or _EMPTY_VALUE * has_values),
        ("path", check.path),
        ("layer", check.layer),
        ("manifest", digest),
    )
    return Problem(kind=check.name, message=describe_check(check), facts=facts)


def _no_platforms_case(subject: str) -> Case:
    problem = Problem(kind="no-platforms", message=f"no platform was looked at in {subject}")
    return Case(platform="", problems=(problem,))


def _run_step(report: RunReport) -> Step:
    labels = unique_labels(report.results)
    cases = tuple(_run_case(result, label) for result, label in zip(report.results, labels, strict=True))
    return Step(
        name="run",
        cases=cases or (_no_platforms_case(report.subject),),
        seconds=sum(case.seconds for case in cases),
        facts=tuple(("runner", runner) for runner in list_runners(report)),
    )


def list_runners(report: RunReport) -> list[str]:
    """Give what ran the image: one runner, unless it changed on the way."""
    return list(dict.fromkeys(result.runner for result in report.results))


def _run_case(result: RunResult, run_label: str) -> Case:
    return Case(
        platform=result.platform,
        label="" if run_label == result.platform else run_label,
        problems=() if result.ok else (_run_problem(result),),
        seconds=result.seconds,
        stdout=result.stdout,
        stderr=result.stderr,
    )


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
            ("emulator", " ".join(part for part in emulator_details if part)),
            ("manifest", result.digest),
        ),
        is_environment_error=result.outcome in _ENVIRONMENT_OUTCOMES,
    )


def _images_steps(report: ImagesReport) -> Iterator[Step]:
    if report.setup:
        yield _make_step(report.setup)
    for image in report.images:
        for step in list_image_steps(image):
            yield replace(step, name=f"{image.name}: {step.name}" if step.name else image.name)
    if report.error or not report.images:
        yield Step(name="images", cases=(_stopped_case(report.error, ["build"]),))


def _push_steps(report: PushResult) -> Iterator[Step]:
    """The proofs that were made, and the push itself: its case says where no tag was named."""
    check_steps = [
        _make_step(check_report) for check_report in (report.verify, report.run) if check_report is not None
    ]
    failed_platforms = {case.platform for step in check_steps for case in step.cases if case.problems}
    yield from (
        _add_missing_cases(step, [built.platform for built in report.platforms], failed_platforms)
        for step in check_steps
    )
    cases = tuple(Case(platform=built.platform) for built in report.platforms)
    if not report.ok:
        facts = (("digest", report.digest),)
        tag_text = "tags were named all the same" if report.tags else "no tag was named"
        problem = Problem(kind="not-named", message=f"{tag_text}: what was pushed is not proved", facts=facts)
        cases = (Case(platform="", problems=(problem,)),)
    yield Step(name="push", cases=cases, seconds=report.seconds)


def _pipeline_steps(
    report: MatrixReport | ImageReport, step_names: Sequence[str], pipeline_name: str
) -> Iterator[Step]:
    """The steps by these names, and under the name of the ``whole`` where the line stopped."""
    step_reports = {name: getattr(report, name) for name in step_names}
    reached_steps = {name: _make_step(value) for name, value in step_reports.items() if value is not None}
    platforms = list_platforms(reached_steps.values())
    failed_platforms = {
        case.platform for step in reached_steps.values() for case in step.cases if case.problems
    }
    for name in step_names:
        yield _add_missing_cases(
            reached_steps.get(name, Step(name=name, cases=())), platforms, failed_platforms
        )
    missing_steps = [name for name in step_names if name not in reached_steps]
    if report.error or missing_steps:
        yield Step(name=pipeline_name, cases=(_stopped_case(report.error, missing_steps),))


def _add_missing_cases(step: Step, platforms: list[str], failed_platforms: set[str]) -> Step:
    """Add a case for each platform that this step has none for.

    A step that was reached and passed over a platform of which nothing else says why has a
    problem there: without one, a matrix that does not hold would look as if it did.
    """
    present = {case.platform for case in step.cases}
    missing_platforms = (name for name in platforms if name not in present)
    has_platforms = bool(present - {""})
    added_cases = (
        _left_out_case(step, name) if has_platforms and name not in failed_platforms else _skipped_case(name)
        for name in missing_platforms
    )
    return replace(step, cases=(*step.cases, *added_cases))


def _skipped_case(platform: str) -> Case:
    return Case(platform=platform, skipped="not reached")


def _left_out_case(step: Step, platform: str) -> Case:
    problem = Problem(kind=LEFT_OUT, message=f"{platform} was left out of {step.name}")
    return Case(platform=platform, problems=(problem,))


def _stopped_case(error: str, missing_steps: list[str]) -> Case:
    stop_text = f"before {missing_steps[0]}" if missing_steps else "after run"
    problem = Problem(
        kind="stopped",
        message=error or "no error was given",
        facts=(("stopped", stop_text),),
        is_environment_error=True,
    )
    return Case(platform="", problems=(problem,))
