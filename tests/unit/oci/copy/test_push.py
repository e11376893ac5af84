from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from buildkit_tasks.errors import CheckFailed, Interrupted, MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.copy import push as publish
from buildkit_tasks.oci.copy.graph import push_order
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest, parse_index
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import NamedTag
from tests.support.oci import MemoryImage, add_platform, hello, platform_json, put_manifest
from tests.support.registry.fake import Reply, fake_registry
from tests.support.registry.pushing import Push, push

__all__ = ["push"]


def make_image(platform: str, *, with_attestation: bool = False, as_manifest: bool = False) -> MemoryImage:
    """Return an image of one platform as buildx pushes it: an index, or a single manifest."""
    memory = hello([platform])
    index = json.loads(memory.blobs[str(memory.root_descriptor().digest)])
    (entry,) = index["manifests"]
    if as_manifest:
        return memory.set_root({key: value for key, value in entry.items() if key != "platform"})
    if with_attestation:
        statement = memory.put(f'{{"for":"{platform}"}}'.encode(), "application/vnd.in-toto+json")
        attestation = put_manifest(memory, platform_json("unknown/unknown"), [statement])
        annotations = {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": entry["digest"],
        }
        attestation = {
            **attestation,
            "platform": platform_json("unknown/unknown"),
            "annotations": annotations,
        }
        return memory.set_index([entry, attestation])
    return memory


def test_blobs_are_read_once(push: Push) -> None:
    memory = make_image("linux/arm64", with_attestation=True)
    push.send(memory)
    assert set(Counter(memory.opened).values()) == {1}
    assert len(memory.opened) == 7  # two manifests with a config and a layer each, and the index


# Tags


def test_tag_reports_previous_digest(push: Push) -> None:
    first, second = push.send(hello()), push.send(hello(["linux/s390x"]))
    (new_tag,) = push.tag(first, "team/app:v1")
    assert new_tag == NamedTag(ref=f"{push.server.host}/team/app:v1", digest=first, previous="", moved=True)
    (moved_tag,) = push.tag(second, "team/app:v1")
    assert (moved_tag.previous, moved_tag.digest, moved_tag.moved) == (first, second, True)
    assert push.server.tag_digest("team/app:v1") == second


def test_unchanged_tag_is_not_pushed(push: Push) -> None:
    digest = push.send(hello())
    push.tag(digest, "team/app:v1")
    (unchanged,) = push.tag(digest, "team/app:v1")
    assert (unchanged.digest, unchanged.previous, unchanged.moved) == (digest, digest, False)
    assert push.server.moved_tags == ["team/app:v1"]


def test_tag_order(push: Push) -> None:
    push.tag(push.send(hello()), "team/app:b", "team/app:a", "team/app:c")
    assert push.server.moved_tags == ["team/app:b", "team/app:a", "team/app:c"]


def test_tag_in_other_repository(push: Push) -> None:
    memory = hello()
    digest = push.send(memory)
    before = len(push.server.received)
    push.tag(digest, "team/app:v1", "other/app:v1", "other/app:v2")
    assert push.server.tag_digest("other/app:v2") == digest
    content = push.server.repository("other/app").content
    assert set(content["blobs"]) | set(content["manifests"]) >= set(memory.blobs)
    put_paths = [request.path for request in push.server.received[before:] if request.method == "PUT"]
    assert [path.rpartition("/")[2] for path in put_paths[-4:]] == [digest, "v1", "v1", "v2"]


def test_unsupported_mount_is_tried_once(push: Push) -> None:
    digest = push.send(hello())
    publish.tag_image(
        push.reference(f"team/app@{digest}"),
        [push.reference("other/app:v1")],
        registry_options=push.options,
        jobs=1,
    )
    post_requests = [
        request for request in push.server.received if request.method == "POST" and "/other/" in request.path
    ]
    assert ["mount=" in each.path for each in post_requests] == [True, *[False] * (len(post_requests) - 1)]
    assert len(post_requests) > 2


def test_tag_in_other_registry(push: Push) -> None:
    digest = push.send(hello())
    with fake_registry() as other:
        image = push.reference(f"team/app@{digest}")
        tag = replace(push.reference("mirror/app:v1"), host=other.host)
        publish.tag_image(image, [tag], registry_options=push.options)
        assert other.tag_digest("mirror/app:v1") == digest
        assert other.requests("*mount=*") == []


