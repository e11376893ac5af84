from __future__ import annotations

import contextlib
import gzip
import io
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import BinaryIO, NoReturn

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.model import EMPTY_CONFIG, OCI_INDEX, OCI_MANIFEST, Digest
from buildkit_tasks.oci.source import open_verified, read_blob
from buildkit_tasks.oci.transports import find_local_output, open_image
from tests.support.oci import (
    LAYER_GZIP,
    Json,
    Memory,
    add_platform,
    descriptor,
    flip,
    hello,
    index_json,
    layout_files,
    make_tar,
    probe,
    put_manifest,
    write_archive,
    write_folder,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FOREIGN = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
UNKNOWN = {"os": "unknown", "architecture": "unknown"}


def platforms(memory: Memory) -> list[str]:
    return [str(platform) for platform, _ in Image(memory).platform_manifests]


def image(memory: Memory, platform: str = "linux/amd64") -> Json:
    return add_platform(memory, platform, [make_tar({"main": probe(platform)})], Entrypoint=["/main"])


def test_a_blob_is_read_whole_when_size_and_digest_hold() -> None:
    memory = Memory()
    for data in (b"", b"x", os.urandom(1 << 20)):
        assert read_blob(memory, descriptor(memory.put(data, "x/y")), 1 << 20) == data


@pytest.mark.parametrize(
    ("stored", "cause"), [(b"datA", "holds other bytes"), (b"dat", "has 3 bytes"), (b"data+", "longer than")]
)
def test_rows_33_and_34_a_blob_with_other_bytes_is_refused(stored: bytes, cause: str) -> None:
    memory = Memory()
    entry = memory.put(b"data", "x/y")
    memory.blobs[entry["digest"]] = stored
    with pytest.raises(MalformedImage, match=rf"{entry['digest']}.*{cause}"):
        read_blob(memory, descriptor(entry), 100)


def test_row_33_every_single_flipped_byte_is_found_before_the_document_is_parsed() -> None:
    memory = hello(["linux/amd64"])
    digest, data = str(memory.root_descriptor().digest), memory.blobs[str(memory.root_descriptor().digest)]
    for at in range(len(data)):
        memory.blobs[digest] = flip(data, at)
        with pytest.raises(MalformedImage, match="holds other bytes"):
            Image(memory).index  # noqa: B018 - reads it


def test_a_blob_that_claims_too_much_is_not_even_opened() -> None:
    memory = Memory()
    entry = memory.put(b"data", "x/y")
    with pytest.raises(LimitExceeded, match="claims 4 bytes; at most 3"):
        read_blob(memory, descriptor(entry), 3)
    assert memory.opened == []


def test_a_stream_is_checked_at_its_end() -> None:
    memory = Memory()
    entry = memory.put(bytes(1 << 20), "x/y")
    memory.blobs[entry["digest"]] = flip(bytes(1 << 20))
    stream = open_verified(memory, descriptor(entry))
    assert stream.read(1 << 19) == bytes(1 << 19)
    with pytest.raises(MalformedImage, match="holds other bytes"):
        stream.read()


def test_an_index_gives_its_platforms_in_order() -> None:
    memory = hello()
    assert platforms(memory) == ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    assert len(Image(memory).index.manifests) == 3


def test_attestations_and_artifacts_are_no_platforms() -> None:
    memory = Memory()
    artifact = put_manifest(memory, {}, [])
    empty = {"mediaType": EMPTY_CONFIG, "digest": artifact["digest"], "size": artifact["size"]}
    odd = memory.put({"schemaVersion": 2, "config": empty, "layers": []}, OCI_MANIFEST)
    memory.index(
        [
            image(memory),
            {**artifact, "platform": UNKNOWN},
            {**artifact, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
            {**artifact, "artifactType": "application/x"},
            odd,
            {**artifact, "mediaType": "application/vnd.unheard.of", "platform": UNKNOWN},
        ]
    )
    assert platforms(memory) == ["linux/amd64"]


def test_a_platform_that_is_there_twice_is_there_twice() -> None:
    memory = Memory()
    memory.index([image(memory), image(memory)])
    assert platforms(memory) == ["linux/amd64", "linux/amd64"]


def test_a_single_manifest_has_the_platform_of_its_config() -> None:
    memory = Memory()
    entry = image(memory, "linux/arm/v6")
    del entry["platform"]
    assert platforms(memory.point(entry)) == ["linux/arm/v6"]


def test_an_entry_without_a_platform_has_that_of_its_config() -> None:
    memory = Memory()
    entry = image(memory, "linux/s390x")
    del entry["platform"]
    assert platforms(memory.index([entry])) == ["linux/s390x"]


def nested(depth: int) -> Memory:
    memory = Memory()
    entry = image(memory)
    for _ in range(depth):
        entry = memory.put(index_json([entry]), OCI_INDEX)
    return memory.point(entry)


def test_row_39_nested_indexes_are_followed_so_far_and_no_farther() -> None:
    assert platforms(nested(3)) == ["linux/amd64"]
    with pytest.raises(MalformedImage, match="nested more than 3 deep"):
        platforms(nested(4))


def test_row_39_indexes_that_fan_out_are_stopped() -> None:
    memory = Memory()
    entry = memory.put(index_json([]), OCI_INDEX)
    for _ in range(2):
        entry = memory.put(index_json([entry] * 500), OCI_INDEX)
    with pytest.raises(LimitExceeded, match=f"more than {LIMITS.manifests} entries"):
        platforms(memory.point(entry))
    assert len(memory.opened) < 2 * LIMITS.manifests


def test_other_media_types_are_not_manifests_or_configs() -> None:
    memory = Memory()
    text = memory.put({}, "text/plain")
    artifact = memory.put({"schemaVersion": 2, "config": text, "layers": []}, OCI_MANIFEST)
    assert Image(memory).config(descriptor(image(memory))).entrypoint == ("/main",)
    with pytest.raises(MalformedImage, match="is not an image manifest"):
        Image(memory).manifest(descriptor(text))
    with pytest.raises(MalformedImage, match="is not an image config"):
        Image(memory).config(descriptor(artifact))


def test_images_open_by_transport_and_by_looking(tmp_path: Path) -> None:
    memory = hello()
    folder = write_folder(memory, tmp_path / "layout")
    file = write_archive(memory, tmp_path / "image.tar")
    for name in (f"oci:{folder}", f"oci-archive:{file}", str(folder), str(file)):
        with open_image(name) as source:
            assert source.root_descriptor().digest == memory.root_descriptor().digest
            assert len(source.platform_manifests) == 3


def test_a_name_after_the_path_chooses_and_a_colon_in_the_path_is_allowed(tmp_path: Path) -> None:
    named = {"org.opencontainers.image.ref.name": "v1"}
    folder = write_folder(hello(), tmp_path / "with:colon", **named)
    for name in (f"oci:{folder}", f"oci:{folder}:v1"):
        with open_image(name) as source:
            assert len(source.platform_manifests) == 3
    write_folder(hello(["linux/amd64"]), tmp_path / "with", **named)  # the longer path is meant all the same
    with open_image(f"oci:{folder}") as source:
        assert len(source.platform_manifests) == 3
    (tmp_path / "with/index.json").unlink()
    (tmp_path / "with").rename(tmp_path / "gone")
    with pytest.raises(UsageError, match="no image named 'v2'"), open_image(f"oci:{folder}:v2") as source:
        source.root_descriptor()


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("docker-daemon:alpine:3", "a Docker engine"),
        ("docker-archive:x.tar", "x.tar does not exist"),
        ("dir:out", "local output"),
    ],
)
def test_an_image_elsewhere_is_refused_with_what_to_type_instead(name: str, where: str) -> None:
    with pytest.raises(UsageError, match=where) as caught, open_image(name):
        pass
    assert "type=oci,dest=" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("docker://alpine:3", "alpine:3"),
        ("alpine:latest", "alpine:latest"),
        ("alpine", "alpine"),
        ("docker:27", "docker:27"),
        ("localhost:5000/hello:v1", "localhost:5000/hello:v1"),
        ("a/b@sha256:" + "0" * 64, "a/b@sha256:" + "0" * 64),
    ],
)
def test_what_is_no_path_is_a_registry_reference(
    name: str, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    memory, asked = hello(), []

    def registry(text: str) -> AbstractContextManager[Memory]:
        asked.append(text)
        return nullcontext(memory)

    with open_image(name, registry_opener=registry) as source:
        assert source.root is memory.root_descriptor()
    assert asked == [reference]


def test_the_usual_registry_client_is_asked_by_default() -> None:
    with pytest.raises(UsageError, match="is not a valid tag"), open_image("docker://x:!"):
        pass


def test_a_path_wins_over_a_reference_and_a_prefix_over_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    memory = hello()
    write_folder(memory, tmp_path / "alpine")
    with open_image("alpine", registry_opener=refuse) as source:
        assert source.root_descriptor().digest == memory.root_descriptor().digest
    with (
        pytest.raises(AssertionError, match="asked for alpine"),
        open_image("docker://alpine", registry_opener=refuse),
    ):
        pass


def refuse(text: str) -> NoReturn:
    raise AssertionError(f"asked for {text}")


def test_an_image_in_an_engine_is_read_through_the_callers_function() -> None:
    memory, asked = hello(), []

    def export(reference: str) -> BinaryIO:
        asked.append(reference)
        return io.BytesIO(make_tar(layout_files(memory)))

    with open_image("docker-daemon:a/b:1", export=export) as source:
        assert source.root_descriptor().digest == memory.root_descriptor().digest
    assert asked == ["a/b:1"]


@pytest.mark.parametrize(
    ("name", "cause", "hint"),
    [
        ("oci-layout://dist/x", "transport 'oci-layout' is not supported", "oci-archive:"),
        ("https://example.org/x", "transport 'https' is not supported", "docker://"),
        ("containers-storage:x", "from containers-storage", "skopeo copy"),
        ("docker-daemon:", "needs an image name", "docker-daemon:NAME:TAG"),
        ("dir:", "has no path", "dir:DIR"),
        ("oci::x", ":x does not exist", "type=oci,dest="),
    ],
)
def test_words_that_name_no_source_are_refused(name: str, cause: str, hint: str) -> None:
    with pytest.raises(UsageError, match=cause) as caught, open_image(name, registry_opener=refuse):
        pass
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "é" * 300])
def test_a_text_that_can_be_no_path_is_none(name: str) -> None:
    with pytest.raises(AssertionError, match="asked for"), open_image(name, registry_opener=refuse):
        pass
    assert find_local_output(name) is None
    with pytest.raises(UsageError, match="does not exist"), open_image(f"oci:{name}"):
        pass


