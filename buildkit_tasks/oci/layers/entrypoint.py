"""Find the programs that an image starts, as far as its configuration says.

The first argument of ENTRYPOINT + CMD has to exist. Programs that it runs in turn are followed where
they are evident: the command of a shell form or of a small init, CMD after ENTRYPOINT, and the
interpreter of a ``#!`` script (the kernel's fs/binfmt_script.c).
"""

from __future__ import annotations

import posixpath
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH, ResolvedPath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import ImageConfig

__all__ = ["FileLookup", "Program", "find_command", "find_programs"]

_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
_INITS = frozenset({"tini", "tini-static", "docker-init", "dumb-init", "catatonit"})
_SHELL_COMMAND = re.compile(r"-[a-z]*c")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_MAX_INTERPRETER_DEPTH = 5  # scripts run by scripts: the kernel's own limit (fs/exec.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to run, or the ``problem`` of finding it; ``command`` is as the config or script has it."""

    command: str
    resolved: ResolvedPath | None = None
    problem: str = ""


class FileLookup(Protocol):
    """A root file system in which files can be looked up by path."""

    def find_file(self, path: str) -> ResolvedPath | None:
        """Return the regular file at an absolute path, links resolved inside the root; None without one."""


def find_command(
    rootfs: FileLookup, name: str, path_env: str = DEFAULT_PATH, working_dir: str = "/"
) -> ResolvedPath | None:
    """Return the file that starting ``name`` in the image would run; None if there is none.

    A name with a slash is a path, relative to ``working_dir``. Any other is searched in the absolute
    directories of ``path_env`` as runc does (Go's ``exec.LookPath``), for a file with an execute bit.
    """
    if "/" in name:
        return rootfs.find_file(posixpath.join("/", working_dir, name))
    directories = (each for each in path_env.split(":") if each.startswith("/"))
    files = (rootfs.find_file(f"{directory}/{name}") for directory in directories)
    return next((file for file in files if file is not None and file.node.mode & 0o111), None)


def find_programs(config: ImageConfig, rootfs: FileLookup) -> tuple[Program, ...]:
    """Return every program that the image starts, each once; none if the config has no command."""
    search = _ProgramSearch(config, rootfs)
    argv = config.entrypoint + config.cmd
    if not argv:
        return ()
    programs = list(search.follow_interpreters(argv[0]))
    for command in _nested_commands(config):
        if search.find_command(command) is not None:
            programs += search.follow_interpreters(command)
    unique = {(each.resolved and each.resolved.path, each.problem): each for each in reversed(programs)}
    return tuple(unique.values())[::-1]


@dataclass(frozen=True, slots=True)
class _ProgramSearch:
    config: ImageConfig
    rootfs: FileLookup

    @property
    def search_path(self) -> str:
        paths = [item.removeprefix("PATH=") for item in self.config.env if item.startswith("PATH=")]
        return paths[-1] if paths else DEFAULT_PATH

    def find_command(self, command: str) -> ResolvedPath | None:
        return find_command(self.rootfs, command, self.search_path, self.config.working_dir or "/")

    def follow_interpreters(self, command: str, depth: int = 0) -> Iterator[Program]:
        """Yield the program and, if it is a script, its interpreters."""
        resolved = self.find_command(command)
        if resolved is None:
            path_note = "" if "/" in command else f" (PATH is {self.search_path})"
            yield Program(command=command, problem=f"{command!r} is not in the image{path_note}")
            return
        yield Program(command=command, resolved=resolved)
        if resolved.node.head.startswith(b"#!"):
            yield from self._script_interpreters(resolved, depth)

    def _script_interpreters(self, script: ResolvedPath, depth: int) -> Iterator[Program]:
        interpreter_commands = _parse_shebang(script.node.head)
        if not interpreter_commands or depth >= _MAX_INTERPRETER_DEPTH:
            reason = (
                f"is nested more than {_MAX_INTERPRETER_DEPTH} interpreters deep"
                if interpreter_commands
                else "names no interpreter"
            )
            yield Program(command=script.path, problem=f"the script {script.path} {reason}")
            return
        for command in interpreter_commands:
            for program in self.follow_interpreters(command, depth + 1):
                problem = program.problem and f"the interpreter of {script.path}: {program.problem}"
                yield Program(command=program.command, resolved=program.resolved, problem=problem)


def _parse_shebang(head: bytes) -> list[str]:
    """Return the interpreter of a ``#!`` line, followed by the command to run if it is ``env``."""
    line = head[2:].partition(b"\n")[0].strip(b" \t\0").decode("utf-8", "backslashreplace")
    argv = re.split(r"[ \t]+", line) if line else []
    if argv and _basename(argv[0]) == "env":
        return argv[:1] + _first_command(argv[1:])
    return argv[:1]


def _nested_commands(config: ImageConfig) -> Iterator[str]:
    argv = config.entrypoint + config.cmd
    if config.entrypoint:
        yield from config.cmd[:1]
    if _basename(argv[0]) in _SHELLS:
        yield from _parse_shell_command(argv[1:])
    if _basename(argv[0]) in _INITS:
        arguments = argv[argv.index("--") + 1 :] if "--" in argv else argv[1:]
        yield from _first_command(arguments)


def _parse_shell_command(arguments: tuple[str, ...]) -> list[str]:
    """Return the first command of the text after ``-c``; none if shlex cannot parse it."""
    flag_positions = [
        position for position, argument in enumerate(arguments[:-1]) if _SHELL_COMMAND.fullmatch(argument)
    ]
    if not flag_positions:
        return []
    lexer = shlex.shlex(arguments[flag_positions[0] + 1], posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return _first_command(list(lexer))
    except ValueError:
        return []


def _first_command(arguments: tuple[str, ...] | list[str]) -> list[str]:
    """Return the first argument that is not an option, an assignment or ``exec``."""
    candidates = (argument for argument in arguments if not argument.startswith("-") and argument != "exec")
    return [argument for argument in candidates if not _ASSIGNMENT.fullmatch(argument)][:1]


def _basename(command: str) -> str:
    return command.rpartition("/")[2]
