from __future__ import annotations

import dataclasses
import io
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage, RegistryError, SettingsError
from buildkit_tasks.oci.copy.graph import push_order
from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
from buildkit_tasks.oci.registry.connection import MeteredAdapter
from buildkit_tasks.oci.registry.options import RegistryOptions
from buildkit_tasks.oci.registry.push import open_uploader
from tests.conftest import TEN
from tests.support.docker_login import write_login
from tests.support.oci import (
    LAYER_GZIP,
    LAYER_TAR,
    MemoryImage,
    flip,
    hello,
    index_json,
    platform_json,
    put_manifest,
)
from tests.support.registry.fake import Reply, Request, bearer, fake_registry, token
from tests.support.registry.pushing import Push, push
from tests.support.waiting import wait_until

__all__ = ["push"]

FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
LAYER = bytes(range(256)) * 4096  # 1 MiB


def one_layer(layer: bytes = LAYER, media_type: str = LAYER_GZIP) -> MemoryImage:
    memory = MemoryImage()
    entry = put_manifest(memory, platform_json("linux/amd64"), [memory.put(layer, media_type)])
    return memory.set_index([{**entry, "platform": platform_json("linux/amd64")}])


def pushed_content(push: Push, name: str = "team/app") -> dict[str, bytes]:
    """Return the pushed blobs and manifests by digest."""
    content = push.server.repository(name).content
    return {
        key: data for kind in content.values() for key, (_, data) in kind.items() if key.startswith("sha256:")
    }


def uploads(push: Push) -> list[Request]:
    return push.server.requests("PUT /upload/*")


# Content


def test_push_sends_reachable_blobs(push: Push) -> None:
    memory = hello()
    reachable = dict(memory.blobs)
    memory.put(b"unreachable", LAYER_TAR)
    assert push.send(memory) == str(memory.root_descriptor().digest)
    assert pushed_content(push) == reachable


def test_push_moves_no_tag(push: Push) -> None:
    push.send(hello(), "team/app:v1")
    assert push.server.moved_tags == []
    assert not push.server.requests("*/manifests/v1")


def test_push_order(push: Push) -> None:
    memory = hello()
    push.send(memory)
    put_requests = [request for request in push.server.received if request.method == "PUT"]
    kinds = [
        "blob" if each.path.startswith("/upload/") else each.path.rpartition("/")[2] for each in put_requests
    ]
    assert kinds[:6] == ["blob"] * 6
    assert len(set(kinds[6:9])) == 3
    assert kinds[9:] == [str(memory.root_descriptor().digest)]


def test_nested_index_order(push: Push) -> None:
    memory = hello()
    inner = {
        "mediaType": OCI_INDEX,
        "digest": str(memory.root_descriptor().digest),
        "size": memory.root_descriptor().size,
    }
    memory.set_root(memory.put(index_json([inner]), OCI_INDEX))
    push.send(memory)
    order = [request.path.rpartition("/")[2] for request in push.server.requests("PUT */manifests/*")]
    assert order[-2:] == [inner["digest"], str(memory.root_descriptor().digest)]


def test_push_single_manifest(push: Push) -> None:
    memory = MemoryImage()
    memory.set_root(put_manifest(memory, platform_json("linux/amd64"), [memory.put(LAYER, LAYER_GZIP)]))
    push.send(memory)
    assert pushed_content(push) == memory.blobs


