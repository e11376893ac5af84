"""The Nox session factory ``arch_matrix``: test the images of a repository, one session per platform."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import nox
import pytest
from nox.command import CommandFailed
from nox.logger import logger

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.printable import escape_output
from buildkit_tasks.system.lock import run_once
from buildkit_tasks.system.parent_death import signal_on_parent_death
from buildkit_tasks.system.process import Process
from buildkit_tasks.system.sigterm import interrupted_by_sigterm
from buildkit_tasks.testing.images import select_tested_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["arch_matrix"]

_DEFAULT_TESTS = ("--pyargs", "buildkit_tasks.testing.default_checks")
# Since Nox 2026.8.10 a session says itself whether `nox -j` may run others beside it.
_SESSION_OPTIONS: dict[str, Any] = {
    key: True for key in ("allow_parallel",) if key in inspect.signature(nox.session).parameters
}
_INTERRUPT_TIMEOUT = 30.0  # seconds that an interrupted program has to remove its containers and files
# Options of pytest that the sessions set themselves.
_SESSION_VALUES = ("--platform", "--arch-platform", "--image", "--arch-image")
_SCHEDULER_VARIABLE = "BUILDKIT_TASKS_NOX"


def arch_matrix(
    platforms: str | Sequence[str] = (), *, tests: str | Sequence[str] = (), name: str = "arch_matrix"
) -> Callable[[nox.Session, str], None]:
    """Register one session per platform, with ids such as ``arm-v7``, and return the session function.

    ``platforms`` defaults to those of the settings. ``tests`` are arguments for pytest; by default two
    checks run: the image verifies, and it runs. Both may be a string, with commas between several. The
    first session builds the image for all platforms; under ``nox -j`` the others wait for it. If the
    settings have several images, all are built, each for its own platforms unless ``platforms`` is given,
    and a session tests those that are for its platform.

    Of the arguments after ``--`` on Nox's command line, options of ``run-emulated`` become settings of the
    session and the others go to pytest. Sessions run in Nox's own environment, where this package and
    pytest are installed.

    An unknown platform and bad settings end Nox with their message: raises :class:`SystemExit`.
    """
    try:
        matrix = _create_matrix(_split(platforms), _split(tests), name)
    except UsageError as error:
        logger.error(str(error))
        raise SystemExit(error.exit_code) from None

    @nox.session(name=name, venv_backend="none", **_SESSION_OPTIONS)
    @nox.parametrize(
        "platform", [str(each) for each in matrix.platforms], ids=[each.slug for each in matrix.platforms]
    )
    def session(session: nox.Session, platform: str) -> None:
        """Build once; then verify and run on one platform."""
        with _end_by_sigterm(matrix.scheduler):
            matrix.run_session(session, platform)

    return session


def _split(values: str | Sequence[str]) -> tuple[str, ...]:
    items = values.split(",") if isinstance(values, str) else map(str, values)
    return tuple(item.strip() for item in items if item.strip())


def _create_matrix(platforms: Sequence[str], tests: Sequence[str], name: str) -> _Matrix:
    """Read the settings. Raises :class:`UsageError` and :class:`SettingsError`."""
    settings = load_settings()
    targets = {
        image.name: parse_platforms(platforms) if platforms else image.platforms
        for image in select_tested_images(settings)
    }
    every = tuple(dict.fromkeys(platform for targeted in targets.values() for platform in targeted))
    return _Matrix(
        name=name,
        targets=targets,
        platforms=every,
        # --platform would override the platforms of each of several images.
        build_platforms=() if settings.images and not platforms else every,
        test_args=tuple(tests) or _DEFAULT_TESTS,
        scheduler=_find_scheduler(),
    )


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """What the sessions of one ``arch_matrix`` share. An image without a table has an empty name."""

    name: str
    targets: Mapping[str, Sequence[Platform]]
    platforms: Sequence[Platform]
    build_platforms: Sequence[Platform]
    test_args: tuple[str, ...]
    scheduler: Process | None
    _built: list[dict[str, str]] = field(default_factory=list, init=False)

    def run_session(self, session: nox.Session, platform: str) -> None:
        """Test the images for ``platform`` that could be built; fail if one could not."""
        if session._runner.global_config.install_only:  # noqa: SLF001 - as Session.run does, no public way
            session.log("nothing is built or tested, as --install-only is set")
            return
        env, pytest_args = self._read_arguments(session)
        built = self._build_images_once(session, env, pytest_args)
        wanted = [name for name, platforms in self.targets.items() if platform in map(str, platforms)]
        images = {name: built[name] for name in wanted if name in built}
        if images:
            options = [*_plugin_options(platform), *_image_options(images)]
            _run_pytest(session, [*self.test_args, *options, *pytest_args], env)
        missing = [name or "the image" for name in wanted if name not in built]
        if missing:
            session.error(f"{', '.join(missing)} could not be built")

    def _read_arguments(self, session: nox.Session) -> tuple[dict[str, str], list[str]]:
        """Return the environment with the settings among the session's arguments, and pytest's arguments.

        A bad value ends the session with the message of the settings, before anything is built.
        """
        from buildkit_tasks.run.outcomes import Expectation

        try:
            settings, pytest_args = split_posargs(session.posargs)
            self._check_options(pytest_args)
            names = {key: f"--{key.replace('_', '-')}" for key in settings}
            merged = load_settings(settings, flag_names=names)
            Expectation(pattern=merged.expect)  # raises if it is not a regular expression
        except UsageError as error:
            logger.error(str(error))  # not as Nox's reason, where a full stop follows the hint's command
            session.error("the arguments are not valid")
        env = {f"INVOKE_BUILDKIT_{key.upper()}": value for key, value in settings.items() if value}
        return env, pytest_args

    def _check_options(self, pytest_args: Sequence[str]) -> None:
        """Raise :class:`UsageError` for options that would replace the platform or the image of a session."""
        args = iter(pytest_args)
        for arg in itertools.takewhile(lambda each: each != "--", args):
            option, value = _split_option(arg)
            if option in _SESSION_VALUES:
                value = _next_value(args, arg) if value is None else value
                raise UsageError(
                    f"{option}: a session tests the image that it has built, on the platform of its name",
                    hint=self._other_command(option, value),
                )

    def _other_command(self, option: str, value: str) -> str:
        """Return the command that tests on a platform, or an image."""
        if option.endswith("image"):
            return shlex.join(["pytest", *self.test_args, f"--arch-image={value}"])
        slugs = [each.slug for each in self.platforms if value in (str(each), each.slug)]
        return f'nox -s "{self.name}({slugs[0]})"' if slugs else "nox -l"

    def _build_images_once(
        self, session: nox.Session, env: Mapping[str, str], pytest_args: Sequence[str]
    ) -> dict[str, str]:
        """Return the images that were built, by name: once per process, and once for all of ``nox -j``."""
        if not self._built:
            self._built.append(self._share_build(session, env, pytest_args))
        return self._built[0]

    def _share_build(
        self, session: nox.Session, env: Mapping[str, str], pytest_args: Sequence[str]
    ) -> dict[str, str]:
        def build() -> dict[str, str]:
            options = _plugin_options(*map(str, self.platforms))
            _check_tests(session, [*self.test_args, *options, *pytest_args], env)
            return _build_images(session, self.build_platforms, env)

        if self.scheduler is None:
            return build()
        record = session.cache_dir / f"{quote(self.name, safe='')}.image.json"
        images: dict[str, str] = run_once(record, str(self.scheduler), build)
        return images


@contextlib.contextmanager
def _end_by_sigterm(scheduler: Process | None) -> Iterator[None]:
    """Handle SIGTERM like Ctrl-C.

    Under ``nox -j`` only the running program cleans up, which gets a signal when this process ends: the
    scheduler kills sessions two seconds after SIGTERM. If the scheduler is killed, the session gets SIGTERM.
    """
    if scheduler is not None:
        signal_on_parent_death(signal.SIGTERM, scheduler.pid)
        yield
        return
    with interrupted_by_sigterm():
        yield


def _plugin_options(*platforms: str) -> Iterator[str]:
    """Yield the options of pytest for these platforms; in CI a missing engine is a failure."""
    yield from ("-p", "no:cacheprovider")
    for platform in platforms:
        yield f"--arch-platform={platform}"
    if os.environ.get("CI"):
        yield "--arch-require-engine"


def _image_options(images: Mapping[str, str]) -> Iterator[str]:
    for name, image in images.items():
        yield f"--arch-image={name}={image}" if name else f"--arch-image={image}"


def _check_tests(session: nox.Session, args: Sequence[str], env: Mapping[str, str]) -> None:
    """Collect the tests, so that a mistake in pytest's arguments costs a second and not a build.

    Only invalid arguments, and that no test is selected, end the session. Errors of the tests are reported
    by the tests.
    """
    end = args.index("--") if "--" in args else len(args)
    argv = [*args[:end], "--collect-only", "-q", "--junit-xml=", *args[end:]]  # without a report of no tests
    status, output = run_program(
        [sys.executable, "-m", "pytest", *argv], _session_env(session, env), subprocess.PIPE
    )
    if status in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED):
        logger.error(escape_output(output.strip()) or f"pytest ended with status {status}")
        session.error("pytest would run no test with these arguments")


def _run_pytest(session: nox.Session, args: Sequence[str], env: Mapping[str, str]) -> None:
    """Run pytest in a process of its own. Raises :class:`CommandFailed`."""
    argv = [sys.executable, "-m", "pytest", *args]
    session.log(shlex.join(argv))
    status, _ = run_program(argv, _session_env(session, env))
    if status:
        session.warn(f"pytest ended with status {status}")
        raise CommandFailed(f"pytest ended with status {status}", return_code=status)


def _session_env(session: nox.Session, env: Mapping[str, str]) -> dict[str, str]:
    session_env = {key: value for key, value in session.env.items() if value is not None}
    return {**os.environ, **session_env, **env}


def _build_images(
    session: nox.Session, platforms: Sequence[Platform], env: Mapping[str, str]
) -> dict[str, str]:
    """Build in a process of its own; return the archive of each image that could be built, by name."""
    argv = [sys.executable, "-m", "buildkit_tasks", "build-multiarch", "--json"]
    argv += [f"--platform={platform}" for platform in platforms]
    session.log(" ".join(argv))
    # The sessions write no step summary; that of the build alone would say "ok" in a failed job.
    status, stdout = run_program(argv, {**os.environ, **env, "GITHUB_STEP_SUMMARY": ""}, subprocess.PIPE)
    if status:
        session.warn(f"build-multiarch ended with status {status}")
    try:
        report = json.loads(stdout)
    except ValueError:  # the process was killed
        return {}
    builds = report.get("images", [{"name": "", "build": report}])
    return {each["name"]: image for each in builds if (image := _archive_image_name(each["build"] or {}))}


def run_program(argv: Sequence[str], env: Mapping[str, str], stdout: int | None = None) -> tuple[int, str]:
    """Run ``argv`` and return its status, and its standard output if that is a pipe.

    The program leads a session, so that Ctrl-C and signals to the group of Nox reach Nox alone, which passes
    them on once: a second SIGINT would stop its cleanup. It gets SIGINT also if Nox is killed.
    """
    with subprocess.Popen(
        argv,
        stdout=stdout,
        text=True,
        env=env,
        start_new_session=True,
        preexec_fn=partial(_prepare_child, os.getpid()),  # noqa: PLW1509 - Nox runs no other threads here
    ) as child:
        try:
            output, _ = child.communicate()
        except KeyboardInterrupt:
            _interrupt(child)
            raise
    return child.returncode, output or ""


def _prepare_child(parent_pid: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it
    signal_on_parent_death(signal.SIGINT, parent_pid)


def _interrupt(child: subprocess.Popen[str]) -> None:
    """Interrupt a program as a terminal would, and wait for its cleanup; each Ctrl-C is passed on."""
    try:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGINT)
        child.communicate(timeout=_INTERRUPT_TIMEOUT)
    except KeyboardInterrupt:
        _interrupt(child)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)


def _archive_image_name(build: Mapping[str, Any]) -> str:
    """Return the OCI archive of a build report as an image name; empty if it wrote none."""
    archives = (output["dest"] for output in build.get("outputs", ()) if output["type"] == "oci")
    return next((f"oci-archive:{Path(path).absolute()}" for path in archives), "")


def _find_scheduler() -> Process | None:
    """Return the Nox process that runs this one for a single session, if one does.

    ``nox -j`` runs each session in a child process that reads the noxfile again. Every Nox leaves its pid and
    start time in the environment; a child whose variable names its own parent belongs to that run.
    """
    inherited = os.environ.pop(_SCHEDULER_VARIABLE, "")
    scheduler = Process.parse(inherited)
    if scheduler is not None and not scheduler.is_alive and os.getsid(0) == os.getpid():
        # Nox starts each child in a session of its own. The scheduler was killed while this one was starting.
        signal.raise_signal(signal.SIGTERM)
    with contextlib.suppress(ProcessLookupError):  # without /proc every session builds for itself
        os.environ[_SCHEDULER_VARIABLE] = str(Process.from_pid(os.getpid()))
        parent = Process.from_pid(os.getppid())
        return parent if inherited == str(parent) else None
    return None


def split_posargs(posargs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split arguments into settings by key (options of ``run-emulated``) and the others.

    ``["--cpu=floor", "-j", "4", "-k", "web"]`` becomes ``{"cpu": "floor", "jobs": "4"}`` and
    ``["-k", "web"]``. What follows another ``--`` is left alone. Raises :class:`UsageError` for an option
    without a value.
    """
    keys = _setting_key_of_option()
    settings: dict[str, str] = {}
    others: list[str] = []
    args = iter(posargs)
    for arg in args:
        option, value = _split_option(arg)
        if option in keys:
            settings[keys[option]] = _next_value(args, arg) if value is None else value
        elif arg == "--":
            return settings, [*others, arg, *args]
        else:
            others.append(arg)
    return settings, others


def _next_value(args: Iterator[str], option: str) -> str:
    value = next(args, None)
    if value is None:
        raise UsageError(f"{option} needs a value")
    return value


def _split_option(arg: str) -> tuple[str, str | None]:
    """Split ``--cpu=floor`` and ``-j4`` into option and value; the value is None if it is not joined."""
    if arg.startswith("-j") and arg[2:3].isdecimal():
        return "-j", arg[2:]
    option, separator, value = arg.partition("=")
    return option.replace("_", "-"), value if separator else None


def _setting_key_of_option() -> dict[str, str]:
    """Return the settings key of each option of a run that takes one value; --timeout is pytest's."""
    from buildkit_tasks.cli.options import ENGINE_OPTIONS, RUN_OPTIONS

    keys: dict[str, str] = {}
    for option in (*RUN_OPTIONS, *ENGINE_OPTIONS):
        if option.setting and option.default == "" and option.name != "timeout":
            keys[f"--{option.name.replace('_', '-')}"] = option.setting
            if option.short:
                keys[f"-{option.short}"] = option.setting
    return keys
