from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import BuildResult, Output
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted

ARM64 = Platform.parse("linux/arm64")


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageResolver:
    """Images in an empty folder, with an empty cache."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return ImageResolver(settings=Settings(cache=str(tmp_path / "cache")), commands=Scripted())


def built(*outputs: Output) -> BuildResult:
    return BuildResult(digest="", outputs=outputs, platforms=(), builder="b", bases="registry", seconds=0.0)


def test_before_a_build_an_image_has_to_be_named(images: ImageResolver) -> None:
    with pytest.raises(UsageError, match="nothing was built here yet"):
        images.resolve("")
    assert images.resolve("docker://alpine") == "docker://alpine"


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        ((Output(type="oci", dest="a.tar"),), "oci-archive:{here}/a.tar"),
        ((Output(type="local", dest="out"), Output(type="oci", dest="a.tar")), "oci-archive:{here}/a.tar"),
        (
            (Output(type="registry", ref="r.example/a:1"), Output(type="docker", ref="a:1")),
            "docker-daemon:a:1",
        ),
        ((Output(type="docker", dest="a.tar"),), "docker-archive:{here}/a.tar"),
        ((Output(type="local", dest="out"), Output(type="registry", ref="r/a:1")), "docker://r/a:1"),
        ((Output(type="tar", dest="a.tar"), Output(type="local", dest="out")), "dir:{here}/out"),
    ],
)
def test_the_best_output_of_a_build_is_what_the_next_steps_mean(
    images: ImageResolver, outputs: tuple[Output, ...], name: str
) -> None:
    images.record_last_built(built(*outputs))
    assert images.resolve("") == name.format(here=Path.cwd())


def test_a_build_of_nothing_that_can_be_read_changes_nothing(images: ImageResolver) -> None:
    images.record_last_built(built(Output(type="oci", dest="a.tar")))
    images.record_last_built(built(Output(type="tar", dest="b.tar")))
    assert images.resolve("").endswith("/a.tar")


def test_another_folder_has_another_last_image(
    images: ImageResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    images.record_last_built(built(Output(type="oci", dest="a.tar")))
    monkeypatch.chdir("..")
    with pytest.raises(UsageError):
        images.resolve("")


def test_a_file_is_verified_without_a_word_to_an_engine(images: ImageResolver) -> None:
    write_archive(hello(["linux/arm64"]), Path("a.tar"))
    report = images.verify("a.tar", (ARM64,))
    assert (report.ok, report.subject) == (True, "a.tar")


def test_hosts_narrow_the_question(images: ImageResolver) -> None:
    write_archive(hello(["linux/arm64"]), Path("a.tar"))
    report = images.verify("a.tar", (), {Platform.parse("linux/amd64"): 3})
    check = report.platforms[0].checks[0]
    assert (check.name, check.ok) == ("for", False)
    assert "3 linux/amd64 nodes cannot start a.tar: it holds linux/arm64" in check.message
    assert "try: inv build-multiarch --platform linux/arm64,linux/amd64" in check.message


def test_an_image_in_an_engine_needs_one_and_none_is_started_for_it(
    images: ImageResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildkit_tasks.host.engine.find_tools", lambda _: None)
    with pytest.raises(EngineError, match="there is no docker with buildx here"):
        images.verify("docker-daemon:a:1", ())
