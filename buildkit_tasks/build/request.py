"""A build request: what to build and where it goes, checked before any program is started.

A request passes two checks on its way to buildx, each once: :func:`check_request` before any program is
started, and :func:`buildkit_tasks.build.capabilities.check_capabilities` when engine and builder are known.

:func:`make_buildx_argv` makes the arguments of ``docker buildx build``.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.cache import check_cache, has_inline_cache
from buildkit_tasks.build.container_options import (
    check_hosts,
    check_network,
    check_resources,
    check_shm_size,
    check_ulimits,
)
from buildkit_tasks.build.dockerfile import BaseImages, parse_base_images
from buildkit_tasks.build.outputs import OutputSpec, check_outputs
from buildkit_tasks.build.reproducible import (
    SOURCE_DATE_EPOCH,
    SourceDateEpoch,
    find_explicit_epoch,
    resolve_epoch,
    rewrite_timestamps,
)
from buildkit_tasks.build.secrets import (
    check_build_argument,
    check_context_url,
    check_secrets,
    check_ssh,
    redact_userinfo,
)
from buildkit_tasks.errors import UsageError
from buildkit_tasks.oci.reference import check_no_login
from buildkit_tasks.system.files import check_writable

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = [
    "STANDARD_INPUT",
    "BuildRequest",
    "check_request",
    "drop_outputs",
    "make_buildx_argv",
    "read_base_images",
    "read_dockerfile_from_stdin",
    "set_epoch",
]

STANDARD_INPUT = "-"

# The grammar of github.com/distribution/reference, without a digest: a tag names what is built.
_TAG_PATTERN = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?\Z",
    re.ASCII,
)
# The names that buildx looks for by default.
_BAKE_FILES = (
    "docker-bake.hcl", "docker-bake.json",
    "compose.yaml", "compose.yml", "docker-compose.yaml", "docker-compose.yml",
)  # fmt: skip
_BOOLEANS = ("1", "t", "true", "0", "f", "false")  # as in Go
_REMOTE_CONTEXT = re.compile(r"(?:https?|git|ssh)://|git@")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What to build and where it goes. Fields are named after the options of ``docker buildx build``.

    ``epoch`` is the timestamp of a reproducible build, in seconds since 1970 (:func:`set_epoch`). A pushed
    image is tagged after it was verified and run, or at once without ``verify_first``; that of a ``split``
    build is never tagged, since it is a part for ``merge-multiarch``. With ``no_push`` nothing is pushed,
    whatever the outputs are; with ``call``, a method of the Dockerfile's frontend, nothing is built
    (:func:`drop_outputs`). ``dockerfile_text`` is the Dockerfile if ``file`` is "-".
    """

    platforms: tuple[Platform, ...]
    context: str = "."
    file: str = ""
    dockerfile_text: str | None = None
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
    no_cache_filters: tuple[str, ...] = ()
    pull: bool = False
    progress: str = "auto"
    metadata_file: str = ""
    iidfile: str = ""
    allow: tuple[str, ...] = ()
    network: str = ""
    add_hosts: tuple[str, ...] = ()
    shm_size: str = ""
    ulimits: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    cgroup_parent: str = ""
    call: str = ""
    split: bool = False
    no_push: bool = False
    verify_first: bool = True

    @property
    def has_remote_context(self) -> bool:
        """Return True if the context is a URL, which BuildKit fetches."""
        return bool(_REMOTE_CONTEXT.match(self.context))

    @property
    def attestation_options(self) -> tuple[str, ...]:
        """Return the flags of this request that ask for attestations."""
        flag_values = {"--provenance": self.provenance, "--sbom": self.sbom}
        flags = tuple(flag for flag, value in flag_values.items() if value not in ("", "false"))
        return (*flags, "--attest") if self.attest else flags

    @property
    def dockerfile(self) -> Path:
        """Return the path of the Dockerfile: ``file``, or ``Dockerfile`` in the context."""
        return Path(self.file) if self.file else Path(self.context) / "Dockerfile"

    @property
    def pushed_names(self) -> tuple[str, ...]:
        """Return the references that pushed images shall have: the outputs' own, else the tags."""
        push_outputs = (output for output in self.outputs if output.is_pushed)
        return tuple(name for output in push_outputs for name in output.names or self.tags)


