"""Commands in hints: ``inv TASK`` and ``docker ...`` in the code, and what the user must type in the output.

A hint that names a task must work when it is pasted. The tasks are started by ``inv``, by
``buildkit-tasks``, by ``python -m``, or by a project's own program, and a project's ``tasks.py`` can have
them in a sub-collection, under other names, or only some of them. ``docker`` may be a downloaded client, and
the engine that this process uses another one than the user's ``docker`` connects to.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DockerClient",
    "TypedProgram",
    "find_typed_command",
    "format_hint",
    "set_docker_client",
    "set_typed_program",
    "translate_commands",
]

_TASK_COMMAND = re.compile(r"\b(?P<sudo>sudo )?inv (?P<task>(?:--)?[a-z]+(?:-[a-z]+)*)(?![.\w-])")
# Commands that a hint can have; those of the first kind need no engine.
_DOCKER_COMMAND = re.compile(
    r"(?<![\w./-])docker (?:(?=(?P<local>login|context)\b)|(?=(?:pull|ps)\b)|(?P<buildx>buildx )(?=[a-z]))"
)
_SUDO = re.compile(r"\bsudo (?=[a-z])")  # which a container without other users does not have
_PACKAGE = __package__
_PACKAGE_SCRIPT = "buildkit-tasks"
# Where sudo looks for programs by default (sudoers, secure_path): not in a virtual environment.
_SUDO_FOLDERS = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedProgram:
    """The program that the user typed: the start of its command line, and its own name of each task."""

    argv: tuple[str, ...]
    task_names: Mapping[str, str] = field(default_factory=dict)

    def command(self, task: str, *, sudo: bool = False) -> str:
        """Return how the user types a task, or an option such as ``--list``.

        A task that this program lacks is in the package's own program.
        """
        name = task if task.startswith("--") else self.task_names.get(task)
        argv = [*self.argv, name] if name else [*_package_argv(), task]
        return f"sudo {shlex.join(_argv_for_sudo(argv))}" if sudo else shlex.join(argv)


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerClient:
    """The client programs of the engine in use, and the environment that selects that engine."""

    docker: tuple[str, ...]
    buildx: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, *, with_engine: bool = True, buildx: bool = False) -> str:
        """Return how the user types ``docker``, or ``docker buildx``, for this engine."""
        program, *arguments = self.buildx if buildx else self.docker
        names = ("DOCKER_HOST", "BUILDX_CONFIG") if buildx else ("DOCKER_HOST",)
        env = [f"{name}={shlex.quote(self.env[name])}" for name in names if with_engine and name in self.env]
        return " ".join([*env, shlex.join([_shorten_path(program), *arguments])])


_docker_clients: list[DockerClient] = []  # those of the last engine that answered
_typed_programs: list[TypedProgram] = []  # the last one that Invoke parsed a command line of


def set_typed_program(program: TypedProgram) -> None:
    """Let hints name this program from now on."""
    _typed_programs[:] = [program]


def set_docker_client(client: DockerClient) -> None:
    """Let hints name these client programs from now on."""
    _docker_clients[:] = [client]


def format_hint(hint: str | None) -> str:
    """Return the lines of a message that say what to type next; none without a hint."""
    return f"\n  try: {translate_commands(hint)}" if hint else ""


def translate_commands(text: str) -> str:
    """Return text of this package in which each ``inv TASK`` and ``docker`` is what the user types.

    Outside of Invoke, in pytest or Nox, that is the package's own program.
    """
    text = _SUDO.sub("", text) if os.geteuid() == 0 else text
    program = _typed_programs[0] if _typed_programs else TypedProgram(argv=_package_argv())
    text = _TASK_COMMAND.sub(lambda match: program.command(match["task"], sudo=bool(match["sudo"])), text)
    return _DOCKER_COMMAND.sub(_name_docker, text)


def _name_docker(match: re.Match[str]) -> str:
    if not _docker_clients:
        return match[0]
    command = _docker_clients[0].command(with_engine=not match["local"], buildx=bool(match["buildx"]))
    return f"{command} "


def find_typed_command() -> tuple[str, ...]:
    """Return the start of the command line that this process was started with.

    The path of a program is left out if the shell finds it without. ``python -m MODULE`` stays as it is.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return (_shorten_path(sys.argv[0]),)
    return (_shorten_path(sys.executable), "-m", spec.name.removesuffix(".__main__"))


def _package_argv() -> tuple[str, ...]:
    if shutil.which(_PACKAGE_SCRIPT):
        return (_PACKAGE_SCRIPT,)
    return (_shorten_path(sys.executable), "-m", _PACKAGE)


def _shorten_path(path: str) -> str:
    """Return the name of a program that is found in PATH, else its path as it was typed."""
    name = Path(path).name
    found = shutil.which(name)
    return name if found and os.path.realpath(found) == os.path.realpath(path) else path


def _argv_for_sudo(argv: list[str]) -> list[str]:
    """Name the program by its path if sudo does not look for it where it is."""
    path = shutil.which(argv[0])
    is_found = path is None or str(Path(path).parent) in _SUDO_FOLDERS
    return argv if is_found else [str(Path(path or argv[0]).absolute()), *argv[1:]]
