"""Make the real engine reachable over tcp, with and without TLS, and over ssh.

The servers are Debian's socat and dropbear.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from tests.support.ports import free_port, listens
from tests.support.registry.certificates import Certificate
from tests.support.waiting import wait_until

__all__ = ["Ssh", "expose_over_ssh", "expose_over_tcp", "tls_endpoint"]

_SECONDS = 20.0
_PACKAGES = PackageSet(
    names=("dropbear-bin", "openssh-client", "socat"), suite="host", with_dependencies=True
)
_PROGRAM_DIRS = ("usr/bin", "usr/sbin")
# Runs a program with another /etc/passwd ($0), and so another home of root, in a mount namespace.
_WITH_PASSWD = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"']


@contextlib.contextmanager
def expose_over_tcp(engine: Engine, tls: Certificate | None = None) -> Iterator[str]:
    """Yield a tcp endpoint of the engine; with ``tls`` it requires client certificates of that authority."""
    port = free_port()
    listen = f"{'OPENSSL' if tls else 'TCP'}-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    if tls:
        listen += f",cert={tls.certificate},key={tls.key},cafile={tls.authority},verify=1"
    target = f"UNIX-CONNECT:{engine.endpoint.removeprefix('unix://')}"
    # -t: keep a half-closed connection open for the response.
    with _run_server([*_find_program("socat"), "-t", "600", listen, target], port):
        yield f"tcp://127.0.0.1:{port}"


def tls_endpoint(endpoint: str, certificate: Certificate) -> str:
    """Return the value of ``docker context create --docker`` for an engine with TLS."""
    files = f"ca={certificate.authority},cert={certificate.certificate},key={certificate.key}"
    return f"host={endpoint},{files}"


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """An ssh endpoint, and a directory for PATH with an ``ssh`` that has the key."""

    endpoint: str
    path: Path
    server: int

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the server and its connections, as if the network was lost."""
        pids = [self.server, *_find_descendants(self.server)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def _find_descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [each for child in map(int, children) for each in (child, *_find_descendants(child))]


@contextlib.contextmanager
def expose_over_ssh(engine: Engine, folder: Path) -> Iterator[Ssh]:
    """Run an ssh server for the engine with a new key pair."""
    port = free_port()
    _run([*_find_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/key"])
    _run([*_find_program("dropbearkey"), "-t", "ed25519", "-f", f"{folder}/host-key"])
    passwd = folder / "passwd"
    passwd.write_text(f"root:x:0:0:root:{_create_home(folder)}:/bin/sh\n", encoding="utf-8")
    session = _write_session_script(folder, engine)
    files = ["-r", f"{folder}/host-key", "-P", f"{folder}/pid", "-c", f"{session}"]
    server = [*_find_program("dropbear"), "-F", "-E", "-s", *files, "-p", f"127.0.0.1:{port}"]
    with _run_server([*_WITH_PASSWD, str(passwd), *server], port) as pid:
        yield Ssh(endpoint=f"ssh://root@127.0.0.1:{port}", path=_create_client(folder), server=pid)


def _create_home(folder: Path) -> Path:
    """Create a home for root, where the server looks for authorized keys."""
    keys = folder / "home/.ssh"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "authorized_keys").write_bytes((folder / "key.pub").read_bytes())
    return keys.parent


def _write_session_script(folder: Path, engine: Engine) -> Path:
    """Write the script that runs a client's command, with docker and its endpoint in the environment."""
    (folder / "bin").mkdir()
    (folder / "bin/docker").symlink_to(engine.tools.docker[0])
    environment = f"export PATH={folder}/bin:$PATH DOCKER_HOST={engine.endpoint}"
    return _write_script(folder / "session", f'{environment}\nexec sh -c "$SSH_ORIGINAL_COMMAND"')


def _create_client(folder: Path) -> Path:
    """Create a directory with an ``ssh`` that has the key; ssh does not look for keys in $HOME."""
    (folder / "client").mkdir()
    options = ["-i", f"{folder}/key", "-F", "none", "-o", f"UserKnownHostsFile={folder}/known"]
    options += ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
    options += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"]  # see docs/builders.md
    _write_script(folder / "client/ssh", f'exec {shlex.join([*_find_program("ssh"), *options])} "$@"')
    return folder / "client"


def _write_script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _find_program(name: str) -> list[str]:
    """Return the command of a program of Debian's, which is installed only for the tests."""
    prefix = cache_folder(load_settings()) / "debian/servers"
    install_packages(prefix, [_PACKAGES], SubprocessRunner(dry_run_output=sys.stderr), lambda _: None)
    libraries = sorted({str(path.parent) for path in prefix.rglob("*.so*")})
    path = next(prefix / folder / name for folder in _PROGRAM_DIRS if (prefix / folder / name).exists())
    return ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(path)]


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def _run_server(argv: Sequence[str], port: int) -> Iterator[int]:
    """Run a server in its own session and yield its pid once it listens on ``port``."""
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_until(lambda: listens("127.0.0.1", port) or child.poll() is not None)
        assert child.poll() is None, f"{argv} ended with {child.returncode}"
        yield child.pid
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(_SECONDS)
