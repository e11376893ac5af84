"""The type of callbacks for progress messages."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Notify"]

Notify = Callable[[str], None]
