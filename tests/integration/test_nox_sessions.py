from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

import nox.__main__
import nox.registry
import pytest

from buildkit_tasks import nox_sessions
from buildkit_tasks.system.process import Process, find_processes_by_argument
from tests.support.environment import minimal_env
from tests.support.waiting import wait_until

# A fake Python interpreter for the sessions: it logs its arguments and settings, and does not build or test.
# Environment variables make a step fail (FAILING, BROKEN), hang (HANGING) or take time (BUILDING).
FAKE_PYTHON = f"""#!{sys.executable} -I
import json, os, pathlib, signal, sys, time
if "nox" in sys.argv[:3]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
here = pathlib.Path(__file__).parent
if "--collect-only" in sys.argv:
    with (here / "checks").open("a") as file:
        print(json.dumps(sys.argv[1:]), file=file)
    if "CHECKING" in os.environ:
        os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
    sys.exit(2)  # an error of a test
FAILING = os.environ.get("FAILING", "").split()
settings = {{key: value for key, value in os.environ.items() if key.startswith("INVOKE_BUILDKIT_")}}
with (here / "log").open("a") as log:
    github = {{key: value for key, value in os.environ.items() if key.startswith("GITHUB_")}}
    print(json.dumps([sys.argv[1:], settings, github]), file=log)
def clean_up(*_):
    with (here / "interrupts").open("a") as file:
        print("SIGINT", file=file)
    time.sleep(1.5)
    os.write(1, b"x" * 1_000_000)  # more than a pipe holds: somebody reads it
    (here / "cleaned").touch()
    sys.exit(130)
if os.environ.get("HANGING") in sys.argv:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, clean_up)
    (here / "hanging").touch()
    time.sleep(300)
if "build-multiarch" in sys.argv:
    time.sleep(float(os.environ.get("BUILDING", "0")))
    def build_result(name):
        archive = {{"type": "oci", "dest": "dist/" + name + ".tar"}}
        return {{"outputs": [{{"type": "docker", "ref": "x"}}, archive]}}
    names = os.environ.get("IMAGES", "").split()
    broken = os.environ.get("BROKEN", "").split()
    rows = [{{"name": name, "build": None if name in broken else build_result(name)}} for name in names]
    failed = {{"ok": False, "error": "why", "exit_code": 1}}
    one_image = failed if "build-multiarch" in FAILING else build_result("x")
    print(json.dumps({{"images": rows}} if rows else one_image))
    if broken:
        sys.exit(1)
if "pytest" in sys.argv:
    deadline, sessions = time.monotonic() + 120, int(os.environ.get("TOGETHER", "0"))
    while (here / "log").read_text().count('"pytest"') < sessions:
        time.monotonic() < deadline or sys.exit("the other sessions did not start")
        time.sleep(0.05)
sys.exit(any(arg in sys.argv for arg in FAILING))
"""

NOXFILE = """
import pathlib, sys
from buildkit_tasks.nox_sessions import arch_matrix
sys.executable = str(pathlib.Path(__file__).with_name("python"))
arch_matrix({arguments})
"""


