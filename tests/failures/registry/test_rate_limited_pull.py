from __future__ import annotations

import dataclasses
import time
from email.utils import formatdate

import pytest

from tests.failures.pulling import LAYER, Bench, bench, one_layer
from tests.support.registry.hostile import Reply, bearer, token

__all__ = ["bench"]


def busy(retry_after: str = "") -> Reply:
    return Reply(status=429, headers={"Retry-After": retry_after} if retry_after else {}, body=b"slow down")


def test_retry_after(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", busy("7"), busy("8"))
    bench.server.answer("*/blobs/*", busy("9"))
    assert bench.read(reference) == [LAYER]
    assert bench.waits == [7, 8, 9]
    assert bench.server.connections == 1


def test_retry_after_really_waits(bench: Bench) -> None:
    bench.access = dataclasses.replace(bench.access, sleep=time.sleep)
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", busy("1"))
    started = time.monotonic()
    assert bench.read(reference) == [LAYER]
    assert time.monotonic() - started >= 1


def test_retry_after_date(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", busy(formatdate(time.time() + 30, usegmt=True)))
    assert bench.read(reference) == [LAYER]
    assert 25 <= bench.waits[0] <= 30


def test_too_long_retry_after(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*", busy("3600"))
    found = bench.refused(reference)
    assert f"{bench.server.host} answers 429 (too many requests) and asks to wait 3600 s" in found.message
    assert found.hint == f"wait 3600 s and try again; `docker login {bench.server.host}` may raise the limit"
    assert (bench.waits, len(bench.server.asked)) == ([], 1)


def test_total_wait_is_capped(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("*/manifests/v1", busy("25"))
    bench.server.answer("*/blobs/*", busy("25"), busy("25"))
    bench.refused(reference)
    assert bench.waits == [25, 25]


@pytest.mark.parametrize(
    "rubbish", ["", "soon", "-5", "1e9", "9" * 5000, "Fri, 99 Foo 99999 99:99:99 GMT", "0"]
)
def test_invalid_retry_after(bench: Bench, rubbish: str) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.always("*", busy(rubbish))
    found = bench.refused(reference)
    assert "answers 429" in found.message
    assert len(found.message) < 500
    assert len(bench.server.asked) in (1, 4)
    assert sum(bench.waits) <= 60


def test_busy_token_server(bench: Bench) -> None:
    reference = bench.server.hold(one_layer())
    bench.server.answer("/v2/*", bearer(f"http://{bench.server.host}/token"))
    bench.server.answer("/token*", busy("3"), token())
    assert bench.read(reference) == [LAYER]
    assert bench.waits == [3]
