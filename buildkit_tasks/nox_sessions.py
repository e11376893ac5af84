"""Nox sessions for a noxfile: ``arch_matrix`` tests an image on each platform, one session each."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import subprocess
import sys
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
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = ["arch_matrix"]

_DEFAULT_TESTS = ("--pyargs", "buildkit_tasks.testing.default_checks")
# What a session may run beside, under `nox -j`: Nox knows it from 2026.8.10 on.
_SESSION_OPTIONS: dict[str, Any] = {
    key: True for key in ("allow_parallel",) if key in inspect.signature(nox.session).parameters
}
_INTERRUPT_TIMEOUT = 30.0  # seconds in which what is interrupted takes away what it has made
_SCHEDULER_VARIABLE = "BUILDKIT_TASKS_NOX"  # the process that read the noxfile first


def arch_matrix(
    platforms: Sequence[str] = (), *, tests: Sequence[str] = (), name: str = "arch_matrix"
) -> Callable[[nox.Session, str], None]:
    """Register a session for each platform, with ids such as ``arm-v7``; gives the session function.

    ``platforms`` defaults to the settings', ``tests`` (pytest's arguments) to two checks that every
    image must pass: it is what it says, and it runs. The image is built once, by whichever session
    comes first, for all platforms; under ``nox -j`` the others wait for it. With several images in the
    settings all are built, each for its own platforms unless these are given here, and a session tests
    those that are for its platform. Of what follows ``--`` on nox's command line, options of
    ``run-emulated`` become settings of the session, and the rest goes to pytest.
    The sessions run where Nox runs, since that is where this package and pytest are installed.
    """
    settings = load_settings()
    image_platforms = {
        each.name: parse_platforms(platforms) if platforms else each.platforms
        for each in select_tested_images(settings)
    }
    all_platforms = tuple(
        dict.fromkeys(each for platforms_of_image in image_platforms.values() for each in platforms_of_image)
    )
    # Several images have each their own, and what is typed would hold for all.
    explicit_platforms = () if settings.images and not platforms else all_platforms
    scheduler = _identify_scheduler()
    shared_images: list[dict[str, str]] = []

    @nox.session(name=name, venv_backend="none", **_SESSION_OPTIONS)
    @nox.parametrize(
        "platform", [str(each) for each in all_platforms], ids=[each.slug for each in all_platforms]
    )
    def session(session: nox.Session, platform: str) -> None:
        """Build once; then verify and run on one platform."""
        env, pytest_args = session_env_and_args(session)
        if not shared_images:
            shared_images.append(
                _build_once(session, name, scheduler, lambda: _build_images(session, explicit_platforms, env))
            )
        image_names = [
            image for image, image_targets in image_platforms.items() if platform in map(str, image_targets)
        ]
        built_images = [
            (image, shared_images[0][image]) for image in image_names if image in shared_images[0]
        ]
        if built_images:
            test_args = [*(tests or _DEFAULT_TESTS), "-p", "no:cacheprovider"]
            python = [sys.executable, "-m", "pytest"]
            image_options = [
                f"--image={image}={location}" if image else f"--image={location}"
                for image, location in built_images
            ]
            options = [f"--platform={platform}", *image_options, *require_engine_option()]
            session.run(
                *python,
                *test_args,
                *options,
                *pytest_args,
                env=env,
                external=True,
                interrupt_timeout=_INTERRUPT_TIMEOUT,
            )
        if len(built_images) < len(image_names):
            missing_images = ", ".join(
                image or "the image" for image in image_names if image not in shared_images[0]
            )
            session.error(f"{missing_images} could not be built")

    return session


def require_engine_option() -> list[str]:
    """In CI a missing engine is a failure."""
    return ["--require-engine"] if os.environ.get("CI") else []


def _build_images(
    session: nox.Session, platforms: Sequence[Platform], env: Mapping[str, str]
) -> dict[str, str]:
    """Build in a process of its own; gives where each image is that could be built, by its name.

    The one image of a repository has the empty name.
    """
    argv = [sys.executable, "-m", "buildkit_tasks", "build-multiarch", "--json"]
    argv += [f"--platform={platform}" for platform in platforms]
    session.log(" ".join(argv))
    status, stdout = run_captured(argv, {**os.environ, **env})
    if status:
        session.warn(f"build-multiarch ended with status {status}")
    try:
        report = json.loads(stdout)
    except ValueError:  # it was killed
        return {}
    rows = report.get("images", [{"name": "", "build": report}])
    return {row["name"]: location for row in rows if (location := _archive_image_name(row["build"] or {}))}


def run_captured(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
    """The status and the standard output of a program that Ctrl-C lets take away what it has made.

    (``subprocess.run`` kills it after a quarter of a second.)
    """
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            stdout, _ = child.communicate()
        except KeyboardInterrupt:  # of a terminal, which has interrupted it as well
            try:
                child.wait(_INTERRUPT_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.terminate()
            raise
    return child.returncode, stdout


def _archive_image_name(build: Mapping[str, Any]) -> str:
    """The archive of a build that has made one, as an image's name."""
    archives = (output["dest"] for output in build.get("outputs", ()) if output["type"] == "oci")
    return next((f"oci-archive:{Path(path).absolute()}" for path in archives), "")


