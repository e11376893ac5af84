from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks import pytest_plugin
from buildkit_tasks.testing.session_image import SessionImage
from tests.support.environment import NO_OTHER_PLUGINS, delete_env, minimal_env
from tests.support.oci import hello, write_archive

if TYPE_CHECKING:
    from pathlib import Path


def run_pytest(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """Return pytest's status and output for a test module in ``folder``, without this process's settings."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    if not (folder / "pyproject.toml").exists():
        (folder / "pyproject.toml").touch()
    options = ("-q", "-rA", "-p", "no:cacheprovider", *NO_OTHER_PLUGINS, *options)
    argv = [sys.executable, "-m", "pytest", *options, "test_it.py"]
    env = minimal_env(HOME=str(folder), DOCKER_CONFIG=str(folder), DOCKER_HOST=f"unix://{folder}/no.sock")
    process = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return process.returncode, process.stdout + process.stderr


PLATFORM_TEST = "def test_one(platform):\n    assert str(platform).startswith('linux/')\n"


def test_platform_cases(tmp_path: Path) -> None:
    code, output = run_pytest(
        tmp_path, PLATFORM_TEST, "--arch-platform=linux/arm/v7,linux/386", "--arch-platform=s390x"
    )
    assert code == 0
    assert [line for line in output.splitlines() if line.startswith("PASSED")] == [
        "PASSED test_it.py::test_one[arm-v7]",
        "PASSED test_it.py::test_one[386]",
        "PASSED test_it.py::test_one[s390x]",
    ]


def test_platform_goarch(tmp_path: Path) -> None:
    text = "def test_one(platform):\n    assert platform.goarch == platform.slug.partition('-')[0]\n"
    code, output = run_pytest(tmp_path, text, "--arch-platform=linux/arm/v7,linux/386")
    assert (code, "2 passed" in output) == (0, True)


def test_platforms_of_settings(tmp_path: Path) -> None:
    text = '[tool.buildkit-tasks]\nplatforms = ["linux/riscv64"]\n'
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    code, output = run_pytest(tmp_path, PLATFORM_TEST)
    assert (code, "test_one[riscv64]" in output, "1 passed" in output) == (0, True, True)


def test_platforms_marker(tmp_path: Path) -> None:
    marked_test = f"import pytest\n@pytest.mark.platforms('arm64', 'linux/386')\n{PLATFORM_TEST}"
    code, output = run_pytest(
        tmp_path, marked_test, "--strict-markers", "--arch-platform=linux/386,linux/amd64"
    )
    assert (code, "test_one[386]" in output, "1 passed" in output) == (0, True, True)


NEEDS_IMAGE = "def test_two(multiarch_image):\n    pass\n"
SYSTEM_ENGINE = '[tool.buildkit-tasks]\nengine = "system"\n'


def make_dockerfile_project(folder: Path) -> Path:
    """Return a repository with a Dockerfile whose settings allow only a running engine."""
    (folder / "pyproject.toml").write_text(SYSTEM_ENGINE, encoding="utf-8")
    (folder / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    return folder


def test_missing_engine_skips(tmp_path: Path) -> None:
    code, output = run_pytest(make_dockerfile_project(tmp_path), NEEDS_IMAGE)
    assert code == 0
    assert "1 skipped" in output
    assert "no engine: no Docker daemon answers at unix://" in output


def test_required_engine_fails(tmp_path: Path) -> None:
    code, output = run_pytest(make_dockerfile_project(tmp_path), NEEDS_IMAGE, "--arch-require-engine")
    assert code == 1
    assert "no engine: no Docker daemon answers at unix://" in output
    assert "Traceback" not in output


def test_unknown_platform_hint(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, PLATFORM_TEST, "--arch-platform=linux/amd46")
    assert code != 0
    assert "did you mean linux/amd64?" in output


def test_pipeline_needs_no_engine(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SYSTEM_ENGINE, encoding="utf-8")
    text = "def test_four(buildkit_pipeline):\n    assert buildkit_pipeline.settings.engine == 'system'\n"
    code, output = run_pytest(tmp_path, text, "--arch-require-engine")
    assert code == 0, output


def test_archive_needs_no_engine(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SYSTEM_ENGINE, encoding="utf-8")
    write_archive(hello(("linux/amd64", "linux/arm64")), tmp_path / "image.tar")
    text = "from buildkit_tasks.testing.default_checks import test_image_verifies\n"
    options = ("--arch-require-engine", f"--arch-image=oci-archive:{tmp_path}/image.tar")
    code, output = run_pytest(tmp_path, text, *options, "--arch-platform=linux/arm64,linux/amd64")
    assert code == 0, output
    assert "2 passed" in output
    code, output = run_pytest(tmp_path, text, *options, "--arch-platform=linux/s390x")
    assert code == 1
    assert "linux/s390x is not in oci-archive:" in output


BAD_OPTIONS = [
    pytest.param("--arch-cpu=-cpu", "'-cpu' is not a valid CPU", id="cpu"),
    pytest.param(
        "--arch-runner=podman", "runner = 'podman' is not one of auto, docker, sandbox", id="runner"
    ),
    pytest.param("--arch-platform=linux/amd46", "did you mean linux/amd64?", id="platform"),
]


@pytest.mark.parametrize(("option", "message"), BAD_OPTIONS)
def test_bad_option_value(tmp_path: Path, option: str, message: str) -> None:
    code, output = run_pytest(tmp_path, "def test_five():\n    pass\n", option)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert message in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output


def test_bad_setting(tmp_path: Path) -> None:
    text = "[tool.buildkit-tasks]\nrunner = 'podman'\n"
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    code, output = run_pytest(tmp_path, "def test_five():\n    pass\n")
    assert code == 0, output
    late_request = "def test_seven(request):\n    request.getfixturevalue('buildkit_pipeline')\n"
    for text in (PLATFORM_TEST, "def test_six(buildkit_pipeline):\n    pass\n", late_request):
        code, output = run_pytest(tmp_path, text)
        assert code != 0
        assert "pyproject.toml: [tool.buildkit-tasks]: runner = 'podman' is not one of" in output
        assert "SettingsError" not in output
        assert "in load" not in output


# A conftest.py that replaces builds and runs: each appends its arguments to a file beside the test.
FAKES_CONFTEST = """
import dataclasses, json, pathlib, time
import pytest
from buildkit_tasks import errors
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.report.model import BuildResult, EmulatorSummary, Outcome, Output, RunReport, RunResult

HERE = pathlib.Path(__file__).parent


def record(name, **arguments):
    with (HERE / name).open("a") as log:
        print(json.dumps(arguments), file=log)


def build(self, request):
    record("builds", platforms=list(map(str, request.platforms)), context=str(request.context))
    time.sleep(1)
    {build}
    (dest,) = (str(each.dest.absolute()) for each in request.outputs)
    output = Output(type="oci", dest=dest)
    result = BuildResult(digest="", outputs=(output,), platforms=(), builder="", bases="", seconds=1)
    self.resolver.record_last_built(result)
    return result


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


Pipeline.build = Pipeline.build_checked = build
Pipeline.with_settings = lambda self, settings: dataclasses.replace(self, settings=settings)
Pipeline.run_image = emulate
"""


class Fakes:
    """A repository with one test module, in which builds and runs only record their arguments."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.settings()

    def settings(self, *lines: str) -> Fakes:
        text = "\n".join(["[tool.buildkit-tasks]", f"cache = '{self.pytester.path}/cache'", *lines])
        self.pytester.makepyprojecttoml(text)
        return self

    def run(self, text: str, *options: str, build: str = "", emulate: str = "") -> pytest.RunResult:
        self.pytester.makeconftest(FAKES_CONFTEST.format(build=build, emulate=emulate))
        self.pytester.makepyfile(text)
        return self.pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rA", *options, timeout=120)

    def calls(self, name: str) -> list[dict[str, Any]]:
        path = self.pytester.path / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def fakes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    delete_env(monkeypatch, "INVOKE_BUILDKIT_*", "DOCKER_*", "PYTEST_XDIST*")
    return Fakes(pytester)


RUN_TEST = "def test_it(run_on_platform):\n    assert run_on_platform().ok\n"


def test_run_result(fakes: Fakes) -> None:
    text = """
        def test_it(run_on_platform, platform):
            result = run_on_platform("uname -m", expect="x", expect_exit=3, timeout=7, cpu="floor")
            assert (result.platform, result.stdout, result.exit_code) == (str(platform), "hello", 0)
            assert (result.seconds, result.runner, result.emulator.cpu) == (0.5, "sandbox", "floor")
    """
    result = fakes.run(
        text, "--arch-image=oci-archive:x.tar", "--arch-platform=s390x", "--arch-runner=sandbox"
    )
    result.assert_outcomes(passed=1)
    expected = {"command": "uname -m", "expect": "x", "expect_exit": 3, "timeout": 7, "cpu": "floor"}
    (call,) = fakes.calls("runs")
    assert call == expected | {"image": "oci-archive:x.tar", "checks": 0, "runner": "sandbox", "jobs": 0}
    assert fakes.calls("builds") == []


CHECK_TABLE = "[[tool.buildkit-tasks.check]]\ncommand = 'true'"
RUN_SETTINGS = (
    "command = 'one'",
    "expect = 'two'",
    "expect-exit = 3",
    "timeout = 4",
    "cpu = 'floor'",
    CHECK_TABLE,
)


def test_run_settings_command(fakes: Fakes) -> None:
    result = fakes.settings(*RUN_SETTINGS).run(RUN_TEST, "--arch-image=x", "--arch-platform=s390x")
    result.assert_outcomes(passed=1)
    (call,) = fakes.calls("runs")
    assert {
        "command": "one",
        "expect": "two",
        "expect_exit": 3,
        "timeout": 4,
        "cpu": "floor",
    }.items() <= call.items()
    assert call["checks"] == 0


def test_run_own_command(fakes: Fakes) -> None:
    text = "def test_it(run_on_platform):\n    assert run_on_platform('three').ok\n"
    result = fakes.settings(*RUN_SETTINGS).run(
        text, "--arch-image=x", "--arch-platform=s390x", "--arch-cpu=max"
    )
    result.assert_outcomes(passed=1)
    (call,) = fakes.calls("runs")
    assert {
        "command": "three",
        "expect": "",
        "expect_exit": 0,
        "timeout": 4,
        "cpu": "max",
    }.items() <= call.items()


def test_default_checks_run_settings(fakes: Fakes) -> None:
    text = "from buildkit_tasks.testing.default_checks import test_image_runs\n"
    result = fakes.settings(*RUN_SETTINGS).run(
        text, "--arch-image=x", "--arch-platform=s390x", "--arch-cpu=both"
    )
    result.assert_outcomes(passed=1)
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
    result = fakes.run(text, "--arch-image=x", "--arch-platform=arm/v6", emulate=emulate)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*two --three on arm1176: illegal-instruction: build it with GOARM=6*"])
    assert "one: passed" not in result.stdout.str()


BOTH_CPUS = [
    pytest.param("cpu='both'", "--arch-image=x", id="argument"),
    pytest.param("", "--arch-cpu=both", id="option"),
]


@pytest.mark.parametrize(("argument", "option"), BOTH_CPUS)
def test_run_refuses_both_cpus(fakes: Fakes, argument: str, option: str) -> None:
    text = f"""
        import pytest
        from buildkit_tasks.errors import UsageError
        def test_it(run_on_platform):
            with pytest.raises(UsageError, match="would be two runs"):
                run_on_platform({argument})
            assert run_on_platform(cpu="max").ok
            assert run_on_platform(cpu="floor").ok
    """
    result = fakes.run(text, "--arch-image=x", "--arch-platform=s390x", option)
    result.assert_outcomes(passed=1)
    assert [call["cpu"] for call in fakes.calls("runs")] == ["max", "floor"]


def test_run_refuses_bad_values(fakes: Fakes) -> None:
    text = """
        import pytest
        from buildkit_tasks.errors import UsageError
        @pytest.mark.parametrize("bad", [{"cpu": "--privileged"}, {"timeout": -1}, {"expect_exit": 1.5}])
        def test_it(run_on_platform, bad):
            with pytest.raises(UsageError, match="^run_on_platform: "):
                run_on_platform(**bad)
    """
    fakes.run(text, "--arch-image=x", "--arch-platform=s390x").assert_outcomes(passed=3)
    assert fakes.calls("runs") == []


MISSING_PARTS = [
    pytest.param("EngineError", "no engine: why", id="engine"),
    pytest.param("EmulatorError", "no emulator: why", id="emulator"),
]


@pytest.mark.parametrize(
    "checks", [RUN_TEST, "from buildkit_tasks.testing.default_checks import test_image_runs\n"]
)
@pytest.mark.parametrize(("error", "message"), MISSING_PARTS)
def test_run_without_engine_or_emulator(fakes: Fakes, error: str, message: str, checks: str) -> None:
    options, missing = ("--arch-image=x", "--arch-platform=s390x"), f"raise errors.{error}('why')"
    result = fakes.run(checks, *options, emulate=missing)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines([f"SKIPPED*{message}"])
    result = fakes.run(checks, *options, "--arch-require-engine", emulate=missing)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([message])


TWO_TESTS = """
    def test_one(multiarch_image, platform):
        from pathlib import Path
        assert multiarch_image == f"oci-archive:{Path.cwd()}/dist/{Path.cwd().name}.tar"
    def test_two(multiarch_image, platform):
        pass
"""
TEN_PLATFORMS = (
    "--arch-platform=linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6,linux/386",
    "--arch-platform=linux/ppc64le,linux/s390x,linux/riscv64,linux/mips64le,linux/loong64",
)


def worker_ids(output: str) -> set[str]:
    return set(re.findall(r"^\[(gw\d+)\]", output, re.MULTILINE))


def test_workers_share_build(fakes: Fakes) -> None:
    result = fakes.run(TWO_TESTS, "-n2", "-v", *TEN_PLATFORMS)
    result.assert_outcomes(passed=20)
    assert worker_ids(result.stdout.str()) == {"gw0", "gw1"}
    (build,) = fakes.calls("builds")
    assert len(build["platforms"]) == 10


def test_next_session_builds_again(fakes: Fakes) -> None:
    for _ in range(2):
        fakes.run(TWO_TESTS, "-n2", "--basetemp=base", "--arch-platform=386,s390x").assert_outcomes(passed=4)
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


def test_failed_build_is_not_repeated(fakes: Fakes) -> None:
    failing_build = "raise errors.BuildFailed('exit status 7', hint='fix it')"
    result = fakes.run(TWO_TESTS, "-n2", "-v", *TEN_PLATFORMS, build=failing_build)
    result.assert_outcomes(errors=20)
    assert worker_ids(result.stdout.str()) == {"gw0", "gw1"}
    assert "the image could not be built: exit status 7" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()
    assert len(fakes.calls("builds")) == 1


def test_missing_engine_skips_in_workers(fakes: Fakes) -> None:
    result = fakes.run(TWO_TESTS, "-n2", *TEN_PLATFORMS, build="raise errors.EngineError('why')")
    result.assert_outcomes(skipped=20)
    result.stdout.fnmatch_lines(["SKIPPED*no engine: why"])
    assert len(fakes.calls("builds")) == 1


def test_killed_worker_leaves_build(fakes: Fakes) -> None:
    kill_first_worker = (
        "import os\n    len((HERE / 'builds').read_text().splitlines()) > 1 or os.kill(os.getpid(), 9)"
    )
    result = fakes.run(
        TWO_TESTS, "-n2", "-v", "--max-worker-restart=2", *TEN_PLATFORMS, build=kill_first_worker
    )
    assert "crashed" in result.stdout.str()
    assert result.parseoutcomes()["passed"] == 19
    assert len(fakes.calls("builds")) == 2


def test_workers_verify_one_archive(fakes: Fakes) -> None:
    platforms = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    write_archive(hello(platforms), fakes.pytester.path / "image.tar")
    text = "from buildkit_tasks.testing.default_checks import test_image_verifies\n"
    options = ("-n2", "-v", "--arch-platform=linux/amd64,linux/arm64,linux/arm/v7")
    result = fakes.run(text, *options, "--arch-image=oci-archive:image.tar")
    result.assert_outcomes(passed=3)
    result = fakes.run(text, *options, "--arch-platform=linux/386", "--arch-image=oci-archive:image.tar")
    result.assert_outcomes(passed=3, failed=1)


def test_case_order(fakes: Fakes) -> None:
    marked_test = "import pytest\n@pytest.mark.platforms('386', 's390x', 'arm64')\n" + PLATFORM_TEST
    result = fakes.run(marked_test, "-n2", "-v", "--arch-platform=s390x,amd64,386", "--arch-platform=arm64")
    result.assert_outcomes(passed=3)
    collection = fakes.run(
        marked_test, "--collect-only", "-q", "--arch-platform=s390x,amd64,386", "--arch-platform=arm64"
    )
    cases = [line.partition("[")[2] for line in collection.outlines if "::test_one[" in line]
    assert cases == ["s390x]", "386]", "arm64]"]


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
    """Return a repository of two images."""
    for folder in (fakes.pytester.path, fakes.pytester.mkdir("webs")):
        (folder / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    return fakes.settings(TWO_IMAGES)


def passed_cases(result: pytest.RunResult) -> list[str]:
    return [line.partition("[")[2].rstrip("]") for line in result.outlines if line.startswith("PASSED")]


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
    assert sorted(passed_cases(result)) == ["tool", "tool-s390x", "web", "web-amd64", "web-arm64"]
    built = [(build["context"], build["platforms"]) for build in two_images.calls("builds")]
    assert sorted(built) == [(".", ["linux/s390x"]), ("webs", ["linux/amd64", "linux/arm64"])]
    output = {run["image"].rpartition("/")[2]: run["expect"] for run in two_images.calls("runs")}
    assert output == {"web.tar": "this is web", "tool.tar": ""}


def test_workers_share_builds_of_images(two_images: Fakes) -> None:
    two_tests = IMAGE_TEST + IMAGE_TEST.replace("test_it", "test_again")
    result = two_images.run(two_tests, "-n2", "-v")
    result.assert_outcomes(passed=6)
    assert len(two_images.calls("builds")) == 2


def test_failed_image_fails_own_tests(two_images: Fakes) -> None:
    failing_build = "if 'webs' in str(request.context): raise errors.BuildFailed('exit status 7')"
    result = two_images.run(IMAGE_TEST, build=failing_build)
    result.assert_outcomes(passed=1, errors=2)
    assert "web could not be built: exit status 7" in result.stdout.str()
    assert len(two_images.calls("builds")) == 2


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
    assert passed_cases(result) == cases
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


def test_images_marker(two_images: Fakes) -> None:
    marked_test = f"import pytest\n@pytest.mark.images('tool')\n{IMAGE_TEST}"
    result = two_images.run(marked_test, "--strict-markers")
    assert passed_cases(result) == ["tool-s390x"]
    two_images.run(marked_test, "--arch-image=web=x.tar").assert_outcomes(skipped=1)
    two_images.run(marked_test, "--arch-image=x.tar").assert_outcomes(skipped=1)


UNKNOWN = [
    pytest.param(TWO_IMAGES, "there is no image 'wbe' in the settings", "choose one of web, tool", id="typo"),
    pytest.param("", "there is no image 'wbe' in the settings", "tool.buildkit-tasks.image", id="none"),
]


@pytest.mark.parametrize(("settings", "message", "hint"), UNKNOWN)
def test_unknown_image_in_marker(two_images: Fakes, settings: str, message: str, hint: str) -> None:
    result = two_images.settings(settings).run(f"import pytest\n@pytest.mark.images('wbe')\n{IMAGE_TEST}")
    assert result.ret != 0
    assert message in result.stdout.str()
    assert hint in result.stdout.str()


def test_image_without_table(two_images: Fakes) -> None:
    result = two_images.run(IMAGE_TEST, "--arch-image=web", "--arch-image=x.tar")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "x.tar is not an image of the settings, but web is" in result.stderr.str()


def test_platforms_of_all_images(two_images: Fakes) -> None:
    result = two_images.run(PLATFORM_TEST)
    assert passed_cases(result) == ["amd64", "arm64", "s390x"]


def test_dynamic_image_of_several(two_images: Fakes) -> None:
    text = "def test_it(request):\n    assert request.getfixturevalue('multiarch_image')\n"
    result = two_images.run(text)
    result.assert_outcomes(failed=1)
    assert "there are several images: take multiarch_image as an argument" in result.stdout.str()
    two_images.run(text, "--arch-image=tool").assert_outcomes(passed=1)