def test_push_attestations(push: Push) -> None:
    memory = MemoryImage()
    entry = put_manifest(memory, platform_json("linux/amd64"), [memory.put(LAYER, LAYER_GZIP)])
    statement = memory.put(b'{"_type":"https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json")
    attestation = put_manifest(memory, platform_json("unknown/unknown"), [statement])
    memory.set_index(
        [
            {**entry, "platform": platform_json("linux/amd64")},
            {
                **attestation,
                "platform": platform_json("unknown/unknown"),
                "annotations": {"vnd.docker.reference.digest": entry["digest"]},
            },
        ]
    )
    push.send(memory)
    assert pushed_content(push) == memory.blobs


def test_foreign_layer_is_not_sent(push: Push) -> None:
    memory = MemoryImage()
    foreign = {**memory.put(b"licensed", FOREIGN), "urls": ["https://example.org/layer"]}
    entry = put_manifest(memory, platform_json("windows/amd64"), [foreign])
    memory.set_index([{**entry, "platform": platform_json("windows/amd64")}])
    push.send(memory)
    assert foreign["digest"] not in pushed_content(push)
    assert str(memory.root_descriptor().digest) in pushed_content(push)
    assert foreign["digest"] not in memory.opened


def test_second_push_sends_nothing(push: Push) -> None:
    memory = hello()
    push.send(memory)
    before = len(push.server.received)
    push.send(memory)
    assert {request.method for request in push.server.received[before:]} == {"GET", "HEAD"}


def test_blob_of_wrong_size_is_sent(push: Push) -> None:
    memory = one_layer()
    push.server.answer("HEAD */blobs/*", *[Reply(body=b"x" * 7)] * 2)
    push.send(memory)
    assert len(uploads(push)) == 2


def test_shared_blob_is_sent_once(push: Push) -> None:
    memory = MemoryImage()
    layer = memory.put(LAYER, LAYER_GZIP)
    entries = [
        {**put_manifest(memory, platform_json(name), [layer]), "platform": platform_json(name)}
        for name in ("linux/amd64", "linux/arm64")
    ]
    push.send(memory.set_index(entries))
    assert len(uploads(push)) == 3


def test_empty_blob(push: Push) -> None:
    memory = one_layer(b"", LAYER_TAR)
    push.send(memory)
    assert pushed_content(push)[str(Digest.from_bytes(b""))] == b""
    assert "0" in {request.headers.get("Content-Length") for request in uploads(push)}
    assert not any("Transfer-Encoding" in request.headers for request in push.server.received)


def test_uploads_have_content_length(push: Push) -> None:
    push.send(one_layer())
    assert {request.headers.get("Content-Length") for request in uploads(push)} >= {str(len(LAYER))}


def test_parallel_uploads(push: Push) -> None:
    push.send(hello([f"linux/{name}" for name in ("amd64", "arm64", "s390x", "ppc64le")]))
    assert len({request.connection for request in uploads(push)}) > 1


def test_one_job_uses_one_connection(push: Push) -> None:
    push.send(hello(), jobs=1)
    assert push.server.connections == 1


def test_request_count(push: Push) -> None:
    push.send(hello(TEN))
    # The version; for each of 20 blobs whether it is there, where to put it and the blob; 11 manifests.
    assert len(push.server.received) <= 1 + 3 * 20 + 2 * 11


# Invalid images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (flip, "holds other bytes"),
        (lambda data: data[:-1], f"has {len(LAYER) - 1} bytes; {len(LAYER)} are stated"),
        (lambda data: data + b"x", "is longer than"),
    ],
    ids=["flipped", "short", "long"],
)
def test_wrong_blob_is_not_completed(push: Push, change: Callable[[bytes], bytes], message: str) -> None:
    memory = one_layer()
    digest = str(Digest.from_bytes(LAYER))
    memory.blobs[digest] = change(LAYER)
    with pytest.raises(MalformedImage, match=message):
        push.send(memory)
    wait_until(lambda: push.server.requests(f"PUT /upload/*{Digest.from_bytes(LAYER).hex}"))
    assert all(len(request.body) < len(LAYER) for request in uploads(push))
    assert digest not in pushed_content(push)
    assert push.server.requests("PUT */manifests/*") == []


