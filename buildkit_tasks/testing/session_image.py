"""The image that tests are about, built from its settings, or the reason why it could not be."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError
from buildkit_tasks.pipeline.images import best_image_name
from buildkit_tasks.pipeline.multi_image import build_single_image
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.system.command import SubprocessRunner

if TYPE_CHECKING:
    from buildkit_tasks.config.settings import Settings

__all__ = ["SessionImage", "build_session_image", "create_test_pipeline", "format_skip_reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionImage:
    """The image that was built, or what the build was missing, or what went wrong with it."""

    image: str = ""
    skip_reason: str = ""
    failure: str = ""


def create_test_pipeline(settings: Settings) -> Pipeline:
    """The services as tests use them; what they tell goes to stderr, which pytest shows with a failure."""
    return Pipeline(
        settings=settings, commands=SubprocessRunner(dry_run_output=sys.stderr), notify=_notify_stderr
    )


def build_session_image(settings: Settings, name: str) -> SessionImage:
    """Build the image that the settings call so, or their one if there is no name."""
    pipeline = create_test_pipeline(settings)
    try:
        return SessionImage(
            image=best_image_name(
                build_single_image(pipeline, name) if name else pipeline.build(pipeline.create_request())
            )
        )
    except (EngineError, EmulatorError) as error:
        return SessionImage(skip_reason=format_skip_reason(error))
    except BuildkitTasksError as error:
        return SessionImage(failure=f"{name or 'the image'} could not be built: {error}")


def format_skip_reason(error: EngineError | EmulatorError) -> str:
    """Why a test cannot run here, in the words in which pytest tells it."""
    return f"no {'engine' if isinstance(error, EngineError) else 'emulator'}: {error}"


def _notify_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - the sink for what a user is told
