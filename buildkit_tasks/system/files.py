"""Atomic writes: a file or directory is written under a temporary name beside its path, then renamed."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import shutil
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "build_atomically",
    "check_writable",
    "completion_time",
    "expand_home",
    "explain_untrusted",
    "explain_unwritable",
    "is_complete",
    "rebuild_atomically",
    "replace_directory",
    "replace_file",
    "temporary_path",
    "write_atomically",
]

_COMPLETE = ".complete"
_NO_HOME = "/nonexistent"  # as in Debian's /etc/passwd
_MAX_NAME_LENGTH = 100  # characters of the destination's name in a temporary one: NAME_MAX is 255 bytes


def write_atomically(path: Path, data: str | bytes, *, mode: int | None = None) -> None:
    """Write a file, its parent directories included; text as UTF-8. Readers see the old or the new content.

    The permissions are those of a new file, or ``mode`` whatever the umask is. Raises :class:`OSError`.
    """
    with replace_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        if mode is not None:
            temporary.chmod(mode)


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; rename it to ``path`` afterwards, or remove it on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_partials(path)
    temporary = temporary_path(path)
    try:
        yield temporary
        with temporary.open("rb") as file:  # on disk before the rename, so that a crash leaves no empty file
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Return the name under which this thread writes a file: in the same directory, to be renamed."""
    return path.with_name(f"{_partial_prefix(path)}{threading.get_native_id()}.partial")


def _remove_stale_partials(path: Path) -> None:
    """Remove the temporary files of a path that threads which no longer exist have left."""
    for leftover in path.parent.glob(f"{glob.escape(_partial_prefix(path))}*.partial"):
        thread_id = leftover.name.removesuffix(".partial").rpartition(".")[2]
        if thread_id.isdigit() and not Path(f"/proc/{thread_id}").exists():
            leftover.unlink(missing_ok=True)


def _partial_prefix(path: Path) -> str:
    return f".{path.name[:_MAX_NAME_LENGTH]}."


def build_atomically(destination: Path, fill: Callable[[Path], None], *, dry_run: bool = False) -> Path:
    """Make a directory by calling ``fill`` with a temporary one, once among all processes; return it.

    What an interrupted process has left is removed first, under the same lock.
    """
    if dry_run:
        fill(destination)
        return destination
    with file_lock(destination.with_name(f".{destination.name}.lock")):
        if is_complete(destination):
            return destination
        escaped_name = glob.escape(destination.name)
        for leftover in (*destination.parent.glob(f".{escaped_name}.*.staging"), destination):
            shutil.rmtree(leftover, ignore_errors=True)
        with replace_directory(destination) as staging:
            fill(staging)
            (staging / _COMPLETE).touch()
    return destination


def rebuild_atomically(destination: Path, fill: Callable[[Path], None], *, dry_run: bool = False) -> None:
    """Replace a directory of :func:`build_atomically`; it stays as it is if ``fill`` fails.

    It is missing for a moment. Whoever would build it then waits for the same lock, and finds it.
    """
    import tempfile

    if dry_run:
        fill(destination)
        return
    name, folder = destination.name, destination.parent
    with (
        file_lock(destination.with_name(f".{name}.lock")),
        tempfile.TemporaryDirectory(
            prefix=f".{name}.", suffix=".staging", dir=folder, ignore_cleanup_errors=True
        ) as staging,
    ):
        new, old = Path(staging, "new"), Path(staging, "old")
        new.mkdir(mode=0o700)
        fill(new)
        (new / _COMPLETE).touch()
        destination.rename(old)
        new.rename(destination)


def completion_time(directory: Path) -> float | None:
    """Return when :func:`build_atomically` has made this directory, in seconds of the epoch."""
    try:
        return (directory / _COMPLETE).stat().st_mtime
    except OSError:
        return None


def is_complete(directory: Path) -> bool:
    """Return True if :func:`build_atomically` has made this directory."""
    return (directory / _COMPLETE).exists()


@contextlib.contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """Yield a new directory (mode 0700); rename it to ``path`` afterwards, or remove it on an error.

    ``path`` may be an empty directory. The temporary name is random: a child of a process that was
    killed, such as apt, may still write to the previous one.
    """
    import tempfile

    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".staging", dir=path.parent))
    try:
        yield staging
        staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def check_writable(path: Path, option: str) -> None:
    """Raise :class:`UsageError` if no file can be created at a path; ``option`` is what sets it.

    The hint is that option with a path in a new temporary directory: ``--report="$(mktemp -d)"/x.json``.
    """
    if reason := explain_unwritable(path.parent):
        hint = f'{option}"$(mktemp -d)"/{shlex.quote(path.name)}'
        raise UsageError(f"{path} cannot be written: {reason}", hint=hint)


def expand_home(path: str | Path) -> Path:
    """Return the path with the home directory for ``~``: that of ``HOME``, else of the user database.

    A user without one gets a directory that does not exist. (:meth:`Path.home` raises an error for a user
    id that is not in the database, as containers are run with.)
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(_NO_HOME, *Path(path).parts[1:])


def explain_untrusted(folder: Path) -> str:
    """Return why somebody else may have written to a directory, or an empty string; it need not exist.

    It has to belong to this user or to root, and nobody else may write to it, as ssh asks of ``~/.ssh`` and
    git of a repository. Root trusts the user of ``sudo``, who can become root.
    """
    owners = {os.geteuid(), 0}
    if os.geteuid() == 0 and (sudo_uid := os.environ.get("SUDO_UID", "")).isdigit():
        owners.add(int(sudo_uid))
    with contextlib.suppress(OSError):
        status = folder.stat()
        if status.st_uid not in owners:
            return f"it belongs to {_user_name(status.st_uid)}"
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "other users can write to it"
    return ""


def _user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def explain_unwritable(folder: Path) -> str:
    """Return why no file can be created in a directory, which need not exist, or an empty string."""
    for ancestor in (folder, *folder.parents):
        try:
            mode = ancestor.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            return error.strerror or str(error)
        if not stat.S_ISDIR(mode):
            return f"{ancestor} is not a directory"
        if os.access(ancestor, os.W_OK | os.X_OK):
            return ""
        is_read_only = os.statvfs(ancestor).f_flag & os.ST_RDONLY
        return f"{'read-only file system' if is_read_only else 'permission denied'} in {ancestor}"
    return ""
