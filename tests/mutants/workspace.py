"""Copies of the checkout, in which mutants are applied and tests are run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.mutants.catalogue import ROOT, Mutant

_FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/.+?)(?: - .*)?$", re.MULTILINE)


class TestRun(NamedTuple):
    """A run of pytest: the first test that failed (empty if all passed), its output, the time in seconds."""

    failed: str
    output: str
    seconds: float


class Workspace:
    """A copy of the tracked files of the checkout, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        # pytest's own choice is shared with other runs on this machine, whose old directories it deletes.
        self._temporary = folder / "tmp"
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        for name in filter(None, listed.stdout.split("\0")):
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).exists():
                shutil.copy2(ROOT / name, target, follow_symlinks=False)

    @contextlib.contextmanager
    def apply(self, mutant: Mutant) -> Iterator[None]:
        """Change the file of this mutant for the duration of the context."""
        file = self.folder / mutant.file
        file.write_text(mutant.changed())
        try:
            yield
        finally:
            shutil.copy2(ROOT / mutant.file, file)

    def test(self, tests: tuple[str, ...], timeout: float, *, compiled: bool) -> TestRun:
        """Run pytest until a test fails.

        ``compiled`` writes bytecode. A mutant must not: Python finds bytecode out of date by the size of the
        source and its modification time in whole seconds, so the next mutant could run with it.
        """
        options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={self._temporary}"]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        # Processes that a test starts elsewhere import the mutated package as well.
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        environment["PYTHONDONTWRITEBYTECODE"] = "" if compiled else "1"
        start = time.monotonic()
        process = subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            output = process.communicate(timeout=timeout)[0]
            failed = _first_failure(output, process.returncode) if process.returncode else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, failed = process.communicate()[0], "timeout"
        return TestRun(failed, output, time.monotonic() - start)


def _first_failure(output: str, status: int) -> str:
    match = _FAILED.search(output)
    return match[1] if match else f"exit status {status} of pytest"
