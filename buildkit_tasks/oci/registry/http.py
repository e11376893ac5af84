"""Requests as a registry needs them: patient, bounded, and careful about who is asked.

Retries are counted by urllib3's Retry. What may not be retried is said at once: a host that does not
answer, a certificate that does not hold, a refusal. Messages name hosts, never whole URLs: those of blob
stores are signed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import requests
import urllib3
from requests.utils import get_environ_proxies
from urllib3.exceptions import HTTPError, InvalidHeader, MaxRetryError, ReadTimeoutError

from buildkit_tasks.errors import LimitExceeded, RegistryError
from buildkit_tasks.oci.registry.connection import MeteredAdapter
from buildkit_tasks.oci.registry.errors import (
    RETRY_LATER,
    TransientError,
    busy_error,
    classify_error,
    describe_cause,
    timeout_error,
)
from buildkit_tasks.oci.registry.tls import make_ssl_context
from buildkit_tasks.oci.registry.url_policy import Url, check_redirect, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from buildkit_tasks.oci.registry.connection import MeteredReader
    from buildkit_tasks.oci.registry.options import RegistryOptions

__all__ = ["HttpClient", "Response"]

_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_RETRYABLE_STATUSES = frozenset({429, 500, 502, 503, 504})
_MAX_RETRIES = 3
_BACKOFF_FACTOR = 0.5  # the first retry comes at once, then 1 s, then 2 s
_MAX_DISCARD_SIZE = 1 << 16  # bytes of an unwanted body that are read to keep a connection
_CHUNK_SIZE = 1 << 20


class Response:
    """A response whose body is still to be read."""

    def __init__(self, response: requests.Response, url: Url, read_timeout: float) -> None:
        self.status = response.status_code
        self.url = url
        self._headers = response.headers
        self._raw: urllib3.HTTPResponse = response.raw
        # Whether its end is marked: then an early end of the connection is noticed.
        self.is_framed = self._raw.chunked or self._raw.length_remaining is not None
        self._read_timeout = read_timeout

    def get_header(self, name: str) -> str:
        """A header's value, or nothing."""
        return self._headers.get(name, "")

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the body as they were sent; none at its end.

        Raises :class:`Interruption` for a connection that broke.
        """
        meter: MeteredReader | None = getattr(getattr(self._raw, "_original_response", None), "meter", None)
        if meter is not None:
            meter.allow_body(size)
        try:
            return self._raw.read(size, decode_content=False)
        except ReadTimeoutError:
            raise timeout_error(self.url, self._read_timeout) from None
        except (HTTPError, OSError, ValueError) as error:  # http.client's for a chunk of size -2
            raise TransientError(
                f"{self.url.origin} broke off: {describe_cause(error)}", hint=RETRY_LATER
            ) from None

    def read_document(self, limit: int, description: str) -> bytes:
        """The whole body; :class:`LimitExceeded` past ``limit`` bytes."""
        chunks: list[bytes] = []
        size = 0
        try:
            while data := self.read(min(limit + 1 - size, _CHUNK_SIZE)):
                chunks.append(data)
                size += len(data)
                if size > limit:
                    raise LimitExceeded(f"{description} from {self.url.origin} has more than {limit} bytes")
        finally:
            self.close()
        return b"".join(chunks)

    def discard(self) -> None:
        """Be done with it, its connection kept for the next request where that is cheap."""
        length = self._raw.length_remaining  # 0 for what HEAD gets
        try:
            if length is not None and length < _MAX_DISCARD_SIZE:
                self.read(length + 1)
        except RegistryError:
            pass  # nobody wanted it
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection unless the body was read to its end; nothing more is read."""
        self._raw.close()


