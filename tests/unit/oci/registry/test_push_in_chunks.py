"""Chunked uploads of blobs that are too large for one request."""

from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.errors import MalformedImage
from tests.support.docker_login import write_login
from tests.support.oci import LAYER_TAR, MemoryImage, flip, platform_json, put_manifest
from tests.support.registry.fake import Reply, Request, fake_registry
from tests.support.registry.pushing import Push, push
from tests.unit.oci.registry.test_push import one_layer, pushed_content

__all__ = ["push"]

MIB = 1 << 20
LAYER = bytes(range(251)) * (9 * MIB // 251 + 1)


def chunks(push: Push) -> list[Request]:
    """Return the accepted chunks."""
    return [request for request in push.server.requests("PATCH *") if request.body]


@pytest.mark.parametrize(
    ("max_body", "sizes"),
    [(4 * MIB, [4, 4, 1]), (5 * MIB, [4, 4, 1]), (MIB, [1] * 9)],
    ids=["four", "five", "one"],
)
def test_large_blob_is_chunked(push: Push, max_body: int, sizes: list[int]) -> None:
    memory = one_layer(LAYER[: 9 * MIB])
    push.server.max_body = max_body
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    assert [len(request.body) // MIB for request in chunks(push)] == sizes
    assert [request.headers["Content-Range"] for request in chunks(push)][:2] == [
        f"0-{sizes[0] * MIB - 1}",
        f"{sizes[0] * MIB}-{2 * sizes[0] * MIB - 1}",
    ]


def test_fitting_blob_is_not_chunked(push: Push) -> None:
    push.server.max_body = 9 * MIB
    push.send(one_layer(LAYER[: 9 * MIB]), jobs=1)
    assert push.server.requests("PATCH *") == []


def layers_of(*layers: bytes) -> MemoryImage:
    memory = MemoryImage()
    entries = [memory.put(layer, LAYER_TAR) for layer in layers]
    entry = put_manifest(memory, platform_json("linux/amd64"), entries)
    return memory.set_index([{**entry, "platform": platform_json("linux/amd64")}])


def test_chunk_size_is_remembered(push: Push) -> None:
    memory = layers_of(*(LAYER[number : number + 5 * MIB] for number in range(3)))
    push.server.max_body = 4 * MIB
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    lengths = [int(request.headers["Content-Length"]) for request in push.server.requests("PUT /upload/*")]
    assert len([length for length in lengths if length > MIB]) == 1
    assert push.waits == [0]


def test_last_chunk(push: Push) -> None:
    memory = one_layer(LAYER[: 8 * MIB + 1])
    push.server.max_body = 4 * MIB
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    assert [len(request.body) for request in chunks(push)] == [4 * MIB, 4 * MIB, 1]


def test_minimum_chunk_size(push: Push) -> None:
    memory = one_layer(LAYER[: 9 * MIB])
    push.server.max_body = 6 * MIB
    headers = {"Location": "/upload/team/app?state=x", "OCI-Chunk-Min-Length": str(5 * MIB)}
    push.server.answer_always("POST *", Reply(status=202, headers=headers))
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    assert [len(request.body) for request in chunks(push)] == [5 * MIB, 4 * MIB]


@pytest.mark.parametrize("stated", ["", "-1", "x", "9" * 30, "9" * 5000])
def test_minimum_chunk_size_is_capped(push: Push, stated: str) -> None:
    memory = one_layer(LAYER[: 9 * MIB])
    push.server.max_body = 8 * MIB
    headers = {"Location": "/upload/team/app?state=x", "OCI-Chunk-Min-Length": stated}
    push.server.answer_always("POST *", Reply(status=202, headers=headers))
    if len(stated) > 2:  # at least as large as the blob, so that it is sent in one request
        assert "answers 413" in push.error(memory).message
    else:
        push.send(memory, jobs=1)
        assert pushed_content(push) == memory.blobs


def test_smallest_chunk_is_rejected(push: Push) -> None:
    push.server.max_body = MIB // 2
    error = push.error(one_layer(LAYER[: 9 * MIB]))
    assert "answers 413" in error.message
    assert push.server.requests("PUT */manifests/*") == []


def test_lost_chunk_restarts_blob(push: Push) -> None:
    memory = one_layer(LAYER[: 9 * MIB])
    push.server.max_body = 4 * MIB
    push.server.answer("PATCH *", Reply(status=202, headers={"Location": "/upload/team/app?state=lost"}))
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    assert [request.headers["Content-Range"].partition("-")[0] for request in chunks(push)][:3] == [
        "0",
        str(4 * MIB),
        "0",
    ]


def test_early_rejection_closes_connection(push: Push) -> None:
    memory = one_layer(LAYER[: 9 * MIB])
    push.server.max_body = 4 * MIB
    push.server.answer("PATCH *", Reply(status=413, unread=4 * MIB - 1000))
    push.send(memory, jobs=1)
    assert pushed_content(push) == memory.blobs
    assert len(push.waits) == 2  # for the two rejections only; no request was lost


def test_wrong_blob_is_not_completed(push: Push) -> None:
    memory = layers_of(LAYER[: 5 * MIB], LAYER[: 9 * MIB])
    _, digest, *_ = memory.blobs
    memory.blobs[digest] = flip(memory.blobs[digest])
    push.server.max_body = 4 * MIB
    with pytest.raises(MalformedImage, match="holds other bytes"):
        push.send(memory, jobs=1)
    # The last chunk of the second blob is not sent: its end was verified before.
    assert [len(request.body) // MIB for request in chunks(push)] == [4, 1, 4, 4]
    assert digest not in pushed_content(push)


def test_chunks_to_other_host(push: Push) -> None:
    write_login(Path(push.options.environ["DOCKER_CONFIG"]), push.server.host)
    push.server.answer("/v2/", Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    push.server.max_body = 4 * MIB
    with fake_registry("127.0.0.2") as other:
        push.server.answer(
            "PATCH *",
            Reply(status=202, headers={"Location": f"http://{other.host}/upload/team/app?state=a%2Fb"}),
        )
        push.send(one_layer(LAYER[: 9 * MIB]), jobs=1)
    assert all(request.authorization for request in push.server.requests("PATCH *"))
    assert other.requests("PATCH *")
    assert not any(request.authorization for request in other.received)
