"""Build one image on several nodes: one build for each platform, on its node, joined afterwards.

buildx itself can join the parts of several nodes only in a registry ("oci for multi-node builds currently
not supported"). Here each platform is a build of its own. buildx gives it to the node on which the platform
is fixed (:mod:`buildkit_tasks.host.builder.assignment`).

======================= =================================== ============================================
output                  each platform's build writes        then
======================= =================================== ============================================
oci, docker (also load) an OCI archive in a temporary       they are joined into one archive, which is
                        folder                              renamed to ``dest`` or loaded
local                   ``dest/linux_arm64`` and so on      nothing
image, registry (push)  the registry, by digest             an index of the parts is pushed by digest
push, with an archive   nothing                             the joined archive is pushed by digest
of the same packing
tar                     refused: tar files cannot be joined
======================= =================================== ============================================

Parts are independent. What happens to a part that fails, once all others have ended:

========================================= ======================= ======================================
failure                                   ``--fallback=emulate``  result
========================================= ======================= ======================================
every node with a failed part was lost    yes                     the failed parts are built again on
                                                                  the remaining nodes, once
every node with a failed part was lost    no                      :class:`BuilderError`
a part failed on a node that is not lost  yes or no               the first part's error
========================================= ======================= ======================================
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.execute import write_metadata
from buildkit_tasks.build.outputs import (
    OutputSpec,
    find_pushable_archive,
    list_names,
    make_archive_output,
    make_digest_output,
)
from buildkit_tasks.errors import BuilderError, BuildFailed, BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.host.builder import assign_nodes
from buildkit_tasks.system.files import replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from buildkit_tasks.build.execute import BuildExecution
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.host.builder import Assignment
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuilderSummary, BuildResult

    BuildxMetadata = Mapping[str, Any]

__all__ = ["MultiNodeBuild", "needs_multi_node"]

_MAX_PARALLEL_BUILDS = 8  # processes of buildx; the nodes do the work
_ARCHIVE_TYPES = ("oci", "docker")
_LOAD_SECONDS = 600


def needs_multi_node(builder: BuilderSummary, platforms: Sequence[Platform]) -> bool:
    """Return True if these platforms are built on more than one node."""
    return len(builder.nodes) > 1 and len({each.node for each in assign_nodes(platforms, builder)}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiNodeBuild:
    """A build on several nodes.

    ``drop_nodes`` removes nodes from the builder, by name, and returns the builder that remains;
    ``fallback`` allows it.
    """

    build: BuildExecution
    drop_nodes: Callable[[BuilderSummary, Sequence[str]], BuilderSummary]
    fallback: bool = False

    def execute(self) -> BuildResult:
        """Build and join all parts. See :meth:`.BuildExecution.execute` for the result and the errors."""
        start_time = time.monotonic()
        build, request = self.build, self.build.request
        outputs = (*request.outputs, *((OutputSpec(type="docker"),) if request.load else ()))
        _check_joinable(outputs)
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            plan = _PartsPlan(build=build, outputs=outputs, folder=Path(folder))
            parts = self._build_all_parts(plan)
            digest = plan.join_parts(parts)
        if not build.commands.dry_run:
            write_metadata(request, _merge_metadata(digest, parts))
        return build.make_result(tuple(parts), outputs, digest, start_time)

    def _build_all_parts(self, plan: _PartsPlan) -> dict[Assignment, BuildxMetadata]:
        """Return buildx's metadata of every part, in the order of the request's platforms."""
        platforms = self.build.request.platforms
        parts, errors = plan.build_parts(assign_nodes(platforms, self.build.builder), self.build)
        if errors:
            remaining_builder = self._drop_lost_nodes(errors)
            reassigned = assign_nodes([each.platform for each in errors], remaining_builder)
            rebuilt, errors = plan.build_parts(reassigned, replace(self.build, builder=remaining_builder))
            if errors:
                raise next(iter(errors.values()))
            parts |= rebuilt
        return dict(sorted(parts.items(), key=lambda part: platforms.index(part[0].platform)))

    def _drop_lost_nodes(self, errors: Mapping[Assignment, BuildkitTasksError]) -> BuilderSummary:
        """Return the builder without the nodes that were lost; raise if the failed parts must not move."""
        lost_nodes = {each.node: error for each, error in errors.items() if isinstance(error, BuilderError)}
        if not self.fallback or lost_nodes.keys() != {each.node for each in errors}:
            raise next(iter(errors.values()))
        for error in lost_nodes.values():
            self.build.notify(f"{error.message}; the other nodes emulate its platforms")
        return self.drop_nodes(self.build.builder, tuple(lost_nodes))


@dataclass(frozen=True, slots=True, kw_only=True)
class _PartsPlan:
    """What each platform's build writes, and how the parts become one image: see this module's tables."""

    build: BuildExecution
    outputs: tuple[OutputSpec, ...]
    folder: Path

    def build_parts(
        self, assignments: Sequence[Assignment], build: BuildExecution
    ) -> tuple[dict[Assignment, BuildxMetadata], dict[Assignment, BuildkitTasksError]]:
        """Build some parts, several at once; return buildx's metadata of each, and the errors."""
        with ThreadPoolExecutor(max_workers=_MAX_PARALLEL_BUILDS) as pool:
            try:
                results = list(pool.map(lambda each: self._build_part(each, build), assignments))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                build.commands.interrupt()
                raise Interrupted("interrupted; the running builds were stopped") from None
        pairs = list(zip(assignments, results, strict=True))
        errors = {each: value for each, value in pairs if isinstance(value, BuildkitTasksError)}
        return {each: value for each, value in pairs if not isinstance(value, BuildkitTasksError)}, errors

    def _build_part(
        self, assignment: Assignment, build: BuildExecution
    ) -> BuildxMetadata | BuildkitTasksError:
        platform = assignment.platform
        outputs = self._make_part_outputs(platform)
        request = replace(
            build.request, platforms=(platform,), tags=(), load=False, metadata_file="", iidfile=""
        )
        label = f"{platform} on {assignment.node}"
        try:
            return build.run_buildx(_add_default_provenance(request, outputs), outputs, label=label)
        except BuilderError as error:
            return _node_lost_error(assignment, error)
        except BuildkitTasksError as error:
            error.platform = error.platform or platform
            return error

    @property
    def _pushed_archive(self) -> Path | None:
        return find_pushable_archive(self.outputs)

    def _make_part_outputs(self, platform: Platform) -> tuple[OutputSpec, ...]:
        """Return the outputs of one platform's build. A push is last: buildx reports the last digest."""
        part_outputs = (
            self._make_part_output(number, output, platform)
            for number, output in enumerate(self.outputs)
            if not (output.is_pushed and self._pushed_archive is not None)
        )
        return tuple(sorted(part_outputs, key=lambda part: part.is_pushed))

    def _make_part_output(self, number: int, output: OutputSpec, platform: Platform) -> OutputSpec:
        if output.is_pushed:
            return make_digest_output(output, self.build.repositories)
        if output.type in _ARCHIVE_TYPES:
            return make_archive_output(output, self._archive_path(number, platform), self.build.request.tags)
        if output.dest is not None:  # a folder, named as by BuildKit for several platforms
            return output.with_attribute("dest", str(output.dest / str(platform).replace("/", "_")))
        return output

    def _archive_path(self, number: int, platform: Platform) -> Path:
        return self.folder / f"{number}-{platform.slug}.tar"

    def join_parts(self, parts: Mapping[Assignment, BuildxMetadata]) -> str:
        """Join the parts for each output; return the digest of their index, or "" if there is none.

        In a dry run only show which archive would be pushed.
        """
        if self.build.commands.dry_run:
            return "" if self._pushed_archive is None else self.build.push_archive(self._pushed_archive)
        platforms = [each.platform for each in parts]
        digest = ""
        for number, output in enumerate(self.outputs):
            if output.type in _ARCHIVE_TYPES:
                digest = self._join_archives(number, output, platforms)
        repositories = self.build.repositories
        if self._pushed_archive is not None:
            return self.build.push_archive(self._pushed_archive)
        pushed_digests = (
            [str(part["containerimage.digest"]) for part in parts.values()] if repositories else []
        )
        for repository in repositories:
            digest = _push_platform_index(repository, pushed_digests, platforms)
        return digest

    def _join_archives(self, number: int, output: OutputSpec, platforms: Iterable[Platform]) -> str:
        """Join the archives of one output into ``dest``, or into the engine's store if it has none."""
        from buildkit_tasks.oci.copy.join import join_archives
        from buildkit_tasks.oci.reference import Reference

        archives = {platform: self._archive_path(number, platform) for platform in platforms}
        names = [str(Reference.parse(name)) for name in list_names(output, self.build.request.tags)]
        scratch = self.folder / f"{number}.tar"
        with replace_file(output.dest) if output.dest else contextlib.nullcontext(scratch) as archive:
            digest = join_archives(archives, names, archive)
            if output.is_loaded:
                _load_archive(archive, self.build)
        return str(digest)


