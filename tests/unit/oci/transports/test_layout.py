from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import OCI_INDEX, Digest
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports.layout import OciLayout, write_layout
from buildkit_tasks.verify import verify
from tests.support.oci import Json, MemoryImage, flip, hello, index_json, write_layout_dir

REF = "org.opencontainers.image.ref.name"


def root_entry(memory: MemoryImage, **annotations: str) -> Json:
    root = memory.root_descriptor()
    stated = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
    return {**stated, "annotations": annotations}


def write_index(path: Path, *entries: Json) -> bytes:
    data = json.dumps(index_json(entries)).encode()
    (path / "index.json").write_bytes(data)
    return data


def root_blob_path(path: Path, memory: MemoryImage) -> Path:
    return path / "blobs" / "sha256" / memory.root_descriptor().digest.hex


def test_single_entry(tmp_path: Path) -> None:
    memory = hello()
    layout = OciLayout(write_layout_dir(memory, tmp_path))
    assert layout.root_descriptor().digest == memory.root_descriptor().digest
    assert (
        read_blob(layout, layout.root_descriptor(), 1 << 20)
        == memory.blobs[str(memory.root_descriptor().digest)]
    )


def test_several_names_of_one_image(tmp_path: Path) -> None:
    memory = hello()
    write_layout_dir(memory, tmp_path)
    write_index(tmp_path, root_entry(memory, **{REF: "a"}), root_entry(memory, **{REF: "b"}))
    assert OciLayout(tmp_path).root_descriptor().digest == memory.root_descriptor().digest


def test_choose_by_name(tmp_path: Path) -> None:
    one, other = hello(["linux/amd64"]), hello(["linux/arm64"])
    write_layout_dir(one, write_layout_dir(other, tmp_path))
    write_index(
        tmp_path, root_entry(one, **{REF: "one"}), root_entry(other, **{"io.containerd.image.name": "r/o:1"})
    )
    assert OciLayout(tmp_path, "one").root_descriptor().digest == one.root_descriptor().digest
    assert OciLayout(tmp_path, "r/o:1").root_descriptor().digest == other.root_descriptor().digest
    for name, cause in ((None, "has 2 images"), ("two", "has no image named 'two'")):
        with pytest.raises(UsageError, match=cause) as excinfo:
            OciLayout(tmp_path, name).root_descriptor()
        assert "one, r/o:1" in str(excinfo.value.hint)


def test_index_json_of_platforms(tmp_path: Path) -> None:
    memory = hello()
    write_layout_dir(memory, tmp_path)
    entries = json.loads(memory.blobs[str(memory.root_descriptor().digest)])["manifests"]
    data = write_index(tmp_path, *entries)
    layout = OciLayout(tmp_path)
    assert layout.root_descriptor().digest == Digest.from_bytes(data)
    assert len(Image(layout).platform_manifests) == 3
    assert verify(layout, [], "x").ok


