"""The model that every renderer reads: a report is steps, and a step has a row for each platform or run."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.report.model import Outcome
from buildkit_tasks.report.text import to_one_line, truncate_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildkit_tasks.report.model import RunResult

__all__ = [
    "EMPTY_CELL",
    "MAX_CELL_WIDTH",
    "OK_CELL",
    "Cell",
    "Problem",
    "Row",
    "Severity",
    "Step",
    "describe_kind",
    "describe_problem",
    "failed_cell",
    "limit_problems",
    "list_platforms",
    "plain_cell",
]

MAX_CELL_WIDTH = 48  # characters; the full text is below the table or in a report file
_MAX_NAME_WIDTH = 80  # characters of a name: a sha256 digest fits
_MAX_PROBLEMS = 20  # of one row, on a terminal, in a picture, and as annotations


class Severity(enum.StrEnum):
    """What a text means to its reader: renderers choose a colour or an icon by it."""

    PLAIN = "plain"
    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Cell:
    """One line of text in the table."""

    text: str
    severity: Severity = Severity.PLAIN


EMPTY_CELL = Cell("-")
OK_CELL = Cell("ok", Severity.GOOD)


def plain_cell(text: str) -> Cell:
    """Return the text in one line of at most 80 characters, or ``-`` if it is empty."""
    return Cell(truncate_line(to_one_line(text), _MAX_NAME_WIDTH) or EMPTY_CELL.text)


def failed_cell(reason: str) -> Cell:
    """Return ``FAILED`` and the reason, in one line of at most 48 characters."""
    return Cell(truncate_line(f"FAILED {to_one_line(reason)}".rstrip(), MAX_CELL_WIDTH), Severity.BAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A failure or a warning: ``kind`` is the name of its check or outcome, ``facts`` are named details.

    ``hint`` is what to do about it; the notes of a report have it too, once for all platforms.
    ``is_environment_error`` means that an engine, builder or emulator failed, and not the image.
    """

    kind: str
    message: str
    facts: tuple[tuple[str, str], ...] = ()
    hint: str = ""
    is_environment_error: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one step reports for one platform, or for one of its runs.

    The table joins the ``cells`` of a platform's rows, by column, to one line. JUnit has a testcase for
    each row; Markdown, HTML and the terminal a section for each row with ``problems`` or ``warnings``.
    For an image whose arm64 binary is of another machine, the step "verify" has::

        Row(
            platform="linux/arm64",
            digest="sha256:1c9f...",
            cells={
                "Platform": Cell("linux/arm64"),
                "Digest": Cell("1c9f0ab274e1"),
                "Checks": Cell("6 of 7"),
                "Verified": Cell("FAILED /hello is for amd64", Severity.BAD),
            },
            problems=(
                Problem(
                    kind="binary-machine",
                    message="/hello is for amd64",
                    facts=(("expected", "arm64"), ("actual", "amd64"), ("path", "/hello")),
                ),
            ),
        )

    ``platform`` is empty, and there are no cells, for a problem of the whole step. ``label`` is a unique
    name for one of several runs of the platform. ``skipped`` says why a step has no result for the platform.
    """

    platform: str = ""
    label: str = ""
    digest: str = ""
    cells: Mapping[str, Cell] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
    skipped: str = ""
    run: RunResult | None = None

    @property
    def name(self) -> str:
        """Return the row's name, unique in its step."""
        return self.label or self.platform

    @property
    def passed(self) -> bool:
        """Return True if the step has a result without problems for the platform."""
        return not self.problems and not self.skipped

    @property
    def outputs(self) -> dict[str, str]:
        """Return what a run printed, by the stream's name, without empty streams."""
        streams = {"stdout": self.run.stdout, "stderr": self.run.stderr} if self.run else {}
        return {name: text for name, text in streams.items() if text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The rows of a step such as "verify"; ``image`` is empty unless the report is of several images.

    ``seconds`` is the step's wall time, ``facts`` are named details of the whole step.
    """

    name: str
    rows: tuple[Row, ...]
    image: str = ""
    seconds: float = 0.0
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def title(self) -> str:
        """Return the step's name, unique in its report: ``verify``, or ``web: verify``."""
        return ": ".join(part for part in (self.image, self.name) if part)


def list_platforms(steps: Iterable[Step]) -> list[str]:
    """Return every platform that a step names, in order of first appearance."""
    return list(dict.fromkeys(row.platform for step in steps for row in step.rows if row.platform))


def limit_problems(problems: tuple[Problem, ...]) -> tuple[tuple[Problem, ...], int]:
    """Return the first 20 problems, and how many are left out: every binary of an image can be wrong."""
    return problems[:_MAX_PROBLEMS], max(0, len(problems) - _MAX_PROBLEMS)


def describe_kind(kind: str) -> str:
    """Return the kind of a problem beside the word ``FAILED``; empty for one that only says the same."""
    return "" if kind == Outcome.FAILED.value else kind


def describe_problem(problem: Problem) -> str:
    """Return the message, then each fact that is known on a line of its own."""
    facts = (f"{name}: {value}" for name, value in problem.facts if value)
    return "\n".join([problem.message, *facts])
