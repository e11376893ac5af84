"""Run ``docker buildx create``, ``inspect`` and ``rm`` for one builder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import BUILDER_NAME_PATTERN, cache_folder
from buildkit_tasks.errors import BuilderError, DeadlineExceeded, UsageError
from buildkit_tasks.host.builder.assignment import infer_native_platform
from buildkit_tasks.host.builder.native_platforms import NativePlatformStore
from buildkit_tasks.host.builder.spec import MANAGED_DRIVERS, BuilderSpec, NodeSpec
from buildkit_tasks.host.builder.store import BuilderRecord, parse_inspect_output, read_record, record_path
from buildkit_tasks.host.engine.daemon import docker_config_folder, is_docker_config_closed
from buildkit_tasks.system.csv_fields import format_csv_row
from buildkit_tasks.system.files import explain_unwritable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.report.model import BuilderSummary
    from buildkit_tasks.system.command import CommandResult, CommandRunner

__all__ = ["INSPECT_SECONDS", "Buildx", "create_args", "entitlement_flag", "fix_platforms_args", "leave_args"]

INSPECT_SECONDS = 30.0
_BOOTSTRAP_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Buildx:
    """The buildx client of one engine, and its store of builders."""

    engine: Engine
    settings: Settings
    commands: CommandRunner

    @cached_property
    def native_platforms(self) -> NativePlatformStore:
        """The cached platforms of the nodes' machines."""
        return NativePlatformStore.for_store(
            self.record_path(self.settings.name).parent, cache_folder(self.settings)
        )

    def run_command(
        self, *arguments: str, timeout: float = _BOOTSTRAP_SECONDS, mutates: bool = True
    ) -> CommandResult:
        """Run ``docker buildx`` with these arguments; a dry run only shows commands that ``mutate``."""
        argv = [*self.engine.tools.buildx, *arguments]
        return self.commands.run(argv, self.engine.command_options(timeout=timeout), mutates=mutates)

    def record_path(self, name: str) -> Path:
        """Return the path of the file in which buildx stores a builder."""
        return record_path(name, self.engine.env)

    def check_store(self) -> None:
        """Raise :class:`BuilderError` if buildx cannot use its directories, which every build needs."""
        if is_docker_config_closed():
            raise BuilderError(
                f"docker cannot read its configuration: {docker_config_folder()}: permission denied; "
                "set DOCKER_CONFIG to a folder of your own",
                hint='export DOCKER_CONFIG="$(mktemp -d)"',
            )
        folder = self.record_path(self.settings.name).parent.parent
        if reason := explain_unwritable(folder):
            raise BuilderError(
                f"buildx cannot write its store: {folder}: {reason}; "
                "set BUILDX_CONFIG to a folder of your own",
                hint='export BUILDX_CONFIG="$(mktemp -d)"',
            )

    def read_record(self, name: str) -> BuilderRecord | None:
        """Return what buildx stores about a builder, or None."""
        return read_record(self.record_path(name))

    def find(self, name: str) -> BuilderSummary | None:
        """Return the builder of that name as buildx describes it, or None."""
        if not BUILDER_NAME_PATTERN.match(name):
            hint = "use letters, digits, '.', '_' and '-'"
            raise UsageError(f"{name!r} is not a valid builder name", hint=hint)
        record = self.read_record(name)
        # Reading buildx's store is faster than running buildx.
        if name not in ("default", self.engine.context) and record is None:
            return None
        result = self.run_command("inspect", name, timeout=INSPECT_SECONDS, mutates=False)
        if not result.ok and "no builder" in result.stderr:
            return None
        if not result.ok:
            raise BuilderError(
                f"buildx cannot read builder {name!r}: {result.reason}",
                hint=f"check {self.record_path(name)}",
            )
        return self._add_platforms(parse_inspect_output(result.stdout), record)

    def _add_platforms(self, builder: BuilderSummary, record: BuilderRecord | None) -> BuilderSummary:
        """Set the fixed platforms and the native platform of each node, which buildx does not print."""
        fixed_by_node = {node.name: node.platforms for node in record.nodes} if record else {}
        native_by_node = self.native_platforms.read(builder.name)
        # The engine's own builder runs on the engine's machine.
        engine_platform = str(self.engine.platform) if builder.driver == "docker" else ""
        nodes = []
        for node in builder.nodes:
            fixed_node = replace(node, fixed=fixed_by_node.get(node.name, ()))
            native = engine_platform or native_by_node.get(node.name) or infer_native_platform(fixed_node)
            nodes.append(replace(fixed_node, native=native))
        return replace(builder, nodes=tuple(nodes))

    def remove(self, name: str, *, keep_state: bool = False) -> bool:
        """Remove the builder of that name and check that it is gone; return whether there was one."""
        builder = self.find(name)
        if builder is None or builder.driver == "docker":
            return False
        options = ["--keep-state"] if keep_state else []
        try:
            reason = self.run_command("rm", "--force", *options, name).reason
        except DeadlineExceeded as error:
            reason = error.message  # it may be removed nevertheless
        if not self.commands.dry_run:
            if self.find(name) is not None:
                raise BuilderError(
                    f"builder {name!r} could not be removed: {reason}", hint=f"docker buildx rm {name}"
                )
            self.native_platforms.remove(name)
        return True


def create_args(
    spec: BuilderSpec, node: NodeSpec, driver: str, config_path: str, *, first: bool
) -> list[str]:
    """Return the arguments that create one node; ``config_path`` is its buildkitd.toml, or empty.

    A builder without named nodes is booted at once; named nodes are booted together, after the last one
    is created.
    """
    return [
        "create",
        f"--name={spec.name}",
        *([] if first else ["--append"]),
        f"--driver={driver}",
        *([f"--node={node.name}"] if node.name else []),
        *(f"--driver-opt={format_csv_row([option])}" for option in spec.driver_opts_for(node)),
        *(_buildkitd_args(spec, config_path) if driver in MANAGED_DRIVERS else ()),
        *([] if spec.nodes else ["--bootstrap"]),
        *(["--", node.endpoint] if node.endpoint else []),
    ]


def _buildkitd_args(spec: BuilderSpec, config_path: str) -> Iterator[str]:
    if config_path:
        yield f"--buildkitd-config={config_path}"
    if spec.entitlements:
        yield f"--buildkitd-flags={' '.join(map(entitlement_flag, spec.entitlements))}"


def entitlement_flag(name: str) -> str:
    """Return the option of buildkitd that allows builds to request an entitlement."""
    return f"--allow-insecure-entitlement={name}"


def fix_platforms_args(builder: str, node: str, endpoint: str, platforms: Sequence[str]) -> list[str]:
    """Return the arguments that fix the platforms of an existing node."""
    options = [f"--name={builder}", "--append", f"--node={node}"]
    return ["create", *options, f"--platform={','.join(platforms)}", "--", endpoint]


def leave_args(builder: str, node: str) -> list[str]:
    """Return the arguments that remove a node from a builder, without stopping it."""
    return ["create", f"--name={builder}", "--leave", f"--node={node}"]