def _check_joinable(outputs: Iterable[OutputSpec]) -> None:
    for output in outputs:
        if output.type == "tar":
            raise UsageError(
                f"output {output}: the parts of several nodes cannot be joined into one tar file",
                hint="-o type=local,dest=dist/out",
            )


def _add_default_provenance(request: BuildRequest, outputs: Sequence[OutputSpec]) -> BuildRequest:
    """Return the request with the provenance that buildx adds by default to an image of several platforms.

    BuildKit omits it from an archive of one platform unless it is requested. In a folder it would be an
    additional file, so that it is not requested if one of the outputs is a folder.
    """
    is_explicit = (
        request.no_attest
        or request.reproducible
        or request.provenance
        or any("type=provenance" in each for each in request.attest)
        or os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS", "").lower() in ("1", "t", "true")
    )
    if is_explicit or not all(output.is_file for output in outputs):
        return request
    return replace(request, provenance="mode=min")


def _merge_metadata(digest: str, parts: Mapping[Assignment, BuildxMetadata]) -> BuildxMetadata:
    """Return metadata as buildx has it for several nodes: keys of a part are ``KEY/linux/arm64``."""
    part_items = (
        (f"{key}/{assignment.platform}", value)
        for assignment, part in parts.items()
        for key, value in part.items()
    )
    return {"containerimage.digest": digest, **dict(part_items)}


def _node_lost_error(assignment: Assignment, error: BuilderError) -> BuilderError:
    reason = error.message.removeprefix(f"node {assignment.node}: ")
    return BuilderError(
        f"node {assignment.node} was lost during the build: {reason}",
        platform=assignment.platform,
        hint="start it again, or let another node emulate: --fallback=emulate",
    )


def _push_platform_index(repository: str, digests: Iterable[str], platforms: Sequence[Platform]) -> str:
    """Push one index of parts that are in the repository already; return its digest."""
    from buildkit_tasks.oci.copy.push import push_index
    from buildkit_tasks.oci.reference import Reference

    parts = [Reference.parse(f"{repository}@{digest}") for digest in digests]
    return str(push_index(parts, Reference.parse(repository), tuple(platforms)).root.digest)


def _load_archive(archive: Path, build: BuildExecution) -> None:
    argv = [*build.engine.tools.docker, "load", f"--input={archive}"]
    result = build.commands.run(argv, build.engine.command_options(timeout=_LOAD_SECONDS), mutates=True)
    if not result.ok:
        raise BuildFailed(f"docker load of the joined image failed: {result.reason}")
