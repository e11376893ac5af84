"""Whether a program would start: its loader and every library that it needs, as loaders look for them.

ld.so(8) for glibc and musl's ldso/dynlink.c: RPATH, LD_LIBRARY_PATH, RUNPATH, the loader's
configuration, its default folders. What a program opens by itself later (dlopen) is not known.
"""

from __future__ import annotations

import posixpath
import re
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import Found, NodeType, RootFs
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import counted
from buildkit_tasks.verify.entrypoint import machine_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = ["Closure", "start_checks"]

_MUSL = re.compile(r"ld-musl-([^/]+)\.so\.1$")
# Names that musl's loader has in itself (ldso/dynlink.c, load_library).
_OF_MUSL = re.compile(r"lib(?:c|pthread|rt|m|dl|util|xnet)\.")
_MUSL_FOLDERS = ("/lib", "/usr/local/lib", "/usr/lib")
_MAX_LIBRARIES = 2000
_MAX_INCLUDES = 200


def start_checks(
    platform: Platform, program: Found, rootfs: RootFs, environment: Sequence[str]
) -> tuple[tuple[Check, ...], tuple[Found, ...]]:
    """The checks ``starts`` of one program, and everything that its process would have loaded."""
    machine = machine_of(platform)
    binary = program.node.binary
    if machine is None or binary is None or binary.header.row is not machine:
        return (), (program,)
    closure = Closure(rootfs=rootfs, machine=machine, program=program, environment=tuple(environment))
    problems = tuple(closure.problems())
    checks = tuple(
        Check(
            name="starts", ok=False, expected=wanted, actual=actual, path=at.path, layer=at.node.layer,
            message=f"{platform}: {message}",
        )
        for at, wanted, actual, message in problems
    )  # fmt: skip
    if not checks:
        checks = (Check(name="starts", ok=True, path=program.path, message=closure.summary()),)
    return checks, tuple(closure.loaded)


Problem = tuple[Found, str, str, str]


