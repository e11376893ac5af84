from __future__ import annotations

import sys

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.project import Project, program

TWO = ("linux/amd64", "linux/arm64")
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
def two(engine: Engine, project: Project) -> Project:
    """A repository of two images: one on a base for two platforms, one from scratch for a third."""
    assert engine.version
    return project.write(
        {
            "pyproject.toml": SETTINGS,
            "web/Dockerfile": WEB,
            "tool.Dockerfile": TOOL,
            "hello": program("linux/386"),
        }
    )


def test_each_image_by_its_table(two: Project, unchanged: Unchanged) -> None:
    with unchanged():
        found = two.json("build-multiarch")
    assert (found["ok"], found["setup"]) == (True, None)
    assert {row["name"]: row["build"]["outputs"] for row in found["images"]} == {
        "web": [{"type": "oci", "dest": "dist/web.tar"}],
        "tool": [{"type": "oci", "dest": "dist/tool.tar"}],
    }
    web, tool = found["images"]
    assert [each["platform"] for each in web["run"]["results"]] == list(TWO)
    assert [(each["platform"], each["command"]) for each in tool["run"]["results"]] == [
        ("linux/386", "/hello")
    ]
    for row in found["images"]:
        verified = two.json("verify-arch", row["build"]["outputs"][0]["dest"], "--platform", _platforms(row))
        assert verified["digest"] == row["build"]["digest"]


def _platforms(row: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    return ",".join(each["platform"] for each in row["build"]["platforms"])


def test_one_is_chosen_by_its_name(two: Project) -> None:
    assert [row["name"] for row in two.json("build-multiarch", "--image=tool")["images"]] == ["tool"]
    assert not (two.folder / "dist" / "web.tar").exists()
    refused = two.json("build-multiarch", "--image=nope", expect=2)
    assert "there is no image 'nope' in the settings\n  try: choose one of web, tool" in refused["error"]


def test_failing_image_does_not_stop_other(two: Project) -> None:
    two.write(
        {"hello": program("linux/amd64"), "web/Dockerfile": WEB.replace("this is web", "something else")}
    )
    found = two.json("build-multiarch", expect=1)
    web, tool = found["images"]
    assert [each["outcome"] for each in web["run"]["results"]] == ["failed", "failed"]
    assert (tool["verify"]["ok"], tool["ok"], tool["error"]) == (False, False, "")
    table = two.task("build-multiarch", expect=1).stdout
    assert "0 of 2 images passed. web: FAILED: linux/amd64 (run)" in table


def test_matrix_sets_up_all_platforms(two: Project) -> None:
    found = two.json("arch-matrix", "--report=x.json", "--report=x.html", "--report=x.svg", "--report=x.xml")
    assert [row["platform"] for row in found["setup"]["platforms"]] == [*TWO, "linux/386"]
    assert [(row["name"], row["ok"]) for row in found["images"]] == [("web", True), ("tool", True)]
    assert all((two.folder / f"x.{kind}").stat().st_size for kind in ("json", "html", "svg", "xml"))


def test_single_image_flag_is_refused(two: Project) -> None:
    refused = two.json("build-multiarch", "-o", "type=oci,dest=x.tar", expect=2)
    assert "web and tool would both be written to" in refused["error"]
    found = two.json("build-multiarch", "--image=web", "-o", "type=oci,dest=x.tar")
    assert found["images"][0]["build"]["outputs"] == [{"type": "oci", "dest": "x.tar"}]


def test_without_image_tables(two: Project) -> None:
    two.write(
        {"pyproject.toml": "[tool.buildkit-tasks]\nplatforms = 'linux/386'\nfile = 'tool.Dockerfile'\n"}
    )
    assert "images" not in two.json("build-multiarch")
    assert list(two.json("arch-matrix", "--command=/hello")) == [
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
def test_web_says_what_it_is(run_on_platform):
    assert run_on_platform("echo hello").stdout == "hello\\n"

def test_each_runs(run_on_platform):
    assert run_on_platform().ok
"""


def test_nox_sessions_select_images(two: Project) -> None:
    two.write({"noxfile.py": "from buildkit_tasks.nox_sessions import arch_matrix\n\narch_matrix()\n"})
    done = two.command(sys.executable, "-m", "nox", "-s", "arch_matrix", "--", "-v")
    said = done.stdout + done.stderr
    assert done.code == 0, said
    for platform in ("amd64", "arm64"):
        assert f"arch_matrix({platform}): success" in said
        assert f"test_image_runs[web-{platform}] PASSED" in said
        assert f"[tool-{platform}]" not in said
    assert "test_image_verifies[tool-386] PASSED" in said
    assert said.count("build-multiarch --json") == 1


def test_users_tests_per_image(two: Project) -> None:
    two.write({"test_images.py": USERS_TESTS})
    done = two.command(
        sys.executable, "-m", "pytest", "-v", "--arch-require-engine", "-p", "no:cacheprovider"
    )
    said = done.stdout + done.stderr
    assert done.code == 0, said
    assert "5 passed" in said
    for case in ("says_what_it_is[web-amd64]", "each_runs[web-arm64]", "each_runs[tool-386]"):
        assert f"{case} PASSED" in said
