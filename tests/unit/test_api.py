from __future__ import annotations

import inspect
import logging
import re
import subprocess
import sys
import typing
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import pytest

import buildkit_tasks as bt
from buildkit_tasks import errors
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.config.settings import SettingOrigin
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
from buildkit_tasks.report import model
from tests.support.environment import delete_env
from tests.support.oci import hello, write_archive

FUNCTIONS = ("build", "push", "run", "verify")
RESULT = bt.BuildResult(digest="", outputs=(), platforms=(), builder="", bases="", seconds=1.5)
RUN_RESULT = bt.RunResult(platform="linux/386", outcome=bt.Outcome.PASSED)


def test_names_are_pinned() -> None:
    names = """
        BuildFailed BuildOptions BuildResult BuilderError BuilderSummary BuildkitTasksError BuiltPlatform
        CacheError Check CheckFailed DeadlineExceeded EmulatorError EmulatorSummary EngineError EngineSummary
        ImageReport ImageSettings ImagesReport Interrupted LimitExceeded MalformedImage MatrixReport NamedTag
        NodeSummary Notify Outcome Output Pipeline Platform PlatformSetup PlatformVerdict PushResult
        RegistryError Report RunReport RunResult Settings SettingsError SetupReport SmokeCheck TaskFailed
        UsageError VerifyReport __version__ build load_settings ns push run to_document verify
    """
    assert bt.__all__ == names.split()
    assert dir(bt) == sorted(bt.__all__)


@pytest.mark.parametrize("name", bt.__all__)
def test_name_is_importable(name: str) -> None:
    value = getattr(bt, name)
    assert value is not None
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__name__ == name
        assert value.__doc__


def test_errors_and_reports_are_public() -> None:
    assert set(errors.__all__) <= set(bt.__all__)
    values = {name for name in model.__all__ if inspect.isclass(getattr(model, name))}
    assert values <= set(bt.__all__)
    assert {report.__name__ for report in typing.get_args(bt.Report)} <= values


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"^module 'buildkit_tasks' has no attribute 'bild'$"):
        bt.bild  # type: ignore[attr-defined] # noqa: B018


@pytest.mark.parametrize("module", ["buildkit_tasks.build", "buildkit_tasks.verify"])
def test_unknown_name_of_package(module: str) -> None:
    with pytest.raises(AttributeError, match=f"^module '{module}' has no attribute 'bild'$"):
        import_module(module).bild  # noqa: B018


def test_version() -> None:
    assert bt.__version__ == metadata.version("buildkit-tasks")


