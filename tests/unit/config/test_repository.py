"""What pyproject.toml of a cloned repository may decide, and which one is read."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from buildkit_tasks.config.repository import find_pyproject
from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import SettingsError
from tests.support.users import NOBODY, call_as_nobody, needs_root


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    (folder / ".git").mkdir(parents=True)
    return folder


def write(folder: Path, *lines: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pyproject.toml"
    path.write_text("\n".join(["[tool.buildkit-tasks]", *lines, ""]))
    return path


def test_cache_of_repository(repository: Path) -> None:
    path = write(repository, "cache = './evil cache'")
    with pytest.raises(SettingsError) as caught:
        load_settings(environ={}, folder=repository)
    error = caught.value
    assert (
        error.message
        == f"{path}: [tool.buildkit-tasks]: a repository may not set cache: the programs in that"
        " folder are run on this machine"
    )
    assert (error.exit_code, error.hint) == (2, "export INVOKE_BUILDKIT_CACHE='./evil cache'")


def test_context_like_a_url(repository: Path) -> None:
    """buildx takes it as a path, and the folder ``x:`` may exist."""
    (repository / "x:").mkdir()
    write(repository, "context = 'x://../../other'")
    with pytest.raises(SettingsError, match="leads out of the repository"):
        load_settings(environ={}, folder=repository)


@needs_root
def test_link_of_another_user(tmp_path: Path) -> None:
    write(tmp_path, "timeout = 5").rename(tmp_path / "other.toml")
    (tmp_path / "pyproject.toml").symlink_to("other.toml")
    os.lchown(tmp_path / "pyproject.toml", NOBODY, NOBODY)
    with pytest.raises(SettingsError, match="belongs to another user"):
        find_pyproject(tmp_path)


def test_modules_of_repository(repository: Path) -> None:
    """``python -m`` looks in the current folder first; other modules than our package are not imported."""
    for name in ("invoke", "platformdirs", "json"):
        (repository / f"{name}.py").write_text("open('mark', 'w')", encoding="utf-8")
    argv = [sys.executable, "-m", "buildkit_tasks", "--list"]
    done = subprocess.run(argv, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (repository / "mark").exists()


@pytest.mark.parametrize("cache", ["mine", ""])
def test_cache_of_user(repository: Path, cache: str) -> None:
    """A value from a stronger source is used, and an empty one means the default."""
    write(repository, f"cache = '{'evil' if cache else ''}'")
    environ = {"INVOKE_BUILDKIT_CACHE": cache}
    assert load_settings(environ=environ, folder=repository).cache == cache
    assert load_settings(invoke={"cache": cache or None}, environ={}, folder=repository).cache == cache


OUTSIDE = ("..", "../other", "/etc", "~", "~/x", "link", "link/x", "a/../..")


@pytest.mark.parametrize("key", ["context", "file", "buildkitd-config"])
@pytest.mark.parametrize("value", OUTSIDE)
def test_path_outside(repository: Path, key: str, value: str) -> None:
    (repository / "link").symlink_to("/etc")
    write(repository, f"{key} = '{value}'")
    with pytest.raises(
        SettingsError, match=f"{key} = '.*' leads out of the repository {repository}"
    ) as caught:
        load_settings(environ={}, folder=repository)
    variable, _, path = str(caught.value.hint).removeprefix("export ").partition("=")
    assert variable == f"INVOKE_BUILDKIT_{key.upper().replace('-', '_')}"
    assert path.startswith("/") or value.startswith("~")
    settings = load_settings(environ={variable: path}, folder=repository)  # what the hint says
    assert getattr(settings, key.replace("-", "_")) == path


@pytest.mark.parametrize("key", ["context", "file"])
def test_path_of_image_outside(repository: Path, key: str) -> None:
    write(repository, "[[tool.buildkit-tasks.image]]", "name = 'web'", f"{key} = '../x'")
    with pytest.raises(SettingsError, match=f"web: {key} = '../x' leads out of the repository"):
        load_settings(environ={}, folder=repository)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context", "."),
        ("context", "a/../b"),
        ("context", "https://example.org/x.git"),
        ("context", "git@example.org:x"),
        ("file", "-"),
        ("file", "inside"),
    ],
)
def test_path_inside(repository: Path, key: str, value: str) -> None:
    (repository / "inside").symlink_to("other")
    write(repository, f"{key} = '{value}'")
    assert getattr(load_settings(environ={}, folder=repository), key) == value


def test_dockerfile_of_remote_context(repository: Path) -> None:
    write(repository, "context = 'https://example.org/x.git'", "file = '../x'")
    assert load_settings(environ={}, folder=repository).file == "../x"


def test_paths_are_relative_to_their_file(repository: Path) -> None:
    write(repository, "context = 'app'", "file = 'docker/Dockerfile'")
    (repository / "sub").mkdir()
    settings = load_settings(environ={}, folder=repository / "sub")
    assert (settings.context, settings.file) == ("../app", "../docker/Dockerfile")


def test_context_above_file(repository: Path) -> None:
    """Inside the repository, which begins above the folder with the file."""
    write(repository / "project", "context = '..'")
    assert load_settings(environ={}, folder=repository / "project").context == ".."


def test_search_ends_at_repository(repository: Path, tmp_path: Path) -> None:
    outer = write(tmp_path, "timeout = 5")
    assert find_pyproject(repository) is None
    assert find_pyproject(repository / "sub") is None
    assert find_pyproject(tmp_path / "other") == outer
    (repository / ".git").rmdir()
    (repository / ".git").write_text("gitdir: elsewhere\n")  # a worktree, or a submodule
    assert find_pyproject(repository) is None
    own = write(repository, "timeout = 6")
    assert find_pyproject(repository / "a/b") == own


@needs_root
def test_file_of_another_user(tmp_path: Path) -> None:
    """As in /tmp, where anybody can put one for those who work below it."""
    path = write(tmp_path, "timeout = 5")
    os.chown(path, NOBODY, NOBODY)
    (tmp_path / "mine").mkdir()
    assert find_pyproject(tmp_path / "mine") is None
    with pytest.raises(SettingsError, match=f"{path} belongs to another user") as caught:
        find_pyproject(tmp_path)
    assert caught.value.hint == f"sudo chown 0 {path}"
    os.chown(tmp_path, NOBODY, NOBODY)  # root in the repository of a user, as in a container of CI
    assert find_pyproject(tmp_path) == path


@needs_root
def test_file_of_root() -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's directory is closed to other users
        folder = Path(name)
        folder.chmod(0o755)
        path = write(folder, "timeout = 5")
        assert call_as_nobody(lambda: str(find_pyproject(folder))) == str(path)
