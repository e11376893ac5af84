"""Diagnose what the tasks need on this host: engine, builder, emulators, sandbox, Docker Hub."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.settings import writable_cache_folder
from buildkit_tasks.errors import BuilderError, CacheError
from buildkit_tasks.hints import translate_commands
from buildkit_tasks.host.builder import BuilderManager, is_remote
from buildkit_tasks.host.emulation.emulators import EmulatorManager, repair_command
from buildkit_tasks.host.engine import Engine, find_clients, find_engine
from buildkit_tasks.host.provisioned import find_old_packages
from buildkit_tasks.run.sandbox.availability import explain_unavailable
from buildkit_tasks.run.sandbox.cgroups import find_cgroup_parents
from buildkit_tasks.run.sandbox.supervisor import KernelRefusal, Supervisor
from buildkit_tasks.system.reachability import is_registry_reachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.errors import BuildkitTasksError
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["Diagnosis", "Finding", "diagnose_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was checked; ``next`` is the command that fixes it."""

    name: str
    ok: bool
    message: str
    next: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All findings."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Return True if nothing is missing."""
        return all(finding.ok for finding in self.findings)

    @property
    def next(self) -> str:
        """Return the one next command."""
        return next((finding.next for finding in self.findings if not finding.ok), "inv build-multiarch")

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document."""
        findings = [
            asdict(replace(finding, next=translate_commands(finding.next))) for finding in self.findings
        ]
        return {"ok": self.ok, "findings": findings, "next": translate_commands(self.next)}

    def to_text(self) -> str:
        """Return one line for each finding, and the next command."""
        width = max(len(finding.name) for finding in self.findings)
        rows = (
            f"{'ok     ' if each.ok else 'MISSING'}  {each.name:{width}}  {each.message}"
            for each in self.findings
        )
        return "\n".join((*rows, f"try: {translate_commands(self.next)}"))


def diagnose_environment(pipeline: Pipeline) -> Diagnosis:
    """Check cache, engine, builder, emulators, sandbox and Docker Hub.

    Nothing is downloaded, started or changed. A cache that can be written is not among the findings.
    """
    try:
        writable_cache_folder(pipeline.settings)
    except CacheError as error:
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            diagnosis = _diagnose(replace(pipeline, settings=replace(pipeline.settings, cache=folder)))
        return Diagnosis(findings=(_missing("cache", error), *diagnosis.findings))
    return _diagnose(pipeline)


def _diagnose(pipeline: Pipeline) -> Diagnosis:
    if is_remote(pipeline.settings):
        return Diagnosis(
            findings=(_check_remote_builder(pipeline), _check_sandbox(), *_check_packages(pipeline))
        )
    engine = find_engine(pipeline.settings, pipeline.commands)
    if not isinstance(engine, Engine):
        local_emulators = EmulatorManager.for_host(pipeline.settings, pipeline.commands, pipeline.notify)
        return Diagnosis(
            findings=(
                _missing("engine", engine),
                *_check_emulators(pipeline, local_emulators),
                _check_sandbox(),
                *_check_packages(pipeline),
            )
        )
    engine_finding = Finding(name="engine", ok=True, message=_describe_engine(engine))
    emulators = EmulatorManager(
        engine=engine, settings=pipeline.settings, commands=pipeline.commands, notify=pipeline.notify
    )
    return Diagnosis(
        findings=(
            engine_finding,
            _check_builder(pipeline, engine),
            *_check_emulators(pipeline, emulators),
            _check_sandbox(),
            *_check_packages(pipeline),
            _check_registry(engine),
        )
    )


def _missing(name: str, error: BuildkitTasksError) -> Finding:
    return Finding(name=name, ok=False, message=error.message, next=error.hint or "")


def _describe_engine(engine: Engine) -> str:
    return f"{engine.kind} {engine.version} at {engine.endpoint}, {engine.store} image store"


def _check_remote_builder(pipeline: Pipeline) -> Finding:
    """Check a builder whose BuildKit runs on other machines, and whether its nodes can be reached."""
    engine = find_clients(pipeline.settings, pipeline.commands)
    if not isinstance(engine, Engine):
        return _missing("builder", engine)
    builders = _create_builder_manager(pipeline, engine)
    unreachable = builders.node_manager.unreachable(builders.spec.nodes)
    if unreachable:
        message = "; ".join(f"node {name}: {reason}" for name, reason in unreachable.items())
        return Finding(name="builder", ok=False, message=message, next="start BuildKit on that machine")
    name = pipeline.settings.name
    builder = builders.find(name)
    if builder is None:
        return Finding(name="builder", ok=False, message=f"there is no {name}", next="inv setup-builder")
    return _check_builder_nodes(builder)


def _create_builder_manager(pipeline: Pipeline, engine: Engine) -> BuilderManager:
    return BuilderManager(
        engine=engine, settings=pipeline.settings, commands=pipeline.commands, notify=pipeline.notify
    )


def _check_builder_nodes(builder: BuilderSummary) -> Finding:
    """Check that buildx reaches every node of a builder."""
    node_errors = [
        f"node {node.name} cannot be reached: {node.error}" for node in builder.nodes if node.error
    ]
    nodes = ", ".join(f"{node.name} {node.status}" for node in builder.nodes)
    message = "; ".join(node_errors) or f"{builder.name} ({builder.driver}): {nodes}"
    return Finding(
        name="builder",
        ok=not node_errors,
        message=message,
        next="check that machine" if node_errors else "",
    )


def _check_builder(pipeline: Pipeline, engine: Engine) -> Finding:
    name = pipeline.settings.name
    builders = _create_builder_manager(pipeline, engine)
    try:
        builders.buildx.check_store()
    except BuilderError as error:
        return _missing("builder", error)
    builder = builders.find(name)
    if builder is not None:
        return _check_builder_nodes(builder)
    if engine.store == "containerd":
        return Finding(name="builder", ok=True, message=f"no {name}; the engine's own builder is used")
    return Finding(name="builder", ok=False, message=f"there is no {name}", next="inv setup-builder")


def _check_emulators(pipeline: Pipeline, emulators: EmulatorManager) -> Iterator[Finding]:
    for row in emulators.inspect(pipeline.platforms):
        handler = "native" if row.native else f"{row.handler} ({row.interpreter}, {row.flags})"
        fix = repair_command([row])
        yield Finding(
            name=row.platform, ok=row.runs, message=row.message or handler, next="" if row.runs else fix
        )


def _check_sandbox() -> Finding:
    """Check whether images run without an engine. If not, that is no problem: an engine runs them."""
    try:
        Supervisor().close()
    except KernelRefusal as refusal:
        return Finding(
            name="sandbox", ok=True, message=f"{explain_unavailable(refusal)}: images run in the engine"
        )
    memory = "limited by control groups" if find_cgroup_parents() else "counted, which is a best effort"
    return Finding(name="sandbox", ok=True, message=f"images run without an engine; their memory is {memory}")


def _check_packages(pipeline: Pipeline) -> Iterator[Finding]:
    """Tell which packages in the cache miss security updates; they work."""
    for old in find_old_packages(pipeline.settings):
        message = f"{old.names} in the cache are {old.days} days old: `inv setup-builder` fetches them again"
        yield Finding(name="packages", ok=True, message=translate_commands(message))


def _check_registry(engine: Engine) -> Finding:
    is_reachable = is_registry_reachable(engine.mirrors)
    message = (
        "Docker Hub is reachable"
        if is_reachable
        else "Docker Hub is not reachable: stand-ins replace alpine, busybox and golang"
    )
    return Finding(name="registry", ok=True, message=message)