def check_request(request: BuildRequest) -> None:
    """Raise :class:`UsageError` for a request that cannot be built; no program is started."""
    if not request.platforms:
        raise UsageError("no platform to build for", hint="--platform linux/amd64,linux/arm64")
    if request.split and len(request.platforms) > 1:
        raise UsageError(
            f"--split builds a part of one platform, not of {', '.join(map(str, request.platforms))}",
            hint=f"--platform {request.platforms[0]}, and one build for each of the others",
        )
    for tag in request.tags:
        if not _TAG_PATTERN.match(tag):
            check_no_login(tag)
            raise UsageError(
                f"{redact_userinfo(tag)!r} is not a valid image name",
                hint="write it as registry/name:tag, in lower case",
            )
    for argument in request.build_args:
        check_build_argument(argument)
    check_context_url("the build context", request.context)
    for context in request.build_contexts:
        check_context_url("the build context", context)
    check_secrets(request.secrets, os.environ)
    check_ssh(request.ssh, os.environ)
    check_cache(request.cache_to, request.cache_from)
    find_explicit_epoch(request.build_args, os.environ)
    _check_attestations(request)
    _check_container_options(request)
    check_outputs(request.outputs, request.tags, is_split=request.split)
    if request.load and not request.tags:
        raise UsageError("--load needs a tag", hint="-t NAME:TAG")
    _check_image_id_file(request)
    for flag, path in (("--metadata-file=", request.metadata_file), ("--iidfile=", request.iidfile)):
        if path:
            check_writable(Path(path), flag)
    _check_files(request)


def _check_container_options(request: BuildRequest) -> None:
    check_network(request.network)
    check_hosts(request.add_hosts)
    check_shm_size(request.shm_size)
    check_ulimits(request.ulimits)
    check_resources(request.resources)


def _check_image_id_file(request: BuildRequest) -> None:
    """Refuse ``--iidfile`` if there will be no image, but only files."""
    has_image = request.load or any(output.type not in ("local", "tar") for output in request.outputs)
    if request.iidfile and not has_image:
        raise UsageError(
            f"--iidfile={request.iidfile}: files of type=local and type=tar have no image ID",
            hint="-o type=oci,dest=dist/image.tar",
        )


def _check_files(request: BuildRequest) -> None:
    is_local = not request.has_remote_context
    if is_local and not Path(request.context).is_dir():
        raise UsageError(f"the build context {request.context!r} is not a folder", hint="--context FOLDER")
    if request.dockerfile_text is None:
        if is_local and not request.dockerfile.is_file():
            raise UsageError(f"there is no {request.dockerfile}", hint=_missing_dockerfile_hint(request))
    elif not request.dockerfile_text.strip():
        raise UsageError(
            "--file=-: the Dockerfile on standard input is empty",
            hint="inv build-multiarch -f - < Dockerfile",
        )


def _missing_dockerfile_hint(request: BuildRequest) -> str:
    """Return a hint that names a bake file of this folder, if no other Dockerfile was asked for."""
    bake_file = next((name for name in _BAKE_FILES if Path(name).is_file()), "")
    is_default = not request.file and Path(request.context) == Path()
    return (
        f"--bake {bake_file}"
        if bake_file and is_default
        else "name another Dockerfile by -f FILE or by file in the settings"
    )


def _check_attestations(request: BuildRequest) -> None:
    if request.no_attest and request.attestation_options:
        raise UsageError(
            f"--no-attest contradicts {', '.join(request.attestation_options)}",
            hint="omit one of them",
        )
    for flag, value, example in (
        ("--provenance", request.provenance, "mode=max"),
        ("--sbom", request.sbom, "true"),
    ):
        if value and value.lower() not in _BOOLEANS and not all("=" in each for each in value.split(",")):
            raise UsageError(
                f"{flag}={value} is neither true, false nor NAME=VALUE", hint=f"{flag}={example}"
            )


