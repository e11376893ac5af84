"""The pytest plugin. Projects run in this process where the point allows it: a pytest needs half a second."""

from __future__ import annotations

import json
import re
import textwrap
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from buildkit_tasks import pytest_plugin
from buildkit_tasks.errors import EmulatorError, UsageError
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run import cpu_models

# Imported before a pytest runs in this process, which forgets what it has imported at its end.
from buildkit_tasks.testing import (
    cases,
    default_checks,
    markers,
    option_values,
    session_image,
    short_traceback,
)
from buildkit_tasks.testing.session_image import SessionImage
from tests.support.environment import NO_OTHER_PLUGINS, delete_env
from tests.support.oci import hello, write_archive

PRELOADED = (cpu_models, cases, default_checks, markers, option_values, session_image, short_traceback)


class Project:
    """A repository with one test module, and without an engine or the settings of this process."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        delete_env(monkeypatch, "INVOKE_BUILDKIT_*", "DOCKER_*", "BUILDX_*", "PYTEST_[!C]*")
        monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", f"{pytester.path}/cache")
        monkeypatch.setenv("DOCKER_CONFIG", str(pytester.path))
        monkeypatch.setenv("DOCKER_HOST", f"unix://{pytester.path}/no.sock")
        self.pytester = pytester
        self.path = pytester.path
        self.settings()

    def settings(self, *lines: str) -> None:
        text = "\n".join(["[tool.buildkit-tasks]", *lines])
        self.pytester.makepyprojecttoml(text)

    def add_image(self, name: str, *platforms: str) -> Path:
        return write_archive(hello(platforms or ("linux/amd64",)), self.path / name)

    def run(self, text: str, *options: str) -> pytest.RunResult:
        """Run pytest on a test module, in this process."""
        (self.path / "test_it.py").write_text(textwrap.dedent(text), encoding="utf-8")
        return self.pytester.runpytest_inprocess(*OPTIONS, *options, "test_it.py")


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(pytester, monkeypatch)


OPTIONS = ("-rA", "-p", "no:cacheprovider", *NO_OTHER_PLUGINS)


def cases_of(result: pytest.RunResult, outcome: str = "PASSED") -> list[str]:
    """Return the ids of the tests with that outcome, in order, without the name of the test."""
    return [line.partition("[")[2].rstrip("]") for line in result.outlines if line.startswith(f"{outcome} ")]


def skip_reasons(result: pytest.RunResult) -> list[str]:
    lines = [line for line in result.outlines if line.startswith("SKIPPED")]
    return [re.sub(r"^SKIPPED \[\d+\] \S+: ", "", line) for line in lines]


PLATFORM_TEST = "def test_one(platform):\n    assert str(platform).startswith('linux/')\n"


def test_platform_cases(project: Project) -> None:
    text = """
        def test_one(platform):
            assert str(platform).startswith("linux/")
            assert platform.goarch == platform.slug.partition("-")[0]
    """
    result = project.run(text, "--arch-platform=linux/arm/v7,linux/386", "--arch-platform=s390x")
    result.assert_outcomes(passed=3)
    assert cases_of(result) == ["arm-v7", "386", "s390x"]


def test_platforms_of_settings(project: Project) -> None:
    project.settings('platforms = ["linux/riscv64"]')
    assert cases_of(project.run(PLATFORM_TEST)) == ["riscv64"]


MARKED_TEST = f"import pytest\n@pytest.mark.platforms('arm64', 'linux/386', 'arm/v7')\n{PLATFORM_TEST}"


def test_marker_adds_platforms(project: Project) -> None:
    """A marker runs what it names, the settings' platforms first."""
    project.settings('platforms = ["linux/amd64", "linux/386"]')
    result = project.run(MARKED_TEST, "--strict-markers")
    result.assert_outcomes(passed=3)
    assert cases_of(result) == ["386", "arm64", "arm-v7"]


def test_option_skips_marked_platforms(project: Project) -> None:
    result = project.run(MARKED_TEST, "--arch-platform=linux/386,linux/amd64")
    result.assert_outcomes(passed=1, skipped=2)
    assert cases_of(result) == ["386"]
    assert skip_reasons(result) == [
        "--arch-platform leaves out linux/arm64",
        "--arch-platform leaves out linux/arm/v7",
    ]


BAD_MARKERS = [
    pytest.param("platforms('arm46')", "unknown platform 'arm46', did you mean linux/arm64?", id="unknown"),
    pytest.param(
        "platforms(name='linux/arm64')", "the marker platforms has no argument 'name'", id="keyword"
    ),
    pytest.param(
        "platforms('386', names=['arm64'])", "the marker platforms has no argument 'names'", id="also-keyword"
    ),
    pytest.param("platforms", "the marker platforms names nothing", id="bare"),
    pytest.param("platforms()", "the marker platforms names nothing", id="empty"),
    pytest.param("platforms([])", "the marker platforms names nothing", id="empty-list"),
    pytest.param("platforms(' ,')", "the marker platforms names nothing", id="empty-text"),
    pytest.param("platforms(['arm64', 3])", "the marker platforms has 3, which is not a name", id="number"),
    pytest.param("images(name='web')", "the marker images has no argument 'name'", id="image-keyword"),
    pytest.param("images()", "the marker images names nothing", id="no-image"),
]


