"""Skip a test, or fail it, where no engine or emulator can be had."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "skip_or_fail",
    "skip_without_engine",
]


@contextlib.contextmanager
def skip_without_engine(config: pytest.Config) -> Iterator[None]:
    """Skip the test with the reason if no engine or emulator can be had for what is done here.

    Under ``--require-engine`` it fails instead.
    """
    from buildkit_tasks.errors import EmulatorError, EngineError
    from buildkit_tasks.testing.session_image import format_skip_reason

    try:
        yield
    except (EngineError, EmulatorError) as error:
        skip_or_fail(config, format_skip_reason(error))


def skip_or_fail(config: pytest.Config, reason: str) -> NoReturn:
    """End the test with the reason: skipped, or failed under ``--require-engine``."""
    if config.getoption("--require-engine"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
