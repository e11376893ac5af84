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

from buildkit_tasks.config.settings import load
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.system.lock import once
from buildkit_tasks.system.process import Process
from buildkit_tasks.testing.images import images_under

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = ["arch_matrix"]

_DEFAULT_TESTS = ("--pyargs", "buildkit_tasks.testing.default_checks")
# What a session may run beside, under `nox -j`: Nox knows it from 2026.8.10 on.
_PARALLEL: dict[str, Any] = {
    key: True for key in ("allow_parallel",) if key in inspect.signature(nox.session).parameters
}
_GRACE = 30.0  # seconds in which what is interrupted takes away what it has made
_SCHEDULER = "BUILDKIT_TASKS_NOX"  # the process that read the noxfile first


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
    settings = load()
    wanted = {
        each.name: parse_platforms(platforms) if platforms else each.platforms
        for each in images_under(settings)
    }
    every = tuple(dict.fromkeys(each for found in wanted.values() for each in found))
    # Several images have each their own, and what is typed would hold for all.
    asked = () if settings.images and not platforms else every
    scheduler = _scheduler()
    images: list[dict[str, str]] = []

    @nox.session(name=name, venv_backend="none", **_PARALLEL)
    @nox.parametrize("platform", [str(each) for each in every], ids=[each.slug for each in every])
    def session(session: nox.Session, platform: str) -> None:
        """Build once; then verify and run on one platform."""
        env, words = _sorted_out(session)
        if not images:
            images.append(_once(session, name, scheduler, lambda: _built(session, asked, env)))
        here = [image for image, found in wanted.items() if platform in map(str, found)]
        built = [(image, images[0][image]) for image in here if image in images[0]]
        if built:
            chosen = [*(tests or _DEFAULT_TESTS), "-p", "no:cacheprovider"]
            python = [sys.executable, "-m", "pytest"]
            named = [f"--image={image}={place}" if image else f"--image={place}" for image, place in built]
            options = [f"--platform={platform}", *named, *_strictness()]
            session.run(*python, *chosen, *options, *words, env=env, external=True, interrupt_timeout=_GRACE)
        if len(built) < len(here):
            lacking = ", ".join(image or "the image" for image in here if image not in images[0])
            session.error(f"{lacking} could not be built")

    return session


def _strictness() -> list[str]:
    """In CI a missing engine is a failure."""
    return ["--require-engine"] if os.environ.get("CI") else []


def _built(session: nox.Session, platforms: Sequence[Platform], env: Mapping[str, str]) -> dict[str, str]:
    """Build in a process of its own; gives where each image is that could be built, by its name.

    The one image of a repository has the empty name.
    """
    argv = [sys.executable, "-m", "buildkit_tasks", "build-multiarch", "--json"]
    argv += [f"--platform={platform}" for platform in platforms]
    session.log(" ".join(argv))
    code, said = _ended(argv, {**os.environ, **env})
    if code:
        session.warn(f"build-multiarch ended with status {code}")
    try:
        report = json.loads(said)
    except ValueError:  # it was killed
        return {}
    rows = report.get("images", [{"name": "", "build": report}])
    return {row["name"]: place for row in rows if (place := _archive(row["build"] or {}))}


def _ended(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, str]:
    """The status and the standard output of a program that Ctrl-C lets take away what it has made.

    (``subprocess.run`` kills it after a quarter of a second.)
    """
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as child:
        try:
            said, _ = child.communicate()
        except KeyboardInterrupt:  # of a terminal, which has interrupted it as well
            try:
                child.wait(_GRACE)
            except subprocess.TimeoutExpired:
                child.terminate()
            raise
    return child.returncode, said


def _archive(build: Mapping[str, Any]) -> str:
    """The archive of a build that has made one, as an image's name."""
    archives = (output["dest"] for output in build.get("outputs", ()) if output["type"] == "oci")
    return next((f"oci-archive:{Path(each).absolute()}" for each in archives), "")


def _scheduler() -> str:
    """The Nox that started this one for a single session, as ``nox -j`` does; empty if none did.

    Each session of ``nox -j`` is a child process of Nox that reads the noxfile again. The one that
    read it first leaves its pid and start time in the environment.
    """
    first = os.environ.pop(_SCHEDULER, "")
    with contextlib.suppress(ProcessLookupError):  # no /proc to look in: then each builds for itself
        os.environ[_SCHEDULER] = str(Process.of(os.getpid()))
        return first if first == str(Process.of(os.getppid())) else ""
    return ""


def _once(
    session: nox.Session, name: str, scheduler: str, build: Callable[[], dict[str, str]]
) -> dict[str, str]:
    """What ``build`` gives; under ``nox -j``, what it gave the first of this run's sessions."""
    if not scheduler:
        return build()
    found: dict[str, str] = once(session.cache_dir / f"{quote(name, safe='')}.image.json", scheduler, build)
    return found


def _sorted_out(session: nox.Session) -> tuple[dict[str, str], list[str]]:
    """The environment that sets what the words after ``--`` ask of a run, and the words for pytest.

    A value that cannot be ends the session in the words of the settings.
    """
    from buildkit_tasks.run.outcomes import Expectation

    try:
        values, words = _parted(session.posargs)
        Expectation(pattern=load(values).expect)  # which refuses what is no regular expression
    except UsageError as error:
        session.error(str(error))
    return {f"INVOKE_BUILDKIT_{key.upper()}": value for key, value in values.items() if value}, words


def _parted(posargs: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Settings by their keys, from the words that are options of ``run-emulated``; and the other words."""
    settings = _settings_by_option()
    values: dict[str, str] = {}
    others: list[str] = []
    words = iter(posargs)
    for word in words:
        option, value = _split(word)
        if option not in settings:
            others.append(word)
            if word == "--":
                return values, [*others, *words]
            continue
        if value is None and (value := next(words, None)) is None:
            raise UsageError(f"{word} needs a value")
        values[settings[option]] = value
    return values, others


def _split(word: str) -> tuple[str, str | None]:
    """A word as an option, with dashes, and the value that is joined to it."""
    if word.startswith("-j") and word[2:3].isdecimal():
        return "-j", word[2:]
    option, joined, value = word.partition("=")
    return option.replace("_", "-"), value if joined else None


def _settings_by_option() -> dict[str, str]:
    """The options of a run that have one value, as typed, and the key of the settings that each sets."""
    from buildkit_tasks.cli.options import ENVIRONMENT, RUN

    found: dict[str, Any] = {}
    for option in (*RUN, *ENVIRONMENT):
        if option.setting and option.default == "" and option.name != "timeout":  # that one is pytest's
            found[f"--{option.name.replace('_', '-')}"] = option.setting
            if option.short:
                found[f"-{option.short}"] = option.setting
    return found