def test_compressed_archives_and_saved_ones_are_told_by_looking(tmp_path: Path) -> None:
    memory = hello()
    data = make_tar(layout_files(memory))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data))
    (tmp_path / "odd").write_bytes(zstd.compress(data))
    for name in ("a.tar.gz", "odd"):
        for prefix in ("", "oci-archive:", "docker-archive:"):
            with open_image(f"{prefix}{tmp_path / name}") as source:
                assert source.root_descriptor().digest == memory.root_descriptor().digest
    (tmp_path / "files.tar").write_bytes(make_tar({"etc/passwd": b""}))
    with (
        pytest.raises(UsageError, match="is not an image: it has neither"),
        open_image(str(tmp_path / "files.tar")),
    ):
        pass


def test_nothing_stays_open_when_a_file_is_no_image(tmp_path: Path) -> None:
    sound, other = make_tar(layout_files(hello())), make_tar({"x": b""})
    before = len(list(Path("/proc/self/fd").iterdir()))
    for data in (
        sound,
        gzip.compress(sound),
        other,
        gzip.compress(other),
        b"junk" * 500,
        gzip.compress(b"junk"),
    ):
        (tmp_path / "x.tar").write_bytes(data)
        for prefix in ("", "oci-archive:", "docker-archive:"):
            with (
                contextlib.suppress(UsageError, MalformedImage),
                open_image(f"{prefix}{tmp_path}/x.tar") as source,
            ):
                source.root_descriptor()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_local_output_is_told_from_a_layout(tmp_path: Path) -> None:
    write_folder(hello(), tmp_path / "layout")
    (tmp_path / "out/linux_amd64").mkdir(parents=True)
    out, layout = tmp_path / "out", tmp_path / "layout"
    assert find_local_output(str(out)) == find_local_output(f"dir:{out}") == out
    assert find_local_output(f"dir:{layout}") == layout  # who says so is believed
    for name in (str(layout), f"oci:{layout}", "", "alpine", "docker://alpine"):
        assert find_local_output(name) is None
    with pytest.raises(UsageError, match="local output directory"), open_image(str(out)):
        pass
    with pytest.raises(UsageError, match="not a directory"):
        find_local_output("dir:nowhere")


