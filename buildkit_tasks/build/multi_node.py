"""One image built on several nodes: a part for each platform, on its node, put together afterwards.

buildx joins the parts of several nodes in a registry alone ("oci for multi-node builds currently not
supported"). Here each platform is a build of its own, which buildx gives to the node that the platform is
fixed on, with outputs and a cache of its own; the parts become one archive, one index in a registry, or
a folder each. A node that goes away takes no other platform's part with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.build.destinations import from_outputs, push_archive
from buildkit_tasks.build.outputs import (
    OutputSpec,
    find_pushable_archive,
    make_archive_output,
    make_digest_output,
)
from buildkit_tasks.errors import BuilderError, BuildFailed, BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.host.builder import assign_nodes
from buildkit_tasks.report.model import BuilderSummary, BuildResult, BuiltPlatform
from buildkit_tasks.system.files import replace_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.build.execute import BuildExecution
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.host.builder import Assignment
    from buildkit_tasks.platforms import Platform

__all__ = ["MultiNodeBuild", "needs_multi_node"]

_MAX_PARALLEL_BUILDS = 8  # builds: each is a process of buildx, and the nodes do the work
_ARCHIVE_TYPES = ("oci", "docker")  # what several parts make one of


def needs_multi_node(builder: BuilderSummary, platforms: Sequence[Platform]) -> bool:
    """Whether these platforms are built on more than one node."""
    return len(builder.nodes) > 1 and len({each.node for each in assign_nodes(platforms, builder)}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiNodeBuild:
    """A build on several nodes; ``without`` gives the builder that is left when nodes are lost."""

    build: BuildExecution
    drop_nodes: Callable[[BuilderSummary, Sequence[str]], BuilderSummary]
    fallback: bool = False

    def execute(self) -> BuildResult:
        """Build every part and join them; see :meth:`buildkit_tasks.build.execute.Build.result`.

        Raises the first platform's error when all parts have ended. Where a node went away and
        ``fallback`` is set, its platforms are built on the others, emulated.
        """
        start_time = time.monotonic()
        build, request = self.build, self.build.request
        check_capabilities(request, build.engine, build.builder)
        outputs = _require_joinable(
            (*request.outputs, *((OutputSpec(type="docker"),) if request.load else ()))
        )
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            parts = _PlatformParts(
                outputs=outputs,
                folder=Path(folder),
                tags=request.tags,
                repositories=build.repositories,
                pushed_archive=find_pushable_archive(outputs),
            )
            metadata = self._build_all_parts(parts)
            digest = "" if build.commands.dry_run else str(parts.join_parts(metadata, request.tags, build))
        if request.metadata_file and not build.commands.dry_run:
            index_metadata = {"containerimage.digest": digest, **_key_by_platform(metadata)}
            write_atomically(Path(request.metadata_file), json.dumps(index_metadata, indent=2) + "\n")
        digests = build.read_manifest_digests(outputs, digest) if digest else {}
        return BuildResult(
            digest=digest,
            outputs=tuple(from_outputs(outputs, request.tags, digest)),
            platforms=tuple(
                BuiltPlatform(
                    platform=str(each.platform),
                    digest=digests.get(each.platform, ""),
                    node=each.node,
                    native=each.is_native,
                )
                for each in parts.assignments
            ),
            builder=build.builder.name,
            bases=build.base_plan.mode,
            seconds=round(time.monotonic() - start_time, 3),
        )

    def _build_all_parts(self, parts: _PlatformParts) -> dict[Platform, dict[str, Any]]:
        """Every platform's metadata; with fallback, of a second try without the nodes that went away."""
        platforms = self.build.request.platforms
        parts.assignments = assign_nodes(platforms, self.build.builder)
        metadata, errors = self._build_parts(parts, parts.assignments, self.build)
        node_errors = {each.node: error for each, error in errors.items() if isinstance(error, BuilderError)}
        if not errors:
            return metadata
        if not self.fallback or len(node_errors) != len({each.node for each in errors}):
            raise next(iter(errors.values()))
        for error in node_errors.values():
            self.build.notify(f"{error.message}; others emulate what it built")
        remaining_builder = self.drop_nodes(self.build.builder, tuple(node_errors))
        reassigned = assign_nodes([each.platform for each in errors], remaining_builder)
        completed = [each for each in parts.assignments if each not in errors]
        parts.assignments = tuple(
            sorted((*completed, *reassigned), key=lambda each: platforms.index(each.platform))
        )
        retry_metadata, errors = self._build_parts(
            parts, reassigned, replace(self.build, builder=remaining_builder)
        )
        if errors:
            raise next(iter(errors.values()))
        return {**metadata, **retry_metadata}

    def _build_parts(
        self, parts: _PlatformParts, assignments: Sequence[Assignment], build: BuildExecution
    ) -> tuple[dict[Platform, dict[str, Any]], dict[Assignment, BuildkitTasksError]]:
        """Build these parts, several at once: what buildx says of each, and what went wrong."""

        def build_part(assignment: Assignment) -> dict[str, Any] | BuildkitTasksError:
            outputs = parts.make_part_outputs(assignment.platform)
            request = replace(
                build.request, platforms=(assignment.platform,), tags=(), load=False, metadata_file=""
            )
            label = f"{assignment.platform} on {assignment.node}"
            try:
                return build.run_buildx(_add_default_provenance(request, outputs), outputs, label=label)
            except BuilderError as error:
                return _node_lost_error(assignment, error)
            except BuildkitTasksError as error:
                error.platform = error.platform or assignment.platform
                return error

        with ThreadPoolExecutor(max_workers=_MAX_PARALLEL_BUILDS) as pool:
            try:
                results = dict(zip(assignments, pool.map(build_part, assignments), strict=True))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                build.commands.interrupt()
                raise Interrupted("interrupted; the builds that ran were ended") from None
        metadata = {each.platform: value for each, value in results.items() if isinstance(value, dict)}
        errors = {each: value for each, value in results.items() if isinstance(value, BuildkitTasksError)}
        return metadata, errors


