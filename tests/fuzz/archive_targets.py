"""The fuzz targets of archives and layers: unpacking, merging, `docker save`, and compressed streams."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.decompress import DecompressedStream
from buildkit_tasks.oci.layers.rootfs import FileNode, FileType, iter_nodes
from buildkit_tasks.oci.layers.scan import flatten_layers
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.transports.docker_archive import open_saved_image
from buildkit_tasks.oci.transports.docker_manifest import SavedImage, choose_image, parse_docker_manifest
from buildkit_tasks.oci.transports.tar_members import SeekableArchive
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive
from buildkit_tasks.run.sandbox.unpack import unpack
from tests.fuzz import mutators, oracles, seeds
from tests.fuzz.target import Target
from tests.support.oci import make_tar, platform_json, single_platform_image, symlink
from tests.support.unpacking import platform_descriptor, remove_path

_MIB = 1 << 20
_IMAGE_ERRORS = (MalformedImage, LimitExceeded)
_CREATED_BY_UNPACK = {"dev", "proc", "sys", "tmp", "etc", "etc/hosts"}


@functools.cache
def _scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


# Layers. A case is the lower and the upper one; two bytes tell where the second begins.


def _split_layers(data: bytes) -> list[bytes]:
    size = int.from_bytes(data[:2], "big") * 512
    return [oracles.fix_checksums(each) for each in (data[2 : 2 + size], data[2 + size :])]


def _join_layers(lower: bytes, upper: bytes) -> bytes:
    return (len(lower) // 512).to_bytes(2, "big") + lower + upper


def _layer_seeds() -> Iterator[bytes]:
    archives = [each for each in seeds.iter_archives() if len(each) % 512 == 0]
    yield from (_join_layers(archives[0], each) for each in archives)
    lower = make_tar({"usr/bin/x": b"1", "usr/lib/y": b"2", "opt/a": b"3"}, [symlink("opt/l", "../usr/bin")])
    for upper in (
        make_tar({"usr/.wh.bin": b""}), make_tar({"usr/.wh..wh..opq": b"", "usr/z": b""}),
        make_tar({"opt/l/app": b"4"}), make_tar({"usr/.wh.bin/x": b"", "opt/a/b": b""}),
        make_tar({"opt/.wh.l": b"", "opt/l": b"5"}),
    ):  # fmt: skip
        yield _join_layers(lower, upper)


def _flatten(layers: list[bytes]) -> FileNode:
    source = Image(single_platform_image(layers))
    return flatten_layers(source, platform_descriptor(source.source)).root  # type: ignore[arg-type]


def _read_overlay(data: bytes) -> FileNode:
    return _flatten(_split_layers(data))


def _check_overlay(data: bytes, root: FileNode) -> None:
    """Check that no whiteout is left, and that the upper layer alone adds what it has."""
    del data
    assert all(node.type is not FileType.WHITEOUT for _, node in iter_nodes(root))
    assert all("/" not in name.rpartition("/")[2] for name, _ in iter_nodes(root))


def _read_sandbox(data: bytes) -> set[str]:
    """Unpack the layers, and return the directories that are there, without those that unpacking adds."""
    source = single_platform_image(_split_layers(data))
    root = _scratch() / "root"
    try:
        unpack(source, platform_descriptor(source), root)
        return set(_list_directories(root))
    finally:
        if os.path.lexists(root):
            remove_path(root)
        assert list(_scratch().iterdir()) == []


def _list_directories(root: Path) -> Iterator[str]:
    for folder, names, _ in os.walk(root):
        relative = os.path.relpath(folder, root)
        prefix = "" if relative == "." else f"{relative}/"
        yield from (f"{prefix}{name}" for name in names if not Path(folder, name).is_symlink())


def _check_sandbox(data: bytes, directories: set[str]) -> None:
    """Check that verification sees the directories that were unpacked."""
    if os.geteuid() != 0:
        return  # directories that keep this user out are not listed
    try:
        tree = _flatten(_split_layers(data))
    except MalformedImage:
        return  # verification refuses more, so that such an image is not run
    scanned = {name[1:] for name, node in iter_nodes(tree) if node.type is FileType.DIRECTORY}
    assert {each for each in directories - scanned if each not in _CREATED_BY_UNPACK} == set()
    assert {each for each in scanned - directories if each not in _CREATED_BY_UNPACK} == set()


def _mutate_layers(data: bytes, rng: object) -> bytes:
    lower, upper = _split_layers(data)
    return _join_layers(lower, mutators.mutate_tar(upper, rng))  # type: ignore[arg-type]


# Archives of `docker save`.


def _save_archive(names: tuple[str, ...] = ("a:1",)) -> bytes:
    layer = make_tar({"main": b"x"})
    config = json.dumps(
        {**platform_json("linux/amd64"), "rootfs": {"diff_ids": [str(Digest.from_bytes(layer))]}}
    ).encode()
    name = f"{Digest.from_bytes(config).hex}.json"
    manifest = [{"Config": name, "RepoTags": [each], "Layers": ["l/layer.tar"]} for each in names]
    return make_tar({name: config, "l/layer.tar": layer, "manifest.json": json.dumps(manifest).encode()})


def _read_saved(data: bytes) -> int:
    """Read everything of an archive as a stream, and the same from a file."""
    data = oracles.fix_checksums(data)
    sizes = []
    fd = os.memfd_create("archive")
    os.write(fd, data)
    for archive in (
        StreamedArchive(lambda: io.BytesIO(data), "the archive"),
        SeekableArchive(fd, "the archive"),
    ):
        with open_saved_image(archive) as source:
            image = Image(source)
            blobs = [blob for entry in image.index.manifests for blob in image.blobs(entry)]
            total = 0
            for blob in blobs:
                with image.open(blob) as stream:
                    total += len(stream.read())
            sizes.append(total)
    assert sizes[0] == sizes[1]
    return sizes[0]


def _read_members(data: bytes) -> list[tuple[str, bytes]]:
    """Read the members in reverse, which rewinds a stream, and compare them with those of a file."""
    data = oracles.fix_checksums(data)
    archive = StreamedArchive(lambda: io.BytesIO(data), "the archive")
    fd = os.memfd_create("archive")
    os.write(fd, data)
    other = SeekableArchive(fd, "the archive")
    try:
        assert archive.archive_index.files == other.archive_index.files
        members = []
        for name in reversed(archive.archive_index.files):
            with archive.open(name) as stream, other.open(name) as other_stream:
                members.append((name, stream.read()))
                assert other_stream.read() == members[-1][1]
            assert archive.read_head(name) == other.read_head(name)
    finally:
        archive.close()
        other.close()
    return members


def _read_manifest(data: bytes) -> SavedImage:
    return choose_image(parse_docker_manifest(data), None)


# Compressed streams.

_RATIO_SIZE = 96 * _MIB


def _read_stream(data: bytes) -> tuple[int, int]:
    """Decompress a stream; return how many bytes it has and a checksum."""
    size = checksum = 0
    stream = DecompressedStream(io.BytesIO(data), "the stream", max_size=_RATIO_SIZE)
    while chunk := stream.read(1 << 16):
        size += len(chunk)
        checksum = (checksum * 31 + len(chunk) + chunk[0]) % (1 << 32)
    return size, checksum


def _check_stream(data: bytes, result: tuple[int, int]) -> None:
    if data[:2] == b"\x1f\x8b":
        assert len(oracles.decompress_gzip(data)) == result[0]


def _stream_seeds() -> Iterator[bytes]:
    contents = (b"a" * 300_000, bytes(range(256)) * 512, make_tar({"x": b"y" * 5000}), b"")
    compressors: tuple[Callable[[bytes], bytes], ...] = (
        gzip.compress, seeds.gzip_in_members, seeds.zstd_in_frames,
    )  # fmt: skip
    for content in contents:
        yield from (compress(content) for compress in compressors)


_TAR = (b"ustar\x0000", b"x", b"1", b"2", b"5", b".wh.", b".wh..wh..opq", b"usr/bin", b"../", b"opt/l")
_MANIFEST = (b'"Config":', b'"Layers":', b'"RepoTags":', b'"LayerSources":', b"layer.tar", b"../", b"null")

ARCHIVE_TARGETS = (
    Target(
        name="overlay", read=_read_overlay, check_result=_check_overlay, allowed_errors=_IMAGE_ERRORS,
        max_len=_MIB, seeds=_layer_seeds, tokens=_TAR, mutate=_mutate_layers,
    ),
    Target(
        name="sandbox", read=_read_sandbox, check_result=_check_sandbox, allowed_errors=_IMAGE_ERRORS,
        max_len=_MIB, seeds=_layer_seeds, tokens=_TAR, mutate=_mutate_layers, runs=5_000,
    ),
    Target(
        name="saved", read=_read_saved, allowed_errors=(*_IMAGE_ERRORS, UsageError), max_len=_MIB,
        seeds=lambda: [_save_archive()], tokens=_TAR + _MANIFEST, mutate=mutators.mutate_tar, runs=20_000,
    ),
    Target(
        name="members", read=_read_members, allowed_errors=_IMAGE_ERRORS, max_len=_MIB,
        seeds=lambda: [*seeds.iter_archives(), _save_archive()], tokens=_TAR, mutate=mutators.mutate_tar,
        runs=20_000,
    ),
    Target(
        name="dockermanifest", read=_read_manifest, allowed_errors=(MalformedImage, UsageError),
        max_len=_MIB, mutate=mutators.mutate_json, tokens=_MANIFEST,
        seeds=lambda: [
            b'[{"Config":"a.json","RepoTags":["a:1"],"Layers":["l/layer.tar"],"LayerSources":null}]',
            b'[{"Config":"blobs/sha256/' + b"a" * 64 + b'","RepoTags":null,"Layers":null}]',
        ],
    ),
    Target(
        name="stream", read=_read_stream, check_result=_check_stream, allowed_errors=_IMAGE_ERRORS,
        max_len=256 << 10, seeds=_stream_seeds, runs=10_000,
        tokens=(b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", bytes(8)),
    ),
)  # fmt: skip