@dataclass(kw_only=True)
class Closure:
    """A program, its loader and its libraries in one file system; ``loaded`` is filled on the way."""

    rootfs: RootFs
    machine: Machine
    program: Found
    environment: tuple[str, ...]
    loaded: list[Found] = field(default_factory=list, init=False)

    @cached_property
    def binary(self) -> Binary:
        """The program's own headers."""
        assert self.program.node.binary is not None  # noqa: S101 - for the type checker; see start_checks
        return self.program.node.binary

    @cached_property
    def musl(self) -> str:
        """Musl's own name for the architecture, where musl's loader is the program's."""
        match = _MUSL.search(self.binary.interpreter)
        return match[1] if match else ""

    def problems(self) -> Iterator[Problem]:
        """Each thing that is missing: what needs it, its name, what is there instead, and the words."""
        self.loaded.append(self.program)
        if self.binary.refused:
            yield self.program, "", "", f"{self.program.path} cannot start: it has {self.binary.refused}"
        if self.binary.interpreter:
            yield from self._loader()
        if self.binary.needed:
            yield from self._libraries()

    def summary(self) -> str:
        """What was found, when nothing is missing."""
        if not self.binary.interpreter:
            return f"{self.program.path} is static: it needs no loader"
        count = len(self.loaded) - 2
        libraries = counted(count, "library", "libraries") if count > 0 else "no library"
        return f"{self.program.path} finds its loader {self.binary.interpreter} and {libraries}"

    def _loader(self) -> Iterator[Problem]:
        name = self.binary.interpreter
        found = self.rootfs.resolve(name)
        problem, actual = f"its loader {name} is not in the image{self._other_libc(name)}", "missing"
        if found is not None and found.node.type is NodeType.FILE:
            self.loaded.append(found)
            problem = actual = self._unfit(found, "loader")
        if problem:
            yield self.program, name, actual, f"{self.program.path} cannot start: {problem}"

    def _unfit(self, found: Found, what: str) -> str:
        binary = found.node.binary
        if binary is None:
            return f"its {what} {found.path} is no ELF file"
        if binary.header.row is not self.machine:
            return f"its {what} {found.path} is made for {binary.header.name}"
        if what == "loader" and not found.node.mode & 0o111:
            return f"its {what} {found.path} is not executable"
        return ""

    def _other_libc(self, name: str) -> str:
        """Say whose loader it is, where the image has the other C library's."""
        theirs = [path for path in self.machine.loaders if path != name and self._is_file(path)]
        if not theirs:
            return ""
        libc, other = ("musl", "glibc") if self.musl else ("glibc", "musl")
        if bool(_MUSL.search(theirs[0])) == bool(self.musl):
            return f"; it has {theirs[0]}, of another ABI"
        hint = " (Alpine)" if other == "musl" else ""
        return (
            f": it was linked against {libc}, and this is a {other} image{hint}; "
            f"link it statically, or build it on the base that it runs on"
        )

    def _is_file(self, path: str) -> bool:
        found = self.rootfs.resolve(path)
        return found is not None and found.node.type is NodeType.FILE

    def _libraries(self) -> Iterator[Problem]:
        """Breadth first, as loaders go; each name is loaded once."""
        todo = deque([(self.program, self._rpath_of(self.program, ()))])
        known: set[str] = set()
        while todo and len(self.loaded) < _MAX_LIBRARIES:
            user, rpaths = todo.popleft()
            needed = user.node.binary.needed if user.node.binary else ()
            for name in needed:
                if name in known or (self.musl and _OF_MUSL.match(name)):
                    continue
                known.add(name)
                found, wrong = self._find(name, user, rpaths)
                if found is None:
                    message = f"{user.path} needs {name}, which {wrong or 'is not in the image'}"
                    yield user, name, wrong or "missing", message
                elif all(found.node is not each.node for each in self.loaded):
                    self.loaded.append(found)
                    todo.append((found, self._rpath_of(found, rpaths)))

    def _rpath_of(self, found: Found, inherited: tuple[str, ...]) -> tuple[str, ...]:
        """The RPATHs that hold for what a file needs: its own, then its users'."""
        binary = found.node.binary
        if binary is None:
            return inherited
        own = binary.runpath + binary.rpath if self.musl else () if binary.runpath else binary.rpath
        return (*self._expanded(own, found), *inherited)

    def _find(self, name: str, user: Found, rpaths: tuple[str, ...]) -> tuple[Found | None, str]:
        """The library, or None and what was found in its place."""
        wrong = ""
        for path in self._candidates(name, user, rpaths):
            found = self.rootfs.resolve(path)
            if found is None or found.node.type is not NodeType.FILE:
                continue
            problem = self._unfit(found, "library")
            if not problem:
                return found, ""
            words = problem.removeprefix(f"its library {found.path} ")
            wrong = wrong or f"is there only as {found.path}, and that {words}"
        return None, wrong

    def _candidates(self, name: str, user: Found, rpaths: tuple[str, ...]) -> Iterator[str]:
        if "/" in name:
            expanded = self._expanded((name,), user)
            yield from (path if path.startswith("/") else f"/{path}" for path in expanded)
            return
        binary = user.node.binary
        runpath = self._expanded(binary.runpath, user) if binary and not self.musl else ()
        # ld.so(8): RPATH only counts where there is no RUNPATH; the environment stands between them.
        before = () if runpath else rpaths
        for folder in (*before, *self._environment_folders, *runpath, *self._folders):
            yield f"{folder}/{name}"

    def _expanded(self, paths: Iterable[str], user: Found) -> tuple[str, ...]:
        origin = posixpath.dirname(user.path)
        values = {"ORIGIN": origin, "LIB": self._lib, "PLATFORM": self.machine.uname[0]}
        return tuple(
            re.sub(r"\$(?:\{(\w+)\}|(ORIGIN|LIB|PLATFORM))", lambda m: values.get(m[1] or m[2], m[0]), path)
            for path in paths
            if path
        )

    @cached_property
    def _lib(self) -> str:
        debian = [f"lib/{triplet}" for triplet in self.machine.multiarch]
        there = (folder for folder in (*debian, "lib64") if self.rootfs.resolve(f"/{folder}") is not None)
        return next(there, "lib")

    @cached_property
    def _environment_folders(self) -> tuple[str, ...]:
        prefix = "LD_LIBRARY_PATH="
        stated = [item.removeprefix(prefix) for item in self.environment if item.startswith(prefix)]
        return tuple(folder for folder in re.split("[:;]", stated[-1]) if folder) if stated else ()

    @cached_property
    def _folders(self) -> tuple[str, ...]:
        """Where the loader looks in the end: its configuration, then its defaults."""
        if self.musl:
            configured = self._settings(f"/etc/ld-musl-{self.musl}.path")
            return tuple(re.split(r"[:\n]", configured)) if configured.strip() else _MUSL_FOLDERS
        debian = [f"{root}/{triplet}" for triplet in self.machine.multiarch for root in ("/lib", "/usr/lib")]
        wide = ("/lib64", "/usr/lib64") if self.machine.bits == 64 else ()  # noqa: PLR2004 - a word's width
        return (*self._configured("/etc/ld.so.conf"), *debian, *wide, "/lib", "/usr/lib")

    def _configured(self, path: str) -> Iterator[str]:
        """The folders of ld.so.conf and of what it includes (ldconfig(8))."""
        todo, seen = [path], 0
        while todo and seen < _MAX_INCLUDES:
            seen += 1
            for line in self._settings(todo.pop(0)).splitlines():
                words = line.partition("#")[0].split()
                if words[:1] == ["include"]:
                    todo += [each for pattern in words[1:] for each in self._matching(pattern)]
                elif words and words[0].startswith("/"):
                    yield words[0]

    def _matching(self, pattern: str) -> list[str]:
        folder, _, name = posixpath.join("/etc", pattern).rpartition("/")
        found = self.rootfs.resolve(folder)
        expression = re.compile(re.escape(name).replace(r"\*", "[^/]*"))
        names = sorted(found.node.children) if found is not None else []
        return [f"{folder}/{each}" for each in names if expression.fullmatch(each)]

    def _settings(self, path: str) -> str:
        found = self.rootfs.resolve(path)
        return found.node.head.decode("utf-8", "replace") if found is not None else ""
