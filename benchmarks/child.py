"""Verify one image and print the time and memory used: ``python -m benchmarks.child IMAGE``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.verify import verify


def peak() -> int:
    """Return the peak resident memory of this process in bytes.

    ``getrusage`` does not work here: Linux includes the parent's memory at the time of the exec in
    ``ru_maxrss`` (fs/exec.c, exec_mmap), and the benchmark is larger than this process.
    """
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) * 1024


def main(name: str) -> None:
    """Verify the image, and print seconds, bytes and whether it passes."""
    started = time.perf_counter()
    with open_image(name) as source:
        report = verify(source, (), name)
    seconds = time.perf_counter() - started
    bad = [check.message for verdict in report.platforms for check in verdict.checks if not check.ok]
    result = {"seconds": seconds, "peak": peak(), "ok": report.ok, "problems": bad[:10]}
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
