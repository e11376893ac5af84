"""An ordinary user with a home directory of its own, who runs tasks."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.conftest import ROOT
from tests.support.project import Project
from tests.support.task_server import CompletedCommand
from tests.support.users import NOBODY

__all__ = ["Nobody", "create_nobody"]

# Bind-mounts what only root can reach below a directory of the user, in a mount namespace of the test.
_SCRIPT = """\
set -e
for name in python packages repository; do eval "mount --bind \\"\\$FROM_$name\\" \\"$BASE/$name\\""; done
[ -z "$SOCKET" ] || mount --bind "$SOCKET" "$BASE/docker.sock"
cd "$BASE/home"
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \\
    env -i PATH="$PATH" HOME="$BASE/home" PYTHONPATH="$BASE/packages:$BASE/repository" NO_COLOR=1 \\
    LD_LIBRARY_PATH="$BASE/python/lib" PYTHONDONTWRITEBYTECODE=1 "$@"
"""


@dataclass(frozen=True)
class Nobody:
    """The user ``nobody``, with a home directory, more environment, and the socket of an engine."""

    base: Path
    env: Mapping[str, str] = field(default_factory=dict)
    socket: str = ""

    @property
    def home(self) -> Path:
        return self.base / "home"

    @property
    def endpoint(self) -> str:
        """The engine's socket where the user can reach it."""
        return f"unix://{self.base}/docker.sock"

    def with_env(self, **env: str) -> Nobody:
        return replace(self, env={**self.env, **env})

    def with_engine(self, socket: str) -> Nobody:
        return replace(self.with_env(DOCKER_HOST=self.endpoint), socket=socket)

    def task(self, *args: str, expect: int = 0, timeout: float = 300) -> CompletedCommand:
        """Run a task as that user."""
        env = {
            "BASE": str(self.base),
            "SOCKET": self.socket,
            "FROM_python": sys.base_prefix,
            "FROM_packages": sysconfig.get_path("purelib"),
            "FROM_repository": str(ROOT),
        }
        python = f"{self.base}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        assignments = [f"{name}={value}" for name, value in self.env.items()]
        argv = [*assignments, python, "-m", "buildkit_tasks", *args]
        project = Project(folder=self.base, env=env)
        done = project.command("unshare", "--mount", "sh", "-c", _SCRIPT, "sh", *argv, timeout=timeout)
        output = f"{args} ended with {done.code}, not {expect}:\n{done.stdout}\n{done.stderr}"
        assert done.code == expect, output
        assert "Traceback" not in done.stderr, output
        return done

    def copy_to_home(self, path: Path) -> Path:
        """Copy a file into the user's home and return the copy."""
        copy = self.home / path.name
        shutil.copyfile(path, copy)
        os.chown(copy, NOBODY, NOBODY)
        return copy


@contextlib.contextmanager
def create_nobody() -> Iterator[Nobody]:
    """The user; everything that it has downloaded is removed afterwards."""
    base = Path(tempfile.mkdtemp(prefix="nobody-"))
    base.chmod(0o755)
    for name in ("home", "python", "packages", "repository"):
        (base / name).mkdir()
    (base / "docker.sock").touch()  # the mount point of a socket
    os.chown(base / "home", NOBODY, NOBODY)
    yield Nobody(base)
    shutil.rmtree(base)
