"""Check every ELF file of a platform's root file system: machine, instruction set, float ABI."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import iter_nodes, printable_path
from buildkit_tasks.platforms.elf.isa_check import (
    arm_float_abi,
    isa_problems,
    isa_warnings,
    missing_isa_info_reason,
)
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import pluralise
from buildkit_tasks.verify.entrypoint import BUILD_HINT, describe_mismatch, find_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

    from buildkit_tasks.oci.layers.rootfs import FileNode, ResolvedPath, RootFs
    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = ["check_binaries", "check_loaded_isa", "check_machines", "compile_globs"]

_MAX_LISTED = 100  # checks of one kind; further ones are only counted
_FLOAT_ABI_TEXTS = {
    "hard": "in registers of the FPU (hard float)",
    "soft": "in integer registers (soft or softfp)",
}


def compile_globs(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a path matches one of the globs; ``*`` also matches slashes."""
    rooted_patterns = (pattern if pattern.startswith(("/", "*")) else f"*/{pattern}" for pattern in patterns)
    regexes = [re.compile(fnmatch.translate(pattern)) for pattern in rooted_patterns]
    return lambda path: any(regex.match(path) for regex in regexes)


def check_binaries(
    platform: Platform, rootfs: RootFs, is_allowed: Callable[[str], bool], already_reported: Collection[str]
) -> Iterator[Check]:
    """Yield the checks ``binaries``, ``instruction-set`` and ``float-abi`` of a root file system.

    ``is_allowed`` tells for which paths another machine or a larger instruction set is accepted. Paths in
    ``already_reported`` are skipped. Yield nothing for a platform whose machine is unknown: the check of
    its entry point fails.
    """
    survey = _survey_binaries(platform, rootfs, is_allowed, already_reported)
    if survey is not None:
        yield from survey.iter_checks()


def check_machines(
    platform: Platform, rootfs: RootFs, is_allowed: Callable[[str], bool], already_reported: Collection[str]
) -> Iterator[Check]:
    """Yield only the check ``binaries``; the arguments are those of :func:`check_binaries`.

    A script may start any of these files, and which cannot be seen. One that needs a newer CPU may be meant
    for it, as libraries of ``glibc-hwcaps`` are.
    """
    survey = _survey_binaries(platform, rootfs, is_allowed, already_reported)
    if survey is not None:
        yield from survey.iter_machine_checks()


def _survey_binaries(
    platform: Platform, rootfs: RootFs, is_allowed: Callable[[str], bool], already_reported: Collection[str]
) -> _BinarySurvey | None:
    """Return the ELF files of a root file system; None if the platform's machine is unknown."""
    machine = find_machine(platform)
    if machine is None:
        return None
    survey = _BinarySurvey(platform, machine, is_allowed)
    for path, node in iter_nodes(rootfs.root):
        if node.binary is not None or node.binary_error:
            shown_path = printable_path(path)
            if shown_path not in already_reported:
                survey.add_file(shown_path, node)
    return survey


def check_loaded_isa(platform: Platform, loaded: Iterable[ResolvedPath]) -> Iterator[Check]:
    """Yield failing ``instruction-set`` checks of these files: a program and the libraries it loads."""
    for path, node in {file.path: file.node for file in loaded}.items():
        for problem in isa_problems(platform, node.binary) if node.binary is not None else ():
            yield _isa_check(platform, path, node, problem)


@dataclass(slots=True)
class _CheckList:
    """Checks of one kind: the first ones, and the number of all."""

    checks: list[Check] = field(default_factory=list)
    count: int = 0

    def add(self, check: Check) -> None:
        self.count += 1
        if self.count <= _MAX_LISTED:
            self.checks.append(check)

    def report_failures(self, description: str) -> Iterator[Check]:
        """Yield the checks and, if there are more than are listed, one for the rest."""
        yield from self.checks
        if self.count > _MAX_LISTED:
            message = f"{self.count - _MAX_LISTED} more {description}"
            yield Check(name=self.checks[0].name, ok=False, message=message)


