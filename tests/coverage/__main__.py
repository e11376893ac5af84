"""Run pytest and print which lines and branches it did not execute: python -m tests.coverage ARGUMENT..."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from coverage import CoverageData

from buildkit_tasks.run.sandbox import supervisor_main
from tests.coverage.supervisor_coverage import ARCS_SUFFIX


def main() -> int:
    """Return pytest's exit status."""
    with tempfile.TemporaryDirectory(prefix="buildkit-coverage-") as folder, _plugin_on_path():
        Path(folder).chmod(0o1777)  # some tests run as another user
        environ = {**os.environ, "COVERAGE_FILE": f"{folder}/data"}
        status = _run_tests(environ)
        if status == pytest.ExitCode.INTERRUPTED:
            return status
        subprocess.run(_coverage("combine", "--quiet"), check=True, env=environ)
        _add_supervisor_arcs(Path(folder))
        subprocess.run(_coverage("report"), check=True, env=environ)
    return status


def _run_tests(environ: dict[str, str]) -> int:
    """Return pytest's exit status. Its Ctrl-C, and its SIGTERM, are not the end of this process."""
    with subprocess.Popen(_coverage("run", "-m", "pytest", *sys.argv[1:]), env=environ) as tests:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: tests.terminate())
        return tests.wait()


def _coverage(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "coverage", *arguments]


@contextlib.contextmanager
def _plugin_on_path() -> Iterator[None]:
    """Let every process of this environment import the plugin, wherever it is started."""
    # Before coverage's own file, which starts the measurement: these files are read in order.
    path = Path(sysconfig.get_path("purelib")) / "a0_buildkit_tasks_coverage.pth"
    path.write_text(f"{Path(__file__).parent}\n", encoding="utf-8")
    try:
        yield
    finally:
        path.unlink()


def _add_supervisor_arcs(folder: Path) -> None:
    arcs = set()
    for path in folder.glob(f"*{ARCS_SUFFIX}"):
        for line in path.read_text(encoding="ascii").splitlines():
            first, _, second = line.partition(" ")
            arcs.add((int(first), int(second)))
    data = CoverageData(str(folder / "data"))
    data.read()
    data.add_arcs({supervisor_main.__file__: arcs})
    data.write()


sys.exit(main())
