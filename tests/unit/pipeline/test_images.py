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
def resolver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageResolver:
    """Return the resolver of an empty folder with an empty cache."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return ImageResolver(settings=Settings(cache=str(tmp_path / "cache")), commands=Scripted())


def make_result(*outputs: Output) -> BuildResult:
    return BuildResult(digest="", outputs=outputs, platforms=(), builder="b", bases="registry", seconds=0.0)


def test_nothing_built_yet(resolver: ImageResolver) -> None:
    with pytest.raises(UsageError, match="nothing was built here yet"):
        resolver.resolve("")
    assert resolver.resolve("docker://alpine") == "docker://alpine"


@pytest.mark.parametrize(
    ("outputs", "name"),
    [
        ((Output(type="oci", dest="a.tar"),), "oci-archive:{folder}/a.tar"),
        ((Output(type="local", dest="out"), Output(type="oci", dest="a.tar")), "oci-archive:{folder}/a.tar"),
        (
            (Output(type="registry", ref="r.example/a:1"), Output(type="docker", ref="a:1")),
            "docker-daemon:a:1",
        ),
        ((Output(type="docker", dest="a.tar"),), "docker-archive:{folder}/a.tar"),
        ((Output(type="local", dest="out"), Output(type="registry", ref="r/a:1")), "docker://r/a:1"),
        ((Output(type="tar", dest="a.tar"), Output(type="local", dest="out")), "dir:{folder}/out"),
    ],
)
def test_best_output(resolver: ImageResolver, outputs: tuple[Output, ...], name: str) -> None:
    resolver.record_last_built(make_result(*outputs))
    assert resolver.resolve("") == name.format(folder=Path.cwd())


def test_unreadable_output(resolver: ImageResolver) -> None:
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    resolver.record_last_built(make_result(Output(type="tar", dest="b.tar")))
    assert resolver.resolve("").endswith("/a.tar")


def test_last_built_per_folder(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver.record_last_built(make_result(Output(type="oci", dest="a.tar")))
    same_name = Path("other") / Path.cwd().name
    same_name.mkdir(parents=True)
    for folder in ("..", same_name.absolute()):
        monkeypatch.chdir(folder)
        with pytest.raises(UsageError):
            resolver.resolve("")


def test_verify_archive(resolver: ImageResolver) -> None:
    write_archive(hello(["linux/arm64"]), Path("a.tar"))
    report = resolver.verify("a.tar", (ARM64,))
    assert (report.ok, report.subject) == (True, "a.tar")


def test_verify_for_hosts(resolver: ImageResolver) -> None:
    write_archive(hello(["linux/arm64"]), Path("a.tar"))
    report = resolver.verify("a.tar", (), {Platform.parse("linux/amd64"): 3})
    check = report.platforms[0].checks[0]
    assert (check.name, check.ok) == ("for", False)
    assert "3 linux/amd64 nodes cannot start a.tar: it holds linux/arm64" in check.message
    assert "try: inv build-multiarch --platform linux/arm64,linux/amd64" in check.message


def test_daemon_image_without_engine(resolver: ImageResolver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_tasks.host.engine.find_tools", lambda _: None)
    with pytest.raises(EngineError, match="docker with buildx is not installed"):
        resolver.verify("docker-daemon:a:1", ())
