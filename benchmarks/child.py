"""A child that verifies one image and says what that took: ``python -m benchmarks.child IMAGE``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.verify import verify


def peak() -> int:
    """The most memory that this process had resident, in bytes.

    ``getrusage`` would not do: Linux counts into its ``ru_maxrss`` what the parent's memory was when
    this process was started from it (fs/exec.c, exec_mmap), and the benchmark is larger than we are.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def main(name: str) -> None:
    """Verify, and print seconds, bytes, and whether the image holds."""
    started = time.perf_counter()
    with open_image(name) as source:
        report = verify(source, (), name)
    seconds = time.perf_counter() - started
    bad = [check.message for verdict in report.platforms for check in verdict.checks if not check.ok]
    taken = {"seconds": seconds, "peak": peak(), "ok": report.ok, "problems": bad[:10]}
    json.dump(taken, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
