from __future__ import annotations

from tests.support.oci import hello
from tests.support.registry.fake import too_many_requests
from tests.support.registry.pulling import one_layer
from tests.support.registry.pushing import Push, push

__all__ = ["push"]


def test_retry_after_at_every_step(push: Push) -> None:
    memory = one_layer()
    push.server.answer("HEAD */blobs/*", too_many_requests("1"))
    push.server.answer("POST *", too_many_requests("2"))
    push.server.answer("PUT /upload/*", too_many_requests("3"))
    push.server.answer("PUT */manifests/*", too_many_requests("4"))
    digest = push.send(memory, jobs=1)
    push.server.answer("PUT */manifests/v1", too_many_requests("5"))
    push.tag(digest, "team/app:v1")
    assert push.waits == [1, 2, 3, 4, 5]
    assert push.server.tag_digest("team/app:v1") == digest


def test_too_long_retry_after(push: Push) -> None:
    digest = push.send(hello())
    push.server.answer_always("PUT */manifests/v1", too_many_requests("3600"))
    error = push.tag_error(digest, "team/app:v1")
    assert "answers 429 (too many requests) and asks to wait 3600 s" in error.message
    assert error.hint == f"wait 3600 s and try again; `docker login {push.server.host}` may raise the limit"
    assert (push.waits, push.server.moved_tags) == ([], [])


def test_total_wait_is_capped(push: Push) -> None:
    push.server.answer_always("PUT /upload/*", too_many_requests("25"))
    memory = one_layer()
    assert "429" in push.error(memory).message
    assert sum(push.waits) <= 75  # a minute, and the simultaneous waits of two uploads
    assert push.server.requests("PUT */manifests/*") == []
