from __future__ import annotations

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.project import Project

GUEST = """\
#!/bin/sh
if [ "$(uname -m)" = aarch64 ]; then
  trap '' TERM INT HUP
  echo ready
  while :; do sleep 1; done
fi
echo done
"""
DOCKERFILE = """\
FROM alpine:latest
COPY guest /guest
CMD ["/guest"]
"""
PLATFORMS = "linux/amd64,linux/arm64,linux/arm/v6"


@pytest.mark.parametrize("runner", ["docker", "sandbox"])
def test_guest_that_ignores_signals(
    engine: Engine, project: Project, unchanged: Unchanged, runner: str
) -> None:
    assert engine.version
    project.write({"Dockerfile": DOCKERFILE, "guest": GUEST})
    project.task("build-multiarch", "--platform", PLATFORMS)
    with unchanged():
        options = (f"--runner={runner}", "--timeout=5", "--expect=done")
        report = project.json("run-emulated", *options, expect=124)
    outcomes = {result["platform"]: result["outcome"] for result in report["results"]}
    assert outcomes == {"linux/amd64": "passed", "linux/arm64": "timeout", "linux/arm/v6": "passed"}
    hung = report["results"][1]
    assert hung["stdout"] == "ready\n"
    assert "more than 5 s" in hung["message"]
