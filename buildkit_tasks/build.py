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

from buildkit_tasks.builder import Assignment, assign, parse_inspect, require_index, watch_nodes
from buildkit_tasks.cache import cache_notes, check_exporters
from buildkit_tasks.errors import (
    BuilderError,
    BuildFailed,
    BuildkitTasksError,
    LimitExceeded,
    RegistryError,
    UsageError,
)
from buildkit_tasks.outputs import OutputSpec, as_archive, beside, by_digest, named, reap_partials, settle
from buildkit_tasks.reproducible import check_rewriting
from buildkit_tasks.request import BuildRequest, build_arguments
from buildkit_tasks.results import BuilderSummary, BuildResult, BuiltPlatform, Output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.bases import BasePlan
    from buildkit_tasks.builder import Watch
    from buildkit_tasks.commands import Completed, Runner
    from buildkit_tasks.debian import Tell
    from buildkit_tasks.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform

__all__ = ["Build"]

# How buildx shows the step that failed: ` > [linux/arm/v6 2/3] RUN ...`, `[linux/amd64->arm64 build 4/5]`.
_FAILED_STEP = re.compile(r"^ > \[(?P<platform>[a-z0-9]+/[^\s\]]+) ", re.MULTILINE)
_LOCKED = re.compile(r"failed to open writer: ref \S+ locked for .*: unavailable")
_RETRIES = 2
_INSPECT_SECONDS = 30.0
_OTHER_SCANNER = (
    "--attest type=sbom,generator=IMAGE names a scanner that can be pulled; --sbom=false does without"
)
_REFUSED = re.compile(r"failed to push|failed to authorize|push access denied|insufficient_scope")
# gRPC's words for a BuildKit that is no longer there.
_LOST = re.compile(
    r"Unavailable: |code = Unavailable|transport is closing|no active session|waiting for connection"
)
# What proves a push, half a second's worth of modules.
_PROOF = (
    "buildkit_tasks.oci.registry.uploads",
    "buildkit_tasks.verify.service",
    "buildkit_tasks.emulate.sandbox.runner",
)
_FULL_DISK = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)


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
        for note in cache_notes(self.request.cache_to, os.environ):
            self.tell(note)
        outputs = self._outputs()
        with self._pushes(outputs) as (made, archive):
            found = self.make(self.request, made) if made else {}
            if archive is not None:
                self._send(archive)
        loaded = self._load_one_by_one() if self._one_by_one else ()
        digest = str(found.get("containerimage.digest", ""))
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

    def _send(self, archive: Path) -> None:
        if self.run.dry_run:
            self.tell(f"would put what {archive} holds into {', '.join(self.repositories)}, by its digest")
        else:
            send_archive(archive, self.repositories)

    @property
    def repositories(self) -> tuple[str, ...]:
        """Where a push goes, without tags, each once."""
        pushing = [output for output in self.request.outputs if output.pushes]
        names = [name for output in pushing for name in output.names or self.request.tags]
        return _repositories(names)

    @contextlib.contextmanager
    def _pushes(self, outputs: Sequence[OutputSpec]) -> Iterator[tuple[tuple[OutputSpec, ...], Path | None]]:
        """The outputs as buildx is to make them: pushes by digest, and the others with their names.

        The engine's own builder cannot push by digest: an archive is made, which we send ourselves.
        """
        if not self.repositories:
            yield tuple(outputs), None
            return
        others = [named(output, self.request.tags) for output in outputs if not output.pushes]
        if self.builder.driver != "docker":
            pushed = [by_digest(output, self.repositories) for output in outputs if output.pushes]
            yield (*others, *pushed), None
            return
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            archive = Path(folder) / "image.tar"
            spare = next(output for output in outputs if output.pushes)
            yield (*others, as_archive(spare, archive)), archive

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
            ready = replace(request, outputs=staged, build_contexts=contexts, tags=tags)
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
            tags = tuple(_platform_tag(tag, platform) for tag in self.request.tags)
            single = replace(self.request, platforms=(platform,), tags=tags, metadata_file="")
            self.make(single, (OutputSpec(type="docker"),))
            self.tell(f"loaded {', '.join(tags)}")
            loaded.extend(Output(type="docker", ref=tag) for tag in tags)
        return tuple(loaded)

    def manifest_digests(self, outputs: Sequence[OutputSpec], digest: str) -> dict[Platform, str]:
        """The digest of each platform's manifest, from the first output that can be read back."""
        from buildkit_tasks.oci.source import open_image, platform_manifests  # noqa: PLC0415 - after the build

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
        from buildkit_tasks.engine.sdk import connect, inspect_image, stored_manifests  # noqa: PLC0415

        return stored_manifests(inspect_image(connect(self.engine), name) or {})


def pushed_digests(repository: str, digest: str) -> dict[Platform, str]:
    """What lies in the registry under the digest that was pushed."""
    from buildkit_tasks.oci.registry import open_registry  # noqa: PLC0415 - requests: not for a listing
    from buildkit_tasks.oci.source import platform_manifests  # noqa: PLC0415

    with open_registry(f"{repository}@{digest}") as source:
        return {platform: str(entry.digest) for platform, entry in platform_manifests(source)}


def send_archive(archive: Path, repositories: Sequence[str]) -> None:
    """Put an OCI archive into registries, by its digest."""
    from buildkit_tasks.oci.opening import open_image  # noqa: PLC0415 - msgspec: not for a listing
    from buildkit_tasks.oci.reference import Reference  # noqa: PLC0415
    from buildkit_tasks.publish import send  # noqa: PLC0415

    with open_image(f"oci-archive:{archive}") as source:
        for repository in repositories:
            send(source, Reference.parse(repository))


