"""Verify that every platform of an image is what it claims to be.

The claims of an index, the configurations, the binaries and their instruction sets are compared, and whether
the entry point would find its loader and libraries. All problems are collected; none ends the other checks.
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


if not TYPE_CHECKING:  # type checkers would accept every attribute

    def __getattr__(name: str) -> object:
        """Import the module of the requested name (PEP 562): a run needs only a small one."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
