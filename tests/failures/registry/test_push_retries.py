from __future__ import annotations

import pytest

from tests.support.oci import MemoryImage
from tests.support.registry.fake import Reply
from tests.support.registry.pulling import LAYER, one_layer
from tests.support.registry.pushing import Push, push

__all__ = ["push"]

RESET = Reply(reset=True)


def is_stored(push: Push, memory: MemoryImage) -> bool:
    content = push.server.repository("team/app").content
    return all(key in content["blobs"] or key in content["manifests"] for key in memory.blobs)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("step", ["HEAD */blobs/*", "POST *", "PUT /upload/*", "PUT */manifests/*"])
def test_passing_server_error(push: Push, step: str, status: int) -> None:
    memory = one_layer()
    push.server.answer(step, Reply(status=status), Reply(status=status))
    push.send(memory)
    assert is_stored(push, memory)
    assert sum(push.waits) < 10


@pytest.mark.parametrize("step", ["HEAD */blobs/*", "POST *", "PUT /upload/*", "PUT */manifests/*"])
def test_connection_reset(push: Push, step: str) -> None:
    memory = one_layer()
    push.server.answer(step, RESET, RESET)
    push.send(memory)
    assert is_stored(push, memory)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(reset=True, unread=300_000),
        Reply(status=404, unread=300_000, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'),
        Reply(status=400, body=b'{"errors":[{"code":"DIGEST_INVALID"}]}'),
        Reply(status=416, unread=10),
        Reply(status=500, unread=0),
    ],
    ids=["reset", "upload lost", "wrong digest", "out of order", "server error"],
)
def test_rejected_blob_is_sent_again(push: Push, reply: Reply) -> None:
    memory = one_layer()
    push.server.answer("PUT /upload/*", reply, reply)
    push.send(memory, jobs=1)
    assert is_stored(push, memory)
    assert len(push.server.requests("POST *")) == 4  # two blobs, one of them three times
    assert push.server.repository("team/app").content["blobs"][next(iter(memory.blobs))][1] == LAYER


def test_lasting_rejection(push: Push) -> None:
    push.server.answer_always(
        "PUT /upload/*", Reply(status=400, body=b'{"errors":[{"code":"BLOB_UPLOAD_INVALID"}]}')
    )
    error = push.error(one_layer())
    assert "answers 400 for" in error.message
    assert "BLOB_UPLOAD_INVALID" in error.message
    assert len(push.server.requests("PUT /upload/*")) <= 8
    assert push.server.requests("PUT */manifests/*") == []


@pytest.mark.parametrize("status", [500, 503])
def test_lasting_server_error(push: Push, status: int) -> None:
    push.server.answer_always("PUT */manifests/*", Reply(status=status))
    assert f"repeatedly answers {status}" in push.error(one_layer()).message
    assert len(push.server.requests("PUT */manifests/*")) == 4


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(
    "step", ["/v2/", "HEAD */blobs/*", "POST *", "PUT /upload/*", "HEAD */manifests/*", "PUT */manifests/*"]
)
def test_denied_push(push: Push, step: str, status: int) -> None:
    headers = {"WWW-Authenticate": 'Basic realm="x"'} if status == 401 else {}
    push.server.answer_always(step, Reply(status=status, headers=headers))
    error = push.error(one_layer())
    assert push.server.host in error.message
    assert "team/app" in error.message
    assert str(status) in error.message
    assert error.hint == f"docker login {push.server.host}"
    assert (len(push.server.requests(step)) <= 2, push.waits) == (True, [])


@pytest.mark.parametrize("status", [405, 413, 422, 501, 301, 307])
def test_other_status(push: Push, status: int) -> None:
    push.server.answer_always("PUT */manifests/*", Reply(status=status, headers={"Location": "/elsewhere"}))
    assert f"answers {status} for" in push.error(one_layer()).message
    assert (len(push.server.requests("PUT */manifests/*")), push.waits) == (1, [])
