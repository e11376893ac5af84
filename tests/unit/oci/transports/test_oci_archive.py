from __future__ import annotations

import gzip
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import open_verified, platform_manifests, read_blob, read_manifest
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.transports import tar_members as members
from buildkit_tasks.oci.transports import tar_stream as rewind
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.verify import verify
from tests.support.oci import descriptor, flip, folder, hello, layout_files, make_tar, symlink, write_archive

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_an_image_in_an_archive_is_read_in_place(form: int, prefix: str, tmp_path: Path) -> None:
    memory = hello()
    files = {f"{prefix}{name}": data for name, data in layout_files(memory).items()}
    data = make_tar(files, [folder("blobs"), folder("blobs/sha256")], form)
    with OciArchive(put(tmp_path / "a.tar", data)) as archive:
        assert archive.root_descriptor().digest == memory.root_descriptor().digest
        assert verify(archive, [], "a").ok


def test_several_blobs_are_read_at_once(tmp_path: Path) -> None:
    memory = hello()
    with OciArchive(write_archive(memory, tmp_path / "a.tar")) as archive:
        layers = [read_manifest(archive, entry).layers[0] for _, entry in platform_manifests(archive)]
        streams = [open_verified(archive, layer, 64) for layer in layers]
        starts = [stream.read(10) for stream in streams]
        whole = [start + stream.read() for start, stream in zip(starts, streams, strict=True)]
    assert whole == [memory.blobs[str(layer.digest)] for layer in layers]


def test_the_file_is_closed_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "a.tar")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with OciArchive(path) as archive:
        archive.root_descriptor()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_blob_that_is_missing_is_named(tmp_path: Path) -> None:
    memory = hello()
    files = layout_files(memory)
    del files[f"blobs/sha256/{memory.root_descriptor().digest.hex}"]
    with OciArchive(put(tmp_path / "a.tar", make_tar(files))) as archive:
        root = archive.root_descriptor()
        with pytest.raises(MalformedImage, match=rf"{root.digest.hex} is missing"):
            read_blob(archive, root, 1 << 20)


def test_row_38_a_blob_that_is_a_link_is_not_there(tmp_path: Path) -> None:
    memory = hello()
    files = layout_files(memory)
    name = f"blobs/sha256/{memory.root_descriptor().digest.hex}"
    files["elsewhere"] = files.pop(name)
    data = make_tar(files, [symlink(name, "../../elsewhere")])
    with OciArchive(put(tmp_path / "a.tar", data)) as archive:
        root = archive.root_descriptor()
        with pytest.raises(MalformedImage, match="is missing"):
            read_blob(archive, root, 1 << 20)


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    files = layout_files(hello())
    data = make_tar({**files, "./index.json": files["index.json"]})
    with pytest.raises(MalformedImage, match=r"contains index\.json twice"):
        OciArchive(put(tmp_path / "a.tar", data))


FOREIGN = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
)
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


