"""The image that tests are about, built from its settings, or the reason why it could not be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError
from buildkit_tasks.pipeline.images import image_of
from buildkit_tasks.pipeline.multi_image import build_one
from buildkit_tasks.pipeline.pipeline import Line
from buildkit_tasks.system.command import Commands

if TYPE_CHECKING:
    from buildkit_tasks.config.settings import Settings

__all__ = ["Built", "build_tested", "line_of_tests", "reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """The image that was built, or what the build was missing, or what went wrong with it."""

    image: str = ""
    missing: str = ""
    problem: str = ""


def line_of_tests(settings: Settings) -> Line:
    """The services as tests use them; what they tell goes to stderr, which pytest shows with a failure."""
    return Line(settings=settings, run=Commands(echo=sys.stderr), tell=_tell)


def build_tested(settings: Settings, name: str) -> Built:
    """Build the image that the settings call so, or their one if there is no name."""
    line = line_of_tests(settings)
    try:
        return Built(image=image_of(build_one(line, name) if name else line.build(line.request())))
    except (EngineError, EmulatorError) as error:
        return Built(missing=reason(error))
    except BuildkitTasksError as error:
        return Built(problem=f"{name or 'the image'} could not be built: {error}")


def reason(error: EngineError | EmulatorError) -> str:
    """Why a test cannot run here, in the words in which pytest tells it."""
    return f"no {'engine' if isinstance(error, EngineError) else 'emulator'}: {error}"


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - the sink for what a user is told
