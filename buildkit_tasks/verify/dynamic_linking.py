"""Check whether a dynamically linked program would start: its interpreter and the libraries it needs.

Libraries are searched as by ld.so(8) of glibc or by musl's ldso/dynlink.c: RPATH, LD_LIBRARY_PATH, RUNPATH,
the loader's configuration, its default directories. What a program loads later (dlopen) is not known.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
import shlex
from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.rootfs import FileType, ResolvedPath, RootFs
from buildkit_tasks.oci.layers.tree_builder import MAX_LOADER_CONFIG
from buildkit_tasks.platforms.elf.reader import read_binary
from buildkit_tasks.platforms.elf.view import PartialFile
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import pluralise
from buildkit_tasks.verify.entrypoint import find_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from buildkit_tasks.oci.layers.entrypoint import FileLookup
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = ["LOADER_HINT", "check_dynamic_linking", "describe_missing_loader"]

_MUSL_LOADER = re.compile(r"ld-musl-([^/]+)\.so\.1$")
# Libraries that musl's loader provides itself (ldso/dynlink.c, load_library).
_MUSL_BUILTIN = re.compile(r"lib(?:c|pthread|rt|m|dl|util|xnet)\.")
_MUSL_DEFAULT_DIRS = ("/lib", "/usr/local/lib", "/usr/lib")
LOADER_HINT = "link it statically (CGO_ENABLED=0 in Go), or build it on the base that it runs on"
_MAX_LIBRARIES = 2000
_MAX_INCLUDES = 200  # files that ld.so.conf includes, and patterns for them
_MAX_RPATHS = 1000
# Directories that are searched, each for each library, and names that are matched. Real programs need some
# thousands; an image can have many directories and need many libraries.
_MAX_LOOKUPS = 300_000
_MAX_PATH, _MAX_NAME = 4095, 255  # bytes (linux/limits.h); the kernel has no longer ones


def check_dynamic_linking(
    platform: Platform, program: ResolvedPath, rootfs: RootFs, environment: Sequence[str]
) -> tuple[tuple[Check, ...], tuple[ResolvedPath, ...]]:
    """Return the ``starts`` checks of a program, and all files that its process would load.

    ``environment`` are ``NAME=value`` items of the image's configuration. If the search takes too much time,
    there is a failing check ``limit``.
    """
    machine, binary = find_machine(platform), program.node.binary
    if machine is None or binary is None or binary.header.machine is not machine:
        return (), (program,)
    resolver = _DependencyResolver(
        rootfs=rootfs, machine=machine, program=program, binary=binary, environment=tuple(environment)
    )
    checks: list[Check] = []
    try:
        for problem in resolver.iter_problems():
            check = Check(
                name="starts", ok=False, expected=problem.expected, actual=problem.actual,
                path=problem.file.path, layer=problem.file.node.layer,
                message=f"{platform}: {problem.message}", hint=problem.hint,
            )  # fmt: skip
            checks.append(check)
    except LimitExceeded as error:
        message = f"{platform}: {program.path}: {error.message}"
        checks.append(Check(name="limit", ok=False, path=program.path, message=message))
    if not checks:
        checks.append(Check(name="starts", ok=True, path=program.path, message=resolver.describe_success()))
    return tuple(checks), tuple(resolver.loaded)


def describe_missing_loader(
    platform: Platform, program: ResolvedPath, rootfs: FileLookup, config: ImageConfig
) -> str:
    """Return that the interpreter of a program is missing; empty if it is not, or if the program has none.

    Only the head of the program has to be in its node.
    """
    machine, (path, node) = find_machine(platform), program
    try:
        binary = read_binary(PartialFile(node.size, ((0, node.head),)))
    except MalformedImage:
        return ""
    interpreter = posixpath.join("/", config.working_dir, binary.interpreter)
    if machine is None or not binary.interpreter or rootfs.find_file(interpreter) is not None:
        return ""
    return f"{path} cannot start: {_describe_missing(binary.interpreter, machine, rootfs.find_file)}"


def _describe_missing(name: str, machine: Machine, find_file: Callable[[str], ResolvedPath | None]) -> str:
    """Return that a loader is missing and, if it has one, that the image is of another C library or ABI."""
    message, is_musl = f"its loader {name} is not in the image", bool(_MUSL_LOADER.search(name))
    other = next((path for path in machine.elf_interpreters if path != name and find_file(path)), None)
    if other is None:
        return message
    if bool(_MUSL_LOADER.search(other)) == is_musl:
        return f"{message}; it has {other}, of another ABI"
    libc, image = ("musl", "glibc image") if is_musl else ("glibc", "musl image (Alpine)")
    return f"{message}: it was linked against {libc}, and this is a {image}"


class _Problem(NamedTuple):
    """A dependency of ``file`` that is missing or unusable."""

    file: ResolvedPath
    expected: str
    actual: str
    message: str
    hint: str = ""


@dataclass(kw_only=True)
class _DependencyResolver:
    """Resolves the dependencies of a program in a root file system; ``loaded`` collects them.

    Its methods raise :class:`LimitExceeded` past the number of libraries, directories or look-ups that any
    program may need.
    """

    rootfs: RootFs
    machine: Machine
    program: ResolvedPath
    binary: Binary
    environment: tuple[str, ...]
    loaded: list[ResolvedPath] = field(default_factory=list, init=False)
    _lookups: int = field(default=0, init=False)
    _found_directories: dict[str, ResolvedPath | None] = field(default_factory=dict, init=False)

    @cached_property
    def musl_arch(self) -> str:
        """Musl's name of the architecture if the interpreter is musl's, else empty."""
        match = _MUSL_LOADER.search(self.binary.interpreter)
        return match[1] if match else ""

    def iter_problems(self) -> Iterator[_Problem]:
        """Load the program and yield every problem."""
        self.loaded.append(self.program)
        if self.binary.exec_error:
            message = f"{self.program.path} cannot start: it has {self.binary.exec_error}"
            yield _Problem(self.program, "", "", message)
        if self.binary.interpreter:
            yield from self._check_interpreter()
        if self.binary.needed:
            yield from self._resolve_libraries()

    def describe_success(self) -> str:
        """Return what was found, if there are no problems."""
        if not self.binary.interpreter:
            return f"{self.program.path} is static: it needs no loader"
        library_count = len(self.loaded) - 2
        library_text = pluralise(library_count, "library", "libraries") if library_count > 0 else "no library"
        return f"{self.program.path} finds its loader {self.binary.interpreter} and {library_text}"

    def _check_interpreter(self) -> Iterator[_Problem]:
        name = self.binary.interpreter
        interpreter = self._find_file(name)
        if interpreter is None:
            problem = _describe_missing(name, self.machine, self._find_file)
            actual, hint = "missing", LOADER_HINT
        else:
            self.loaded.append(interpreter)
            problem = actual = self._explain_unusable(interpreter, "loader")
            hint = f"install the C library of {self.machine.architecture} in the image"
        if problem:
            yield _Problem(self.program, name, actual, f"{self.program.path} cannot start: {problem}", hint)

    def _find_file(self, path: str) -> ResolvedPath | None:
        self._count_lookups(1)
        return self.rootfs.find_file(path) if len(path) <= _MAX_PATH else None

    def _count_lookups(self, count: int) -> None:
        self._lookups += count
        if self._lookups > _MAX_LOOKUPS:
            raise LimitExceeded(f"finding its libraries takes more than {_MAX_LOOKUPS} look-ups")

    def _find_directories(self, paths: Iterable[str]) -> tuple[ResolvedPath, ...]:
        """Return those of the paths that are directories, each once."""
        directories: dict[int, ResolvedPath] = {}
        for path in paths:
            self._count_lookups(1)
            directory = self._find_directory(path)
            if directory is not None:
                directories.setdefault(id(directory.node), directory)
        return tuple(directories.values())

    def _find_directory(self, path: str) -> ResolvedPath | None:
        if path not in self._found_directories:
            file = self.rootfs.resolve(path) if len(path) <= _MAX_PATH else None
            is_directory = file is not None and file.node.type is FileType.DIRECTORY
            self._found_directories[path] = file if is_directory else None
        return self._found_directories[path]

    def _explain_unusable(self, file: ResolvedPath, role: str) -> str:
        """Return why a file cannot be the loader or a library; empty if it can."""
        binary = file.node.binary
        if binary is None:
            return f"its {role} {file.path} is not an ELF file"
        if binary.header.machine is not self.machine:
            return f"its {role} {file.path} is made for {binary.header.machine_name}"
        if role == "loader" and not file.is_executable:
            return f"its {role} {file.path} is not executable"
        return ""

    def _resolve_libraries(self) -> Iterator[_Problem]:
        """Load libraries breadth first, as loaders do; each name is loaded once."""
        queue = deque([(self.program, self._effective_rpaths(self.program, ()))])
        seen: set[str] = set()
        loaded = {id(file.node) for file in self.loaded}
        while queue:
            dependent, rpaths = queue.popleft()
            needed = dependent.node.binary.needed if dependent.node.binary else ()
            directories = tuple(self._preceding_directories(dependent, rpaths)) if needed else ()
            for name in needed:
                if name in seen or (self.musl_arch and _MUSL_BUILTIN.match(name)):
                    continue
                seen.add(name)
                library, reason = self._find_library(name, dependent, directories)
                if library is None:
                    message = f"{dependent.path} needs {name}, which {reason or 'is not in the image'}"
                    hint = f"install {shlex.quote(name)} in the image, in one of the loader's directories"
                    yield _Problem(dependent, name, reason or "missing", message, hint)
                elif id(library.node) not in loaded:
                    loaded.add(id(library.node))
                    self.loaded.append(library)
                    if len(self.loaded) > _MAX_LIBRARIES:
                        raise LimitExceeded(f"it needs more than {_MAX_LIBRARIES} libraries")
                    queue.append((library, self._effective_rpaths(library, rpaths)))

    def _effective_rpaths(self, file: ResolvedPath, inherited: tuple[str, ...]) -> tuple[str, ...]:
        """Return the RPATHs for what a file needs: its own, then those of the files that need it."""
        binary = file.node.binary
        if binary is None:
            return inherited
        own_paths = binary.rpath if not binary.runpath else ()
        if self.musl_arch:  # musl treats both alike
            own_paths = binary.runpath + binary.rpath
        rpaths = tuple(dict.fromkeys((*self._expand_tokens(own_paths, file), *inherited)))
        if len(rpaths) > _MAX_RPATHS:
            raise LimitExceeded(f"it has an RPATH of more than {_MAX_RPATHS} directories")
        return rpaths

    def _find_library(
        self, name: str, dependent: ResolvedPath, directories: tuple[ResolvedPath, ...]
    ) -> tuple[ResolvedPath | None, str]:
        """Return the library, or None and why the first file of that name is unusable."""
        rejection = ""
        for library in filter(None, self._iter_candidates(name, dependent, directories)):
            problem = self._explain_unusable(library, "library")
            if not problem:
                return library, ""
            reason = problem.removeprefix(f"its library {library.path} ")
            rejection = rejection or f"exists only as {library.path}, which {reason}"
        return None, rejection

    def _iter_candidates(
        self, name: str, dependent: ResolvedPath, directories: tuple[ResolvedPath, ...]
    ) -> Iterator[ResolvedPath | None]:
        """Yield the files of that name, and None where there is none."""
        if "/" in name:
            expanded = self._expand_tokens((name,), dependent)
            yield from (self._find_file(path if path.startswith("/") else f"/{path}") for path in expanded)
            return
        for directory in chain(directories, self._system_directories):
            self._count_lookups(1)
            yield self.rootfs.find_file_in(directory.path, directory.node, name)

    def _preceding_directories(
        self, dependent: ResolvedPath, rpaths: tuple[str, ...]
    ) -> Iterator[ResolvedPath]:
        """Yield the directories before those of the system, for what a file needs.

        ld.so(8): RPATH is ignored if there is a RUNPATH; LD_LIBRARY_PATH comes between them.
        """
        binary = dependent.node.binary
        runpath = self._expand_tokens(binary.runpath, dependent) if binary and not self.musl_arch else ()
        yield from self._find_directories(() if runpath else rpaths)
        yield from self._library_path_directories
        yield from self._find_directories(runpath)

    @cached_property
    def _library_path_directories(self) -> tuple[ResolvedPath, ...]:
        return self._find_directories(self._library_path_dirs)

    @cached_property
    def _system_directories(self) -> tuple[ResolvedPath, ...]:
        return self._find_directories(self._system_dirs)

    def _expand_tokens(self, paths: Iterable[str], dependent: ResolvedPath) -> tuple[str, ...]:
        """Expand ``$ORIGIN``, ``$LIB`` and ``$PLATFORM`` (ld.so(8), "Dynamic string tokens")."""
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
        directories = (*(f"lib/{triplet}" for triplet in self.machine.multiarch_triplets), "lib64")
        return next((each for each in directories if self.rootfs.resolve(f"/{each}") is not None), "lib")

    @cached_property
    def _library_path_dirs(self) -> tuple[str, ...]:
        prefix = "LD_LIBRARY_PATH="
        values = [item.removeprefix(prefix) for item in self.environment if item.startswith(prefix)]
        return tuple(filter(None, re.split("[:;]", values[-1]))) if values else ()

    @cached_property
    def _system_dirs(self) -> tuple[str, ...]:
        """The directories of the loader's configuration, then its default ones."""
        if self.musl_arch:
            configured = self._read_config(f"/etc/ld-musl-{self.musl_arch}.path")
            return tuple(re.split(r"[:\n]", configured)) if configured.strip() else _MUSL_DEFAULT_DIRS
        triplets = self.machine.multiarch_triplets
        multiarch_dirs = (f"{root}/{triplet}" for triplet in triplets for root in ("/lib", "/usr/lib"))
        lib64_dirs = ("/lib64", "/usr/lib64") if self.machine.bits == 64 else ()  # noqa: PLR2004 - 64-bit
        return (*self._read_ld_so_conf("/etc/ld.so.conf"), *multiarch_dirs, *lib64_dirs, "/lib", "/usr/lib")

    def _read_ld_so_conf(self, path: str) -> Iterator[str]:
        """Yield the directories of ld.so.conf and of the files that it includes (ldconfig(8))."""
        pending, paths, pattern_count = deque([path]), {path}, 0
        while pending:
            for line in self._read_config(pending.popleft()).splitlines():
                fields = line.partition("#")[0].split()
                if fields[:1] == ["include"]:
                    pattern_count += len(fields) - 1
                    self._check_includes(pattern_count)
                    included = chain.from_iterable(map(self._expand_include, fields[1:]))
                    pending += [each for each in dict.fromkeys(included) if each not in paths]
                    paths.update(pending)
                    self._check_includes(len(paths))
                elif fields and fields[0].startswith("/"):
                    yield fields[0]

    def _check_includes(self, count: int) -> None:
        if count > _MAX_INCLUDES:
            raise LimitExceeded(f"/etc/ld.so.conf includes more than {_MAX_INCLUDES} files or patterns")

    def _expand_include(self, pattern: str) -> list[str]:
        directory, _, name = posixpath.join("/etc", pattern).rpartition("/")
        listing = self._find_directory(directory)
        if listing is None or len(name) > _MAX_PATH:
            return []
        self._count_lookups(len(listing.node.children))
        names = sorted(
            fnmatch.filter((each for each in listing.node.children if len(each) <= _MAX_NAME), name)
        )
        # As glob(7): a wildcard matches no leading dot.
        return [f"{directory}/{each}" for each in names if each[0] != "." or name[0] == "."]

    def _read_config(self, path: str) -> str:
        file = self._find_file(path)
        if file is None:
            return ""
        if file.node.head and file.node.size > MAX_LOADER_CONFIG:
            raise LimitExceeded(f"{file.path} has more than {MAX_LOADER_CONFIG} bytes")
        return file.node.head.decode("utf-8", "replace")
