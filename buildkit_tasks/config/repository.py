"""What pyproject.toml, which belongs to a repository, may decide on the machine of whoever has cloned it.

Verifying and running an image or diagnosing the host in a repository must not run its programs on the host,
and no task may read or write outside it because it says so: docs/trust.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["USER_KEYS", "confine_paths", "find_pyproject", "refuse_user_keys"]

USER_KEYS = {"cache": "the programs in that folder are run on this machine"}
"""Keys that a repository may not set, and why."""
_PATH_KEYS = ("context", "file", "buildkitd_config")
_REMOTE = re.compile(r"(?:https?|git|ssh)://|git@")  # contexts that buildx does not read on this machine
_STANDARD_INPUT = "-"
_MARK = ".git"  # a folder, or a file in a worktree or a submodule


def find_pyproject(folder: Path) -> Path | None:
    """Return the pyproject.toml of the folder or its nearest parent in the same repository that has one.

    Without a repository all parents are searched. A parent's file that belongs to another user is not used:
    somebody may have put one into ``/tmp``. Raises :class:`SettingsError` for one in ``folder`` itself.
    """
    for parent in (folder, *folder.parents):
        path = parent / "pyproject.toml"
        with contextlib.suppress(PermissionError):  # of a parent that this user cannot look into
            if path.is_file():
                if _is_trusted(path, folder):
                    return path
                if parent == folder:
                    raise SettingsError(
                        f"{path} belongs to another user: its settings are not used",
                        hint=f"sudo chown {os.geteuid()} {shlex.quote(str(path))}",
                    )
            if (parent / _MARK).exists():
                return None
    return None


def _is_trusted(path: Path, folder: Path) -> bool:
    """Return True if a file, and a link to it, belong to this user, root, or the owner of the folder."""
    owners = {folder.stat().st_uid} if folder.exists() else set()
    return {path.stat().st_uid, path.lstat().st_uid} <= owners | {os.geteuid(), 0}


def refuse_user_keys(values: Mapping[str, Any], keys: Collection[str], label: str) -> None:
    """Raise :class:`SettingsError` if ``keys``, those of a repository, have one of :data:`USER_KEYS`."""
    for key in USER_KEYS.keys() & keys:
        if values[key]:
            message = f"{label}: a repository may not set {key}: {USER_KEYS[key]}"
            raise SettingsError(message, hint=_export(key, values[key]))


def confine_paths(values: Mapping[str, Any], pyproject: Path, folder: Path, label: str) -> dict[str, Any]:
    """Return values of a repository with paths relative to ``folder`` instead of pyproject.toml's.

    Raises :class:`SettingsError` for a path that leads out of the repository, also through symbolic links.
    """
    if _REMOTE.match(values.get("context", "")):
        return dict(values)  # a Dockerfile is relative to a context that BuildKit fetches
    paths = {key: values[key] for key in _PATH_KEYS if values.get(key, "") not in ("", _STANDARD_INPUT)}
    for key, path in paths.items():
        _check_path(key, path, pyproject, label)
    if pyproject.parent != folder:
        paths = {key: os.path.relpath(pyproject.parent / path, folder) for key, path in paths.items()}
    return {**values, **paths}


def _check_path(key: str, value: str, pyproject: Path, label: str) -> None:
    path = pyproject.parent / value
    repository = _find_repository(pyproject.parent)
    if value.startswith("~") or not path.resolve().is_relative_to(repository.resolve()):
        raise SettingsError(
            f"{label}: {key.replace('_', '-')} = {value!r} leads out of the repository {repository}",
            hint=_export(key, value if value.startswith("~") else str(path.resolve())),
        )


def _find_repository(folder: Path) -> Path:
    """Return the root of the repository with this folder; the folder itself if there is none."""
    roots = (parent for parent in (folder, *folder.parents) if (parent / _MARK).exists())
    return next(roots, folder)


def _export(key: str, value: str) -> str:
    return f"export INVOKE_BUILDKIT_{key.upper()}={shlex.quote(value)}"
