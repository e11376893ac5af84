"""The callback for progress messages that services are given."""

from __future__ import annotations

from collections.abc import Callable

__all__ = [
    "Notify",
]


Notify = Callable[[str], None]