@pytest.mark.parametrize(
    ("image", "tag", "message"),
    [
        ("team/app:v1", "team/app:v1", "has no digest to be tagged"),
        (f"team/app@{Digest.from_bytes(b'')}", f"team/app@{Digest.from_bytes(b'')}", "is not a valid tag"),
    ],
)
def test_invalid_references(push: Push, image: str, tag: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        publish.tag_image(push.reference(image), [push.reference(tag)], registry_options=push.options)
    assert push.server.received == []


def test_tag_of_missing_image(push: Push) -> None:
    error = push.tag_error(str(Digest.from_bytes(b"")), "team/app:v1")
    assert "not moved: " in error.message
    assert push.server.moved_tags == []


def test_interrupt_between_tags(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = push.send(hello())
    move_tag = publish._TagUpdate.move_tag

    def interrupted(self: publish._TagUpdate, tag: Reference, root: Descriptor, data: bytes) -> NamedTag:
        if tag.tag == "b":
            raise KeyboardInterrupt
        return move_tag(self, tag, root, data)

    monkeypatch.setattr(publish._TagUpdate, "move_tag", interrupted)
    with pytest.raises(Interrupted) as excinfo:
        push.tag(digest, "team/app:a", "team/app:b", "team/app:c")
    host = push.server.host
    assert excinfo.value.message == (
        f"interrupted; moved: {host}/team/app:a; not moved: {host}/team/app:b, {host}/team/app:c"
    )
    assert excinfo.value.exit_code == 130


# Parts


def test_push_index(push: Push) -> None:
    parts = [
        make_image("linux/arm64", with_attestation=True),
        make_image("linux/s390x", as_manifest=True),
        make_image("linux/amd64"),
    ]
    references = [push.reference(f"team/app@{push.send(part)}") for part in parts]
    expected = tuple(Platform.parse(name) for name in ("linux/amd64", "linux/arm64", "linux/s390x"))
    joined = publish.push_index(
        references, push.reference("team/app"), expected, registry_options=push.options
    )
    media_type, data = push.server.repository("team/app").content["manifests"][str(joined.root.digest)]
    assert (media_type, data) == (OCI_INDEX, joined.data)
    index = parse_index(data)
    assert [str(entry.platform) for entry in index.manifests] == [
        "linux/amd64", "linux/arm64", "linux/s390x", "unknown/unknown",
    ]  # fmt: skip
    images = [entry.digest for entry in index.manifests[:3]]
    assert joined.platforms == tuple(zip(expected, images, strict=True))
    assert index.manifests[3].annotations["vnd.docker.reference.digest"] == str(images[1])
    assert push.server.moved_tags == []


def test_parts_in_other_repositories(push: Push) -> None:
    part, other = make_image("linux/amd64", with_attestation=True), make_image("linux/arm64")
    references = [push.reference(f"parts/one@{push.send(part, 'parts/one')}")]
    references += [push.reference(f"parts/two@{push.send(other, 'parts/two')}")]
    publish.push_index(references, push.reference("team/app"), registry_options=push.options)
    content = push.server.repository("team/app").content
    expected = {
        str(each.digest) for memory in (part, other) for level in push_order(memory) for each in level
    }
    assert set(content["blobs"]) | set(content["manifests"]) >= expected


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (["linux/amd64", "linux/arm64", "linux/s390x"], "no part is for linux/s390x"),
        (["linux/amd64"], "is for linux/arm64"),
    ],
)
def test_platforms_are_checked_first(push: Push, expected: list[str], message: str) -> None:
    references = [
        push.reference(f"parts/x@{push.send(make_image(name), 'parts/x')}")
        for name in ("linux/amd64", "linux/arm64")
    ]
    before = len(push.server.received)
    with pytest.raises(CheckFailed, match=message) as excinfo:
        publish.push_index(
            references,
            push.reference("team/app"),
            [*map(Platform.parse, expected)],
            registry_options=push.options,
        )
    assert excinfo.value.exit_code == 1
    assert {request.method for request in push.server.received[before:]} == {"GET"}


def test_part_without_digest(push: Push) -> None:
    with pytest.raises(UsageError, match="has no digest, so its content may change"):
        publish.assemble_index([push.reference("team/app:v1")], registry_options=push.options)
    assert push.server.received == []


def test_part_with_two_platforms(push: Push) -> None:
    part = push.reference(f"team/app@{push.send(hello(['linux/amd64', 'linux/arm64']))}")
    with pytest.raises(CheckFailed, match="it has linux/amd64, linux/arm64"):
        publish.assemble_index([part], registry_options=push.options)


def test_index_of_indexes(push: Push) -> None:
    memory = hello(["linux/amd64"])
    root = memory.root_descriptor()
    memory.set_index([{"mediaType": OCI_INDEX, "digest": str(root.digest), "size": root.size}])
    part = push.reference(f"team/app@{push.send(memory)}")
    with pytest.raises(MalformedImage, match="index of indexes"):
        publish.assemble_index([part], registry_options=push.options)


def test_missing_part(push: Push) -> None:
    with pytest.raises(RegistryError, match="the repository or the tag is unknown"):
        publish.assemble_index(
            [push.reference(f"team/app@{Digest.from_bytes(b'')}")], registry_options=push.options
        )


def test_platform_from_config(push: Push) -> None:
    memory = MemoryImage()
    entry = add_platform(memory, "linux/arm/v6", [])
    memory.set_index([{key: value for key, value in entry.items() if key != "platform"}])
    part = push.reference(f"team/app@{push.send(memory)}")
    joined = publish.assemble_index([part], registry_options=push.options)
    assert [str(entry.platform) for entry in parse_index(joined.data).manifests] == ["linux/arm/v6"]


def test_rejected_index(push: Push) -> None:
    part = push.reference(f"team/app@{push.send(make_image('linux/amd64', as_manifest=True))}")
    push.server.answer_always("PUT */manifests/*", Reply(status=400))
    with pytest.raises(RegistryError, match="answers 400"):
        publish.push_index([part], push.reference("team/app"), registry_options=push.options)
    assert push.server.moved_tags == []
