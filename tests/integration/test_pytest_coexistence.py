"""The pytest plugin together with options and fixtures of other plugins and of a user's ``conftest.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.support.environment import NO_OTHER_PLUGINS, delete_env
from tests.support.oci import hello, write_archive

if TYPE_CHECKING:
    from pathlib import Path

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(request: pytest.FixtureRequest, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs pytest in an empty repository, in this process unless parametrized."""
    # PYTEST_CURRENT_TEST stays: pytest deletes it itself.
    delete_env(monkeypatch, "INVOKE_BUILDKIT_*", "DOCKER_*", "PYTEST_[!C]*")
    pytester.makepyprojecttoml("")
    pytester.syspathinsert()
    method: Run = getattr(pytester, f"runpytest_{getattr(request, 'param', 'inprocess')}")
    return lambda *args: method("-p", "no:cacheprovider", "-rA", *NO_OTHER_PLUGINS, *args)


in_both_processes = pytest.mark.parametrize("run", ["inprocess", "subprocess"], indirect=True)

OTHER_OPTIONS = """
def pytest_addoption(parser):
    for name in ("--platform", "--image", "--cpu", "--runner"):
        parser.addoption(name, default="none")
    parser.addoption("--require-engine", action="store_true")
"""
BOTH_OPTIONS = """
def test_theirs(pytestconfig):
    assert pytestconfig.option.platform == pytestconfig.getoption("--platform") == {other_value!r}

def test_ours(platform):
    assert platform.goarch == "s390x"
"""


def add_conftest(pytester: pytest.Pytester) -> list[str]:
    pytester.makeconftest(OTHER_OPTIONS)
    return []


def add_plugin_before(pytester: pytest.Pytester) -> list[str]:
    pytester.makepyfile(other_plugin=OTHER_OPTIONS)
    return ["-p", "other_plugin"]  # loaded before installed plugins


def add_plugin_after(pytester: pytest.Pytester) -> list[str]:
    pytester.makepyfile(other_plugin=OTHER_OPTIONS)
    pytester.makeconftest("pytest_plugins = ['other_plugin']")
    return []


@in_both_processes
@pytest.mark.parametrize("add_other_plugin", [add_conftest, add_plugin_before, add_plugin_after])
@pytest.mark.parametrize(
    ("args", "other_value"),
    [([], "none"), (["--platform=win32", "--require-engine"], "win32"), (["--platform", "win32"], "win32")],
    ids=["unused", "joined", "separate"],
)
def test_options_of_others(
    run: Run,
    pytester: pytest.Pytester,
    add_other_plugin: Callable[[pytest.Pytester], list[str]],
    args: list[str],
    other_value: str,
) -> None:
    plugin_args = add_other_plugin(pytester)
    pytester.makepyfile(BOTH_OPTIONS.format(other_value=other_value))
    run(*plugin_args, "--arch-platform=s390x", *args).assert_outcomes(passed=2)


@in_both_processes
def test_options_of_late_conftest(run: Run, pytester: pytest.Pytester) -> None:
    """pytest finds a conftest.py in a subdirectory only during collection."""
    folder = pytester.mkdir("checks")
    (folder / "conftest.py").write_text(OTHER_OPTIONS)
    (folder / "test_it.py").write_text(BOTH_OPTIONS.format(other_value="none"))
    run("--arch-platform=s390x").assert_outcomes(passed=2)
    run("--platform=s390x").assert_outcomes(passed=2)  # no conftest.py has defined --platform yet