class _BinarySurvey:
    """The ELF files of one platform.

    ====================================================== =================== =======
    a file that                                            check               result
    ====================================================== =================== =======
    starts like ELF but cannot be parsed                   ``binaries``        warning
    is for another machine, at a path that is allowed      (counted)
    is for a device: BPF, GPU (no kernel starts it)        (counted)
    is for another machine                                 ``binaries``        failure
    is for this machine and damaged                        ``binaries``        warning
    ... and needs more than the baseline                   ``instruction-set`` failure
    ... and uses more only on CPUs that support it         ``instruction-set`` warning
    ... and passes floats in other registers than the rest ``float-abi``       failure
    ====================================================== =================== =======

    Each check passes once with a summary if nothing fails. ``instruction-set`` ignores allowed paths.
    """

    def __init__(self, platform: Platform, machine: Machine, is_allowed: Callable[[str], bool]) -> None:
        self._platform = platform
        self._machine = machine
        self._is_allowed = is_allowed
        self._matching = 0
        self._allowed_foreign: list[str] = []
        self._device_code: list[str] = []
        self._wrong_machine = _CheckList()
        self._unreadable = _CheckList()
        self._damaged = _CheckList()
        self._above_baseline = _CheckList()
        self._maybe_above_baseline = _CheckList()
        self._evidence_sources: Counter[str] = Counter()
        self._without_isa_info = 0
        self._float_abis: dict[str, list[tuple[str, FileNode]]] = {}

    def add_file(self, path: str, node: FileNode) -> None:
        """Add an ELF file, or one that starts like it."""
        binary = node.binary
        if binary is None:
            text = f"{path} starts like an ELF file and cannot be read as one: {node.binary_error}"
            self._unreadable.add(Check(name="binaries", ok=True, warning=True, path=path, message=text))
        elif binary.header.machine is self._machine:
            self._add_matching(path, node, binary)
        elif self._is_allowed(path):
            self._allowed_foreign.append(path)
        elif binary.header.is_device_code:
            self._device_code.append(path)
        else:
            self._wrong_machine.add(self._machine_check(path, node, binary))

    def _machine_check(self, path: str, node: FileNode, binary: Binary) -> Check:
        return Check(
            name="binaries", ok=False, expected=self._machine.architecture,
            actual=binary.header.machine_name, path=path, layer=node.layer,
            message=describe_mismatch(self._platform, self._machine, binary.header, path), hint=BUILD_HINT,
        )  # fmt: skip

    def _add_matching(self, path: str, node: FileNode, binary: Binary) -> None:
        self._matching += 1
        for flaw in filter(None, (binary.exec_error, *binary.problems, *binary.unread_parts)):
            text = f"{path} is damaged or was not read completely: {flaw}"
            self._damaged.add(Check(name="binaries", ok=True, warning=True, path=path, message=text))
        if missing_isa_info_reason(binary):
            self._without_isa_info += 1
        else:
            self._evidence_sources.update({evidence.source for evidence in binary.evidence})
        self._add_isa_checks(path, node, binary)
        if binary.is_dynamic and (abi := arm_float_abi(binary)):
            self._float_abis.setdefault(abi, []).append((path, node))

    def _add_isa_checks(self, path: str, node: FileNode, binary: Binary) -> None:
        problems, warnings = isa_problems(self._platform, binary), isa_warnings(self._platform, binary)
        if (problems or warnings) and not self._is_allowed(path):
            for problem in problems:
                self._above_baseline.add(_isa_check(self._platform, path, node, problem))
            for warning in warnings:
                check = _isa_check(self._platform, path, node, warning, is_failure=False)
                self._maybe_above_baseline.add(check)

    def iter_checks(self) -> Iterator[Check]:
        """Yield the checks of all files."""
        yield from self.iter_machine_checks()
        yield from self._check_instruction_sets()
        yield from self._check_float_abis()

    def iter_machine_checks(self) -> Iterator[Check]:
        """Yield the checks ``binaries``."""
        yield from self._wrong_machine.report_failures(f"files are not made for {self._machine.architecture}")
        yield from self._unreadable.checks
        yield from self._damaged.checks
        if not self._wrong_machine.count:
            parts = (
                pluralise(self._matching, "binary", "binaries"),
                _count_paths(self._allowed_foreign, "foreign and allowed"),
                _count_paths(self._device_code, "for other processors"),
            )
            yield Check(name="binaries", ok=True, message=", ".join(filter(None, parts)))

    def _check_instruction_sets(self) -> Iterator[Check]:
        baseline = str(self._platform)
        yield from self._above_baseline.report_failures(f"binaries need more than the baseline of {baseline}")
        yield from self._maybe_above_baseline.checks
        if self._matching and not self._above_baseline.count:
            message = self._describe_evidence()
            yield Check(name="instruction-set", ok=True, expected=baseline, message=message)

    def _describe_evidence(self) -> str:
        """Return how many files state their instruction set, and where."""
        parts = [f"{source} in {count}" for source, count in sorted(self._evidence_sources.items())]
        missing_text = f"none in {self._without_isa_info} of {self._matching}, which proves nothing"
        return "; ".join(filter(None, (", ".join(parts), missing_text if self._without_isa_info else "")))

    def _check_float_abis(self) -> Iterator[Check]:
        if len(self._float_abis) < 2:  # noqa: PLR2004 - one is the platform's, a second one a mixture
            return
        minority, majority = sorted(self._float_abis, key=lambda abi: len(self._float_abis[abi]))[:2]
        (path, node), (example, _) = self._float_abis[minority][0], self._float_abis[majority][0]
        text = (
            f"{self._platform}: {path} passes floating-point numbers {_FLOAT_ABI_TEXTS[minority]}, {example} "
            f"{_FLOAT_ABI_TEXTS[majority]}: they cannot be loaded into one process"
        )
        yield Check(
            name="float-abi", ok=False, expected=majority, actual=minority, path=path, layer=node.layer,
            message=text,
        )  # fmt: skip


def _isa_check(
    platform: Platform, path: str, node: FileNode, problem: str, *, is_failure: bool = True
) -> Check:
    options = platform.baseline_build_options
    hint = f"build it for the baseline of {platform}: {' or '.join(options)}" if options else ""
    return Check(
        name="instruction-set", ok=not is_failure, warning=not is_failure, expected=str(platform),
        actual=problem.partition(";")[0], path=path, layer=node.layer,
        message=f"{platform}: {path} {problem}", hint=hint if is_failure else "",
    )  # fmt: skip


def _count_paths(paths: list[str], description: str) -> str:
    return f"{len(paths)} {description} (such as {paths[0]})" if paths else ""