def _add_default_provenance(request: BuildRequest, outputs: Sequence[OutputSpec]) -> BuildRequest:
    """The request with the provenance that buildx gives by itself to what one node builds.

    BuildKit leaves that out of an archive of a single platform unless it is asked for. A folder would get
    a file more by it, so beside one nothing is asked for.
    """
    has_explicit_choice = request.no_attest or request.reproducible or request.provenance
    has_provenance_attest = any("type=provenance" in each for each in request.attest)
    defaults_disabled = os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS", "").lower() in ("1", "t", "true")
    if (
        has_explicit_choice
        or has_provenance_attest
        or defaults_disabled
        or not all(output.is_file for output in outputs)
    ):
        return request
    return replace(request, provenance="mode=min")


def _key_by_platform(metadata: Mapping[Platform, Mapping[str, Any]]) -> dict[str, Any]:
    """What buildx said of each part, as it writes of several nodes: ``KEY/linux/arm64``."""
    return {
        f"{key}/{platform}": value
        for platform, part_metadata in metadata.items()
        for key, value in part_metadata.items()
    }


def _node_lost_error(assignment: Assignment, error: BuilderError) -> BuilderError:
    node_prefix = f"node {assignment.node}: "
    return BuilderError(
        f"node {assignment.node} went away in mid-build: {error.message.removeprefix(node_prefix)}",
        platform=assignment.platform,
        hint="start it again, or let another node emulate: --fallback=emulate",
    )


