"""Run one platform of an image many times and print the time and memory used: ``IMAGE PLATFORM RUNS``."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

from benchmarks.child import peak
from buildkit_tasks.config.settings import SmokeCheck, load_settings
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import Platform
from buildkit_tasks.system.command import SubprocessRunner


def main(image: str, platform: str, runs: int) -> None:
    """Run two at a time, and print seconds and bytes."""
    settings = replace(load_settings(), checks=(SmokeCheck(),) * runs, jobs=2, runner="sandbox")
    line = Pipeline(
        settings=settings, commands=SubprocessRunner(), notify=lambda message: print(message, file=sys.stderr)
    )
    started = time.perf_counter()
    report = line.run_image(image, (Platform.parse(platform),))
    if not report.ok:
        raise SystemExit(next(result.message for result in report.results if not result.ok))
    json.dump({"seconds": time.perf_counter() - started, "peak": peak()}, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
