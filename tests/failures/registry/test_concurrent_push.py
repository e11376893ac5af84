from __future__ import annotations

from buildkit_tasks.oci.model import Digest
from tests.support.oci import hello
from tests.support.registry.fake import Reply
from tests.support.registry.pushing import Push, push

__all__ = ["push"]


def test_concurrent_push_moves_tag(push: Push) -> None:
    digest, rival = push.send(hello()), str(Digest.from_bytes(b"rival"))
    push.server.answer(
        "HEAD */manifests/v1", Reply(status=404), Reply(headers={"Docker-Content-Digest": rival})
    )
    error = push.tag_error(digest, "team/app:v0", "team/app:v1", "team/app:v2")
    host = push.server.host
    assert f"a rival push moved {host}/team/app:v1 to {rival}" in error.message
    assert f"moved: {host}/team/app:v0; not moved: " in error.message
    assert error.exit_code == 4
    assert push.server.moved_tags == ["team/app:v0", "team/app:v1"]


def test_concurrent_push_deletes_tag(push: Push) -> None:
    digest = push.send(hello())
    push.server.answer("HEAD */manifests/v1", Reply(status=404), Reply(status=404))
    error = push.tag_error(digest, "team/app:v1")
    assert f"a rival push moved {push.server.host}/team/app:v1 away" in error.message


def test_registry_without_digests(push: Push) -> None:
    push.server.states_digests = False
    digest = push.send(hello())
    other = hello(["linux/s390x"])
    rival = other.blobs[str(other.root_descriptor().digest)]
    headers = {"Content-Type": other.root_descriptor().media_type}
    push.server.answer("GET */manifests/v1", Reply(headers=headers, body=rival))
    error = push.tag_error(digest, "team/app:v1")
    assert f"to {other.root_descriptor().digest}" in error.message