@pytest.mark.parametrize("form", COMPRESSED)
@pytest.mark.parametrize("small", [1 << 20, 0])
def test_a_compressed_archive_is_read_as_it_is(
    form: str, small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewind, "_MAX_CACHED_MEMBER", small)
    memory = hello()
    data = make_tar(layout_files(memory))
    pieces = [data[: len(data) // 2], data[len(data) // 2 :]]  # as pigz and `cat` make them
    path = put(tmp_path / "a.tar.gz", b"".join(COMPRESSED[form](piece) for piece in pieces))
    with OciArchive(path) as archive:
        assert archive.root_descriptor().digest == memory.root_descriptor().digest
        assert verify(archive, [], "a").ok
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", COMPRESSED)
def test_a_compressed_archive_that_is_cut_off_anywhere_is_refused(form: str, tmp_path: Path) -> None:
    data = COMPRESSED[form](make_tar(layout_files(hello(["linux/amd64"]))))
    for length in (*range(4, len(data), 7), len(data) - 1):
        with pytest.raises(MalformedImage, match=r"truncated|corrupt|ends in the middle|a single zero block"):
            OciArchive(put(tmp_path / "a.tar.gz", data[:length]))


def test_row_33_one_flipped_byte_of_the_compression_is_found(tmp_path: Path) -> None:
    data = make_tar(layout_files(hello(["linux/amd64"])))
    packed = gzip.compress(data)
    harmless = 0
    for at in range(10, len(packed), 3):
        changed = flip(packed, at)
        try:
            OciArchive(put(tmp_path / "a.tar.gz", changed)).close()
        except MalformedImage:
            continue
        assert gzip.decompress(changed) == data  # a bit of padding, which says nothing
        harmless += 1
    assert harmless < 3


def test_an_archive_that_is_a_bomb_is_stopped(tmp_path: Path) -> None:
    data = make_tar({**layout_files(hello()), "zeros": bytes(80 << 20)})
    path = put(tmp_path / "a.tar.zst", zstd.compress(data))
    with pytest.raises(LimitExceeded, match="decompression bomb"):
        OciArchive(path)


@pytest.mark.parametrize(
    ("files", "cause"), [({"manifest.json": b"[]"}, "docker save"), ({"README": b""}, r"not an OCI archive")]
)
def test_another_kind_of_archive_is_told_apart(files: dict[str, bytes], cause: str, tmp_path: Path) -> None:
    with (
        OciArchive(put(tmp_path / "a.tar", make_tar(files))) as archive,
        pytest.raises(UsageError, match=cause),
    ):
        archive.root_descriptor()


@pytest.mark.parametrize("data", [b"hello, world" * 100, os.urandom(2048)])
def test_a_file_that_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(MalformedImage, match="tar archive"):
        OciArchive(put(tmp_path / "a.tar", b"T" + data))


def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "a.tar")
    last = path.read_bytes().rstrip(b"\0")
    with pytest.raises(MalformedImage, match="ends in the middle"):
        OciArchive(put(path, last[:-1]))


@pytest.mark.timeout(10)
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="not a regular file"):
        OciArchive(tmp_path / "a.tar")


def test_names_that_no_image_has_are_passed_over(tmp_path: Path) -> None:
    memory = hello()
    files = {**layout_files(memory), "usr/share/doc/x": b"1", "usr/share/doc/./x": b"2", "n" * 300: b""}
    with OciArchive(put(tmp_path / "a.tar", make_tar(files))) as archive:
        assert verify(archive, [], "a").ok


def test_more_members_than_an_image_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "_MAX_MEMBERS", 20)
    files = {**layout_files(hello()), **{f"junk{number}": b"" for number in range(20)}}
    with pytest.raises(LimitExceeded, match="more than 20 files"):
        OciArchive(put(tmp_path / "a.tar", make_tar(files)))


def test_blobs_are_told_by_their_place_in_the_file(tmp_path: Path) -> None:
    memory = hello()
    names = [name for name in layout_files(memory) if name.startswith("blobs/")]
    with OciArchive(write_archive(memory, tmp_path / "a.tar")) as archive:
        archive.root_descriptor()
        entries = [descriptor({"mediaType": "x/y", "digest": digest, "size": 1}) for digest in memory.blobs]
        places = [archive.read_order(entry) for entry in entries]
        assert len(names) == len(places) == len(set(places))
        assert places == sorted(places)
        absent = descriptor({"mediaType": "x/y", "digest": str(Digest.from_bytes(b"absent")), "size": 1})
        assert (archive.has_blob(entries[0]), archive.has_blob(absent), archive.read_order(absent)) == (
            True,
            False,
            0,
        )


def test_a_foreign_layer_that_is_not_carried_is_called_that(tmp_path: Path) -> None:
    with OciArchive(write_archive(hello(), tmp_path / "a.tar")) as archive:
        archive.root_descriptor()
        entry = {"mediaType": "x/y", "digest": str(Digest.from_bytes(b"absent")), "size": 1}
        for media_type in FOREIGN:
            with pytest.raises(MalformedImage, match="is a foreign layer, which is not part of this image"):
                archive.open(descriptor({**entry, "mediaType": media_type}))


def test_an_index_json_past_the_cap_is_not_read(tmp_path: Path) -> None:
    files = layout_files(hello()) | {"index.json": bytes((4 << 20) + 1)}
    with OciArchive(put(tmp_path / "a.tar", make_tar(files))) as archive, pytest.raises(LimitExceeded):
        archive.root_descriptor()