def test_flag_before_path(run: Run, pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("checks")
    (folder / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--platform', action='store_true')\n"
    )
    (folder / "test_it.py").write_text(
        "def test_it(pytestconfig):\n    assert pytestconfig.option.platform\n"
    )
    run("--platform", "checks").assert_outcomes(passed=1)


SHORT_OPTIONS = [
    pytest.param(["--platform=s390x,386"], id="joined"),
    pytest.param(["--platform", "s390x", "--platform", "386"], id="separate"),
    pytest.param(["--platform=s390x", "--arch-platform=386"], id="both-names"),
    pytest.param(["-o", "addopts=--platform=s390x,386"], id="addopts"),
]
PLATFORM_TEST = "def test_it(platform):\n    assert platform.goarch in ('s390x', '386')\n"


@in_both_processes
@pytest.mark.parametrize("args", SHORT_OPTIONS)
def test_short_options(run: Run, pytester: pytest.Pytester, args: list[str]) -> None:
    pytester.makepyfile(PLATFORM_TEST)
    run(*args).assert_outcomes(passed=2)


def test_short_options_of_environment(
    run: Run, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_ADDOPTS", "--platform=s390x --runner sandbox")
    pytester.makepyfile(PLATFORM_TEST)
    run().assert_outcomes(passed=1)


def test_short_options_are_all_read(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_it(pytestconfig):
            names = ("platform", "image", "cpu", "runner", "require-engine")
            values = [pytestconfig.getoption(f"--arch-{name}") for name in names]
            assert values == [["s390x"], ["app:1"], "max", "docker", True]
    """)
    args = ("--platform", "s390x", "--image=app:1", "--cpu", "max", "--runner=docker", "--require-engine")
    run(*args).assert_outcomes(passed=1)


def test_short_options_of_workers(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PLATFORM_TEST)
    run("-n2", "--platform", "s390x", "--platform=386").assert_outcomes(passed=2)


@pytest.mark.parametrize("image", ["oci-archive:x.tar", "x.tar"])
def test_option_value_is_no_path(run: Run, pytester: pytest.Pytester, image: str) -> None:
    """The initial conftest.py files are those of ``testpaths``."""
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\ntestpaths = ['checks']\n")
    folder = pytester.mkdir("checks")
    write_archive(hello(), pytester.path / "x.tar")
    (folder / "conftest.py").write_text("def pytest_addoption(parser):\n    parser.addoption('--mine')\n")
    (folder / "test_it.py").write_text("def test_it(pytestconfig):\n    assert pytestconfig.option.mine\n")
    run("--image", image, "--mine=1").assert_outcomes(passed=1)


def test_unknown_option(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(PLATFORM_TEST)
    result = run("--platform=s390x", "--platforms=386")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --platforms=386"])


OTHER_PLATFORM = """
import pytest

@pytest.fixture
def platform():
    return "theirs"
"""
OTHER_FIXTURES = (
    OTHER_PLATFORM
    + """
@pytest.fixture
def line():
    return "theirs"

@pytest.fixture
def image_under_test():
    return "theirs"
"""
)


@in_both_processes
def test_fixtures_of_conftest(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(OTHER_FIXTURES)
    pytester.makepyfile("""
        def test_theirs(line, platform, image_under_test):
            assert {line, platform, image_under_test} == {"theirs"}

        def test_ours(buildkit_pipeline, buildkit_platform, buildkit_image_under_test):
            assert buildkit_platform.goarch in ("s390x", "386")
            assert buildkit_pipeline.settings is buildkit_image_under_test.settings
    """)
    run("--arch-platform=s390x,386").assert_outcomes(passed=3)


@in_both_processes
@pytest.mark.parametrize("args", [["-p", "other_plugin"], []], ids=["before", "after"])
def test_platform_of_plugin(run: Run, pytester: pytest.Pytester, args: list[str]) -> None:
    pytester.makepyfile(other_plugin=OTHER_PLATFORM)
    pytester.makeconftest("" if args else "pytest_plugins = ['other_plugin']")
    pytester.makepyfile("""
        def test_it(platform, buildkit_platform):
            assert platform == "theirs"
            assert buildkit_platform.goarch in ("s390x", "386")
    """)
    run(*args, "--arch-platform=s390x,386").assert_outcomes(passed=2)


@pytest.mark.parametrize("args", [["-p", "other_plugin"], []], ids=["before", "after"])
def test_platform_of_generate_tests(run: Run, pytester: pytest.Pytester, args: list[str]) -> None:
    pytester.makepyfile(
        other_plugin="""
        def pytest_generate_tests(metafunc):
            if "platform" in metafunc.fixturenames:
                metafunc.parametrize("platform", ["win32"])
    """
    )
    pytester.makeconftest("" if args else "pytest_plugins = ['other_plugin']")
    pytester.makepyfile("def test_it(platform):\n    assert platform == 'win32'\n")
    run(*args).assert_outcomes(passed=1)


def test_parameter_named_platform(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("platform", ["win32"])
        def test_one(platform):
            assert platform == "win32"

        @pytest.mark.parametrize(("x", "platform"), [(1, "win32")])
        def test_two(x, platform):
            assert platform == "win32"

        @pytest.mark.parametrize("platform", ["win32"])
        def test_three(platform, buildkit_platform):
            assert (platform, buildkit_platform.goarch) == ("win32", "s390x")
    """)
    run("--arch-platform=s390x").assert_outcomes(passed=3)


def test_fixture_from_platform(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest

        @pytest.fixture
        def platform(buildkit_platform):
            return buildkit_platform.goarch
    """)
    pytester.makepyfile("def test_it(platform):\n    assert platform in ('s390x', '386')\n")
    run("--arch-platform=s390x,386").assert_outcomes(passed=2)


def test_platform_without_case(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(request):\n    request.getfixturevalue('buildkit_platform')\n")
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*take platform as an argument"])


@pytest.mark.parametrize(
    ("old", "new"), [("line", "buildkit_pipeline"), ("image_under_test", "buildkit_image_under_test")]
)
def test_renamed_fixture(run: Run, pytester: pytest.Pytester, old: str, new: str) -> None:
    pytester.makepyfile(f"def test_it({old}, {new}):\n    assert {old} is {new}\n")
    result = run()
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines([f"*DeprecationWarning: fixture '{old}' * is renamed to '{new}'*"])


def test_installed_neighbours(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    delete_env(monkeypatch, "INVOKE_BUILDKIT_*", "DOCKER_*", "PYTEST_[!C]*")
    for plugin in ("pytest_docker", "pytest_playwright", "pytest_timeout", "xdist"):
        pytest.importorskip(plugin)
    pytester.makepyfile("""
        def test_it(platform, browser_name, docker_compose_project_name, pytestconfig):
            assert platform.goarch in ("s390x", "386")
            assert browser_name == "firefox"
            assert docker_compose_project_name
            assert pytestconfig.getoption("--timeout") == 50
    """)
    other_options = ("-n2", "--browser=firefox", "--container-scope=session", "--timeout=50")
    result = pytester.runpytest_subprocess(*other_options, "--platform=s390x", "--platform", "386")
    result.assert_outcomes(passed=2)


SAVE_MODULES = """
import pathlib, sys

def pytest_collection_finish():
    pathlib.Path("modules").write_text(" ".join(sys.modules))
"""


def collected_modules(pytester: pytest.Pytester, *args: str) -> set[str]:
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--collect-only", *args, timeout=60)
    return set((pytester.path / "modules").read_text().split())


def test_collection_imports_nothing(pytester: pytest.Pytester) -> None:
    """A suite that does not use the plugin imports only the plugin's own three modules."""
    pytester.makepyprojecttoml("[tool.buildkit-tasks]\nrunner = 'invalid'\n")
    pytester.makeconftest(SAVE_MODULES)
    pytester.makepyfile("def test_it():\n    pass\n")
    added = collected_modules(pytester) - collected_modules(pytester, "-p", "no:buildkit_tasks")
    assert added == {
        "buildkit_tasks",
        "buildkit_tasks.pytest_plugin",
        "buildkit_tasks.testing",
        "buildkit_tasks.testing.pytest_options",
        "buildkit_tasks.testing.skip",
    }


def test_own_fixtures_and_run_on_platform(
    pytester: pytest.Pytester, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``run_on_platform`` runs what ``multiarch_image`` names, whatever ``line`` and ``platform`` are."""
    monkeypatch.setenv("INVOKE_BUILDKIT_CACHE", str(tmp_path))
    pytester.makeconftest(
        OTHER_FIXTURES
        + """
@pytest.fixture
def multiarch_image():
    return "mine.tar"

@pytest.fixture(autouse=True)
def fake_run(monkeypatch):
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.report.model import RunReport, RunResult

    def run_image(self, image, platforms):
        result = RunResult(platform=str(platforms[0]), outcome="passed", stdout=image)
        return RunReport(subject=image, results=(result,))

    monkeypatch.setattr(Pipeline, "run_image", run_image)
"""
    )
    pytester.makepyfile("""
        def test_it(run_on_platform, line, platform):
            result = run_on_platform("true")
            assert (result.platform, result.stdout) == ("linux/s390x", "mine.tar")
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--arch-platform=s390x", timeout=60)
    result.assert_outcomes(passed=1)
