from __future__ import annotations

import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.source import open_verified, read_blob
from buildkit_tasks.oci.transports import tar_members, tar_stream
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.verify import verify
from tests.support.oci import (
    descriptor,
    directory,
    flip,
    hello,
    layout_files,
    make_tar,
    symlink,
    write_archive,
)
from tests.support.unpacking import open_fds
from tests.support.zstd import zstd


def write_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_read_image(form: int, prefix: str, tmp_path: Path) -> None:
    memory = hello()
    files = {f"{prefix}{name}": data for name, data in layout_files(memory).items()}
    data = make_tar(files, [directory("blobs"), directory("blobs/sha256")], form)
    with OciArchive(write_file(tmp_path / "a.tar", data)) as archive:
        assert archive.root_descriptor().digest == memory.root_descriptor().digest
        assert verify(archive, [], "a").ok


def test_overlapping_streams(tmp_path: Path) -> None:
    memory = hello()
    with OciArchive(write_archive(memory, tmp_path / "a.tar")) as archive:
        layers = [Image(archive).manifest(entry).layers[0] for _, entry in Image(archive).platform_manifests]
        streams = [open_verified(archive, layer, 64) for layer in layers]
        starts = [stream.read(10) for stream in streams]
        contents = [start + stream.read() for start, stream in zip(starts, streams, strict=True)]
    assert contents == [memory.blobs[str(layer.digest)] for layer in layers]


def test_close(tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "a.tar")
    before = open_fds()
    with OciArchive(path) as archive:
        archive.root_descriptor()
    assert open_fds() <= before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_blob(tmp_path: Path) -> None:
    memory = hello()
    files = layout_files(memory)
    del files[f"blobs/sha256/{memory.root_descriptor().digest.hex}"]
    with OciArchive(write_file(tmp_path / "a.tar", make_tar(files))) as archive:
        root = archive.root_descriptor()
        with pytest.raises(MalformedImage, match=rf"{root.digest.hex} is missing"):
            read_blob(archive, root, 1 << 20)


def test_symlinked_blob(tmp_path: Path) -> None:
    memory = hello()
    files = layout_files(memory)
    name = f"blobs/sha256/{memory.root_descriptor().digest.hex}"
    files["target"] = files.pop(name)
    data = make_tar(files, [symlink(name, "../../target")])
    with OciArchive(write_file(tmp_path / "a.tar", data)) as archive:
        root = archive.root_descriptor()
        with pytest.raises(MalformedImage, match="is missing"):
            read_blob(archive, root, 1 << 20)


def test_duplicate_member(tmp_path: Path) -> None:
    files = layout_files(hello())
    data = make_tar({**files, "./index.json": files["index.json"]})
    with pytest.raises(MalformedImage, match=r"contains index\.json twice"):
        OciArchive(write_file(tmp_path / "a.tar", data))


FOREIGN = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
)
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstd.compress}


