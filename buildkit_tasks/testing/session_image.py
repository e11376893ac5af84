"""Build the image under test, and say why if that fails."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import override_settings
from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError, Interrupted
from buildkit_tasks.pipeline.last_build import best_image_name
from buildkit_tasks.pipeline.multi_image import build_single_image
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.printable import escape_message
from buildkit_tasks.system.command import SubprocessRunner, redact

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.platforms import Platform

__all__ = ["SessionImage", "build_session_image", "create_test_pipeline", "format_skip_reason"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionImage:
    """The name of the image that was built, or why tests are skipped, or why they fail."""

    image: str = ""
    skip_reason: str = ""
    failure: str = ""


def create_test_pipeline(settings: Settings) -> Pipeline:
    """Return a pipeline that reports on standard error, which pytest shows for a test that fails."""
    return Pipeline(settings=settings, commands=SubprocessRunner(), notify=_print_on_stderr)


def build_session_image(settings: Settings, name: str, platforms: Iterable[Platform]) -> SessionImage:
    """Build the named image of the settings, or the only one if ``name`` is empty.

    ``platforms`` replace those of the settings, unless they are empty. Raises :class:`Interrupted`.
    """
    values = {"platforms": [str(platform) for platform in platforms]}
    pipeline = create_test_pipeline(override_settings(settings, values, "pytest"))
    try:
        result = build_single_image(pipeline, name) if name else pipeline.build(pipeline.create_request())
        return SessionImage(image=best_image_name(result))
    except (EngineError, EmulatorError) as error:
        return SessionImage(skip_reason=format_skip_reason(error))
    except Interrupted:
        raise
    except (BuildkitTasksError, OSError) as error:
        return SessionImage(failure=f"{name or 'the image'} could not be built: {error}")


def format_skip_reason(error: EngineError | EmulatorError) -> str:
    """Return the reason for skipping a test, such as ``no engine: MESSAGE``."""
    return f"no {'engine' if isinstance(error, EngineError) else 'emulator'}: {error}"


def _print_on_stderr(message: str) -> None:
    print(escape_message(redact(message)), file=sys.stderr, flush=True)  # noqa: T201 - pytest captures it
