"""Find a running Docker engine and its client programs, and query its properties."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.settings import Settings, cache_folder, create_cache_folder
from buildkit_tasks.errors import DeadlineExceeded, EngineError, SettingsError
from buildkit_tasks.hints import DockerClient, set_docker_client
from buildkit_tasks.host.engine.access import absent_error, connection_error, refused_error
from buildkit_tasks.platforms import Platform, native_platform, platform_of_uname
from buildkit_tasks.report.model import EngineSummary
from buildkit_tasks.system.command import CommandOptions, CommandRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from buildkit_tasks.system.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from buildkit_tasks.system.notify import Notify

__all__ = [
    "API_SECONDS",
    "DEFAULT_ENDPOINT",
    "TOOLS_PACKAGES",
    "ClientTools",
    "Engine",
    "describe_engine",
    "docker_config_folder",
    "engine_without_daemon",
    "ensure_tools",
    "find_system_engine",
    "find_tools",
    "is_docker_config_closed",
    "tools_prefix",
]

TOOLS_PACKAGES = (PackageSet(names=("docker-cli", "docker-buildx")),)
API_SECONDS = 30
"""How long an engine may take to answer before it counts as hanging."""
DEFAULT_ENDPOINT = "unix:///var/run/docker.sock"
# Where docker's CLI looks for plugins, in "docker/cli-plugins".
_DENIED = re.compile("denied|forbidden|unauthorized", re.IGNORECASE)  # by ssh, or a plugin of the daemon
_PLUGIN_ROOTS = ("/usr/local/lib", "/usr/local/libexec", "/usr/lib", "/usr/libexec")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTools:
    """The client programs ``docker`` and buildx, each as the start of an argv."""

    docker: tuple[str, ...]
    buildx: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A Docker engine that answers.

    ``store`` is ``containerd`` or ``graph`` (the classic image store). ``is_local`` tells whether it runs
    on this kernel, so that its containers use the binfmt_misc handlers of this host. ``context`` is the
    docker context, after which buildx names the engine's own builder.
    """

    kind: str
    endpoint: str
    version: str
    store: str
    platform: Platform
    is_local: bool
    tools: ClientTools
    context: str = "default"
    mirrors: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_planned(self) -> bool:
        """Whether this engine is not running: a dry run only shows how it would be started."""
        return not self.version

    @property
    def summary(self) -> EngineSummary:
        """The engine as reports describe it."""
        return EngineSummary(kind=self.kind, endpoint=self.endpoint, version=self.version, store=self.store)

    def command_options(self, **overrides: Any) -> CommandOptions:
        """Return options for running a client of this engine."""
        return CommandOptions(env={**self.env, **overrides.pop("env", {})}, **overrides)


def find_system_engine(tools: Callable[[], ClientTools], commands: CommandRunner) -> Engine | EngineError:
    """Return the engine that the user's environment selects, or the error that says why there is none.

    ``tools`` is called only if the endpoint accepts connections, because it may download them.
    """
    endpoint = _resolve_endpoint()
    failure = connection_error(endpoint)
    if isinstance(failure, PermissionError):
        return refused_error(endpoint, _iter_user_endpoints())
    if failure is not None:
        return absent_error(endpoint, _iter_user_endpoints())
    try:
        return replace(describe_engine("system", endpoint, tools(), {}, commands), context=_current_context())
    except EngineError as error:
        return error


def describe_engine(
    kind: str, endpoint: str, tools: ClientTools, env: Mapping[str, str], commands: CommandRunner
) -> Engine:
    """Run ``docker info``. Raise :class:`EngineError` with its error if the daemon does not answer."""
    argv = [*tools.docker, "info", "--format={{json .}}"]
    try:
        result = commands.run(argv, CommandOptions(env=env, timeout=API_SECONDS))
    except DeadlineExceeded as error:
        raise EngineError(f"the Docker daemon at {endpoint} did not answer within {API_SECONDS} s") from error
    info = _parse_object(result.stdout)
    if not info.get("ServerVersion"):
        errors = info.get("ServerErrors")
        reason = str(errors[0]) if isinstance(errors, list) and errors else result.reason
        verb = "refuses this user" if _DENIED.search(reason) else "does not answer"
        raise EngineError(f"the Docker daemon at {endpoint} {verb}: {reason}")
    try:
        engine = Engine(
            kind=kind,
            endpoint=endpoint,
            version=str(info["ServerVersion"]),
            store=_detect_image_store(info),
            platform=platform_of_uname(info["Architecture"]),
            is_local=endpoint.startswith("unix:") and info.get("KernelVersion") == os.uname().release,
            tools=tools,
            mirrors=tuple(map(str, (info.get("RegistryConfig") or {}).get("Mirrors") or ())),
            env=env,
        )
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"`docker info` is not as the Engine API says: {error!r}"
        raise EngineError(f"the Docker daemon at {endpoint} cannot be used: {reason}") from error
    set_docker_client(DockerClient(docker=tools.docker, buildx=tools.buildx, env=env))
    return engine


