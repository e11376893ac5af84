"""Run tasks with a private binfmt_misc, which Linux has per user namespace since 6.7."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.platforms import Platform
from tests.support.project import TASKS, Project
from tests.support.task_server import CompletedCommand

ARM64 = "linux/arm64"
_MOUNT_POINT = "/proc/sys/fs/binfmt_misc"
_SCRIPT = f"""\
set -e
mount -t binfmt_misc binfmt_misc {_MOUNT_POINT}
i=1
while [ $i -le $LINES_COUNT ]; do
  eval "printf %s \\"\\$LINE_$i\\"" > {_MOUNT_POINT}/register
  i=$((i + 1))
done
code=0
"$@" || code=$?
mkdir -p handlers
for entry in {_MOUNT_POINT}/qemu-*; do [ ! -e "$entry" ] || cat "$entry" > "handlers/${{entry##*/}}"; done
exit $code
"""


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """How the task ended, and the handlers afterwards by name."""

    done: CompletedCommand
    handlers: dict[str, str]


def require_private_binfmt() -> None:
    """Skip the test if the kernel is too old."""
    release = os.uname().release
    version = re.match(r"(\d+)\.(\d+)", release)
    if version and (int(version[1]), int(version[2])) < (6, 7):
        pytest.skip(f"Linux {release} has one binfmt_misc; since 6.7 there is one per user namespace")


def handler_line(interpreter: str | Path, flags: str, platform: str = ARM64, name: str = "") -> str:
    """Return a line for ``register``."""
    machine = Platform.parse(platform).machine
    magic, mask = ("".join(f"\\x{byte:02x}" for byte in data) for data in (machine.magic, machine.mask))
    return f":{name or 'qemu-' + machine.qemu_suffix}:M::{magic}:{mask}:{interpreter}:{flags}"


def qemu(platform: str = ARM64) -> Path:
    """Return a static QEMU: the one in the cache, or the host's."""
    name = f"qemu-{Platform.parse(platform).machine.qemu_suffix}"
    candidates = (
        cache_folder(load_settings()) / "debian/qemu/usr/bin" / name,
        Path("/usr/bin") / f"{name}-static",
        Path("/usr/bin") / name,
        _registered_interpreter(name),
    )
    return next(path for path in candidates if path.is_file())


def _registered_interpreter(name: str) -> Path:
    entry = (Path(_MOUNT_POINT) / name).read_text(encoding="utf-8")
    return Path(entry.partition("interpreter ")[2].split("\n")[0])


def run(project: Project, *task: str, handlers: tuple[str, ...] = (), timeout: float = 120) -> TaskResult:
    """Run a task with exactly these handlers, registered in this order."""
    lines = {f"LINE_{number}": line for number, line in enumerate(handlers, start=1)}
    inside = project.with_env(LINES_COUNT=str(len(handlers)), **lines)
    argv = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _SCRIPT, "sh", *TASKS, *task)
    done = inside.command(*argv, timeout=timeout)
    assert "Traceback" not in done.stderr, done.stderr
    assert "unshare:" not in done.stderr, shlex.join(argv) + done.stderr
    folder = project.folder / "handlers"
    assert folder.is_dir(), done.stderr
    left = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    return TaskResult(done=done, handlers=left)
