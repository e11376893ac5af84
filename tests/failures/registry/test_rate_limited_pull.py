from __future__ import annotations

import dataclasses
import threading
import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from buildkit_tasks.oci.registry import http
from tests.support.registry.fake import bearer, token, too_many_requests
from tests.support.registry.pulling import LAYER, Pull, one_layer, pull

__all__ = ["pull"]


def test_retry_after(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", too_many_requests("7"), too_many_requests("8"))
    pull.server.answer("*/blobs/*", too_many_requests("9"))
    assert pull.read(reference) == [LAYER]
    assert pull.waits == [7, 8, 9]
    assert pull.server.connections == 1


class _RecordedEvent(threading.Event):
    def __init__(self, waits: list[float | None]) -> None:
        super().__init__()
        self._waits = waits

    def wait(self, timeout: float | None = None) -> bool:
        self._waits.append(timeout)
        return False


def test_default_wait(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []
    fake_threading = SimpleNamespace(**vars(threading) | {"Event": lambda: _RecordedEvent(waits)})
    monkeypatch.setattr(http, "threading", fake_threading)
    pull.options = dataclasses.replace(pull.options, sleep=None)
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", too_many_requests("7"))
    assert pull.read(reference) == [LAYER]
    assert waits == [7]


def test_retry_after_date(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", too_many_requests(formatdate(time.time() + 50, usegmt=True)))
    assert pull.read(reference) == [LAYER]
    assert 10 < pull.waits[0] <= 50  # what is left when the response is read


def test_too_long_retry_after(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*", too_many_requests("3600"))
    error = pull.error(reference)
    assert f"{pull.server.host} answers 429 (too many requests) and asks to wait 3600 s" in error.message
    assert error.hint == f"wait 3600 s and try again; `docker login {pull.server.host}` may raise the limit"
    assert (pull.waits, len(pull.server.received)) == ([], 1)


def test_total_wait_is_capped(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("*/manifests/v1", too_many_requests("25"))
    pull.server.answer("*/blobs/*", too_many_requests("25"), too_many_requests("25"))
    pull.error(reference)
    assert pull.waits == [25, 25]


@pytest.mark.parametrize(
    "retry_after", ["", "soon", "-5", "1e9", "9" * 5000, "Fri, 99 Foo 99999 99:99:99 GMT", "0"]
)
def test_invalid_retry_after(pull: Pull, retry_after: str) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer_always("*", too_many_requests(retry_after))
    error = pull.error(reference)
    assert "answers 429" in error.message
    assert len(error.message) < 500
    assert len(pull.server.received) in (1, 4)
    assert sum(pull.waits) <= 60


def test_busy_token_server(pull: Pull) -> None:
    reference = pull.server.add_image(one_layer())
    pull.server.answer("/v2/*", bearer(f"http://{pull.server.host}/token"))
    pull.server.answer("/token*", too_many_requests("3"), token())
    assert pull.read(reference) == [LAYER]
    assert pull.waits == [3]
