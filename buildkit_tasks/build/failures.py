"""What a buildx that failed means: a full disk, a registry that refuses, a lost builder, or the build."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError, BuildFailed, LimitExceeded, RegistryError

if TYPE_CHECKING:
    from buildkit_tasks.errors import BuildkitTasksError
    from buildkit_tasks.report.model import BuilderSummary
    from buildkit_tasks.system.command import CommandResult

__all__ = ["classify_failure"]

# How buildx shows the step that failed: ` > [linux/arm/v6 2/3] RUN ...`, `[linux/amd64->arm64 build 4/5]`.
_FAILED_STEP = re.compile(r"^ > \[(?P<platform>[a-z0-9]+/[^\s\]]+) ", re.MULTILINE)
_SCANNER_HINT = (
    "--attest type=sbom,generator=IMAGE names a scanner that can be pulled; --sbom=false does without"
)
_PUSH_REFUSED = re.compile(r"failed to push|failed to authorize|push access denied|insufficient_scope")
# gRPC's words for a BuildKit that is no longer there, and docker's for an engine that is not.
_CONNECTION_LOST = re.compile(
    r"Unavailable: |code = Unavailable|transport is closing|no active session|waiting for connection"
    r"|error during connect"
)
_FULL_DISK = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)


def classify_failure(
    result: CommandResult, builder: BuilderSummary, *, builder_down: bool = False
) -> BuildkitTasksError:
    """What a failed buildx means, by its last error: disk, registry, builder, or the build itself.

    ``lost`` tells that the builder was found not to run.
    """
    cause = _describe_cause(result)
    if _FULL_DISK.search(result.stderr):
        prune_command = f"docker buildx prune --builder={builder.name}, which needs a little room itself"
        return LimitExceeded(f"the disk is full: {cause}", hint=f"free some space, or {prune_command}")
    if _PUSH_REFUSED.search(cause):
        return RegistryError(cause, hint=_make_refusal_hint(cause, builder))
    if builder_down or _CONNECTION_LOST.search(cause):
        hint = "the same command again, which starts it anew"
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
        return "the builder's container has a loopback of its own: --driver-opt=network=host"
    is_denied = re.search(r"40[13]|denied|authoriz|insufficient_scope", cause)
    return "docker login REGISTRY" if is_denied else "look at the registry's name, and whether it answers"


def _describe_cause(result: CommandResult) -> str:
    """BuildKit's last error line; on a terminal buildx has shown it itself."""
    error_lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR: ")]
    message = error_lines[-1].removeprefix("ERROR: ") if error_lines else "see its messages above"
    return f"docker buildx build failed with status {result.returncode}: {message}"