def run_python(code: str, *flags: str) -> list[str]:
    """Run code in a new interpreter; return what it prints. ``-S`` leaves out site-packages."""
    root = Path(bt.__file__).parent.parent
    code = f"import sys\nbefore = set(sys.modules)\nsys.path.insert(0, {str(root)!r})\n{code}"
    argv = [sys.executable, "-I", *flags, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()


def test_import_imports_nothing_else() -> None:
    code = "import buildkit_tasks\nprint(*sorted(set(sys.modules) - before))"
    assert run_python(code, "-S") == ["buildkit_tasks"]


def test_values_need_no_other_package() -> None:
    names = sorted(set(bt.__all__) - {"TaskFailed", "__version__", "ns"})
    code = f"from buildkit_tasks import {', '.join(names)}\nprint(build.__name__)"
    assert run_python(code, "-S") == ["build"]


def test_subpackage_does_not_replace_function() -> None:
    code = """
import buildkit_tasks as bt
import buildkit_tasks.run.service, buildkit_tasks.build.request
from buildkit_tasks.verify import verify as verify_source
from buildkit_tasks import build, run, verify
print(*(each.__module__ for each in (bt.build, bt.run, bt.verify, build, run, verify)))
print(sys.modules["buildkit_tasks.run"].__name__)
"""
    assert run_python(code) == [*["buildkit_tasks.pipeline.api"] * 6, "buildkit_tasks.run"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_options_are_keywords(name: str) -> None:
    subject, *options = inspect.signature(getattr(bt, name)).parameters.values()
    assert subject.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    kinds = {option.kind for option in options}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_names_errors(name: str) -> None:
    documented = inspect.getdoc(getattr(bt, name))
    assert documented is not None
    assert "Raises :class:`UsageError`" in documented
    assert ".. " not in documented


PAGE = Path(__file__).parents[2] / "docs/api.md"


@pytest.mark.parametrize("name", bt.__all__)
def test_name_is_documented(name: str) -> None:
    assert re.search(rf"(?<![\w.-])(?:bt\.)?{name}\b", PAGE.read_text())


def test_text_of_error() -> None:
    error = bt.UsageError("no good", platform="linux/arm64", hint="do it well")
    assert str(error) == "linux/arm64: no good\n  try: do it well"


def test_exit_codes_are_documented() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    codes = {name: str(getattr(errors, name).exit_code) for name in errors.__all__}
    assert {"BuildkitTasksError": "1", **dict(rows)} == codes


@pytest.fixture
def project_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a repository without settings."""
    delete_env(monkeypatch, "DOCKER_DEFAULT_PLATFORM", "BUILDX_BUILDER")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "Dockerfile").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record the calls to the pipeline; nothing is built, run or pushed."""
    calls: list[tuple[Any, ...]] = []

    def build(pipeline: Pipeline, request: BuildRequest) -> bt.BuildResult:
        calls.append((pipeline, request))
        pipeline.notify("building https://me:secret@example.org/")
        return RESULT

    def run_image(pipeline: Pipeline, image: str, platforms: Any, observer: Any) -> bt.RunReport:
        calls.append((pipeline, image, platforms))
        if observer is not None:
            observer.expect_runs([("linux/386", "", "")])
            observer(RUN_RESULT)
        return bt.RunReport(subject=image, results=(RUN_RESULT,))

    def push(service: ReleaseService, archive: str, spec: ReleaseSpec, _: Any) -> bt.PushResult:
        calls.append((service, archive, spec))
        return bt.PushResult(digest="", tags=(), platforms=())

    monkeypatch.setattr(Pipeline, "build", build)
    monkeypatch.setattr(Pipeline, "run_image", run_image)
    monkeypatch.setattr(Pipeline, "release_build", lambda _, _request, result, _observer: result)
    monkeypatch.setattr(ReleaseService, "push", push)
    return calls


PLATFORMS = [
    pytest.param("linux/arm64,386", id="text"),
    pytest.param(["linux/arm64", "386"], id="list"),
    pytest.param([bt.Platform("linux", "arm64"), "linux/386"], id="mixed"),
    pytest.param((str(each) for each in ("arm64", "386")), id="iterator"),
]


@pytest.mark.usefixtures("project_dir")
@pytest.mark.parametrize("platforms", PLATFORMS)
def test_platforms(calls: list[tuple[Any, ...]], platforms: Any) -> None:
    bt.run("x.tar", platforms=platforms)
    assert calls[0][1:] == ("x.tar", (bt.Platform("linux", "arm64"), bt.Platform("linux", "386")))


@pytest.mark.usefixtures("project_dir")
def test_single_platform(calls: list[tuple[Any, ...]]) -> None:
    bt.run(Path("x.tar"), platforms=bt.Platform("linux", "386"))
    assert calls[0][1:] == ("x.tar", (bt.Platform("linux", "386"),))


def test_verify(project_dir: Path) -> None:
    write_archive(hello(("linux/amd64", "linux/arm64")), project_dir / "image.tar")
    report = bt.verify(project_dir / "image.tar", platforms=["linux/amd64", "linux/arm64"])
    assert report.ok, report
    assert bt.verify("oci-archive:image.tar", platforms="linux/amd64,linux/386").ok is False
    assert bt.verify("image.tar").ok
    assert bt.verify("image.tar", hosts="linux/amd64").ok
    assert bt.verify("image.tar", hosts="linux/s390x").ok is False


def test_settings_apply(project_dir: Path, calls: list[tuple[Any, ...]]) -> None:
    (project_dir / "pyproject.toml").write_text(
        "[tool.buildkit-tasks]\ncommand = 'one'\nplatforms = ['s390x']\n"
    )
    bt.run("x.tar", cpu="floor")
    bt.run("x.tar", command="", settings=bt.Settings(timeout=7))
    first, second = ((call[0].settings, call[2]) for call in calls)
    assert (first[0].command, first[0].cpu, first[1]) == ("one", "floor", (bt.Platform("linux", "s390x"),))
    assert first[0].origins["cpu"] is SettingOrigin.FLAG
    assert (second[0].command, second[0].timeout, second[1]) == ("", 7, ())


@pytest.mark.usefixtures("project_dir")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runner": "podman"}, "^run: runner = 'podman' is not one of auto, docker, sandbox$"),
        ({"cpu": "-x"}, "^run: '-x' is not a valid CPU"),
        ({"timeout": -1}, "^run: timeout = -1 is not a number"),
        ({"platforms": "linux/amd46"}, "unknown platform"),
    ],
)
def test_bad_value(options: Any, message: str) -> None:
    with pytest.raises(bt.UsageError, match=message):
        bt.run("x.tar", **options)


@pytest.mark.usefixtures("project_dir")
def test_run_results(calls: list[tuple[Any, ...]]) -> None:
    results: list[bt.RunResult] = []
    report = bt.run("x.tar", on_result=results.append)
    assert report.results == tuple(results)
    assert len(calls) == 1


