"""The real engine as if it were on another machine: by tcp, with and without TLS, and by ssh.

Debian's socat and dropbear are the servers in front of it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, install_packages
from tests.support.ports import free_port, listens
from tests.support.registry.certificates import Certificate

__all__ = ["Ssh", "over_ssh", "over_tcp", "tls_context"]

_SECONDS = 20.0
_WANTED = PackageSet(names=("dropbear-bin", "openssh-client", "socat"), suite="host", with_dependencies=True)
_PLACES = ("usr/bin", "usr/sbin")
# In a mount namespace of its own root's home is another, and the real one is left alone.
_AT_HOME = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"']


@contextlib.contextmanager
def over_tcp(engine: Engine, tls: Certificate | None = None) -> Iterator[str]:
    """The engine at a tcp endpoint, which it gives; with ``tls`` it lets in that authority's clients only."""
    port = free_port()
    listen = f"{'OPENSSL' if tls else 'TCP'}-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    if tls:
        listen += f",cert={tls.certificate},key={tls.key},cafile={tls.authority},verify=1"
    target = f"UNIX-CONNECT:{engine.endpoint.removeprefix('unix://')}"
    # -t: what one side has ended the other may still answer.
    with _served([*_program("socat"), "-t", "600", listen, target], port):
        yield f"tcp://127.0.0.1:{port}"


def tls_context(endpoint: str, certificate: Certificate) -> str:
    """What ``docker context create --docker`` takes for an engine behind TLS."""
    files = f"ca={certificate.authority},cert={certificate.certificate},key={certificate.key}"
    return f"host={endpoint},{files}"


@dataclass(frozen=True, kw_only=True)
class Ssh:
    """An ssh endpoint, and a folder whose ``ssh`` knows the way in, to be put first into PATH."""

    endpoint: str
    path: Path
    server: int

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """The server and all its connections stand still, as behind a network that went away."""
        frozen = [self.server, *_descendants(self.server)]
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in frozen:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


def _descendants(pid: int) -> list[int]:
    """What a process has started, and what those have."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    return [each for child in map(int, children) for each in (child, *_descendants(child))]


@contextlib.contextmanager
def over_ssh(engine: Engine, folder: Path) -> Iterator[Ssh]:
    """The engine behind an ssh server, which lets in a key that is made here."""
    port = free_port()
    _run([*_program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", f"{folder}/key"])
    _run([*_program("dropbearkey"), "-t", "ed25519", "-f", f"{folder}/host-key"])
    passwd = folder / "passwd"
    passwd.write_text(f"root:x:0:0:root:{_home(folder)}:/bin/sh\n", encoding="utf-8")
    files = ["-r", f"{folder}/host-key", "-P", f"{folder}/pid", "-c", f"{_session(folder, engine)}"]
    server = [*_program("dropbear"), "-F", "-E", "-s", *files, "-p", f"127.0.0.1:{port}"]
    with _served([*_AT_HOME, str(passwd), *server], port) as pid:
        yield Ssh(endpoint=f"ssh://root@127.0.0.1:{port}", path=_client(folder), server=pid)


def _home(folder: Path) -> Path:
    """Root's home for the server: there it looks for the keys that it lets in."""
    keys = folder / "home/.ssh"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "authorized_keys").write_bytes((folder / "key.pub").read_bytes())
    return keys.parent


def _session(folder: Path, engine: Engine) -> Path:
    """What the server runs for whoever comes in: the command that is asked for, where docker is found."""
    (folder / "bin").mkdir()
    (folder / "bin/docker").symlink_to(engine.tools.docker[0])
    words = f"export PATH={folder}/bin:$PATH DOCKER_HOST={engine.endpoint}"
    return _script(folder / "session", f'{words}\nexec sh -c "$SSH_ORIGINAL_COMMAND"')


def _client(folder: Path) -> Path:
    """A folder with the client: ssh looks for keys in the home that passwd names, wherever HOME is."""
    (folder / "client").mkdir()
    given = ["-i", f"{folder}/key", "-F", "none", "-o", f"UserKnownHostsFile={folder}/known"]
    given += ["-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes"]
    given += ["-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2"]  # as docs/builders.md says
    _script(folder / "client/ssh", f'exec {shlex.join([*_program("ssh"), *given])} "$@"')
    return folder / "client"


def _script(path: Path, words: str) -> Path:
    path.write_text(f"#!/bin/sh\n{words}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def _program(name: str) -> list[str]:
    """A program of Debian's, unpacked for the tests alone, with its libraries."""
    prefix = cache_folder(load_settings()) / "debian/servers"
    install_packages(prefix, [_WANTED], SubprocessRunner(dry_run_output=sys.stderr), lambda _: None)
    libraries = sorted({str(each.parent) for each in prefix.rglob("*.so*")})
    found = next(prefix / place / name for place in _PLACES if (prefix / place / name).exists())
    return ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(found)]


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True)


@contextlib.contextmanager
def _served(argv: Sequence[str], port: int) -> Iterator[int]:
    """A server that listens on that port, by its pid; it and what it has started end with the block."""
    child = subprocess.Popen(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + _SECONDS
        while not listens("127.0.0.1", port):
            assert child.poll() is None, f"{argv} ended with {child.returncode}"
            assert time.monotonic() < deadline, f"{argv} does not listen"
            time.sleep(0.05)
        yield child.pid
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(_SECONDS)
