"""Resolve the USER of an image's configuration (OCI image specification, config.md) to ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import CheckFailed
from buildkit_tasks.run.sandbox.rootfs_files import RootfsFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["User", "resolve_user"]

_MAX_FILE_BYTES = 1 << 20
_ID_PATTERN = re.compile(r"0*[0-9]{1,5}", re.ASCII)
_MAX_ID = 0xFFFF  # a guest's user namespace has 65,536 ids


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """The ids of a guest's user, its supplementary groups, and its home directory."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve_user(user_spec: str, root: Path) -> User:
    """Look up ``USER[:GROUP]``, names or numbers, in the image's /etc/passwd and /etc/group.

    As in Docker, a number need not be in them, and USER without GROUP has the supplementary groups of
    /etc/group. Raises :class:`CheckFailed` for an unknown name.
    """
    name, separator, group = (user_spec or "0").partition(":")
    files = RootfsFiles(root)
    accounts = list(_parse_rows(files.read_text("/etc/passwd", _MAX_FILE_BYTES), 7))
    groups = list(_parse_rows(files.read_text("/etc/group", _MAX_FILE_BYTES), 4))
    account = next((row for row in accounts if name in (row[0], row[2])), None)
    uid = _parse_id(account[2] if account else name)
    gid = _parse_id(account[3]) if account else 0
    if uid is None or gid is None:
        raise CheckFailed(f"USER {user_spec!r}: the image's /etc/passwd has no user {name!r}")
    if separator:
        group_row = next((row for row in groups if group in (row[0], row[2])), None)
        group_id = _parse_id(group_row[2] if group_row else group)
        if group_id is None:
            raise CheckFailed(f"USER {user_spec!r}: the image's /etc/group has no group {group!r}")
        return User(uid=uid, gid=group_id, home=_get_home(account))
    ids = (_parse_id(row[2]) for row in groups if account and account[0] in row[3].split(","))
    supplementary = tuple(each for each in ids if each is not None)
    return User(uid=uid, gid=gid, groups=supplementary, home=_get_home(account))


def _get_home(account: list[str] | None) -> str:
    return (account[5] if account else "") or "/"


def _parse_rows(text: str, field_count: int) -> Iterator[list[str]]:
    """Yield the well-formed lines of a file such as passwd(5)."""
    for line in text.splitlines():
        row = line.strip().split(":")
        if len(row) == field_count and row[0]:
            yield row


def _parse_id(text: str) -> int | None:
    """Return an id that a guest can have; None for any other text."""
    return int(text) if _ID_PATTERN.fullmatch(text) and int(text) <= _MAX_ID else None