@dataclass(kw_only=True)
class _PlatformParts:
    """What each platform's build writes, and how the parts become one."""

    outputs: tuple[OutputSpec, ...]
    folder: Path
    tags: tuple[str, ...]
    repositories: tuple[str, ...]
    pushed_archive: Path | None
    assignments: tuple[Assignment, ...] = ()

    def make_part_outputs(self, platform: Platform) -> tuple[OutputSpec, ...]:
        """The outputs of one platform's build; a push last, since buildx tells the last one's digest.

        Where an archive is made anyway, that one is pushed when it is whole.
        """
        numbered_outputs = [
            (number, output)
            for number, output in enumerate(self.outputs)
            if not (output.is_pushed and self.pushed_archive is not None)
        ]
        part_outputs = [
            self._make_part_output(number, output, platform) for number, output in numbered_outputs
        ]
        return tuple(sorted(part_outputs, key=lambda part: part.is_pushed))

    def _make_part_output(self, number: int, output: OutputSpec, platform: Platform) -> OutputSpec:
        if output.is_pushed:
            return make_digest_output(output, self.repositories)
        if output.type in _ARCHIVE_TYPES:
            return make_archive_output(output, self._make_archive_path(number, platform), self.tags)
        if output.dest is not None:  # as BuildKit names the folders of several platforms
            slug = str(platform).replace("/", "_")
            return output.with_attribute("dest", str(output.dest / slug))
        return output

    def _make_archive_path(self, number: int, platform: Platform) -> Path:
        return self.folder / f"{number}-{platform.slug}.tar"

    def join_parts(
        self, metadata: Mapping[Platform, Mapping[str, Any]], tags: Sequence[str], build: BuildExecution
    ) -> Any:
        """Make one of the parts everywhere; gives the digest of their index, empty without one."""
        digest: Any = ""
        platforms = [each.platform for each in self.assignments]
        for number, output in enumerate(self.outputs):
            if output.type not in _ARCHIVE_TYPES:
                continue
            archives = {platform: self._make_archive_path(number, platform) for platform in platforms}
            with _stage_file(output, self.folder / f"{number}.tar") as archive_path:
                digest = _join_archives(archives, [*output.names] or tags, archive_path)
                if output.type == "docker":
                    _load_archive(archive_path, build)
        if self.pushed_archive is not None:
            return push_archive(self.pushed_archive, self.repositories) if self.repositories else digest
        for repository in self.repositories:
            digest = _push_platform_index(
                repository, {each: str(metadata[each]["containerimage.digest"]) for each in platforms}
            )
        return digest


def _require_joinable(outputs: Sequence[OutputSpec]) -> tuple[OutputSpec, ...]:
    for output in outputs:
        if output.type == "tar":
            raise UsageError(
                f"output {output}: the parts of several nodes do not make one tar file",
                hint="-o type=oci,dest=FILE, or -o type=local,dest=FOLDER",
            )
    return tuple(outputs)


@contextlib.contextmanager
def _stage_file(output: OutputSpec, scratch_path: Path) -> Iterator[Path]:
    """A file to write: beside the output's own place, and moved there at the end, or a temporary one."""
    if output.dest is None:
        yield scratch_path
        return
    with replace_file(output.dest) as temporary:
        yield temporary


def _join_archives(archives: Mapping[Platform, Path], names: Sequence[str], destination: Path) -> Any:
    from buildkit_tasks.oci.copy.join import join_archives
    from buildkit_tasks.oci.reference import Reference

    return join_archives(archives, [str(Reference.parse(name)) for name in names], destination)


def _push_platform_index(repository: str, digests: Mapping[Platform, str]) -> Any:
    """One index of parts that were pushed by digest."""
    from buildkit_tasks.oci.copy.push import push_index
    from buildkit_tasks.oci.reference import Reference

    part_references = [Reference.parse(f"{repository}@{digest}") for digest in digests.values()]
    return push_index(part_references, Reference.parse(repository), tuple(digests)).root.digest


def _load_archive(archive: Path, build: BuildExecution) -> None:
    argv = [*build.engine.tools.docker, "load", f"--input={archive}"]
    result = build.commands.run(argv, build.engine.command_options(timeout=600), mutates=True)
    if not result.ok:
        raise BuildFailed(f"the engine does not load the joined image: {result.reason}")
