from __future__ import annotations

import pytest

from tests.support.oci import hello
from tests.support.registry.fake import Reply
from tests.support.registry.pushing import Push, push

__all__ = ["push"]

TAGS = ("team/app:a", "team/app:b", "team/app:c")


@pytest.mark.parametrize(
    "reply",
    [Reply(status=403), Reply(status=400, body=b'{"errors":[{"code":"TAG_INVALID"}]}'), Reply(status=405)],
)
def test_rejected_tag(push: Push, reply: Reply) -> None:
    digest = push.send(hello())
    push.server.answer_always("PUT */manifests/b", reply)
    error = push.tag_error(digest, *TAGS)
    host = push.server.host
    assert f"; moved: {host}/team/app:a; not moved: {host}/team/app:b, {host}/team/app:c" in error.message
    assert error.exit_code == 4
    assert push.server.moved_tags == ["team/app:a"]


def test_connection_lost_between_tags(push: Push) -> None:
    digest = push.send(hello())
    push.server.answer_always("PUT */manifests/b", Reply(reset=True))
    error = push.tag_error(digest, *TAGS)
    host = push.server.host
    assert (
        f"moved: {host}/team/app:a; not known whether moved: {host}/team/app:b; "
        f"not moved: {host}/team/app:c" in error.message
    )
    assert error.hint


def test_denied_repository_moves_no_tag(push: Push) -> None:
    digest = push.send(hello())
    push.server.answer_always("POST /v2/other/*", Reply(status=403))
    error = push.tag_error(digest, "team/app:a", "other/app:b")
    assert push.server.moved_tags == []
    assert f"not moved: {push.server.host}/team/app:a" in error.message
    assert "; moved:" not in error.message
