"""Which files an image runs when it is started, as far as its configuration tells.

The first word of ENTRYPOINT and CMD must be there. What it is given to run is looked at as well
where that is plain: the command of a shell form, of a small init, CMD after ENTRYPOINT, and the
interpreter of a ``#!`` script (the kernel's fs/binfmt_script.c).
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH, ResolvedPath

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import ImageConfig

__all__ = ["CommandFinder", "Program", "find_programs"]

_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
_INITS = frozenset({"tini", "tini-static", "docker-init", "dumb-init", "catatonit"})
_SHELL_COMMAND = re.compile(r"-[a-z]*c")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_MAX_INTERPRETER_DEPTH = 5  # a script of a script: the kernel's own bound (fs/exec.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A file that is run, or in ``problem`` why there is none; ``command`` as it is written."""

    command: str
    resolved: ResolvedPath | None = None
    problem: str = ""


class CommandFinder(Protocol):
    """A root file system in which a command can be looked up."""

    def find_command(self, name: str, path_env: str, working_dir: str) -> ResolvedPath | None:
        """The file that starting ``name`` would run."""


def find_programs(config: ImageConfig, rootfs: CommandFinder) -> tuple[Program, ...]:
    """Every program that the image starts, each once; none if it states no command."""
    search = _ProgramSearch(config, rootfs)
    argv = config.entrypoint + config.cmd
    if not argv:
        return ()
    programs = list(search.follow_interpreters(argv[0]))
    for command in _nested_commands(config):
        if search.find_command(command) is not None:
            programs += search.follow_interpreters(command)
    return tuple(
        {
            (program.resolved and program.resolved.path, program.problem): program
            for program in reversed(programs)
        }.values()
    )[::-1]


@dataclass(frozen=True, slots=True)
class _ProgramSearch:
    config: ImageConfig
    rootfs: CommandFinder

    @property
    def search_path(self) -> str:
        paths = [item.removeprefix("PATH=") for item in self.config.env if item.startswith("PATH=")]
        return paths[-1] if paths else DEFAULT_PATH

    def find_command(self, command: str) -> ResolvedPath | None:
        return self.rootfs.find_command(command, self.search_path, self.config.working_dir or "/")

    def follow_interpreters(self, command: str, depth: int = 0) -> Iterator[Program]:
        """The program and, where it is a script, those that run it."""
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
                "names no interpreter"
                if not interpreter_commands
                else "is one of scripts that run each other"
            )
            yield Program(command=script.path, problem=f"the script {script.path} {reason}")
            return
        for command in interpreter_commands:
            for program in self.follow_interpreters(command, depth + 1):
                problem = program.problem and f"the script {script.path} is run by {program.problem}"
                yield Program(command=program.command, resolved=program.resolved, problem=problem)


def _parse_shebang(head: bytes) -> list[str]:
    """The interpreter of a ``#!`` line, and the command after it where that is ``env``."""
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
    """The first word of the command after ``-c``; none if it takes a shell to tell."""
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
    """The first word that is no option, no assignment and no ``exec``."""
    candidates = (argument for argument in arguments if not argument.startswith("-") and argument != "exec")
    return [argument for argument in candidates if not _ASSIGNMENT.fullmatch(argument)][:1]


def _basename(command: str) -> str:
    return command.rpartition("/")[2]