def test_build(project_dir: Path, calls: list[tuple[Any, ...]]) -> None:
    result = bt.build(
        project_dir,
        platforms="linux/386",
        tags=["a:1", "b:2"],
        outputs="type=oci,dest=x.tar",
        push=True,
        build_args="A=1",
        secrets="id=x",
        no_cache=True,
        bases="registry",
    )
    assert result is RESULT
    pipeline, request = calls[0]
    assert pipeline.settings.bases == "registry"
    assert (request.context, request.tags, request.build_args) == (str(project_dir), ("a:1", "b:2"), ("A=1",))
    assert (request.secrets, request.no_cache) == (("id=x",), True)
    assert [str(output) for output in request.outputs] == ["type=oci,dest=x.tar", "type=registry"]


@pytest.mark.usefixtures("project_dir")
def test_build_into_dist(calls: list[tuple[Any, ...]]) -> None:
    bt.build(tags="hello:latest")
    assert [str(output) for output in calls[0][1].outputs] == ["type=oci,dest=dist/hello-latest.tar"]


IMAGES = """
[[tool.buildkit-tasks.image]]
name = "web"
tags = ["web:1"]
[[tool.buildkit-tasks.image]]
name = "tool"
platforms = ["s390x"]
"""


def test_build_image_of_settings(project_dir: Path, calls: list[tuple[Any, ...]]) -> None:
    (project_dir / "pyproject.toml").write_text(IMAGES)
    bt.build(image="tool")
    bt.build(image="web", platforms="386")
    requests = [call[1] for call in calls]
    assert [str(request.platforms[0]) for request in requests] == ["linux/s390x", "linux/386"]
    assert [request.tags for request in requests] == [(), ("web:1",)]
    assert str(requests[0].outputs[0]) == "type=oci,dest=dist/tool.tar"
    with pytest.raises(bt.UsageError, match=r"^build: the settings have several images: web, tool"):
        bt.build()
    with pytest.raises(bt.UsageError, match="there is no image 'x' in the settings"):
        bt.build(image="x")


@pytest.mark.usefixtures("project_dir")
def test_push(calls: list[tuple[Any, ...]]) -> None:
    result = bt.push("x.tar", tags="example.org/hello:1", platforms="386", verify_first=False)
    assert isinstance(result, bt.PushResult)
    _, archive, spec = calls[0]
    assert (archive, [str(tag) for tag in spec.tags]) == ("x.tar", ["example.org/hello:1"])
    assert (spec.expected_platforms, spec.verify_first) == ((bt.Platform("linux", "386"),), False)
    bt.push("x.tar", tags="example.org/hello:1")
    assert calls[1][2].verify_first is True
    with pytest.raises(bt.UsageError, match="a push needs a tag"):
        bt.push("x.tar")


@pytest.mark.usefixtures("project_dir", "calls")
def test_progress_is_logged(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, "buildkit_tasks")
    bt.build()
    assert caplog.record_tuples == [("buildkit_tasks", logging.INFO, "building https://***@example.org/")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("project_dir")
def test_progress_callback(calls: list[tuple[Any, ...]], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    messages: list[str] = []
    bt.build(notify=messages.append)
    calls[0][0].commands.stream([sys.executable, "-c", "print('one'); print('two')"])
    assert messages == ["building https://***@example.org/", "one", "two"]
    assert caplog.records == []


def test_pipeline_defaults(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO, "buildkit_tasks")
    pipeline = bt.Pipeline(settings=bt.Settings())
    pipeline.notify("one of https://me:secret@example.org")
    pipeline.commands.stream([sys.executable, "-c", "print('two')"])
    assert caplog.messages == ["one of https://***@example.org", "two"]
    assert capfd.readouterr() == ("", "")


def test_ns_is_the_namespace_of_the_tasks() -> None:
    assert bt.ns is import_module("buildkit_tasks.tasks").ns


BAD_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    ({"nosuch": 1}, r"build\(\) got an unexpected keyword argument 'nosuch'"),
    ({"outputs": [5]}, "expected a string or strings, not 5"),
    ({"tags": [5]}, "expected a string or strings, not 5"),
]


@pytest.mark.parametrize(("options", "message"), BAD_ARGUMENTS)
def test_wrong_types(options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        bt.build(**options)


@pytest.mark.usefixtures("project_dir")
def test_attestation_flags(calls: list[tuple[Any, ...]]) -> None:
    bt.build(platforms="linux/386", sbom=True, provenance=False)
    requests = [each for call in calls for each in call if isinstance(each, BuildRequest)]
    assert {(request.sbom, request.provenance) for request in requests} == {("true", "false")}
