"""Archives of any content are read or rejected with a declared error."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.decompress import DecompressedStream
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.oci.transports.tar_stream import StreamedArchive
from buildkit_tasks.verify import verify
from tests.support.oci import hello, layout_files, make_tar, platform_json, symlink

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

EXAMPLES = settings().max_examples
DECLARED = (MalformedImage, LimitExceeded, UsageError)
DIFF_ID = str(Digest.from_bytes(b""))
CONFIG = json.dumps({**platform_json("linux/amd64"), "rootfs": {"diff_ids": [DIFF_ID]}}).encode()
LAYOUT = {**layout_files(hello(["linux/amd64"])), "manifest.json": b"[]"}
SAVED = {"manifest.json": json.dumps([{"Config": "c", "Layers": ["l"]}]).encode(), "c": CONFIG, "l": b""}
COMPRESSORS = [bytes, gzip.compress, zstd.compress]

compressors = st.sampled_from(COMPRESSORS)
names = st.sampled_from(
    ["c", "l", "a/b", "c/l", "manifest.json", "index.json", "oci-layout", "../x", "", "."]
)
scalars = st.none() | st.booleans() | st.integers() | names | st.just(DIFF_ID)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6)
entries = st.dictionaries(
    st.sampled_from(["Config", "RepoTags", "Layers", "LayerSources", "layers", "x"]),
    names | trees,
    max_size=5,
)
layer_sources = st.fixed_dictionaries({"mediaType": scalars, "digest": scalars, "size": scalars})


def open_and_verify(data: bytes, reference: str = "") -> None:
    """Open an archive by every transport and verify it; only declared errors may occur."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "image.tar"
        path.write_bytes(data)
        for prefix in ("", "oci-archive:", "docker-archive:"):
            name = f"{prefix}{path}" + (f":{reference}" if prefix and reference else "")
            with contextlib.suppress(*DECLARED), open_image(name) as source:
                verify(source, [], "x")
        assert [each.name for each in Path(directory).iterdir()] == ["image.tar"]


@settings(max_examples=3 * EXAMPLES // 2)
@given(
    compress=compressors,
    at=st.integers(min_value=0),
    bit=st.integers(0, 7),
    files=st.sampled_from([LAYOUT, SAVED]),
)
def test_any_changed_bit(compress: Any, at: int, bit: int, files: dict[str, bytes]) -> None:
    data = bytearray(compress(make_tar(files)))
    data[at % len(data)] ^= 1 << bit
    open_and_verify(bytes(data))


@given(compress=compressors, junk=st.binary(max_size=2000))
def test_any_junk(compress: Any, junk: bytes) -> None:
    open_and_verify(compress(junk))
    open_and_verify(junk + compress(make_tar(LAYOUT)))
    open_and_verify(compress(make_tar(LAYOUT)) + junk)


@settings(max_examples=2 * EXAMPLES)
@given(images=trees | st.lists(entries, max_size=3), reference=st.sampled_from(["", "@0", "@9", "c:1", "!"]))
def test_any_docker_manifest(images: Any, reference: str) -> None:
    document = json.dumps(images).encode()
    open_and_verify(make_tar({**SAVED, "manifest.json": document}), reference)
    open_and_verify(make_tar({**LAYOUT, "manifest.json": document}), reference)


@given(
    sources=st.dictionaries(st.just(DIFF_ID) | names, layer_sources | trees, max_size=2),
    has_layer=st.booleans(),
)
def test_any_layer_source(sources: Any, has_layer: bool) -> None:
    image = {"Config": "c", "Layers": ["l" if has_layer else "missing"], "LayerSources": sources}
    open_and_verify(make_tar({**SAVED, "manifest.json": json.dumps([image]).encode()}))


@given(links=st.lists(st.tuples(names, names | st.text(max_size=5)), max_size=5))
def test_any_links(links: list[tuple[str, str]]) -> None:
    others = [symlink(name or "x", target.replace("\0", "")) for name, target in links]
    files = {name: data for name, data in SAVED.items() if name not in dict(links)}
    with contextlib.suppress(UnicodeEncodeError):  # from tarfile, which writes the archive
        open_and_verify(make_tar(files, others))


@given(
    compress=compressors,
    files=st.dictionaries(st.text("abc/", min_size=1, max_size=9), st.binary(max_size=3000), max_size=6),
    order=st.lists(st.integers(0, 5), max_size=12),
    cached_size=st.sampled_from([0, 500, 1 << 20]),
)
def test_streamed_members_in_any_order(
    compress: Any, files: dict[str, bytes], order: list[int], cached_size: int
) -> None:
    members = {f"m{number}": data for number, data in enumerate(files.values())}
    compressed = compress(make_tar(members))
    archive = StreamedArchive(lambda: io.BytesIO(compressed), "x")
    cached = archive._cached
    for name in [name for name, data in cached.items() if len(data) > cached_size]:
        del cached[name]  # as if it were too large to cache
    for number in order:
        name = f"m{number}"
        if name in members:
            with archive.open(name) as stream:
                assert stream.read() == members[name]
    archive.close()


@given(
    parts=st.lists(st.binary(max_size=5000), min_size=1, max_size=5),
    sizes=st.lists(st.integers(1, 4000), min_size=1, max_size=5),
    compress=st.sampled_from(COMPRESSORS[1:]),
)
def test_concatenated_members_and_frames(parts: list[bytes], sizes: list[int], compress: Any) -> None:
    stream = DecompressedStream(io.BytesIO(b"".join(compress(part) for part in parts)), "x")
    expected, data = b"".join(parts), b""
    while chunk := stream.read(sizes[len(data) % len(sizes)]):
        data += chunk
    assert data == expected
    assert stream.size == len(expected)


def test_unchanged_archives_are_valid(tmp_path: Path) -> None:
    for files, image_count in ((SAVED, 1), ({**LAYOUT, "manifest.json": b""}, 1)):
        present = {name: data for name, data in files.items() if data or name == "l"}
        (tmp_path / "image.tar").write_bytes(make_tar(present))
        with open_image(f"docker-archive:{tmp_path}/image.tar") as source:
            assert len(source.entries) == image_count
