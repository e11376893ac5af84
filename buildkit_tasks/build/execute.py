"""Execute a build request by ``docker buildx build``, and describe what was built.

What buildx is asked to write, and what happens to it afterwards, is planned in
:mod:`buildkit_tasks.build.exports`.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import shlex
import shutil
import tempfile
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.cache import cache_exports, cache_imports, cache_warnings
from buildkit_tasks.build.destinations import (
    list_destinations,
    make_platform_tag,
    parse_repositories,
    push_archive,
    read_pushed_digests,
)
from buildkit_tasks.build.exports import plan_exports, stage_files
from buildkit_tasks.build.failures import classify_failure, find_transient_failure
from buildkit_tasks.build.outputs import OutputSpec, list_names, make_archive_name
from buildkit_tasks.build.request import BuildRequest, make_buildx_argv
from buildkit_tasks.errors import BuildFailed, RegistryError
from buildkit_tasks.host.builder import (
    REMOTE_DRIVERS,
    Assignment,
    assign_nodes,
    parse_inspect_output,
    watch_nodes,
)
from buildkit_tasks.report.model import BuilderSummary, BuildResult, BuiltPlatform, Output
from buildkit_tasks.system.files import replace_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from buildkit_tasks.build.standin_bases import BasePlan
    from buildkit_tasks.errors import BuildkitTasksError
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import CommandResult, CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["BuildExecution", "FrontendAnswer", "write_metadata"]

_INSPECT_SECONDS = 30.0
# What verifies and runs a pushed image: imports that take half a second.
_VERIFY_MODULES = (
    "buildkit_tasks.oci.registry.push",
    "buildkit_tasks.verify.service",
    "buildkit_tasks.run.sandbox.backend",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontendAnswer:
    """What buildx prints for ``--call``: its output, its exit status, and the error if it failed.

    A check that warns has the exit status 1 and no error.
    """

    output: str
    exit_code: int
    error: BuildkitTasksError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildExecution:
    """A build request with the engine, the builder and the base images that it is executed with.

    ``request`` has passed ``check_request`` and ``check_capabilities``.
    """

    request: BuildRequest
    engine: Engine
    builder: BuilderSummary
    base_plan: BasePlan
    commands: CommandRunner
    notify: Notify

    def execute(self) -> BuildResult:
        """Build and push by digest; return what was built. No tag of a registry moves.

        A file is replaced only if the build succeeds. Raises :class:`BuildFailed` with the exit status of
        buildx, :class:`BuilderError` if the builder was lost, :class:`RegistryError` if a push was
        refused, :class:`LimitExceeded` for a full disk.
        """
        start_time = time.monotonic()
        for warning in cache_warnings(self.request.cache_to, self.request.cache_from, os.environ):
            self.notify(warning)
        digest = ""
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as scratch:
            plan = plan_exports(self.request, self.builder.driver, self.engine.store, Path(scratch))
            if plan.buildx_outputs:
                metadata = self.run_buildx(self.request, plan.buildx_outputs)
                digest = str(metadata.get("containerimage.digest", ""))
            if plan.pushed_archive is not None:
                digest = self.push_archive(plan.pushed_archive)
        loaded_outputs = self._load_per_platform() if plan.loads_per_platform else ()
        result = self.make_result(
            assign_nodes(self.request.platforms, self.builder), plan.outputs, digest, start_time
        )
        return replace(result, outputs=(*result.outputs, *loaded_outputs))

    def call_frontend(self) -> FrontendAnswer:
        """Let the Dockerfile's frontend answer to the request's method, and build nothing."""
        request = self._make_buildx_request(self.request, ())
        argv = [*self.engine.tools.buildx, *make_buildx_argv(request, self.builder.name, None)]
        result = self.commands.run(argv, self.engine.command_options(stdin=self._stdin), mutates=True)
        has_failed = not result.ok and ("ERROR: " in result.stderr or not result.stdout)
        error = classify_failure(result, self.builder) if has_failed else None
        return FrontendAnswer(output=result.stdout, exit_code=result.returncode, error=error)

    def make_result(
        self,
        assignments: Sequence[Assignment],
        outputs: Sequence[OutputSpec],
        digest: str,
        start_time: float,
    ) -> BuildResult:
        """Return the result of a build that began at ``start_time`` (monotonic clock, in seconds).

        ``digest`` is that of the index, or "" if no output has one.
        """
        digests = self._read_manifest_digests(outputs, digest) if digest else {}
        return BuildResult(
            digest=digest,
            outputs=tuple(list_destinations(outputs, self.request.tags, digest)),
            platforms=tuple(
                BuiltPlatform(
                    platform=str(each.platform),
                    digest=digests.get(each.platform, ""),
                    node=each.node,
                    native=each.is_native,
                )
                for each in assignments
            ),
            builder=self.builder.name,
            bases=self.base_plan.mode,
            seconds=round(time.monotonic() - start_time, 3),
        )

    @property
    def repositories(self) -> tuple[str, ...]:
        """Return the repositories that the build pushes to, without duplicates."""
        return parse_repositories(self.request.pushed_names)

    def push_archive(self, archive: Path) -> str:
        """Push an OCI archive by digest and return the digest, "" in a dry run.

        Raises :class:`RegistryError`, which names the archive: it is kept, and can be pushed later.
        """
        if self.commands.dry_run:
            self.notify(f"would push {archive} to {', '.join(self.repositories)}, by its digest")
            return ""
        try:
            return push_archive(archive, self.repositories)
        except RegistryError as error:
            raise self._archive_kept_error(error, self._keep_archive(archive)) from error

    def _keep_archive(self, archive: Path) -> Path:
        """Return where the archive stays: in its output, or else in ``dist/``."""
        if any(output.dest == archive for output in self.request.outputs):
            return archive
        kept_archive = Path("dist") / make_archive_name(self.request.tags, self.request.context)
        with replace_file(kept_archive) as temporary:
            shutil.copyfile(archive, temporary)
        return kept_archive

    def _archive_kept_error(self, error: RegistryError, archive: Path) -> RegistryError:
        tags = (f"-t {name}" for name in self.request.pushed_names)
        push_command = f"inv push-multiarch {shlex.quote(str(archive))} {' '.join(tags)}"
        is_denied = (error.hint or "").startswith("docker login ")
        return RegistryError(
            f"{error.message}; the image is kept in {archive}",
            hint=f"{error.hint} && {push_command}" if is_denied else push_command,
        )

    def run_buildx(
        self, request: BuildRequest, outputs: Sequence[OutputSpec], *, label: str = ""
    ) -> dict[str, Any]:
        """Run one build; return the metadata that buildx has written, or {} in a dry run.

        ``label`` precedes each line of progress if several builds run at once. Metadata and image ID are
        also written to the files of the request.
        """
        with (
            stage_files(outputs, dry_run=self.commands.dry_run) as staged_outputs,
            tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder,
        ):
            metadata_path = Path(folder) / "metadata.json"
            buildx_request = self._make_buildx_request(request, staged_outputs)
            arguments = make_buildx_argv(buildx_request, self.builder.name, metadata_path)
            with _preload_modules(_VERIFY_MODULES if self.repositories else ()):
                self._stream_buildx([*self.engine.tools.buildx, *arguments], label, request.platforms)
            if self.commands.dry_run:
                return {}
            metadata = _read_build_metadata(metadata_path)
        write_metadata(request, metadata)
        return metadata

    def _make_buildx_request(
        self, request: BuildRequest, staged_outputs: tuple[OutputSpec, ...]
    ) -> BuildRequest:
        """Return the request as it is passed to buildx: with stand-in bases and one scope of each cache."""
        base_contexts = (f"{name}={value}" for name, value in self.base_plan.contexts)
        # A builder on another machine may resolve a registry's name to another registry.
        can_query_registries = not self.commands.dry_run and self.builder.driver not in REMOTE_DRIVERS
        return replace(
            request,
            outputs=staged_outputs,
            build_contexts=(*base_contexts, *request.build_contexts),
            # Names as attributes of the outputs exclude --tag: see plan_exports.
            tags=() if any(output.names for output in staged_outputs) else request.tags,
            cache_from=cache_imports(
                request.cache_from, request.platforms, probe_registries=can_query_registries
            ),
            cache_to=cache_exports(request.cache_to, request.platforms),
        )

    def _stream_buildx(self, argv: Sequence[str], label: str, platforms: Sequence[Platform]) -> None:
        """Run buildx with its progress shown; raise the error that its failure means.

        The build is repeated after a failure that :data:`TRANSIENT_FAILURES` lists.
        """
        watchdog = watch_nodes(self.builder, platforms)
        for attempt in itertools.count():
            options = self.engine.command_options(watch=watchdog, stdin=self._stdin)
            result = self.commands.stream(argv, options, label=label)
            failure = find_transient_failure(result)
            if failure is None or attempt >= failure.retries:
                break
            self.notify(f"{failure.cause}: building again, with what is cached")
        if not result.ok:
            raise classify_failure(result, self.builder, builder_down=self._is_builder_down(result))

    @property
    def _stdin(self) -> bytes | None:
        """Return what buildx reads for ``--file=-``: each run of buildx reads the Dockerfile again."""
        text = self.request.dockerfile_text
        return None if text is None else text.encode()

    def _is_builder_down(self, result: CommandResult) -> bool:
        """Return True if a node has stopped.

        Asks ``buildx inspect``, since on a terminal the stderr of buildx is not captured.
        """
        if result.stderr or self.builder.driver == "docker":
            return False
        argv = [*self.engine.tools.buildx, "inspect", self.builder.name]
        inspected = self.commands.run(argv, self.engine.command_options(timeout=_INSPECT_SECONDS))
        return inspected.ok and any(
            node.status != "running" for node in parse_inspect_output(inspected.stdout).nodes
        )

    def _load_per_platform(self) -> tuple[Output, ...]:
        """Load each platform under its own tag, since a graph store holds one platform per tag."""
        self.notify("this engine's image store holds one platform per tag: loading one tag for each platform")
        loaded_outputs: list[Output] = []
        for platform in self.request.platforms:
            tags = tuple(make_platform_tag(tag, platform) for tag in self.request.tags)
            platform_request = replace(
                self.request, platforms=(platform,), tags=tags, outputs=(), metadata_file="", iidfile=""
            )
            self.run_buildx(platform_request, (OutputSpec(type="docker"),))
            self.notify(f"loaded {', '.join(tags)}")
            loaded_outputs.extend(Output(type="docker", ref=tag, only_platform=str(platform)) for tag in tags)
        return tuple(loaded_outputs)

    def _read_manifest_digests(self, outputs: Sequence[OutputSpec], digest: str) -> dict[Platform, str]:
        """Return the digest of each platform's manifest, from an archive, a registry or the engine."""
        from buildkit_tasks.oci.transports import open_image

        archive = next((output.dest for output in outputs if output.is_oci_archive), None)
        if archive is not None:
            with open_image(f"oci-archive:{archive}") as image:
                return {platform: str(entry.digest) for platform, entry in image.platform_manifests}
        if self.repositories:
            return read_pushed_digests(self.repositories[0], digest)
        loaded = (output for output in outputs if output.is_loaded)
        name = next((name for output in loaded for name in list_names(output, self.request.tags)), "")
        return self._read_stored_digests(name) if name else {}

    def _read_stored_digests(self, name: str) -> dict[Platform, str]:
        from buildkit_tasks.host.engine.sdk import available_manifests, connect_client, inspect_image

        return available_manifests(inspect_image(connect_client(self.engine), name) or {})


@contextlib.contextmanager
def _preload_modules(extra_modules: Sequence[str]) -> Iterator[None]:
    """Import the modules that read and show the result while buildx runs and this process waits."""
    names = ("buildkit_tasks.oci.image", "rich.table", "rich.console", *extra_modules)
    thread = threading.Thread(target=lambda: [importlib.import_module(name) for name in names])
    thread.start()
    try:
        yield
    finally:
        thread.join()


def write_metadata(request: BuildRequest, metadata: Mapping[str, Any]) -> None:
    """Write the files of ``--metadata-file`` and ``--iidfile``, if the request has them.

    The image ID is what buildx takes for it: the configuration's digest, or that of the index.
    """
    if request.metadata_file:
        write_atomically(Path(request.metadata_file), json.dumps(metadata, indent=2) + "\n")
    if request.iidfile:
        image_id = metadata.get("containerimage.config.digest") or metadata.get("containerimage.digest", "")
        write_atomically(Path(request.iidfile), str(image_id))


def _read_build_metadata(path: Path) -> dict[str, Any]:
    """Read ``--metadata-file``. A build has succeeded only if buildx exits with 0 *and* has written it."""
    try:
        metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BuildFailed(f"buildx wrote metadata that cannot be read: {error}") from error
    return metadata
