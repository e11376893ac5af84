"""Run a private Docker engine from Debian packages in the user's cache directory.

Its daemon has its own data directory, socket (mode 0600, in a directory of mode 0700) and pid file, and a
containerd of its own: otherwise dockerd takes the system's if there is one, with the images of that one's
Docker. Nothing is installed into the system. The file ``process`` has the pid and start time of dockerd, so
that another process with the same pid is never mistaken for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder, create_cache_folder
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.access import is_listening
from buildkit_tasks.host.engine.daemon import ClientTools, Engine, describe_engine, ensure_tools
from buildkit_tasks.host.engine.private_network import PrivateNetwork
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.host.privileges import list_missing_capabilities, rerun_as_root
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.system.command import CommandOptions, CommandRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from buildkit_tasks.system.files import write_atomically
from buildkit_tasks.system.lock import file_lock
from buildkit_tasks.system.process import Process, find_processes_by_argument

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from buildkit_tasks.system.notify import Notify

__all__ = [
    "ENGINE_PACKAGES",
    "engine_prefix",
    "ensure_private_engine",
    "find_private_engine",
    "is_private_engine_running",
    "private_engine_obstacle",
    "stop_private_engine",
]

_READY_SECONDS = 60.0
_STOP_SECONDS = 30.0

ENGINE_PACKAGES = (
    PackageSet(names=("containerd", "docker.io")),
    # Testing's runc needs a newer libc than a stable host has, so take the host's own release.
    PackageSet(names=("runc", "iptables", "tini"), suite="host", with_dependencies=True),
)


def engine_prefix(settings: Settings) -> Path:
    """Return the directory of the private engine's packages in the cache."""
    return PrivateEnginePaths(cache_folder(settings)).prefix


def is_private_engine_running(settings: Settings) -> bool:
    """Return True if its process is alive."""
    return _is_running(PrivateEnginePaths(cache_folder(settings)))


def find_private_engine(
    settings: Settings, tools: ClientTools, commands: CommandRunner, *, name: str = "engine"
) -> Engine | None:
    """Return the private engine if it is running and answers, else None."""
    paths = PrivateEnginePaths(cache_folder(settings), name)
    if not _is_running(paths):
        return None
    try:
        return _describe_private_engine(paths, tools, commands)
    except EngineError:
        return None


def private_engine_obstacle(settings: Settings, *, name: str = "engine") -> EngineError | None:
    """Return why this user can neither use nor start the private engine, or None.

    It serves only the user who has started it: tasks that need it run as root.
    """
    if is_listening(PrivateEnginePaths(cache_folder(settings), name).endpoint):
        return None
    if os.geteuid() != 0:
        env = ("INVOKE_BUILDKIT_ENGINE=auto",) if settings.engine == "system" else ()
        return EngineError("only root can start a private one", hint=rerun_as_root(*env))
    if missing := list_missing_capabilities():
        return EngineError(
            f"this container cannot start a private one: it lacks {' and '.join(missing)}",
            hint="run on a host or in a privileged container",
        )
    return None


def ensure_private_engine(
    settings: Settings,
    commands: CommandRunner,
    notify: Notify,
    *,
    store: str = "containerd",
    name: str = "engine",
) -> Engine:
    """Return the private engine; download its packages and start it if it is not running.

    Raise :class:`EngineError` if that fails: not root, no apt, no NAT in the kernel, or a daemon that
    does not start (with the last message of its log). Nothing is downloaded for a user who cannot start one.
    """
    paths = PrivateEnginePaths(cache_folder(settings), name)
    obstacle = private_engine_obstacle(settings, name=name)
    if obstacle is not None:
        raise EngineError(f"no private engine is running, and {obstacle.message}", hint=obstacle.hint)
    if not commands.dry_run:
        create_cache_folder(settings)
    tools = ensure_tools(settings, commands, notify)
    engine = find_private_engine(settings, tools, commands, name=name)
    if engine is not None:
        return engine
    with _lock(paths, dry_run=commands.dry_run):
        if not _is_running(paths):
            install_packages(paths.prefix, ENGINE_PACKAGES, commands, notify)
            _start_daemon(paths, store, commands, notify)
        if commands.dry_run:
            return _planned_engine(paths, tools)
        _wait_until_ready(paths)
    return _describe_private_engine(paths, tools, commands)


