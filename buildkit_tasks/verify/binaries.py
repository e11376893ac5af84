"""Every program, library and object of a platform's file system: machine, instruction set, float ABI."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import files_of, printable_path
from buildkit_tasks.platforms.elf.isa_check import float_abi, isa_doubts, isa_problems, silence
from buildkit_tasks.report.model import Check
from buildkit_tasks.report.text import counted
from buildkit_tasks.verify.entrypoint import machine_of, mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from buildkit_tasks.oci.layers.rootfs import Found, Node, RootFs
    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = ["binary_checks", "compile_globs", "needs_checks"]

_MOST = 100  # failing files that are named one by one


def compile_globs(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a path matches one of the globs, in which ``*`` goes across slashes."""
    rooted = (pattern if pattern.startswith(("/", "*")) else f"*/{pattern}" for pattern in patterns)
    expressions = [re.compile(fnmatch.translate(pattern)) for pattern in rooted]
    return lambda path: any(expression.match(path) for expression in expressions)


def binary_checks(
    platform: Platform,
    rootfs: RootFs,
    allowed: Callable[[str], bool],
    told: frozenset[str] = frozenset(),
) -> Iterator[Check]:
    """The checks ``binaries``, ``instruction-set`` and ``float-abi`` of one platform's file system.

    A file of another machine, or one that needs more than the platform promises, is a failing check
    of its own, with its path and its layer, unless its path is ``allowed``, or ``told`` already. Files
    of the machines that no kernel starts (BPF, GPUs) are not compared.
    """
    machine = machine_of(platform)
    if machine is None:
        return  # what it starts fails for that; see programs.py
    survey = _Survey(platform=platform, machine=machine)
    for path, node in files_of(rootfs.root):
        shown = printable_path(path) if node.binary is not None or node.flaw else ""
        if shown and shown not in told:
            survey.add(shown, node, allowed=allowed)
    yield from survey.checks()


def needs_checks(platform: Platform, loaded: Sequence[Found]) -> Iterator[Check]:
    """The check ``instruction-set`` of just these files: a program and what is loaded with it."""
    for path, node in {found.path: found.node for found in loaded}.items():
        for problem in isa_problems(platform, node.binary) if node.binary is not None else ():
            yield _needing(platform, path, node, problem)


@dataclass(kw_only=True)
class _Survey:
    """What was found in one platform's files."""

    platform: Platform
    machine: Machine
    count: int = 0
    stated: Counter[str] = field(default_factory=Counter)
    silent: int = 0
    allowed: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, Node]] = field(default_factory=list)
    needing: list[tuple[str, Node, str]] = field(default_factory=list)
    doubtful: list[tuple[str, Node, str]] = field(default_factory=list)
    floats: dict[str, list[tuple[str, Node]]] = field(default_factory=dict)

    def add(self, path: str, node: Node, *, allowed: Callable[[str], bool]) -> None:
        binary = node.binary
        if binary is None:
            self.broken.append((path, node.flaw))
        elif binary.header.row is self.machine:
            self.count += 1
            self._add_right(path, node, binary, allowed=allowed)
        elif allowed(path):
            self.allowed.append(path)
        elif binary.header.is_device_code:
            self.other.append(path)
        else:
            self.wrong.append((path, node))

    def _add_right(self, path: str, node: Node, binary: Binary, *, allowed: Callable[[str], bool]) -> None:
        self.damaged += [(path, flaw) for flaw in (binary.refused, *binary.problems, *binary.unread) if flaw]
        if silence(binary):
            self.silent += 1
        else:
            self.stated.update({evidence.source for evidence in binary.evidence})
        problems, doubts = isa_problems(self.platform, binary), isa_doubts(self.platform, binary)
        if (problems or doubts) and not allowed(path):
            self.needing += [(path, node, problem) for problem in problems]
            self.doubtful += [(path, node, doubt) for doubt in doubts]
        if binary.dynamic and (abi := float_abi(binary)):
            self.floats.setdefault(abi, []).append((path, node))

    def checks(self) -> Iterator[Check]:
        yield from self._machine_checks()
        yield from self._instruction_checks()
        yield from self._float_checks()

    def _machine_checks(self) -> Iterator[Check]:
        for path, node in self.wrong[:_MOST]:
            assert node.binary is not None  # noqa: S101 - for the type checker; see add
            yield Check(
                name="binaries", ok=False, expected=self.machine.architecture,
                actual=node.binary.header.name, path=path, layer=node.layer,
                message=mismatch(self.platform, self.machine, node.binary.header, path),
            )  # fmt: skip
        yield from _rest("binaries", len(self.wrong), f"files are not made for {self.machine.architecture}")
        for path, flaw in self.broken[:_MOST]:
            text = f"{path} starts like an ELF file and cannot be read as one: {flaw}"
            yield Check(name="binaries", ok=True, warning=True, path=path, message=text)
        for path, flaw in self.damaged[:_MOST]:
            text = f"{path} is not sound, or was not read whole: {flaw}"
            yield Check(name="binaries", ok=True, warning=True, path=path, message=text)
        if not self.wrong:
            held = counted(self.count, "binary", "binaries")
            yield Check(name="binaries", ok=True, message=f"{held}{self._exceptions()}")

    def _exceptions(self) -> str:
        parts = [
            f"{len(paths)} {words} (such as {paths[0]})"
            for paths, words in ((self.allowed, "foreign and allowed"), (self.other, "for other processors"))
            if paths
        ]
        return "".join(f", {part}" for part in parts)

    def _instruction_checks(self) -> Iterator[Check]:
        promise = str(self.platform)
        yield from (_needing(self.platform, *found) for found in self.needing[:_MOST])
        for found in self.doubtful[:_MOST]:
            yield replace(_needing(self.platform, *found), ok=True, warning=True)
        yield from _rest("instruction-set", len(self.needing), f"binaries need more than {promise} promises")
        if not self.needing and self.count:
            yield Check(name="instruction-set", ok=True, expected=promise, message=self._evidence())

    def _evidence(self) -> str:
        """What the files say of themselves; what says nothing proves nothing."""
        said = ", ".join(f"{source} in {count}" for source, count in sorted(self.stated.items()))
        silent = f"none in {self.silent} of {self.count}, which proves nothing"
        return "; ".join(part for part in (said, silent if self.silent else "") if part)

    def _float_checks(self) -> Iterator[Check]:
        if len(self.floats) < 2:  # noqa: PLR2004 - one kind beside another
            return
        few, many = sorted(self.floats, key=lambda abi: len(self.floats[abi]))[:2]
        path, node = self.floats[few][0]
        example = self.floats[many][0][0]
        text = (
            f"{self.platform}: {path} passes floating-point numbers {_FLOATS[few]}, {example} "
            f"{_FLOATS[many]}: they cannot be loaded into one process"
        )
        yield Check(
            name="float-abi", ok=False, expected=many, actual=few, path=path, layer=node.layer, message=text
        )


def _needing(platform: Platform, path: str, node: Node, problem: str) -> Check:
    return Check(
        name="instruction-set", ok=False, expected=str(platform), actual=problem.partition(";")[0],
        path=path, layer=node.layer,
        message=f"{platform}: {path} {problem}",
    )  # fmt: skip


_FLOATS = {"hard": "in registers of the FPU (hard float)", "soft": "in integer registers (soft or softfp)"}


def _rest(name: str, count: int, what: str) -> Iterator[Check]:
    if count > _MOST:
        yield Check(name=name, ok=False, message=f"{count - _MOST} more {what}")
