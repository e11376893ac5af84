from __future__ import annotations

import dataclasses

import pytest

from buildkit_tasks.errors import MalformedImage
from tests.support.oci import flip
from tests.support.registry.fake import Reply
from tests.support.registry.pulling import LAYER, Pull, one_layer, pull

__all__ = ["pull"]

RESET = Reply(reset=True)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_passing_server_error(pull: Pull, status: int) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", Reply(status=status), Reply(status=status))
    pull.server.answer("*/blobs/*", Reply(status=status))
    assert pull.read(reference) == [LAYER]
    assert sum(pull.waits) < 10


def test_lasting_server_error(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*", Reply(status=503))
    error = pull.error(reference)
    assert f"http://{pull.server.host} repeatedly answers 503" in error.message
    assert error.hint
    assert len(pull.server.received) == 4
    assert len(pull.waits) == 3


def test_connection_reset(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/*", RESET, RESET)
    pull.server.answer("*/blobs/*", RESET)
    assert pull.read(reference) == [LAYER]


def test_endless_resets(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*", RESET)
    error = pull.error(reference)
    assert f"the connection to http://{pull.server.host} broke" in error.message
    assert error.hint == "try again later"
    assert len(pull.server.received) == 4


@pytest.mark.parametrize(("cut", "reset"), [(100, False), (100, True), (0, False)])
def test_truncated_manifest(pull: Pull, cut: int, reset: bool) -> None:
    memory = one_layer()
    reference = pull.server.add_image(memory)
    body = memory.blobs[str(memory.root_descriptor().digest)]
    complete = Reply(headers={"Content-Type": memory.root_descriptor().media_type}, body=body)
    truncated = dataclasses.replace(complete, cut=cut, reset=reset)
    pull.server.answer("*/manifests/v1", truncated, truncated)
    assert pull.read(reference) == [LAYER]
    pull.server.answer_always("*/manifests/v1", truncated)
    assert "broke" in pull.error(reference).message


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("ranges", [True, False])
def test_truncated_blob_is_resumed(pull: Pull, ranges: bool, reset: bool) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.ranges = ranges
    cut = Reply(body=LAYER, cut=300_000, reset=reset)
    pull.server.answer("*/blobs/*", cut)
    assert pull.read(reference) == [LAYER]
    first, second = pull.server.requests("*/blobs/*")
    assert "Range" not in first.headers
    if not reset:  # after a reset, the kernel may drop received data
        assert second.headers["Range"] == "bytes=300000-"


def test_repeatedly_truncated_blob(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.ranges = False
    pull.server.answer("*/blobs/*", *(Reply(body=LAYER, cut=at) for at in (1000, 500, 0, 900_000, 1 << 19)))
    assert pull.read(reference) == [LAYER]


def test_truncated_body_without_length(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/blobs/*", Reply(body=LAYER[:1000], length=-1))
    assert pull.read(reference) == [LAYER]
    assert pull.server.requests("*/blobs/*")[1].headers["Range"] == "bytes=1000-"


def test_chunked_body(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (LAYER[:77], LAYER[77:])) + b"0\r\n\r\n"
    chunked = {"Transfer-Encoding": "chunked"}
    pull.server.answer("*/blobs/*", Reply(headers=chunked, body=chunks))
    assert pull.read(reference) == [LAYER]
    pull.server.answer("*/blobs/*", Reply(headers=chunked, body=chunks, cut=300_000))
    assert pull.read(reference) == [LAYER]


def test_endlessly_truncated_blob(pull: Pull) -> None:
    memory = one_layer()
    reference = pull.server.add_image(memory)
    pull.server.ranges = False
    pull.server.answer_always("*/blobs/*", Reply(body=LAYER, cut=5000))
    error = pull.error(reference)
    assert "was interrupted 6 times, at byte 5000 of 1048576" in error.message
    assert len(pull.server.requests("*/blobs/*")) == 6


def test_resumed_bytes_are_verified(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    rest = flip(LAYER)[1000:]
    headers = {"Content-Range": f"bytes 1000-{len(LAYER) - 1}/{len(LAYER)}"}
    pull.server.answer(
        "*/blobs/*", Reply(body=LAYER, cut=1000), Reply(status=206, headers=headers, body=rest)
    )
    with pytest.raises(MalformedImage, match="holds other bytes"):
        pull.read(reference)


@pytest.mark.parametrize("content_range", ["bytes 0-5/6", "bytes 1001-5/6", "1000-", "", "bytes 1000-x/y"])
def test_wrong_range(pull: Pull, content_range: str) -> None:
    reference = pull.server.add_image(one_layer())
    headers = {"Content-Range": content_range} if content_range else {}
    other = Reply(status=206, headers=headers, body=LAYER[1000:])
    pull.server.answer("*/blobs/*", Reply(body=LAYER, cut=1000), other)
    assert "does not start at byte 1000" in pull.error(reference).message


def test_unrequested_range(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    headers = {"Content-Range": f"bytes 0-9/{len(LAYER)}"}
    pull.server.answer("*/blobs/*", Reply(status=206, headers=headers, body=LAYER[:10]))
    assert "answers 206" in pull.error(reference).message


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["*/manifests/v1", "*/blobs/*"])
def test_denied_pull(pull: Pull, where: str, status: int) -> None:
    reference = pull.server.add_image(one_layer())
    headers = {"WWW-Authenticate": 'Basic realm="x"'} if status == 401 else {}
    pull.server.answer_always(where, Reply(status=status, headers=headers))
    error = pull.error(reference)
    assert pull.server.host in error.message
    assert "team/image" in error.message
    assert str(status) in error.message
    assert error.hint == f"docker login {pull.server.host}"
    assert (len(pull.server.requests(where)), pull.waits) == (1, [])


@pytest.mark.parametrize("status", [400, 405, 416, 418, 451, 501, 505, 204, 304])
def test_other_status(pull: Pull, status: int) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/manifests/v1", Reply(status=status, length=0))
    assert f"http://{pull.server.host} answers {status}" in pull.error(reference).message
    assert (len(pull.server.received), pull.waits) == (1, [])


def test_closed_port(pull: Pull) -> None:
    error = pull.error("127.0.0.1:1/team/image")
    assert error.message == "http://127.0.0.1:1 cannot be reached: Connection refused"
    assert error.hint == "curl -sS -o /dev/null http://127.0.0.1:1/v2/"
    assert pull.waits == []


def test_unresolved_name(pull: Pull) -> None:
    error = pull.error("registry.invalid/team/image")
    assert "https://registry.invalid cannot be reached" in error.message
    assert pull.waits == []


@pytest.mark.parametrize(
    "body",
    [b"zz\r\nx", b"-5\r\nx", b"-1\r\n" + bytes(30 << 20), b"f" * 3000 + b"\r\nx", b"5;" + b"x" * 70_000],
)
def test_invalid_chunk_framing(pull: Pull, body: bytes) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/blobs/*", Reply(headers={"Transfer-Encoding": "chunked"}, body=body))
    assert "broke" in pull.error(reference).message


@pytest.mark.parametrize(
    "headers",
    [
        {f"X-{number}": "x" for number in range(200)},
        {"X": "x" * 70_000},
        {"Content-Encoding": "gzip, " * 50 + "gzip"},
        {"Location": "\x00"},
    ],
)
def test_invalid_headers(pull: Pull, headers: dict[str, str]) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/manifests/v1", Reply(status=301, headers=headers))
    assert pull.server.host in pull.error(reference).message
