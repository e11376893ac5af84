from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.platforms import Platform
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import fetch_newest_package
from tests.failures.private_binfmt import need_own_table
from tests.support.oci import Json, Memory, add_platform, folder, make_tar, symlink, write_archive
from tests.support.project import Project

APPLETS = (
    "cat", "chmod", "dd", "echo", "env", "grep", "head", "hostname", "id", "kill", "ls", "mkdir", "mount",
    "nproc", "ps", "pwd", "sh", "sleep", "stat", "touch", "true", "uname", "unshare", "yes", "wc",
)  # fmt: skip
_ETC = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:an app:/srv:/bin/sh\n",
    "etc/group": b"root:x:0:\napp:x:1001:\nextra:x:2000:app,other\nother:x:2001:other\n",
}

Busy = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def _sandbox() -> None:
    """Skip where the kernel is too old; where it is not, the tests must run."""
    need_own_table()


@pytest.fixture
def busy(tmp_path: Path) -> Busy:
    """Make an archive of images with busybox in them, one for each platform; gives its name."""

    def make(*platforms: str, files: dict[str, bytes] | None = None, **start: object) -> str:
        memory = Memory()
        tars = {each: [layer_of_busybox(each, files or {})] for each in platforms}
        start.setdefault("Cmd", ["/bin/sh"])
        # The keywords are the configuration's: none of them is an argument of another kind.
        add: Callable[..., Json] = add_platform
        entries = [add(memory, each, layers, **start) for each, layers in tars.items()]
        memory.index(entries)
        path = tmp_path / f"busy-{len(list(tmp_path.glob('busy-*')))}.tar"
        return f"oci-archive:{write_archive(memory, path)}"

    return make


def layer_of_busybox(platform: str, files: dict[str, bytes]) -> bytes:
    links = [symlink(f"bin/{name}", "busybox") for name in APPLETS]
    return make_tar({"bin/busybox": busybox(platform), **_ETC, **files}, [folder("srv"), *links])


def busybox(platform: str) -> bytes:
    """Debian's static busybox for a platform, which the stand-in bases are made of as well."""
    debian = Platform.parse(platform).debian_architecture
    place = cache_folder(load_settings()) / "debian"
    found = fetch_newest_package(
        "busybox-static", [debian], place, SubprocessRunner(dry_run_output=sys.stderr), _tell
    )
    return next(found[debian].glob("**/bin/busybox")).read_bytes()


def _tell(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it with a failing test


def says(project: Project, image: str, command: str, *options: str, expect: int = 0) -> list[str]:
    """The lines that a shell command prints in the only platform of an image."""
    words = ("--runner=sandbox", f"--command=sh -c {json.dumps(command)}", *options)
    report = project.json("run-emulated", image, *words, expect=expect)
    (row,) = report["results"]
    assert row["runner"] == "sandbox"
    return str(row["stdout"]).splitlines()
