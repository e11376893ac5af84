"""A fuzz target: a reader of bytes, the errors it may raise, and the oracles for its results."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


def _accept_any(data: bytes, result: Any) -> None:
    """Accept every result."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One reader under test.

    ``read`` may raise ``allowed_errors`` and nothing else. The oracles ``check_result`` and
    ``check_error`` get the input and what ``read`` returned or raised; if they raise, the case fails.
    ``tokens`` are the dictionary of the fuzzer, ``mutate`` derives one well-formed input from another.
    ``max_len`` is the reader's own limit, or as much as can be read in a case; ``runs`` is the number of
    cases in the tests, which make fewer of large ones.
    """

    name: str
    read: Callable[[bytes], Any]
    seeds: Callable[[], Iterable[bytes]]
    allowed_errors: tuple[type[Exception], ...] = ()
    check_result: Callable[[bytes, Any], None] = _accept_any
    check_error: Callable[[bytes, Any], None] = _accept_any
    tokens: tuple[bytes, ...] = ()
    mutate: Callable[[bytes, random.Random], bytes] | None = None
    max_len: int = 4096
    runs: int = 50_000