class Nox:
    """Run the real Nox in a directory with a noxfile and the fake interpreter.

    It runs in this process; ``nox -j``, and what depends on the parent process, in a process of its own.
    """

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capfd = folder, capfd
        program = folder / "python"
        program.write_text(FAKE_PYTHON, encoding="utf-8")
        program.chmod(0o755)
        (folder / "pyproject.toml").touch()

    def __call__(self, arguments: str, *args: str, **env_vars: str) -> subprocess.CompletedProcess[str]:
        """Run ``nox`` in this process."""
        argv, env = self._command(arguments, args, env_vars)
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        self.capfd.readouterr()
        with (
            mock.patch.dict(os.environ, env, clear=True),
            mock.patch.multiple(sys, argv=argv[2:], executable=sys.executable),
            contextlib.chdir(self.folder),
        ):
            try:
                nox.__main__.main()
                code: object = 0
            except SystemExit as exit_:
                code = exit_.code or 0
            finally:
                root.handlers[:] = handlers
                root.setLevel(level)
                nox.registry._REGISTRY.clear()
                sys.modules.pop("user_nox_module", None)
        output = self.capfd.readouterr()
        assert isinstance(code, int), code
        return subprocess.CompletedProcess(argv, code, output.out, output.err)

    def run_process(self, arguments: str, *args: str, **env_vars: str) -> subprocess.CompletedProcess[str]:
        """Run ``nox`` in a process of its own."""
        argv, env = self._command(arguments, args, env_vars)
        return subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    @contextlib.contextmanager
    def start(
        self, arguments: str, *args: str, sigint: signal.Handlers = signal.SIG_DFL, **env_vars: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start Nox in a new session, as a terminal does (a shell's background job ignores SIGINT)."""
        argv, env = self._command(arguments, args, env_vars)
        set_sigint = f"signal.signal(signal.SIGINT, signal.{sigint.name})"
        code = f"import os, signal, sys; {set_sigint}; os.execv(sys.argv[1], sys.argv[1:])"
        process = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            cwd=self.folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            for each in find_processes_by_argument(self.folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
            process.kill()
            process.wait()

    def _command(
        self, arguments: str, args: Sequence[str], env_vars: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        (self.folder / "noxfile.py").write_text(NOXFILE.format(arguments=arguments), encoding="utf-8")
        argv = [sys.executable, "-m", "nox", "--no-venv", *args]
        return argv, minimal_env(HOME=str(self.folder), **env_vars)

    @property
    def log(self) -> list[tuple[list[str], dict[str, str], dict[str, str]]]:
        """Return arguments, ``INVOKE_BUILDKIT_*`` and ``GITHUB_*`` of each command, the build first."""
        path = self.folder / "log"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [(args, settings, github) for args, settings, github in map(json.loads, lines)]

    @property
    def builds(self) -> list[list[str]]:
        return [args for args, _, _ in self.log if "build-multiarch" in args]

    @property
    def tests(self) -> list[list[str]]:
        return [args for args, _, _ in self.log if "pytest" in args]

    @property
    def settings(self) -> list[dict[str, str]]:
        return [settings for _, settings, _ in self.log]

    @property
    def github(self) -> list[dict[str, str]]:
        return [github for _, _, github in self.log]


@pytest.fixture
def runner(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Nox:
    return Nox(tmp_path, capfd)


ONE_PLATFORM = 'platforms=["linux/s390x"]'
TWO_PLATFORMS = 'platforms=["linux/arm/v7", "linux/amd64"]'
THREE_PLATFORMS = 'platforms=["linux/arm/v7", "linux/amd64", "linux/s390x"]'
needs_parallel_sessions = pytest.mark.skipif(
    not nox_sessions._SESSION_OPTIONS, reason="this Nox has no parallel sessions"
)


def test_lists_a_session_per_platform(runner: Nox) -> None:
    result = runner(TWO_PLATFORMS, "-l", "--json")
    rows = json.loads(result.stdout)
    assert [row["session"] for row in rows] == ["arch_matrix(arm-v7)", "arch_matrix(amd64)"]


def test_default_platforms(runner: Nox) -> None:
    text = '[tool.buildkit-tasks]\nplatforms = ["linux/s390x"]\n'
    (runner.folder / "pyproject.toml").write_text(text, encoding="utf-8")
    result = runner('name="matrix"', "-l", "--json")
    assert [row["session"] for row in json.loads(result.stdout)] == ["matrix(s390x)"]


def test_builds_once(runner: Nox) -> None:
    result = runner(TWO_PLATFORMS)
    assert result.returncode == 0, result.stderr
    (build,) = runner.builds
    assert build == [
        "-m", "buildkit_tasks", "build-multiarch", "--json",
        "--platform=linux/arm/v7", "--platform=linux/amd64",
    ]  # fmt: skip
    image = f"--arch-image=oci-archive:{runner.folder / 'dist/x.tar'}"
    assert runner.tests == [
        [
            "-m",
            "pytest",
            "--pyargs",
            "buildkit_tasks.testing.default_checks",
            "-p",
            "no:cacheprovider",
            option,
            image,
        ]
        for option in ("--arch-platform=linux/arm/v7", "--arch-platform=linux/amd64")
    ]


def test_one_session_with_pytest_args(runner: Nox) -> None:
    result = runner(f'{TWO_PLATFORMS}, tests=["tests/image"]', "-s", "arch_matrix(arm-v7)", "--", "-k", "x y")
    assert result.returncode == 0, result.stderr
    (args,) = runner.tests
    assert args[2] == "tests/image"
    assert args[-2:] == ["-k", "x y"]
    assert "--arch-platform=linux/arm/v7" in args


def test_failed_platform_does_not_stop_others(runner: Nox) -> None:
    result = runner(TWO_PLATFORMS, FAILING="no:cacheprovider")
    assert result.returncode == 1
    assert len(runner.tests) == 2
    assert len(runner.builds) == 1


def test_failed_build_is_not_repeated(runner: Nox) -> None:
    result = runner(TWO_PLATFORMS, FAILING="build-multiarch")
    assert result.returncode == 1
    assert "build-multiarch ended with status 1" in result.stderr
    assert result.stderr.count("the image could not be built") == 2
    assert (len(runner.builds), runner.tests) == (1, [])


TWO_IMAGES = """
[tool.buildkit-tasks]
platforms = ["linux/amd64", "linux/arm64"]
[[tool.buildkit-tasks.image]]
name = "web"
[[tool.buildkit-tasks.image]]
name = "tool"
platforms = ["amd64", "s390x"]
"""


@pytest.fixture
def two_images(runner: Nox) -> Nox:
    (runner.folder / "pyproject.toml").write_text(TWO_IMAGES, encoding="utf-8")
    return runner


def arch_options(runner: Nox) -> list[list[str]]:
    """Return the ``--arch-platform`` and ``--arch-image`` options of each session."""
    return [
        [arg for arg in args if arg.startswith(("--arch-platform", "--arch-image"))] for args in runner.tests
    ]


def test_several_images(two_images: Nox) -> None:
    result = two_images("", IMAGES="web tool")
    assert result.returncode == 0, result.stderr
    assert two_images.builds == [["-m", "buildkit_tasks", "build-multiarch", "--json"]]
    web, tool = (
        f"--arch-image={name}=oci-archive:{two_images.folder}/dist/{name}.tar" for name in ("web", "tool")
    )
    assert arch_options(two_images) == [
        ["--arch-platform=linux/amd64", web, tool],
        ["--arch-platform=linux/arm64", web],
        ["--arch-platform=linux/s390x", tool],
    ]


def test_noxfile_platforms_for_several_images(two_images: Nox) -> None:
    result = two_images('platforms=["linux/386"]', IMAGES="web tool")
    assert result.returncode == 0, result.stderr
    assert two_images.builds == [
        ["-m", "buildkit_tasks", "build-multiarch", "--json", "--platform=linux/386"]
    ]
    assert [len(args) for args in arch_options(two_images)] == [3]


def test_one_failed_build_of_several(two_images: Nox) -> None:
    result = two_images("", IMAGES="web tool", BROKEN="web")
    assert result.returncode == 1
    assert result.stderr.count("web could not be built") == 2
    assert "arch_matrix(s390x): success" in result.stderr
    assert [args[0] for args in arch_options(two_images)] == [
        "--arch-platform=linux/amd64",
        "--arch-platform=linux/s390x",
    ]
    assert not any("web" in arg for args in arch_options(two_images) for arg in args)


@needs_parallel_sessions
def test_parallel_sessions_of_several_images(two_images: Nox) -> None:
    result = two_images.run_process("", "-j", "3", "-s", "arch_matrix", BUILDING="1", IMAGES="web tool")
    assert result.returncode == 0, result.stdout + result.stderr
    assert (len(two_images.builds), len(two_images.tests)) == (1, 3)


def test_build_without_report(runner: Nox) -> None:
    (runner.folder / "python").write_text("#!/bin/sh\nkill -9 $$\n", encoding="utf-8")
    result = runner(ONE_PLATFORM)
    assert result.returncode == 1
    assert "build-multiarch ended with status -9" in result.stderr
    assert "the image could not be built" in result.stderr


STEPS = pytest.mark.parametrize("step", ["build-multiarch", "pytest"])


def wait_for_file(path: Path) -> None:
    wait_until(path.exists)


def assert_interrupted_once(runner: Nox) -> None:
    """A second SIGINT would stop the cleanup of a real program."""
    assert (runner.folder / "cleaned").exists()
    assert (runner.folder / "interrupts").read_text() == "SIGINT\n"


@STEPS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_interrupt_waits_for_cleanup(
    runner: Nox, step: str, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    with runner.start(ONE_PLATFORM, HANGING=step) as process:
        wait_for_file(runner.folder / "hanging")
        send(process.pid, number)
        assert process.wait(120) == 130
    assert_interrupted_once(runner)


@STEPS
def test_sigterm_of_background_job(runner: Nox, step: str) -> None:
    with runner.start(ONE_PLATFORM, sigint=signal.SIG_IGN, HANGING=step) as process:
        wait_for_file(runner.folder / "hanging")
        process.terminate()
        assert process.wait(120) == 130
    assert_interrupted_once(runner)


@needs_parallel_sessions
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_parallel_sessions(runner: Nox, number: signal.Signals) -> None:
    arguments = (THREE_PLATFORMS, "-j3", "-s", "arch_matrix")
    with runner.start(*arguments, HANGING="build-multiarch") as process:
        wait_for_file(runner.folder / "hanging")
        process.send_signal(number)
        process.wait(120)
        wait_until(lambda: not find_processes_by_argument(runner.folder))
    assert (runner.folder / "interrupts").read_text() == "SIGINT\n"


@STEPS
def test_killed_nox(runner: Nox, step: str) -> None:
    with runner.start(ONE_PLATFORM, HANGING=step) as process:
        wait_for_file(runner.folder / "hanging")
        process.kill()
        process.wait()
        wait_for_file(runner.folder / "interrupts")
        wait_until(lambda: not find_processes_by_argument(runner.folder))


def test_ci_requires_engine(runner: Nox) -> None:
    assert runner(TWO_PLATFORMS, "-s", "arch_matrix(amd64)", CI="true").returncode == 0
    assert "--arch-require-engine" in runner.tests[0]


@pytest.mark.parametrize("platforms", ["linux/s390x, linux/386", ["linux/s390x,386"]])
def test_strings_with_commas(runner: Nox, platforms: object) -> None:
    result = runner(f'{platforms=}, tests="tests/image,tests/b"')
    assert result.returncode == 0, result.stderr
    assert [args[2:4] for args in runner.tests] == [["tests/image", "tests/b"]] * 2
    assert runner.builds[0][-2:] == ["--platform=linux/s390x", "--platform=linux/386"]


BAD_NOXFILES = [
    pytest.param('platforms=["linux/amd46"]', "", "did you mean linux/amd64?", id="platform"),
    pytest.param('"linux/amd46"', "", "did you mean linux/amd64?", id="string"),
    pytest.param("", 'platforms = ["linux/amd46"]', "did you mean linux/amd64?", id="setting"),
    pytest.param(
        "", 'platform = ["linux/amd64"]', "unknown key 'platform', did you mean 'platforms'?", id="key"
    ),
    pytest.param("", "jobs = 'many'", "jobs = 'many' is not a whole number", id="value"),
    pytest.param("", "jobs = ", "pyproject.toml", id="syntax"),
]


@pytest.mark.parametrize(("arguments", "settings", "message"), BAD_NOXFILES)
def test_mistake_is_one_line(runner: Nox, arguments: str, settings: str, message: str) -> None:
    (runner.folder / "pyproject.toml").write_text(f"[tool.buildkit-tasks]\n{settings}\n", encoding="utf-8")
    result = runner(arguments, "-l")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_posargs_are_split(runner: Nox) -> None:
    task_options = ["--cpu=floor", "-j", "4", "--expect-exit", "3"]
    pytest_options = ["-x", "--timeout=9", "-n2", "tests/a_test.py"]
    result = runner(ONE_PLATFORM, "-s", "arch_matrix", "--", "-k", "hello", *task_options, *pytest_options)
    assert result.returncode == 0, result.stderr
    (tests,) = runner.tests
    assert tests[-6:] == ["-k", "hello", *pytest_options]
    settings = {
        "INVOKE_BUILDKIT_CPU": "floor",
        "INVOKE_BUILDKIT_JOBS": "4",
        "INVOKE_BUILDKIT_EXPECT_EXIT": "3",
    }
    assert runner.settings == [settings, settings]


SPELLINGS = [
    ("--cpu=both", "CPU", "both"),
    ("--cpu both", "CPU", "both"),
    ("--runner sandbox", "RUNNER", "sandbox"),
    ("--runner=docker", "RUNNER", "docker"),
    ("-j 3", "JOBS", "3"),
    ("-j3", "JOBS", "3"),
    ("-j=3", "JOBS", "3"),
    ("--jobs=3", "JOBS", "3"),
    ("--jobs 3", "JOBS", "3"),
    ("--command=true", "COMMAND", "true"),
    ("--expect=a=b_c", "EXPECT", "a=b_c"),
    ("--expect-exit=7", "EXPECT_EXIT", "7"),
    ("--expect_exit 7", "EXPECT_EXIT", "7"),
    ("--engine private", "ENGINE", "private"),
    ("--emulators=host", "EMULATORS", "host"),
]


@pytest.mark.parametrize(("spelling", "key", "value"), SPELLINGS, ids=[each[0] for each in SPELLINGS])
def test_option_spellings(spelling: str, key: str, value: str) -> None:
    values, pytest_options = nox_sessions.split_posargs(["-v", *spelling.split(), "-q"])
    assert values == {key.lower(): value}
    assert pytest_options == ["-v", "-q"]


PYTEST_OPTIONS = [
    "--timeout=3",
    "--cpus=1",
    "-jx",
    "-n",
    "4",
    "--expect-exits",
    "j",
    "cpu=floor",
    "--arch-cpu=max",
]


def test_pytest_options_stay() -> None:
    posargs = [*PYTEST_OPTIONS, "--", "--cpu=floor", "-j", "4"]
    assert nox_sessions.split_posargs(posargs) == ({}, posargs)


BAD_VALUES = [
    pytest.param(["--cpu=-cpu"], "option --cpu: '-cpu' is not a valid CPU", id="cpu"),
    pytest.param(["-j", "many"], "option --jobs: jobs = 'many' is not a whole number", id="jobs"),
    pytest.param(["--runner=podman"], "runner = 'podman' is not one of auto, docker, sandbox", id="runner"),
    pytest.param(["--expect=("], "--expect '(' is not a valid regular expression", id="expect"),
    pytest.param(["-x", "--cpu"], "--cpu needs a value", id="no-value"),
]


@pytest.mark.parametrize(("args", "message"), BAD_VALUES)
def test_bad_value_ends_session(runner: Nox, args: list[str], message: str) -> None:
    result = runner(ONE_PLATFORM, "-s", "arch_matrix", "--", *args)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert runner.log == []


REPLACEMENTS = [
    ("--platform=linux/s390x", 'try: nox -s "arch_matrix(s390x)"'),
    ("--platform s390x", 'try: nox -s "arch_matrix(s390x)"'),
    ("--arch-platform=linux/386", "try: nox -l"),
    ("--arch-platform s390x", 'try: nox -s "arch_matrix(s390x)"'),
    ("--image=app.tar", "try: pytest tests/image --arch-image=app.tar"),
    ("--image app.tar", "try: pytest tests/image --arch-image=app.tar"),
    ("--arch-image=web=a b", "try: pytest tests/image '--arch-image=web=a b'"),
    ("--arch-image app.tar", "try: pytest tests/image --arch-image=app.tar"),
    ("--image", "--image needs a value"),
]


@pytest.mark.parametrize(("args", "message"), REPLACEMENTS, ids=[each[0] for each in REPLACEMENTS])
def test_session_options_are_refused(runner: Nox, args: str, message: str) -> None:
    option = args.split(maxsplit=1) if "=" not in args else [args]
    result = runner(f'{ONE_PLATFORM}, tests="tests/image"', "-s", "arch_matrix", "--", "-x", *option)
    assert result.returncode == 1
    assert message in result.stderr
    assert runner.log == []


NO_TESTS = [
    pytest.param("", ["--nosuch"], "unrecognized arguments: --nosuch", id="option"),
    pytest.param("", ["-k", "nothing"], "2 deselected", id="selection"),
    pytest.param(', tests=["tests/tpyo"]', [], "file or directory not found: tests/tpyo", id="path"),
    pytest.param("", ["--", "tests/tpyo"], "not found: tests/tpyo", id="dashes"),
]


@pytest.mark.parametrize(("tests", "args", "message"), NO_TESTS)
def test_no_build_without_tests(runner: Nox, tests: str, args: list[str], message: str) -> None:
    result = runner(f"{ONE_PLATFORM}{tests}", "-s", "arch_matrix", "--", *args, CHECKING="1")
    assert result.returncode == 1
    assert message in result.stderr
    assert runner.log == []


def test_tests_are_collected_once(runner: Nox) -> None:
    args = ("-k", "s390x and runs", "--junitxml=a.xml", "-n1")
    result = runner(THREE_PLATFORMS, "-s", "arch_matrix", "--", *args, CHECKING="1")
    assert result.returncode == 0, result.stderr
    assert (len(runner.builds), len(runner.tests)) == (1, 3)
    (check,) = (runner.folder / "checks").read_text(encoding="utf-8").splitlines()
    assert "--arch-platform=linux/s390x" in json.loads(check)
    assert not (runner.folder / "a.xml").exists()


def test_install_only(runner: Nox) -> None:
    assert runner(ONE_PLATFORM, "--install-only").returncode == 0
    assert runner.log == []


def test_no_step_summary_of_build(runner: Nox) -> None:
    """The summary of the build alone would say "ok" in a job whose sessions fail."""
    assert runner(ONE_PLATFORM, GITHUB_STEP_SUMMARY="summary", GITHUB_ACTIONS="true").returncode == 0
    build_env, test_env = runner.github
    assert build_env == {"GITHUB_STEP_SUMMARY": "", "GITHUB_ACTIONS": "true"}
    assert test_env["GITHUB_STEP_SUMMARY"] == "summary"


def test_empty_value_is_ignored(runner: Nox) -> None:
    assert runner(ONE_PLATFORM, "-s", "arch_matrix", "--", "--expect=", "--cpu", "").returncode == 0
    assert runner.settings == [{}, {}]


needs_parallel_sessions = pytest.mark.skipif(
    not nox_sessions._SESSION_OPTIONS, reason="this Nox has no parallel sessions"
)


@needs_parallel_sessions
def test_parallel_sessions_share_build(runner: Nox) -> None:
    result = runner.run_process(
        THREE_PLATFORMS, "-j", "3", "-s", "arch_matrix", "--", "-j", "2", BUILDING="1"
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(runner.builds) == 1
    platforms = {arg for args in runner.tests for arg in args if arg.startswith("--arch-platform=")}
    assert platforms == {
        "--arch-platform=linux/arm/v7",
        "--arch-platform=linux/amd64",
        "--arch-platform=linux/s390x",
    }
    assert {args[-1] for args in runner.tests} == {f"--arch-image=oci-archive:{runner.folder / 'dist/x.tar'}"}
    assert [each["INVOKE_BUILDKIT_JOBS"] for each in runner.settings] == ["2"] * 4


@needs_parallel_sessions
def test_sessions_run_in_parallel(runner: Nox) -> None:
    """Each session waits until all three have started, which never happens if they run one by one."""
    result = runner.run_process(THREE_PLATFORMS, "-j3", "-s", "arch_matrix", TOGETHER="3")
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(runner.tests) == 3


@needs_parallel_sessions
def test_next_run_builds_again(runner: Nox) -> None:
    for _ in range(2):
        assert runner.run_process(TWO_PLATFORMS, "-j2", "-s", "arch_matrix").returncode == 0
    assert len(runner.builds) == 2


@needs_parallel_sessions
def test_parallel_failed_build(runner: Nox) -> None:
    result = runner.run_process(
        THREE_PLATFORMS, "-j3", "-s", "arch_matrix", FAILING="build-multiarch", BUILDING="1"
    )
    assert result.returncode == 1
    assert (result.stdout + result.stderr).count("the image could not be built") == 3
    assert (len(runner.builds), runner.tests) == (1, [])


def test_other_parent_does_not_share(runner: Nox) -> None:
    """A build is shared with the Nox named by BUILDKIT_TASKS_NOX only if that is the parent process."""
    record = runner.folder / ".nox/.cache/arch_matrix.image.json"
    for _ in range(2):
        assert runner.run_process(ONE_PLATFORM, BUILDKIT_TASKS_NOX="1-1").returncode == 0
    assert (len(runner.builds), record.exists()) == (2, False)
    for _ in range(2):
        assert (
            runner.run_process(ONE_PLATFORM, BUILDKIT_TASKS_NOX=str(Process.from_pid(os.getpid()))).returncode
            == 0
        )
    assert (len(runner.builds), record.exists()) == (3, True)


def test_scheduler_that_has_ended(runner: Nox) -> None:
    with subprocess.Popen(["sleep", "60"]) as sleep:
        scheduler = str(Process.from_pid(sleep.pid))
        sleep.kill()
    with runner.start(ONE_PLATFORM, BUILDKIT_TASKS_NOX=scheduler) as process:
        assert process.wait(120) == -signal.SIGTERM
    assert runner.builds == []


def test_truncated_record_is_ignored(runner: Nox) -> None:
    record = runner.folder / ".nox/.cache/arch_matrix.image.json"
    record.parent.mkdir(parents=True)
    record.write_text('["1-', encoding="utf-8")
    assert (
        runner.run_process(ONE_PLATFORM, BUILDKIT_TASKS_NOX=str(Process.from_pid(os.getpid()))).returncode
        == 0
    )
    assert len(runner.builds) == 1
