"""Run a program that can write below one folder only: landlock(7). This file is run by itself.

``python landlock.py FOLDER PROGRAM [ARGUMENT...]`` restricts itself and executes the program, which reads
what its user can read, and writes to FOLDER and /dev/null. A kernel without Landlock (it came with 5.13,
and may be disabled) restricts nothing.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes as long as everything above
    from pathlib import Path

__all__ = ["restricted_argv"]

# The same numbers on every architecture.
_SYS_CREATE_RULESET, _SYS_ADD_RULE, _SYS_RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION, _RULE_PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38
# linux/landlock.h: write, remove and make files of all kinds; in newer versions move and truncate them
_WRITE_FILE, _CHANGE_DIRECTORIES, _REFER, _TRUNCATE = 1 << 1, 0x1FF0, 1 << 13, 1 << 14
_REFER_VERSION, _TRUNCATE_VERSION = 2, 3


def restricted_argv(folder: Path, argv: list[str]) -> list[str]:
    """Return the command that runs ``argv`` so that it can write below ``folder`` only, on Linux."""
    return [sys.executable, "-I", __file__, str(folder), *argv] if sys.platform == "linux" else argv


def main(folder: str, *argv: str) -> None:
    """Restrict this process and execute the program."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_SYS_CREATE_RULESET, None, ctypes.c_size_t(0), _CREATE_RULESET_VERSION)
    if version > 0:
        _restrict(libc, folder, version)
    os.execvp(argv[0], argv)  # noqa: S606 - the caller's program


def _restrict(libc: ctypes.CDLL, folder: str, version: int) -> None:
    file_rights = _WRITE_FILE | (_TRUNCATE if version >= _TRUNCATE_VERSION else 0)
    all_rights = file_rights | _CHANGE_DIRECTORIES | (_REFER if version >= _REFER_VERSION else 0)
    ruleset = struct.pack("Q", all_rights)
    ruleset_fd = libc.syscall(_SYS_CREATE_RULESET, ruleset, ctypes.c_size_t(len(ruleset)), 0)
    for path, rights in ((folder, all_rights), (os.devnull, file_rights)):
        rule = struct.pack("=Qi", rights, os.open(path, getattr(os, "O_PATH", 0)))
        _check(libc.syscall(_SYS_ADD_RULE, ruleset_fd, _RULE_PATH_BENEATH, rule, 0))
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.syscall(_SYS_RESTRICT_SELF, ruleset_fd, 0))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    main(*sys.argv[1:])