def kinds(memory: Memory) -> list[str]:
    return [entry.kind.value for entry in Image(memory).entries]


def attestation(memory: Memory, about: str, *, subject: str | None = None) -> Json:
    """An entry of BuildKit's first form, or of its second with a subject."""
    notes = {"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": about}
    if subject is None:
        return {**put_manifest(memory, {}, []), "platform": UNKNOWN, "annotations": notes}
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
        "config": memory.put({}, EMPTY_CONFIG),
        "layers": [],
        "subject": {"mediaType": OCI_MANIFEST, "digest": subject, "size": 1},
    }
    return {**memory.put(document, OCI_MANIFEST), "platform": UNKNOWN}


def test_every_entry_of_an_index_is_given_with_its_kind() -> None:
    memory = Memory()
    entry = image(memory)
    bare = {key: value for key, value in image(memory, "linux/arm64").items() if key != "platform"}
    empty = memory.put(
        {"schemaVersion": 2, "config": memory.put({}, EMPTY_CONFIG), "layers": []}, OCI_MANIFEST
    )
    inner = memory.put(index_json([bare, empty]), OCI_INDEX)
    other = memory.put(b"text", "text/plain")
    memory.index([entry, attestation(memory, entry["digest"]), inner, other])
    assert kinds(memory) == ["image", "attestation", "index", "image", "artifact", "artifact"]
    assert platforms(memory) == ["linux/amd64", "linux/arm64"]


