"""An ordinary user, on a machine with nothing installed for it, runs and verifies images."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sandbox.conftest import layer_of_busybox
from tests.support import census, guests
from tests.support.oci import Memory, add_platform, make_tar, write_archive
from tests.support.project import Done, Project

NOBODY = 65534
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v6", "linux/s390x")

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become an ordinary user for a test")

# What belongs to root alone is bound to where the user reaches it, in a mount namespace of the test's own.
_SCRIPT = """\
set -e
for name in python packages repository; do eval "mount --bind \\"\\$FROM_$name\\" \\"$PLACE/$name\\""; done
cd "$PLACE/home"
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all \\
    env -i PATH="$PATH" HOME="$PLACE/home" PYTHONPATH="$PLACE/packages:$PLACE/repository" NO_COLOR=1 \\
    PYTHONDONTWRITEBYTECODE=1 "$PLACE/python/bin/$PYTHON" -m buildkit_tasks "$@"
"""


@dataclass(frozen=True)
class Nobody:
    """The user ``nobody``, with a home folder."""

    place: Path

    @property
    def home(self) -> Path:
        return self.place / "home"

    def task(self, *words: str, expect: int = 0, timeout: float = 300) -> Done:
        """Run a task as that user."""
        env = {
            "PLACE": str(self.place),
            "PYTHON": f"python{sys.version_info.major}.{sys.version_info.minor}",
            "FROM_python": sys.base_prefix,
            "FROM_packages": sysconfig.get_path("purelib"),
            "FROM_repository": str(ROOT),
        }
        project = Project(folder=self.place, env=env)
        done = project.command("unshare", "--mount", "sh", "-c", _SCRIPT, "sh", *words, timeout=timeout)
        assert done.code == expect, done.stdout + done.stderr
        return done

    def give(self, path: Path) -> Path:
        """Put a copy of a file into the user's home."""
        copy = self.home / path.name
        shutil.copyfile(path, copy)
        os.chown(copy, NOBODY, NOBODY)
        return copy


@pytest.fixture(scope="module")
def nobody() -> Iterator[Nobody]:
    """Removed afterwards, with everything that the user has fetched."""
    place = Path(tempfile.mkdtemp(prefix="nobody-"))
    place.chmod(0o755)
    for name in ("home", "python", "packages", "repository"):
        (place / name).mkdir()
    os.chown(place / "home", NOBODY, NOBODY)
    yield Nobody(place)
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def archive(nobody: Nobody, tmp_path_factory: pytest.TempPathFactory) -> str:
    memory = Memory()
    script = {"main": b"#!/bin/sh\nid -u; uname -m\n"}
    entries = [
        add_platform(memory, each, [layer_of_busybox(each, script)], Cmd=["/main"], User="app")
        for each in PLATFORMS
    ]
    memory.index(entries)
    path = write_archive(memory, tmp_path_factory.mktemp("archive") / "image.tar")
    return f"oci-archive:{nobody.give(path)}"


def test_an_image_is_run_on_a_fresh_machine(nobody: Nobody, archive: str) -> None:
    """QEMU is fetched from Debian into the user's own cache; no engine and no root is asked."""
    before = census.handlers()
    assert not (nobody.home / ".cache").exists()
    done = nobody.task("run-emulated", archive, "--json", "--expect=^1000\n{machine}$")
    rows = done.document["results"]
    assert [(row["platform"], row["outcome"], row["runner"]) for row in rows] == [
        (platform, "passed", "sandbox") for platform in PLATFORMS
    ]
    assert rows[1]["emulator"]["path"].startswith(str(nobody.home))
    assert census.handlers() == before


def test_an_image_is_verified(nobody: Nobody, archive: str) -> None:
    nobody.task("verify-arch", archive, f"--platform={','.join(PLATFORMS)}")


def test_the_second_run_takes_what_is_kept(nobody: Nobody, archive: str) -> None:
    first = nobody.task("run-emulated", archive, "--json", "--cpu=both")
    second = nobody.task("run-emulated", archive, "--json", "--cpu=both")
    assert "fetching" not in second.stderr
    told = [[(row["outcome"], row["stdout"]) for row in each.document["results"]] for each in (first, second)]
    assert told[0] == told[1]


def test_nothing_that_was_unpacked_is_anybody_elses(nobody: Nobody, archive: str) -> None:
    nobody.task("run-emulated", archive)
    roots = nobody.home / ".cache/buildkit-tasks/roots"
    assert roots.stat().st_mode & 0o077 == 0
    owners = {path.lstat().st_uid for path in roots.rglob("*")}
    assert owners == {NOBODY}


def test_caps_hold_for_an_ordinary_user_too(nobody: Nobody, tmp_path: Path) -> None:
    memory = Memory()
    bomb = make_tar({"main": guests.fork_bomb("linux/amd64")})
    memory.index([add_platform(memory, "linux/amd64", [bomb], Cmd=["/main"])])
    name = f"oci-archive:{nobody.give(write_archive(memory, tmp_path / 'bomb.tar'))}"
    report = nobody.task("run-emulated", name, "--json", "--timeout=20", expect=5).document
    assert "more than 256 processes" in report["results"][0]["message"]