def test_wrong_manifest_sends_nothing(push: Push) -> None:
    memory = one_layer()
    memory.blobs[str(memory.root_descriptor().digest)] = flip(
        memory.blobs[str(memory.root_descriptor().digest)]
    )
    with pytest.raises(MalformedImage, match="holds other bytes"):
        push.send(memory)
    assert push.server.received == []


def test_missing_layer_starts_no_upload(push: Push) -> None:
    memory = one_layer()
    del memory.blobs[str(Digest.from_bytes(LAYER))]
    with pytest.raises(MalformedImage, match="missing"):
        push.send(memory)
    assert str(Digest.from_bytes(LAYER)) not in str(uploads(push))
    assert push.server.requests("PUT */manifests/*") == []


def test_partial_image_is_rejected(push: Push) -> None:
    memory = PartialImage(**vars(hello()))
    with pytest.raises(MalformedImage, match=r"\(linux/amd64\) is not here: the source has only a part"):
        push.send(memory)
    assert push.server.received == []


class PartialImage(MemoryImage):
    """An image of an engine that has pulled one platform only."""

    def is_missing(self, descriptor: Descriptor) -> bool:
        return "amd64" in str(descriptor.platform)


def test_deeply_nested_indexes() -> None:
    memory = hello(["linux/amd64"])
    for _ in range(4):
        root = memory.root_descriptor()
        entry = {"mediaType": OCI_INDEX, "digest": str(root.digest), "size": root.size}
        memory.set_root(memory.put(index_json([entry]), OCI_INDEX))
    with pytest.raises(MalformedImage, match="nested more than 3 deep"):
        push_order(memory)


def test_too_many_index_entries() -> None:
    memory = MemoryImage()
    entry = put_manifest(memory, platform_json("linux/amd64"), [])
    memory.set_index([{**entry, "annotations": {"n": str(number)}} for number in range(1001)])
    with pytest.raises(LimitExceeded, match="more than 1000 entries"):
        push_order(memory)


def test_source_order_of_blobs() -> None:
    class OrderedImage(MemoryImage):
        def read_order(self, descriptor: Descriptor) -> int:
            return -sorted(self.blobs).index(str(descriptor.digest))

    blobs = [str(each.digest) for each in push_order(OrderedImage(**vars(hello())))[0]]
    assert blobs == sorted(blobs, reverse=True)


# Upload locations


def test_upload_keeps_location_query(push: Push) -> None:
    push.send(one_layer())
    for request in uploads(push):
        assert request.path.startswith("/upload/team/app?state=a%2Fb&digest=sha256%3A")


def test_location_without_query(push: Push) -> None:
    push.server.answer_always("POST *", Reply(status=202, headers={"Location": "/upload/team/app"}))
    push.send(one_layer())
    assert all(request.path.startswith("/upload/team/app?digest=sha256%3A") for request in uploads(push))


def test_other_host_gets_no_authorization(push: Push, tmp_path: Path) -> None:
    with fake_registry("127.0.0.2") as store:
        write_login(tmp_path, push.server.host)
        push.server.answer_always(
            "POST *", Reply(status=202, headers={"Location": f"http://me:pw@{store.host}/upload/team/app"})
        )
        challenge = Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        push.server.answer("/v2/", challenge)
        push.server.answer_always("PUT */manifests/*", Reply(status=201))
        push.send(one_layer())
    assert len(store.requests("PUT /upload/*")) == 2
    assert not any(request.authorization for request in store.received)
    assert all(request.authorization for request in push.server.requests("POST *"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://example.org/upload", "plain http"),
        ("http://169.254.169.254/latest", "must not refer to"),
        ("file:///etc/passwd", "an invalid http or https URL"),
        ("", "sent no Location header"),
        ("https://x y/", "an invalid URL"),
    ],
)
def test_unsafe_upload_location(push: Push, location: str, message: str) -> None:
    push.server.answer_always("POST *", Reply(status=202, headers={"Location": location} if location else {}))
    error = push.error(one_layer())
    assert message in error.message
    assert uploads(push) == []


