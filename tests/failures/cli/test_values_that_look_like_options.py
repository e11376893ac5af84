from __future__ import annotations

import sys

import pytest

from tests.conftest import Unchanged
from tests.support.project import Project

# Run a task, and log every program that it starts (events of sys.audit).
LOGGED_TASK = """\
import runpy, sys
log = open(sys.argv.pop(1), "a")
sys.addaudithook(lambda event, arguments: event in
    ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn") and log.write(f"{arguments}\\n"))
runpy.run_module("buildkit_tasks", run_name="__main__")
"""


@pytest.mark.parametrize(
    "argv",
    [
        ("build-multiarch", "--tag=--privileged"),
        ("build-multiarch", "--tag", "--privileged"),
        ("build-multiarch", "--tag=-v/:/host"),
        ("build-multiarch", "--tag=a b"),
        ("build-multiarch", "--tag=name:1\n--push"),
        ("build-multiarch", "--platform=--privileged"),
        ("build-multiarch", "--platform=linux/arm64,--push"),
        ("build-multiarch", "--builder=--privileged"),
        ("build-multiarch", "--bake=--privileged"),
        ("build-multiarch", "--bake", "--privileged"),
        ("build-multiarch", "--bake=x.hcl", "--target=--privileged"),
        ("build-multiarch", "--bake=x.hcl", "--target=https://example.org/x.git"),
        ("build-multiarch", "--bake=x.hcl", "--platform=--privileged"),
        ("build-multiarch", "--image=--privileged"),
        ("setup-builder", "--platform=--privileged"),
        ("setup-builder", "--name=--privileged"),
        ("run-emulated", "x.tar", "--platform=--privileged"),
        ("verify-arch", "x.tar", "--platform=--privileged"),
        ("arch-matrix", "--tag=--privileged"),
        ("arch-matrix", "--platform=--privileged"),
        ("arch-matrix", "--bake=--privileged"),
        ("remove-builder", "--name=--privileged"),
    ],
    ids=" ".join,
)
def test_value_like_option_is_rejected(project: Project, unchanged: Unchanged, argv: tuple[str, ...]) -> None:
    project.write({"Dockerfile": "FROM scratch\n", "x.tar": b"", "x.hcl": "", "--privileged": ""})
    log = project.folder.parent / "commands"
    with unchanged():
        done = project.command(sys.executable, "-c", LOGGED_TASK, str(log), *argv)
    assert done.code in ((1, 2) if argv[-1] == "--privileged" else (2,)), done.stderr
    assert "Traceback" not in done.stderr
    assert log.read_text(encoding="utf-8") == ""
    assert not (project.folder / "dist").exists()


def test_commands_are_logged(project: Project) -> None:
    """A task that starts programs is logged, so the test above can fail."""
    log = project.folder.parent / "commands"
    unreachable = project.with_env(DOCKER_HOST="tcp://127.0.0.1:1")
    unreachable.command(sys.executable, "-c", LOGGED_TASK, str(log), "doctor", "--platform=linux/amd64")
    assert log.read_text(encoding="utf-8") != ""
