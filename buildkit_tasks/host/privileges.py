"""What this user may do on this host, and the shell commands that do the rest as root."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.hints import find_typed_command

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

__all__ = ["command_as_root", "list_missing_capabilities", "rerun_as_root", "user_name"]

# linux/capability.h: what dockerd needs for its bridge and for mounts.
_ENGINE_CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN"}
_STATUS_FILE = Path("/proc/self/status")
_SYSTEM_FOLDERS = "/usr/sbin:/sbin"  # in root's PATH; sudo sets that, su does not


def command_as_root(command: str) -> str:
    """Return the command that runs ``command`` as root: with sudo, or with su if there is no sudo."""
    if shutil.which("sudo"):
        return f"sudo {command}"
    program, separator, arguments = command.partition(" ")
    if not shutil.which(program):
        program = shutil.which(program, path=_SYSTEM_FOLDERS) or program
    return f"su -c {shlex.quote(program + separator + arguments)}"


def rerun_as_root(*env: str) -> str:
    """Return the command that runs this process's own command line as root, with these ``NAME=VALUE`` set.

    A typed option would override its variable ``INVOKE_BUILDKIT_OPTION``, and is left out.
    Its program is named by its path: root's PATH does not contain the user's virtual environments.
    """
    program, *arguments = find_typed_command()
    path = os.path.abspath(shutil.which(program) or program)  # noqa: PTH100 - a link stays: it selects a venv
    prefix = ["env", *env] if env else []
    names = [variable.partition("=")[0] for variable in env]
    options = [f"--{name.removeprefix('INVOKE_BUILDKIT_').lower().replace('_', '-')}" for name in names]
    return command_as_root(shlex.join([*prefix, path, *arguments, *_drop_options(sys.argv[1:], options)]))


def _drop_options(arguments: Iterable[str], options: Collection[str]) -> Iterator[str]:
    """Yield the arguments without ``OPTION VALUE`` and ``OPTION=VALUE``."""
    remaining = iter(arguments)
    for argument in remaining:
        if argument in options:
            next(remaining, None)
        elif argument.partition("=")[0] not in options:
            yield argument


def user_name() -> str:
    """Return the name of this user; the number of one that is not in the user database."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def list_missing_capabilities(status_file: Path = _STATUS_FILE) -> list[str]:
    """Return the capabilities that starting a Docker engine needs and this process lacks (capabilities(7)).

    Root in an unprivileged container lacks them. None are missing where the kernel does not tell.
    """
    try:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status_file.read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        return []
    effective = int(match[1], 16) if match else -1
    return [name for bit, name in _ENGINE_CAPABILITIES.items() if not effective >> bit & 1]
