from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

import pytest

from buildkit_tasks.oci.registry import connection as wire
from buildkit_tasks.oci.registry.options import RegistryOptions
from tests.failures.pulling import LAYER, Bench, one_layer
from tests.failures.pulling import bench as _bench
from tests.support.oci import hello
from tests.support.registry.hostile import Reply, bearer, black_hole

__all__ = ["_bench"]


@pytest.fixture
def bench(_bench: Bench) -> Iterator[Bench]:
    """Limits of half a second; every test has to end in three."""
    _bench.access = dataclasses.replace(_bench.access, connect_timeout=0.5, read_timeout=0.5)
    started = time.monotonic()
    yield _bench
    assert time.monotonic() - started < 3


def test_default_timeouts() -> None:
    assert (
        RegistryOptions().connect_timeout,
        RegistryOptions().read_timeout,
        RegistryOptions().max_wait,
    ) == (10, 60, 60)


def test_connect_timeout(bench: Bench) -> None:
    with black_hole() as host:
        found = bench.refused(f"{host}/team/image")
    assert found.message == f"http://{host} does not answer: no connection within 0.5 s"
    assert found.hint
    assert bench.waits == []


def test_silent_server(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*", Reply(silent=True))
    found = bench.refused(reference)
    assert "does not answer: no or almost no data within 0.5 s" in found.message
    assert bench.server.host in found.message
    assert len(bench.server.asked) == 1


def test_silence_within_manifest(bench: Bench) -> None:
    memory = one_layer()
    reference = bench.server.hold(memory)
    body = memory.blobs[str(memory.root_descriptor().digest)]
    headers = {"Content-Type": memory.root_descriptor().media_type}
    bench.server.always("*/manifests/v1", Reply(headers=headers, body=body, cut=20, silent=True))
    assert "does not answer" in bench.refused(reference).message


def test_silence_within_blob(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*/blobs/*", Reply(body=LAYER, cut=300_000, silent=True))
    assert "does not answer" in bench.refused(reference).message


def test_silent_token_server(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("/v2/*", bearer(f"http://{bench.server.host}/token"))
    bench.server.always("/token*", Reply(silent=True))
    assert "does not answer" in bench.refused(reference).message


def test_silent_redirect_target(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    with black_hole() as host:
        bench.server.always(
            "*/blobs/*", Reply(status=307, headers={"Location": f"http://{host}/blob?sig=s3cret"})
        )
        found = bench.refused(reference)
    assert host in found.message
    assert "s3cret" not in str(found)


@pytest.mark.parametrize(("head", "body"), [(0.05, 0.0), (0.0, 0.05)])
def test_slow_trickle(bench: Bench, head: float, body: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        wire, "MIN_BYTES_PER_SECOND", 1000
    )  # no faster than a test's limits of half a second need
    reference = bench.server.hold(one_layer())
    reply = Reply(headers={"X": "x" * 1000}, body=LAYER, drip_headers=head, drip=body)
    bench.server.always("*/blobs/*", reply)
    assert "almost no data" in bench.refused(reference).message


def test_endless_trailers(bench: Bench) -> None:
    memory = hello(["linux/amd64"])
    reference = bench.server.hold(memory)
    layer = next(data for data in memory.blobs.values() if data.startswith(b"\x1f\x8b"))
    chunks = b"%x\r\n%s\r\n0\r\n" % (len(layer), layer) + b"X: y\r\n" * (2 << 20)
    bench.server.always("*/blobs/*", Reply(headers={"Transfer-Encoding": "chunked"}, body=chunks))
    assert "broke" in bench.refused(reference).message
