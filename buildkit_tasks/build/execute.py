"""Build one image for many platforms, and say what was made and where it lies."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.cache import cache_exports, cache_imports, cache_warnings
from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.build.destinations import (
    from_outputs,
    make_platform_tag,
    parse_repositories,
    push_archive,
    read_pushed_digests,
)
from buildkit_tasks.build.failures import classify_failure
from buildkit_tasks.build.outputs import (
    OutputSpec,
    add_names,
    find_pushable_archive,
    make_archive_output,
    make_digest_output,
)
from buildkit_tasks.build.request import BuildRequest, make_buildx_argv
from buildkit_tasks.errors import BuildFailed
from buildkit_tasks.host.builder import (
    REMOTE_DRIVERS,
    Assignment,
    assign_nodes,
    parse_inspect_output,
    watch_nodes,
)
from buildkit_tasks.report.model import BuilderSummary, BuildResult, BuiltPlatform, Output
from buildkit_tasks.system.files import commit_files, remove_stale_partials, temporary_path, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.build.standin_bases import BasePlan
    from buildkit_tasks.host.builder import NodeWatchdog
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import CommandResult, CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = [
    "BuildExecution",
]

_LOCKED_REF = re.compile(r"failed to open writer: ref \S+ locked for .*: unavailable")
_LOCK_RETRIES = 2
_INSPECT_SECONDS = 30.0

# What proves a push, half a second's worth of modules.
_VERIFY_MODULES = (
    "buildkit_tasks.oci.registry.push",
    "buildkit_tasks.verify.service",
    "buildkit_tasks.run.sandbox.backend",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildExecution:
    """One request with all that it needs: engine, builder and bases."""

    request: BuildRequest
    engine: Engine
    builder: BuilderSummary
    base_plan: BasePlan
    commands: CommandRunner
    notify: Notify

    def execute(self) -> BuildResult:
        """Build, and give the digests of what was made and where it lies; no tag is named by it.

        Raises :class:`BuildFailed` with buildx's own exit status, :class:`BuilderError` for a builder
        that went away, :class:`RegistryError` for a push that was refused, :class:`LimitExceeded` on a
        full disk, :class:`UsageError` for outputs that this engine and builder cannot make. A file that
        was there before is replaced only when the build has succeeded.
        """
        start_time = time.monotonic()
        check_capabilities(self.request, self.engine, self.builder)
        for note in cache_warnings(self.request.cache_to, self.request.cache_from, os.environ):
            self.notify(note)
        outputs = self._add_load_output()
        with self._prepare_outputs(outputs) as (buildx_outputs, archive):
            metadata = self.run_buildx(self.request, buildx_outputs) if buildx_outputs else {}
            pushed_digest = self._push_archive(archive) if archive is not None else ""
        loaded_outputs = self._load_per_platform() if self._needs_load_per_platform else ()
        digest = pushed_digest or str(metadata.get("containerimage.digest", ""))
        digests = self.read_manifest_digests(outputs, digest) if digest else {}
        return BuildResult(
            digest=digest,
            outputs=(*from_outputs(outputs, self.request.tags, digest), *loaded_outputs),
            platforms=tuple(
                self._describe_platform(each, digests.get(each.platform, ""))
                for each in assign_nodes(self.request.platforms, self.builder)
            ),
            builder=self.builder.name,
            bases=self.base_plan.mode,
            seconds=round(time.monotonic() - start_time, 3),
        )

    def _push_archive(self, archive: Path) -> str:
        if self.commands.dry_run:
            self.notify(f"would put what {archive} holds into {', '.join(self.repositories)}, by its digest")
            return ""
        return push_archive(archive, self.repositories)

    @property
    def repositories(self) -> tuple[str, ...]:
        """Where a push goes, without tags, each once."""
        push_outputs = [output for output in self.request.outputs if output.is_pushed]
        references = [reference for output in push_outputs for reference in output.names or self.request.tags]
        return parse_repositories(references)

    @contextlib.contextmanager
    def _prepare_outputs(
        self, outputs: Sequence[OutputSpec]
    ) -> Iterator[tuple[tuple[OutputSpec, ...], Path | None]]:
        """The outputs as buildx is to make them, and the archive that we push ourselves, if there is one.

        An archive that is made anyway is what is pushed: one build gives one image, where BuildKit
        packs another for each output, with other attestations. Else BuildKit pushes by digest, which
        the engine's own builder cannot: for that one an archive is made.
        """
        push_outputs = [output for output in outputs if output.is_pushed]
        if not push_outputs:
            yield tuple(outputs), None
            return
        other_outputs = [add_names(output, self.request.tags) for output in outputs if not output.is_pushed]
        archive = find_pushable_archive(outputs)
        if archive is not None:
            yield tuple(other_outputs), archive
        elif self.builder.driver != "docker":
            yield (
                (*other_outputs, *(make_digest_output(output, self.repositories) for output in push_outputs)),
                None,
            )
        else:
            with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
                archive = Path(folder) / "image.tar"
                yield (
                    (*other_outputs, make_archive_output(push_outputs[0], archive, self.request.tags)),
                    archive,
                )

    @property
    def _needs_load_per_platform(self) -> bool:
        is_multi_platform = len(self.request.platforms) > 1
        return self.request.load and is_multi_platform and self.engine.store != "containerd"

    def _add_load_output(self) -> tuple[OutputSpec, ...]:
        """The request's outputs, with ``--load`` as the output that it stands for."""
        needs_load_output = self.request.load and not self._needs_load_per_platform
        return (
            (*self.request.outputs, OutputSpec(type="docker")) if needs_load_output else self.request.outputs
        )

    def run_buildx(
        self, request: BuildRequest, outputs: Sequence[OutputSpec], *, label: str = ""
    ) -> dict[str, Any]:
        """Run buildx with its files beside their places, move them there, give its metadata.

        Its lines begin with ``label``, where several builds are watched at once.
        """
        with (
            _stage_outputs(outputs, dry_run=self.commands.dry_run) as (staged_outputs, moves),
            _make_metadata_path() as metadata_path,
        ):
            build_contexts = (
                *(f"{name}={value}" for name, value in self.base_plan.contexts),
                *request.build_contexts,
            )
            # A push by digest refuses names from elsewhere: the other outputs have them already.
            tags = () if self.repositories else request.tags
            buildx_request = replace(
                request,
                outputs=staged_outputs,
                build_contexts=build_contexts,
                tags=tags,
                cache_from=cache_imports(
                    request.cache_from, request.platforms, probe_registries=self._can_query_registries
                ),
                cache_to=cache_exports(request.cache_to, request.platforms),
            )
            argv = [
                *self.engine.tools.buildx,
                *make_buildx_argv(buildx_request, self.builder.name, metadata_path),
            ]
            with _preload_modules(_VERIFY_MODULES if self.repositories else ()):
                result = self._stream_buildx(argv, label, watch_nodes(self.builder, request.platforms))
            if not result.ok:
                raise classify_failure(
                    result, self.builder, builder_down=not result.stderr and self._builder_is_down()
                )
            if self.commands.dry_run:
                return {}
            build_metadata = _read_build_metadata(metadata_path)
            for temporary, destination in moves.items():
                if not temporary.is_file():
                    raise BuildFailed(f"buildx says that it succeeded, and did not write {destination}")
            commit_files(moves)
        if request.metadata_file:
            write_atomically(Path(request.metadata_file), json.dumps(build_metadata, indent=2) + "\n")
        return build_metadata

    @property
    def _can_query_registries(self) -> bool:
        """Whether a registry may be asked for the builder; on another machine its name may mean another."""
        return not self.commands.dry_run and self.builder.driver not in REMOTE_DRIVERS

    def _builder_is_down(self) -> bool:
        """Whether a node of the builder no longer runs: on a terminal buildx's words are not ours to read."""
        if self.builder.driver == "docker":
            return False
        argv = [*self.engine.tools.buildx, "inspect", self.builder.name]
        result = self.commands.run(argv, self.engine.command_options(timeout=_INSPECT_SECONDS))
        return result.ok and any(
            node.status != "running" for node in parse_inspect_output(result.stdout).nodes
        )

    def _stream_buildx(self, argv: Sequence[str], label: str, watchdog: NodeWatchdog | None) -> CommandResult:
        """Run buildx; once or twice more if BuildKit stood in its own way.

        Platforms with an equal layer pack it at the same time, and the engine's store lets one of them
        write: the others fail. What was packed by then is found the next time.
        """
        result = self.commands.stream(argv, self.engine.command_options(watch=watchdog), label=label)
        for _ in range(_LOCK_RETRIES):
            if result.ok or not _LOCKED_REF.search(result.stderr):
                break
            self.notify("two platforms packed an equal layer at once, which BuildKit cannot do: trying again")
            result = self.commands.stream(argv, self.engine.command_options(watch=watchdog), label=label)
        return result

    def _load_per_platform(self) -> tuple[Output, ...]:
        """Load each platform under a tag of its own: a classic store keeps one for each tag."""
        self.notify(
            "this engine's image store keeps one platform for each tag: loading one tag for each platform"
        )
        loaded_outputs: list[Output] = []
        for platform in self.request.platforms:
            tags = tuple(make_platform_tag(tag, platform) for tag in self.request.tags)
            platform_request = replace(self.request, platforms=(platform,), tags=tags, metadata_file="")
            self.run_buildx(platform_request, (OutputSpec(type="docker"),))
            self.notify(f"loaded {', '.join(tags)}")
            loaded_outputs.extend(Output(type="docker", ref=tag) for tag in tags)
        return tuple(loaded_outputs)

    def read_manifest_digests(self, outputs: Sequence[OutputSpec], digest: str) -> dict[Platform, str]:
        """The digest of each platform's manifest, from the first output that can be read back."""
        from buildkit_tasks.oci.image import open_image, platform_manifests

        archives = [output.dest for output in outputs if output.type == "oci" and output.is_file]
        if archives:
            with open_image(f"oci-archive:{archives[0]}") as source:
                return {
                    platform: str(descriptor.digest) for platform, descriptor in platform_manifests(source)
                }
        if self.repositories:
            return read_pushed_digests(self.repositories[0], digest)
        if any(output.is_loaded for output in outputs):
            return self._read_stored_digests(self.request.tags[0])
        return {}

    def _describe_platform(self, assignment: Assignment, digest: str) -> BuiltPlatform:
        return BuiltPlatform(
            platform=str(assignment.platform),
            digest=digest,
            node=assignment.node,
            native=assignment.is_native,
        )

    def _read_stored_digests(self, name: str) -> dict[Platform, str]:
        from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image

        return available_manifests(inspect_image(connect_client(self.engine), name) or {})


