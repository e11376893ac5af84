"""A cloned repository that wants its programs run: verifying, running and diagnosing in it run none of them.

Each file of it that could be taken for a program or a module leaves a mark when it is run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.nobody import Nobody, create_nobody
from tests.support.oci import hello, write_archive
from tests.support.project import TASKS, Project
from tests.support.users import NOBODY, needs_root

_CACHE_PROGRAMS = (
    "debian/tools/usr/bin/docker",
    "debian/tools/usr/libexec/docker/cli-plugins/docker-buildx",
    "debian/engine/usr/sbin/dockerd",
    *(f"debian/qemu/usr/bin/qemu-{name}" for name in ("aarch64", "x86_64", "arm", "riscv64")),
    "emulators/qemu-aarch64",
)
_PROGRAMS = (
    "docker",
    "git",
    "qemu-aarch64",
    "apt-get",
    "buildkit-tasks",
    *(f"evil/{x}" for x in _CACHE_PROGRAMS),
)
_MODULES = ("msgspec", "pip", "invoke", "docker", "sitecustomize", "conftest", "tasks", "noxfile")
_EVIL_CACHES = ("./evil", "evil", "{folder}/evil", "~/evil", "link")
COMMANDS = {
    "doctor": ("doctor",),
    "verify": ("verify-arch", "image.tar"),
    "run": ("run-emulated", "image.tar", "--runner=sandbox", "--expect-exit=73"),
}


def plant(folder: Path, *settings: str) -> Path:
    """Make the repository with these settings and return the path of the mark."""
    mark = folder / "mark"
    for name in _PROGRAMS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {mark}\n")
        path.chmod(0o755)
    for name in _MODULES:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    (folder / "link").symlink_to("evil")
    (folder / "invoke.yaml").write_text("buildkit:\n  cache: evil\n")
    (folder / "pyproject.toml").write_text("\n".join(["[tool.buildkit-tasks]", *settings, ""]))
    write_archive(hello(("linux/amd64", "linux/arm64")), folder / "image.tar")
    return mark


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    with create_nobody() as user:
        yield user.with_env(PYTHONSAFEPATH="1")


@pytest.fixture
def home(nobody: Nobody) -> Iterator[Path]:
    """The ordinary user's home, in which the tasks are run; emptied afterwards but for the cache."""
    before = set(nobody.home.iterdir())
    yield nobody.home
    for path in set(nobody.home.iterdir()) - before - {nobody.home / ".cache"}:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@pytest.fixture
def own(project: Project) -> Project:
    """The repository of root. ``python -m`` adds the folder to the path of modules; the program does not."""
    project.folder.mkdir(parents=True, exist_ok=True)
    return project.with_env(PYTHONSAFEPATH="1")


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("cache", _EVIL_CACHES)
def test_cache_of_repository(own: Project, command: str, cache: str) -> None:
    mark = plant(own.folder, f"cache = '{cache.format(folder=own.folder)}'")
    done = own.command(*TASKS, *COMMANDS[command])
    assert done.code == 2
    assert "a repository may not set cache" in done.stderr
    assert "Traceback" not in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_programs_of_repository(own: Project, command: str) -> None:
    mark = plant(own.folder)
    done = own.command(*TASKS, *COMMANDS[command])
    assert done.code in ((0, 3) if command == "doctor" else (0,)), done
    assert "Traceback" not in done.stderr
    assert not mark.exists()


@needs_root
@pytest.mark.parametrize("command", list(COMMANDS))
def test_repository_of_ordinary_user(nobody: Nobody, home: Path, command: str) -> None:
    mark = plant(home, "cache = 'evil'")
    assert "a repository may not set cache" in nobody.task(*COMMANDS[command], expect=2).stderr
    (home / "pyproject.toml").unlink()
    nobody.task(*COMMANDS[command], expect=3 if command == "doctor" else 0)
    assert not mark.exists()


@needs_root
def test_cache_of_another_user(own: Project, tmp_path: Path) -> None:
    """What another user has put into a cache is not run, whoever names it."""
    cache = tmp_path / "cache"
    mark = plant(own.folder)
    shutil.copytree(own.folder / "evil", cache)
    os.chown(cache, NOBODY, NOBODY)
    for command in COMMANDS.values():
        done = own.with_env(INVOKE_BUILDKIT_CACHE=str(cache), SUDO_UID="").command(*TASKS, *command)
        assert "is not used, because it belongs to nobody" in done.stdout + done.stderr, done
        assert done.code == 3
    assert not mark.exists()


def test_marks(own: Project) -> None:
    """The planted programs do leave marks: with the user's own word for that cache they are run."""
    mark = plant(own.folder)
    own.with_env(INVOKE_BUILDKIT_CACHE="evil").command(*TASKS, *COMMANDS["run"])
    assert mark.exists()
