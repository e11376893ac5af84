from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from buildkit_tasks.errors import RegistryError
from buildkit_tasks.oci.copy.push import copy_image
from buildkit_tasks.oci.model import Digest
from buildkit_tasks.oci.reference import Reference
from tests.support.oci import LAYER_GZIP, MemoryImage, hello, platform_json, put_manifest
from tests.support.registry.fake import Reply, black_hole, record_socket_timeouts
from tests.support.registry.pulling import one_layer
from tests.support.registry.pushing import Push
from tests.support.registry.pushing import push as _push

__all__ = ["_push"]

LARGE = bytes(64 << 20)  # more than fits into socket buffers


@pytest.fixture
def push(_push: Push) -> Iterator[Push]:
    """Timeouts of half a second; no test waits longer than the server is silent."""
    _push.options = dataclasses.replace(_push.options, connect_timeout=0.5, read_timeout=0.5)
    yield _push
    assert not _push.server.has_closed_silent


def large_image() -> MemoryImage:
    memory = MemoryImage()
    entry = put_manifest(memory, platform_json("linux/amd64"), [memory.put(LARGE, LAYER_GZIP)])
    return memory.set_index([{**entry, "platform": platform_json("linux/amd64")}])


def test_connect_timeout(push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = record_socket_timeouts(monkeypatch)
    with black_hole() as host, pytest.raises(RegistryError) as caught:
        copy_image(hello(), Reference.parse(f"{host}/team/app"), registry_options=push.options)
    assert caught.value.message == f"http://{host} does not answer: no connection within 0.5 s"
    assert (caught.value.exit_code, push.waits, timeouts) == (4, [], [0.5])


@pytest.mark.parametrize(
    "step", ["/v2/", "HEAD */blobs/*", "POST *", "PUT /upload/*", "HEAD */manifests/*", "PUT */manifests/*"]
)
def test_silent_server(push: Push, step: str) -> None:
    push.server.answer_always(step, Reply(silent=True))
    error = push.error(one_layer())
    assert "does not answer: no or almost no data within 0.5 s" in error.message
    assert push.server.host in error.message


def test_server_stops_reading(push: Push) -> None:
    push.server.answer_always(f"PUT /upload/*{Digest.from_bytes(LARGE).hex}", Reply(silent=True, unread=1000))
    assert "does not answer" in push.error(large_image()).message
    assert push.waits == []


def test_slow_reader_is_allowed(push: Push) -> None:
    push.options = dataclasses.replace(push.options, connect_timeout=0.2, read_timeout=30.0)
    push.server.read_delay = 0.5
    push.send(large_image())
    assert push.server.repository("team/app").content["manifests"]


def test_silence_after_tag(push: Push) -> None:
    digest = push.send(hello())
    push.server.answer_always("PUT */manifests/v1", Reply(silent=True))
    error = push.tag_error(digest, "team/app:v1", "team/app:v2")
    host = push.server.host
    assert f"not known whether moved: {host}/team/app:v1; not moved: {host}/team/app:v2" in error.message
