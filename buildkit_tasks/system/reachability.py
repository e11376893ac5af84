"""The seam to the network's one question: whether the registry answers, soon enough to be used."""

from __future__ import annotations

import functools
import os
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DOCKER_HUB", "registry_answers", "within"]

DOCKER_HUB = "https://registry-1.docker.io"
_PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def registry_answers(mirrors: Sequence[str] = (), *, seconds: float = 3.0) -> bool:
    """Whether Docker Hub, or a mirror that the engine uses for it, answers within ``seconds``.

    Any HTTP answer of the registry API counts (it says 401 to a stranger); a name that does not
    resolve, a refused or silent connection and a TLS failure do not.
    """
    bases = [mirror.rstrip("/") for mirror in mirrors] + [DOCKER_HUB]
    return any(within(seconds / len(bases), functools.partial(_answers, base, seconds)) for base in bases)


def within(seconds: float, question: Callable[[], bool]) -> bool:
    """The answer to a question, or False when it is not there in time.

    The question is asked in a thread that nobody waits for: a name look-up cannot be interrupted.
    """
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(question()), daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])


def _answers(base: str, seconds: float) -> bool:
    if not any(os.environ.get(name) for name in _PROXIES) and not _connects(base, seconds):
        return False
    # Only now: these take 50 ms to import, which an offline build need not pay.
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{base}/v2/", timeout=seconds):  # noqa: S310 - our own https URL or the engine's mirror
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # noqa: PLR2004 - a 5xx registry is no use
    except (OSError, ValueError):
        return False


def _connects(base: str, seconds: float) -> bool:
    try:
        parts = urlsplit(base)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=seconds).close()
    except (OSError, ValueError):  # a mirror may be written as anything
        return False
    return True
