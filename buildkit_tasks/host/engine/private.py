"""A private Docker engine: Debian's packages under the user's cache folder, started when needed.

Its daemon has its own data, its own socket (mode 0600, in a folder that only its owner may enter)
and its own pid file; nothing of it is installed into the system. What it is and when it started is
kept in ``process``, so that no other process is ever taken for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.daemon import (
    Engine,
    Tools,
    describe_engine,
    docker_tools,
    listens,
)
from buildkit_tasks.host.engine.private_network import Network
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.system.command import Call, Runner
from buildkit_tasks.system.debian import Packages, provision
from buildkit_tasks.system.lock import only_one
from buildkit_tasks.system.process import Process, processes_naming

if TYPE_CHECKING:
    from buildkit_tasks.system.notify import Tell

__all__ = [
    "PrivatePaths",
    "ensure_private_engine",
    "running_private_engine",
    "stop_private_engine",
]

_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0

_ENGINE_PACKAGES = (
    Packages(names=("containerd", "docker.io")),
    # Testing's runc wants a newer libc than a stable host has: the host's own release serves.
    Packages(names=("runc", "iptables", "tini"), suite="host", dependencies=True),
)


def running_private_engine(
    settings: Settings, tools: Tools, run: Runner, *, name: str = "engine"
) -> Engine | None:
    """The private engine if it runs and answers."""
    paths = PrivatePaths(cache_folder(settings), name)
    if not _running(paths):
        return None
    try:
        return _described(paths, tools, run)
    except EngineError:
        return None


def ensure_private_engine(
    settings: Settings, run: Runner, tell: Tell, *, store: str = "containerd", name: str = "engine"
) -> Engine:
    """The private engine, provisioned and started if it is not running.

    Raises :class:`EngineError` where it cannot be: not root, no apt, no NAT in the kernel, or a
    daemon that does not come up (with the end of its log).
    """
    paths = PrivatePaths(cache_folder(settings), name)
    tools = docker_tools(settings, run, tell)
    found = running_private_engine(settings, tools, run, name=name)
    if found is not None:
        return found
    if os.geteuid() != 0:
        raise EngineError(
            "no Docker daemon answers, and a private one can be started by root only",
            hint="sudo inv setup-builder, or install and start Docker with buildx",
        )
    with only_one(paths.cache / f".{paths.name}.lock", dry_run=run.dry_run):
        if not _running(paths):
            provision(paths.prefix, _ENGINE_PACKAGES, run, tell)
            _start(paths, store, run, tell)
        if run.dry_run:
            return _planned(paths, tools)
        _await_ready(paths)
    return _described(paths, tools, run)


def stop_private_engine(
    settings: Settings, run: Runner, tell: Tell, *, keep_state: bool = False, name: str = "engine"
) -> bool:
    """End the private engine, that process alone, and remove what it kept unless told not to.

    Gives whether one was running. The downloaded packages stay: they are a cache.
    """
    paths = PrivatePaths(cache_folder(settings), name)
    process = _recorded(paths)
    running = process is not None and process.alive
    if run.dry_run:
        tell(f"would end process {process.pid if process else 'none'} and remove {paths.home}")
        return running
    if process is not None:
        process.end(_STOP_SECONDS)
    for orphan in _orphans(paths):
        orphan.end(_STOP_SECONDS)
    if paths.prefix.is_dir():
        _network(paths, run).remove()
    for place in _mounts_below(paths.home, paths.runtime):
        with contextlib.suppress(OSError):
            run.detach(place)
    paths.state.unlink(missing_ok=True)
    shutil.rmtree(paths.runtime, ignore_errors=True)
    if not keep_state:
        shutil.rmtree(paths.home, ignore_errors=True)
    return running


def _described(paths: PrivatePaths, tools: Tools, run: Runner) -> Engine:
    return describe_engine("private", paths.endpoint, tools, _client_environment(paths), run)


def _recorded(paths: PrivatePaths) -> Process | None:
    """The process noted at the last start; anything that cannot be read is no note."""
    try:
        return Process.parse(paths.state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _orphans(paths: PrivatePaths) -> list[Process]:
    """What a daemon that was killed leaves: its containerd and shims, which name our runtime folder.

    Somebody who reads a log in that folder names it too: only our own programs count.
    """
    programs = paths.prefix.resolve()
    return [each for each in processes_naming(paths.runtime) if each.program.is_relative_to(programs)]


def _mounts_below(*folders: Path) -> list[Path]:
    """What a daemon that was killed has left mounted in our folders, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    # Field 5, its blanks as octal escapes: proc(5).
    places = (line.split(" ")[4].replace("\\040", " ") for line in lines)
    found = [Path(place) for place in places if any(Path(place).is_relative_to(each) for each in folders)]
    return found[::-1]


def _running(paths: PrivatePaths) -> bool:
    process = _recorded(paths)
    return process is not None and process.alive


def _start(paths: PrivatePaths, store: str, run: Runner, tell: Tell) -> None:
    if not run.dry_run:
        _prepare(paths)
        _write_configuration(paths, store)
        _network(paths, run).make()
    tell(f"starting a private Docker engine at {paths.endpoint}")
    dockerd = str(paths.prefix / "usr/sbin/dockerd")
    call = Call(env=_daemon_environment(paths))
    pid = run.start([dockerd, f"--config-file={paths.home / 'daemon.json'}"], paths.log, call)
    if not run.dry_run:
        _record(paths, pid)


