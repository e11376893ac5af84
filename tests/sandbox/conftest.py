from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.emulation.qemu import QemuFinder
from buildkit_tasks.platforms import Machine, Platform
from buildkit_tasks.run.sandbox.supervisor import GuestExit, SandboxRun, Supervisor
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import fetch_newest_package
from tests.failures.private_binfmt import require_private_binfmt
from tests.support.oci import Json, MemoryImage, add_platform, directory, make_tar, symlink, write_archive
from tests.support.project import Project

APPLETS = (
    "cat", "chmod", "dd", "echo", "env", "grep", "head", "hostname", "id", "kill", "ls", "mkdir", "mount",
    "nproc", "ps", "pwd", "sh", "sleep", "stat", "touch", "true", "uname", "unshare", "yes", "wc",
)  # fmt: skip
_ETC = {
    "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:an app:/srv:/bin/sh\n",
    "etc/group": b"root:x:0:\napp:x:1001:\nextra:x:2000:app,other\nother:x:2001:other\n",
}

BusyboxImage = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def _sandbox() -> None:
    """Skip if the kernel is too old."""
    require_private_binfmt()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a guest without an image: the directories that are mounted on."""
    for name in ("dev", "proc", "tmp"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return tmp_path / "root"


@pytest.fixture
def busybox_image(tmp_path: Path) -> BusyboxImage:
    """Return a function that makes an archive of busybox images, one per platform, and returns its name."""

    def write_image(*platforms: str, files: dict[str, bytes] | None = None, **config: object) -> str:
        memory = MemoryImage()
        tars = {each: [make_busybox_layer(each, files or {})] for each in platforms}
        config.setdefault("Cmd", ["/bin/sh"])
        # Typed without its named parameters: all keywords are keys of the config here.
        add: Callable[..., Json] = add_platform
        entries = [add(memory, each, layers, **config) for each, layers in tars.items()]
        memory.set_index(entries)
        path = tmp_path / f"busybox-{len(list(tmp_path.glob('busybox-*')))}.tar"
        return f"oci-archive:{write_archive(memory, path)}"

    return write_image


def make_busybox_layer(platform: str, files: dict[str, bytes]) -> bytes:
    links = [symlink(f"bin/{name}", "busybox") for name in APPLETS]
    return make_tar({"bin/busybox": read_busybox(platform), **_ETC, **files}, [directory("srv"), *links])


def read_busybox(platform: str) -> bytes:
    """Return Debian's static busybox for a platform, which the stand-in bases also have."""
    debian = Platform.parse(platform).debian_architecture
    directory = cache_folder(load_settings()) / "debian"
    packages = fetch_newest_package(
        "busybox-static", [debian], directory, SubprocessRunner(dry_run_output=sys.stderr), _notify
    )
    return next(packages[debian].glob("**/bin/busybox")).read_bytes()


def _notify(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it if the test fails


def find_qemu(machine: Machine) -> Path:
    commands = SubprocessRunner(dry_run_output=sys.stderr)
    path = QemuFinder(settings=load_settings(), commands=commands, notify=_notify).find(machine)
    assert path is not None
    return path


def run_program(supervisor: Supervisor, root: Path, data: bytes, timeout: float = 60) -> GuestExit:
    """Run a program as the only file of a guest's root."""
    (root / "main").unlink(missing_ok=True)
    (root / "main").write_bytes(data)
    (root / "main").chmod(0o755)
    return supervisor.run(SandboxRun(root=root, candidates=("/main",), argv=("/main",), env={}), timeout)


def run_command(project: Project, image: str, command: str, *options: str, expect: int = 0) -> list[str]:
    """Run a shell command in an image of one platform and return the lines that it prints."""
    args = ("--runner=sandbox", f"--command=sh -c {json.dumps(command)}", *options)
    report = project.json("run-emulated", image, *args, expect=expect)
    (result,) = report["results"]
    assert result["runner"] == "sandbox"
    return str(result["stdout"]).splitlines()
