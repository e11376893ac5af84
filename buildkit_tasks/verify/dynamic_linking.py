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

from buildkit_tasks.oci.layers.rootfs import FileType, ResolvedPath, RootFs
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import pluralise
from buildkit_tasks.verify.entrypoint import find_machine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = ["DependencyResolver", "check_dynamic_linking"]

_MUSL_LOADER = re.compile(r"ld-musl-([^/]+)\.so\.1$")
# Names that musl's loader has in itself (ldso/dynlink.c, load_library).
_MUSL_BUILTIN = re.compile(r"lib(?:c|pthread|rt|m|dl|util|xnet)\.")
_MUSL_DEFAULT_DIRS = ("/lib", "/usr/local/lib", "/usr/lib")
_MAX_LIBRARIES = 2000
_MAX_INCLUDES = 200


def check_dynamic_linking(
    platform: Platform, program: ResolvedPath, rootfs: RootFs, environment: Sequence[str]
) -> tuple[tuple[Check, ...], tuple[ResolvedPath, ...]]:
    """The checks ``starts`` of one program, and everything that its process would have loaded."""
    machine = find_machine(platform)
    binary = program.node.binary
    if machine is None or binary is None or binary.header.machine is not machine:
        return (), (program,)
    resolver = DependencyResolver(
        rootfs=rootfs, machine=machine, program=program, environment=tuple(environment)
    )
    problems = tuple(resolver.iter_problems())
    checks = tuple(
        Check(
            name="starts", ok=False, expected=expected, actual=actual, path=dependent.path,
            layer=dependent.node.layer,
            message=f"{platform}: {message}",
        )
        for dependent, expected, actual, message in problems
    )  # fmt: skip
    if not checks:
        checks = (Check(name="starts", ok=True, path=program.path, message=resolver.describe_success()),)
    return checks, tuple(resolver.loaded)


DependencyProblem = tuple[ResolvedPath, str, str, str]