@pytest.mark.parametrize(("marker", "message"), BAD_MARKERS)
def test_bad_marker(project: Project, marker: str, message: str) -> None:
    result = project.run(f"import pytest\n\n@pytest.mark.{marker}\n{PLATFORM_TEST}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: test_it.py:3: {message}" in result.stderr.str()
    assert "collected 1 item" in result.stdout.str()


GOOD_MARKERS = [
    pytest.param("(['linux/arm64', 'linux/386'])", id="list"),
    pytest.param("(('linux/arm64',), '386')", id="tuple-and-text"),
    pytest.param("('linux/arm64,386')", id="commas"),
    pytest.param("(Platform.parse('arm64'), '386')", id="platform"),
]


@pytest.mark.parametrize("arguments", GOOD_MARKERS)
def test_names_of_marker(project: Project, arguments: str) -> None:
    project.settings('platforms = ["linux/amd64"]')
    imports = "import pytest\nfrom buildkit_tasks.platforms import Platform\n"
    result = project.run(f"{imports}@pytest.mark.platforms{arguments}\n{PLATFORM_TEST}")
    assert cases_of(result) == ["arm64", "386"]


MARKERS_WITHOUT_EFFECT = [
    pytest.param("platforms('arm64')", "def test_one():", "does not take platform", id="no-fixture"),
    pytest.param("platforms('x')", "def test_one(multiarch_image):", "does not take platform", id="image"),
    pytest.param("images('web')", "def test_one(tmp_path):", "does not take multiarch_image", id="images"),
]


@pytest.mark.parametrize(("marker", "definition", "message"), MARKERS_WITHOUT_EFFECT)
def test_marker_without_effect(project: Project, marker: str, definition: str, message: str) -> None:
    text = f"import pytest\n@pytest.mark.{marker}\n{definition}\n    pass\ndef test_two():\n    pass\n"
    result = project.run(text)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: test_it.py:2: the marker {marker.partition('(')[0]} has no effect" in result.stderr.str()
    assert message in result.stderr.str()
    project.run(text, "-k", "test_two").assert_outcomes(passed=1, deselected=1)


def test_errors_of_markers(project: Project) -> None:
    """Each is reported, once."""
    text = """
        import pytest
        @pytest.mark.platforms("arm64")
        class TestIt:
            @pytest.mark.parametrize("number", [1, 2])
            def test_one(self, number):
                pass
            def test_two(self):
                pass
    """
    result = project.run(text)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.findall("ERROR: (.*?): the marker", result.stderr.str()) == ["test_it.py:5", "test_it.py:8"]


def test_marker_of_suite(project: Project) -> None:
    """A suite that declares a marker of that name uses it as it likes, unless the test takes our fixtures."""
    text = """
        import pytest
        @pytest.mark.platforms("win32", name=1)
        def test_one():
            pass
    """
    project.run(text, "-o", "markers=platforms(name): their own").assert_outcomes(passed=1)


TEST_CASE = """
    import unittest
    import pytest

    class TestIt(unittest.TestCase):
        @pytest.fixture(autouse=True)
        def set_up(self, {fixture}):
            pass

        def test_one(self):
            pass
"""


def test_unittest_class(project: Project) -> None:
    result = project.run(TEST_CASE.format(fixture="platform, run_on_platform"), "--arch-image=docker://x")
    result.assert_outcomes(errors=1)
    message = "pytest cannot run a unittest.TestCase once per platform: write a plain class"
    assert message in result.stdout.str()
    assert "take platform as an argument" not in result.stdout.str()
    project.run(TEST_CASE.format(fixture="multiarch_image"), "--arch-image=docker://x").assert_outcomes(
        passed=1
    )


@pytest.mark.parametrize("fixture", ["run_on_platform", "tmp_path"])
def test_marker_of_unittest_class(project: Project, fixture: str) -> None:
    text = TEST_CASE.format(fixture=fixture).replace("class", "@pytest.mark.platforms('arm64')\n    class")
    result = project.run(text)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "platforms has no effect on a unittest.TestCase" in result.stderr.str()
    assert "write a plain class" in result.stderr.str()


def test_platform_is_listed(project: Project) -> None:
    result = project.run(PLATFORM_TEST, "--fixtures")
    result.stdout.fnmatch_lines(["platform [[]session scope[]] -- *", "*Return the platform under test: *"])


RUN_TEST = "def test_it(run_on_platform):\n    assert run_on_platform().ok\n"
NEEDS_IMAGE = "def test_two(multiarch_image):\n    pass\n"
SYSTEM_ENGINE = 'engine = "system"'


@pytest.fixture
def dockerfile_project(project: Project) -> Project:
    """Return a repository with a Dockerfile whose settings allow only a running engine."""
    project.settings(SYSTEM_ENGINE)
    (project.path / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    return project


def test_missing_engine_skips(dockerfile_project: Project) -> None:
    result = dockerfile_project.run(NEEDS_IMAGE)
    result.assert_outcomes(skipped=1)
    assert "no engine: no Docker daemon answers at unix://" in result.stdout.str()


def test_skipped_run_names_test(project: Project) -> None:
    """The reason of a skipped run has the line of the test, and not one of this package."""
    project.settings(SYSTEM_ENGINE)
    project.add_image("image.tar")
    result = project.run(RUN_TEST, "--arch-image=image.tar", "--arch-runner=docker", "--arch-platform=amd64")
    result.assert_outcomes(skipped=1)
    assert "SKIPPED [1] test_it.py:1: no engine: " in result.stdout.str()


def test_required_engine_fails(dockerfile_project: Project) -> None:
    result = dockerfile_project.run(NEEDS_IMAGE, "--arch-require-engine")
    assert result.ret == 1
    assert "no engine: no Docker daemon answers at unix://" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()


def test_pipeline_needs_no_engine(project: Project) -> None:
    project.settings(SYSTEM_ENGINE)
    text = "def test_four(buildkit_pipeline):\n    assert buildkit_pipeline.settings.engine == 'system'\n"
    project.run(text, "--arch-require-engine").assert_outcomes(passed=1)


def test_archive_needs_no_engine(project: Project) -> None:
    project.settings(SYSTEM_ENGINE)
    project.add_image("image.tar", "linux/amd64", "linux/arm64")
    text = "from buildkit_tasks.testing.default_checks import test_image_verifies\n"
    options = ("--arch-require-engine", f"--arch-image=oci-archive:{project.path}/image.tar")
    result = project.run(text, *options, "--arch-platform=linux/arm64,linux/amd64,linux/s390x")
    result.assert_outcomes(passed=2, failed=1)
    assert "linux/s390x is not in oci-archive:" in result.stdout.str()
    assert "def test_image_verifies" not in result.stdout.str()


BAD_OPTIONS = [
    pytest.param("--arch-cpu=-cpu", "'-cpu' is not a valid CPU", id="cpu"),
    pytest.param("--cpu=both", "--cpu=both would be two runs", id="both-cpus"),
    pytest.param(
        "--arch-runner=podman",
        "option --arch-runner: runner = 'podman' is not one of auto, docker, sandbox",
        id="runner",
    ),
    pytest.param("--arch-platform=linux/amd46", "did you mean linux/amd64?", id="platform"),
    pytest.param("--platform=", "--platform= names no platform", id="no-platform"),
    pytest.param("--image=", "ERROR: --image= names no image", id="no-image"),
    pytest.param("--arch-image=", "--arch-image= names no image", id="no-arch-image"),
    pytest.param("--runner=podman", "option --runner: runner = 'podman'", id="short-runner"),
    pytest.param("--image=nofile.tar", "nofile.tar does not exist", id="no-file"),
    pytest.param("--image=oci-archive:nofile", "nofile does not exist", id="no-archive"),
    pytest.param("--image=oci:nodir", "nodir does not exist", id="no-layout"),
    pytest.param("--image=dir:nodir", "nodir is not a directory", id="no-directory"),
    pytest.param("--image=docker:q:1", "unknown image name 'docker:q:1'", id="unknown-transport"),
    pytest.param("--image=docker://app@sha256:12", "'sha256:12' is not a valid digest", id="reference"),
    pytest.param("--image=pyproject.toml", "pyproject.toml", id="no-image-file"),
    pytest.param("--image=oci:.", ". is not an OCI image layout: it has no index.json", id="not-a-layout"),
]


@pytest.mark.parametrize(("option", "message"), BAD_OPTIONS)
def test_bad_option_value(project: Project, option: str, message: str) -> None:
    result = project.run("raise AssertionError('this is collected')\n", option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stderr.str()
    assert "this is collected" not in result.stdout.str()
    assert "Traceback" not in result.stderr.str()


QEMU_WITHOUT_MODEL = """#!/bin/sh
echo "qemu: unable to find CPU model '$2'" >&2
exit 1
"""


def add_qemu_without_model(project: Project, *suffixes: str) -> None:
    folder = project.path / "cache/debian/qemu/usr/bin"
    folder.mkdir(parents=True)
    for suffix in suffixes:
        (folder / f"qemu-{suffix}").write_text(QEMU_WITHOUT_MODEL, encoding="utf-8")
        (folder / f"qemu-{suffix}").chmod(0o755)


@pytest.mark.parametrize("option", ["--cpu", "--arch-cpu"])
def test_unknown_cpu(project: Project, option: str) -> None:
    add_qemu_without_model(project, "aarch64", "x86_64")
    result = project.run("raise AssertionError('this is collected')\n", f"{option}=flor")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: {option}=flor: *QEMU has no CPU model 'flor'*", f"*try: {option}=floor"]
    )


def test_unavailable_qemu_is_no_bad_value(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EmulatorError("there is no QEMU")

    monkeypatch.setattr(Pipeline, "check_cpu", fail)
    project.run("def test_it():\n    pass\n", "--cpu=cortex-a53").assert_outcomes(passed=1)


def test_archive_without_name(project: Project) -> None:
    project.add_image("image.tar")
    result = project.run(NEEDS_IMAGE, "--image=oci-archive:image.tar:one")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "the layout has no image named 'one'" in result.stderr.str()


def test_folder_with_archives(project: Project) -> None:
    (project.path / "dist").mkdir()
    project.add_image("dist/image.tar")
    result = project.run(NEEDS_IMAGE, "--image=dist")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: dist is * but a folder with archives", "*try: write it as dist/image.tar"]
    )
    project.run(NEEDS_IMAGE, "--image=dist/image.tar").assert_outcomes(passed=1)


def test_bad_option_of_process(project: Project) -> None:
    result = project.pytester.runpytest_subprocess(*OPTIONS, "--image", "nofile.tar")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: nofile.tar does not exist"])
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()


GOOD_IMAGES = ["docker://registry.invalid/app:1", "registry.invalid/app", "docker-daemon:app:1", "image.tar"]


def test_images_elsewhere_are_not_opened(project: Project) -> None:
    project.add_image("image.tar")
    options = [f"--arch-image={image}" for image in GOOD_IMAGES]
    for option in options:
        project.run("def test_five():\n    pass\n", option).assert_outcomes(passed=1)


def test_unknown_cpu_of_settings(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is asked only if a selected test may run something, and another platform may have the model."""
    add_qemu_without_model(project, "aarch64", "x86_64")
    monkeypatch.setenv("INVOKE_BUILDKIT_CPU", "flor")
    image = "--arch-image=docker://x"
    result = project.run(f"{RUN_TEST}{PLATFORM_TEST}", image)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: INVOKE_BUILDKIT_CPU=flor: *QEMU has no CPU model 'flor'*", "*try: INVOKE_BUILDKIT_CPU=floor"]
    )
    project.run(f"{RUN_TEST}{PLATFORM_TEST}", image, "-k", "one").assert_outcomes(passed=2, deselected=2)
    assert project.run(RUN_TEST, image, "--collect-only").ret == 0
    text = RUN_TEST.replace("run_on_platform()", "callable(run_on_platform)").replace(").ok", ")")
    monkeypatch.setattr(Pipeline, "check_cpu", refuse_amd64)
    project.run(text, image).assert_outcomes(passed=2)
    assert project.run(text, image, "--arch-platform=amd64").ret == pytest.ExitCode.USAGE_ERROR


def refuse_amd64(_: Pipeline, platforms: tuple[Platform, ...]) -> None:
    if platforms[0].architecture == "amd64":
        raise UsageError("no such model")


BAD_SETTING = "pyproject.toml: [tool.buildkit-tasks]: runner = 'podman' is not one of"
USERS_OF_SETTINGS = [
    pytest.param(PLATFORM_TEST, id="platform"),
    pytest.param("def test_one(buildkit_pipeline):\n    pass\n", id="pipeline"),
    pytest.param(textwrap.dedent(TEST_CASE).format(fixture="multiarch_image"), id="unittest"),
]


@pytest.mark.parametrize("text", USERS_OF_SETTINGS)
def test_bad_setting(project: Project, text: str) -> None:
    """It matters to tests that need it."""
    project.settings("runner = 'podman'")
    text += "\ndef test_plain():\n    pass\n"
    project.run(text, "-k", "plain").assert_outcomes(passed=1, deselected=1)
    for options in ([], ["-k", "one"], ["--collect-only"]):
        result = project.run(text, *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert result.stderr.str().count(BAD_SETTING) == 1


def test_bad_setting_of_late_fixture(project: Project) -> None:
    project.settings("runner = 'podman'")
    result = project.run("def test_one(request):\n    request.getfixturevalue('buildkit_pipeline')\n")
    result.assert_outcomes(failed=1)
    assert BAD_SETTING in result.stdout.str()
    assert "SettingsError" not in result.stdout.str()
    assert "in load" not in result.stdout.str()


BAD_VARIABLES = [
    pytest.param("INVOKE_BUILDKIT_PLATFORM", "environment INVOKE_BUILDKIT_PLATFORM: unknown key", id="key"),
    pytest.param("INVOKE_BUILDKIT_PLATFORMS", "'x'", id="value"),
]


@pytest.mark.parametrize(("variable", "message"), BAD_VARIABLES)
def test_bad_environment(
    project: Project, monkeypatch: pytest.MonkeyPatch, variable: str, message: str
) -> None:
    monkeypatch.setenv(variable, "x")
    text = f"{PLATFORM_TEST}{NEEDS_IMAGE}def test_plain():\n    pass\n"
    project.run(text, "-k", "plain").assert_outcomes(passed=1, deselected=2)
    for options in ([], ["-k", "arm64"], ["-k", "two"], ["test_it.py::test_one[arm64]"]):
        result = project.run(text, *options)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert message in result.stderr.str()
        assert "not found" not in result.stderr.str()


def test_bad_setting_of_skipped_test(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVOKE_BUILDKIT_PLATFORMS", "x")
    project.run(f"import pytest\n@pytest.mark.skip\n{NEEDS_IMAGE}").assert_outcomes(skipped=1)


# A conftest.py that replaces builds and runs, until the session ends: each appends its arguments to a file.
FAKES_CONFTEST = """
import json, os, pathlib, time
import pytest
from buildkit_tasks import errors
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.report.model import BuildResult, EmulatorSummary, Outcome, Output, RunReport, RunResult

HERE = pathlib.Path(__file__).parent


def pytest_configure(config):
    (HERE / f"started-{{getattr(config, 'workerinput', {{}}).get('workerid', 'main')}}").touch()
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in ("build", "build_checked"):
        patch.setattr(Pipeline, name, build)
    patch.setattr(Pipeline, "run_image", emulate)


def record(name, **arguments):
    with (HERE / name).open("a") as log:
        print(json.dumps(arguments), file=log)


def build(self, request, **_):
    record("builds", platforms=list(map(str, request.platforms)), context=str(request.context))
    {build}
    dest = next(str(each.dest.absolute()) for each in request.outputs)
    outputs = (Output(type="oci", dest=dest),)
    return BuildResult(digest="", outputs=outputs, platforms=(), builder="", bases="", seconds=1)


def emulate(self, image, platforms=()):
    names = ("command", "expect", "expect_exit", "timeout", "cpu", "runner", "jobs")
    settings = {{name: getattr(self.settings, name) for name in names}}
    record("runs", image=image, checks=len(self.settings.checks), **settings)
    {emulate}
    emulator = EmulatorSummary(path="/qemu", cpu=self.settings.cpu)
    results = [
        RunResult(platform=str(platform), outcome=Outcome.PASSED, exit_code=0, stdout="hello", seconds=0.5,
                  runner="sandbox", emulated=True, emulator=emulator)
        for platform in platforms
    ]
    return RunReport(subject=image, results=tuple(results))


def wait_for_workers():
    deadline = time.monotonic() + 120
    while len(list(HERE.glob("started-gw*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


class Fakes(Project):
    """A repository with one test module, in which builds and runs only record their arguments."""

    def run(self, text: str, *options: str, build: str = "", emulate: str = "") -> pytest.RunResult:
        self.pytester.makeconftest(FAKES_CONFTEST.format(build=build, emulate=emulate))
        return super().run(text, *options)

    def calls(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def fakes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(pytester, monkeypatch)


ON_S390X = ("--arch-image=docker://x", "--arch-platform=s390x")


def test_run_result(fakes: Fakes) -> None:
    text = """
        def test_it(run_on_platform, platform):
            result = run_on_platform("uname -m", expect="x", expect_exit=3, timeout=7, cpu="floor")
            assert (result.platform, result.stdout, result.exit_code) == (str(platform), "hello", 0)
            assert (result.seconds, result.runner, result.emulator.cpu) == (0.5, "sandbox", "floor")
    """
    fakes.run(text, *ON_S390X, "--arch-runner=sandbox").assert_outcomes(passed=1)
    expected = {"command": "uname -m", "expect": "x", "expect_exit": 3, "timeout": 7, "cpu": "floor"}
    (call,) = fakes.calls("runs")
    assert call == expected | {"image": "docker://x", "checks": 0, "runner": "sandbox", "jobs": 0}
    assert fakes.calls("builds") == []


CHECK_TABLE = "[[tool.buildkit-tasks.check]]\ncommand = 'true'"
RUN_SETTINGS = ("command = 'one'", "expect = 'two'", "expect-exit = 3", "timeout = 4", "cpu = 'floor'")


def test_run_settings(fakes: Fakes) -> None:
    """A call without a command takes the settings; one with a command only its own expectations."""
    text = """
        def test_it(run_on_platform):
            assert run_on_platform().ok
            assert run_on_platform("three").ok
            assert run_on_platform("three", cpu="max").ok
    """
    fakes.settings(*RUN_SETTINGS, CHECK_TABLE)
    fakes.run(text, *ON_S390X).assert_outcomes(passed=1)
    keys = ("command", "expect", "expect_exit", "timeout", "cpu", "checks")
    assert [tuple(call[key] for key in keys) for call in fakes.calls("runs")] == [
        ("one", "two", 3, 4, "floor", 0),
        ("three", "", 0, 4, "floor", 0),
        ("three", "", 0, 4, "max", 0),
    ]


def test_cpu_option_overrides_settings(fakes: Fakes) -> None:
    fakes.settings(*RUN_SETTINGS)
    fakes.run(RUN_TEST, *ON_S390X, "--arch-cpu=max").assert_outcomes(passed=1)
    assert [call["cpu"] for call in fakes.calls("runs")] == ["max"]


def test_default_checks_run_settings(fakes: Fakes) -> None:
    fakes.settings("cpu = 'both'", CHECK_TABLE)
    text = "from buildkit_tasks.testing.default_checks import test_image_runs\n"
    fakes.run(text, *ON_S390X).assert_outcomes(passed=1)
    (call,) = fakes.calls("runs")
    assert (call["checks"], call["cpu"]) == (1, "both")


def test_default_check_failure_message(fakes: Fakes) -> None:
    text = "from buildkit_tasks.testing.default_checks import test_image_runs\n"
    emulate = """
    floor = EmulatorSummary(path="/qemu", cpu="arm1176")
    kinds = [("one", Outcome.PASSED, None), ("two --three", Outcome.ILLEGAL_INSTRUCTION, floor)]
    return RunReport(subject="", results=tuple(
        RunResult(platform="linux/arm/v6", outcome=outcome, command=command, emulator=emulator,
                  message="build it with GOARM=6") for command, outcome, emulator in kinds))
    """
    result = fakes.run(text, "--arch-image=docker://x", "--arch-platform=arm/v6", emulate=emulate)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["two --three on arm1176: illegal-instruction: build it with GOARM=6*"])
    assert "one: passed" not in result.stdout.str()
    assert "def test_image_runs" not in result.stdout.str()


def test_run_refuses_bad_values(fakes: Fakes) -> None:
    text = """
        import pytest
        from buildkit_tasks.errors import UsageError
        @pytest.mark.parametrize("bad", [{"cpu": "--privileged"}, {"timeout": -1}, {"expect_exit": 1.5}])
        def test_it(run_on_platform, bad):
            with pytest.raises(UsageError, match="^run_on_platform: "):
                run_on_platform(**bad)
    """
    fakes.run(text, *ON_S390X).assert_outcomes(passed=3)
    assert fakes.calls("runs") == []


@pytest.mark.parametrize("setting", ["", "cpu = 'both'"])
def test_run_refuses_both_cpus(fakes: Fakes, setting: str) -> None:
    text = f"""
        import pytest
        from buildkit_tasks.errors import UsageError
        def test_it(run_on_platform):
            with pytest.raises(UsageError, match="would be two runs"):
                run_on_platform({"" if setting else "cpu='both'"})
            assert run_on_platform(cpu="max").ok
            assert run_on_platform(cpu="floor").ok
    """
    fakes.settings(setting)
    fakes.run(text, *ON_S390X).assert_outcomes(passed=1)
    assert [call["cpu"] for call in fakes.calls("runs")] == ["max", "floor"]


INTERRUPTED = "raise errors.Interrupted('the running command was ended')"


@pytest.mark.parametrize(
    ("text", "options", "fakes_of"),
    [
        pytest.param(NEEDS_IMAGE, (), {"build": INTERRUPTED}, id="build"),
        pytest.param(RUN_TEST, ON_S390X, {"emulate": INTERRUPTED}, id="run"),
        pytest.param(
            "from buildkit_tasks.testing.default_checks import test_image_runs\n",
            ON_S390X,
            {"emulate": INTERRUPTED},
            id="default-check",
        ),
    ],
)
def test_ctrl_c_ends_pytest(
    fakes: Fakes, text: str, options: tuple[str, ...], fakes_of: dict[str, str]
) -> None:
    (fakes.path / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):  # pytester raises it again
        fakes.run(f"{text}\ndef test_later():\n    open('later', 'w')\n", *options, **fakes_of)
    assert not (fakes.path / "later").exists()


MISSING_PARTS = [
    pytest.param("EngineError", "no engine: why", id="engine"),
    pytest.param("EmulatorError", "no emulator: why", id="emulator"),
]


@pytest.mark.parametrize(("error", "message"), MISSING_PARTS)
def test_run_without_engine_or_emulator(fakes: Fakes, error: str, message: str) -> None:
    text = RUN_TEST + "from buildkit_tasks.testing.default_checks import test_image_runs\n"
    missing = f"raise errors.{error}('why')"
    result = fakes.run(text, *ON_S390X, emulate=missing)
    result.assert_outcomes(skipped=2)
    assert skip_reasons(result) == [message, message]  # with the line of each test
    result = fakes.run(text, *ON_S390X, "--arch-require-engine", emulate=missing)
    result.assert_outcomes(failed=2)
    assert result.outlines.count(message) == 2


FAILING_RUN = """
    try:
        open("/missing")
    except OSError as error:
        raise errors.MalformedImage("the layer is broken", hint="inv build-multiarch") from error
"""
FAILING_TEST = """
    def call(run_on_platform):
        run_on_platform()

    def test_run(run_on_platform):
        call(run_on_platform)

    def test_verify(buildkit_pipeline, multiarch_image):
        buildkit_pipeline.verify_image(f"oci-archive:{multiarch_image}.gz")
"""


def test_failures_are_short(fakes: Fakes) -> None:
    """A failure shows the test's own lines and the message, but no frame of the package and no cause."""
    fakes.add_image("x.tar")
    result = fakes.run(FAILING_TEST, "--arch-image=x.tar", "--arch-platform=s390x", emulate=FAILING_RUN)
    result.assert_outcomes(failed=2)
    output = result.stdout.str()
    assert "errors.MalformedImage: the layer is broken\nE " in output
    assert "errors.UsageError: x.tar.gz does not exist\nE " in output
    assert "call(run_on_platform)" in output
    assert "buildkit_tasks/" not in output
    assert "direct cause" not in output
    assert "/missing" not in output
    assert len(result.outlines) < 60


def test_full_trace_shows_all(fakes: Fakes) -> None:
    result = fakes.run(FAILING_TEST, *ON_S390X, "--full-trace", "-k", "test_run", emulate=FAILING_RUN)
    result.assert_outcomes(failed=1, deselected=1)
    assert "buildkit_tasks/pytest_plugin.py" in result.stdout.str()
    assert "/missing" in result.stdout.str()


def test_other_errors_keep_frames(fakes: Fakes) -> None:
    """An exception that is not one of the package's own is a defect: all of it is shown."""
    result = fakes.run(RUN_TEST, *ON_S390X, emulate="raise ValueError('bug')")
    result.assert_outcomes(failed=1)
    assert "buildkit_tasks/pytest_plugin.py" in result.stdout.str()


TWO_TESTS = """
    def test_one(multiarch_image, platform):
        from pathlib import Path
        assert multiarch_image == f"oci-archive:{Path.cwd()}/dist/{Path.cwd().name}.tar"
    def test_two(multiarch_image, platform):
        pass
"""


def test_single_image_is_built_once(fakes: Fakes) -> None:
    fakes.run(TWO_TESTS, "--arch-platform=386,s390x").assert_outcomes(passed=4)
    (build,) = fakes.calls("builds")
    assert build["platforms"] == ["linux/386", "linux/s390x"]


BUILDS_FOR_MARKER = """
    import pytest

    @pytest.mark.platforms("arm/v7", "arm64")
    def test_one(run_on_platform, platform):
        assert run_on_platform().platform == str(platform)

    @pytest.mark.platforms("386")
    def test_deselected(run_on_platform):
        pass

    @pytest.mark.platforms("riscv64")
    def test_without_image(platform):
        pass
"""


def test_marked_platforms_are_built(fakes: Fakes) -> None:
    """README's example: the image has the settings' platforms and those that selected tests name."""
    result = fakes.run(BUILDS_FOR_MARKER, "-k", "not deselected")
    result.assert_outcomes(passed=3, deselected=1)
    assert cases_of(result) == ["arm64", "arm-v7", "riscv64"]
    assert [build["platforms"] for build in fakes.calls("builds")] == [
        ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    ]


def test_left_out_platforms_are_not_built(fakes: Fakes) -> None:
    result = fakes.run(BUILDS_FOR_MARKER, "-k", "test_one", "--platform=arm64")
    result.assert_outcomes(passed=1, skipped=1, deselected=2)
    assert [build["platforms"] for build in fakes.calls("builds")] == [["linux/arm64"]]


OWN_PARAMETERS = """
    import pytest

    @pytest.fixture(params=["linux/riscv64", "linux/amd64"])
    def platform(request):
        return request.param

    def test_fixture(platform, run_on_platform):
        assert run_on_platform().platform == platform

    @pytest.mark.parametrize("platform", ["arm64", "linux/arm/v7"])
    @pytest.mark.parametrize("number", [1, 2])
    def test_parameter(run_on_platform, platform, number):
        assert run_on_platform().platform.startswith("linux/arm")

    @pytest.mark.platforms("linux/amd64")
    def test_marker(platform, run_on_platform):
        assert platform == "linux/amd64"
"""


def test_own_platform_parameters(fakes: Fakes) -> None:
    """A parameter of the project that has names of platforms says where the test runs, once each."""
    result = fakes.run(OWN_PARAMETERS)
    result.assert_outcomes(passed=7, skipped=1)
    assert skip_reasons(result) == ["the marker platforms(...) leaves out linux/riscv64"]
    (build,) = fakes.calls("builds")
    assert build["platforms"] == ["linux/amd64", "linux/arm64", "linux/riscv64", "linux/arm/v7"]


OWN_FIXTURE = """
    import pytest

    @pytest.fixture
    def platform():
        return "linux/arm64"

    def test_fixture(platform, run_on_platform):
        assert run_on_platform().platform == platform
"""


def test_own_platform_fixture(fakes: Fakes) -> None:
    result = fakes.run(OWN_FIXTURE)
    result.assert_outcomes(passed=1, skipped=1)
    assert cases_of(result) == ["arm64"]
    assert skip_reasons(result) == ["the test's own fixture platform is linux/arm64"]
    result = fakes.run(OWN_FIXTURE, *ON_S390X)  # no case has its platform: the fixture decides
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("value", ["str(platform)", "platform.slug", "platform.goarch", "platform"])
def test_own_platform_from_ours(fakes: Fakes, value: str) -> None:
    """A fixture that overrides ours by its name, made of ours, changes nothing for the run."""
    text = f"""
        import pytest

        @pytest.fixture
        def platform(platform):
            return {value}

        def test_fixture(platform, run_on_platform, buildkit_platform):
            assert run_on_platform().platform == str(buildkit_platform)
    """
    result = fakes.run(text, "--arch-image=docker://x", "--arch-platform=arm/v6,arm/v7,amd64")
    result.assert_outcomes(passed=3)


def test_own_platform_from_run(fakes: Fakes) -> None:
    text = """
        import pytest

        @pytest.fixture
        def platform(run_on_platform):
            return run_on_platform("uname -m").stdout

        def test_fixture(platform):
            assert platform == "hello"
    """
    fakes.run(text, *ON_S390X).assert_outcomes(passed=1)


# --- pytest-xdist: each worker is a process


def worker_ids(output: str) -> set[str]:
    return set(re.findall(r"^\[(gw\d+)\]", output, re.MULTILINE))


THREE_OUTCOMES = """
platforms = ["linux/amd64", "linux/arm64", "linux/386", "linux/s390x"]
[[tool.buildkit-tasks.image]]
name = "web"
context = "webs"
[[tool.buildkit-tasks.image]]
name = "broken"
context = "broken"
[[tool.buildkit-tasks.image]]
name = "none"
context = "none"
"""
THREE_BUILDS = """
    wait_for_workers()
    if request.context == "broken":
        raise errors.BuildFailed("exit status 7", hint="fix it")
    if request.context == "none":
        raise errors.EngineError("why")
"""
WORKER_TESTS = """
    import pytest

    def test_one(multiarch_image, platform):
        pass

    @pytest.mark.platforms("riscv64", "386", "arm64")
    def test_two(multiarch_image, platform):
        pass
"""


def test_workers_share_outcomes(fakes: Fakes) -> None:
    """Of each image there is one build, also one that fails, or that has no engine."""
    for folder in ("webs", "broken", "none"):
        (fakes.pytester.mkdir(folder) / "Dockerfile").write_text("FROM scratch\n")
    fakes.settings(THREE_OUTCOMES)
    result = fakes.run(WORKER_TESTS, "-n2", "-v", build=THREE_BUILDS)
    result.assert_outcomes(passed=7, errors=7, skipped=7)
    output = result.stdout.str()
    assert worker_ids(output) == {"gw0", "gw1"}
    assert "broken could not be built: exit status 7" in output
    assert "Traceback" not in output
    assert set(skip_reasons(result)) == {"no engine: why"}
    builds = {build["context"]: build["platforms"] for build in fakes.calls("builds")}
    platforms = ["linux/amd64", "linux/arm64", "linux/386", "linux/s390x", "linux/riscv64"]
    assert builds == dict.fromkeys(["webs", "broken", "none"], platforms)
    assert len(fakes.calls("builds")) == 3


def test_next_session_builds_again(fakes: Fakes) -> None:
    for _ in range(2):
        fakes.run(TWO_TESTS, "-n1", "--basetemp=base", "--arch-platform=386,s390x").assert_outcomes(passed=4)
    assert len(fakes.calls("builds")) == 2


def test_record_of_other_session_is_ignored(tmp_path_factory: pytest.TempPathFactory) -> None:
    """xdist workers on another machine keep one temporary directory for several sessions."""
    builds: list[str] = []

    def build_image() -> SessionImage:
        builds.append("build")
        return SessionImage(image=f"image {len(builds)}")

    def build_in_session(session: str) -> str:
        config: Any = SimpleNamespace(workerinput={"testrunuid": session})
        return pytest_plugin._build_once(config, tmp_path_factory, "", build_image).image

    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    assert [build_in_session(each) for each in (first, first, second)] == ["image 1", "image 1", "image 2"]


def test_killed_worker_leaves_build(fakes: Fakes) -> None:
    kill_first_worker = """
    wait_for_workers()
    if len((HERE / "builds").read_text().splitlines()) == 1:
        os.kill(os.getpid(), 9)
    """
    platforms = "--arch-platform=amd64,arm64,386,ppc64le,s390x,riscv64"
    result = fakes.run(TWO_TESTS, "-n2", "--max-worker-restart=2", platforms, build=kill_first_worker)
    assert "crashed" in result.stdout.str()
    assert result.parseoutcomes()["passed"] == 11
    assert len(fakes.calls("builds")) == 2


BAD_FOR_WORKERS = """
    import pytest

    @pytest.mark.platforms("arm64")
    def test_one():
        pass

    def test_two():
        pass
"""


def test_workers_report_bad_marker(project: Project) -> None:
    result = project.run(BAD_FOR_WORKERS, "-n2")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().count("ERROR: test_it.py:4: the marker platforms has no effect") == 1
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
    project.run(BAD_FOR_WORKERS, "-n2", "-k", "test_two").assert_outcomes(passed=1)


def test_workers_verify_one_archive(project: Project) -> None:
    project.add_image("image.tar", "linux/amd64", "linux/arm64", "linux/arm/v7")
    text = "from buildkit_tasks.testing.default_checks import test_image_verifies\n"
    options = ("-n2", "-v", "--arch-platform=amd64,arm64,arm/v7,386", "--arch-image=oci-archive:image.tar")
    result = project.run(text, *options)
    result.assert_outcomes(passed=3, failed=1)
    assert worker_ids(result.stdout.str()) == {"gw0", "gw1"}


def test_case_order(project: Project) -> None:
    """All workers of pytest-xdist must collect the same order: that of the options."""
    text = "import pytest\n@pytest.mark.platforms('386', 's390x', 'arm64')\n" + PLATFORM_TEST
    options = ("--arch-platform=s390x,amd64,386", "--arch-platform=arm64")
    assert cases_of(project.run(text, *options)) == ["s390x", "386", "arm64"]


# --- several images

TWO_IMAGES = """
platforms = ["linux/amd64", "linux/arm64"]
[[tool.buildkit-tasks.image]]
name = "web"
context = "webs"
expect = "this is web"
[[tool.buildkit-tasks.image]]
name = "tool"
platforms = ["s390x"]
"""
IMAGE_TEST = "def test_it(multiarch_image, platform):\n    pass\n"


@pytest.fixture
def two_images(fakes: Fakes) -> Fakes:
    """Return a repository of two images, and archives of two others."""
    for folder in (fakes.path, fakes.pytester.mkdir("webs")):
        (folder / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    for name in ("x.tar", "y.tar"):
        fakes.add_image(name)
    fakes.settings(TWO_IMAGES)
    return fakes


def test_images_have_own_platforms_and_settings(two_images: Fakes) -> None:
    text = """
        def test_it(run_on_platform, multiarch_image, buildkit_image_under_test):
            assert run_on_platform().ok
            assert multiarch_image.endswith(f"/dist/{buildkit_image_under_test.name}.tar")
        def test_another(multiarch_image):
            pass
    """
    result = two_images.run(text)
    result.assert_outcomes(passed=5)
    assert sorted(cases_of(result)) == ["tool", "tool-s390x", "web", "web-amd64", "web-arm64"]
    built = [(build["context"], build["platforms"]) for build in two_images.calls("builds")]
    assert sorted(built) == [(".", ["linux/s390x"]), ("webs", ["linux/amd64", "linux/arm64"])]
    output = {run["image"].rpartition("/")[2]: run["expect"] for run in two_images.calls("runs")}
    assert output == {"web.tar": "this is web", "tool.tar": ""}


def test_failed_image_fails_own_tests(two_images: Fakes) -> None:
    failing_build = "if 'webs' in str(request.context): raise errors.BuildFailed('exit status 7')"
    result = two_images.run(IMAGE_TEST, build=failing_build)
    result.assert_outcomes(passed=1, errors=2)
    assert "web could not be built: exit status 7" in result.stdout.str()
    assert len(two_images.calls("builds")) == 2


def test_unreadable_context_fails(two_images: Fakes) -> None:
    result = two_images.run(IMAGE_TEST, build="raise PermissionError(13, 'Permission denied', 'webs')")
    result.assert_outcomes(errors=3)
    assert "web could not be built: [Errno 13] Permission denied: 'webs'" in result.stdout.str()


SELECTIONS = [
    pytest.param(["--arch-image=web"], ["web-amd64", "web-arm64"], 1, id="by-name"),
    pytest.param(["--arch-image=tool=x.tar"], ["tool-s390x"], 0, id="prebuilt"),
    pytest.param(
        ["--arch-image=tool=x.tar", "--arch-image=web=y.tar"],
        ["tool-s390x", "web-amd64", "web-arm64"],
        0,
        id="both",
    ),
    pytest.param(["--arch-image=web=x.tar", "--arch-platform=386"], ["web-386"], 0, id="platform"),
    pytest.param(["--arch-image=x.tar"], ["amd64", "arm64"], 0, id="without-table"),
    pytest.param(["--arch-image=y.tar", "--arch-image=x.tar"], ["amd64", "arm64"], 0, id="last-wins"),
]


@pytest.mark.parametrize(("options", "cases", "builds"), SELECTIONS)
def test_image_option(two_images: Fakes, options: list[str], cases: list[str], builds: int) -> None:
    text = "def test_it(multiarch_image, platform):\n    assert multiarch_image.endswith('.tar')\n"
    result = two_images.run(text, *options)
    assert result.ret == 0
    assert cases_of(result) == cases
    assert len(two_images.calls("builds")) == builds


PREBUILT = [
    pytest.param(["--arch-image=tool=y.tar"], "y.tar", id="of-settings"),
    pytest.param(["--arch-image=x.tar"], "x.tar", id="without-table"),
    pytest.param(["--arch-image=web=x.tar", "--arch-image=web=y.tar"], "y.tar", id="last-wins"),
]


@pytest.mark.parametrize(("options", "image"), PREBUILT)
def test_prebuilt_image_is_run(two_images: Fakes, options: list[str], image: str) -> None:
    two_images.run(RUN_TEST, *options, "--arch-platform=386").assert_outcomes(passed=1)
    assert [run["image"] for run in two_images.calls("runs")] == [image]
    assert two_images.calls("builds") == []


MARKED_IMAGE = f"import pytest\n@pytest.mark.images('tool')\n{IMAGE_TEST}"


def test_images_marker(two_images: Fakes) -> None:
    assert cases_of(two_images.run(MARKED_IMAGE, "--strict-markers")) == ["tool-s390x"]


@pytest.mark.parametrize("option", ["--arch-image=web=x.tar", "--arch-image=x.tar"])
def test_option_skips_marked_image(two_images: Fakes, option: str) -> None:
    result = two_images.run(MARKED_IMAGE, option)
    result.assert_outcomes(skipped=1)
    assert skip_reasons(result) == ["--arch-image leaves out tool"]


def test_marked_platform_of_one_image(two_images: Fakes) -> None:
    """It runs on the images of the settings that have it; on all of them if none does."""
    text = f"import pytest\n@pytest.mark.platforms('arm64', 'riscv64')\n{IMAGE_TEST}"
    result = two_images.run(text)
    assert sorted(cases_of(result)) == ["tool-riscv64", "web-arm64", "web-riscv64"]
    assert skip_reasons(result) == ["linux/arm64 is not a platform of tool in the settings"]
    built = {build["context"]: build["platforms"] for build in two_images.calls("builds")}
    assert built == {
        ".": ["linux/s390x", "linux/riscv64"],
        "webs": ["linux/amd64", "linux/arm64", "linux/riscv64"],
    }


UNKNOWN = [
    pytest.param(TWO_IMAGES, "there is no image 'wbe' in the settings", "choose one of web, tool", id="typo"),
    pytest.param("", "there is no image 'wbe' in the settings", "tool.buildkit-tasks.image", id="none"),
]


@pytest.mark.parametrize(("settings", "message", "hint"), UNKNOWN)
def test_unknown_image_in_marker(two_images: Fakes, settings: str, message: str, hint: str) -> None:
    two_images.settings(settings)
    result = two_images.run(f"import pytest\n@pytest.mark.images('wbe')\n{IMAGE_TEST}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"test_it.py:2: {message}" in result.stderr.str()
    assert hint in result.stderr.str()


@pytest.mark.parametrize(("settings", "message", "hint"), UNKNOWN)
def test_unknown_name_of_built_image(two_images: Fakes, settings: str, message: str, hint: str) -> None:
    two_images.settings(settings)
    result = two_images.run(IMAGE_TEST, "--arch-image=wbe=oci-archive:x.tar")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {message}" in result.stderr.str()
    assert hint in result.stderr.str()


def test_equals_sign_in_file_name(two_images: Fakes) -> None:
    two_images.add_image("a=b.tar")
    for image in ("a=b.tar", "oci-archive:a=b.tar", "./a=b.tar"):
        two_images.run(PLATFORM_TEST, f"--arch-image={image}").assert_outcomes(passed=2)


def test_image_without_table(two_images: Fakes) -> None:
    result = two_images.run(IMAGE_TEST, "--arch-image=web", "--arch-image=x.tar")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "x.tar is not an image of the settings, but web is" in result.stderr.str()


def test_platforms_of_all_images(two_images: Fakes) -> None:
    assert cases_of(two_images.run(PLATFORM_TEST)) == ["amd64", "arm64", "s390x"]


def test_dynamic_image_of_several(two_images: Fakes) -> None:
    text = "def test_it(request):\n    assert request.getfixturevalue('multiarch_image')\n"
    result = two_images.run(text)
    result.assert_outcomes(failed=1)
    assert "there are several images: take multiarch_image as an argument" in result.stdout.str()
    two_images.run(text, "--arch-image=tool").assert_outcomes(passed=1)


def test_name_of_built_in_tests(project: Project) -> None:
    """JUnit's class name is the module, and not the path of the folder that the package is installed in."""
    arguments = ("--pyargs", "buildkit_tasks.testing.default_checks", "--arch-image", "hello.tar")
    project.add_image("hello.tar")
    project.pytester.runpytest_inprocess(
        *OPTIONS, *arguments, "--junit-xml=j.xml", "--arch-platform=linux/amd64"
    )
    report = (project.path / "j.xml").read_text(encoding="utf-8")
    assert set(re.findall(r'classname="([^"]*)"', report)) == {"buildkit_tasks.testing.default_checks"}


HOSTILE_TEST = """
from buildkit_tasks.errors import MalformedImage

TEXT = "\\x1b[2Jx" + chr(10) + "::stop-commands::y" + chr(10) + "#" "#[error]z" + chr(0x202e)

def test_assertion(multiarch_image):
    print(TEXT)
    assert not multiarch_image, TEXT

def test_error(multiarch_image):
    raise MalformedImage(TEXT)
"""


def test_hostile_text_is_escaped(project: Project) -> None:
    """In assertions, in captured output and in the messages of our errors."""
    image = project.add_image("app.tar", "linux/arm64")
    result = project.run(HOSTILE_TEST, f"--arch-image={image}", "-rf")
    result.assert_outcomes(failed=2)
    output = result.stdout.str()
    assert not {"\x1b", "\u202e"} & set(output)
    assert "##[" not in output
    assert not [line for line in output.splitlines() if line.lstrip().startswith("::")]
