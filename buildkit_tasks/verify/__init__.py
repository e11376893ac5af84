"""Prove that every platform in an image is what it says.

An image can lie in four places: its index, its configurations, its binaries, and the instruction set
inside them. Each is checked, and whether what it starts would find its loader and its libraries. All
problems are collected; none ends the others' checks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.verify.entrypoint import check_program
    from buildkit_tasks.verify.rootfs import VerifyOptions
    from buildkit_tasks.verify.service import verify

__all__ = ["VerifyOptions", "check_program", "verify"]

_MODULES = {"VerifyOptions": "rootfs", "check_program": "entrypoint", "verify": "service"}


if not TYPE_CHECKING:  # a checker would take any name to be here

    def __getattr__(name: str) -> object:
        """Import the room that is asked for (PEP 562): a run needs one small one."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