@contextlib.contextmanager
def _preload_modules(extra_modules: Sequence[str]) -> Iterator[None]:
    """Import, while buildx works and this process waits, what reads and shows its result, and ``more``."""
    names = ("buildkit_tasks.oci.image", "rich.table", "rich.console", *extra_modules)
    thread = threading.Thread(target=lambda: [importlib.import_module(module_name) for module_name in names])
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def _stage_outputs(
    outputs: Sequence[OutputSpec], *, dry_run: bool
) -> Iterator[tuple[tuple[OutputSpec, ...], dict[Path, Path]]]:
    """The outputs with files named beside their places, and the moves that put them there."""
    paths = [output.dest for output in outputs if output.is_file and output.dest is not None]
    moves = {temporary_path(path): path for path in paths}
    temporary_names = {path: str(partial) for partial, path in moves.items()}
    staged_outputs = tuple(
        output.with_attribute("dest", temporary_names[output.dest])
        if output.dest in temporary_names
        else output
        for output in outputs
    )
    if not dry_run:
        for output in outputs:
            if output.dest is not None:
                output.dest.parent.mkdir(parents=True, exist_ok=True)
                remove_stale_partials(output.dest)
    try:
        yield staged_outputs, moves
    finally:
        for partial in moves:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _make_metadata_path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        yield Path(folder) / "metadata.json"


def _read_build_metadata(path: Path) -> dict[str, Any]:
    """What buildx says it made. A success without it is none: exit status *and* a result."""
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildFailed(f"buildx wrote metadata that cannot be read: {error}") from error
    return metadata
