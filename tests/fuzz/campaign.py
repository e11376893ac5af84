"""Run a fuzz target in its own process and parse the result."""

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
_SECONDS_PER_RUN = 0.02  # ten times what the slowest target takes
_SECONDS_TO_START = 120
_MAX_OUTPUT = 4000
_CASES = re.compile(r"^CASES (\d+) ACCEPTED (\d+) REFUSED (\d+) SLOWEST (\d+) ms$", re.MULTILINE)
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)
_REPRODUCER = re.compile(r"^REPRODUCER \S+ (b['\"].*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """The result of fuzzing one target; ``runs`` is the number that the process reported."""

    target: str
    driver: str
    status: int
    runs: int
    accepted: int
    refused: int
    slowest_ms: int
    seconds: float
    reproducer: str
    output: str

    @property
    def ok(self) -> bool:
        return self.status == 0 and not self.reproducer

    def __str__(self) -> str:
        """Return a row of a table; after a failure also the output and the failing case."""
        line = (
            f"{self.target:<12} {self.runs:>9} cases  {self.accepted:>9} read  {self.refused:>9} refused"
            f"  slowest {self.slowest_ms:>4} ms  {self.seconds:6.1f} s  {self.driver}"
        )
        if self.ok:
            return line
        output = self.output.partition("REPRODUCER")[0][-_MAX_OUTPUT:]
        command = f'nox -s fuzz -- {self.target} --case "$(cat FILE)"'
        return (
            f"{line}\n{output}\nstatus {self.status}; try: {command}, with this in FILE:\n{self.reproducer}"
        )


def fuzz_target(
    target: str, runs: int, *, seed: int = SEED, driver: str = "auto", table: str = "tests.fuzz.targets"
) -> Campaign:
    """Run ``runs`` cases of one target; a failing target is reported in the result."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        corpus = Path(directory, "corpus")
        corpus.mkdir()
        argv = [
            sys.executable, "-m", "tests.fuzz.runner", target, f"--runs={runs}", f"--seed={seed}",
            f"--corpus={corpus}", f"--driver={driver}", f"--table={table}",
        ]  # fmt: skip
        started = time.monotonic()
        status, output = _run_process(argv, runs * _SECONDS_PER_RUN + _SECONDS_TO_START, directory)
        seconds = time.monotonic() - started
        return _parse_output(target, status, output, seconds, _read_artifact(Path(directory)))


def _run_process(argv: list[str], timeout: float, directory: str) -> tuple[int, str]:
    # libFuzzer ends the process without a clean-up, so temporary files go where they are removed here.
    environment = {**os.environ, "TMPDIR": directory, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    # Start through a shell: a program's peak RSS starts at that of the process that called exec
    # (fs/exec.c, exec_mmap), and a test session may have used more than a target may.
    shell = ["sh", "-c", '"$@"; exit $?', "sh"]
    with subprocess.Popen(
        [*shell, *argv],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as child:
        try:
            output, _ = child.communicate(timeout=timeout)
        except BaseException as error:  # interrupted or timed out: end the process group
            os.killpg(child.pid, signal.SIGKILL)
            output, _ = child.communicate()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            output += b"\ntimed out after %d s" % timeout
    return child.returncode, output.decode(errors="backslashreplace")


def _parse_output(target: str, status: int, output: str, seconds: float, artifact: str) -> Campaign:
    """Use the smaller of the numbers of cases that the driver and the case runner counted."""
    done, cases = _DONE.search(output), _CASES.search(output)
    counts = [int(number) for number in cases.groups()] if cases else [0, 0, 0, 0]
    reproducer = _REPRODUCER.search(output)
    return Campaign(
        target=target,
        driver="mutations" if "atheris is not installed" in output else "atheris",
        status=status,
        runs=min(int(done[1]), counts[0]) if done else 0,
        accepted=counts[1],
        refused=counts[2],
        slowest_ms=counts[3],
        seconds=seconds,
        reproducer=reproducer[1] if reproducer else artifact,
        output=output,
    )


def _read_artifact(directory: Path) -> str:
    """Return the case that libFuzzer saved when it ended the process because of a hang or its memory."""
    paths = sorted(path for kind in ("timeout", "oom", "crash") for path in directory.glob(f"{kind}-*"))
    return repr(paths[0].read_bytes()) if paths else ""
