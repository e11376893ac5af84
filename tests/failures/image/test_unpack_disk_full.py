"""A disk that fills up while an image is unpacked: a real one, small, in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from tests.conftest import ROOT
from tests.support.oci import make_tar, one, write_archive
from tests.support.unpacking import (
    file,
    layer_tar,
)

# A tmpfs over the folder of roots, then this file again as a program; nobody else sees it.
_SCRIPT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
_SMALL = {"a": b"small"}


def on_a_small_disk(options: str, place: Path, *archives: Path) -> dict[str, Any]:
    """Unpack these images one after the other into a file system with such options; tells how it went."""
    place.mkdir()
    program = [
        sys.executable,
        "-m",
        "tests.failures.image.test_unpack_disk_full",
        str(place),
        *map(str, archives),
    ]
    argv = [*_UNSHARE, "sh", "-c", _SCRIPT, "sh", options, str(place), *program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def _main(place: Path, archives: list[Path]) -> None:
    from buildkit_tasks.errors import BuildkitTasksError
    from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache

    told = []
    for path in archives:
        before = sorted(str(each) for each in place.rglob("*"))
        used = os.statvfs(place).f_bfree
        with OciArchive(path) as source:
            entry = Image(source).platform_manifests[0][1]
            try:
                with RootfsCache(place, 1 << 30, None).acquire(source, entry) as root:
                    said: dict[str, Any] = {"files": sorted(each.name for each in root.path.iterdir())}
            except BuildkitTasksError as error:
                said = {"code": error.exit_code, "message": str(error)}
        after = sorted(str(each) for each in place.rglob("*"))
        told.append(
            {
                **said,
                "same": before == after,
                "new": sorted(set(after) - set(before)),
                "freed": os.statvfs(place).f_bfree - used,
            }
        )
    print(json.dumps({"runs": told}))  # noqa: T201 - to the test


def archive(path: Path, *layers: bytes) -> Path:
    return write_archive(one(list(layers)), path)


def test_a_disk_that_fills_up_is_told_of_and_left_as_it_was(tmp_path: Path) -> None:
    big = archive(tmp_path / "big.tar", make_tar(_SMALL), make_tar({"x": bytes(6 << 20), "y": b"1"}))
    small = archive(tmp_path / "small.tar", make_tar(_SMALL))
    told = on_a_small_disk("size=4m", tmp_path / "roots", small, big, small)["runs"]
    with OciArchive(big) as source:
        digest = Image(source).platform_manifests[0][1].digest
    assert told[1]["code"] == 5
    assert f"the disk is full while unpacking linux/amd64 ({digest}): at least " in told[1]["message"]
    missing = int(told[1]["message"].partition("at least ")[2].split()[0])
    assert (6 << 20) - (4 << 20) <= missing < (6 << 20)
    assert f"try: df -h {tmp_path}/roots" in told[1]["message"]
    assert (told[1]["same"], told[1]["freed"]) == (True, 0)
    assert "a" in told[0]["files"]
    assert "a" in told[2]["files"]
    assert told[2]["same"]


def test_layers_that_come_after_count_as_missing_too(tmp_path: Path) -> None:
    noise = os.urandom(3 << 20)  # what does not compress
    big = archive(tmp_path / "big.tar", make_tar({"x": bytes(6 << 20)}), make_tar({"y": noise}))
    (told,) = on_a_small_disk("size=4m", tmp_path / "roots", big)["runs"]
    missing = int(told["message"].partition("at least ")[2].split()[0])
    assert missing > (6 << 20) - (4 << 20) + (3 << 20)


@pytest.mark.parametrize("inodes", range(8, 30, 3))
def test_a_file_system_without_inodes_left_is_a_full_disk(inodes: int, tmp_path: Path) -> None:
    many = archive(
        tmp_path / "many.tar", layer_tar(*(file(f"{number % 5}/{number}") for number in range(100)))
    )
    (told,) = on_a_small_disk(f"nr_inodes={inodes}", tmp_path / "roots", many)["runs"]
    assert told["code"] == 5
    assert "the disk is full" in told["message"]
    assert told["freed"] == 0


@pytest.mark.parametrize("inodes", range(2, 8))
def test_a_file_system_with_hardly_a_place_left_is_full_before_anything_is_unpacked(
    inodes: int, tmp_path: Path
) -> None:
    small = archive(tmp_path / "small.tar", make_tar(_SMALL))
    (told,) = on_a_small_disk(f"nr_inodes={inodes}", tmp_path / "roots", small)["runs"]
    assert told["code"] == 5
    assert "No space left" in told["message"] or "the disk is full" in told["message"]
    assert "try: df -h" in told["message"]
    assert set(told["new"]) <= {str(tmp_path / "roots/.lock")}


if __name__ == "__main__":
    _main(Path(sys.argv[1]), [Path(word) for word in sys.argv[2:]])
