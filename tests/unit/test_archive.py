from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.archive import Archive
from buildkit_tasks.oci.source import manifest_of, open_verified, platform_manifests, read_blob
from buildkit_tasks.verify import verify
from tests.images import folder, hello, layout_files, make_tar, symlink, write_archive


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_image_in_an_archive_is_read_in_place(form: int, prefix: str, tmp_path: Path) -> None:
    memory = hello()
    files = {f"{prefix}{name}": data for name, data in layout_files(memory).items()}
    data = make_tar(files, [folder("blobs"), folder("blobs/sha256")], form)
    with Archive(put(tmp_path / "a.tar", data)) as archive:
        assert archive.root().digest == memory.root().digest
        assert verify(archive, [], "a").ok


def test_several_blobs_are_read_at_once(tmp_path: Path) -> None:
    memory = hello()
    with Archive(write_archive(memory, tmp_path / "a.tar")) as archive:
        layers = [manifest_of(archive, entry).layers[0] for _, entry in platform_manifests(archive)]
        streams = [open_verified(archive, layer, 64) for layer in layers]
        starts = [stream.read(10) for stream in streams]
        whole = [start + stream.read() for start, stream in zip(starts, streams, strict=True)]
    assert whole == [memory.blobs[str(layer.digest)] for layer in layers]


def test_the_file_is_closed_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "a.tar")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with Archive(path) as archive:
        archive.root()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_blob_that_is_missing_is_named(tmp_path: Path) -> None:
    memory = hello()
    files = layout_files(memory)
    del files[f"blobs/sha256/{memory.root().digest.hex}"]
    with Archive(put(tmp_path / "a.tar", make_tar(files))) as archive:
        root = archive.root()
        with pytest.raises(MalformedImage, match=rf"{root.digest.hex} is missing"):
            read_blob(archive, root, 1 << 20)


def test_row_38_a_blob_that_is_a_link_is_not_there(tmp_path: Path) -> None:
    memory = hello()
    files = layout_files(memory)
    name = f"blobs/sha256/{memory.root().digest.hex}"
    files["elsewhere"] = files.pop(name)
    data = make_tar(files, [symlink(name, "../../elsewhere")])
    with Archive(put(tmp_path / "a.tar", data)) as archive:
        root = archive.root()
        with pytest.raises(MalformedImage, match="is missing"):
            read_blob(archive, root, 1 << 20)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    files = layout_files(hello())
    data = make_tar({**files, "./index.json": files["index.json"]})
    with pytest.raises(MalformedImage, match=r"holds index\.json twice"):
        Archive(put(tmp_path / "a.tar", data))


@pytest.mark.parametrize(
    ("magic", "tool"), [(gzip.compress(b"x"), "gunzip"), (b"\x28\xb5\x2f\xfd..", "unzstd")]
)
def test_a_compressed_archive_is_refused_with_what_to_do(magic: bytes, tool: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is compressed") as caught:
        Archive(put(tmp_path / "a.tar.gz", magic))
    assert tool in str(caught.value.hint)


@pytest.mark.parametrize(
    ("files", "cause"), [({"manifest.json": b"[]"}, "docker save"), ({"README": b""}, r"no OCI archive")]
)
def test_another_kind_of_archive_is_told_apart(files: dict[str, bytes], cause: str, tmp_path: Path) -> None:
    with Archive(put(tmp_path / "a.tar", make_tar(files))) as archive, pytest.raises(UsageError, match=cause):
        archive.root()


@pytest.mark.parametrize("data", [b"hello, world" * 100, os.urandom(2048)])
def test_a_file_that_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(MalformedImage, match="tar archive"):
        Archive(put(tmp_path / "a.tar", b"T" + data))


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "a.tar")
    last = path.read_bytes().rstrip(b"\0")
    with pytest.raises(MalformedImage, match="ends in the middle"):
        Archive(put(path, last[:-1]))


@pytest.mark.timeout(10)
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="no regular file"):
        Archive(tmp_path / "a.tar")


def test_an_index_json_past_the_cap_is_not_read(tmp_path: Path) -> None:
    files = layout_files(hello()) | {"index.json": bytes((4 << 20) + 1)}
    with Archive(put(tmp_path / "a.tar", make_tar(files))) as archive, pytest.raises(LimitExceeded):
        archive.root()
