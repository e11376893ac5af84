from __future__ import annotations

from buildkit_tasks.host.engine import Engine
from tests.conftest import TEN, Unchanged
from tests.support import crashers
from tests.support.engine.events import record_container_events
from tests.support.oci import write_program_image
from tests.support.project import Project

NATIVE = ("linux/amd64", "linux/386")  # for an engine on amd64
EMULATED = tuple(name for name in TEN if name not in NATIVE)


def test_crash_is_reported_once(engine: Engine, docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(
        docker_project.folder, *((platform, crashers.internal_fault(platform)) for platform in EMULATED)
    )
    with unchanged(), record_container_events(engine) as events:
        report = docker_project.json("run-emulated", name, "--timeout=30", expect=1)
    results = {result["platform"]: result for result in report["results"]}
    assert list(results) == list(EMULATED)
    for platform, result in results.items():
        assert (result["outcome"], result["exit_code"]) == ("emulator-crash", crashers.EXIT_STATUS), platform
        assert crashers.MESSAGE in result["message"]
        assert result["message"].startswith("the emulator crashed: qemu-")
        emulator = result["emulator"]
        assert emulator["version"]
        assert result["message"].endswith(f"({emulator['path']}, version {emulator['version']})")
    assert sum(event["Action"] == "start" for event in events) == len(EMULATED)


def test_same_program_natively(docker_project: Project, unchanged: Unchanged) -> None:
    # The kernel returns EFAULT; execution then continues past the code, over zeros, to an unmapped page.
    name = write_program_image(docker_project.folder, ("linux/amd64", crashers.internal_fault("linux/amd64")))
    with unchanged():
        (result,) = docker_project.json("run-emulated", name, expect=1)["results"]
    assert (result["outcome"], result["emulator"]) == ("failed", None)


def test_silent_crash(docker_project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(docker_project.folder, ("linux/arm64", crashers.silent_fault("linux/arm64")))
    with unchanged():
        (result,) = docker_project.json("run-emulated", name, expect=1)["results"]
    assert (result["exit_code"], result["stderr"]) == (crashers.EXIT_STATUS, "")
    assert str(crashers.EXIT_STATUS) in result["message"]
