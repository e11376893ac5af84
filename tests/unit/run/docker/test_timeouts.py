from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import APIError, StreamParseError
from requests.exceptions import ConnectionError as Disconnected
from requests.exceptions import ReadTimeout
from urllib3.exceptions import ReadTimeoutError

from buildkit_tasks.errors import EngineError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.run.docker.timeouts import translate_connection_errors

ARM64 = Platform.parse("linux/arm64")

CONNECTION_ERRORS: list[Exception] = [
    ReadTimeout("Read timed out. (read timeout=30)"),
    ReadTimeoutError(Any, "/x", "Read timed out."),  # type: ignore[arg-type]
    Disconnected("Connection aborted."),
    StreamParseError("no JSON"),
]


@pytest.mark.parametrize("error", CONNECTION_ERRORS)
def test_connection_errors(error: Exception) -> None:
    client: Any = SimpleNamespace(api=SimpleNamespace(timeout=30))
    with (
        pytest.raises(EngineError) as excinfo,
        translate_connection_errors(client, "the container x", platform=ARM64),
    ):
        raise error
    reason = "no response for 30 s" if "timed out" in str(error) else str(error)
    assert excinfo.value.message == f"the engine stopped answering: {reason}; the container x may be left"
    assert excinfo.value.platform is ARM64
    assert excinfo.value.hint == "docker ps -a --filter label=io.buildkit-tasks.owner"


@pytest.mark.parametrize("error", [APIError("no"), KeyError("x"), EngineError("other")])
def test_other_errors_pass(error: Exception) -> None:
    client: Any = SimpleNamespace(api=SimpleNamespace(timeout=30))
    with pytest.raises(type(error)) as excinfo, translate_connection_errors(client):
        raise error
    assert excinfo.value is error
