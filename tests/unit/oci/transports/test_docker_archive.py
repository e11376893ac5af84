from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.source import Source, read_blob
from buildkit_tasks.oci.transports import open_image, tar_stream
from buildkit_tasks.oci.transports.docker_archive import (
    DockerArchive,
    DockerLayoutArchive,
    open_docker_archive,
)
from buildkit_tasks.verify import verify
from tests.support.oci import (
    Json,
    MemoryImage,
    add_platform,
    flip,
    hello,
    index_json,
    layout_files,
    make_tar,
    member,
    platform_json,
    probe_program,
    symlink,
)
from tests.support.zstd import zstd

AMD64, ARM64 = "linux/amd64", "linux/arm64"
IMAGE_NAME = "io.containerd.image.name"


def make_layer(platform: str) -> bytes:
    return make_tar({"main": probe_program(platform)})


class SaveArchive:
    """Builds a `docker save` archive in the older format."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.links: list[tarfile.TarInfo] = []
        self.images: list[Json] = []

    def add(
        self, platform: str, layers: Mapping[str, bytes], tags: Sequence[str] = (), **more: object
    ) -> SaveArchive:
        """Add an image; ``layers`` has the data of each layer by its file name."""
        diff_ids = [str(Digest.from_bytes(data)) for data in layers.values()]
        config = {**platform_json(platform), "config": {"Cmd": ["/main"]}, "rootfs": {"diff_ids": diff_ids}}
        data = json.dumps(config).encode()
        name = f"{Digest.from_bytes(data).hex}.json"
        self.files |= {name: data, **layers}
        self.images.append({"Config": name, "RepoTags": list(tags) or None, "Layers": list(layers), **more})
        return self

    @property
    def config(self) -> str:
        return str(self.images[0]["Config"])

    def write(self, path: Path, pack: Callable[[bytes], bytes] = bytes) -> Path:
        files = {"manifest.json": json.dumps(self.images).encode(), **self.files}
        path.write_bytes(pack(make_tar(files, self.links)))
        return path


def single_image(platform: str = AMD64, *tags: str) -> SaveArchive:
    return SaveArchive().add(platform, {"0a/layer.tar": make_layer(platform)}, tags)


def read_blob_of_image(source: Source, kind: str) -> bytes:
    manifest = Image(source).manifest(source.root_descriptor())
    return read_blob(source, manifest.config if kind == "config" else manifest.layers[0], 1 << 20)


def assert_malformed(path: Path, cause: str) -> None:
    with open_docker_archive(path) as source, pytest.raises(MalformedImage, match=cause):
        source.root_descriptor()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
@pytest.mark.parametrize("max_cached_member", [1 << 20, 0])
def test_read_older_format(
    pack: Callable[[bytes], bytes], max_cached_member: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tar_stream, "_MAX_CACHED_MEMBER", max_cached_member)
    saved = single_image()
    path = saved.write(tmp_path / "a.tar", pack)
    for name in (f"docker-archive:{path}", str(path)):
        with open_image(name) as source:
            assert isinstance(source.source, DockerArchive)
            report = verify(source, [], "a")
            assert [verdict.platform for verdict in report.platforms] == [AMD64]
            assert report.ok
            assert read_blob_of_image(source, "config") == saved.files[saved.config]
            assert read_blob_of_image(source, "layer") == make_layer(AMD64)
    assert list(tmp_path.iterdir()) == [path]


def test_generated_manifest_is_stable(tmp_path: Path) -> None:
    path = single_image().write(tmp_path / "a.tar")
    with open_docker_archive(path) as first, open_docker_archive(path) as second:
        assert first.root_descriptor() == first.root_descriptor() == second.root_descriptor()
        manifest = Image(first).manifest(first.root_descriptor())
        assert manifest.layers[0].digest == Digest.from_bytes(make_layer(AMD64))
        assert Image(first).config(first.root_descriptor()).cmd == ("/main",)


@pytest.mark.parametrize(
    ("pack", "media_type"),
    [
        (bytes, "application/vnd.oci.image.layer.v1.tar"),
        (gzip.compress, "application/vnd.oci.image.layer.v1.tar+gzip"),
        (zstd.compress, "application/vnd.oci.image.layer.v1.tar+zstd"),
    ],
)
def test_layer_media_types(pack: Callable[[bytes], bytes], media_type: str, tmp_path: Path) -> None:
    saved = single_image()
    packed = pack(make_layer(AMD64))
    saved.files["0a/layer.tar"] = packed
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        stated = Image(source).manifest(source.root_descriptor()).layers[0]
        assert (stated.media_type, stated.digest, stated.size) == (
            media_type,
            Digest.from_bytes(packed),
            len(packed),
        )
        assert verify(source, [], "a").ok


def test_linked_layer(tmp_path: Path) -> None:
    saved = SaveArchive().add(AMD64, {"shared.tar": make_layer(AMD64), "0a/layer.tar": make_layer(AMD64)})
    del saved.files["0a/layer.tar"]
    saved.links = [symlink("0a/layer.tar", "../0b/layer.tar"), symlink("0b/layer.tar", "../shared.tar")]
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        assert verify(source, [], "a").ok


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("../../etc/passwd", r"link to '\.\./\.\./etc/passwd', which is not a file in the archive"),
        ("/etc/passwd", "which is not a file"),
        ("layer.tar", "which is not a file"),
        ("../nowhere", "which is not a file"),
        ("", "which is not a file"),
    ],
)
def test_broken_layer_link(target: str, cause: str, tmp_path: Path) -> None:
    saved = single_image()
    del saved.files["0a/layer.tar"]
    saved.links = [symlink("0a/layer.tar", target)]
    assert_malformed(saved.write(tmp_path / "a.tar"), cause)


def test_layer_is_a_fifo(tmp_path: Path) -> None:
    saved = single_image()
    del saved.files["0a/layer.tar"]
    saved.links = [member("0a/layer.tar", tarfile.FIFOTYPE)]
    assert_malformed(saved.write(tmp_path / "a.tar"), r"0a/layer\.tar is missing")


def test_missing_config(tmp_path: Path) -> None:
    saved = single_image()
    del saved.files[saved.config]
    assert_malformed(saved.write(tmp_path / "a.tar"), f"{saved.config} is missing")


def test_config_with_wrong_name(tmp_path: Path) -> None:
    for name in (f"{'0' * 64}.json", f"blobs/sha256/{'0' * 64}", f"sha256:{'0' * 64}"):
        saved = single_image()
        saved.files[name] = saved.files[saved.config]
        saved.images[0]["Config"] = name
        assert_malformed(saved.write(tmp_path / "a.tar"), "has other content")


def test_config_with_plain_name(tmp_path: Path) -> None:
    saved = single_image()
    saved.files["config.json"] = saved.files.pop(saved.config)
    saved.images[0]["Config"] = "config.json"
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        assert verify(source, [], "a").ok


def test_flipped_byte_in_layer(tmp_path: Path) -> None:
    saved = single_image()
    saved.files["0a/layer.tar"] = flip(saved.files["0a/layer.tar"])
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        report = verify(source, [], "a")
    messages = [check.message for check in report.platforms[0].checks if not check.ok]
    assert any("holds other bytes" in message for message in messages)


def test_two_layers_with_one_diff_id(tmp_path: Path) -> None:
    saved = SaveArchive().add(AMD64, {"0a/layer.tar": make_layer(AMD64), "0b/layer.tar": make_layer(AMD64)})
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        assert verify(source, [], "a").ok
    saved.files["0b/layer.tar"] = make_layer(ARM64)
    assert_malformed(saved.write(tmp_path / "a.tar"), r"0b/layer\.tar has other content")


def test_diff_id_count(tmp_path: Path) -> None:
    saved = single_image()
    saved.images[0]["Layers"] = ["0a/layer.tar"] * 2
    assert_malformed(saved.write(tmp_path / "a.tar"), "2 layers, the config 1")


def test_foreign_layer(tmp_path: Path) -> None:
    saved = single_image()
    data = saved.files.pop("0a/layer.tar")
    digest = str(Digest.from_bytes(data))
    media_type = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    origin = {"mediaType": media_type, "size": 99, "digest": digest, "urls": ["https://example.org"]}
    saved.images[0]["LayerSources"] = {digest: origin}
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        foreign = Image(source).manifest(source.root_descriptor()).layers[0]
        assert (foreign.media_type, foreign.size) == (media_type, 99)
        with pytest.raises(MalformedImage, match="is a foreign layer, which is not part of this image"):
            source.open(foreign)


def test_choose_by_name_or_number(tmp_path: Path) -> None:
    saved = single_image(AMD64, "alpine:3", "example.org/a/b:1").add(
        ARM64, {"0b/layer.tar": make_layer(ARM64)}, ["x/y:2"]
    )
    path = saved.write(tmp_path / "a.tar")
    chosen = {
        "alpine:3": AMD64, "docker.io/library/alpine:3": AMD64, "example.org/a/b:1": AMD64, "@0": AMD64,
        "x/y:2": ARM64, "index.docker.io/x/y:2": ARM64, "@1": ARM64,
    }  # fmt: skip
    for name, platform in chosen.items():
        with open_image(f"docker-archive:{path}:{name}") as source:
            assert [str(each) for each, _ in source.platform_manifests] == [platform]
    for selector, cause in (
        (None, "has 2 images"),
        ("alpine", "no image named 'alpine'"),
        ("@2", "no image"),
    ):
        with open_docker_archive(path, selector) as source, pytest.raises(UsageError, match=cause) as excinfo:
            source.root_descriptor()
        assert "@0 (alpine:3, example.org/a/b:1), @1 (x/y:2)" in str(excinfo.value.hint)


def test_name_of_two_images(tmp_path: Path) -> None:
    saved = single_image(AMD64, "a:1").add(ARM64, {"0b/layer.tar": make_layer(ARM64)}, ["a:1"])
    path = saved.write(tmp_path / "a.tar")
    with open_docker_archive(path, "a:1") as source, pytest.raises(UsageError, match="has 2 images named"):
        source.root_descriptor()


def test_image_listed_twice(tmp_path: Path) -> None:
    saved = single_image()
    saved.images *= 2
    with open_docker_archive(saved.write(tmp_path / "a.tar")) as source:
        assert len(Image(source).platform_manifests) == 1


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "not valid JSON"),
        ("[]", "lists no image"),
        ("{}", "not a list of at most 1000 images"),
        ('[], "x": 1', "not a list of at most"),
        ('[], "images": []', "appears twice"),
        ("[1]", "malformed"),
        ("[{}]", "malformed"),
        ('[{"Config": ""}]', "malformed"),
        ('[{"Config": 1, "Layers": []}]', "malformed"),
        ('[{"Config": "x", "Layers": ["%s"]}]' % ("y" * 513), "malformed"),
        ('[{"Config": "x", "layers": []}]', "only in case"),
        ('[{"Config": "x", "Config": "y"}]', "appears twice"),
        ('[{"Config": "x", "Layers": [%s"y"]}]' % ('"y",' * 512), "513 layers; at most 512 are allowed"),
        ("[" * 100 + "]" * 100, "levels deep"),
        ("[%s{}]" % ("{}," * 1000), "not a list of at most"),
    ],
)
def test_malformed_manifest(text: str, cause: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar({"manifest.json": text.encode()}))
    assert_malformed(path, cause)


def test_manifest_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar({"manifest.json": bytes(LIMITS.document_bytes + 1)}))
    with open_docker_archive(path) as source, pytest.raises(LimitExceeded, match=r"manifest\.json"):
        source.root_descriptor()


def test_duplicate_member(tmp_path: Path) -> None:
    saved = single_image()
    saved.links = [symlink("./0a/layer.tar", "../x")]
    with pytest.raises(MalformedImage, match=r"contains 0a/layer\.tar twice"):
        open_docker_archive(saved.write(tmp_path / "a.tar"))


@pytest.mark.parametrize(
    ("files", "cause"), [({"x": b""}, "has neither"), ({"repositories": b"{}"}, r"before docker 1\.10")]
)
def test_not_a_save_archive(files: dict[str, bytes], cause: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(files))
    with pytest.raises(UsageError, match=cause):
        open_docker_archive(path)


# The newer format: an OCI layout with a manifest.json beside its index.json.


def docker_manifest(memory: MemoryImage, at: int = 0, **more: object) -> Json:
    """Return the ``manifest.json`` entry of one platform, as containerd writes it."""
    entry = Image(memory).index.manifests[at]
    manifest = Image(memory).manifest(entry)
    layers = [f"blobs/sha256/{each.digest.hex}" for each in manifest.layers]
    config = f"blobs/sha256/{manifest.config.digest.hex}"
    return {"Config": config, "RepoTags": ["a/b:1"], "Layers": layers, **more}


def write_newer(memory: MemoryImage, path: Path, *images: Json) -> Path:
    files = layout_files(memory, **{IMAGE_NAME: "docker.io/a/b:1"})
    path.write_bytes(make_tar({**files, "manifest.json": json.dumps(images).encode()}))
    return path


def test_read_newer_format(tmp_path: Path) -> None:
    memory = hello()
    path = write_newer(memory, tmp_path / "a.tar", docker_manifest(memory))
    for name in (
        f"docker-archive:{path}",
        f"docker-archive:{path}:a/b:1",
        f"docker-archive:{path}:@0",
        str(path),
    ):
        with open_image(name) as source:
            assert isinstance(source.source, DockerLayoutArchive)
            assert source.root_descriptor().digest == memory.root_descriptor().digest
            assert verify(source, [], "a").ok
    for chosen in ("a/b:2", "@1"):
        with (
            open_docker_archive(path, chosen) as source,
            pytest.raises(UsageError, match="no image") as excinfo,
        ):
            source.root_descriptor()
        assert "@0 (docker.io/a/b:1)" in str(excinfo.value.hint)


def test_choose_in_newer_format(tmp_path: Path) -> None:
    memory, other = hello([AMD64]), hello([ARM64])
    entries = [
        {"mediaType": each.root_descriptor().media_type, "digest": str(each.root_descriptor().digest),
        "size": each.root_descriptor().size,
         "annotations": {IMAGE_NAME: f"docker.io/library/{name}:1"}}
        for name, each in (("one", memory), ("two", other))
    ]  # fmt: skip
    files = layout_files(other) | layout_files(memory)
    files["index.json"] = json.dumps(index_json(entries)).encode()
    path = tmp_path / "a.tar"
    path.write_bytes(make_tar(files))
    for name, platform in (("one:1", AMD64), ("@1", ARM64)):
        with open_docker_archive(path, name) as source:
            assert [str(each) for each, _ in Image(source).platform_manifests] == [platform]
    with open_docker_archive(path) as source, pytest.raises(UsageError, match="has 2 images") as excinfo:
        source.root_descriptor()
    assert "@0 (docker.io/library/one:1), @1" in str(excinfo.value.hint)


def test_index_and_manifest_differ(tmp_path: Path) -> None:
    memory = hello()
    other = MemoryImage()
    add_platform(other, AMD64, [make_tar({"main": b"evil"})])
    config = next(digest for digest, data in other.blobs.items() if data.startswith(b'{"os"'))
    wrong_entries = {
        "has the config": docker_manifest(memory, Config=f"blobs/sha256/{config.partition(':')[2]}"),
        "other layers": docker_manifest(memory, Layers=docker_manifest(memory, 1)["Layers"]),
        "has the config x": docker_manifest(memory, Config="x"),
    }
    for cause, entry in wrong_entries.items():
        path = write_newer(memory, tmp_path / "a.tar", docker_manifest(memory), entry)
        assert_malformed(path, cause)


def test_broken_document_is_the_cause(tmp_path: Path) -> None:
    memory = hello()
    entry = docker_manifest(memory)
    digest = str(Image(memory).index.manifests[1].digest)
    memory.blobs[digest] = flip(memory.blobs[digest])
    with open_docker_archive(write_newer(memory, tmp_path / "a.tar", entry)) as source:
        report = verify(source, [], "a")
    assert [verdict.ok for verdict in report.platforms] == [True, False, True]