@contextlib.contextmanager
def _reading_ahead(more: Sequence[str]) -> Iterator[None]:
    """Import, while buildx works and this process waits, what reads and shows its result, and ``more``."""
    names = ("buildkit_tasks.oci.source", "rich.table", "rich.console", *more)
    thread = threading.Thread(target=lambda: [importlib.import_module(name) for name in names])
    thread.start()
    try:
        yield
    finally:
        thread.join()


def check_capabilities(request: BuildRequest, engine: Engine, builder: BuilderSummary) -> None:
    """What buildx would find out after the build, or say in words that do not help."""
    check_exporters(request.cache_to, request.cache_from, builder.driver, engine.store)
    if request.reproducible:
        loaded = (OutputSpec(type="docker"),) if request.load else ()
        check_rewriting((*request.outputs, *loaded), builder.driver)
    _check_loading(request, engine)
    _check_keeping(request, builder)
    if len(request.platforms) == 1:
        return
    ways = "-o type=oci,dest=dist/image.tar, or --load"
    for output in request.outputs:
        if output.type != "docker":
            continue
        if output.dest is not None:
            raise UsageError("the docker archive format holds one platform only", hint=ways)
        if engine.store != "containerd":
            raise UsageError(
                "type=docker with several platforms needs the containerd image store; "
                "this engine has the graph store",
                hint="--load (one tag for each platform), or --engine=private (containerd image store)",
            )
    if request.outputs:
        require_index(builder, engine)


def _check_keeping(request: BuildRequest, builder: BuilderSummary) -> None:
    """An image that a BuildKit of its own keeps is seen by nobody: its build would vanish."""
    for output in request.outputs:
        if output.type == "image" and not output.pushes and builder.driver != "docker":
            raise UsageError(
                f"output {output}: an image stays inside a builder of driver {builder.driver}, "
                "where nothing can use it",
                hint="--load, --push, or -o type=oci,dest=dist/image.tar",
            )


def _check_loading(request: BuildRequest, engine: Engine) -> None:
    """A builder elsewhere needs no engine; an image that is loaded does."""
    loads = request.load or any(output.loads for output in request.outputs)
    if loads and engine.kind == "none":
        raise UsageError(
            "there is no Docker engine here to load the image into: its builder runs elsewhere",
            hint="-o type=oci,dest=dist/image.tar, or DOCKER_HOST=ENDPOINT of the engine that is meant",
        )


def failure(done: Completed, builder: BuilderSummary, *, lost: bool = False) -> BuildkitTasksError:
    """What a failed buildx means, by its last error: disk, registry, builder, or the build itself.

    ``lost`` tells that the builder was found not to run.
    """
    cause = _cause(done)
    if _FULL_DISK.search(done.stderr):
        prune = f"docker buildx prune --builder={builder.name}, which needs a little room itself"
        return LimitExceeded(f"the disk is full: {cause}", hint=f"free some space, or {prune}")
    if _REFUSED.search(cause):
        return RegistryError(cause, hint=_refusal_hint(cause, builder))
    if lost or _LOST.search(cause):
        hint = "the same command again, which starts it anew"
        return BuilderError(f"the builder {builder.name!r} was lost: {cause}", hint=hint)
    step = _FAILED_STEP.search(done.stderr)
    return BuildFailed(
        cause,
        hint=_OTHER_SCANNER if "buildkit-syft-scanner" in cause else None,
        exit_code=done.returncode if done.returncode > 0 else 1,
        platform=step["platform"] if step else None,
    )


def _refusal_hint(cause: str, builder: BuilderSummary) -> str:
    if builder.driver == "docker-container" and "connection refused" in cause:
        return "the builder's container has a loopback of its own: --driver-opt=network=host"
    denied = re.search(r"40[13]|denied|authoriz|insufficient_scope", cause)
    return "docker login REGISTRY" if denied else "look at the registry's name, and whether it answers"


def _cause(done: Completed) -> str:
    """BuildKit's last error line; on a terminal buildx has shown it itself."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    words = errors[-1].removeprefix("ERROR: ") if errors else "see its messages above"
    return f"docker buildx build failed with status {done.returncode}: {words}"


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


def write_beside(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.write_text(text, encoding="utf-8")
    settle({temporary: path})


def _platform_tag(tag: str, platform: Platform) -> str:
    """``hello:0.1`` for linux/arm/v7 becomes ``hello:0.1-linux-arm-v7``."""
    last = tag.rpartition("/")[2]
    name = tag if ":" in last else f"{tag}:latest"
    return f"{name}-{platform.os}-{platform.slug}"


def _repositories(names: Sequence[str]) -> tuple[str, ...]:
    """The repositories of these names, each once."""
    if not names:
        return ()
    from buildkit_tasks.oci.reference import Reference  # noqa: PLC0415 - msgspec: for a push alone

    return tuple(dict.fromkeys(Reference.parse(name).name for name in names))


def destinations(outputs: Sequence[OutputSpec], tags: Sequence[str], digest: str) -> Iterator[Output]:
    """Where the outputs are; a push is told by its digest, until somebody names it."""
    for output in outputs:
        if output.dest is not None:
            yield Output(type=output.type, dest=str(output.dest))
        elif output.pushes:
            names = _repositories(output.names or tags)
            yield from (Output(type="registry", ref=f"{name}@{digest}") for name in names)
        else:
            yield from (Output(type=output.type, ref=name) for name in (*tags, *output.names))
