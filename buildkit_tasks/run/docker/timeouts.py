"""Report an engine that stops answering during a run, and name what may be left in it."""

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

OWNER_LABEL = "io.buildkit-tasks.owner"  # on every container that this package creates
_REMOVAL_TIMEOUT = 1.0  # seconds


@contextlib.contextmanager
def translate_connection_errors(
    client: DockerClient, leftovers: str = "", *, platform: object = None, engine: Engine | None = None
) -> Iterator[None]:
    """Translate a lost connection or a timeout to :class:`EngineError`, which names ``leftovers``.

    An error response (``docker.errors.APIError``) is an answer and passes unchanged.
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
    """Return True if the error means that the engine sent no response, or an unreadable one."""
    from docker.errors import APIError, DockerException, StreamParseError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    error_types = (DockerException, StreamParseError, RequestException, HTTPError)
    return isinstance(error, error_types) and not isinstance(error, APIError)


def _describe_connection_error(error: Exception, timeout: float) -> str:
    from requests.exceptions import Timeout
    from urllib3.exceptions import TimeoutError as Late

    reason = f"no response for {timeout:g} s" if isinstance(error, (Timeout, Late)) else error
    return f"the engine stopped answering: {reason}"


def request_removal(client: DockerClient, kind: str, name: str, **params: bool) -> None:
    """Ask an unresponsive engine to remove something, without waiting: a paused one does it later."""
    api: Any = client.api  # only its private methods accept a timeout
    timeout = min(_REMOVAL_TIMEOUT, client.api.timeout)
    with contextlib.suppress(Exception):
        api._delete(api._url(f"/{kind}/{{0}}", name), params=params, timeout=timeout)  # noqa: SLF001


def suggest_list_command(engine: Engine | None = None) -> str:
    """Return the command that lists the containers of this package."""
    program = shlex.join(engine.tools.docker) if engine else "docker"
    host = engine.env.get("DOCKER_HOST", "") if engine else ""
    env_prefix = f"DOCKER_HOST={shlex.quote(host)} " if host else ""
    return f"{env_prefix}{program} ps -a --filter label={OWNER_LABEL}"
