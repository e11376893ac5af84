"""Look at everything that the main job needs, and change nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from buildkit_tasks.host.builder import Builders, is_elsewhere
from buildkit_tasks.host.emulation.emulators import Emulators
from buildkit_tasks.host.engine import Engine, existing_clients, existing_engine
from buildkit_tasks.run.sandbox.availability import why_closed
from buildkit_tasks.run.sandbox.supervisor import Refused, Warden
from buildkit_tasks.system.reachability import registry_answers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.pipeline.pipeline import Line
    from buildkit_tasks.report.model import BuilderSummary

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
        rows = (
            f"{'ok     ' if each.ok else 'MISSING'}  {each.name:{width}}  {each.message}"
            for each in self.findings
        )
        return "\n".join((*rows, f"next: {self.next}"))


def examine(line: Line) -> Diagnosis:
    """Look at the engine, its builder, the emulators and Docker Hub; nothing is fetched or started."""
    if is_elsewhere(line.settings):
        return Diagnosis(findings=(_remote_builder(line), _sandbox()))
    engine = existing_engine(line.settings, line.run)
    if not isinstance(engine, Engine):
        missing = Finding(name="engine", ok=False, message=engine, next="inv setup-builder")
        here = Emulators.here(line.settings, line.run, line.tell)
        return Diagnosis(findings=(missing, *_emulators(line, here), _sandbox()))
    found = Finding(name="engine", ok=True, message=_words(engine))
    emulators = Emulators(engine=engine, settings=line.settings, run=line.run, tell=line.tell)
    return Diagnosis(
        findings=(found, _builder(line, engine), *_emulators(line, emulators), _sandbox(), _registry(engine))
    )


def _words(engine: Engine) -> str:
    return f"{engine.kind} {engine.version} at {engine.endpoint}, {engine.store} image store"


def _remote_builder(line: Line) -> Finding:
    """A builder whose BuildKit no engine here runs: its nodes, and whether each is there."""
    engine = existing_clients(line.settings, line.run)
    if not isinstance(engine, Engine):
        return Finding(name="builder", ok=False, message=engine, next="inv setup-builder")
    builders = Builders(engine=engine, settings=line.settings, run=line.run, tell=line.tell)
    silent = builders.nodes.silent(builders.wanted.nodes)
    if silent:
        words = "; ".join(f"node {name}: {reason}" for name, reason in silent.items())
        return Finding(name="builder", ok=False, message=words, next="start BuildKit there")
    name = line.settings.name
    found = builders.find(name)
    if found is None:
        return Finding(name="builder", ok=False, message=f"there is no {name}", next="inv setup-builder")
    return _nodes_of(found)


def _nodes_of(found: BuilderSummary) -> Finding:
    """A builder by its nodes, of which buildx has an error to tell where it cannot reach one."""
    gone = [f"node {node.name} cannot be reached: {node.error}" for node in found.nodes if node.error]
    nodes = ", ".join(f"{node.name} {node.status}" for node in found.nodes)
    message = "; ".join(gone) or f"{found.name} ({found.driver}): {nodes}"
    return Finding(name="builder", ok=not gone, message=message, next="look at that machine" if gone else "")


def _builder(line: Line, engine: Engine) -> Finding:
    name = line.settings.name
    found = Builders(engine=engine, settings=line.settings, run=line.run, tell=line.tell).find(name)
    if found is not None:
        return _nodes_of(found)
    if engine.store == "containerd":
        return Finding(name="builder", ok=True, message=f"no {name}; the engine's own builder serves")
    return Finding(name="builder", ok=False, message=f"there is no {name}", next="inv setup-builder")


def _emulators(line: Line, emulators: Emulators) -> Iterator[Finding]:
    for row in emulators.inspect(line.platforms):
        through = "native" if row.native else f"{row.handler} ({row.interpreter}, {row.flags})"
        mend = "inv setup-builder --recreate" if row.handler else "inv setup-builder"
        yield Finding(
            name=row.platform, ok=row.runs, message=row.message or through, next="" if row.runs else mend
        )


def _sandbox() -> Finding:
    """Whether images run without an engine; where they do not, one serves."""
    try:
        Warden().close()
    except Refused as refused:
        return Finding(name="sandbox", ok=True, message=f"{why_closed(refused)}: images run in the engine")
    return Finding(name="sandbox", ok=True, message="images run without an engine")


def _registry(engine: Engine) -> Finding:
    answers = registry_answers(engine.mirrors)
    message = (
        "Docker Hub answers"
        if answers
        else "Docker Hub does not answer: stand-ins serve for alpine and golang"
    )
    return Finding(name="registry", ok=True, message=message)
