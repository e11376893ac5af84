"""Settings with several images: builds, matrices, Nox sessions and image tests of each."""

from __future__ import annotations

import sys

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.integration.hello_image import TWO
from tests.support.project import Project, program

SETTINGS = """\
[tool.buildkit-tasks]
platforms = ["linux/amd64", "linux/arm64"]

[[tool.buildkit-tasks.image]]
name = "web"
context = "web"
expect = "this is web"

[[tool.buildkit-tasks.image]]
name = "tool"
file = "tool.Dockerfile"
platforms = ["linux/386"]
command = "/hello"
"""
WEB = 'FROM alpine\nCMD ["echo", "this is web"]\n'
TOOL = "FROM scratch\nCOPY hello /hello\n"


@pytest.fixture
def project(engine: Engine, project: Project) -> Project:
    """A repository with two images: one on a base for two platforms, one from scratch for a third."""
    assert engine.version
    return project.write(
        {
            "pyproject.toml": SETTINGS,
            "web/Dockerfile": WEB,
            "tool.Dockerfile": TOOL,
            "hello": program("linux/386"),
        }
    )


def test_build_all_images(project: Project, unchanged: Unchanged) -> None:
    with unchanged():
        report = project.json("build-multiarch")
    assert (report["ok"], report["setup"]) == (True, None)
    assert {row["name"]: row["build"]["outputs"] for row in report["images"]} == {
        "web": [{"type": "oci", "dest": "dist/web.tar"}],
        "tool": [{"type": "oci", "dest": "dist/tool.tar"}],
    }
    web, tool = report["images"]
    assert [each["platform"] for each in web["run"]["results"]] == list(TWO)
    assert [(each["platform"], each["command"]) for each in tool["run"]["results"]] == [
        ("linux/386", "/hello")
    ]
    for row in report["images"]:
        verified = project.json(
            "verify-arch", row["build"]["outputs"][0]["dest"], "--platform", _platforms(row)
        )
        assert verified["digest"] == row["build"]["digest"]


def test_tasks_on_built_images(project: Project) -> None:
    project.task("build-multiarch")
    verified, run = project.json("verify-arch"), project.json("run-emulated")
    assert [(each["name"], each["ok"]) for each in verified["images"]] == [("web", True), ("tool", True)]
    assert [(each["name"], each["ok"]) for each in run["images"]] == [("web", True), ("tool", True)]
    assert [each["platform"] for each in project.json("verify-arch", "tool")["platforms"]] == ["linux/386"]
    assert project.json("run-emulated", "--image", "web")["ok"]
    project.task("build-multiarch", "--image=tool")
    assert "subject" in project.json("verify-arch")  # the only image of the last build


def _platforms(row: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    return ",".join(each["platform"] for each in row["build"]["platforms"])


def test_select_image_by_name(project: Project) -> None:
    assert [row["name"] for row in project.json("build-multiarch", "--image=tool")["images"]] == ["tool"]
    assert not (project.folder / "dist" / "web.tar").exists()
    refused = project.json("build-multiarch", "--image=nope", expect=2)
    assert "there is no image 'nope' in the settings\n  try: choose one of web, tool" in refused["error"]


def test_one_failing_image(project: Project) -> None:
    project.write(
        {"hello": program("linux/amd64"), "web/Dockerfile": WEB.replace("this is web", "something else")}
    )
    report = project.json("build-multiarch", expect=1)
    web, tool = report["images"]
    assert [each["outcome"] for each in web["run"]["results"]] == ["failed", "failed"]
    assert (tool["verify"]["ok"], tool["ok"], tool["error"]) == (False, False, "")
    table = project.task("build-multiarch", expect=1).stdout
    assert "0 of 2 images passed. web: FAILED: linux/amd64 (run)" in table


def test_matrix_sets_up_all_platforms(project: Project) -> None:
    report = project.json(
        "arch-matrix", "--report=x.json", "--report=x.html", "--report=x.svg", "--report=x.xml"
    )
    assert [row["platform"] for row in report["setup"]["platforms"]] == [*TWO, "linux/386"]
    assert [(row["name"], row["ok"]) for row in report["images"]] == [("web", True), ("tool", True)]
    assert all((project.folder / f"x.{kind}").stat().st_size for kind in ("json", "html", "svg", "xml"))


def test_output_for_one_image(project: Project) -> None:
    refused = project.json("build-multiarch", "-o", "type=oci,dest=x.tar", expect=2)
    assert "web and tool would both be written to" in refused["error"]
    report = project.json("build-multiarch", "--image=web", "-o", "type=oci,dest=x.tar")
    assert report["images"][0]["build"]["outputs"] == [{"type": "oci", "dest": "x.tar"}]


def test_without_image_tables(project: Project) -> None:
    project.write(
        {"pyproject.toml": "[tool.buildkit-tasks]\nplatforms = 'linux/386'\nfile = 'tool.Dockerfile'\n"}
    )
    assert "images" not in project.json("build-multiarch")
    assert list(project.json("arch-matrix", "--command=/hello")) == [
        "schema_version",
        "ok",
        "setup",
        "build",
        "verify",
        "run",
        "error",
    ]


USERS_TESTS = """\
import pytest

@pytest.mark.images("web")
def test_web_echo(run_on_platform):
    assert run_on_platform("echo hello").stdout == "hello\\n"

def test_run(run_on_platform):
    assert run_on_platform().ok
"""


def test_nox_sessions_select_images(project: Project) -> None:
    project.write({"noxfile.py": "from buildkit_tasks.nox_sessions import arch_matrix\n\narch_matrix()\n"})
    done = project.command(sys.executable, "-m", "nox", "-s", "arch_matrix", "--", "-v")
    output = done.stdout + done.stderr
    assert done.code == 0, output
    for platform in ("amd64", "arm64"):
        assert f"arch_matrix({platform}): success" in output
        assert f"test_image_runs[web-{platform}] PASSED" in output
        assert f"[tool-{platform}]" not in output
    assert "test_image_verifies[tool-386] PASSED" in output
    assert output.count("build-multiarch --json") == 1


def test_users_tests_per_image(project: Project) -> None:
    project.write({"test_images.py": USERS_TESTS})
    done = project.command(
        sys.executable, "-m", "pytest", "-v", "--arch-require-engine", "-p", "no:cacheprovider"
    )
    output = done.stdout + done.stderr
    assert done.code == 0, output
    assert "5 passed" in output
    for case in ("test_web_echo[web-amd64]", "test_run[web-arm64]", "test_run[tool-386]"):
        assert f"{case} PASSED" in output
