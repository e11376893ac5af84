from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from buildkit_tasks.oci.registry import connection
from buildkit_tasks.oci.registry.options import RegistryOptions
from tests.support.oci import hello
from tests.support.registry.fake import Reply, bearer, black_hole, record_socket_timeouts
from tests.support.registry.pulling import LAYER, Pull, one_layer
from tests.support.registry.pulling import pull as _pull

__all__ = ["_pull"]


@pytest.fixture
def pull(_pull: Pull) -> Iterator[Pull]:
    """Timeouts of half a second; no test waits longer than the server is silent."""
    _pull.options = dataclasses.replace(_pull.options, connect_timeout=0.5, read_timeout=0.5)
    yield _pull
    assert not _pull.server.has_closed_silent


def test_default_timeouts() -> None:
    assert (
        RegistryOptions().connect_timeout,
        RegistryOptions().read_timeout,
        RegistryOptions().max_wait,
    ) == (10, 60, 60)


def test_connect_timeout(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = record_socket_timeouts(monkeypatch)
    with black_hole() as host:
        error = pull.error(f"{host}/team/image")
    assert error.message == f"http://{host} does not answer: no connection within 0.5 s"
    assert error.hint
    assert (pull.waits, timeouts) == ([], [0.5])


def test_silent_server(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*", Reply(silent=True))
    error = pull.error(reference)
    assert "does not answer: no or almost no data within 0.5 s" in error.message
    assert pull.server.host in error.message
    assert len(pull.server.received) == 1


def test_silence_within_manifest(pull: Pull) -> None:
    memory = one_layer()
    reference = pull.server.add_image(memory)
    body = memory.blobs[str(memory.root_descriptor().digest)]
    headers = {"Content-Type": memory.root_descriptor().media_type}
    pull.server.answer_always("*/manifests/v1", Reply(headers=headers, body=body, cut=20, silent=True))
    assert "does not answer" in pull.error(reference).message


def test_silence_within_blob(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*/blobs/*", Reply(body=LAYER, cut=300_000, silent=True))
    assert "does not answer" in pull.error(reference).message


def test_silent_token_server(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("/v2/*", bearer(f"http://{pull.server.host}/token"))
    pull.server.answer_always("/token*", Reply(silent=True))
    assert "does not answer" in pull.error(reference).message


def test_silent_redirect_target(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = pull.server.add_image(one_layer())
    timeouts = record_socket_timeouts(monkeypatch)
    with black_hole() as host:
        pull.server.answer_always(
            "*/blobs/*", Reply(status=307, headers={"Location": f"http://{host}/blob?sig=s3cret"})
        )
        error = pull.error(reference)
    assert f"{host} does not answer: no connection within 0.5 s" in error.message
    assert set(timeouts) == {0.5}
    assert "s3cret" not in str(error)


@pytest.mark.parametrize(("head", "body"), [(0.05, 0.0), (0.0, 0.05)])
def test_slow_trickle(pull: Pull, head: float, body: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        connection, "MIN_BYTES_PER_SECOND", 1000
    )  # reached within the timeout of half a second
    reference = pull.server.add_image(one_layer())
    reply = Reply(headers={"X": "x" * 1000}, body=LAYER, drip_headers=head, drip=body)
    pull.server.answer_always("*/blobs/*", reply)
    assert "almost no data" in pull.error(reference).message


def test_endless_trailers(pull: Pull) -> None:
    memory = hello(["linux/amd64"])
    reference = pull.server.add_image(memory)
    layer = next(data for data in memory.blobs.values() if data.startswith(b"\x1f\x8b"))
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(layer), layer) + b"X: y\r\n" * (2 << 20)
    pull.server.answer_always("*/blobs/*", Reply(headers={"Transfer-Encoding": "chunked"}, body=chunks))
    assert "broke" in pull.error(reference).message