@pytest.mark.parametrize("form", COMPRESSED)
@pytest.mark.parametrize("max_cached_member", [1 << 20, 0])
def test_compressed_archive(
    form: str, max_cached_member: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_stream, "_MAX_CACHED_MEMBER", max_cached_member)
    memory = hello()
    data = make_tar(layout_files(memory))
    pieces = [data[: len(data) // 2], data[len(data) // 2 :]]  # as pigz and `cat` write
    path = write_file(tmp_path / "a.tar.gz", b"".join(COMPRESSED[form](piece) for piece in pieces))
    with OciArchive(path) as archive:
        assert archive.root_descriptor().digest == memory.root_descriptor().digest
        assert verify(archive, [], "a").ok
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", COMPRESSED)
def test_truncated_compressed_archive(form: str, tmp_path: Path) -> None:
    data = COMPRESSED[form](make_tar(layout_files(hello(["linux/amd64"]))))
    for length in (*range(4, len(data), 7), len(data) - 1):
        with pytest.raises(MalformedImage, match=r"truncated|corrupt|ends in the middle|a single zero block"):
            OciArchive(write_file(tmp_path / "a.tar.gz", data[:length]))


def test_flipped_compressed_byte(tmp_path: Path) -> None:
    data = make_tar(layout_files(hello(["linux/amd64"])))
    packed = gzip.compress(data)
    harmless = 0
    for offset in range(10, len(packed), 3):
        changed = flip(packed, offset)
        try:
            OciArchive(write_file(tmp_path / "a.tar.gz", changed)).close()
        except MalformedImage:
            continue
        assert gzip.decompress(changed) == data  # a bit of the padding
        harmless += 1
    assert harmless < 3


def test_decompression_bomb(tmp_path: Path) -> None:
    data = make_tar({**layout_files(hello()), "zeros": bytes(80 << 20)})
    path = write_file(tmp_path / "a.tar.zst", zstd.compress(data))
    with pytest.raises(LimitExceeded, match="decompression bomb"):
        OciArchive(path)


@pytest.mark.parametrize(
    ("files", "cause"), [({"manifest.json": b"[]"}, "docker save"), ({"README": b""}, r"not an OCI archive")]
)
def test_other_kind_of_archive(files: dict[str, bytes], cause: str, tmp_path: Path) -> None:
    with (
        OciArchive(write_file(tmp_path / "a.tar", make_tar(files))) as archive,
        pytest.raises(UsageError, match=cause),
    ):
        archive.root_descriptor()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"FROM scratch\n", "text"),
        (b"FROM scratch\n" * 100, "text"),
        ("é".encode() * 500, "text"),
        (b"", "an empty file"),
        (bytes(range(256)) * 8, "binary data"),
        (b"\x7fELF" + bytes(600), "an ELF program"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (gzip.compress(b"FROM scratch\n", mtime=0), "gzip-compressed text"),
        (gzip.compress(b"", mtime=0), "gzip-compressed empty file"),
        (zstd.compress(b"\x7fELF" + bytes(600)), "zstd-compressed ELF program"),
    ],
)
def test_not_a_tar_file(data: bytes, kind: str, tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.tar", data)
    with pytest.raises(UsageError) as excinfo:
        OciArchive(path)
    expected = "expected a tar file of an OCI layout or of docker save"
    assert excinfo.value.message == f"{path} is not an image archive: {expected}, found {kind}"


def test_damaged_first_header(tmp_path: Path) -> None:
    data = bytearray(write_archive(hello(), tmp_path / "a.tar").read_bytes())
    data[0] ^= 1
    with pytest.raises(MalformedImage, match="before byte 512: the header checksum is wrong"):
        OciArchive(write_file(tmp_path / "a.tar", bytes(data)))


def test_v7_archive(tmp_path: Path) -> None:
    files = layout_files(hello())
    path = write_file(tmp_path / "a.tar", make_tar(files))
    blocks = path.read_bytes()
    header = bytearray(blocks[:512])
    header[257:265] = bytes(8)  # no magic, as before POSIX
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with OciArchive(write_file(path, bytes(header) + blocks[512:])) as archive:
        assert archive.root_descriptor()


def test_truncated_archive(tmp_path: Path) -> None:
    path = write_archive(hello(), tmp_path / "a.tar")
    last_bytes = path.read_bytes().rstrip(b"\0")
    with pytest.raises(MalformedImage, match="ends in the middle"):
        OciArchive(write_file(path, last_bytes[:-1]))


@pytest.mark.timeout(60)
def test_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(UsageError, match="not a regular file"):
        OciArchive(tmp_path / "a.tar")


def test_unrelated_members(tmp_path: Path) -> None:
    memory = hello()
    files = {**layout_files(memory), "usr/share/doc/x": b"1", "usr/share/doc/./x": b"2", "n" * 300: b""}
    with OciArchive(write_file(tmp_path / "a.tar", make_tar(files))) as archive:
        assert verify(archive, [], "a").ok


def test_member_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "_MAX_MEMBERS", 20)
    files = {**layout_files(hello()), **{f"junk{number}": b"" for number in range(20)}}
    with pytest.raises(LimitExceeded, match="more than 20 files"):
        OciArchive(write_file(tmp_path / "a.tar", make_tar(files)))


def test_read_order(tmp_path: Path) -> None:
    memory = hello()
    names = [name for name in layout_files(memory) if name.startswith("blobs/")]
    with OciArchive(write_archive(memory, tmp_path / "a.tar")) as archive:
        archive.root_descriptor()
        entries = [descriptor({"mediaType": "x/y", "digest": digest, "size": 1}) for digest in memory.blobs]
        offsets = [archive.read_order(entry) for entry in entries]
        assert len(names) == len(offsets) == len(set(offsets))
        assert offsets == sorted(offsets)
        missing_blob = descriptor(
            {"mediaType": "x/y", "digest": str(Digest.from_bytes(b"absent")), "size": 1}
        )
        assert (
            archive.has_blob(entries[0]),
            archive.has_blob(missing_blob),
            archive.read_order(missing_blob),
        ) == (True, False, 0)


def test_foreign_layer(tmp_path: Path) -> None:
    with OciArchive(write_archive(hello(), tmp_path / "a.tar")) as archive:
        archive.root_descriptor()
        entry = {"mediaType": "x/y", "digest": str(Digest.from_bytes(b"absent")), "size": 1}
        for media_type in FOREIGN:
            with pytest.raises(MalformedImage, match="is a foreign layer, which is not part of this image"):
                archive.open(descriptor({**entry, "mediaType": media_type}))


def test_index_size_limit(tmp_path: Path) -> None:
    files = layout_files(hello()) | {"index.json": bytes((4 << 20) + 1)}
    with OciArchive(write_file(tmp_path / "a.tar", make_tar(files))) as archive, pytest.raises(LimitExceeded):
        archive.root_descriptor()
