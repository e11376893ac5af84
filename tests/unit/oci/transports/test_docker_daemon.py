from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import BinaryIO

import pytest

from buildkit_tasks.errors import EngineError, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.model import OCI_INDEX
from buildkit_tasks.oci.source import read_blob
from buildkit_tasks.oci.transports import open_image, tar_stream
from buildkit_tasks.oci.transports.docker_daemon import DaemonSource
from buildkit_tasks.verify import verify
from tests.support.oci import MemoryImage, flip, hello, index_json, layout_files, make_tar


class FakeEngine:
    """Exports the `docker save` archive of one image, each time in a new stream."""

    def __init__(self, memory: MemoryImage, without: Sequence[str] = ()) -> None:
        files = layout_files(memory, **{"io.containerd.image.name": "docker.io/a/b:1"})
        present = {name: data for name, data in files.items() if name.rpartition("/")[2] not in without}
        self.data = make_tar(dict(sorted(present.items())))
        self.streams: list[BinaryIO] = []

    def __call__(self, reference: str) -> BinaryIO:
        if reference != "a/b:1":
            raise UsageError(f"the engine has no image {reference!r}")
        self.streams.append(io.BytesIO(self.data))
        return self.streams[-1]


def test_read_image_from_stream() -> None:
    memory = hello()
    engine = FakeEngine(memory)
    with open_image("docker-daemon:a/b:1", export=engine) as source:
        assert source.root_descriptor().digest == memory.root_descriptor().digest
        assert verify(source, [], "x").ok
        assert not any(source.is_missing(entry.descriptor) for entry in source.entries)
    assert all(stream.closed for stream in engine.streams)


def test_read_order_needs_one_more_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = hello()
    monkeypatch.setattr(tar_stream, "_MAX_CACHED_MEMBER", 0)
    with DaemonSource("a/b:1", engine := FakeEngine(memory)) as source:
        entries = [entry.descriptor for entry in Image(source).entries]
        engine.streams.clear()
        for each in sorted(entries, key=source.read_order):
            assert read_blob(source, each, 1 << 20) == memory.blobs[str(each.digest)]
        assert len(engine.streams) <= 1


def test_unknown_image() -> None:
    with (
        pytest.raises(UsageError, match="has no image"),
        open_image("docker-daemon:x", export=FakeEngine(hello())),
    ):
        pass


def test_platform_not_pulled() -> None:
    memory = hello()
    _, arm64, arm = Image(memory).index.manifests
    layer = Image(memory).manifest(arm).layers[0].digest.hex
    with DaemonSource("a/b:1", FakeEngine(memory, without=[arm64.digest.hex, layer])) as source:
        missing = {
            str(platform): Image(source).is_missing(entry)
            for platform, entry in Image(source).platform_manifests
        }
        assert missing == {"linux/amd64": False, "linux/arm64": True, "linux/arm/v7": True}
        assert not Image(source).is_missing(source.root_descriptor())
        assert verify(source, [], "x").platforms[0].ok
        with pytest.raises(MalformedImage, match="is missing from docker-daemon:a/b:1"):
            Image(source).manifest(arm64)


def test_nested_index_not_pulled() -> None:
    memory = hello(["linux/amd64"])
    (entry,) = json.loads(memory.blobs[str(memory.root_descriptor().digest)])["manifests"]
    inner = memory.put(index_json([]), OCI_INDEX)
    memory.set_index([entry, inner])
    missing_digest = inner["digest"].partition(":")[2]
    with DaemonSource("a/b:1", FakeEngine(memory, without=[missing_digest])) as source:
        assert [Image(source).is_missing(each.descriptor) for each in Image(source).entries] == [False, True]
        assert [str(platform) for platform, _ in Image(source).platform_manifests] == ["linux/amd64"]


def test_missing_config() -> None:
    memory = hello(["linux/amd64"])
    (entry,) = Image(memory).index.manifests
    config = Image(memory).manifest(entry).config.digest.hex
    with DaemonSource("a/b:1", FakeEngine(memory, without=[config])) as source:
        assert Image(source).is_missing(entry)


def test_broken_manifest_is_not_missing() -> None:
    memory = hello(["linux/amd64"])
    (entry,) = Image(memory).index.manifests
    memory.blobs[str(entry.digest)] = flip(memory.blobs[str(entry.digest)])
    with DaemonSource("a/b:1", FakeEngine(memory)) as source:
        assert not Image(source).is_missing(entry)
        assert not verify(source, [], "x").ok


def test_older_format_misses_nothing() -> None:
    manifest = json.dumps([{"Config": "x.json", "Layers": []}]).encode()
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {}}).encode()
    data = make_tar({"manifest.json": manifest, "x.json": config})
    with DaemonSource("x", lambda _: io.BytesIO(data)) as source:
        assert not source.is_missing(source.root_descriptor())
        assert [str(platform) for platform, _ in Image(source).platform_manifests] == ["linux/amd64"]


def test_engine_fails_midway() -> None:
    class FailingStream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(min(size or 0, 1000))
            if self.tell() > 2000:
                raise EngineError("the engine broke off")
            return data

    streams: list[FailingStream] = []

    def export(_: str) -> BinaryIO:
        streams.append(FailingStream(FakeEngine(hello()).data))
        return streams[-1]

    with pytest.raises(EngineError), open_image("docker-daemon:a/b:1", export=export):
        pass
    assert [stream.closed for stream in streams] == [True]
