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

from buildkit_tasks.builder import require_index
from buildkit_tasks.cache import cache_notes, check_exporters, split_exports
from buildkit_tasks.errors import BuildFailed, LimitExceeded, RegistryError, UsageError
from buildkit_tasks.outputs import OutputSpec, beside, reap_partials, settle
from buildkit_tasks.reproducible import check_rewriting
from buildkit_tasks.request import BuildRequest, build_arguments
from buildkit_tasks.results import BuilderSummary, BuildResult, BuiltPlatform, Output

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.bases import BasePlan
    from buildkit_tasks.commands import Completed, Runner
    from buildkit_tasks.debian import Tell
    from buildkit_tasks.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform

__all__ = ["Build"]

_REGISTRY_SECONDS = 60.0
# How buildx shows the step that failed: ` > [linux/arm/v6 2/3] RUN ...`, `[linux/amd64->arm64 build 4/5]`.
_FAILED_STEP = re.compile(r"^ > \[(?P<platform>[a-z0-9]+/[^\s\]]+) ", re.MULTILINE)
_LOCKED = re.compile(r"failed to open writer: ref \S+ locked for .*: unavailable")
_RETRIES = 2
_OTHER_SCANNER = (
    "--attest type=sbom,generator=IMAGE names a scanner that can be pulled; --sbom=false does without"
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
        """Build, and give the digests of what was made and where it lies.

        Raises :class:`BuildFailed` with buildx's own exit status, :class:`LimitExceeded` on a full
        disk, :class:`UsageError` for outputs that this engine and builder cannot make. A file that
        was there before is replaced only when the build has succeeded.
        """
        started = time.monotonic()
        check_capabilities(self.request, self.engine, self.builder)
        for note in cache_notes(self.request.cache_to, os.environ):
            self.tell(note)
        outputs = self._outputs()
        found = self._make(self.request, outputs) if outputs else {}
        self._export_by_platform()
        loaded = self._load_one_by_one() if self._one_by_one else ()
        digest = str(found.get("containerimage.digest", ""))
        digests = self._manifest_digests(outputs, digest) if digest else {}
        return BuildResult(
            digest=digest,
            outputs=(*_destinations(outputs, self.request.tags), *loaded),
            platforms=tuple(
                BuiltPlatform(platform=str(each), digest=digests.get(each, ""))
                for each in self.request.platforms
            ),
            builder=self.builder.name,
            bases=self.plan.mode,
            seconds=round(time.monotonic() - started, 3),
        )

    @property
    def _one_by_one(self) -> bool:
        several = len(self.request.platforms) > 1
        return self.request.load and several and self.engine.store != "containerd"

    def _outputs(self) -> tuple[OutputSpec, ...]:
        """The request's outputs, with ``--load`` as the output that it stands for."""
        loads = self.request.load and not self._one_by_one
        return (*self.request.outputs, OutputSpec(type="docker")) if loads else self.request.outputs

    def _make(self, request: BuildRequest, outputs: Sequence[OutputSpec]) -> dict[str, Any]:
        """Run buildx with its files beside their places, move them there, give its metadata."""
        with _staging(outputs, dry_run=self.run.dry_run) as (staged, moves), _scratch_file() as metadata:
            contexts = (*(f"{name}={value}" for name, value in self.plan.contexts), *request.build_contexts)
            ready = replace(self._exporting_once(request), outputs=staged, build_contexts=contexts)
            argv = [*self.engine.tools.buildx, *build_arguments(ready, self.builder.name, metadata)]
            with _reading_ahead():
                done = self._streamed(argv)
            if not done.ok:
                raise _failure(done)
            if self.run.dry_run:
                return {}
            found = _read_metadata(metadata)
            for temporary, place in moves.items():
                if not temporary.is_file():
                    raise BuildFailed(f"buildx says that it succeeded, and did not write {place}")
            settle(moves)
        if request.metadata_file:
            _write_beside(Path(request.metadata_file), json.dumps(found, indent=2) + "\n")
        return found

    def _exporting_once(self, request: BuildRequest) -> BuildRequest:
        """The request without the caches that each of several nodes would write over the others'."""
        if len(self.builder.nodes) < 2 or len(request.platforms) < 2:  # noqa: PLR2004 - several
            return request
        return replace(request, cache_to=split_exports(request.cache_to)[0])

    def _export_by_platform(self) -> None:
        """On several nodes: each platform's cache from the node that built it, where every step is cached."""
        if self._exporting_once(self.request) is self.request:
            return
        bare = replace(self.request, tags=(), annotations=(), no_cache=False, pull=False, metadata_file="")
        caches = split_exports(self.request.cache_to)[1]
        for platform in self.request.platforms if caches else ():
            self._make(replace(bare, platforms=(platform,), cache_to=caches), (OutputSpec(type="cacheonly"),))

    def _streamed(self, argv: Sequence[str]) -> Completed:
        """Run buildx; once or twice more if BuildKit stood in its own way.

        Platforms with an equal layer pack it at the same time, and the engine's store lets one of them
        write: the others fail. What was packed by then is found the next time.
        """
        done = self.run.stream(argv, self.engine.call())
        for _ in range(_RETRIES):
            if done.ok or not _LOCKED.search(done.stderr):
                break
            self.tell("two platforms packed an equal layer at once, which BuildKit cannot do: trying again")
            done = self.run.stream(argv, self.engine.call())
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
            self._make(single, (OutputSpec(type="docker"),))
            self.tell(f"loaded {', '.join(tags)}")
            loaded.extend(Output(type="docker", ref=tag) for tag in tags)
        return tuple(loaded)

    def _manifest_digests(self, outputs: Sequence[OutputSpec], digest: str) -> dict[Platform, str]:
        """The digest of each platform's manifest, from the first output that can be read back."""
        from buildkit_tasks.oci.source import open_image, platform_manifests  # noqa: PLC0415 - after the build

        archives = [output.dest for output in outputs if output.type == "oci" and output.is_file]
        if archives:
            with open_image(f"oci-archive:{archives[0]}") as source:
                return {platform: str(entry.digest) for platform, entry in platform_manifests(source)}
        pushed = [name for output in outputs if output.pushes for name in (*self.request.tags, *output.names)]
        if pushed:
            return self._pushed_digests(pushed[0], digest)
        if any(output.loads for output in outputs):
            return self._stored_digests(self.request.tags[0])
        return {}

    def _stored_digests(self, name: str) -> dict[Platform, str]:
        from buildkit_tasks.engine.sdk import connect, inspect_image, stored_manifests  # noqa: PLC0415

        return stored_manifests(inspect_image(connect(self.engine), name) or {})

    def _pushed_digests(self, name: str, digest: str) -> dict[Platform, str]:
        """What lies in the registry under the digest that buildx says it pushed."""
        from buildkit_tasks.oci.model import parse_index  # noqa: PLC0415

        repository = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
        argv = [*self.engine.tools.buildx, "imagetools", "inspect", "--raw", f"{repository}@{digest}"]
        done = self.run.run(argv, self.engine.call(timeout=_REGISTRY_SECONDS))
        if not done.ok:
            raise RegistryError(f"{repository}@{digest} was pushed and cannot be read back: {done.reason}")
        entries = parse_index(done.stdout.encode()).manifests
        return {
            entry.platform: str(entry.digest)
            for entry in entries
            if entry.platform and not entry.is_attestation
        }


@contextlib.contextmanager
def _reading_ahead() -> Iterator[None]:
    """Import, while buildx works and this process waits, what reads and shows its result."""
    names = ("buildkit_tasks.oci.source", "rich.table", "rich.console")
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


def _failure(done: Completed) -> BuildFailed | LimitExceeded:
    if _FULL_DISK.search(done.stderr):
        return LimitExceeded(
            f"the disk is full: {_cause(done)}", hint="docker buildx prune, or free some space"
        )
    step = _FAILED_STEP.search(done.stderr)
    return BuildFailed(
        _cause(done),
        hint=_OTHER_SCANNER if "buildkit-syft-scanner" in _cause(done) else None,
        exit_code=done.returncode if done.returncode > 0 else 1,
        platform=step["platform"] if step else None,
    )


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


def _write_beside(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    temporary.write_text(text, encoding="utf-8")
    settle({temporary: path})


def _platform_tag(tag: str, platform: Platform) -> str:
    """``hello:0.1`` for linux/arm/v7 becomes ``hello:0.1-linux-arm-v7``."""
    last = tag.rpartition("/")[2]
    name = tag if ":" in last else f"{tag}:latest"
    return f"{name}-{platform.os}-{platform.slug}"


def _destinations(outputs: Sequence[OutputSpec], tags: Sequence[str]) -> Iterator[Output]:
    for output in outputs:
        if output.dest is not None:
            yield Output(type=output.type, dest=str(output.dest))
        else:
            yield from (Output(type=output.type, ref=name) for name in (*tags, *output.names))
