"""Turn a failed buildx into an error: full disk, refused push, lost builder, or failed build."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError, BuildFailed, LimitExceeded, RegistryError

if TYPE_CHECKING:
    from buildkit_tasks.errors import BuildkitTasksError
    from buildkit_tasks.report.model import BuilderSummary
    from buildkit_tasks.system.command import CommandResult

__all__ = ["TRANSIENT_FAILURES", "TransientFailure", "classify_failure", "find_transient_failure"]

# buildx shows the failed step as ` > [linux/arm/v6 2/3] RUN ...` or ` > [linux/amd64->arm64 build 4/5]`.
_FAILED_STEP = re.compile(r"^ > \[(?P<platform>[a-z0-9]+/[^\s\]]+) ", re.MULTILINE)
_SCANNER_HINT = (
    "name a scanner that can be pulled by --attest type=sbom,generator=IMAGE, or omit it by --sbom=false"
)
_PUSH_REFUSED = re.compile(r"failed to push|failed to authorize|push access denied|insufficient_scope")
# Messages of gRPC for a BuildKit that has gone away, and of docker for an engine that has.
_CONNECTION_LOST = re.compile(
    r"Unavailable: |code = Unavailable|transport is closing|no active session|waiting for connection"
    r"|error during connect"
)
_FULL_DISK = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransientFailure:
    """A failure after which the same build may succeed: its pattern in the output, and how often to retry."""

    pattern: re.Pattern[str]
    cause: str
    retries: int


TRANSIENT_FAILURES = (
    # The engine's store lets only one of them write. What was packed by then is cached.
    TransientFailure(
        pattern=re.compile(r"failed to open writer: ref \S+ locked for .*: unavailable"),
        cause="two platforms packed an equal layer at once, which BuildKit does not support",
        retries=2,
    ),
    # Seen with Docker's registry 2.8 while two nodes pushed the same layer.
    TransientFailure(
        pattern=re.compile(
            r"provided digest did not match uploaded content|blob (?:upload )?unknown to registry"
        ),
        cause="the registry lost a layer during its upload, as happens if two builds push it at once",
        retries=1,
    ),
)


def find_transient_failure(result: CommandResult) -> TransientFailure | None:
    """Return what a failed buildx may be repeated for, or None."""
    if result.ok:
        return None
    matching = (failure for failure in TRANSIENT_FAILURES if failure.pattern.search(result.stderr))
    return next(matching, None)


def classify_failure(
    result: CommandResult, builder: BuilderSummary, *, builder_down: bool = False
) -> BuildkitTasksError:
    """Return the error that a failed buildx means, by its last error message.

    ``builder_down`` is True if the builder does not run any more.
    """
    cause = _describe_cause(result)
    if _FULL_DISK.search(result.stderr):
        prune_command = f"docker buildx prune --builder={builder.name} (which needs some space itself)"
        return LimitExceeded(f"the disk is full: {cause}", hint=f"free some space, or run {prune_command}")
    if _PUSH_REFUSED.search(cause):
        return RegistryError(cause, hint=_make_refusal_hint(cause, builder))
    if builder_down or _CONNECTION_LOST.search(cause):
        hint = "run the same command again, which restarts it"
        return BuilderError(f"the builder {builder.name!r} was lost: {cause}", hint=hint)
    failed_step = _FAILED_STEP.search(result.stderr)
    return BuildFailed(
        cause,
        hint=_SCANNER_HINT if "buildkit-syft-scanner" in cause else None,
        exit_code=result.returncode if result.returncode > 0 else 1,
        platform=failed_step["platform"] if failed_step else None,
    )


def _make_refusal_hint(cause: str, builder: BuilderSummary) -> str:
    if builder.driver == "docker-container" and "connection refused" in cause:
        return "--driver-opt=network=host, since localhost is another one in the builder's container"
    if any(failure.pattern.search(cause) for failure in TRANSIENT_FAILURES):
        return "run the same command again: layers that are cached are only pushed"
    is_denied = re.search(r"40[13]|denied|authoriz|insufficient_scope", cause)
    return "docker login REGISTRY" if is_denied else "check the registry's name, and whether it is reachable"


def _describe_cause(result: CommandResult) -> str:
    """Return buildx's last error line; on a terminal it was shown to the user and not captured."""
    error_lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    message = error_lines[-1].removeprefix("ERROR: ") if error_lines else "see its output above"
    return f"docker buildx build failed with status {result.returncode}: {message}"
