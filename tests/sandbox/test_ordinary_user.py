"""An ordinary user runs and verifies images on a machine with nothing installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import make_busybox_layer
from tests.support import census, guests
from tests.support.nobody import Nobody, create_nobody
from tests.support.oci import MemoryImage, add_platform, make_tar, write_archive
from tests.support.users import NOBODY, needs_root

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v6", "linux/s390x")

pytestmark = needs_root


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    """The user; everything that it has downloaded is removed afterwards."""
    with create_nobody() as user:
        yield user


@pytest.fixture(scope="module")
def archive(nobody: Nobody, tmp_path_factory: pytest.TempPathFactory) -> str:
    memory = MemoryImage()
    script = {"main": b"#!/bin/sh\nid -u; uname -m\n"}
    entries = [
        add_platform(memory, each, [make_busybox_layer(each, script)], Cmd=["/main"], User="app")
        for each in PLATFORMS
    ]
    memory.set_index(entries)
    path = write_archive(memory, tmp_path_factory.mktemp("archive") / "image.tar")
    return f"oci-archive:{nobody.copy_to_home(path)}"


def test_run_on_fresh_machine(nobody: Nobody, archive: str) -> None:
    """QEMU is downloaded from Debian into the user's cache; neither an engine nor root is needed."""
    before = census.handlers()
    assert not (nobody.home / ".cache").exists()
    done = nobody.task("run-emulated", archive, "--json", "--expect=^1000\n{machine}$")
    results = done.document["results"]
    assert [(result["platform"], result["outcome"], result["runner"]) for result in results] == [
        (platform, "passed", "sandbox") for platform in PLATFORMS
    ]
    assert results[1]["emulator"]["path"].startswith(str(nobody.home))
    assert census.handlers() == before


@pytest.mark.parametrize("platform", PLATFORMS[:2])
def test_paths_are_hidden(nobody: Nobody, archive: str, platform: str) -> None:
    command = "cat /proc/1/cmdline /proc/self/cmdline /proc/self/maps /proc/self/mountinfo /proc/self/environ"
    done = nobody.task("run-emulated", archive, "--json", f"--platform={platform}", f"--command={command}")
    (result,) = done.document["results"]
    assert "init" in result["stdout"]
    assert str(nobody.base) not in result["stdout"]


def test_verify(nobody: Nobody, archive: str) -> None:
    nobody.task("verify-arch", archive, f"--platform={','.join(PLATFORMS)}")


def test_second_run_downloads_nothing(nobody: Nobody, archive: str) -> None:
    first = nobody.task("run-emulated", archive, "--json", "--cpu=both")
    second = nobody.task("run-emulated", archive, "--json", "--cpu=both")
    assert "fetching" not in second.stderr
    results = [
        [(result["outcome"], result["stdout"]) for result in each.document["results"]]
        for each in (first, second)
    ]
    assert results[0] == results[1]


def test_owner_of_unpacked_files(nobody: Nobody, archive: str) -> None:
    nobody.task("run-emulated", archive)
    roots = nobody.home / ".cache/buildkit-tasks/roots"
    assert roots.stat().st_mode & 0o077 == 0
    owners = {path.lstat().st_uid for path in roots.rglob("*")}
    assert owners == {NOBODY}


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_programs_of_user_are_unchanged(nobody: Nobody, tmp_path: Path, platform: str) -> None:
    """A guest finds QEMU and the host's Python as /proc/PID/exe, and both may belong to the user."""
    memory = MemoryImage()
    attack = (
        "for file in /proc/self/exe /proc/1/exe /proc/$$/exe; do chmod 4777 $file && echo changed; done; true"
    )
    layer = make_busybox_layer(platform, {"main": f"#!/bin/sh\n{attack}\n".encode()})
    memory.set_index([add_platform(memory, platform, [layer], Cmd=["/main"])])
    name = f"oci-archive:{nobody.copy_to_home(write_archive(memory, tmp_path / 'chmod.tar'))}"
    results = nobody.task("run-emulated", name, "--json").document["results"]
    emulator = (results[0].get("emulator") or {}).get("path")
    assert "changed" not in results[0]["stdout"]
    assert (emulator is None) == (platform == "linux/amd64")
    assert emulator is None or Path(emulator).stat().st_mode & 0o7022 == 0


def test_process_limit(nobody: Nobody, tmp_path: Path) -> None:
    memory = MemoryImage()
    bomb = make_tar({"main": guests.fork_bomb("linux/amd64")})
    memory.set_index([add_platform(memory, "linux/amd64", [bomb], Cmd=["/main"])])
    name = f"oci-archive:{nobody.copy_to_home(write_archive(memory, tmp_path / 'bomb.tar'))}"
    report = nobody.task("run-emulated", name, "--json", "--timeout=20", expect=5).document
    assert "more than 256 processes" in report["results"][0]["message"]
