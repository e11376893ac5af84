"""The disk fills up while an image is unpacked: a small tmpfs in a mount namespace."""

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
from tests.support.oci import make_tar, single_platform_image, write_archive
from tests.support.unpacking import file, layer_tar

# Mount a tmpfs on the cache directory, private to this namespace, then run this file as a program.
_SCRIPT = 'mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"'
_UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")
_SMALL = {"a": b"small"}


def unpack_on_small_disk(options: str, directory: Path, *archives: Path) -> dict[str, Any]:
    """Unpack the images in sequence into a tmpfs with these mount options, and return the results."""
    directory.mkdir()
    program = [
        sys.executable,
        "-m",
        "tests.failures.image.test_unpack_disk_full",
        str(directory),
        *map(str, archives),
    ]
    argv = [*_UNSHARE, "sh", "-c", _SCRIPT, "sh", options, str(directory), *program]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def _main(directory: Path, archives: list[Path]) -> None:
    from buildkit_tasks.errors import BuildkitTasksError
    from buildkit_tasks.run.sandbox.rootfs_cache import RootfsCache

    result = []
    for path in archives:
        before = sorted(str(each) for each in directory.rglob("*"))
        used = os.statvfs(directory).f_bfree
        with OciArchive(path) as source:
            entry = Image(source).platform_manifests[0][1]
            try:
                with RootfsCache(directory, 1 << 30, None).acquire(source, entry) as root:
                    outcome: dict[str, Any] = {"files": sorted(each.name for each in root.path.iterdir())}
            except BuildkitTasksError as error:
                outcome = {"code": error.exit_code, "message": str(error)}
        after = sorted(str(each) for each in directory.rglob("*"))
        result.append(
            {
                **outcome,
                "same": before == after,
                "new": sorted(set(after) - set(before)),
                "freed": os.statvfs(directory).f_bfree - used,
            }
        )
    print(json.dumps({"runs": result}))  # noqa: T201 - the test reads it


def write_layers(path: Path, *layers: bytes) -> Path:
    return write_archive(single_platform_image(list(layers)), path)


def test_full_disk_is_reported_and_cleaned(tmp_path: Path) -> None:
    big = write_layers(tmp_path / "big.tar", make_tar(_SMALL), make_tar({"x": bytes(6 << 20), "y": b"1"}))
    small = write_layers(tmp_path / "small.tar", make_tar(_SMALL))
    result = unpack_on_small_disk("size=4m", tmp_path / "roots", small, big, small)["runs"]
    with OciArchive(big) as source:
        digest = Image(source).platform_manifests[0][1].digest
    assert result[1]["code"] == 5
    assert f"the disk is full while unpacking linux/amd64 ({digest}): at least " in result[1]["message"]
    missing = int(result[1]["message"].partition("at least ")[2].split()[0])
    assert (6 << 20) - (4 << 20) <= missing < (6 << 20)
    assert f"try: df -h {tmp_path}/roots" in result[1]["message"]
    assert (result[1]["same"], result[1]["freed"]) == (True, 0)
    assert "a" in result[0]["files"]
    assert "a" in result[2]["files"]
    assert result[2]["same"]


def test_missing_space_counts_later_layers(tmp_path: Path) -> None:
    noise = os.urandom(3 << 20)  # random, so that it does not compress
    big = write_layers(tmp_path / "big.tar", make_tar({"x": bytes(6 << 20)}), make_tar({"y": noise}))
    (result,) = unpack_on_small_disk("size=4m", tmp_path / "roots", big)["runs"]
    missing = int(result["message"].partition("at least ")[2].split()[0])
    assert missing > (6 << 20) - (4 << 20) + (3 << 20)


@pytest.mark.parametrize("inodes", range(8, 30, 3))
def test_no_free_inodes_is_a_full_disk(inodes: int, tmp_path: Path) -> None:
    many = write_layers(
        tmp_path / "many.tar", layer_tar(*(file(f"{number % 5}/{number}") for number in range(100)))
    )
    (result,) = unpack_on_small_disk(f"nr_inodes={inodes}", tmp_path / "roots", many)["runs"]
    assert result["code"] == 5
    assert "the disk is full" in result["message"]
    assert result["freed"] == 0


@pytest.mark.parametrize("inodes", range(2, 8))
def test_few_free_inodes_fail_before_unpack(inodes: int, tmp_path: Path) -> None:
    small = write_layers(tmp_path / "small.tar", make_tar(_SMALL))
    (result,) = unpack_on_small_disk(f"nr_inodes={inodes}", tmp_path / "roots", small)["runs"]
    assert result["code"] == 5
    assert "No space left" in result["message"] or "the disk is full" in result["message"]
    assert "try: df -h" in result["message"]
    assert set(result["new"]) <= {str(tmp_path / "roots/.lock")}


if __name__ == "__main__":
    _main(Path(sys.argv[1]), [Path(arg) for arg in sys.argv[2:]])