@dataclass(kw_only=True)
class DependencyResolver:
    """A program, its loader and its libraries in one file system; ``loaded`` is filled on the way."""

    rootfs: RootFs
    machine: Machine
    program: ResolvedPath
    environment: tuple[str, ...]
    loaded: list[ResolvedPath] = field(default_factory=list, init=False)

    @cached_property
    def binary(self) -> Binary:
        """The program's own headers."""
        assert self.program.node.binary is not None  # noqa: S101 - for the type checker; see start_checks
        return self.program.node.binary

    @cached_property
    def musl_arch(self) -> str:
        """Musl's own name for the architecture, where musl's loader is the program's."""
        match = _MUSL_LOADER.search(self.binary.interpreter)
        return match[1] if match else ""

    def iter_problems(self) -> Iterator[DependencyProblem]:
        """Each thing that is missing: what needs it, its name, what is there instead, and the words."""
        self.loaded.append(self.program)
        if self.binary.exec_error:
            yield self.program, "", "", f"{self.program.path} cannot start: it has {self.binary.exec_error}"
        if self.binary.interpreter:
            yield from self._check_loader()
        if self.binary.needed:
            yield from self._resolve_libraries()

    def describe_success(self) -> str:
        """What was found, when nothing is missing."""
        if not self.binary.interpreter:
            return f"{self.program.path} is static: it needs no loader"
        library_count = len(self.loaded) - 2
        library_text = pluralise(library_count, "library", "libraries") if library_count > 0 else "no library"
        return f"{self.program.path} finds its loader {self.binary.interpreter} and {library_text}"

    def _check_loader(self) -> Iterator[DependencyProblem]:
        name = self.binary.interpreter
        loader = self.rootfs.resolve(name)
        problem, actual = (
            f"its loader {name} is not in the image{self._explain_libc_mismatch(name)}",
            "missing",
        )
        if loader is not None and loader.node.type is FileType.FILE:
            self.loaded.append(loader)
            problem = actual = self._explain_unusable(loader, "loader")
        if problem:
            yield self.program, name, actual, f"{self.program.path} cannot start: {problem}"

    def _explain_unusable(self, file: ResolvedPath, role: str) -> str:
        binary = file.node.binary
        if binary is None:
            return f"its {role} {file.path} is no ELF file"
        if binary.header.machine is not self.machine:
            return f"its {role} {file.path} is made for {binary.header.machine_name}"
        if role == "loader" and not file.node.mode & 0o111:
            return f"its {role} {file.path} is not executable"
        return ""

    def _explain_libc_mismatch(self, name: str) -> str:
        """Say whose loader it is, where the image has the other C library's."""
        other_loaders = [
            path for path in self.machine.elf_interpreters if path != name and self._is_file(path)
        ]
        if not other_loaders:
            return ""
        libc, other_libc = ("musl", "glibc") if self.musl_arch else ("glibc", "musl")
        if bool(_MUSL_LOADER.search(other_loaders[0])) == bool(self.musl_arch):
            return f"; it has {other_loaders[0]}, of another ABI"
        hint = " (Alpine)" if other_libc == "musl" else ""
        return (
            f": it was linked against {libc}, and this is a {other_libc} image{hint}; "
            f"link it statically, or build it on the base that it runs on"
        )

    def _is_file(self, path: str) -> bool:
        file = self.rootfs.resolve(path)
        return file is not None and file.node.type is FileType.FILE

    def _resolve_libraries(self) -> Iterator[DependencyProblem]:
        """Breadth first, as loaders go; each name is loaded once."""
        queue = deque([(self.program, self._effective_rpaths(self.program, ()))])
        seen: set[str] = set()
        while queue and len(self.loaded) < _MAX_LIBRARIES:
            dependent, rpaths = queue.popleft()
            needed = dependent.node.binary.needed if dependent.node.binary else ()
            for name in needed:
                if name in seen or (self.musl_arch and _MUSL_BUILTIN.match(name)):
                    continue
                seen.add(name)
                library, reason = self._find_library(name, dependent, rpaths)
                if library is None:
                    message = f"{dependent.path} needs {name}, which {reason or 'is not in the image'}"
                    yield dependent, name, reason or "missing", message
                elif all(library.node is not each.node for each in self.loaded):
                    self.loaded.append(library)
                    queue.append((library, self._effective_rpaths(library, rpaths)))

    def _effective_rpaths(self, file: ResolvedPath, inherited: tuple[str, ...]) -> tuple[str, ...]:
        """The RPATHs that hold for what a file needs: its own, then its users'."""
        binary = file.node.binary
        if binary is None:
            return inherited
        own_paths = (
            binary.runpath + binary.rpath if self.musl_arch else () if binary.runpath else binary.rpath
        )
        return (*self._expand_tokens(own_paths, file), *inherited)

    def _find_library(
        self, name: str, dependent: ResolvedPath, rpaths: tuple[str, ...]
    ) -> tuple[ResolvedPath | None, str]:
        """The library, or None and what was found in its place."""
        rejection = ""
        for path in self._candidate_paths(name, dependent, rpaths):
            library = self.rootfs.resolve(path)
            if library is None or library.node.type is not FileType.FILE:
                continue
            problem = self._explain_unusable(library, "library")
            if not problem:
                return library, ""
            reason = problem.removeprefix(f"its library {library.path} ")
            rejection = rejection or f"is there only as {library.path}, and that {reason}"
        return None, rejection

    def _candidate_paths(self, name: str, dependent: ResolvedPath, rpaths: tuple[str, ...]) -> Iterator[str]:
        if "/" in name:
            expanded = self._expand_tokens((name,), dependent)
            yield from (path if path.startswith("/") else f"/{path}" for path in expanded)
            return
        binary = dependent.node.binary
        runpath = self._expand_tokens(binary.runpath, dependent) if binary and not self.musl_arch else ()
        # ld.so(8): RPATH only counts where there is no RUNPATH; the environment stands between them.
        preceding_dirs = () if runpath else rpaths
        for directory in (*preceding_dirs, *self._library_path_dirs, *runpath, *self._system_dirs):
            yield f"{directory}/{name}"

    def _expand_tokens(self, paths: Iterable[str], dependent: ResolvedPath) -> tuple[str, ...]:
        origin = posixpath.dirname(dependent.path)
        token_values = {"ORIGIN": origin, "LIB": self._lib_token, "PLATFORM": self.machine.uname_machines[0]}
        return tuple(
            re.sub(
                r"\$(?:\{(\w+)\}|(ORIGIN|LIB|PLATFORM))",
                lambda token: token_values.get(token[1] or token[2], token[0]),
                path,
            )
            for path in paths
            if path
        )

    @cached_property
    def _lib_token(self) -> str:
        multiarch_dirs = [f"lib/{triplet}" for triplet in self.machine.multiarch_triplets]
        existing_dirs = (
            directory
            for directory in (*multiarch_dirs, "lib64")
            if self.rootfs.resolve(f"/{directory}") is not None
        )
        return next(existing_dirs, "lib")

    @cached_property
    def _library_path_dirs(self) -> tuple[str, ...]:
        prefix = "LD_LIBRARY_PATH="
        values = [item.removeprefix(prefix) for item in self.environment if item.startswith(prefix)]
        return tuple(directory for directory in re.split("[:;]", values[-1]) if directory) if values else ()

    @cached_property
    def _system_dirs(self) -> tuple[str, ...]:
        """Where the loader looks in the end: its configuration, then its defaults."""
        if self.musl_arch:
            configured_dirs = self._read_config(f"/etc/ld-musl-{self.musl_arch}.path")
            return (
                tuple(re.split(r"[:\n]", configured_dirs)) if configured_dirs.strip() else _MUSL_DEFAULT_DIRS
            )
        multiarch_dirs = [
            f"{root}/{triplet}"
            for triplet in self.machine.multiarch_triplets
            for root in ("/lib", "/usr/lib")
        ]
        lib64_dirs = ("/lib64", "/usr/lib64") if self.machine.bits == 64 else ()  # noqa: PLR2004 - a word's width
        return (*self._read_ld_so_conf("/etc/ld.so.conf"), *multiarch_dirs, *lib64_dirs, "/lib", "/usr/lib")

    def _read_ld_so_conf(self, path: str) -> Iterator[str]:
        """The folders of ld.so.conf and of what it includes (ldconfig(8))."""
        pending, file_count = [path], 0
        while pending and file_count < _MAX_INCLUDES:
            file_count += 1
            for line in self._read_config(pending.pop(0)).splitlines():
                fields = line.partition("#")[0].split()
                if fields[:1] == ["include"]:
                    pending += [each for pattern in fields[1:] for each in self._expand_include(pattern)]
                elif fields and fields[0].startswith("/"):
                    yield fields[0]

    def _expand_include(self, pattern: str) -> list[str]:
        directory, _, name = posixpath.join("/etc", pattern).rpartition("/")
        listing = self.rootfs.resolve(directory)
        regex = re.compile(re.escape(name).replace(r"\*", "[^/]*"))
        names = sorted(listing.node.children) if listing is not None else []
        return [f"{directory}/{each}" for each in names if regex.fullmatch(each)]

    def _read_config(self, path: str) -> str:
        file = self.rootfs.resolve(path)
        return file.node.head.decode("utf-8", "replace") if file is not None else ""