def stop_private_engine(
    settings: Settings,
    commands: CommandRunner,
    notify: Notify,
    *,
    keep_state: bool = False,
    name: str = "engine",
) -> bool:
    """Stop the private engine, and remove its data unless ``keep_state``; return whether it was running.

    The downloaded packages stay in the cache.
    """
    paths = PrivateEnginePaths(cache_folder(settings), name)
    process = _read_process(paths)
    was_running = process is not None and process.is_alive
    if commands.dry_run:
        notify(f"would stop process {process.pid if process else 'none'} and remove {paths.root}")
        return was_running
    # Without the lock, another process could start the engine while its files are being removed.
    with _lock(paths, dry_run=not os.access(paths.cache, os.W_OK)):
        _stop_processes(paths)
        _remove_files(paths, commands, keep_state=keep_state)
    return was_running


def _lock(paths: PrivateEnginePaths, *, dry_run: bool) -> AbstractContextManager[None]:
    return file_lock(paths.cache / f".{paths.name}.lock", dry_run=dry_run)


def _stop_processes(paths: PrivateEnginePaths) -> None:
    process = _read_process(paths)
    if process is not None:
        process.terminate(_STOP_SECONDS)
    for orphan in _find_orphans(paths):
        orphan.terminate(_STOP_SECONDS)


def _remove_files(paths: PrivateEnginePaths, commands: CommandRunner, *, keep_state: bool) -> None:
    if os.access(paths.prefix, os.X_OK):
        _private_network(paths, commands).remove()
    for mount_point in _find_mounts(paths.root, paths.runtime_dir):
        with contextlib.suppress(OSError):
            commands.unmount(mount_point)
    paths.process_file.unlink(missing_ok=True)
    shutil.rmtree(paths.runtime_dir, ignore_errors=True)
    if not keep_state:
        shutil.rmtree(paths.root, ignore_errors=True)


def _describe_private_engine(
    paths: PrivateEnginePaths, tools: ClientTools, commands: CommandRunner
) -> Engine:
    return describe_engine("private", paths.endpoint, tools, _client_environment(paths), commands)


