"""Turn a failed buildx into an error: full disk, refused push, lost builder, failed pull, or failed build."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuilderError, BuildFailed, LimitExceeded, RegistryError, UsageError

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
# What buildx, BuildKit and its frontends put before the cause.
_CAUSE_PREFIX = re.compile(
    r"(?:failed to build|failed to solve(?: with frontend [\w./-]+)?|failed to create LLB definition"
    r"|failed to compute cache key|failed to calculate checksum of ref \S+|rpc error: code = \w+ desc =):? "
)
_MISSING_SECRET = re.compile(r"secret (?P<id>\S+): not found\Z")
_MISSING_FILE = re.compile(r"\"[^\"]+\": not found\Z")
_MISSING_FILE_HINT = (
    "check COPY and ADD: a path is one of the build context, from which .dockerignore may exclude it, or of "
    "the stage that --from names"
)
_UNKNOWN_STAGE = re.compile(r"(target stage \"[^\"]*\") could not be found")
_UNKNOWN_FLAG = re.compile(r"unknown flag: (?P<flag>--[\w-]+)")
# The image that could not be pulled, and the host that did not answer.
_PULL_FAILED = re.compile(
    r"(?:failed to resolve source metadata for|failed to load metadata for) (?P<image>[^\s:]+(?::[^\s:]+)*): "
    r".*?failed to (?:do request|fetch \w+ token): \w+ \"?https?://(?P<host>[^/\"]+)/"
)
# The first versions of buildx with some flags: https://github.com/docker/buildx/releases
_FLAG_VERSIONS = {"--resource": "0.35"}
_FRONTEND_IMAGE = "docker.io/docker/dockerfile"
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
    # Docker's registry before 3.1 has an empty link to a layer while another push writes it, and rejects a
    # manifest then: https://github.com/distribution/distribution/pull/4624
    TransientFailure(
        pattern=re.compile(
            r"provided digest did not match uploaded content|blob (?:upload )?unknown to registry"
        ),
        cause="the registry could not read a layer, as happens while another push writes the same one",
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
    error = _find_last_error(result)
    cause = _describe_cause(error)
    if _FULL_DISK.search(result.stderr):
        prune_command = f"docker buildx prune --builder={builder.name} (which needs some space itself)"
        return LimitExceeded(f"the disk is full: {cause}", hint=f"free some space, or run {prune_command}")
    is_scanner = "buildkit-syft-scanner" in error
    if (pull := _PULL_FAILED.search(error)) and not is_scanner:
        return _pull_error(pull["image"], pull["host"])
    if _PUSH_REFUSED.search(error):
        return RegistryError(cause, hint=_make_refusal_hint(cause, builder))
    if builder_down or _CONNECTION_LOST.search(error):
        hint = "run the same command again, which restarts it"
        return BuilderError(f"the builder {builder.name!r} was lost: {cause}", hint=hint)
    if unknown := _UNKNOWN_FLAG.match(error):
        version = _FLAG_VERSIONS.get(unknown["flag"])
        since = f", which buildx {version} and newer have" if version else ""
        message = f"{unknown['flag']}: the buildx that is used here is too old for it{since}"
        return UsageError(message, hint="docker buildx version")
    failed_step = _FAILED_STEP.search(result.stderr)
    return BuildFailed(
        f"build failed: {cause}",
        hint=_SCANNER_HINT if is_scanner else _make_dockerfile_hint(cause),
        exit_code=result.returncode if result.returncode > 0 else 1,
        platform=failed_step["platform"] if failed_step else None,
    )


def _make_dockerfile_hint(cause: str) -> str | None:
    """Return what is missing in the command or in the Dockerfile, if the cause says that."""
    if secret := _MISSING_SECRET.match(cause):
        name = secret["id"]
        return f"--secret id={name},env=VARIABLE or --secret id={name},src=FILE"
    return _MISSING_FILE_HINT if _MISSING_FILE.match(cause) else None


def _pull_error(image: str, host: str) -> RegistryError:
    """Return the error for a base image whose registry does not answer; nothing replaces it."""
    message = f"the base image {image} cannot be pulled: {host} does not answer"
    if image.startswith(_FRONTEND_IMAGE):
        return RegistryError(message, hint="remove the line '# syntax=' of the Dockerfile")
    name = image.removeprefix("docker.io/").removeprefix("library/")
    return RegistryError(message, hint=f"--build-context {name}=docker-image://REGISTRY/{name}")


def _make_refusal_hint(cause: str, builder: BuilderSummary) -> str:
    if builder.driver == "docker-container" and "connection refused" in cause:
        return "--driver-opt=network=host, since localhost is another one in the builder's container"
    if any(failure.pattern.search(cause) for failure in TRANSIENT_FAILURES):
        return "run the same command again: what the registry has already is not sent again"
    is_denied = re.search(r"40[13]|denied|authoriz|insufficient_scope", cause)
    return "docker login REGISTRY" if is_denied else "check the registry's name, and whether it is reachable"


def _find_last_error(result: CommandResult) -> str:
    """Return buildx's last error, with those of a registry that it quotes in the lines below.

    On a terminal it was shown to the user, and not captured.
    """
    _, found, error = f"\n{result.stderr}".rpartition("\nERROR: ")
    if not found:
        return f"buildx ended with status {result.returncode}; see its output above"
    summary, *lines = error.strip().splitlines() or [""]
    return f"{summary}: {'; '.join(lines[1:])}" if lines[:1] == ["errors:"] else summary


def _describe_cause(error: str) -> str:
    """Return the cause in an error line of buildx."""
    while match := _CAUSE_PREFIX.match(error):
        error = error[match.end() :]
    return _UNKNOWN_STAGE.sub(r"\1 not found", error)
