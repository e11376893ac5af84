"""What a fuzz target is: a reader of bytes, what it may raise, and what must hold of what it gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


def _nothing(data: bytes, given: Any) -> None:
    """No opinion on this."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader under test.

    ``read`` may raise ``allowed`` and nothing else. ``check`` sees what it gave, ``refused`` the error;
    neither may raise anything: there live the oracles. ``tokens`` are words of the
    format, ``change`` makes one well-formed input of another.
    """

    name: str
    read: Callable[[bytes], Any]
    seeds: Callable[[], Iterable[bytes]]
    allowed: tuple[type[Exception], ...] = ()
    check: Callable[[bytes, Any], None] = _nothing
    refused: Callable[[bytes, Any], None] = _nothing
    tokens: tuple[bytes, ...] = ()
    change: Callable[[bytes, random.Random], bytes] | None = None
    max_len: int = 4096