def _read_process(paths: PrivateEnginePaths) -> Process | None:
    """Return the process of the last start, or None if the file cannot be read."""
    try:
        return Process.parse(paths.process_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _find_orphans(paths: PrivateEnginePaths) -> list[Process]:
    """Return the containerd and shims that a killed daemon leaves; their arguments contain our directory.

    So do those of a program that reads a log there, so only our own executables count.
    """
    program_root = paths.prefix.resolve()
    processes = find_processes_by_argument(paths.runtime_dir)
    return [process for process in processes if process.executable.is_relative_to(program_root)]


def _find_mounts(*folders: Path) -> list[Path]:
    """Return what a killed daemon leaves mounted in these directories, the innermost first."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    # The mount point is field 5, with spaces as octal escapes (proc(5)).
    mount_points = (Path(line.split(" ")[4].replace("\\040", " ")) for line in lines)
    mounts = [path for path in mount_points if any(path.is_relative_to(folder) for folder in folders)]
    return mounts[::-1]


def _is_running(paths: PrivateEnginePaths) -> bool:
    process = _read_process(paths)
    return process is not None and process.is_alive


def _start_daemon(paths: PrivateEnginePaths, store: str, commands: CommandRunner, notify: Notify) -> None:
    if not commands.dry_run:
        _prepare_folders(paths)
        _write_configuration(paths, store)
        _private_network(paths, commands).create()
    notify(f"starting a private Docker engine at {paths.endpoint}")
    options = CommandOptions(env=_daemon_environment(paths))
    if not is_listening(f"unix://{paths.containerd_socket}"):  # a killed dockerd leaves it running
        containerd = str(paths.prefix / "usr/bin/containerd")
        arguments = [containerd, f"--config={paths.containerd_dir / 'containerd.toml'}"]
        commands.start_daemon(arguments, paths.root / "containerd.log", options)
    dockerd = str(paths.prefix / "usr/sbin/dockerd")
    pid = commands.start_daemon(
        [dockerd, f"--config-file={paths.root / 'daemon.json'}"], paths.log_file, options
    )
    if not commands.dry_run:
        _write_process(paths, pid)


def _private_network(paths: PrivateEnginePaths, commands: CommandRunner) -> PrivateNetwork:
    program_dir = paths.prefix / "usr/sbin"
    return PrivateNetwork(
        bridge=paths.bridge, program_dir=program_dir, env=_daemon_environment(paths), commands=commands
    )


def _write_process(paths: PrivateEnginePaths, pid: int) -> None:
    try:
        write_atomically(paths.process_file, str(Process.from_pid(pid)))
    except ProcessLookupError:
        raise _start_error(paths) from None


def _prepare_folders(paths: PrivateEnginePaths) -> None:
    """Create the directories, and a link to tini under the name that dockerd expects."""
    for folder in (paths.root, paths.runtime_dir, paths.containerd_dir, paths.temporary_dir):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    # dockerd does not start if any process has the pid in its stale pid file.
    (paths.runtime_dir / "docker.pid").unlink(missing_ok=True)
    bin_folder = paths.root / "bin"
    shutil.rmtree(bin_folder, ignore_errors=True)
    bin_folder.mkdir()
    # Without docker-init, `docker run --init` and docker-container builders fail.
    (bin_folder / "docker-init").symlink_to(paths.prefix / "usr/bin/tini-static")


def _daemon_environment(paths: PrivateEnginePaths) -> dict[str, str]:
    prefix = paths.prefix
    libraries = [*prefix.glob("usr/lib/*-linux-*"), *prefix.glob("lib/*-linux-*")]
    programs = [paths.root / "bin", *(prefix / name for name in ("usr/sbin", "usr/bin", "sbin", "bin"))]
    extensions = [folder / "xtables" for folder in libraries if (folder / "xtables").is_dir()]
    return {
        "PATH": os.pathsep.join([*map(str, programs), os.environ.get("PATH", os.defpath)]),
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "XTABLES_LIBDIR": os.pathsep.join(map(str, extensions)),
        # The daemon outlives the task that starts it, whose own TMPDIR may be removed.
        "TMPDIR": str(paths.temporary_dir),
    }


def _write_configuration(paths: PrivateEnginePaths, store: str) -> None:
    configuration = {
        "data-root": str(paths.data_root),
        "exec-root": str(paths.runtime_dir / "exec"),
        "pidfile": str(paths.runtime_dir / "docker.pid"),
        "hosts": [paths.endpoint],
        "containerd": str(paths.containerd_socket),
        "features": {"containerd-snapshotter": store == "containerd"},
        "bridge": paths.bridge,
        "iptables": False,
        "ip6tables": False,
        "ip-forward": False,
        "userland-proxy": False,
    }
    write_atomically(paths.root / "daemon.json", json.dumps(configuration, indent=2))
    write_atomically(paths.containerd_dir / "containerd.toml", _containerd_configuration(paths))


def _containerd_configuration(paths: PrivateEnginePaths) -> str:
    """Return containerd's configuration; the plugin "opt" would create /opt/containerd."""
    configuration = {
        "version": 2,
        "root": str(paths.data_root / "containerd/daemon"),
        "state": str(paths.containerd_dir / "daemon"),
        "disabled_plugins": ["io.containerd.grpc.v1.cri"],
        "grpc.address": str(paths.containerd_socket),
        'plugins."io.containerd.internal.v1.opt".path': str(paths.root / "opt"),
    }
    # These values are the same in TOML as in JSON.
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in configuration.items())


def _wait_until_ready(paths: PrivateEnginePaths) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if is_listening(paths.endpoint):
            paths.socket.chmod(0o600)
            return
        if not _is_running(paths):
            raise _start_error(paths)
        time.sleep(0.05)
    raise EngineError(
        f"the private engine was not ready after {_READY_SECONDS:.0f} s", hint=f"check {paths.log_file}"
    )


def _start_error(paths: PrivateEnginePaths) -> EngineError:
    lines = paths.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    reason = next((line for line in reversed(lines) if line.startswith("failed to")), "")
    return EngineError(
        f"the private engine did not start: {reason or (lines or ['its log is empty'])[-1]}",
        hint=f"check {paths.log_file}",
    )


def _client_environment(paths: PrivateEnginePaths) -> dict[str, str]:
    """Return the environment of clients: the private socket, and a buildx store of its own."""
    environment = {"DOCKER_HOST": paths.endpoint}
    if not os.environ.get("BUILDX_CONFIG"):
        environment["BUILDX_CONFIG"] = str(paths.root / "buildx")
    return environment


def _planned_engine(paths: PrivateEnginePaths, tools: ClientTools) -> Engine:
    """Return the engine that the commands shown by a dry run would start."""
    return Engine(
        kind="private",
        endpoint=paths.endpoint,
        version="",
        store="containerd",
        platform=native_platform(),
        is_local=True,
        tools=tools,
        env=_client_environment(paths),
    )
