"""``docker buildx create`` and ``inspect`` for one builder: their arguments, and what they print."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import BUILDER_NAME, cache_folder
from buildkit_tasks.errors import BuilderError, DeadlineExceeded, UsageError
from buildkit_tasks.host.builder.assignment import native_of
from buildkit_tasks.host.builder.native_platforms import Natives
from buildkit_tasks.host.builder.spec import OWN_DAEMON, WantedBuilder, WantedNode
from buildkit_tasks.host.builder.store import Record, parse_inspect, read_record, record_of
from buildkit_tasks.system.csv_fields import write_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.report.model import BuilderSummary
    from buildkit_tasks.system.command import Completed, Runner

__all__ = ["INSPECT_SECONDS", "Buildx", "create_arguments", "entitlement", "fix_arguments", "leave_arguments"]

INSPECT_SECONDS = 30.0
_BOOTSTRAP_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Buildx:
    """The buildx of one engine, and its store."""

    engine: Engine
    settings: Settings
    run: Runner

    @cached_property
    def natives(self) -> Natives:
        """What is known of the machines of the nodes."""
        return Natives.beside(self.place(self.settings.name).parent, cache_folder(self.settings))

    def call(self, *arguments: str, timeout: float = _BOOTSTRAP_SECONDS, mutates: bool = True) -> Completed:
        """Run ``docker buildx`` with these arguments; what it changes is shown by a dry run."""
        argv = [*self.engine.tools.buildx, *arguments]
        return self.run.run(argv, self.engine.call(timeout=timeout), mutates=mutates)

    def place(self, name: str) -> Path:
        """The file in which buildx keeps a builder of that name."""
        return record_of(name, self.engine.env)

    def record(self, name: str) -> Record | None:
        """What buildx keeps of a builder of that name, or None."""
        return read_record(self.place(name))

    def find(self, name: str) -> BuilderSummary | None:
        """The builder of that name as buildx describes it, or None."""
        if not BUILDER_NAME.match(name):
            raise UsageError(f"{name!r} is no builder name", hint="letters, digits, '.', '_' and '-'")
        record = self.record(name)
        # A look into buildx's store saves starting buildx.
        if name not in ("default", self.engine.context) and record is None:
            return None
        done = self.call("inspect", name, timeout=INSPECT_SECONDS, mutates=False)
        if not done.ok and "no builder" in done.stderr:
            return None
        if not done.ok:
            raise BuilderError(
                f"buildx cannot read builder {name!r}: {done.reason}", hint=f"look into {self.place(name)}"
            )
        found = parse_inspect(done.stdout)
        fixed = {node.name: node.platforms for node in record.nodes} if record else {}
        known = self.natives.of(name)
        nodes = (replace(node, fixed=fixed.get(node.name, ())) for node in found.nodes)
        # The engine's own builder runs where the engine does.
        own = str(self.engine.native) if found.driver == "docker" else ""
        named = (replace(node, native=own or known.get(node.name) or native_of(node)) for node in nodes)
        return replace(found, nodes=tuple(named))

    def remove(self, name: str, *, keep_state: bool = False) -> bool:
        """Remove the builder of that name and confirm that it is gone; gives whether there was one."""
        found = self.find(name)
        if found is None or found.driver == "docker":
            return False
        options = ["--keep-state"] if keep_state else []
        try:
            words = self.call("rm", "--force", *options, name).reason
        except DeadlineExceeded as late:
            words = late.message  # row 16: it may be gone all the same
        if not self.run.dry_run:
            if self.find(name) is not None:
                raise BuilderError(
                    f"builder {name!r} could not be removed: {words}", hint=f"docker buildx rm {name}"
                )
            self.natives.forget(name)
        return True


def create_arguments(
    wanted: WantedBuilder, node: WantedNode, driver: str, config: str, *, first: bool
) -> list[str]:
    """Make one node; ``config`` is the file of its buildkitd.toml, if it has one.

    The only node of a builder is booted at once; several are booted together when all are there.
    """
    return [
        "create",
        f"--name={wanted.name}",
        *([] if first else ["--append"]),
        f"--driver={driver}",
        *([f"--node={node.name}"] if node.name else []),
        *(f"--driver-opt={write_row([option])}" for option in wanted.options_of(node)),
        *(_daemon(wanted, config) if driver in OWN_DAEMON else ()),
        *([] if wanted.nodes else ["--bootstrap"]),
        *(["--", node.endpoint] if node.endpoint else []),
    ]


def _daemon(wanted: WantedBuilder, config: str) -> Iterator[str]:
    if config:
        yield f"--buildkitd-config={config}"
    if wanted.allow:
        yield f"--buildkitd-flags={' '.join(map(entitlement, wanted.allow))}"


def entitlement(name: str) -> str:
    """The option of buildkitd that lets it give an entitlement to builds that ask for it."""
    return f"--allow-insecure-entitlement={name}"


def fix_arguments(builder: str, node: str, endpoint: str, platforms: Sequence[str]) -> list[str]:
    """Say which platforms are built on a node that is there."""
    named = [f"--name={builder}", "--append", f"--node={node}"]
    return ["create", *named, f"--platform={','.join(platforms)}", "--", endpoint]


def leave_arguments(builder: str, node: str) -> list[str]:
    """Take a node out of a builder; what runs on it is left alone."""
    return ["create", f"--name={builder}", "--leave", f"--node={node}"]
