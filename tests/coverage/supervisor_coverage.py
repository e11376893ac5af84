"""A coverage.py plugin that measures the sandbox's supervisor too; loaded in each measured process.

The supervisor is started isolated (``-I -S``, with an environment of its own), and it forks processes that
enter namespaces and end without clean-up. So it is started through a tracer, which writes each new pair of
lines to a file that was opened before.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coverage import CoveragePlugin
from coverage.plugin_support import Plugins

_TRACER = Path(__file__).with_name("trace_supervisor.py")
_SUPERVISOR = "/sandbox/supervisor_main.py"
ARCS_SUFFIX = ".arcs"


def coverage_init(registry: Plugins, options: dict[str, str]) -> None:  # noqa: ARG001 - as called
    """Start supervisors through the tracer. Called by coverage.py, whose plugins have to register one."""
    registry.add_configurer(CoveragePlugin())
    folder = str(Path(os.environ["COVERAGE_FILE"]).parent)
    start = subprocess.Popen.__init__

    def start_traced(self: subprocess.Popen[Any], args: Any, *more: Any, **keywords: Any) -> None:
        start(self, _traced(args, folder), *more, **keywords)

    subprocess.Popen.__init__ = start_traced  # type: ignore[method-assign]


def _traced(args: Any, folder: str) -> Any:
    """Return the command line, with the tracer before a supervisor."""
    if not isinstance(args, Sequence) or isinstance(args, str):
        return args
    index = next((i for i, each in enumerate(args) if os.fspath(each).endswith(_SUPERVISOR)), None)
    if index is None:
        return args
    fd, path = tempfile.mkstemp(ARCS_SUFFIX, dir=folder)
    os.close(fd)
    return [*args[:index], str(_TRACER), path, *args[index:]]