def engine_without_daemon(tools: ClientTools) -> Engine:
    """Return an engine that has only client programs, for builders whose BuildKit is remote."""
    set_docker_client(DockerClient(docker=tools.docker, buildx=tools.buildx))
    return Engine(
        kind="none",
        endpoint="",
        version="none",
        store="none",
        platform=native_platform(),
        is_local=False,
        tools=tools,
    )


def ensure_tools(settings: Settings, commands: CommandRunner, notify: Notify) -> ClientTools:
    """Return docker and buildx; download Debian's into the cache directory if one is missing."""
    tools = find_tools(settings)
    if tools is not None:
        return tools
    if not commands.dry_run:
        create_cache_folder(settings)
    prefix = install_packages(tools_prefix(settings), TOOLS_PACKAGES, commands, notify)
    return _tools_below(prefix)


def find_tools(settings: Settings) -> ClientTools | None:
    """Return the client programs that are installed, else those downloaded before, else None."""
    docker = shutil.which("docker")
    if docker is not None and _has_buildx_plugin():
        return ClientTools(docker=(docker,), buildx=(docker, "buildx"))
    prefix = tools_prefix(settings)
    return _tools_below(prefix) if os.access(prefix, os.X_OK) else None


def tools_prefix(settings: Settings) -> Path:
    """Return the directory of Debian's docker and buildx in the cache."""
    return cache_folder(settings) / "debian" / "tools"


def _tools_below(prefix: Path) -> ClientTools:
    docker = shutil.which("docker") or str(prefix / "usr/bin/docker")
    # buildx also runs as a program of its own, without docker's plugin directories and config.json.
    return ClientTools(
        docker=(docker,), buildx=(str(prefix / "usr/libexec/docker/cli-plugins/docker-buildx"),)
    )


def _has_buildx_plugin() -> bool:
    """Return True if docker's CLI would find buildx in its plugin directories."""
    folders = (
        docker_config_folder() / "cli-plugins",
        *(Path(str(folder)) for folder in _read_docker_config().get("cliPluginsExtraDirs", ())),
        *(Path(root) / "docker/cli-plugins" for root in _PLUGIN_ROOTS),
    )
    return any(os.access(folder / "docker-buildx", os.X_OK) for folder in folders)


def docker_config_folder() -> Path:
    """Return the directory of the configuration of docker's CLI."""
    return Path(os.environ.get("DOCKER_CONFIG") or expand_home("~/.docker"))


def is_docker_config_closed() -> bool:
    """Return True if this user may not look into the directory: HOME may be another user's.

    docker's CLI does without its configuration then, but buildx fails.
    """
    try:
        (docker_config_folder() / "contexts").stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _read_docker_config() -> dict[str, Any]:
    """Read the user's config.json. Raise :class:`SettingsError` if it is malformed.

    Like docker's CLI, do without one that this user may not read: HOME may be another user's.
    """
    path = docker_config_folder() / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, PermissionError):
        return {}
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path}: {error}", hint="fix or remove that file") from error
    if not isinstance(config, dict):
        raise SettingsError(f"{path}: not a JSON object", hint="fix or remove that file")
    return config


def _resolve_endpoint() -> str:
    """Return where docker's CLI would connect: DOCKER_HOST, then the context, then the default."""
    if os.environ.get("DOCKER_HOST"):
        return os.environ["DOCKER_HOST"]
    context = _current_context()
    return DEFAULT_ENDPOINT if context == "default" else _read_context_endpoint(context)


def _current_context() -> str:
    if os.environ.get("DOCKER_HOST"):
        return "default"
    return os.environ.get("DOCKER_CONTEXT") or str(_read_docker_config().get("currentContext", "default"))


def _read_context_endpoint(name: str) -> str:
    """Return the host of a docker context. Raise :class:`SettingsError` if there is no such context."""
    for context, endpoint in _iter_contexts():
        if context == name:
            return endpoint
    raise SettingsError(f"docker context {name!r} does not exist", hint="docker context ls")


def _iter_contexts() -> Iterator[tuple[str, str]]:
    """Yield name and host of each docker context, from metadata files in directories with hashed names.

    There are none in a directory that this user may not read.
    """
    with contextlib.suppress(PermissionError):
        for path in (docker_config_folder() / "contexts/meta").glob("*/meta.json"):
            metadata = _parse_object(path.read_text(encoding="utf-8"))
            host = metadata.get("Endpoints", {}).get("docker", {}).get("Host", DEFAULT_ENDPOINT)
            yield str(metadata.get("Name", "")), str(host)


def _iter_user_endpoints() -> Iterator[str]:
    """Yield the endpoint of a rootless engine of this user, then those of the docker contexts."""
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    yield f"unix://{runtime_dir}/docker.sock"
    for _, endpoint in _iter_contexts():
        yield endpoint


def _parse_object(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _detect_image_store(info: Mapping[str, Any]) -> str:
    driver_status = [tuple(row) for row in info.get("DriverStatus") or ()]
    containerd = ("driver-type", "io.containerd.snapshotter.v1") in driver_status
    return "containerd" if containerd else "graph"
