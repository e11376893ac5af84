from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks import pytest_plugin
from buildkit_tasks.testing.session_image import SessionImage
from tests.support.oci import hello, write_archive

if TYPE_CHECKING:
    from pathlib import Path


def outcomes(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """What pytest says of a test module in a folder of its own, without this process's settings."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    if not (folder / "pyproject.toml").exists():
        (folder / "pyproject.toml").touch()
    argv = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options, "test_it.py"]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    env = kept | {
        "HOME": str(folder),
        "DOCKER_CONFIG": str(folder),
        "DOCKER_HOST": f"unix://{folder}/no.sock",
    }
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


ONE = "def test_one(platform):\n    assert str(platform).startswith('linux/')\n"


def test_a_test_that_takes_platform_runs_once_for_each_asked_for(tmp_path: Path) -> None:
    code, said = outcomes(tmp_path, ONE, "--platform=linux/arm/v7,linux/386", "--platform=s390x")
    assert code == 0
    assert [line for line in said.splitlines() if line.startswith("PASSED")] == [
        "PASSED test_it.py::test_one[arm-v7]",
        "PASSED test_it.py::test_one[386]",
        "PASSED test_it.py::test_one[s390x]",
    ]


def test_a_platform_says_what_go_calls_its_architecture(tmp_path: Path) -> None:
    text = "def test_one(platform):\n    assert platform.goarch == platform.slug.partition('-')[0]\n"
    code, said = outcomes(tmp_path, text, "--platform=linux/arm/v7,linux/386")
    assert (code, "2 passed" in said) == (0, True)


def test_without_an_option_the_settings_platforms_hold(tmp_path: Path) -> None:
    text = '[tool.buildkit-tasks]\nplatforms = ["linux/riscv64"]\n'
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    code, said = outcomes(tmp_path, ONE)
    assert (code, "test_one[riscv64]" in said, "1 passed" in said) == (0, True, True)


def test_the_marker_narrows_the_platforms_down(tmp_path: Path) -> None:
    marked = f"import pytest\n@pytest.mark.platforms('arm64', 'linux/386')\n{ONE}"
    code, said = outcomes(tmp_path, marked, "--strict-markers", "--platform=linux/386,linux/amd64")
    assert (code, "test_one[386]" in said, "1 passed" in said) == (0, True, True)


OWN = [
    pytest.param(
        "import pytest\n@pytest.mark.parametrize('platform', ['win32'])\n"
        "def test_own(platform):\n    assert platform == 'win32'\n",
        id="parameter",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.parametrize(('x', 'platform'), [(1, 'win32')])\n"
        "def test_own(x, platform):\n    assert platform == 'win32'\n",
        id="one-of-two-parameters",
    ),
    pytest.param(
        "import pytest\n@pytest.fixture\ndef platform():\n    return 'win32'\n"
        "def test_own(platform):\n    assert platform == 'win32'\n",
        id="fixture",
    ),
]


@pytest.mark.parametrize("text", OWN)
def test_somebody_elses_platform_is_left_alone(tmp_path: Path, text: str) -> None:
    code, said = outcomes(tmp_path, text)
    assert code == 0, said
    assert "1 passed" in said


NEEDS = "def test_two(multiarch_image):\n    pass\n"
SYSTEM = '[tool.buildkit-tasks]\nengine = "system"\n'


def engineless(folder: Path) -> Path:
    """A repository that could be built, had it the engine that its settings are content with."""
    (folder / "pyproject.toml").write_text(SYSTEM, encoding="utf-8")
    (folder / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    return folder


def test_without_an_engine_a_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    code, said = outcomes(engineless(tmp_path), NEEDS)
    assert code == 0
    assert "1 skipped" in said
    assert "no engine: no Docker daemon answers at unix://" in said


def test_where_an_engine_is_required_its_absence_fails_the_test(tmp_path: Path) -> None:
    code, said = outcomes(engineless(tmp_path), NEEDS, "--require-engine")
    assert code == 1
    assert "no engine: no Docker daemon answers at unix://" in said
    assert "Traceback" not in said


def test_an_unknown_platform_is_named_with_the_nearest(tmp_path: Path) -> None:
    code, said = outcomes(tmp_path, ONE, "--platform=linux/amd46")
    assert code != 0
    assert "did you mean linux/amd64?" in said


def test_a_suite_that_uses_nothing_of_it_imports_nothing_heavy_of_it(tmp_path: Path) -> None:
    text = (
        "import sys\ndef test_three():\n"
        "    heavy = {'docker', 'requests', 'rich', 'msgspec', 'isal', 'nox', 'invoke'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    code, said = outcomes(tmp_path, text)
    assert code == 0, said


def test_the_services_are_there_without_an_engine(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SYSTEM, encoding="utf-8")
    text = "def test_four(line):\n    assert line.settings.engine == 'system'\n"
    code, said = outcomes(tmp_path, text, "--require-engine")
    assert code == 0, said


def test_an_archive_is_looked_into_without_an_engine(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SYSTEM, encoding="utf-8")
    write_archive(hello(("linux/amd64", "linux/arm64")), tmp_path / "image.tar")
    text = "from buildkit_tasks.testing.default_checks import test_image_verifies\n"
    options = ("--require-engine", f"--image=oci-archive:{tmp_path}/image.tar")
    code, said = outcomes(tmp_path, text, *options, "--platform=linux/arm64,linux/amd64")
    assert code == 0, said
    assert "2 passed" in said
    code, said = outcomes(tmp_path, text, *options, "--platform=linux/s390x")
    assert code == 1
    assert "linux/s390x is not in oci-archive:" in said


BAD = [
    pytest.param("--cpu=-cpu", "'-cpu' is no CPU", id="cpu"),
    pytest.param("--runner=podman", "runner = 'podman' is none of auto, docker, sandbox", id="runner"),
    pytest.param("--platform=linux/amd46", "did you mean linux/amd64?", id="platform"),
]


@pytest.mark.parametrize(("option", "words"), BAD)
def test_an_options_bad_value_is_an_error_of_usage(tmp_path: Path, option: str, words: str) -> None:
    code, said = outcomes(tmp_path, "def test_five():\n    pass\n", option)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert words in said
    assert "Traceback" not in said
    assert "INTERNALERROR" not in said


def test_a_bad_setting_is_told_in_words_where_it_is_needed_and_nowhere_else(tmp_path: Path) -> None:
    text = "[tool.buildkit-tasks]\nrunner = 'podman'\n"
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    code, said = outcomes(tmp_path, "def test_five():\n    pass\n")
    assert code == 0, said
    later = "def test_seven(request):\n    request.getfixturevalue('line')\n"
    for needs in (ONE, "def test_six(line):\n    pass\n", later):
        code, said = outcomes(tmp_path, needs)
        assert code != 0
        assert "pyproject.toml: [tool.buildkit-tasks]: runner = 'podman' is none of" in said
        assert "SettingsError" not in said
        assert "in load" not in said


# What stands in for the services: it notes what it is asked, in the folder of the test.
FAKES = """
import dataclasses, json, pathlib, time
import pytest
from buildkit_tasks import errors
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.report.model import BuildResult, EmulatorSummary, Outcome, Output, RunReport, RunResult

HERE = pathlib.Path(__file__).parent


def note(name, **what):
    with (HERE / name).open("a") as log:
        print(json.dumps(what), file=log)


def build(self, request):
    note("builds", platforms=list(map(str, request.platforms)), context=str(request.context))
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
    note("runs", image=image, checks=len(self.settings.checks), **settings)
    {emulate}
    emulator = EmulatorSummary(path="/qemu", cpu=self.settings.cpu)
    results = [
        RunResult(platform=str(platform), outcome=Outcome.PASSED, exit_code=0, stdout="said", seconds=0.5,
                  runner="sandbox", emulated=True, emulator=emulator)
        for platform in platforms
    ]
    return RunReport(subject=image, results=tuple(results))


Pipeline.build = build
Pipeline.with_settings = lambda self, settings: dataclasses.replace(self, settings=settings)  # asks no engine
Pipeline.run_image = emulate
"""


class Fakes:
    """A test module in a folder of its own, whose builds and runs are stood in for."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.settings()

    def settings(self, *lines: str) -> Fakes:
        text = "\n".join(["[tool.buildkit-tasks]", f"cache = '{self.pytester.path}/cache'", *lines])
        self.pytester.makepyprojecttoml(text)
        return self

    def run(self, text: str, *options: str, build: str = "", emulate: str = "") -> pytest.RunResult:
        self.pytester.makeconftest(FAKES.format(build=build, emulate=emulate))
        self.pytester.makepyfile(text)
        return self.pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rA", *options, timeout=120)

    def noted(self, name: str) -> list[dict[str, Any]]:
        path = self.pytester.path / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def fakes(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    for name in [
        name for name in os.environ if name.startswith(("INVOKE_BUILDKIT_", "DOCKER_", "PYTEST_XDIST"))
    ]:
        monkeypatch.delenv(name)
    return Fakes(pytester)


RUNS = "def test_it(run_on_platform):\n    assert run_on_platform().ok\n"


def test_a_run_gives_what_was_printed_the_exit_code_the_seconds_and_the_emulator(fakes: Fakes) -> None:
    text = """
        def test_it(run_on_platform, platform):
            result = run_on_platform("uname -m", expect="x", expect_exit=3, timeout=7, cpu="floor")
            assert (result.platform, result.stdout, result.exit_code) == (str(platform), "said", 0)
            assert (result.seconds, result.runner, result.emulator.cpu) == (0.5, "sandbox", "floor")
    """
    done = fakes.run(text, "--image=oci-archive:x.tar", "--platform=s390x", "--runner=sandbox")
    done.assert_outcomes(passed=1)
    asked = {"command": "uname -m", "expect": "x", "expect_exit": 3, "timeout": 7, "cpu": "floor"}
    (noted,) = fakes.noted("runs")
    assert noted == asked | {"image": "oci-archive:x.tar", "checks": 0, "runner": "sandbox", "jobs": 0}
    assert fakes.noted("builds") == []


CHECK = "[[tool.buildkit-tasks.check]]\ncommand = 'true'"
SUITE = ("command = 'one'", "expect = 'two'", "expect-exit = 3", "timeout = 4", "cpu = 'floor'", CHECK)


def test_without_a_command_the_settings_hold_and_their_checks_are_not_run(fakes: Fakes) -> None:
    done = fakes.settings(*SUITE).run(RUNS, "--image=x", "--platform=s390x")
    done.assert_outcomes(passed=1)
    (noted,) = fakes.noted("runs")
    assert {
        "command": "one",
        "expect": "two",
        "expect_exit": 3,
        "timeout": 4,
        "cpu": "floor",
    }.items() <= noted.items()
    assert noted["checks"] == 0


def test_a_command_of_the_tests_is_held_to_what_the_test_expects(fakes: Fakes) -> None:
    text = "def test_it(run_on_platform):\n    assert run_on_platform('three').ok\n"
    done = fakes.settings(*SUITE).run(text, "--image=x", "--platform=s390x", "--cpu=max")
    done.assert_outcomes(passed=1)
    (noted,) = fakes.noted("runs")
    assert {
        "command": "three",
        "expect": "",
        "expect_exit": 0,
        "timeout": 4,
        "cpu": "max",
    }.items() <= noted.items()


def test_the_checks_of_a_repository_without_tests_run_all_that_the_settings_say(fakes: Fakes) -> None:
    text = "from buildkit_tasks.testing.default_checks import test_image_runs\n"
    done = fakes.settings(*SUITE).run(text, "--image=x", "--platform=s390x", "--cpu=both")
    done.assert_outcomes(passed=1)
    (noted,) = fakes.noted("runs")
    assert (noted["checks"], noted["cpu"]) == (1, "both")


def test_what_did_not_pass_is_told_with_its_command_and_its_cpu(fakes: Fakes) -> None:
    text = "from buildkit_tasks.testing.default_checks import test_image_runs\n"
    emulate = """
    floor = EmulatorSummary(path="/qemu", cpu="arm1176")
    kinds = [("one", Outcome.PASSED, None), ("two --three", Outcome.ILLEGAL_INSTRUCTION, floor)]
    return RunReport(subject="", results=tuple(
        RunResult(platform="linux/arm/v6", outcome=outcome, command=command, emulator=emulator,
                  message="build it with GOARM=6") for command, outcome, emulator in kinds))
    """
    done = fakes.run(text, "--image=x", "--platform=arm/v6", emulate=emulate)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["*two --three on arm1176: illegal-instruction: build it with GOARM=6*"])
    assert "one: passed" not in done.stdout.str()


BOTH = [
    pytest.param("cpu='both'", "--image=x", id="asked-for-by-the-test"),
    pytest.param("", "--cpu=both", id="asked-for-by-the-option"),
]


@pytest.mark.parametrize(("argument", "option"), BOTH)
def test_one_run_on_both_cpus_is_an_error_of_usage(fakes: Fakes, argument: str, option: str) -> None:
    text = f"""
        import pytest
        from buildkit_tasks.errors import UsageError
        def test_it(run_on_platform):
            with pytest.raises(UsageError, match="one CPU, not on both"):
                run_on_platform({argument})
            assert run_on_platform(cpu="max").ok
            assert run_on_platform(cpu="floor").ok
    """
    done = fakes.run(text, "--image=x", "--platform=s390x", option)
    done.assert_outcomes(passed=1)
    assert [noted["cpu"] for noted in fakes.noted("runs")] == ["max", "floor"]


def test_a_value_that_cannot_be_is_refused_before_anything_runs(fakes: Fakes) -> None:
    text = """
        import pytest
        from buildkit_tasks.errors import UsageError
        @pytest.mark.parametrize("bad", [{"cpu": "--privileged"}, {"timeout": -1}, {"expect_exit": 1.5}])
        def test_it(run_on_platform, bad):
            with pytest.raises(UsageError, match="^run_on_platform: "):
                run_on_platform(**bad)
    """
    fakes.run(text, "--image=x", "--platform=s390x").assert_outcomes(passed=3)
    assert fakes.noted("runs") == []


ABSENT = [
    pytest.param("EngineError", "no engine: why", id="engine"),
    pytest.param("EmulatorError", "no emulator: why", id="emulator"),
]


@pytest.mark.parametrize(
    "checks", [RUNS, "from buildkit_tasks.testing.default_checks import test_image_runs\n"]
)
@pytest.mark.parametrize(("error", "words"), ABSENT)
def test_a_run_for_which_the_engine_or_emulator_is_missing_is_skipped_or_fails(
    fakes: Fakes, error: str, words: str, checks: str
) -> None:
    options, lacking = ("--image=x", "--platform=s390x"), f"raise errors.{error}('why')"
    done = fakes.run(checks, *options, emulate=lacking)
    done.assert_outcomes(skipped=1)
    done.stdout.fnmatch_lines([f"SKIPPED*{words}"])
    done = fakes.run(checks, *options, "--require-engine", emulate=lacking)
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines([words])


MANY = """
    def test_one(multiarch_image, platform):
        from pathlib import Path
        assert multiarch_image == f"oci-archive:{Path.cwd()}/dist/{Path.cwd().name}.tar"
    def test_two(multiarch_image, platform):
        pass
"""
TEN = (
    "--platform=linux/amd64,linux/arm64,linux/arm/v7,linux/arm/v6,linux/386",
    "--platform=linux/ppc64le,linux/s390x,linux/riscv64,linux/mips64le,linux/loong64",
)


def workers(said: str) -> set[str]:
    return set(re.findall(r"^\[(gw\d+)\]", said, re.MULTILINE))


def test_two_workers_share_one_build(fakes: Fakes) -> None:
    done = fakes.run(MANY, "-n2", "-v", *TEN)
    done.assert_outcomes(passed=20)
    assert workers(done.stdout.str()) == {"gw0", "gw1"}
    (build,) = fakes.noted("builds")
    assert len(build["platforms"]) == 10


def test_another_session_builds_anew(fakes: Fakes) -> None:
    for _ in range(2):
        fakes.run(MANY, "-n2", "--basetemp=base", "--platform=386,s390x").assert_outcomes(passed=4)
    assert len(fakes.noted("builds")) == 2


def test_what_workers_of_another_session_left_in_their_folder_is_not_taken(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Workers on another machine have the folder that is there for all sessions."""
    made: list[str] = []

    def make() -> SessionImage:
        made.append("built")
        return SessionImage(image=f"image {len(made)}")

    def once(session: str) -> str:
        config: Any = SimpleNamespace(workerinput={"testrunuid": session})
        return pytest_plugin._build_once(config, tmp_path_factory, "", make).image

    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    assert [once(each) for each in (first, first, second)] == ["image 1", "image 1", "image 2"]


def test_a_build_that_fails_is_tried_once_and_fails_in_every_worker_in_words(fakes: Fakes) -> None:
    broken = "raise errors.BuildFailed('exit status 7', hint='mend it')"
    done = fakes.run(MANY, "-n2", "-v", *TEN, build=broken)
    done.assert_outcomes(errors=20)
    assert workers(done.stdout.str()) == {"gw0", "gw1"}
    assert "the image could not be built: exit status 7" in done.stdout.str()
    assert "Traceback" not in done.stdout.str()
    assert len(fakes.noted("builds")) == 1


def test_what_a_build_is_missing_skips_in_every_worker(fakes: Fakes) -> None:
    done = fakes.run(MANY, "-n2", *TEN, build="raise errors.EngineError('why')")
    done.assert_outcomes(skipped=20)
    done.stdout.fnmatch_lines(["SKIPPED*no engine: why"])
    assert len(fakes.noted("builds")) == 1


def test_a_worker_that_is_killed_while_it_builds_leaves_the_build_to_another(fakes: Fakes) -> None:
    killed = "import os\n    len((HERE / 'builds').read_text().splitlines()) > 1 or os.kill(os.getpid(), 9)"
    done = fakes.run(MANY, "-n2", "-v", "--max-worker-restart=2", *TEN, build=killed)
    assert "crashed" in done.stdout.str()
    assert done.parseoutcomes()["passed"] == 19
    assert len(fakes.noted("builds")) == 2


def test_workers_look_into_one_archive_and_its_fault_is_found(fakes: Fakes) -> None:
    platforms = ("linux/amd64", "linux/arm64", "linux/arm/v7")
    write_archive(hello(platforms), fakes.pytester.path / "image.tar")
    text = "from buildkit_tasks.testing.default_checks import test_image_verifies\n"
    options = ("-n2", "-v", "--platform=linux/amd64,linux/arm64,linux/arm/v7")
    done = fakes.run(text, *options, "--image=oci-archive:image.tar")
    done.assert_outcomes(passed=3)
    done = fakes.run(text, *options, "--platform=linux/386", "--image=oci-archive:image.tar")
    done.assert_outcomes(passed=3, failed=1)


def test_tests_are_collected_in_the_order_of_the_platforms_for_every_worker(fakes: Fakes) -> None:
    marked = "import pytest\n@pytest.mark.platforms('386', 's390x', 'arm64')\n" + ONE
    done = fakes.run(marked, "-n2", "-v", "--platform=s390x,amd64,386", "--platform=arm64")
    done.assert_outcomes(passed=3)
    listed = fakes.run(marked, "--collect-only", "-q", "--platform=s390x,amd64,386", "--platform=arm64")
    found = [line.partition("[")[2] for line in listed.outlines if "::test_one[" in line]
    assert found == ["s390x]", "386]", "arm64]"]


SEVERAL = """
platforms = ["linux/amd64", "linux/arm64"]
[[tool.buildkit-tasks.image]]
name = "web"
context = "webs"
expect = "this is web"
[[tool.buildkit-tasks.image]]
name = "tool"
platforms = ["s390x"]
"""
EACH = "def test_it(multiarch_image, platform):\n    pass\n"


@pytest.fixture
def two(fakes: Fakes) -> Fakes:
    """A repository of two images."""
    for folder in (fakes.pytester.path, fakes.pytester.mkdir("webs")):
        (folder / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    return fakes.settings(SEVERAL)


def ids(done: pytest.RunResult) -> list[str]:
    return [line.partition("[")[2].rstrip("]") for line in done.outlines if line.startswith("PASSED")]


def test_of_several_images_each_is_tested_on_its_own_platforms_under_its_own_settings(two: Fakes) -> None:
    text = """
        def test_it(run_on_platform, multiarch_image, image_under_test):
            assert run_on_platform().ok
            assert multiarch_image.endswith(f"/dist/{image_under_test.name}.tar")
        def test_another(multiarch_image):
            pass
    """
    done = two.run(text)
    done.assert_outcomes(passed=5)
    assert sorted(ids(done)) == ["tool", "tool-s390x", "web", "web-amd64", "web-arm64"]
    built = [(build["context"], build["platforms"]) for build in two.noted("builds")]
    assert sorted(built) == [(".", ["linux/s390x"]), ("webs", ["linux/amd64", "linux/arm64"])]
    said = {run["image"].rpartition("/")[2]: run["expect"] for run in two.noted("runs")}
    assert said == {"web.tar": "this is web", "tool.tar": ""}


def test_several_images_are_each_built_once_for_all_workers(two: Fakes) -> None:
    twice = EACH + EACH.replace("test_it", "test_again")
    done = two.run(twice, "-n2", "-v")
    done.assert_outcomes(passed=6)
    assert len(two.noted("builds")) == 2


def test_one_of_several_that_cannot_be_built_fails_its_own_tests_alone(two: Fakes) -> None:
    broken = "if 'webs' in str(request.context): raise errors.BuildFailed('exit status 7')"
    done = two.run(EACH, build=broken)
    done.assert_outcomes(passed=1, errors=2)
    assert "web could not be built: exit status 7" in done.stdout.str()
    assert len(two.noted("builds")) == 2


CHOSEN = [
    pytest.param(["--image=web"], ["web-amd64", "web-arm64"], 1, id="by-name"),
    pytest.param(["--image=tool=x.tar"], ["tool-s390x"], 0, id="built-already"),
    pytest.param(
        ["--image=tool=x.tar", "--image=web=y.tar"], ["tool-s390x", "web-amd64", "web-arm64"], 0, id="both"
    ),
    pytest.param(["--image=web=x.tar", "--platform=386"], ["web-386"], 0, id="platform"),
    pytest.param(["--image=x.tar"], ["amd64", "arm64"], 0, id="no-image-of-the-settings"),
    pytest.param(["--image=y.tar", "--image=x.tar"], ["amd64", "arm64"], 0, id="the-later-option-holds"),
]


@pytest.mark.parametrize(("options", "cases", "builds"), CHOSEN)
def test_an_option_chooses_among_several_images(
    two: Fakes, options: list[str], cases: list[str], builds: int
) -> None:
    text = "def test_it(multiarch_image, platform):\n    assert multiarch_image.endswith('.tar')\n"
    done = two.run(text, *options)
    assert done.ret == 0
    assert ids(done) == cases
    assert len(two.noted("builds")) == builds


GIVEN = [
    pytest.param(["--image=tool=y.tar"], "y.tar", id="of-the-settings"),
    pytest.param(["--image=x.tar"], "x.tar", id="without-a-table"),
    pytest.param(["--image=web=x.tar", "--image=web=y.tar"], "y.tar", id="the-later-of-two"),
]


@pytest.mark.parametrize(("options", "image"), GIVEN)
def test_an_image_that_was_built_already_is_the_one_that_is_run(
    two: Fakes, options: list[str], image: str
) -> None:
    two.run(RUNS, *options, "--platform=386").assert_outcomes(passed=1)
    assert [run["image"] for run in two.noted("runs")] == [image]
    assert two.noted("builds") == []


def test_a_marker_narrows_the_images_down(two: Fakes) -> None:
    marked = f"import pytest\n@pytest.mark.images('tool')\n{EACH}"
    done = two.run(marked, "--strict-markers")
    assert ids(done) == ["tool-s390x"]
    two.run(marked, "--image=web=x.tar").assert_outcomes(skipped=1)
    two.run(marked, "--image=x.tar").assert_outcomes(skipped=1)


UNKNOWN = [
    pytest.param(SEVERAL, "there is no image 'wbe' in the settings", "known are web, tool", id="typo"),
    pytest.param("", "there is no image 'wbe' in the settings", "tool.buildkit-tasks.image", id="none"),
]


@pytest.mark.parametrize(("settings", "words", "hint"), UNKNOWN)
def test_a_marker_that_names_no_image_is_an_error(two: Fakes, settings: str, words: str, hint: str) -> None:
    done = two.settings(settings).run(f"import pytest\n@pytest.mark.images('wbe')\n{EACH}")
    assert done.ret != 0
    assert words in done.stdout.str()
    assert hint in done.stdout.str()


def test_an_image_without_a_table_beside_one_that_has_one_is_an_error_of_usage(two: Fakes) -> None:
    done = two.run(EACH, "--image=web", "--image=x.tar")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "x.tar is no image of the settings, and others are" in done.stderr.str()


def test_a_test_that_needs_only_a_platform_runs_once_for_each_of_any_image(two: Fakes) -> None:
    done = two.run(ONE)
    assert ids(done) == ["amd64", "arm64", "s390x"]


def test_an_image_that_is_asked_for_in_mid_test_cannot_be_one_of_several(two: Fakes) -> None:
    text = "def test_it(request):\n    assert request.getfixturevalue('multiarch_image')\n"
    done = two.run(text)
    done.assert_outcomes(failed=1)
    assert "there are several images: take multiarch_image as an argument" in done.stdout.str()
    two.run(text, "--image=tool").assert_outcomes(passed=1)
