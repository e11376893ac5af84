from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from buildkit_tasks.errors import CheckFailed, MalformedImage
from buildkit_tasks.oci.copy.join import join_archives, open_joined_archives
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.verify import verify
from tests.support.oci import flip, hello, write_archive

TWO = parse_platforms(["linux/arm64", "linux/amd64"])


def write_parts(folder: Path, platforms: tuple[Platform, ...] = TWO) -> dict[Platform, Path]:
    return {
        platform: write_archive(hello([str(platform)]), folder / f"{platform.slug}.tar")
        for platform in platforms
    }


def test_joined_image(tmp_path: Path) -> None:
    path = tmp_path / "joined.tar"
    digest = join_archives(write_parts(tmp_path), ["docker.io/library/hello:1"], path)
    with open_image(f"oci-archive:{path}") as source:
        assert source.root_descriptor().digest == digest
        assert verify(source, TWO, "image").ok
        assert [platform for platform, _ in source.platform_manifests] == list(TWO)


def test_all_blobs_once(tmp_path: Path) -> None:
    archives = write_parts(tmp_path)
    with open_joined_archives(archives) as joined:
        digests = [descriptor.digest for descriptor in joined.reachable(joined.root_descriptor())]
    assert len(digests) == len(set(digests))
    for archive in archives.values():
        with open_image(f"oci-archive:{archive}") as part:
            manifests = {descriptor.digest for descriptor in part.reachable(part.root_descriptor())} - {
                part.root_descriptor().digest
            }
        assert manifests <= set(digests)


def test_image_names(tmp_path: Path) -> None:
    path = tmp_path / "joined.tar"
    digest = join_archives(
        write_parts(tmp_path), ["docker.io/library/hello:1", "r.example.org/hello:2"], path
    )
    with tarfile.open(path) as archive:
        index = json.loads(archive.extractfile("index.json").read())  # type: ignore[union-attr]
    names = {each["annotations"]["io.containerd.image.name"] for each in index["manifests"]}
    assert names == {"docker.io/library/hello:1", "r.example.org/hello:2"}
    assert {each["digest"] for each in index["manifests"]} == {str(digest)}


def test_reproducible(tmp_path: Path) -> None:
    archives = write_parts(tmp_path)
    one, two = tmp_path / "one.tar", tmp_path / "two.tar"
    assert join_archives(archives, [], one) == join_archives(archives, [], two)
    assert one.read_bytes() == two.read_bytes()


def test_wrong_platform(tmp_path: Path) -> None:
    archives = write_parts(tmp_path)
    swapped = dict(zip(archives, reversed(archives.values()), strict=True))
    join_archives(swapped, [], tmp_path / "x.tar")  # only the set of platforms counts
    wrong = {TWO[0]: archives[TWO[0]], Platform.parse("linux/s390x"): archives[TWO[1]]}
    with pytest.raises(CheckFailed, match="linux/s390x"):
        join_archives(wrong, [], tmp_path / "y.tar")


def test_part_with_two_platforms(tmp_path: Path) -> None:
    both = write_archive(hello(["linux/amd64", "linux/arm64"]), tmp_path / "both.tar")
    with pytest.raises(CheckFailed, match="the part for linux/amd64 is not an image of one platform"):
        join_archives({TWO[1]: both}, [], tmp_path / "x.tar")


def test_flipped_byte(tmp_path: Path) -> None:
    archives = write_parts(tmp_path)
    broken = hello(["linux/arm64"])
    layer = next(name for name, data in broken.blobs.items() if data[:2] == b"\x1f\x8b")
    broken.blobs[layer] = flip(broken.blobs[layer])
    archives[TWO[0]] = write_archive(broken, tmp_path / "broken.tar")
    with pytest.raises(MalformedImage):
        join_archives(archives, [], tmp_path / "x.tar")


def test_unknown_blob(tmp_path: Path) -> None:
    with open_joined_archives(write_parts(tmp_path)) as joined:
        assert read_blob(joined, joined.root_descriptor(), 1 << 20)
        unknown = Descriptor(media_type=OCI_INDEX, digest=Digest.from_bytes(b"x"), size=1)
        with pytest.raises(MalformedImage, match="is in none of the parts"):
            joined.open(unknown)
