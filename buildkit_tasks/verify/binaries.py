"""Every program, library and object of a platform's file system: machine, instruction set, float ABI."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field, replace
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
from buildkit_tasks.verify.entrypoint import describe_mismatch, find_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from buildkit_tasks.oci.layers.rootfs import FileNode, ResolvedPath, RootFs
    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = ["check_binaries", "check_loaded_isa", "compile_globs"]

_MAX_LISTED = 100  # failing files that are named one by one


def compile_globs(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path matches one of the globs, in which ``*`` goes across slashes."""
    rooted_patterns = (pattern if pattern.startswith(("/", "*")) else f"*/{pattern}" for pattern in patterns)
    regexes = [re.compile(fnmatch.translate(pattern)) for pattern in rooted_patterns]
    return lambda path: any(regex.match(path) for regex in regexes)


def check_binaries(
    platform: Platform,
    rootfs: RootFs,
    is_allowed: Callable[[str], bool],
    already_reported: frozenset[str] = frozenset(),
) -> Iterator[Check]:
    """The checks ``binaries``, ``instruction-set`` and ``float-abi`` of one platform's file system.

    A file of another machine, or one that needs more than the platform promises, is a failing check
    of its own, with its path and its layer, unless its path is ``allowed``, or ``told`` already. Files
    of the machines that no kernel starts (BPF, GPUs) are not compared.
    """
    machine = find_machine(platform)
    if machine is None:
        return  # what it starts fails for that; see programs.py
    counts = _BinaryCounts(platform=platform, machine=machine)
    for path, node in iter_nodes(rootfs.root):
        shown_path = printable_path(path) if node.binary is not None or node.binary_error else ""
        if shown_path and shown_path not in already_reported:
            counts.add_file(shown_path, node, is_allowed=is_allowed)
    yield from counts.iter_checks()


def check_loaded_isa(platform: Platform, loaded: Sequence[ResolvedPath]) -> Iterator[Check]:
    """The check ``instruction-set`` of just these files: a program and what is loaded with it."""
    for path, node in {file.path: file.node for file in loaded}.items():
        for problem in isa_problems(platform, node.binary) if node.binary is not None else ():
            yield _isa_check(platform, path, node, problem)


