from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.oci import hello
from tests.support.registry.fake import Reply
from tests.support.registry.pushing import Push, push

__all__ = ["push"]


@pytest.mark.parametrize("step", ["POST *", "PUT /upload/*", "PUT */manifests/*"])
def test_registry_error_with_empty_body(push: Push, step: str) -> None:
    push.server.answer_always(step, Reply(status=422))
    error = push.error(hello())
    assert "answers 422 for" in error.message
    assert push.server.moved_tags == []


def test_credential_helper_without_output(
    push: Push, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "docker-credential-mute"
    helper.write_text("#!/bin/sh\nexit 7\n", encoding="utf-8")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "config.json").write_text(json.dumps({"credsStore": "mute"}), encoding="utf-8")
    push.server.answer_always("POST *", Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'}))
    error = push.error(hello())
    assert "docker-credential-mute" in error.message
    assert "it exited with status 7" in error.message
