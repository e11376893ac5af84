"""The Nox session factory ``arch_matrix``: test the images of a repository, one session per platform."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import nox

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.system.lock import run_once
from buildkit_tasks.system.process import Process
from buildkit_tasks.testing.images import select_tested_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = ["arch_matrix"]

_DEFAULT_TESTS = ("--pyargs", "buildkit_tasks.testing.default_checks")
# Since Nox 2026.8.10 a session says itself whether `nox -j` may run others beside it.
_SESSION_OPTIONS: dict[str, Any] = {
    key: True for key in ("allow_parallel",) if key in inspect.signature(nox.session).parameters
}
_INTERRUPT_TIMEOUT = 30.0  # seconds that an interrupted program has to remove its containers and files
_SCHEDULER_VARIABLE = "BUILDKIT_TASKS_NOX"


def arch_matrix(
    platforms: Sequence[str] = (), *, tests: Sequence[str] = (), name: str = "arch_matrix"
) -> Callable[[nox.Session, str], None]:
    """Register one session per platform, with ids such as ``arm-v7``, and return the session function.

    ``platforms`` defaults to those of the settings. ``tests`` are arguments for pytest; by default two
    checks run: the image verifies, and it runs. The first session builds the image for all platforms;
    under ``nox -j`` the others wait for it. If the settings have several images, all are built, each for
    its own platforms unless ``platforms`` is given, and a session tests those that are for its platform.

    Of the arguments after ``--`` on Nox's command line, options of ``run-emulated`` become settings of the
    session and the others go to pytest. Sessions run in Nox's own environment, where this package and
    pytest are installed.

    Raises :class:`UsageError` for an unknown platform and :class:`SettingsError` for bad settings.
    """
    settings = load_settings()
    targets = {
        image.name: parse_platforms(platforms) if platforms else image.platforms
        for image in select_tested_images(settings)
    }
    every = tuple(dict.fromkeys(platform for targeted in targets.values() for platform in targeted))
    matrix = _Matrix(
        name=name,
        targets=targets,
        # --platform would override the platforms of each of several images.
        build_platforms=() if settings.images and not platforms else every,
        test_args=tuple(tests) or _DEFAULT_TESTS,
        scheduler=_find_scheduler(),
    )

    @nox.session(name=name, venv_backend="none", **_SESSION_OPTIONS)
    @nox.parametrize("platform", [str(each) for each in every], ids=[each.slug for each in every])
    def session(session: nox.Session, platform: str) -> None:
        """Build once; then verify and run on one platform."""
        matrix.run_session(session, platform)

    return session


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """What the sessions of one ``arch_matrix`` share. An image without a table has an empty name."""

    name: str
    targets: Mapping[str, Sequence[Platform]]
    build_platforms: Sequence[Platform]
    test_args: tuple[str, ...]
    scheduler: str
    _built: list[dict[str, str]] = field(default_factory=list, init=False)

    def run_session(self, session: nox.Session, platform: str) -> None:
        """Test the images for ``platform`` that could be built; fail if one could not."""
        env, pytest_args = session_env_and_args(session)
        built = self._build_images_once(session, env)
        wanted = [name for name, platforms in self.targets.items() if platform in map(str, platforms)]
        images = {name: built[name] for name in wanted if name in built}
        if images:
            args = [*self.test_args, "-p", "no:cacheprovider", *_plugin_options(platform, images)]
            args += pytest_args
            session.run(
                sys.executable,
                "-m",
                "pytest",
                *args,
                env=env,
                external=True,
                interrupt_timeout=_INTERRUPT_TIMEOUT,
            )
        missing = [name or "the image" for name in wanted if name not in built]
        if missing:
            session.error(f"{', '.join(missing)} could not be built")

    def _build_images_once(self, session: nox.Session, env: Mapping[str, str]) -> dict[str, str]:
        """Return the images that were built, by name: once per process, and once for all of ``nox -j``."""
        if not self._built:
            self._built.append(self._share_build(session, env))
        return self._built[0]

    def _share_build(self, session: nox.Session, env: Mapping[str, str]) -> dict[str, str]:
        def build() -> dict[str, str]:
            return _build_images(session, self.build_platforms, env)

        if not self.scheduler:
            return build()
        record = session.cache_dir / f"{quote(self.name, safe='')}.image.json"
        images: dict[str, str] = run_once(record, self.scheduler, build)
        return images


def _plugin_options(platform: str, images: Mapping[str, str]) -> Iterator[str]:
    """Yield the options of our pytest plugin; in CI a missing engine is a failure."""
    yield f"--arch-platform={platform}"
    for name, image in images.items():
        yield f"--arch-image={name}={image}" if name else f"--arch-image={image}"
    if os.environ.get("CI"):
        yield "--arch-require-engine"


def _build_images(
    session: nox.Session, platforms: Sequence[Platform], env: Mapping[str, str]
) -> dict[str, str]:
    """Build in a process of its own; return the archive of each image that could be built, by name."""
    argv = [sys.executable, "-m", "buildkit_tasks", "build-multiarch", "--json"]
    argv += [f"--platform={platform}" for platform in platforms]
    session.log(" ".join(argv))
    status, stdout = run_captured(argv, {**os.environ, **env})
    if status:
        session.warn(f"build-multiarch ended with status {status}")
    try:
        report = json.loads(stdout)
    except ValueError:  # the process was killed
        return {}
    builds = report.get("images", [{"name": "", "build": report}])
    return {each["name"]: image for each in builds if (image := _archive_image_name(each["build"] or {}))}


def run_captured(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
    """Run ``argv`` and return its status and standard output.

    On Ctrl-C, which a terminal sends to the child as well, wait for its cleanup
    (``subprocess.run`` would kill it after a quarter of a second).
    """
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            stdout, _ = child.communicate()
        except KeyboardInterrupt:
            try:
                child.wait(_INTERRUPT_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.terminate()
            raise
    return child.returncode, stdout


def _archive_image_name(build: Mapping[str, Any]) -> str:
    """Return the OCI archive of a build report as an image name; empty if it wrote none."""
    archives = (output["dest"] for output in build.get("outputs", ()) if output["type"] == "oci")
    return next((f"oci-archive:{Path(path).absolute()}" for path in archives), "")


def _find_scheduler() -> str:
    """Return the identity of the Nox process that runs this one for a single session; empty if none does.

    ``nox -j`` runs each session in a child process that reads the noxfile again. Every Nox leaves its pid and
    start time in the environment; a child whose variable names its own parent belongs to that run.
    """
    inherited = os.environ.pop(_SCHEDULER_VARIABLE, "")
    with contextlib.suppress(ProcessLookupError):  # without /proc every session builds for itself
        os.environ[_SCHEDULER_VARIABLE] = str(Process.from_pid(os.getpid()))
        return inherited if inherited == str(Process.from_pid(os.getppid())) else ""
    return ""


def session_env_and_args(session: nox.Session) -> tuple[dict[str, str], list[str]]:
    """Return the environment with the settings among the session's arguments, and pytest's arguments.

    A bad value ends the session with the message of the settings, before anything is built.
    """
    from buildkit_tasks.run.outcomes import Expectation

    try:
        settings, pytest_args = split_posargs(session.posargs)
        Expectation(pattern=load_settings(settings).expect)  # raises if it is not a regular expression
    except UsageError as error:
        session.error(str(error))
    return {f"INVOKE_BUILDKIT_{key.upper()}": value for key, value in settings.items() if value}, pytest_args


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
