"""Nox sessions for a noxfile: ``arch_matrix`` tests an image on each platform, one session each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nox

from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["arch_matrix"]

_DEFAULT_TESTS = ("--pyargs", "buildkit_tasks.matrix_checks")


def arch_matrix(
    platforms: Sequence[str] = (), *, tests: Sequence[str] = (), name: str = "arch_matrix"
) -> Callable[[nox.Session, str], None]:
    """Register a session for each platform, with ids such as ``arm-v7``; gives the session function.

    ``platforms`` defaults to the settings', ``tests`` (pytest's arguments) to two checks that every
    image must pass: it is what it says, and it runs. The image is built once, by whichever session
    comes first, for all platforms; what follows ``--`` on nox's command line goes to pytest.
    The sessions run where Nox runs, since that is where this package and pytest are installed.
    """
    wanted = parse_platforms(platforms or load().platforms)
    images: list[str] = []

    @nox.session(name=name, venv_backend="none")
    @nox.parametrize("platform", [str(each) for each in wanted], ids=[each.slug for each in wanted])
    def session(session: nox.Session, platform: str) -> None:
        """Build once; then verify and run on one platform."""
        if not images:
            images.append(_built(session, [str(each) for each in wanted]))
        if not images[0]:
            session.error("the image could not be built")
        chosen = [*(tests or _DEFAULT_TESTS), "-p", "no:cacheprovider"]
        python = [sys.executable, "-m", "pytest"]
        options = [f"--platform={platform}", f"--image={images[0]}", *_strictness()]
        session.run(*python, *chosen, *options, *session.posargs, external=True)

    return session


def _strictness() -> list[str]:
    """In CI a missing engine is a failure."""
    return ["--require-engine"] if os.environ.get("CI") else []


def _built(session: nox.Session, platforms: list[str]) -> str:
    """Build the image for all platforms in a process of its own; gives its name, or nothing."""
    argv = [sys.executable, "-m", "buildkit_tasks", "build-multiarch", "--json"]
    argv += [f"--platform={platform}" for platform in platforms]
    session.log(" ".join(argv))
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        session.warn(f"build-multiarch ended with status {done.returncode}")
        return ""
    outputs = json.loads(done.stdout)["outputs"]
    archives = [output["dest"] for output in outputs if output["type"] == "oci"]
    return f"oci-archive:{Path(archives[0]).absolute()}"