def _identify_scheduler() -> str:
    """The Nox that started this one for a single session, as ``nox -j`` does; empty if none did.

    Each session of ``nox -j`` is a child process of Nox that reads the noxfile again. The one that
    read it first leaves its pid and start time in the environment.
    """
    first_process = os.environ.pop(_SCHEDULER_VARIABLE, "")
    with contextlib.suppress(ProcessLookupError):  # no /proc to look in: then each builds for itself
        os.environ[_SCHEDULER_VARIABLE] = str(Process.from_pid(os.getpid()))
        return first_process if first_process == str(Process.from_pid(os.getppid())) else ""
    return ""


def _build_once(
    session: nox.Session, name: str, scheduler: str, build: Callable[[], dict[str, str]]
) -> dict[str, str]:
    """What ``build`` gives; under ``nox -j``, what it gave the first of this run's sessions."""
    if not scheduler:
        return build()
    images: dict[str, str] = run_once(
        session.cache_dir / f"{quote(name, safe='')}.image.json", scheduler, build
    )
    return images


def session_env_and_args(session: nox.Session) -> tuple[dict[str, str], list[str]]:
    """The environment that sets what the words after ``--`` ask of a run, and the words for pytest.

    A value that cannot be ends the session in the words of the settings.
    """
    from buildkit_tasks.run.outcomes import Expectation

    try:
        values, pytest_args = split_posargs(session.posargs)
        Expectation(pattern=load_settings(values).expect)  # which refuses what is no regular expression
    except UsageError as error:
        session.error(str(error))
    return {f"INVOKE_BUILDKIT_{key.upper()}": value for key, value in values.items() if value}, pytest_args


def split_posargs(posargs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Settings by their keys, from the words that are options of ``run-emulated``; and the other words."""
    setting_keys = _map_options_to_settings()
    values: dict[str, str] = {}
    pytest_args: list[str] = []
    remaining_args = iter(posargs)
    for arg in remaining_args:
        option, value = _split_option(arg)
        if option not in setting_keys:
            pytest_args.append(arg)
            if arg == "--":
                return values, [*pytest_args, *remaining_args]
            continue
        if value is None and (value := next(remaining_args, None)) is None:
            raise UsageError(f"{arg} needs a value")
        values[setting_keys[option]] = value
    return values, pytest_args


def _split_option(arg: str) -> tuple[str, str | None]:
    """A word as an option, with dashes, and the value that is joined to it."""
    if arg.startswith("-j") and arg[2:3].isdecimal():
        return "-j", arg[2:]
    option, separator, value = arg.partition("=")
    return option.replace("_", "-"), value if separator else None


def _map_options_to_settings() -> dict[str, str]:
    """The options of a run that have one value, as typed, and the key of the settings that each sets."""
    from buildkit_tasks.cli.options import ENGINE_OPTIONS, RUN_OPTIONS

    setting_keys: dict[str, Any] = {}
    for option in (*RUN_OPTIONS, *ENGINE_OPTIONS):
        if option.setting and option.default == "" and option.name != "timeout":  # that one is pytest's
            setting_keys[f"--{option.name.replace('_', '-')}"] = option.setting
            if option.short:
                setting_keys[f"-{option.short}"] = option.setting
    return setting_keys
