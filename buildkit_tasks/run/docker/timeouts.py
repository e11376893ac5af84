"""An engine that stops answering in the middle of a run: said within its time-out, with what may be left."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient

    from buildkit_tasks.host.engine.daemon import Engine

__all__ = [
    "OWNER_LABEL",
    "is_connection_error",
    "request_removal",
    "suggest_list_command",
    "translate_connection_errors",
]

OWNER_LABEL = "io.buildkit-tasks.owner"  # every container of ours has it
_REMOVAL_TIMEOUT = 1.0


@contextlib.contextmanager
def translate_connection_errors(
    client: DockerClient, leftovers: str = "", *, platform: object = None, engine: Engine | None = None
) -> Iterator[None]:
    """Turn silence into :class:`EngineError`, which names in ``left`` what may be left.

    An answer that says no (``docker.errors.APIError``) is one: it passes.
    """
    try:
        yield
    except Exception as error:
        if not is_connection_error(error):
            raise
        message = _describe_connection_error(error, client.api.timeout) + (
            f"; {leftovers} may be left" if leftovers else ""
        )
        raise EngineError(message, platform=platform, hint=suggest_list_command(engine)) from error


def is_connection_error(error: BaseException | None) -> bool:
    """Whether the SDK and its libraries say so that no answer came, or none that makes sense."""
    from docker.errors import APIError, DockerException, StreamParseError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    error_types = (DockerException, StreamParseError, RequestException, HTTPError)
    return isinstance(error, error_types) and not isinstance(error, APIError)


def _describe_connection_error(error: Exception, timeout: float) -> str:
    from requests.exceptions import Timeout
    from urllib3.exceptions import TimeoutError as Late

    reason = f"it said nothing for {timeout:g} s" if isinstance(error, (Timeout, Late)) else error
    return f"the engine stopped answering: {reason}"


def request_removal(client: DockerClient, kind: str, name: str, **params: bool) -> None:
    """Ask a silent engine to remove something, without waiting: one that only slept will do it."""
    api: Any = client.api  # the SDK's own methods have no time-out: its helpers, one floor down
    timeout = min(_REMOVAL_TIMEOUT, client.api.timeout)
    with contextlib.suppress(Exception):
        api._delete(api._url(f"/{kind}/{{0}}", name), params=params, timeout=timeout)  # noqa: SLF001


def suggest_list_command(engine: Engine | None = None) -> str:
    """The command that lists the containers that may be left."""
    program = shlex.join(engine.tools.docker) if engine else "docker"
    host = engine.env.get("DOCKER_HOST", "") if engine else ""
    env_prefix = f"DOCKER_HOST={shlex.quote(host)} " if host else ""
    return f"{env_prefix}{program} ps -a --filter label={OWNER_LABEL} lists what may be left"