@dataclass(kw_only=True)
class _BinaryCounts:
    """What was found in one platform's files."""

    platform: Platform
    machine: Machine
    matching: int = 0
    evidence_sources: Counter[str] = field(default_factory=Counter)
    without_isa_info: int = 0
    allowed_foreign: list[str] = field(default_factory=list)
    device_code: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    wrong_machine: list[tuple[str, FileNode]] = field(default_factory=list)
    above_baseline: list[tuple[str, FileNode, str]] = field(default_factory=list)
    maybe_above_baseline: list[tuple[str, FileNode, str]] = field(default_factory=list)
    float_abis: dict[str, list[tuple[str, FileNode]]] = field(default_factory=dict)

    def add_file(self, path: str, node: FileNode, *, is_allowed: Callable[[str], bool]) -> None:
        binary = node.binary
        if binary is None:
            self.unreadable.append((path, node.binary_error))
        elif binary.header.machine is self.machine:
            self.matching += 1
            self._add_matching(path, node, binary, is_allowed=is_allowed)
        elif is_allowed(path):
            self.allowed_foreign.append(path)
        elif binary.header.is_device_code:
            self.device_code.append(path)
        else:
            self.wrong_machine.append((path, node))

    def _add_matching(
        self, path: str, node: FileNode, binary: Binary, *, is_allowed: Callable[[str], bool]
    ) -> None:
        self.damaged += [
            (path, flaw) for flaw in (binary.exec_error, *binary.problems, *binary.unread_parts) if flaw
        ]
        if missing_isa_info_reason(binary):
            self.without_isa_info += 1
        else:
            self.evidence_sources.update({evidence.source for evidence in binary.evidence})
        problems, warnings = isa_problems(self.platform, binary), isa_warnings(self.platform, binary)
        if (problems or warnings) and not is_allowed(path):
            self.above_baseline += [(path, node, problem) for problem in problems]
            self.maybe_above_baseline += [(path, node, warning) for warning in warnings]
        if binary.is_dynamic and (abi := arm_float_abi(binary)):
            self.float_abis.setdefault(abi, []).append((path, node))

    def iter_checks(self) -> Iterator[Check]:
        yield from self._check_machines()
        yield from self._check_instruction_sets()
        yield from self._check_float_abis()

    def _check_machines(self) -> Iterator[Check]:
        for path, node in self.wrong_machine[:_MAX_LISTED]:
            assert node.binary is not None  # noqa: S101 - for the type checker; see add
            yield Check(
                name="binaries", ok=False, expected=self.machine.architecture,
                actual=node.binary.header.machine_name, path=path, layer=node.layer,
                message=describe_mismatch(self.platform, self.machine, node.binary.header, path),
            )  # fmt: skip
        yield from _omitted_check(
            "binaries", len(self.wrong_machine), f"files are not made for {self.machine.architecture}"
        )
        for path, flaw in self.unreadable[:_MAX_LISTED]:
            text = f"{path} starts like an ELF file and cannot be read as one: {flaw}"
            yield Check(name="binaries", ok=True, warning=True, path=path, message=text)
        for path, flaw in self.damaged[:_MAX_LISTED]:
            text = f"{path} is not sound, or was not read whole: {flaw}"
            yield Check(name="binaries", ok=True, warning=True, path=path, message=text)
        if not self.wrong_machine:
            count_text = pluralise(self.matching, "binary", "binaries")
            yield Check(name="binaries", ok=True, message=f"{count_text}{self._describe_exceptions()}")

    def _describe_exceptions(self) -> str:
        parts = [
            f"{len(paths)} {label} (such as {paths[0]})"
            for paths, label in (
                (self.allowed_foreign, "foreign and allowed"),
                (self.device_code, "for other processors"),
            )
            if paths
        ]
        return "".join(f", {part}" for part in parts)

    def _check_instruction_sets(self) -> Iterator[Check]:
        baseline = str(self.platform)
        yield from (_isa_check(self.platform, *entry) for entry in self.above_baseline[:_MAX_LISTED])
        for entry in self.maybe_above_baseline[:_MAX_LISTED]:
            yield replace(_isa_check(self.platform, *entry), ok=True, warning=True)
        yield from _omitted_check(
            "instruction-set", len(self.above_baseline), f"binaries need more than {baseline} promises"
        )
        if not self.above_baseline and self.matching:
            yield Check(name="instruction-set", ok=True, expected=baseline, message=self._describe_evidence())

    def _describe_evidence(self) -> str:
        """What the files say of themselves; what says nothing proves nothing."""
        sources_text = ", ".join(
            f"{source} in {count}" for source, count in sorted(self.evidence_sources.items())
        )
        missing_text = f"none in {self.without_isa_info} of {self.matching}, which proves nothing"
        return "; ".join(
            part for part in (sources_text, missing_text if self.without_isa_info else "") if part
        )

    def _check_float_abis(self) -> Iterator[Check]:
        if len(self.float_abis) < 2:  # noqa: PLR2004 - one kind beside another
            return
        minority, majority = sorted(self.float_abis, key=lambda abi: len(self.float_abis[abi]))[:2]
        path, node = self.float_abis[minority][0]
        example = self.float_abis[majority][0][0]
        text = (
            f"{self.platform}: {path} passes floating-point numbers {_FLOAT_ABI_TEXTS[minority]}, {example} "
            f"{_FLOAT_ABI_TEXTS[majority]}: they cannot be loaded into one process"
        )
        yield Check(
            name="float-abi",
            ok=False,
            expected=majority,
            actual=minority,
            path=path,
            layer=node.layer,
            message=text,
        )


def _isa_check(platform: Platform, path: str, node: FileNode, problem: str) -> Check:
    return Check(
        name="instruction-set", ok=False, expected=str(platform), actual=problem.partition(";")[0],
        path=path, layer=node.layer,
        message=f"{platform}: {path} {problem}",
    )  # fmt: skip


_FLOAT_ABI_TEXTS = {
    "hard": "in registers of the FPU (hard float)",
    "soft": "in integer registers (soft or softfp)",
}


def _omitted_check(name: str, count: int, description: str) -> Iterator[Check]:
    if count > _MAX_LISTED:
        yield Check(name=name, ok=False, message=f"{count - _MAX_LISTED} more {description}")