def test_unexpected_201_to_upload_start(push: Push) -> None:
    push.server.answer_always("POST *", Reply(status=201))
    assert "answers 201 for" in push.error(one_layer()).message
    assert uploads(push) == []


def test_missing_repository_hint(push: Push) -> None:
    push.server.answer_always("POST *", Reply(status=404, body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}'))
    error = push.error(one_layer())
    assert error.message.endswith(
        "answers 404 for 127.0.0.1:" + f"{push.server.port}/team/app/blobs/uploads/: NAME_UNKNOWN"
    )
    assert error.hint == "create the repository first: not every registry creates it on push"


# Authentication


def test_token_for_pull_and_push(push: Push) -> None:
    push.server.answer("/v2/", bearer(f"http://{push.server.host}/token"))
    push.server.answer("/token*", token())
    push.send(hello())
    (token_request,) = push.server.requests("/token*")
    assert "scope=repository%3Ateam%2Fapp%3Apull%2Cpush" in token_request.path
    others = [request for request in push.server.received[2:] if "token" not in request.path]
    assert {each.authorization for each in others} == {"Bearer t0ken"}


def test_narrow_challenge_is_widened(push: Push) -> None:
    realm = f"http://{push.server.host}/token"
    push.server.answer("HEAD */blobs/*", bearer(realm, scope="repository:team/app:pull repository:x/y:pull"))
    push.server.answer("/token*", token())
    push.send(one_layer())
    (token_request,) = push.server.requests("/token*")
    assert token_request.path.count("scope=") == 2
    assert "scope=repository%3Ateam%2Fapp%3Apull%2Cpush" in token_request.path
    assert "scope=repository%3Ax%2Fy%3Apull" in token_request.path


def test_threads_share_token(push: Push) -> None:
    unauthorized = dataclasses.replace(bearer(f"http://{push.server.host}/token"), drip_headers=0.003)
    push.server.answer("HEAD */blobs/*", unauthorized, unauthorized, unauthorized, unauthorized)
    push.server.answer("/token*", token())
    push.send(hello())
    assert len(push.server.requests("/token*")) == 1


def test_token_expires_during_push(push: Push) -> None:
    realm = f"http://{push.server.host}/token"
    push.server.answer("/v2/", bearer(realm))
    push.server.answer("PUT /upload/*", bearer(realm))
    push.server.answer("/token*", token("one"), token("two"))
    memory = one_layer()
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    assert [request.authorization for request in uploads(push)] == ["Bearer one", "Bearer two", "Bearer two"]


def test_malformed_docker_config(push: Push, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SettingsError):
        push.send(hello())
    assert push.server.received == []


# Responses


def test_push_digest_mismatch(push: Push) -> None:
    other = {"Docker-Content-Digest": str(Digest.from_bytes(b"other"))}
    push.server.answer("PUT /upload/*", Reply(status=201, headers=other))
    assert "states sha256:" in push.error(one_layer()).message


def test_registry_without_digests(push: Push) -> None:
    push.server.states_digests = False
    memory = hello()
    push.send(memory)
    push.send(memory)
    assert pushed_content(push) == memory.blobs


def test_invalid_stated_digest(push: Push) -> None:
    memory = one_layer()
    push.server.answer_always(
        "HEAD */manifests/*", Reply(headers={"Docker-Content-Digest": "sha256:../../x"})
    )
    assert "states an invalid digest" in push.error(memory).message


def test_registry_error_message(push: Push) -> None:
    body = b'{"errors":[{"code":"MANIFEST_INVALID","message":"\x1b[2Jevil"}]}'
    push.server.answer_always("PUT */manifests/*", Reply(status=422, body=body))
    error = push.error(one_layer())
    assert error.message.endswith(": MANIFEST_INVALID")
    assert "answers 422 for" in error.message


EMPTY_LINK_BODY = (
    b'{"errors":[{"code":"DIGEST_INVALID","message":"provided digest did not match uploaded content"},'
    b'{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry","detail":"sha256:1f"}]}'
)


def test_manifest_with_unreadable_link_is_sent_again(push: Push) -> None:
    memory = one_layer()
    push.server.answer("PUT */manifests/*", Reply(status=400, body=EMPTY_LINK_BODY))
    push.send(memory)
    assert pushed_content(push) == memory.blobs
    first, second, *_ = push.server.requests("PUT */manifests/*")
    assert (first.path, first.body) == (second.path, second.body)


def test_manifest_with_unreadable_link_is_refused(push: Push) -> None:
    push.server.answer_always("PUT */manifests/*", Reply(status=400, body=EMPTY_LINK_BODY))
    error = push.error(one_layer())
    assert error.message.endswith(": DIGEST_INVALID")
    assert push.waits == [0, 1, 2]


@pytest.mark.parametrize("code", ["MANIFEST_INVALID", "MANIFEST_BLOB_UNKNOWN", ""])
def test_refused_manifest_is_sent_once(push: Push, code: str) -> None:
    body = f'{{"errors":[{{"code":"{code}"}}]}}'.encode()
    push.server.answer_always("PUT */manifests/*", Reply(status=400, body=body))
    assert "answers 400 for" in push.error(one_layer()).message
    assert push.waits == []


def test_failure_aborts_other_uploads(push: Push) -> None:
    memory = hello(["linux/amd64", "linux/arm64"])
    push.server.answer("PUT /upload/*", Reply(silent=True), Reply(status=413))
    assert "answers 413" in push.error(memory).message
    assert not push.server.has_closed_silent


@pytest.mark.timeout(40)
def test_failure_ends_waits(tmp_path: Path) -> None:
    with fake_registry() as server:
        options = RegistryOptions(environ={"DOCKER_CONFIG": str(tmp_path)}, certificate_dirs=())
        push = Push(server=server, options=options)
        server.answer("PUT /upload/*", Reply(status=429, headers={"Retry-After": "50"}), Reply(status=403))
        assert "403" in push.error(hello(["linux/amd64"])).message


def test_source_is_read_on_demand(push: Push) -> None:
    size = 512 << 20

    class EndlessStream(io.RawIOBase):
        sent = 0

        def read(self, size: int = -1) -> bytes:
            self.sent += size
            return bytes(size)

    class LargeImage(MemoryImage):
        stream = EndlessStream()

        def open(self, descriptor: Descriptor) -> BinaryIO:
            return cast("BinaryIO", self.stream) if descriptor.size == size else super().open(descriptor)

    memory = LargeImage()
    digest = Digest.from_bytes(b"any")
    layer = {"mediaType": LAYER_GZIP, "digest": str(digest), "size": size}
    entry = put_manifest(memory, platform_json("linux/amd64"), [layer])
    memory.set_index([{**entry, "platform": platform_json("linux/amd64")}])
    push.server.answer_always(f"PUT /upload/*{digest.hex}", Reply(status=413, unread=1 << 20))
    push.server.answer_always("PATCH *", Reply(status=413, unread=1 << 20))
    push.error(memory)
    assert 1 << 20 <= memory.stream.sent < 128 << 20  # what fits into socket buffers


def test_aborted_client_sends_nothing(push: Push) -> None:
    with open_uploader(push.reference("team/app"), options=push.options) as uploader:
        before = len(push.server.received)
        uploader.abort()
        with pytest.raises(RegistryError, match="was aborted"):
            uploader.get_digest("v1")
    assert len(push.server.received) == before


def test_late_connection_is_closed() -> None:
    """Another thread may connect while the client is aborted."""
    adapter = MeteredAdapter(None, 1.0)
    adapter.abort()
    with socket.socket() as sock, pytest.raises(OSError, match="aborted"):
        adapter.register_socket(sock)