def drop_outputs(request: BuildRequest) -> BuildRequest:
    """Return a request without the outputs that ``call`` and ``no_push`` exclude."""
    if request.call:
        return replace(request, outputs=(), load=False, tags=(), cache_to=())
    if request.no_push:
        return replace(request, outputs=tuple(each for each in request.outputs if not each.is_pushed))
    return request


def read_dockerfile_from_stdin() -> str:
    """Read the Dockerfile of ``--file -`` to the end of standard input."""
    return sys.stdin.buffer.read().decode(errors="replace")


def set_epoch(request: BuildRequest, commands: CommandRunner, notify: Notify) -> BuildRequest:
    """Return a reproducible request with its timestamp, which is notified; any other one unchanged."""
    if not request.reproducible:
        return request
    if request.has_remote_context:
        explicit_epoch = find_explicit_epoch(request.build_args, os.environ)
        epoch = explicit_epoch or SourceDateEpoch(seconds=0, origin="the context is a URL")
    else:
        epoch = resolve_epoch(request.context, request.build_args, os.environ, commands)
    notify(f"{SOURCE_DATE_EPOCH}={epoch.seconds} ({epoch.origin})")
    for option in (
        *request.attestation_options,
        *(["--cache-to type=inline"] if has_inline_cache(request.cache_to) else []),
    ):
        notify(
            f"{option} contains timestamps: the index digest differs in every build despite --reproducible"
        )
    return replace(request, epoch=epoch.seconds)


def read_base_images(request: BuildRequest) -> BaseImages:
    """Return the base images of the request's Dockerfile; none of a remote one, which is not read.

    Raises :class:`UsageError` if the Dockerfile cannot be read.
    """
    if request.dockerfile_text is not None:
        text = request.dockerfile_text
    elif request.has_remote_context:
        return BaseImages(images=())
    else:
        text = _read_dockerfile(request.dockerfile)
    pairs = (argument.partition("=") for argument in request.build_args)
    build_args = {name: value or os.environ.get(name, "") for name, _, value in pairs}
    return replace(parse_base_images(text, build_args), target=request.target)


def _read_dockerfile(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def make_buildx_argv(request: BuildRequest, builder: str, metadata_path: Path | None) -> list[str]:
    """Return the arguments of ``docker buildx`` for a request. Values are joined to their flags by ``=``.

    Outputs, tags and caches are passed on as they are; :meth:`.BuildExecution.run_buildx` sets them.
    """
    return [
        "build",
        f"--builder={builder}",
        f"--platform={','.join(map(str, request.platforms))}",
        *(f"--{name}={value}" for name, value in _scalar_options(request).items() if value),
        *(f"--{name}={value}" for name, values in _list_options(request).items() for value in values),
        *([f"--metadata-file={metadata_path}"] if metadata_path else []),
        "--",
        request.context,
    ]


def _scalar_options(request: BuildRequest) -> dict[str, str]:
    # By default buildx adds provenance, which contains timestamps.
    omits_attestations = request.no_attest or (request.reproducible and not request.attestation_options)
    return {
        "file": request.file,
        "target": request.target,
        "provenance": "false" if omits_attestations else request.provenance,
        "sbom": "false" if request.no_attest else request.sbom,
        "no-cache": "true" if request.no_cache else "",
        "pull": "true" if request.pull else "",
        "progress": _choose_progress(request.progress),
        "network": request.network,
        "shm-size": request.shm_size,
        "cgroup-parent": request.cgroup_parent,
        "call": request.call,
    }


def _list_options(request: BuildRequest) -> dict[str, tuple[object, ...]]:
    outputs, build_args = request.outputs, request.build_args
    if request.epoch is not None:
        outputs = rewrite_timestamps(outputs)
        other_args = (argument for argument in build_args if argument.partition("=")[0] != SOURCE_DATE_EPOCH)
        build_args = (*other_args, f"{SOURCE_DATE_EPOCH}={request.epoch}")
    return {
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
        "no-cache-filter": request.no_cache_filters,
        "add-host": request.add_hosts,
        "ulimit": request.ulimits,
        "resource": request.resources,
    }


def _choose_progress(requested: str) -> str:
    """Return ``plain`` in CI, whose logs do not show a live display; else "", buildx's own choice."""
    return "plain" if requested == "auto" and os.environ.get("CI") else requested.replace("auto", "")
