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
from buildkit_tasks.platforms.elf.reader import ELF_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import ImageConfig

__all__ = ["FileLookup", "Program", "find_command", "find_programs", "quoted_basename"]

_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
_INITS = frozenset({"tini", "tini-static", "docker-init", "dumb-init", "catatonit"})
_SHELL_COMMAND = re.compile(r"-[a-z]*c")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_SCRIPT_MAGIC = b"#!"
_MAX_INTERPRETER_DEPTH = 5  # scripts run by scripts: the kernel's own limit (fs/exec.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program to run, or the ``problem`` of finding it; ``command`` is as the config or script has it.

    ``hint`` says what helps with the problem.
    """

    command: str
    resolved: ResolvedPath | None = None
    problem: str = ""
    hint: str = ""


class FileLookup(Protocol):
    """A root file system in which files can be looked up by path."""

    def find_file(self, path: str) -> ResolvedPath | None:
        """Return the regular file at an absolute path, links resolved inside the root; None without one."""

    def is_directory(self, path: str) -> bool:
        """Return True if there is a directory at an absolute path, links resolved inside the root."""


def find_command(
    rootfs: FileLookup, name: str, path_env: str = DEFAULT_PATH, working_dir: str = "/"
) -> ResolvedPath | None:
    """Return the file that starting ``name`` in the image would run; None if there is none.

    A name with a slash is a path, relative to ``working_dir``. Any other is searched in the absolute
    directories of ``path_env`` as runc does (Go's ``exec.LookPath``), for a file with an execute bit.
    """
    if "/" in name:
        return rootfs.find_file(posixpath.join("/", working_dir, name))
    return next((file for file in _search_path(rootfs, name, path_env) if file.is_executable), None)


def _search_path(rootfs: FileLookup, name: str, path_env: str) -> Iterator[ResolvedPath]:
    """Yield the files of that name in the directories of PATH, executable or not."""
    files = map(rootfs.find_file, _list_candidates(name, path_env))
    return (file for file in files if file is not None)


def _list_candidates(name: str, path_env: str) -> list[str]:
    return [f"{directory}/{name}" for directory in path_env.split(":") if directory.startswith("/")]


def find_programs(config: ImageConfig, rootfs: FileLookup) -> tuple[Program, ...]:
    """Return every program that the image starts, each once; none if the config has no command."""
    search = _ProgramSearch(config, rootfs)
    argv = config.entrypoint + config.cmd
    if not argv:
        return ()
    programs = list(search.follow_interpreters(argv[0]))
    if config.entrypoint:
        programs += search.follow_argument(*config.cmd[:1])
    for command in _nested_commands(argv):
        if search.find_started(command) is not None:
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

    def find_directory(self, command: str) -> str:
        """Return the path of the directory that a command names instead of a program; empty without one."""
        candidates = _list_candidates(command, self.search_path) if command else []
        if "/" in command:
            candidates = [posixpath.join("/", self.config.working_dir, command)]
        return next(filter(self.rootfs.is_directory, candidates), "")

    def find_started(self, command: str) -> ResolvedPath | None:
        """Return the file of a command that a shell or an init starts; None if the kernel need not start it.

        They run an executable file that is neither ELF nor a ``#!`` script as a shell script (POSIX, Shell
        Command Language, 2.9.1).
        """
        resolved = self.find_command(command)
        if resolved is None or (resolved.is_executable and not _is_program(resolved)):
            return None
        return resolved

    def follow_interpreters(self, command: str, depth: int = 0) -> Iterator[Program]:
        """Yield the program and, if it is a script, its interpreters."""
        resolved = self.find_command(command)
        if resolved is None and "/" not in command:  # a file without an execute bit explains more than none
            resolved = next(_search_path(self.rootfs, command, self.search_path), None)
        if resolved is None and (directory := self.find_directory(command)):
            yield Program(
                command=command,
                problem=f"{directory!r} is a directory, not a program",
                hint="name a program in it by ENTRYPOINT or CMD, or correct the COPY that makes it",
            )
            return
        if resolved is None:
            path_note = "" if "/" in command else f" (PATH is {self.search_path})"
            yield Program(
                command=command,
                problem=f"{command!r} is not in the image{path_note}",
                hint=f"add {command} to the image, or correct ENTRYPOINT and CMD in the Dockerfile",
            )
            return
        yield Program(command=command, resolved=resolved)
        if resolved.node.head.startswith(_SCRIPT_MAGIC):
            yield from self._script_interpreters(resolved, depth)

    def follow_argument(self, argument: str = "") -> Iterator[Program]:
        """Yield the programs of the argument of an entry point, which may run it or only read it.

        Only what is found and can be started counts: ``python3 /app/main.py`` needs no execute bit.
        """
        resolved = self.find_command(argument)
        if resolved is not None and resolved.is_executable and _is_program(resolved):
            yield from (each for each in self.follow_interpreters(argument) if each.resolved is not None)

    def _script_interpreters(self, script: ResolvedPath, depth: int) -> Iterator[Program]:
        interpreter_commands = _parse_shebang(script.node.head)
        if not interpreter_commands:
            yield Program(
                command=script.path,
                problem=f"the script {script.path} names no interpreter",
                hint=f"sed -i '1s,.*,#!/bin/sh,' {quoted_basename(script.path)}",
            )
        elif depth >= _MAX_INTERPRETER_DEPTH:
            reason = f"is nested more than {_MAX_INTERPRETER_DEPTH} interpreters deep"
            yield Program(command=script.path, problem=f"the script {script.path} {reason}")
        elif self._has_windows_line_ending(script):
            yield Program(
                command=script.path,
                problem=f"{script.path} cannot start: its first line has a Windows line ending",
                hint=f"dos2unix {quoted_basename(script.path)}",
            )
        else:
            for command in interpreter_commands:
                yield from self._follow_interpreter(script, command, depth + 1)

    def _follow_interpreter(self, script: ResolvedPath, command: str, depth: int) -> Iterator[Program]:
        for program in self.follow_interpreters(command, depth):
            hint = program.hint
            if program.command == command and program.resolved is None:
                correction = f"change the first line of {script.path}"
                is_missing = not self.find_directory(command)
                hint = (
                    f"install {_basename(command)} in the image, or {correction}"
                    if is_missing
                    else correction
                )
            yield Program(
                command=program.command,
                resolved=program.resolved,
                problem=program.problem and f"the interpreter of {script.path}: {program.problem}",
                hint=hint,
            )

    def _has_windows_line_ending(self, script: ResolvedPath) -> bool:
        r"""Return True if the ``\r`` of a first line becomes a part of a name, or an option of a shell.

        Not every interpreter minds one after an option: Perl ignores it.
        """
        commands = _parse_shebang(script.node.head)
        if any(command.endswith("\r") and self.find_command(command) is None for command in commands):
            return True
        return _first_line(script.node.head).endswith("\r") and _basename(commands[-1]) in _SHELLS


def _is_program(file: ResolvedPath) -> bool:
    return file.node.head.startswith((ELF_MAGIC, _SCRIPT_MAGIC))


def _first_line(head: bytes) -> str:
    return head[len(_SCRIPT_MAGIC) :].partition(b"\n")[0].strip(b" \t\0").decode("utf-8", "backslashreplace")


def _parse_shebang(head: bytes) -> list[str]:
    """Return the interpreter of a ``#!`` line, followed by the command to run if it is ``env``."""
    line = _first_line(head)
    argv = re.split(r"[ \t]+", line) if line.strip() else []
    if argv and _basename(argv[0]) == "env":
        return argv[:1] + _first_command(argv[1:])
    return argv[:1]


def _nested_commands(argv: tuple[str, ...]) -> Iterator[str]:
    """Yield the commands that a shell or an init is told to run."""
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


def quoted_basename(path: str) -> str:
    """Return the last part of a path, quoted for a shell: images choose their names."""
    return shlex.quote(_basename(path))


def _basename(command: str) -> str:
    return command.rpartition("/")[2]
