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

__all__ = ["LABEL", "answering", "ask_to_remove", "how_to_list", "is_silence"]

LABEL = "io.buildkit-tasks.owner"  # every container of ours has it
_LAST_WORD_SECONDS = 1.0


@contextlib.contextmanager
def answering(
    client: DockerClient, left: str = "", *, platform: object = None, engine: Engine | None = None
) -> Iterator[None]:
    """Turn silence into :class:`EngineError`, which names in ``left`` what may be left.

    An answer that says no (``docker.errors.APIError``) is one: it passes.
    """
    try:
        yield
    except Exception as error:
        if not is_silence(error):
            raise
        message = _silence(error, client.api.timeout) + (f"; {left} may be left" if left else "")
        raise EngineError(message, platform=platform, hint=how_to_list(engine)) from error


def is_silence(error: BaseException | None) -> bool:
    """Whether the SDK and its libraries say so that no answer came, or none that makes sense."""
    from docker.errors import APIError, DockerException, StreamParseError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    kinds = (DockerException, StreamParseError, RequestException, HTTPError)
    return isinstance(error, kinds) and not isinstance(error, APIError)


def _silence(error: Exception, seconds: float) -> str:
    from requests.exceptions import Timeout
    from urllib3.exceptions import TimeoutError as Late

    said = f"it said nothing for {seconds:g} s" if isinstance(error, (Timeout, Late)) else error
    return f"the engine stopped answering: {said}"


def ask_to_remove(client: DockerClient, kind: str, name: str, **params: bool) -> None:
    """Ask a silent engine to remove something, without waiting: one that only slept will do it."""
    api: Any = client.api  # the SDK's own methods have no time-out: its helpers, one floor down
    seconds = min(_LAST_WORD_SECONDS, client.api.timeout)
    with contextlib.suppress(Exception):
        api._delete(api._url(f"/{kind}/{{0}}", name), params=params, timeout=seconds)  # noqa: SLF001


def how_to_list(engine: Engine | None = None) -> str:
    """The command that lists the containers that may be left."""
    program = shlex.join(engine.tools.docker) if engine else "docker"
    host = engine.env.get("DOCKER_HOST", "") if engine else ""
    where = f"DOCKER_HOST={shlex.quote(host)} " if host else ""
    return f"{where}{program} ps -a --filter label={LABEL} lists what may be left"
