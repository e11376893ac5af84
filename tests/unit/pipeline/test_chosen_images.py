from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import Interrupted, MalformedImage, UsageError
from buildkit_tasks.pipeline.chosen_images import ChosenImage, choose_images, report_each
from buildkit_tasks.pipeline.last_build import RecordedImage
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.report.model import BuildResult, Output, VerifyReport
from tests.support import report_samples as samples
from tests.support.scripted import Scripted

IMAGES = """
[tool.buildkit-tasks]
command = "all"

[[tool.buildkit-tasks.image]]
name = "web"
expect = "listening"
tags = ["r.example/web:1"]

[[tool.buildkit-tasks.image]]
name = "tool"
platforms = ["linux/386"]
command = "tool"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(IMAGES, encoding="utf-8")
    return tmp_path


def make_pipeline(folder: Path, **flags: Any) -> Pipeline:
    flags = {"cache": str(folder / "cache"), **flags}
    settings = load_settings(flags, environ={}, folder=folder)
    return Pipeline(settings=settings, commands=Scripted(), notify=lambda _: None)


def build(pipeline: Pipeline, *names: str, failed: tuple[str, ...] = (), **recorded: Any) -> None:
    pipeline.resolver.last_build.start(RecordedImage(name=name, **recorded) for name in names)
    for name in names:
        output = Output(type="oci", dest=f"dist/{name}.tar")
        result = BuildResult(digest="", outputs=(output,), platforms=(), builder="", bases="", seconds=0.0)
        if name not in failed:
            pipeline.resolver.last_build.finish(name, result)


def locations(images: tuple[ChosenImage, ...]) -> list[tuple[str, str]]:
    return [(each.name, Path(each.require_location()).name) for each in images]


def test_all_of_last_build(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    build(pipeline, "web", "tool")
    web, tool = choose_images(pipeline, [""])
    assert locations((web, tool)) == [("web", "web.tar"), ("tool", "tool.tar")]
    assert (web.settings.command, web.settings.expect) == ("all", "listening")
    assert (tool.settings.command, tool.settings.platforms) == ("tool", ("linux/386",))
    build(pipeline, "tool")
    assert locations(choose_images(pipeline, [])) == [("tool", "tool.tar")]


def test_name_of_settings(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    build(pipeline, "web", "tool")
    build(pipeline, "tool")
    (folder / "web").mkdir()  # the context: a path of that name does not matter
    (web,) = choose_images(pipeline, ["web"])
    assert (locations((web,)), web.settings.expect) == ([("web", "web.tar")], "listening")
    assert [each.name for each in choose_images(pipeline, ["tool,web", "tool"])] == ["tool", "web"]


def test_name_with_location(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    (image,) = choose_images(pipeline, ["tool=oci-archive:x=y.tar"])
    assert (image.name, image.location, image.settings.command) == ("tool", "oci-archive:x=y.tar", "tool")
    with pytest.raises(UsageError, match="there is no image 'other' in the settings"):
        choose_images(pipeline, ["other=x.tar"])


def test_file_name_with_equals_sign(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "other=x.tar").touch()
    (image,) = choose_images(make_pipeline(folder), ["other=x.tar"])
    assert (image.name, image.location, image.settings.command) == ("", "other=x.tar", "all")


@pytest.mark.parametrize("location", ["./web", "docker://web", "web,other", "a.tar", "web:1"])
def test_other_location(location: str, folder: Path) -> None:
    pipeline = make_pipeline(folder)
    (image,) = choose_images(pipeline, [location])
    assert (image.name, image.require_location(), image.settings) == ("", location, pipeline.settings)


def test_not_built_yet(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    build(pipeline, "tool")
    with pytest.raises(UsageError, match="web was not built here yet") as excinfo:
        choose_images(pipeline, ["web"])
    assert excinfo.value.hint == "inv build-multiarch --image web"


def test_failed_image_is_refused(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    build(pipeline, "web", "tool")
    build(pipeline, "web", "tool", failed=("web",))
    web, tool = choose_images(pipeline, [])
    assert tool.require_location().endswith("/tool.tar")
    with pytest.raises(
        UsageError, match=r"web: the last build here has not succeeded; .*/web\.tar"
    ) as excinfo:
        web.require_location()
    assert excinfo.value.hint == "inv build-multiarch --image web"


def test_flags_override_images(folder: Path) -> None:
    pipeline = make_pipeline(folder, platforms=("linux/s390x",))
    build(pipeline, "web", "tool")
    assert {each.settings.platforms for each in choose_images(pipeline, [])} == {("linux/s390x",)}


@pytest.mark.parametrize(
    ("flags", "platform"), [({}, "linux/arm64"), ({"platforms": "linux/386"}, "linux/386")]
)
def test_target_of_bake_file(flags: dict[str, str], platform: str, folder: Path) -> None:
    pipeline = make_pipeline(folder, **flags)
    build(pipeline, "tool", "x", platforms=("linux/arm64",), tags=("r.example/x:1",), bake_files=("a b.hcl",))
    tool, other = choose_images(pipeline, [])
    assert (tool.settings.command, other.settings.command) == ("tool", "all")
    assert {each.settings.platforms for each in (tool, other)} == {(platform,)}
    assert all(each.settings.is_explicit("platforms") for each in (tool, other))
    assert other.settings.tags == ("r.example/x:1",)
    build(pipeline, "x", failed=("x",), bake_files=("a b.hcl",))
    with pytest.raises(UsageError) as excinfo:
        choose_images(pipeline, [])[0].require_location()
    assert excinfo.value.hint == "inv build-multiarch --bake 'a b.hcl' --target x"


def test_report_each(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    build(pipeline, "web", "tool")

    def verify(pipeline: Pipeline, image: ChosenImage) -> VerifyReport:
        if image.name == "web":
            raise MalformedImage("broken")
        return samples.verify(*map(samples.verdict, pipeline.settings.platforms))

    report, errors = report_each(pipeline, choose_images(pipeline, []), "verify", verify)
    assert [(each.name, each.ok, each.error) for each in report.images] == [
        ("web", False, "broken"),
        ("tool", True, ""),
    ]
    assert [error.message for error in errors] == ["broken"]


def test_image_is_named_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = replace(make_pipeline(folder), notify=print)
    build(pipeline, "web", "tool")
    build(pipeline, "web", "tool", failed=("web",))

    def locate(_: Pipeline, image: ChosenImage) -> VerifyReport:
        return samples.verify(samples.verdict(image.require_location()))

    report, _ = report_each(pipeline, choose_images(pipeline, []), "verify", locate)
    assert report.images[0].error.startswith("the last build here has not succeeded")
    assert capsys.readouterr().out.startswith("web: the last build here has not succeeded")


def test_interrupt_stops(folder: Path) -> None:
    pipeline = make_pipeline(folder)
    build(pipeline, "web", "tool")

    def interrupt(*_: object) -> VerifyReport:
        raise Interrupted("interrupted")

    report, errors = report_each(pipeline, choose_images(pipeline, []), "verify", interrupt)
    assert ([each.name for each in report.images], len(errors)) == (["web"], 1)
