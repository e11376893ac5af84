"""Run a private engine beside a Docker and a containerd with the default paths of a system.

Run it with ``unshare --mount --net``. It prints, as JSON, what of the system's Docker, of its firewall and of
the host's folders is different afterwards. With the argument ``alone`` there is no system's Docker.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.access import is_listening
from buildkit_tasks.host.engine.private import _daemon_environment, ensure_private_engine, stop_private_engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import SubprocessRunner
from tests.support.waiting import wait_until

NAME = "beside-docker"
DATA = ("/var/lib/docker", "/var/lib/containerd")
FOLDERS = ("/run", "/opt", *DATA)
CONTAINERD, DOCKER = "/run/containerd/containerd.sock", "/run/docker.sock"
LISTS = ("images ls", "leases ls", "containers ls", "content ls --quiet", "snapshots ls")

settings, commands = load_settings(), SubprocessRunner()
paths = PrivateEnginePaths(cache_folder(settings), NAME)


def run(argv: list[str], environment: dict[str, str], stdin: bytes = b"") -> str:
    return subprocess.run(
        argv, env=environment, check=True, input=stdin, stdout=subprocess.PIPE
    ).stdout.decode()


def hide_system() -> None:
    """Put empty folders in the places of a system's Docker."""
    for folder in FOLDERS:
        Path(folder).mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("0")


def start_system(folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
    """Start containerd and dockerd with their default paths; the firewall is dockerd's own."""
    for name in ("iptables", "ip6tables", "iptables-save", "ip6tables-save"):
        (folder / name).symlink_to(paths.prefix / "usr/sbin/xtables-nft-multi")
    configuration = folder / "daemon.json"
    configuration.write_text(json.dumps({"features": {"containerd-snapshotter": True}}))
    start(paths.prefix / "usr/bin/containerd", [], CONTAINERD, environment, stack)
    arguments = [f"--config-file={configuration}", f"--containerd={CONTAINERD}"]
    start(paths.prefix / "usr/sbin/dockerd", arguments, DOCKER, environment, stack)


def start(
    program: Path, arguments: list[str], socket: str, environment: dict[str, str], stack: ExitStack
) -> None:
    log = stack.enter_context((Path(environment["TMPDIR"]) / f"{program.name}.log").open("wb"))
    process = subprocess.Popen([program, *arguments], env=environment, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    wait_until(lambda: is_listening(f"unix://{socket}") or process.poll() is not None)
    assert process.poll() is None, Path(log.name).read_text()


def add_system_image(docker: Callable[..., str]) -> None:
    """Import the image app:1 and create a container from it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("system"))
    docker("import", "-", "app:1", stdin=archive.getvalue())
    docker("create", "--name=kept", "app:1", "/system")


def census(docker: Callable[..., str], environment: dict[str, str]) -> dict[str, str]:
    ctr = [str(paths.prefix / "usr/bin/ctr"), "--namespace=moby"]
    files = (Path(root) / name for folder in DATA for root, _, names in os.walk(folder) for name in names)
    return {
        "images": docker("images", "--all", "--no-trunc", "--format={{.Repository}}:{{.Tag}} {{.ID}}"),
        "image": docker("image", "inspect", "app:1"),
        "container": docker("container", "inspect", "kept"),
        "networks": docker("network", "ls", "--no-trunc"),
        "volumes": docker("volume", "ls"),
        **{each: _sort_lines(run([*ctr, *each.split()], environment)) for each in LISTS},
        "firewall": "".join(_read_rules(f"{name}-save", environment) for name in ("iptables", "ip6tables")),
        "routes": run(["ip", "route"], environment),
        **{str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files if is_stable(path)},
    }


def is_stable(path: Path) -> bool:
    """Return whether a file changes only with its Docker.

    containerd's garbage collection writes its database a while after a change; ``ctr`` lists what it has.
    """
    return path.is_file() and path.name != "meta.db"


def _sort_lines(text: str) -> str:
    return "\n".join(sorted(text.splitlines()))


def _read_rules(program: str, environment: dict[str, str]) -> str:
    """Return the rules without comments, which have the time."""
    lines = run([program], environment).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#"))


def use_private_engine(engine: Engine, folder: Path) -> str:
    """Build another image app:1 into the private engine and run it; return its output."""
    environment = {**os.environ, **engine.env}
    context = folder / "context"
    context.mkdir()
    (context / "Dockerfile").write_text('FROM scratch\nCOPY tini /tini\nENTRYPOINT ["/tini"]\n')
    (context / "tini").write_bytes((paths.prefix / "usr/bin/tini-static").read_bytes())
    (context / "tini").chmod(0o755)
    run([*engine.tools.buildx, "build", "--quiet", "--load", "--tag=app:1", str(context)], environment)
    return run([*engine.tools.docker, "run", "--rm", "app:1", "--version"], environment)


def beside_docker(folder: Path, stack: ExitStack) -> dict[str, Any]:
    environment = {**_daemon_environment(paths), "TMPDIR": str(folder)}
    environment["PATH"] = f"{folder}:{environment['PATH']}"
    start_system(folder, environment, stack)

    def docker(*arguments: str, stdin: bytes = b"") -> str:
        return run(["docker", *arguments], {**environment, "DOCKER_HOST": f"unix://{DOCKER}"}, stdin)

    add_system_image(docker)
    before = census(docker, environment)
    output = with_private_engine(folder)
    return {"output": output, "changed": changes(before, census(docker, environment))}


def alone(folder: Path) -> dict[str, Any]:
    before = folder_census()
    output = with_private_engine(folder)
    return {"output": output, "changed": changes(before, folder_census())}


def with_private_engine(folder: Path) -> str:
    try:
        engine = ensure_private_engine(settings, commands, lambda _: None, name=NAME)
        return use_private_engine(engine, folder)
    finally:
        stop_private_engine(settings, commands, lambda _: None, name=NAME)


def folder_census() -> dict[str, str]:
    """Return what is in the host's folders, without the locks of this package."""
    entries = (path for folder in FOLDERS for path in Path(folder).rglob("*"))
    ours = Path("/run/buildkit-tasks")
    return {str(path): "" for path in entries if path not in (ours, ours / ".network.lock")}


def changes(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str | None, str | None]]:
    pairs = {name: (before.get(name), after.get(name)) for name in before | after}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def main(mode: str) -> None:
    hide_system()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        json.dump(alone(folder) if mode == "alone" else beside_docker(folder, stack), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