def test_both_forms_of_attestation_say_what_they_are_about() -> None:
    memory = Memory()
    one, two = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    both = {**attestation(memory, one, subject=two), "annotations": {"vnd.docker.reference.digest": one}}
    entries = [attestation(memory, one), attestation(memory, "", subject=two), both]
    memory.index(entries)
    assert kinds(memory) == ["attestation"] * 3
    stated = [Image(memory).attested_images(entry.descriptor) for entry in Image(memory).entries]
    assert [[str(digest) for digest in each] for each in stated] == [[one], [two], [one, two]]


def test_an_attestation_about_no_digest_is_refused() -> None:
    memory = Memory()
    memory.index([attestation(memory, "sha256:../../x")])
    with pytest.raises(MalformedImage, match="is not a valid digest"):
        Image(memory).attested_images(Image(memory).entries[0].descriptor)


def test_sources_lack_nothing_and_have_no_order_unless_they_say_so(tmp_path: Path) -> None:
    memory = hello()
    entry = memory.root_descriptor()
    assert (Image(memory).is_missing(entry), Image(memory).read_order(entry)) == (False, 0)
    with open_image(str(write_archive(memory, tmp_path / "a.tar"))) as source:
        source.root_descriptor()
        assert (Image(source).is_missing(entry), Image(source).read_order(entry) > 0) == (False, True)


def test_a_foreign_layer_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    memory = Memory()
    tar = make_tar({"main": probe("linux/amd64")})
    plain, foreign, elsewhere = (
        {"mediaType": kind, "digest": str(Digest.from_bytes(kind.encode() + more)), "size": len(tar)}
        for kind, more in ((LAYER_GZIP, b""), (FOREIGN, b""), (LAYER_GZIP, b"urls"))
    )
    elsewhere["urls"] = ["https://example.org/layer"]
    memory.index([put_manifest(memory, {}, [plain, foreign, elsewhere])])
    with open_image(str(write_folder(memory, tmp_path / "a"))) as source:
        layers = Image(source).manifest(Image(source).index.manifests[0]).layers
        for layer, cause in zip(
            layers, ("is missing", "is a foreign layer", "is a foreign layer"), strict=True
        ):
            with pytest.raises(MalformedImage, match=cause):
                source.open(layer)


@pytest.mark.parametrize("form", ["oci:{}", "oci-archive:{}", "{}"])
def test_a_missing_path_is_named(form: str, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.tar"
    with pytest.raises(UsageError, match=rf"{missing} does not exist"), open_image(form.format(missing)):
        pass


@pytest.mark.parametrize("name", ["", "oci:", "oci-archive:"])
def test_an_empty_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"image name is empty|has no path"), open_image(name):
        pass


def test_the_wrong_transport_is_refused_with_the_right_one(tmp_path: Path) -> None:
    file = write_archive(hello(), tmp_path / "image.tar")
    for name, right in (
        (f"oci-archive:{tmp_path}", f"oci:{tmp_path}"),
        (f"oci:{file}", f"oci-archive:{file}"),
    ):
        with pytest.raises(UsageError) as caught, open_image(name):
            pass
        assert right in str(caught.value.hint)
