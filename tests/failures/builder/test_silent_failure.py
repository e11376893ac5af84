from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.oci import hello
from tests.support.registry.hostile import Reply
from tests.support.registry.pushing import Push, push

__all__ = ["push"]


@pytest.mark.parametrize("step", ["POST *", "PUT /upload/*", "PUT */manifests/*"])
def test_an_error_with_an_empty_body_is_still_an_error(push: Push, step: str) -> None:
    push.server.always(step, Reply(status=422))
    found = push.error(hello())
    assert "answers 422 for" in found.message
    assert push.server.moved_tags == []


def test_a_credential_helper_that_fails_without_a_word_is_told(
    push: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-mute"
    helper.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "mute"}), encoding="utf-8")
    push.server.always("POST *", Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    found = push.error(hello())
    assert "docker-credential-mute" in found.message
    assert "it exited with status 7" in found.message
