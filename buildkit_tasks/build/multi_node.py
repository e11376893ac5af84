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
from buildkit_tasks.build.destinations import destinations, send_archive
from buildkit_tasks.build.outputs import OutputSpec, archive_of, as_archive, by_digest
from buildkit_tasks.errors import BuilderError, BuildFailed, BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.host.builder import assign
from buildkit_tasks.report.model import BuilderSummary, BuildResult, BuiltPlatform
from buildkit_tasks.system.files import beside, reap_partials, settle, write_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from buildkit_tasks.build.execute import Build
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.host.builder import Assignment
    from buildkit_tasks.platforms import Platform

__all__ = ["Fleet", "needs_fleet"]

_AT_ONCE = 8  # builds: each is a process of buildx, and the nodes do the work
_JOINED = ("oci", "docker")  # what several parts make one of


def needs_fleet(builder: BuilderSummary, platforms: Sequence[Platform]) -> bool:
    """Whether these platforms are built on more than one node."""
    return len(builder.nodes) > 1 and len({each.node for each in assign(platforms, builder)}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A build on several nodes; ``without`` gives the builder that is left when nodes are lost."""

    build: Build
    without: Callable[[BuilderSummary, Sequence[str]], BuilderSummary]
    fallback: bool = False

    def result(self) -> BuildResult:
        """Build every part and join them; see :meth:`buildkit_tasks.build.execute.Build.result`.

        Raises the first platform's error when all parts have ended. Where a node went away and
        ``fallback`` is set, its platforms are built on the others, emulated.
        """
        started = time.monotonic()
        build, request = self.build, self.build.request
        check_capabilities(request, build.engine, build.builder)
        outputs = _joinable((*request.outputs, *((OutputSpec(type="docker"),) if request.load else ())))
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            parts = _Parts(
                outputs=outputs,
                folder=Path(folder),
                names=request.tags,
                repositories=build.repositories,
                archive=archive_of(outputs),
            )
            done = self._all(parts)
            digest = "" if build.run.dry_run else str(parts.join(done, request.tags, build))
        if request.metadata_file and not build.run.dry_run:
            found = {"containerimage.digest": digest, **_by_platform(done)}
            write_beside(Path(request.metadata_file), json.dumps(found, indent=2) + "\n")
        digests = build.manifest_digests(outputs, digest) if digest else {}
        return BuildResult(
            digest=digest,
            outputs=tuple(destinations(outputs, request.tags, digest)),
            platforms=tuple(
                BuiltPlatform(
                    platform=str(each.platform),
                    digest=digests.get(each.platform, ""),
                    node=each.node,
                    native=each.native,
                )
                for each in parts.assigned
            ),
            builder=build.builder.name,
            bases=build.plan.mode,
            seconds=round(time.monotonic() - started, 3),
        )

    def _all(self, parts: _Parts) -> dict[Platform, dict[str, Any]]:
        """Every platform's metadata; with fallback, of a second try without the nodes that went away."""
        platforms = self.build.request.platforms
        parts.assigned = assign(platforms, self.build.builder)
        done, failed = self._try(parts, parts.assigned, self.build)
        lost = {each.node: error for each, error in failed.items() if isinstance(error, BuilderError)}
        if not failed:
            return done
        if not self.fallback or len(lost) != len({each.node for each in failed}):
            raise next(iter(failed.values()))
        for error in lost.values():
            self.build.tell(f"{error.message}; others emulate what it built")
        builder = self.without(self.build.builder, tuple(lost))
        again = assign([each.platform for each in failed], builder)
        kept = [each for each in parts.assigned if each not in failed]
        parts.assigned = tuple(sorted((*kept, *again), key=lambda each: platforms.index(each.platform)))
        more, failed = self._try(parts, again, replace(self.build, builder=builder))
        if failed:
            raise next(iter(failed.values()))
        return {**done, **more}

    def _try(
        self, parts: _Parts, assigned: Sequence[Assignment], build: Build
    ) -> tuple[dict[Platform, dict[str, Any]], dict[Assignment, BuildkitTasksError]]:
        """Build these parts, several at once: what buildx says of each, and what went wrong."""

        def one(each: Assignment) -> dict[str, Any] | BuildkitTasksError:
            outputs = parts.outputs_of(each.platform)
            request = replace(
                build.request, platforms=(each.platform,), tags=(), load=False, metadata_file=""
            )
            label = f"{each.platform} on {each.node}"
            try:
                return build.make(_attesting(request, outputs), outputs, label=label)
            except BuilderError as error:
                return _gone(each, error)
            except BuildkitTasksError as error:
                error.platform = error.platform or each.platform
                return error

        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            try:
                found = dict(zip(assigned, pool.map(one, assigned), strict=True))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                build.run.interrupt()
                raise Interrupted("interrupted; the builds that ran were ended") from None
        done = {each.platform: value for each, value in found.items() if isinstance(value, dict)}
        failed = {each: value for each, value in found.items() if isinstance(value, BuildkitTasksError)}
        return done, failed


def _attesting(request: BuildRequest, outputs: Sequence[OutputSpec]) -> BuildRequest:
    """The request with the provenance that buildx gives by itself to what one node builds.

    BuildKit leaves that out of an archive of a single platform unless it is asked for. A folder would get
    a file more by it, so beside one nothing is asked for.
    """
    said = request.no_attest or request.reproducible or request.provenance
    given = any("type=provenance" in each for each in request.attest)
    unwanted = os.environ.get("BUILDX_NO_DEFAULT_ATTESTATIONS", "").lower() in ("1", "t", "true")
    if said or given or unwanted or not all(output.is_file for output in outputs):
        return request
    return replace(request, provenance="mode=min")


def _by_platform(done: Mapping[Platform, Mapping[str, Any]]) -> dict[str, Any]:
    """What buildx said of each part, as it writes of several nodes: ``KEY/linux/arm64``."""
    return {f"{key}/{platform}": value for platform, found in done.items() for key, value in found.items()}


def _gone(each: Assignment, error: BuilderError) -> BuilderError:
    own = f"node {each.node}: "
    return BuilderError(
        f"node {each.node} went away in mid-build: {error.message.removeprefix(own)}",
        platform=each.platform,
        hint="start it again, or let another node emulate: --fallback=emulate",
    )


@dataclass(kw_only=True)
class _Parts:
    """What each platform's build writes, and how the parts become one."""

    outputs: tuple[OutputSpec, ...]
    folder: Path
    names: tuple[str, ...]
    repositories: tuple[str, ...]
    archive: Path | None
    assigned: tuple[Assignment, ...] = ()

    def outputs_of(self, platform: Platform) -> tuple[OutputSpec, ...]:
        """The outputs of one platform's build; a push last, since buildx tells the last one's digest.

        Where an archive is made anyway, that one is pushed when it is whole.
        """
        wanted = [
            (number, output)
            for number, output in enumerate(self.outputs)
            if not (output.pushes and self.archive is not None)
        ]
        parts = [self._part(number, output, platform) for number, output in wanted]
        return tuple(sorted(parts, key=lambda part: part.pushes))

    def _part(self, number: int, output: OutputSpec, platform: Platform) -> OutputSpec:
        if output.pushes:
            return by_digest(output, self.repositories)
        if output.type in _JOINED:
            return as_archive(output, self._archive(number, platform), self.names)
        if output.dest is not None:  # as BuildKit names the folders of several platforms
            slug = str(platform).replace("/", "_")
            return output.with_("dest", str(output.dest / slug))
        return output

    def _archive(self, number: int, platform: Platform) -> Path:
        return self.folder / f"{number}-{platform.slug}.tar"

    def join(self, done: Mapping[Platform, Mapping[str, Any]], tags: Sequence[str], build: Build) -> Any:
        """Make one of the parts everywhere; gives the digest of their index, empty without one."""
        digest: Any = ""
        platforms = [each.platform for each in self.assigned]
        for number, output in enumerate(self.outputs):
            if output.type not in _JOINED:
                continue
            archives = {platform: self._archive(number, platform) for platform in platforms}
            with _place(output, self.folder / f"{number}.tar") as place:
                digest = _joined(archives, [*output.names] or tags, place)
                if output.type == "docker":
                    _load(place, build)
        if self.archive is not None:
            return send_archive(self.archive, self.repositories) if self.repositories else digest
        for repository in self.repositories:
            digest = _merged(
                repository, {each: str(done[each]["containerimage.digest"]) for each in platforms}
            )
        return digest


def _joinable(outputs: Sequence[OutputSpec]) -> tuple[OutputSpec, ...]:
    for output in outputs:
        if output.type == "tar":
            raise UsageError(
                f"output {output}: the parts of several nodes do not make one tar file",
                hint="-o type=oci,dest=FILE, or -o type=local,dest=FOLDER",
            )
    return tuple(outputs)


@contextlib.contextmanager
def _place(output: OutputSpec, spare: Path) -> Iterator[Path]:
    """A file to write: beside the output's own place, and moved there at the end, or a temporary one."""
    if output.dest is None:
        yield spare
        return
    output.dest.parent.mkdir(parents=True, exist_ok=True)
    reap_partials(output.dest)
    temporary = beside(output.dest)
    try:
        yield temporary
        settle({temporary: output.dest})
    finally:
        temporary.unlink(missing_ok=True)


def _joined(archives: Mapping[Platform, Path], names: Sequence[str], place: Path) -> Any:
    from buildkit_tasks.oci.copy.join import join_archives
    from buildkit_tasks.oci.reference import Reference

    return join_archives(archives, [str(Reference.parse(name)) for name in names], place)


def _merged(repository: str, digests: Mapping[Platform, str]) -> Any:
    """One index of parts that were pushed by digest."""
    from buildkit_tasks.oci.copy.push import merge
    from buildkit_tasks.oci.reference import Reference

    parts = [Reference.parse(f"{repository}@{digest}") for digest in digests.values()]
    return merge(parts, Reference.parse(repository), tuple(digests)).root.digest


def _load(archive: Path, build: Build) -> None:
    argv = [*build.engine.tools.docker, "load", f"--input={archive}"]
    done = build.run.run(argv, build.engine.call(timeout=600), mutates=True)
    if not done.ok:
        raise BuildFailed(f"the engine does not load the joined image: {done.reason}")