def _network(paths: PrivatePaths, run: Runner) -> Network:
    programs = paths.prefix / "usr/sbin"
    return Network(bridge=paths.bridge, programs=programs, env=_daemon_environment(paths), run=run)


def _record(paths: PrivatePaths, pid: int) -> None:
    try:
        paths.state.write_text(str(Process.of(pid)), encoding="utf-8")
    except ProcessLookupError:
        raise _died(paths) from None


def _prepare(paths: PrivatePaths) -> None:
    """Folders, and an init under the name by which dockerd looks for it."""
    for folder in (paths.home, paths.runtime):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    # dockerd takes any process that has its last pid now for itself, and does not start.
    (paths.runtime / "docker.pid").unlink(missing_ok=True)
    if not _orphans(paths):
        (paths.runtime / "exec/containerd/containerd.pid").unlink(missing_ok=True)
    links = paths.home / "bin"
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir()
    # Without docker-init every `--init` run and every docker-container builder fails.
    (links / "docker-init").symlink_to(paths.prefix / "usr/bin/tini-static")


def _daemon_environment(paths: PrivatePaths) -> dict[str, str]:
    prefix = paths.prefix
    libraries = [*prefix.glob("usr/lib/*-linux-*"), *prefix.glob("lib/*-linux-*")]
    programs = [paths.home / "bin", *(prefix / each for each in ("usr/sbin", "usr/bin", "sbin", "bin"))]
    extensions = [folder / "xtables" for folder in libraries if (folder / "xtables").is_dir()]
    return {
        "PATH": os.pathsep.join([*map(str, programs), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "XTABLES_LIBDIR": os.pathsep.join(map(str, extensions)),
    }


def _write_configuration(paths: PrivatePaths, store: str) -> None:
    configuration = {
        "data-root": str(paths.data),
        "exec-root": str(paths.runtime / "exec"),
        "pidfile": str(paths.runtime / "docker.pid"),
        "hosts": [paths.endpoint],
        "features": {"containerd-snapshotter": store == "containerd"},
        "bridge": paths.bridge,
        "iptables": False,
        "ip6tables": False,
        "userland-proxy": False,
    }
    text = json.dumps(configuration, indent=2)
    (paths.home / "daemon.json").write_text(text, encoding="utf-8")


def _await_ready(paths: PrivatePaths) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if listens(paths.endpoint):
            paths.socket.chmod(0o600)
            return
        if not _running(paths):
            raise _died(paths)
        time.sleep(0.05)
    raise EngineError(f"the private engine was not ready after {_READY_SECONDS:.0f} s; see {paths.log}")


def _died(paths: PrivatePaths) -> EngineError:
    lines = paths.log.read_text(encoding="utf-8", errors="replace").splitlines()
    words = next((line for line in reversed(lines) if line.startswith("failed to")), "")
    return EngineError(
        f"the private engine did not start: {words or (lines or ['it said nothing'])[-1]}",
        hint=f"look into {paths.log}",
    )


def _client_environment(paths: PrivatePaths) -> dict[str, str]:
    """Clients talk to the private socket, and keep their builders apart from the user's."""
    environment = {"DOCKER_HOST": paths.endpoint}
    if not os.environ.get("BUILDX_CONFIG"):
        environment["BUILDX_CONFIG"] = str(paths.home / "buildx")
    return environment


def _planned(paths: PrivatePaths, tools: Tools) -> Engine:
    """What a dry run goes on with: the engine that the commands just shown would start."""
    return Engine(
        kind="private",
        endpoint=paths.endpoint,
        version="",
        store="containerd",
        native=native_platform(),
        local=True,
        tools=tools,
        env=_client_environment(paths),
    )


@dataclass(frozen=True, slots=True)
class PrivatePaths:
    """Where one private engine keeps its things; ``name`` tells several engines apart."""

    cache: Path
    name: str = "engine"

    @property
    def home(self) -> Path:
        """Configuration, state and log."""
        return self.cache / self.name

    @property
    def prefix(self) -> Path:
        """The unpacked packages."""
        return self.cache / "debian" / "engine"

    @property
    def runtime(self) -> Path:
        """Sockets and mounts: short, since a socket's path may have 107 bytes, and gone at reboot."""
        digest = hashlib.sha256(str(self.home).encode()).hexdigest()[:8]
        return Path("/run/buildkit-tasks") / digest

    @property
    def bridge(self) -> str:
        """The network device of its containers (15 characters at most)."""
        return f"bkt-{self.runtime.name}"

    @property
    def socket(self) -> Path:
        """The daemon's only listener."""
        return self.runtime / "docker.sock"

    @property
    def endpoint(self) -> str:
        """The socket as docker's clients write it."""
        return f"unix://{self.socket}"

    @property
    def data(self) -> Path:
        """Images, containers and build cache."""
        return self.home / "data"

    @property
    def state(self) -> Path:
        """Which process is the daemon, and when it started."""
        return self.home / "process"

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.home / "dockerd.log"
