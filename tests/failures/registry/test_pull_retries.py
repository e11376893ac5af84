from __future__ import annotations

import dataclasses

import pytest

from buildkit_tasks.errors import MalformedImage
from tests.failures.pulling import LAYER, Bench, bench, one_layer
from tests.support.oci import flip
from tests.support.registry.hostile import Reply

__all__ = ["bench"]

RESET = Reply(reset=True)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_passing_server_error(bench: Bench, status: int) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", Reply(status=status), Reply(status=status))
    bench.server.answer("*/blobs/*", Reply(status=status))
    assert bench.read(reference) == [LAYER]
    assert sum(bench.waits) < 10


def test_lasting_server_error(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*", Reply(status=503))
    found = bench.refused(reference)
    assert f"http://{bench.server.host} repeatedly answers 503" in found.message
    assert found.hint
    assert len(bench.server.asked) == 4
    assert len(bench.waits) == 3


def test_connection_reset(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/*", RESET, RESET)
    bench.server.answer("*/blobs/*", RESET)
    assert bench.read(reference) == [LAYER]


def test_endless_resets(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*", RESET)
    found = bench.refused(reference)
    assert f"the connection to http://{bench.server.host} broke" in found.message
    assert found.hint == "try again later"
    assert len(bench.server.asked) == 4


@pytest.mark.parametrize(("cut", "reset"), [(100, False), (100, True), (0, False)])
def test_truncated_manifest(bench: Bench, cut: int, reset: bool) -> None:
    memory = one_layer()
    reference = bench.server.hold(memory)
    body = memory.blobs[str(memory.root_descriptor().digest)]
    whole = Reply(headers={"Content-Type": memory.root_descriptor().media_type}, body=body)
    short = dataclasses.replace(whole, cut=cut, reset=reset)
    bench.server.answer("*/manifests/v1", short, short)
    assert bench.read(reference) == [LAYER]
    bench.server.always("*/manifests/v1", short)
    assert "broke" in bench.refused(reference).message


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("ranges", [True, False])
def test_truncated_blob_is_resumed(bench: Bench, ranges: bool, reset: bool) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.ranges = ranges
    cut = Reply(body=LAYER, cut=300_000, reset=reset)
    bench.server.answer("*/blobs/*", cut)
    assert bench.read(reference) == [LAYER]
    first, second = bench.server.requests("*/blobs/*")
    assert "Range" not in first.headers
    if not reset:  # what a reset lets through is the kernel's choice
        assert second.headers["Range"] == "bytes=300000-"


def test_repeatedly_truncated_blob(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.ranges = False
    bench.server.answer("*/blobs/*", *(Reply(body=LAYER, cut=at) for at in (1000, 500, 0, 900_000, 1 << 19)))
    assert bench.read(reference) == [LAYER]


def test_truncated_body_without_length(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/blobs/*", Reply(body=LAYER[:1000], length=-1))
    assert bench.read(reference) == [LAYER]
    assert bench.server.requests("*/blobs/*")[1].headers["Range"] == "bytes=1000-"


def test_chunked_body(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (LAYER[:77], LAYER[77:])) + b"0\r\n\r\n"
    chunked = {"Transfer-Encoding": "chunked"}
    bench.server.answer("*/blobs/*", Reply(headers=chunked, body=chunks))
    assert bench.read(reference) == [LAYER]
    bench.server.answer("*/blobs/*", Reply(headers=chunked, body=chunks, cut=300_000))
    assert bench.read(reference) == [LAYER]


def test_endlessly_truncated_blob(bench: Bench) -> None:
    memory = one_layer()
    reference = bench.server.hold(memory)
    bench.server.ranges = False
    bench.server.always("*/blobs/*", Reply(body=LAYER, cut=5000))
    found = bench.refused(reference)
    assert "was interrupted 6 times, at byte 5000 of 1048576" in found.message
    assert len(bench.server.requests("*/blobs/*")) == 6


def test_resumed_bytes_are_verified(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    rest = flip(LAYER)[1000:]
    headers = {"Content-Range": f"bytes 1000-{len(LAYER) - 1}/{len(LAYER)}"}
    bench.server.answer(
        "*/blobs/*", Reply(body=LAYER, cut=1000), Reply(status=206, headers=headers, body=rest)
    )
    with pytest.raises(MalformedImage, match="holds other bytes"):
        bench.read(reference)


@pytest.mark.parametrize("said", ["bytes 0-5/6", "bytes 1001-5/6", "1000-", "", "bytes 1000-x/y"])
def test_wrong_range(bench: Bench, said: str) -> None:
    reference = bench.server.hold(one_layer())
    headers = {"Content-Range": said} if said else {}
    other = Reply(status=206, headers=headers, body=LAYER[1000:])
    bench.server.answer("*/blobs/*", Reply(body=LAYER, cut=1000), other)
    assert "does not start at byte 1000" in bench.refused(reference).message


def test_unrequested_range(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    headers = {"Content-Range": f"bytes 0-9/{len(LAYER)}"}
    bench.server.answer("*/blobs/*", Reply(status=206, headers=headers, body=LAYER[:10]))
    assert "answers 206" in bench.refused(reference).message


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("where", ["*/manifests/v1", "*/blobs/*"])
def test_denied_pull(bench: Bench, where: str, status: int) -> None:
    reference = bench.server.hold(one_layer())
    headers = {"WWW-Authenticate": 'Basic realm="x"'} if status == 401 else {}
    bench.server.always(where, Reply(status=status, headers=headers))
    found = bench.refused(reference)
    assert bench.server.host in found.message
    assert "team/image" in found.message
    assert str(status) in found.message
    assert found.hint == f"docker login {bench.server.host}"
    assert (len(bench.server.requests(where)), bench.waits) == (1, [])


@pytest.mark.parametrize("status", [400, 405, 416, 418, 451, 501, 505, 204, 304])
def test_other_status(bench: Bench, status: int) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/manifests/v1", Reply(status=status, length=0))
    assert f"http://{bench.server.host} answers {status}" in bench.refused(reference).message
    assert (len(bench.server.asked), bench.waits) == (1, [])


def test_closed_port(bench: Bench) -> None:
    found = bench.refused("127.0.0.1:1/team/image")
    assert found.message == "http://127.0.0.1:1 cannot be reached: Connection refused"
    assert found.hint == "curl -sS -o /dev/null http://127.0.0.1:1/v2/"
    assert bench.waits == []


def test_unresolved_name(bench: Bench) -> None:
    found = bench.refused("registry.invalid/team/image")
    assert "https://registry.invalid cannot be reached" in found.message
    assert bench.waits == []


@pytest.mark.parametrize(
    "body",
    [b"zz\r\nx", b"-5\r\nx", b"-1\r\n" + bytes(30 << 20), b"f" * 3000 + b"\r\nx", b"5;" + b"x" * 70_000],
)
def test_invalid_chunk_framing(bench: Bench, body: bytes) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/blobs/*", Reply(headers={"Transfer-Encoding": "chunked"}, body=body))
    assert "broke" in bench.refused(reference).message


@pytest.mark.parametrize(
    "headers",
    [
        {f"X-{number}": "x" for number in range(200)},
        {"X": "x" * 70_000},
        {"Content-Encoding": "gzip, " * 50 + "gzip"},
        {"Location": "\x00"},
    ],
)
def test_invalid_headers(bench: Bench, headers: dict[str, str]) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/manifests/v1", Reply(status=301, headers=headers))
    assert bench.server.host in bench.refused(reference).message
