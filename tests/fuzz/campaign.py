"""Targets run each in a process of its own, and what became of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
SEED = 20260101
_SECONDS_PER_RUN = 0.02  # ten times what the slowest target takes; and some to start
_SECONDS_TO_START = 120
_TAIL = 4000
_CASES = re.compile(r"^CASES (\d+) ACCEPTED (\d+) REFUSED (\d+) SLOWEST (\d+) ms$", re.MULTILINE)
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_REPRODUCER = re.compile(r"^REPRODUCER \S+ (b['\"].*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """How a target's run ended; ``runs`` is what the process itself says that it did."""

    target: str
    driver: str
    code: int
    runs: int
    accepted: int
    refused: int
    slowest: int
    seconds: float
    reproducer: str
    output: str

    @property
    def ok(self) -> bool:
        return self.code == 0 and not self.reproducer

    def __str__(self) -> str:
        """A line for a table, or everything about the failing case."""
        line = (
            f"{self.target:<12} {self.runs:>9} cases  {self.accepted:>9} read  {self.refused:>9} refused"
            f"  slowest {self.slowest:>4} ms  {self.seconds:6.1f} s  {self.driver}"
        )
        if self.ok:
            return line
        told = self.output.partition("REPRODUCER")[0][-_TAIL:]
        again = f'nox -s fuzz -- {self.target} --case "$(cat FILE)", where FILE holds:\n{self.reproducer}'
        return f"{line}\n{told}\nstatus {self.code}; to see it again: {again}"


def fuzz(
    target: str, runs: int, *, seed: int = SEED, driver: str = "auto", table: str = "tests.fuzz.targets"
) -> Campaign:
    """Run one target for so many cases. Never raises for what a target does."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        argv = [
            sys.executable, "-m", "tests.fuzz.runner", target, f"--runs={runs}", f"--seed={seed}",
            f"--corpus={corpus}", f"--driver={driver}", f"--table={table}",
        ]  # fmt: skip
        started = time.monotonic()
        code, output = _run(argv, runs * _SECONDS_PER_RUN + _SECONDS_TO_START)
        return _campaign(target, code, output, time.monotonic() - started, _artifact(Path(folder)))


def _run(argv: list[str], timeout: float) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    # A shell in between: Linux counts into a program's most memory what the process had that started it
    # (fs/exec.c, exec_mmap), and a test session may have had more than a target is allowed.
    between = ["sh", "-c", '"$@"; exit $?', "sh"]
    with subprocess.Popen(
        [*between, *argv],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate(timeout=timeout)
        except BaseException as error:  # interrupted or too late: nothing of it may go on
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output += b"\nended after %d s" % timeout
    return child.returncode, output.decode(errors="backslashreplace")


def _campaign(target: str, code: int, output: str, seconds: float, artifact: str) -> Campaign:
    """Both the driver and the judge count the cases: the smaller number is believed."""
    done, cases = _DONE.search(output), _CASES.search(output)
    counts = [int(number) for number in cases.groups()] if cases else [0, 0, 0, 0]
    shown = _REPRODUCER.search(output)
    return Campaign(
        target=target,
        driver="mutations" if "atheris is not here" in output else "atheris",
        code=code,
        runs=min(int(done[1]), counts[0]) if done else 0,
        accepted=counts[1],
        refused=counts[2],
        slowest=counts[3],
        seconds=seconds,
        reproducer=shown[1] if shown else artifact,
        output=output,
    )


def _artifact(folder: Path) -> str:
    """The case that libFuzzer kept when it ended the process itself: a hang, or too much memory."""
    kept = sorted(path for kind in ("timeout", "oom", "crash") for path in folder.glob(f"{kind}-*"))
    return repr(kept[0].read_bytes()) if kept else ""
