"""The images that verify-arch, run-emulated and push-multiarch take, on real archives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from invoke.context import Context

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.last_build import RecordedImage
from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
from buildkit_tasks.pipeline.runs import ImageRunner
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import BuildResult, Output, PushResult, RunReport
from buildkit_tasks.tasks import ns, verify_arch
from tests.support import report_samples as samples
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted
from tests.unit.cli.test_invocation import inv, project_dir

__all__ = ["project_dir"]  # an autouse fixture

IMAGES = """
[tool.buildkit-tasks]
platforms = ["linux/amd64", "linux/arm64"]

[[tool.buildkit-tasks.image]]
name = "web"
expect = "web"
tags = ["r.example/web:1"]

[[tool.buildkit-tasks.image]]
name = "tool"
platforms = ["linux/386"]
"""
PLATFORMS = {"web": ["linux/amd64", "linux/arm64"], "tool": ["linux/386"]}


@pytest.fixture
def built(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a record of a build of two images."""
    monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", str(project_dir / "cache"))
    (project_dir / "pyproject.toml").write_text(IMAGES, encoding="utf-8")
    record(*PLATFORMS)
    return project_dir


def record(*names: str, output_type: str = "oci") -> None:
    last_build = ImageResolver(settings=load_settings(), commands=Scripted()).last_build
    last_build.start(RecordedImage(name=name, platforms=tuple(PLATFORMS[name])) for name in names)
    for name in names:
        path = write_archive(hello(PLATFORMS[name]), Path(f"{name}.tar").absolute())
        output = Output(type=output_type, dest=str(path))
        result = BuildResult(digest="", outputs=(output,), platforms=(), builder="", bases="", seconds=0.0)
        last_build.finish(name, result)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Return the image, the platforms and the expectation of each run, without running any."""
    recorded: list[tuple[str, str, str]] = []

    def run_image(runner: ImageRunner, image: str, platforms: tuple[Platform, ...], *_: Any) -> RunReport:
        recorded.append((Path(image).name, ",".join(map(str, platforms)), runner.settings.expect))
        return samples.run(*(samples.good_run(str(platform)) for platform in platforms))

    monkeypatch.setattr(ImageRunner, "run_image", run_image)
    return recorded


def document(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> dict[str, Any]:
    assert inv(*args, "--json", tasks=ns) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_verify_all(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = document(capsys, "verify-arch")
    assert [(each["name"], each["ok"], each["build"]) for each in report["images"]] == [
        ("web", True, None),
        ("tool", True, None),
    ]
    assert [row["platform"] for row in report["images"][1]["verify"]["platforms"]] == ["linux/386"]
    (built / "web.tar").unlink()
    report = document(capsys, "verify-arch", code=2)
    assert "web.tar does not exist" in report["images"][0]["error"]
    assert report["images"][1]["ok"]


def test_verify_by_name(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record("web")
    assert document(capsys, "verify-arch")["subject"] == f"oci-archive:{built}/web.tar"
    for args in (["tool"], ["--image", "tool"], ["--image=tool=tool.tar"]):
        assert document(capsys, "verify-arch", *args)["ok"]
    assert not document(capsys, "verify-arch", "tool.tar", code=1)["ok"]  # by the general platforms
    assert len(document(capsys, "verify-arch", "web", "--image=tool")["images"]) == 2


@pytest.mark.usefixtures("built")
def test_run_by_name(runs: list[tuple[str, str, str]]) -> None:
    web, tool = ("web.tar", "linux/amd64,linux/arm64", "web"), ("tool.tar", "linux/386", "")
    for args, expected in (([], [web, tool]), (["--image", "web"], [web]), (["tool"], [tool])):
        runs.clear()
        assert inv("run-emulated", *args, tasks=ns) == 0
        assert runs == expected


@pytest.mark.parametrize("task", ["verify-arch", "run-emulated", "push-multiarch"])
def test_unreadable_last_build(built: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    record("tool", output_type="tar")
    args = ["--tag=r.example/x:1"] if task == "push-multiarch" else []
    assert inv(task, *args, tasks=ns) == 2
    stderr = capsys.readouterr().err
    assert f"error: tool: the last build here wrote {built}/tool.tar, a tar archive of files" in stderr
    assert "build-multiarch --image tool" in stderr


def test_call_with_name(built: Path) -> None:
    report = verify_arch(Context(), image="tool")
    assert report.subject == f"oci-archive:{built}/tool.tar"


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return the image and the tags of each push, without pushing any."""
    recorded: list[tuple[str, str]] = []

    def push(_: ReleaseService, image: str, spec: ReleaseSpec, *__: object) -> PushResult:
        recorded.append((Path(image).name, ", ".join(map(str, spec.tags))))
        return samples.push()

    monkeypatch.setattr(ReleaseService, "push", push)
    return recorded


def test_push_all(built: Path, pushes: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("push-multiarch", tasks=ns) == 2
    stderr = capsys.readouterr().err
    assert "error: tool: a push needs a tag" in stderr
    assert 'try: tags = ["REGISTRY/NAME:TAG"] in the settings\' table of tool' in stderr
    assert inv("push-multiarch", "--tag=r.example/x:1", tasks=ns) == 2
    assert "web and tool would both be tagged r.example/x:1" in capsys.readouterr().err
    assert pushes == []
    text = IMAGES.replace('name = "tool"', 'name = "tool"\ntags = ["r.example/tool:1"]')
    (built / "pyproject.toml").write_text(text, encoding="utf-8")
    plan = document(capsys, "push-multiarch", "--dry-run")
    assert [each["tags"] for each in plan["images"]] == [["r.example/web:1"], ["r.example/tool:1"]]
    report = document(capsys, "push-multiarch")
    assert [(each["name"], bool(each["tags"])) for each in report["images"]] == [
        ("web", True),
        ("tool", True),
    ]
    assert pushes == [("web.tar", "r.example/web:1"), ("tool.tar", "r.example/tool:1")]


@pytest.mark.usefixtures("built")
def test_push_by_name(pushes: list[tuple[str, str]]) -> None:
    assert inv("push-multiarch", "web", tasks=ns) == 0
    assert inv("push-multiarch", "tool", "--tag=r.example/x:1", tasks=ns) == 0
    assert pushes == [("web.tar", "r.example/web:1"), ("tool.tar", "r.example/x:1")]


@pytest.mark.usefixtures("built")
def test_push_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("push-multiarch", "wep", tasks=ns) == 2
    stderr = capsys.readouterr().err
    assert "error: there is no image or file 'wep' here, did you mean web?" in stderr
    assert "try: choose one of web, tool" in stderr
    for name in ("r.example/wep:1", "web.tar"):
        assert inv("push-multiarch", name, tasks=ns) == 2
        assert "a push needs a tag" in capsys.readouterr().err


def test_bake_target_by_name(project_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", str(project_dir / "cache"))
    last_build = ImageResolver(settings=load_settings(), commands=Scripted()).last_build
    last_build.start(
        RecordedImage(name=name, platforms=("linux/386",), bake_files=("b.json",)) for name in PLATFORMS
    )
    for name in PLATFORMS:
        path = write_archive(hello(["linux/386"]), project_dir / f"{name}.tar")
        output = Output(type="oci", dest=str(path))
        result = BuildResult(digest="", outputs=(output,), platforms=(), builder="", bases="", seconds=0.0)
        last_build.finish(name, result)
    assert verify_arch(Context(), image="web").subject == f"oci-archive:{project_dir}/web.tar"
    assert len(verify_arch(Context(), image=["web", "tool"]).images) == 2
