"""Check quickly whether a registry can be reached."""

from __future__ import annotations

import functools
import os
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["DOCKER_HUB", "call_with_timeout", "is_registry_reachable"]

DOCKER_HUB = "https://registry-1.docker.io"
_PROXY_VARIABLES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def is_registry_reachable(mirrors: Sequence[str] = (), *, timeout: float = 3.0) -> bool:
    """Return True if Docker Hub, or a mirror of the engine, answers within ``timeout`` seconds.

    Any HTTP response below 500 counts, 401 included. A host name that does not resolve, a refused or
    unanswered connection and a TLS error do not.
    """
    registry_urls = [mirror.rstrip("/") for mirror in mirrors] + [DOCKER_HUB]
    return any(
        call_with_timeout(
            timeout / len(registry_urls), functools.partial(_is_url_reachable, registry_url, timeout)
        )
        for registry_url in registry_urls
    )


def call_with_timeout(timeout: float, function: Callable[[], bool]) -> bool:
    """Return the result of ``function``, or False if it takes longer than ``timeout`` seconds.

    It runs in a daemon thread and is abandoned then: a name lookup cannot be interrupted.
    """
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()
    thread.join(timeout)
    return bool(results and results[0])


def _is_url_reachable(registry_url: str, timeout: float) -> bool:
    if not any(os.environ.get(name) for name in _PROXY_VARIABLES) and not _can_connect(registry_url, timeout):
        return False
    # These imports take 50 ms, which an offline build does not need.
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(f"{registry_url}/v2/", timeout=timeout):  # noqa: S310 - Docker Hub or a mirror of the engine
            return True
    except urllib.error.HTTPError as error:
        error.close()  # it is the response, too
        return error.code < 500  # noqa: PLR2004 - a registry that answers 5xx cannot be used
    except (OSError, ValueError):
        return False


def _can_connect(registry_url: str, timeout: float) -> bool:
    try:
        url = urlsplit(registry_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname or "", port), timeout=timeout).close()
    except (OSError, ValueError):  # the mirror may not be a valid URL
        return False
    return True
