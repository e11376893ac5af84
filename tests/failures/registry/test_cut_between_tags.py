from __future__ import annotations

import pytest

from tests.failures.pushing import Push, push
from tests.support.oci import hello
from tests.support.registry.hostile import Reply

__all__ = ["push"]

TAGS = ("team/app:a", "team/app:b", "team/app:c")


@pytest.mark.parametrize(
    "reply",
    [Reply(status=403), Reply(status=400, body=b'{"errors":[{"code":"TAG_INVALID"}]}'), Reply(status=405)],
)
def test_rejected_tag(push: Push, reply: Reply) -> None:
    digest = push.send(hello())
    push.server.always("PUT */manifests/b", reply)
    found = push.unnamed(digest, *TAGS)
    host = push.server.host
    assert f"; moved: {host}/team/app:a; not moved: {host}/team/app:b, {host}/team/app:c" in found.message
    assert found.exit_code == 4
    assert push.server.moved == ["team/app:a"]


def test_connection_lost_between_tags(push: Push) -> None:
    digest = push.send(hello())
    push.server.always("PUT */manifests/b", Reply(reset=True))
    found = push.unnamed(digest, *TAGS)
    host = push.server.host
    assert (
        f"moved: {host}/team/app:a; not known whether moved: {host}/team/app:b; "
        f"not moved: {host}/team/app:c" in found.message
    )
    assert found.hint


def test_denied_repository_moves_no_tag(push: Push) -> None:
    digest = push.send(hello())
    push.server.always("POST /v2/other/*", Reply(status=403))
    found = push.unnamed(digest, "team/app:a", "other/app:b")
    assert push.server.moved == []
    assert f"not moved: {push.server.host}/team/app:a" in found.message
    assert "; moved:" not in found.message
