"""Look at everything that the main job needs, and change nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from buildkit_tasks.builder import find_builder
from buildkit_tasks.emulators import Emulators
from buildkit_tasks.engine.daemon import Engine
from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.line import Line
from buildkit_tasks.reach import registry_answers

__all__ = ["Diagnosis", "Finding", "examine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; ``next`` is the command that mends it."""

    name: str
    ok: bool
    message: str
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All findings. It is well if the main job can run as it is."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.ok for finding in self.findings)

    @property
    def next(self) -> str:
        """The one next command."""
        return next((finding.next for finding in self.findings if not finding.ok), "inv build-multiarch")

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"ok": self.ok, "findings": [asdict(finding) for finding in self.findings], "next": self.next}

    def text(self) -> str:
        """As lines."""
        width = max(len(finding.name) for finding in self.findings)
        rows = (f"{'ok     ' if each.ok else 'MISSING'}  {each.name:{width}}  {each.message}" for each in self.findings)
        return "\n".join((*rows, f"next: {self.next}"))


def examine(line: Line) -> Diagnosis:
    """Look at engine, builder, emulators and registry."""
    engine = _existing_engine(line)
    return Diagnosis(findings=tuple(_findings(line, engine)))