class HttpClient:
    """Connections for the registry at ``home``, and its patience. Several threads may use it at once."""

    def __init__(self, registry_url: Url, options: RegistryOptions) -> None:
        self._registry_url = registry_url
        self._options = options
        self._adapters: dict[str, MeteredAdapter] = {}
        self._wait_budget = options.max_wait
        self._lock = threading.Lock()
        self._waiters = 0
        self._wait_until = 0.0
        self._aborted = threading.Event()

    def close(self) -> None:
        """Close every connection."""
        for adapter in self._adapters.values():
            adapter.close()

    def abort(self) -> None:
        """Let every thread that uses it fail at once: nobody waits for the outcome any more."""
        self._aborted.set()
        with self._lock:
            adapters = list(self._adapters.values())
        for adapter in adapters:
            adapter.abort()

    def get(
        self, url: Url, headers: Mapping[str, str], authorization: str = "", *, method: str = "GET"
    ) -> Response:
        """Ask for ``place`` by GET or HEAD, and follow its redirects.

        ``authorization`` is sent to that scheme, host and port alone, and to nobody once a redirect
        has led away.
        """
        origin = url.origin
        for _ in range(_MAX_REDIRECTS + 1):
            authorization = authorization if url.origin == origin else ""
            send_request = functools.partial(self.send, method, url, headers, authorization=authorization)
            response = self.with_retries(method, url, send_request)
            if response.status not in _REDIRECT_STATUSES or not response.get_header("Location"):
                return response
            url = self.follow_location(response)
        raise RegistryError(f"{origin} redirects more than {_MAX_REDIRECTS} times")

    def follow_location(self, response: Response) -> Url:
        """Where an answer's Location leads, if the registry may lead there; the answer is done with."""
        location = response.get_header("Location")
        response.discard()
        if not location:
            raise RegistryError(f"{response.url.origin} does not say where to go on")
        target = Url.parse(location, response.url)
        check_redirect(self._registry_url, response.url, target, self._options.resolve)
        return target

    def post(self, url: Url, form: Mapping[str, str]) -> Response:
        """Send a form; a redirect is not followed."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        return self.with_retries("POST", url, lambda: self.send("POST", url, headers, body))

    def with_retries(self, method: str, url: Url, send_request: Callable[[], Response]) -> Response:
        """Ask until there is an answer, as often and as long as that is allowed."""
        retry = urllib3.Retry(total=_MAX_RETRIES, backoff_factor=_BACKOFF_FACTOR)
        while True:
            retry_after: float | None = None
            try:
                response = send_request()
            except TransientError as error:
                failure: RegistryError = error
            else:
                if response.status not in _RETRYABLE_STATUSES:
                    return response
                retry_after = _parse_retry_after(response)
                failure = busy_error(response.url, response.status, retry_after)
                response.discard()
            try:
                retry = retry.increment(method, url.origin)
            except MaxRetryError:
                raise failure from None
            self._wait(retry.get_backoff_time() if retry_after is None else retry_after, failure)

    def _wait(self, seconds: float, failure: RegistryError) -> None:
        """Wait, unless that is longer than all patience that is left: then it is told at once.

        Seconds in which another thread waits as well count once.
        """
        with self._lock:
            now = time.monotonic()
            added_wait = seconds - max(self._wait_until - now, 0) if self._waiters else seconds
            if added_wait > self._wait_budget or self._aborted.is_set():
                raise failure
            self._wait_budget -= max(added_wait, 0)
            self._wait_until = max(self._wait_until, now + seconds)
            self._waiters += 1
        try:
            (self._options.sleep or self._aborted.wait)(seconds)
        finally:
            with self._lock:
                self._waiters -= 1

    def send(
        self,
        method: str,
        url: Url,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        authorization: str = "",
    ) -> Response:
        """Ask once; a redirect is not followed. A ``body`` that is no bytes has a length all the same."""
        options = self._options
        all_headers = {"User-Agent": _user_agent(), "Accept-Encoding": "identity", **headers}
        if authorization:
            all_headers["Authorization"] = authorization
        try:
            request = requests.Request(method, url.text, headers=all_headers, data=body).prepare()
            response = self._get_adapter(url).send(
                request,
                stream=True,
                timeout=(options.connect_timeout, options.read_timeout),
                proxies={} if is_loopback(url.host) else get_environ_proxies(url.text),
            )
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            raise classify_error(url, error, options) from None
        return Response(response, url, options.read_timeout)

    def _get_adapter(self, url: Url) -> MeteredAdapter:
        with self._lock:
            if self._aborted.is_set():
                raise RegistryError(f"{url.origin} is no longer asked")
            if url.origin not in self._adapters:
                ssl_context = (
                    make_ssl_context(self._registry_url, url, self._options)
                    if url.scheme == "https"
                    else None
                )
                self._adapters[url.origin] = MeteredAdapter(ssl_context, self._options.read_timeout)
            return self._adapters[url.origin]


@functools.cache
def _user_agent() -> str:
    try:
        return f"buildkit-tasks/{importlib.metadata.version('buildkit-tasks')}"
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "buildkit-tasks"


def _parse_retry_after(response: Response) -> float | None:
    """Seconds that the server asks us to wait (RFC 9110, section 10.2.3: a number or a date)."""
    value = response.get_header("Retry-After")
    try:
        return urllib3.Retry().parse_retry_after(value) if value else None
    except (InvalidHeader, ValueError, OverflowError):
        return None
