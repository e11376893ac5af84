"""Run code of a test as an ordinary user."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import NoReturn

import pytest

__all__ = ["NOBODY", "call_as_nobody", "needs_root"]

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def call_as_nobody(function: Callable[[], str]) -> str:
    """Return the result of a function that a child process calls as the user ``nobody``, without groups.

    The child may be unable to read Python's library: what the function uses must be imported already.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _run_child(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        output = stream.read().decode()
    _, status = os.waitpid(child, 0)
    assert status == 0, output
    return output


def _run_child(function: Callable[[], str], writer: int) -> NoReturn:
    status = 1
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        os.write(writer, function().encode())
        status = 0
    except BaseException:  # noqa: BLE001 - the parent shows it
        os.write(writer, traceback.format_exc().encode())
    finally:
        os._exit(status)
