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

from buildkit_tasks.build.cache import cache_notes, exports, imports
from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.build.destinations import (
    destinations,
    platform_tag,
    pushed_digests,
    repositories_of,
    send_archive,
)
from buildkit_tasks.build.failures import failure
from buildkit_tasks.build.outputs import OutputSpec, archive_of, as_archive, by_digest, named
from buildkit_tasks.build.request import BuildRequest, build_arguments
from buildkit_tasks.errors import BuildFailed
from buildkit_tasks.host.builder import ELSEWHERE, Assignment, assign, parse_inspect, watch_nodes
from buildkit_tasks.report.model import BuilderSummary, BuildResult, BuiltPlatform, Output
from buildkit_tasks.system.files import beside, reap_partials, settle, write_beside

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.build.standin_bases import BasePlan
    from buildkit_tasks.host.builder import Watch
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import Completed, Runner
    from buildkit_tasks.system.notify import Tell

__all__ = [
    "Build",
]

_LOCKED = re.compile(r"failed to open writer: ref \S+ locked for .*: unavailable")
_RETRIES = 2
_INSPECT_SECONDS = 30.0

# What proves a push, half a second's worth of modules.
_PROOF = (
    "buildkit_tasks.oci.registry.push",
    "buildkit_tasks.verify.service",
    "buildkit_tasks.run.sandbox.backend",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One request with all that it needs: engine, builder and bases."""

    request: BuildRequest
    engine: Engine
    builder: BuilderSummary
    plan: BasePlan
    run: Runner
    tell: Tell

    def result(self) -> BuildResult:
        """Build, and give the digests of what was made and where it lies; no tag is named by it.

        Raises :class:`BuildFailed` with buildx's own exit status, :class:`BuilderError` for a builder
        that went away, :class:`RegistryError` for a push that was refused, :class:`LimitExceeded` on a
        full disk, :class:`UsageError` for outputs that this engine and builder cannot make. A file that
        was there before is replaced only when the build has succeeded.
        """
        started = time.monotonic()
        check_capabilities(self.request, self.engine, self.builder)
        for note in cache_notes(self.request.cache_to, self.request.cache_from, os.environ):
            self.tell(note)
        outputs = self._outputs()
        with self._pushes(outputs) as (made, archive):
            found = self.make(self.request, made) if made else {}
            sent = self._send(archive) if archive is not None else ""
        loaded = self._load_one_by_one() if self._one_by_one else ()
        digest = sent or str(found.get("containerimage.digest", ""))
        digests = self.manifest_digests(outputs, digest) if digest else {}
        return BuildResult(
            digest=digest,
            outputs=(*destinations(outputs, self.request.tags, digest), *loaded),
            platforms=tuple(
                self._built(each, digests.get(each.platform, ""))
                for each in assign(self.request.platforms, self.builder)
            ),
            builder=self.builder.name,
            bases=self.plan.mode,
            seconds=round(time.monotonic() - started, 3),
        )

    def _send(self, archive: Path) -> str:
        if self.run.dry_run:
            self.tell(f"would put what {archive} holds into {', '.join(self.repositories)}, by its digest")
            return ""
        return send_archive(archive, self.repositories)

    @property
    def repositories(self) -> tuple[str, ...]:
        """Where a push goes, without tags, each once."""
        pushing = [output for output in self.request.outputs if output.pushes]
        names = [name for output in pushing for name in output.names or self.request.tags]
        return repositories_of(names)

    @contextlib.contextmanager
    def _pushes(self, outputs: Sequence[OutputSpec]) -> Iterator[tuple[tuple[OutputSpec, ...], Path | None]]:
        """The outputs as buildx is to make them, and the archive that we push ourselves, if there is one.

        An archive that is made anyway is what is pushed: one build gives one image, where BuildKit
        packs another for each output, with other attestations. Else BuildKit pushes by digest, which
        the engine's own builder cannot: for that one an archive is made.
        """
        pushing = [output for output in outputs if output.pushes]
        if not pushing:
            yield tuple(outputs), None
            return
        others = [named(output, self.request.tags) for output in outputs if not output.pushes]
        archive = archive_of(outputs)
        if archive is not None:
            yield tuple(others), archive
        elif self.builder.driver != "docker":
            yield (*others, *(by_digest(output, self.repositories) for output in pushing)), None
        else:
            with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
                archive = Path(folder) / "image.tar"
                yield (*others, as_archive(pushing[0], archive, self.request.tags)), archive

    @property
    def _one_by_one(self) -> bool:
        several = len(self.request.platforms) > 1
        return self.request.load and several and self.engine.store != "containerd"

    def _outputs(self) -> tuple[OutputSpec, ...]:
        """The request's outputs, with ``--load`` as the output that it stands for."""
        loads = self.request.load and not self._one_by_one
        return (*self.request.outputs, OutputSpec(type="docker")) if loads else self.request.outputs

    def make(
        self, request: BuildRequest, outputs: Sequence[OutputSpec], *, label: str = ""
    ) -> dict[str, Any]:
        """Run buildx with its files beside their places, move them there, give its metadata.

        Its lines begin with ``label``, where several builds are watched at once.
        """
        with _staging(outputs, dry_run=self.run.dry_run) as (staged, moves), _scratch_file() as metadata:
            contexts = (*(f"{name}={value}" for name, value in self.plan.contexts), *request.build_contexts)
            # A push by digest refuses names from elsewhere: the other outputs have them already.
            tags = () if self.repositories else request.tags
            ready = replace(
                request,
                outputs=staged,
                build_contexts=contexts,
                tags=tags,
                cache_from=imports(request.cache_from, request.platforms, ask=self._asks_registries),
                cache_to=exports(request.cache_to, request.platforms),
            )
            argv = [*self.engine.tools.buildx, *build_arguments(ready, self.builder.name, metadata)]
            with _reading_ahead(_PROOF if self.repositories else ()):
                done = self._streamed(argv, label, watch_nodes(self.builder, request.platforms))
            if not done.ok:
                raise failure(done, self.builder, lost=not done.stderr and self._lost())
            if self.run.dry_run:
                return {}
            found = _read_metadata(metadata)
            for temporary, place in moves.items():
                if not temporary.is_file():
                    raise BuildFailed(f"buildx says that it succeeded, and did not write {place}")
            settle(moves)
        if request.metadata_file:
            write_beside(Path(request.metadata_file), json.dumps(found, indent=2) + "\n")
        return found

    @property
    def _asks_registries(self) -> bool:
        """Whether a registry may be asked for the builder; on another machine its name may mean another."""
        return not self.run.dry_run and self.builder.driver not in ELSEWHERE

    def _lost(self) -> bool:
        """Whether a node of the builder no longer runs: on a terminal buildx's words are not ours to read."""
        if self.builder.driver == "docker":
            return False
        argv = [*self.engine.tools.buildx, "inspect", self.builder.name]
        done = self.run.run(argv, self.engine.call(timeout=_INSPECT_SECONDS))
        return done.ok and any(node.status != "running" for node in parse_inspect(done.stdout).nodes)

    def _streamed(self, argv: Sequence[str], label: str, watch: Watch | None) -> Completed:
        """Run buildx; once or twice more if BuildKit stood in its own way.

        Platforms with an equal layer pack it at the same time, and the engine's store lets one of them
        write: the others fail. What was packed by then is found the next time.
        """
        done = self.run.stream(argv, self.engine.call(watch=watch), label=label)
        for _ in range(_RETRIES):
            if done.ok or not _LOCKED.search(done.stderr):
                break
            self.tell("two platforms packed an equal layer at once, which BuildKit cannot do: trying again")
            done = self.run.stream(argv, self.engine.call(watch=watch), label=label)
        return done

    def _load_one_by_one(self) -> tuple[Output, ...]:
        """Load each platform under a tag of its own: a classic store keeps one for each tag."""
        self.tell(
            "this engine's image store keeps one platform for each tag: loading one tag for each platform"
        )
        loaded: list[Output] = []
        for platform in self.request.platforms:
            tags = tuple(platform_tag(tag, platform) for tag in self.request.tags)
            single = replace(self.request, platforms=(platform,), tags=tags, metadata_file="")
            self.make(single, (OutputSpec(type="docker"),))
            self.tell(f"loaded {', '.join(tags)}")
            loaded.extend(Output(type="docker", ref=tag) for tag in tags)
        return tuple(loaded)

    def manifest_digests(self, outputs: Sequence[OutputSpec], digest: str) -> dict[Platform, str]:
        """The digest of each platform's manifest, from the first output that can be read back."""
        from buildkit_tasks.oci.image import open_image, platform_manifests

        archives = [output.dest for output in outputs if output.type == "oci" and output.is_file]
        if archives:
            with open_image(f"oci-archive:{archives[0]}") as source:
                return {platform: str(entry.digest) for platform, entry in platform_manifests(source)}
        if self.repositories:
            return pushed_digests(self.repositories[0], digest)
        if any(output.loads for output in outputs):
            return self._stored_digests(self.request.tags[0])
        return {}

    def _built(self, found: Assignment, digest: str) -> BuiltPlatform:
        return BuiltPlatform(
            platform=str(found.platform), digest=digest, node=found.node, native=found.native
        )

    def _stored_digests(self, name: str) -> dict[Platform, str]:
        from buildkit_tasks.host.engine.sdk import connect, inspect_image, stored_manifests

        return stored_manifests(inspect_image(connect(self.engine), name) or {})


@contextlib.contextmanager
def _reading_ahead(more: Sequence[str]) -> Iterator[None]:
    """Import, while buildx works and this process waits, what reads and shows its result, and ``more``."""
    names = ("buildkit_tasks.oci.image", "rich.table", "rich.console", *more)
    thread = threading.Thread(target=lambda: [importlib.import_module(name) for name in names])
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextlib.contextmanager
def _staging(
    outputs: Sequence[OutputSpec], *, dry_run: bool
) -> Iterator[tuple[tuple[OutputSpec, ...], dict[Path, Path]]]:
    """The outputs with files named beside their places, and the moves that put them there."""
    places = [output.dest for output in outputs if output.is_file and output.dest is not None]
    moves = {beside(place): place for place in places}
    temporary = {place: str(name) for name, place in moves.items()}
    staged = tuple(
        output.with_("dest", temporary[output.dest]) if output.dest in temporary else output
        for output in outputs
    )
    if not dry_run:
        for output in outputs:
            if output.dest is not None:
                output.dest.parent.mkdir(parents=True, exist_ok=True)
                reap_partials(output.dest)
    try:
        yield staged, moves
    finally:
        for name in moves:
            name.unlink(missing_ok=True)


@contextlib.contextmanager
def _scratch_file() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        yield Path(folder) / "metadata.json"


def _read_metadata(path: Path) -> dict[str, Any]:
    """What buildx says it made. A success without it is none: exit status *and* a result."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildFailed(f"buildx wrote metadata that cannot be read: {error}") from error
    return found
