"""Skip or fail a test that needs an engine or an emulator that is not available."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

import pytest

from buildkit_tasks.testing.pytest_options import get_option

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["report_errors", "skip_or_fail", "skip_without_engine"]


@contextlib.contextmanager
def skip_without_engine(config: pytest.Config) -> Iterator[None]:
    """Skip the test with the reason if the block raises :class:`EngineError` or :class:`EmulatorError`.

    Under ``--arch-require-engine`` the test fails instead.
    """
    from buildkit_tasks.errors import EmulatorError, EngineError
    from buildkit_tasks.testing.session_image import format_skip_reason

    try:
        yield
    except (EngineError, EmulatorError) as error:
        skip_or_fail(config, format_skip_reason(error))


@contextlib.contextmanager
def report_errors(config: pytest.Config) -> Iterator[None]:
    """Do as :func:`skip_without_engine`; fail the test with the message alone for any other error of ours.

    Ctrl-C is none: the plugin ends pytest.
    """
    from buildkit_tasks.errors import BuildkitTasksError, Interrupted

    try:
        with skip_without_engine(config):
            yield
    except Interrupted:
        raise
    except BuildkitTasksError as error:
        pytest.fail(str(error), pytrace=False)


def skip_or_fail(config: pytest.Config, reason: str) -> NoReturn:
    """Skip the test with the reason, or fail it under ``--arch-require-engine``."""
    from buildkit_tasks.printable import escape_message

    reason = escape_message(reason)
    if get_option(config, "require-engine"):
        pytest.fail(reason, pytrace=False)
    raise pytest.skip.Exception(reason, _use_item_location=True)  # not the line of this package
