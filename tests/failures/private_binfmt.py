"""Run the product with a handler table of its own: binfmt_misc is per user namespace since Linux 6.7."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.platforms import Platform
from tests.support.project import TASKS, Done, Project

ARM64 = "linux/arm64"
_TABLE = "/proc/sys/fs/binfmt_misc"
_SCRIPT = f"""\
set -e
mount -t binfmt_misc binfmt_misc {_TABLE}
i=1
while [ $i -le $LINES_COUNT ]; do
  eval "printf %s \\"\\$LINE_$i\\"" > {_TABLE}/register
  i=$((i + 1))
done
code=0
"$@" || code=$?
mkdir -p table
for entry in {_TABLE}/qemu-*; do [ ! -e "$entry" ] || cat "$entry" > "table/${{entry##*/}}"; done
exit $code
"""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the task ended, and the entries of its table by name."""

    done: Done
    table: dict[str, str]


def need_own_table() -> None:
    """Skip where the kernel is too old; where it is not, the tests must run."""
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)", release)
    if found and (int(found[1]), int(found[2])) < (6, 7):
        pytest.skip(f"binfmt_misc has one table for all in Linux {release}; 6.7 has one per user namespace")


def handler_line(interpreter: str | Path, flags: str, platform: str = ARM64, name: str = "") -> str:
    """A line for ``register``, as anybody's installer writes it."""
    machine = Platform.parse(platform).machine
    magic, mask = ("".join(f"\\x{byte:02x}" for byte in data) for data in (machine.magic, machine.mask))
    return f":{name or 'qemu-' + machine.qemu_suffix}:M::{magic}:{mask}:{interpreter}:{flags}"


def qemu(platform: str = ARM64) -> Path:
    """The static QEMU that the product has fetched for itself, or that the host has."""
    name = f"qemu-{Platform.parse(platform).machine.qemu_suffix}"
    candidates = (
        cache_folder(load_settings()) / "debian/qemu/usr/bin" / name,
        Path("/usr/bin") / f"{name}-static",
        Path("/usr/bin") / name,
        Path((Path(_TABLE) / name).read_text(encoding="utf-8").partition("interpreter ")[2].split("\n")[0]),
    )
    return next(path for path in candidates if path.is_file())


def run(project: Project, *task: str, handlers: tuple[str, ...] = (), timeout: float = 120) -> Ended:
    """Run a task where exactly these handlers are registered, in this order."""
    lines = {f"LINE_{number}": line for number, line in enumerate(handlers, start=1)}
    inside = project.with_env(LINES_COUNT=str(len(handlers)), **lines)
    argv = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _SCRIPT, "sh", *TASKS, *task)
    done = inside.command(*argv, timeout=timeout)
    assert "Traceback" not in done.stderr, done.stderr
    assert "unshare:" not in done.stderr, shlex.join(argv) + done.stderr
    entries = project.folder / "table"
    assert entries.is_dir(), done.stderr
    return Ended(done=done, table={path.name: path.read_text(encoding="utf-8") for path in entries.iterdir()})
