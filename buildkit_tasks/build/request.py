"""A build request: what to build and where it goes, checked before any program is started."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.cache import check_cache, has_inline
from buildkit_tasks.build.dockerfile import Bases, read_bases
from buildkit_tasks.build.outputs import OutputSpec, check_outputs
from buildkit_tasks.build.reproducible import EPOCH, Epoch, epoch_of, given_epoch, rewriting
from buildkit_tasks.build.secrets import (
    check_build_argument,
    check_context,
    check_secrets,
    check_ssh,
    without_user,
)
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import Runner
    from buildkit_tasks.system.notify import Tell

__all__ = ["BuildRequest", "build_arguments", "check_request", "read_request_bases", "with_epoch"]

# The grammar of github.com/distribution/reference, without a digest: a tag names what is built.
_TAG = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?\Z",
    re.ASCII,
)
_REMOTE = re.compile(r"(?:https?|git|ssh)://|git@")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build and where it goes; the names are those of buildx's options.

    ``epoch`` is the time in seconds since 1970 that a reproducible build gives to everything. What is
    pushed is named once it is ``proved``; of a ``split`` build it stays without a name, to be merged.
    """

    platforms: tuple[Platform, ...]
    context: str = "."
    file: str = ""
    tags: tuple[str, ...] = ()
    outputs: tuple[OutputSpec, ...] = ()
    load: bool = False
    target: str = ""
    build_args: tuple[str, ...] = ()
    build_contexts: tuple[str, ...] = ()
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    ssh: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()
    attest: tuple[str, ...] = ()
    provenance: str = ""
    sbom: str = ""
    no_attest: bool = False
    reproducible: bool = False
    epoch: int | None = None
    no_cache: bool = False
    pull: bool = False
    progress: str = "auto"
    metadata_file: str = ""
    allow: tuple[str, ...] = ()
    split: bool = False
    proved: bool = True

    @property
    def remote(self) -> bool:
        """Whether the context is a URL, which BuildKit fetches by itself."""
        return bool(_REMOTE.match(self.context))

    @property
    def attested(self) -> tuple[str, ...]:
        """The options that ask for attestations."""
        named = {"--provenance": self.provenance, "--sbom": self.sbom}
        asked = tuple(flag for flag, value in named.items() if value not in ("", "false"))
        return (*asked, "--attest") if self.attest else asked

    @property
    def dockerfile(self) -> Path:
        """The Dockerfile on this disk: ``file``, or ``Dockerfile`` in the context."""
        return Path(self.file) if self.file else Path(self.context) / "Dockerfile"


def check_request(request: BuildRequest) -> None:
    """Refuse what cannot be built, before any program is started. Raises :class:`UsageError`."""
    if not request.platforms:
        raise UsageError("no platform to build for", hint="--platform linux/amd64,linux/arm64")
    for tag in request.tags:
        if not _TAG.match(tag):
            raise UsageError(
                f"{without_user(tag)!r} is no image name", hint="write it as registry/name:tag, in lower case"
            )
    for argument in request.build_args:
        check_build_argument(argument)
    check_context("the build context", request.context)
    for context in request.build_contexts:
        check_context("the build context", context)
    check_secrets(request.secrets, os.environ)
    check_ssh(request.ssh, os.environ)
    check_cache(request.cache_to, request.cache_from)
    given_epoch(request.build_args, os.environ)
    _check_attestations(request)
    check_outputs(request.outputs, request.tags)
    if request.load and not request.tags:
        raise UsageError("--load needs a name for the image", hint="add -t NAME:TAG")
    if not request.remote:
        _check_files(request)


def _check_files(request: BuildRequest) -> None:
    if not Path(request.context).is_dir():
        raise UsageError(f"the build context {request.context!r} is not a folder", hint="--context FOLDER")
    if not request.dockerfile.is_file():
        raise UsageError(f"there is no {request.dockerfile}", hint="-f FILE names another Dockerfile")


def _check_attestations(request: BuildRequest) -> None:
    if request.no_attest and request.attested:
        raise UsageError(
            f"--no-attest, and {', '.join(request.attested)} asked for", hint="leave one of them out"
        )


def with_epoch(request: BuildRequest, run: Runner, tell: Tell) -> BuildRequest:
    """The request with the time that a reproducible build may know, which is told; others as they are."""
    if not request.reproducible:
        return request
    if request.remote:
        given = given_epoch(request.build_args, os.environ)
        epoch = given or Epoch(seconds=0, origin="the context is a URL")
    else:
        epoch = epoch_of(request.context, request.build_args, os.environ, run)
    tell(f"{EPOCH}={epoch.seconds} ({epoch.origin})")
    for what in (*request.attested, *(["--cache-to type=inline"] if has_inline(request.cache_to) else [])):
        tell(f"{what} holds times: the index digest will differ at every build, --reproducible or not")
    return replace(request, epoch=epoch.seconds)


def read_request_bases(request: BuildRequest) -> Bases:
    """The base images of the request's Dockerfile; none are known for a remote context."""
    if request.remote:
        return Bases(images=())
    text = request.dockerfile.read_text(encoding="utf-8", errors="replace")
    pairs = (argument.partition("=") for argument in request.build_args)
    return read_bases(text, {name: value or os.environ.get(name, "") for name, _, value in pairs})


def build_arguments(request: BuildRequest, builder: str, metadata: Path) -> list[str]:
    """The arguments of ``docker buildx`` for a request, values bound to their flags by ``=``.

    Outputs, tags and caches are as buildx is to have them: see :meth:`.Build.make`.
    """
    outputs, build_args, provenance = request.outputs, request.build_args, request.provenance
    if request.epoch is not None:
        others = (argument for argument in build_args if argument.partition("=")[0] != EPOCH)
        outputs, build_args = rewriting(outputs), (*others, f"{EPOCH}={request.epoch}")
    if request.no_attest or (request.reproducible and not request.attested):
        provenance = "false"  # buildx's default is to attest
    repeated = {
        "tag": request.tags,
        "output": outputs,
        "build-arg": build_args,
        "build-context": request.build_contexts,
        "cache-from": request.cache_from,
        "cache-to": request.cache_to,
        "secret": request.secrets,
        "ssh": request.ssh,
        "label": request.labels,
        "annotation": request.annotations,
        "attest": request.attest,
        "allow": request.allow,
    }
    single = {
        "file": request.file,
        "target": request.target,
        "provenance": provenance,
        "sbom": "false" if request.no_attest else request.sbom,
        "no-cache": "true" if request.no_cache else "",
        "pull": "true" if request.pull else "",
        "progress": _progress(request.progress),
    }
    return [
        "build",
        f"--builder={builder}",
        f"--platform={','.join(map(str, request.platforms))}",
        *(f"--{name}={value}" for name, value in single.items() if value),
        *(f"--{name}={value}" for name, values in repeated.items() for value in values),
        f"--metadata-file={metadata}",
        "--",
        request.context,
    ]


def _progress(asked: str) -> str:
    """Plain in CI, where a moving display makes unreadable logs; else as buildx decides."""
    return "plain" if asked == "auto" and os.environ.get("CI") else asked.replace("auto", "")
