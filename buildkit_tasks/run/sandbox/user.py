"""Who a guest is: the USER of an image's configuration (OCI image specification, config.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import CheckFailed
from buildkit_tasks.run.sandbox.rootfs_files import RootFiles

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["User", "user_of"]

_MAX_FILE = 1 << 20
_ID = re.compile(r"0*[0-9]{1,5}", re.ASCII)
_MAX_ID = 0xFFFF  # as many as a guest's namespace has


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Ids of a guest's user, the groups besides its own, and its home folder."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def user_of(stated: str, root: Path) -> User:
    """Look up ``USER[:GROUP]``, names or numbers, in the image's passwd and group files.

    As with docker, a number need not be in them. Raises :class:`CheckFailed` for a name that is not.
    """
    name, colon, group = (stated or "0").partition(":")
    files = RootFiles(root)
    accounts = list(_lines(files.text("/etc/passwd", _MAX_FILE), 7))
    groups = list(_lines(files.text("/etc/group", _MAX_FILE), 4))
    account = next((row for row in accounts if name in (row[0], row[2])), None)
    uid = _number(account[2] if account else name)
    gid = _number(account[3]) if account else 0
    if uid is None or gid is None:
        raise CheckFailed(f"USER {stated!r}: the image's /etc/passwd has no user {name!r}")
    if colon:
        found = next((row for row in groups if group in (row[0], row[2])), None)
        named = _number(found[2] if found else group)
        if named is None:
            raise CheckFailed(f"USER {stated!r}: the image's /etc/group has no group {group!r}")
        return User(uid=uid, gid=named, home=_home(account))
    ids = (_number(row[2]) for row in groups if account and account[0] in row[3].split(","))
    others = tuple(each for each in ids if each is not None)
    return User(uid=uid, gid=gid, groups=others, home=_home(account))


def _home(account: list[str] | None) -> str:
    return (account[5] if account else "") or "/"


def _lines(text: str, fields: int) -> Iterator[list[str]]:
    """The well-formed lines of a file such as passwd(5)."""
    for line in text.splitlines():
        row = line.strip().split(":")
        if len(row) == fields and row[0]:
            yield row


def _number(text: str) -> int | None:
    """An id that a guest can have; None for anything else."""
    return int(text) if _ID.fullmatch(text) and int(text) <= _MAX_ID else None
