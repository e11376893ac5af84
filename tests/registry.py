"""A real registry on the loopback interface: Debian's docker-registry, unpacked for the tests alone."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from buildkit_tasks.commands import Commands
from buildkit_tasks.debian import Packages, provision
from buildkit_tasks.settings import cache_folder, load

_CONFIGURATION = """\
version: 0.1
storage:
  filesystem:
    rootdirectory: {folder}
http:
  addr: 127.0.0.1:{port}
"""


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve an empty registry from ``folder``; gives its host and port."""
    prefix = cache_folder(load()) / "debian/docker-registry"
    run = Commands(echo=sys.stderr)
    provision(prefix, [Packages(names=("docker-registry",), suite="host")], run, lambda _: None)
    port = _free_port()
    configuration = folder / "config.yml"
    configuration.write_text(_CONFIGURATION.format(folder=folder / "data", port=port), encoding="utf-8")
    with (folder / "log").open("wb") as log:
        argv = [str(prefix / "usr/bin/docker-registry"), "serve", str(configuration)]
        child = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            _await(port, child)
            yield f"127.0.0.1:{port}"
        finally:
            child.terminate()
            child.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(port: int, child: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise AssertionError("the registry did not start")
