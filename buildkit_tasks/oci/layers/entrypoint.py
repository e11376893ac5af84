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

from buildkit_tasks.oci.layers.rootfs import DEFAULT_PATH, Found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.oci.model import ImageConfig

__all__ = ["Files", "Program", "programs_of"]

_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "zsh"})
_INITS = frozenset({"tini", "tini-static", "docker-init", "dumb-init", "catatonit"})
_SHELL_COMMAND = re.compile(r"-[a-z]*c")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_MAX_SCRIPTS = 5  # a script of a script: the kernel's own bound (fs/exec.c)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A file that is run, or in ``problem`` why there is none; ``command`` as it is written."""

    command: str
    found: Found | None = None
    problem: str = ""


class Files(Protocol):
    """A root file system in which a command can be looked up."""

    def find_command(self, name: str, path_env: str, working_dir: str) -> Found | None:
        """The file that starting ``name`` would run."""


def programs_of(config: ImageConfig, rootfs: Files) -> tuple[Program, ...]:
    """Every program that the image starts, each once; none if it states no command."""
    search = _Search(config, rootfs)
    words = config.entrypoint + config.cmd
    if not words:
        return ()
    programs = list(search.chain(words[0]))
    for command in _arguments(config):
        if search.find(command) is not None:
            programs += search.chain(command)
    return tuple({(p.found and p.found.path, p.problem): p for p in reversed(programs)}.values())[::-1]


@dataclass(frozen=True, slots=True)
class _Search:
    config: ImageConfig
    rootfs: Files

    @property
    def path(self) -> str:
        stated = [item.removeprefix("PATH=") for item in self.config.env if item.startswith("PATH=")]
        return stated[-1] if stated else DEFAULT_PATH

    def find(self, command: str) -> Found | None:
        return self.rootfs.find_command(command, self.path, self.config.working_dir or "/")

    def chain(self, command: str, depth: int = 0) -> Iterator[Program]:
        """The program and, where it is a script, those that run it."""
        found = self.find(command)
        if found is None:
            where = "" if "/" in command else f" (PATH is {self.path})"
            yield Program(command=command, problem=f"{command!r} is not in the image{where}")
            return
        yield Program(command=command, found=found)
        if found.node.head.startswith(b"#!"):
            yield from self._interpreters(found, depth)

    def _interpreters(self, script: Found, depth: int) -> Iterator[Program]:
        words = _shebang(script.node.head)
        if not words or depth >= _MAX_SCRIPTS:
            cause = "names no interpreter" if not words else "is one of scripts that run each other"
            yield Program(command=script.path, problem=f"the script {script.path} {cause}")
            return
        for word in words:
            for program in self.chain(word, depth + 1):
                problem = program.problem and f"the script {script.path} is run by {program.problem}"
                yield Program(command=program.command, found=program.found, problem=problem)


def _shebang(head: bytes) -> list[str]:
    """The interpreter of a ``#!`` line, and the command after it where that is ``env``."""
    line = head[2:].partition(b"\n")[0].strip(b" \t\0").decode("utf-8", "backslashreplace")
    words = re.split(r"[ \t]+", line) if line else []
    if words and _base(words[0]) == "env":
        return words[:1] + _commands(words[1:])
    return words[:1]


def _arguments(config: ImageConfig) -> Iterator[str]:
    words = config.entrypoint + config.cmd
    if config.entrypoint:
        yield from config.cmd[:1]
    if _base(words[0]) in _SHELLS:
        yield from _shell_command(words[1:])
    if _base(words[0]) in _INITS:
        after = words[words.index("--") + 1 :] if "--" in words else words[1:]
        yield from _commands(after)


def _shell_command(words: tuple[str, ...]) -> list[str]:
    """The first word of the command after ``-c``; none if it takes a shell to tell."""
    flags = [at for at, word in enumerate(words[:-1]) if _SHELL_COMMAND.fullmatch(word)]
    if not flags:
        return []
    lexer = shlex.shlex(words[flags[0] + 1], posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    try:
        return _commands(list(lexer))
    except ValueError:
        return []


def _commands(words: tuple[str, ...] | list[str]) -> list[str]:
    """The first word that is no option, no assignment and no ``exec``."""
    plain = (word for word in words if not word.startswith("-") and word != "exec")
    return [word for word in plain if not _ASSIGNMENT.fullmatch(word)][:1]


def _base(command: str) -> str:
    return command.rpartition("/")[2]