def test_not_a_layout(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not an OCI image layout"):
        OciLayout(tmp_path).root_descriptor()


def test_empty_layout(tmp_path: Path) -> None:
    write_layout_dir(hello(), tmp_path)
    write_index(tmp_path)
    with pytest.raises(MalformedImage, match="lists no image"):
        OciLayout(tmp_path).root_descriptor()


@pytest.mark.parametrize("text", ['{"imageLayoutVersion": "2.0.0"}', "{}", "", "[]"])
def test_other_layout_version(text: str, tmp_path: Path) -> None:
    (write_layout_dir(hello(), tmp_path) / "oci-layout").write_text(text)
    with pytest.raises(MalformedImage, match="oci-layout"):
        OciLayout(tmp_path).root_descriptor()


def test_missing_version_file(tmp_path: Path) -> None:
    (write_layout_dir(hello(), tmp_path) / "oci-layout").unlink()
    with pytest.raises(MalformedImage, match="oci-layout is missing"):
        OciLayout(tmp_path).root_descriptor()


def test_index_size_limit(tmp_path: Path) -> None:
    os.truncate(write_layout_dir(hello(), tmp_path) / "index.json", (4 << 20) + 1)
    with pytest.raises(LimitExceeded, match="more than 4194304 bytes"):
        OciLayout(tmp_path).root_descriptor()


def test_missing_blob(tmp_path: Path) -> None:
    memory = hello()
    root_blob_path(write_layout_dir(memory, tmp_path), memory).unlink()
    layout = OciLayout(tmp_path)
    with pytest.raises(MalformedImage, match=f"{memory.root_descriptor().digest} is missing"):
        layout.open(layout.root_descriptor())


def test_symlinked_blob(tmp_path: Path) -> None:
    memory = hello()
    path = root_blob_path(write_layout_dir(memory, tmp_path), memory)
    path.rename(tmp_path / "target")
    path.symlink_to(tmp_path / "target")
    layout = OciLayout(tmp_path)
    with pytest.raises(MalformedImage, match="symbolic link"):
        layout.open(layout.root_descriptor())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make_file", [os.mkfifo, os.mkdir])
def test_blob_is_not_a_regular_file(make_file: Callable[[Path], None], tmp_path: Path) -> None:
    memory = hello()
    path = root_blob_path(write_layout_dir(memory, tmp_path), memory)
    path.unlink()
    make_file(path)
    layout = OciLayout(tmp_path)
    with pytest.raises(MalformedImage, match="not a regular file"):
        layout.open(layout.root_descriptor())


def test_symlinked_index_json(tmp_path: Path) -> None:
    path = write_layout_dir(hello(), tmp_path) / "index.json"
    path.rename(tmp_path / "target")
    path.symlink_to("target")
    with pytest.raises(MalformedImage, match="symbolic link"):
        OciLayout(tmp_path).root_descriptor()


def test_write_layout(tmp_path: Path) -> None:
    memory = hello()
    memory.put(b"unrelated", "x/y")
    assert write_layout(memory, tmp_path / "new" / "layout") == memory.root_descriptor()
    layout = OciLayout(tmp_path / "new" / "layout")
    assert layout.root_descriptor() == memory.root_descriptor()
    assert verify(layout, [], "layout").ok
    stored = {f"sha256:{path.name}" for path in (tmp_path / "new/layout/blobs/sha256").iterdir()}
    assert stored == set(memory.blobs) - {str(Digest.from_bytes(b"unrelated"))}


def test_write_single_manifest(tmp_path: Path) -> None:
    memory = hello(["linux/arm/v7"])
    entry = json.loads(memory.blobs[str(memory.root_descriptor().digest)])["manifests"][0]
    write_layout(memory.set_root(entry), tmp_path / "layout")
    assert OciLayout(tmp_path / "layout").root_descriptor() == memory.root_descriptor()


def test_write_to_used_directory(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(UsageError, match="already exists"):
        write_layout(hello(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_write_damaged_image(tmp_path: Path) -> None:
    memory = hello()
    for digest in memory.blobs:
        intact = memory.blobs[digest]
        memory.blobs[digest] = flip(intact)
        with pytest.raises(MalformedImage):
            write_layout(memory, tmp_path / "layout")
        assert list(tmp_path.iterdir()) == []
        memory.blobs[digest] = intact


def test_written_files_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.add(os.fstat(fd).st_ino))
    write_layout(hello(), tmp_path / "layout")
    files = [path for path in (tmp_path / "layout").rglob("*") if path.is_file()]
    assert {path.stat().st_ino for path in files} <= flushed


def test_written_layout_is_private(tmp_path: Path) -> None:
    write_layout(hello(), tmp_path / "layout")
    assert stat.S_IMODE((tmp_path / "layout").stat().st_mode) == 0o700


def test_repeated_indexes_are_read_once(tmp_path: Path) -> None:
    memory = hello(["linux/amd64"])
    entry = root_entry(memory)
    for _ in range(2):
        entry = memory.put(index_json([entry] * 500), OCI_INDEX)
    with pytest.raises(LimitExceeded, match="more than 1000 entries"):
        write_layout(memory.set_root(entry), tmp_path / "layout")
    assert len(memory.opened) == 3


def test_write_nested_index(tmp_path: Path) -> None:
    memory = hello()
    memory.set_root(memory.put(index_json([root_entry(memory)]), OCI_INDEX))
    write_layout(memory, tmp_path / "layout")
    assert len(Image(OciLayout(tmp_path / "layout")).platform_manifests) == 3
