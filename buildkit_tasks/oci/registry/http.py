"""HTTP client for registries: retries, redirects, timeouts and size limits.

Broken connections and the statuses 429 and 5xx are retried. A host that does not answer, an invalid
certificate and a denied request fail immediately.
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
_BACKOFF_FACTOR = 0.5  # retries after 0 s, 1 s and 2 s
_MAX_DISCARD_SIZE = 1 << 16  # larger unwanted bodies are not read; their connection is closed
_CHUNK_SIZE = 1 << 20


class Response:
    """A response whose body has not been read."""

    def __init__(self, response: requests.Response, url: Url, read_timeout: float) -> None:
        self.status = response.status_code
        self.url = url
        self._headers = response.headers
        self._raw: urllib3.HTTPResponse = response.raw
        # With a length or chunks, urllib3 notices that a connection ends early.
        self.is_framed = self._raw.chunked or self._raw.length_remaining is not None
        self._read_timeout = read_timeout

    def get_header(self, name: str) -> str:
        """Return the value of a header; empty if it is missing."""
        return self._headers.get(name, "")

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes of the body, without decoding; none at the end.

        Raises :class:`TransientError` if the connection broke.
        """
        meter: MeteredReader | None = getattr(getattr(self._raw, "_original_response", None), "meter", None)
        if meter is not None:
            meter.allow_body(size)
        try:
            return self._raw.read(size, decode_content=False)
        except ReadTimeoutError:
            raise timeout_error(self.url, self._read_timeout) from None
        except (
            HTTPError,
            OSError,
            ValueError,
        ) as error:  # ValueError: http.client, for a negative chunk size
            raise TransientError(
                f"the connection to {self.url.origin} broke: {describe_cause(error)}", hint=RETRY_LATER
            ) from None

    def read_document(self, limit: int, description: str) -> bytes:
        """Read the whole body. Raises :class:`LimitExceeded` past ``limit`` bytes."""
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
        """Close the response; a short body is read first, so that the connection can be reused."""
        length = self._raw.length_remaining  # 0 after HEAD
        try:
            if length is not None and length < _MAX_DISCARD_SIZE:
                self.read(length + 1)
        except RegistryError:
            pass  # the body is not needed
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection, unless the body was read to its end."""
        self._raw.close()


class HttpClient:
    """Sends requests for one registry, and to the hosts that it refers to. Thread-safe."""

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
        """Make the requests of all threads fail now; new ones fail as well."""
        self._aborted.set()
        with self._lock:
            adapters = list(self._adapters.values())
        for adapter in adapters:
            adapter.abort()

    def get(
        self, url: Url, headers: Mapping[str, str], authorization: str = "", *, method: str = "GET"
    ) -> Response:
        """Send GET or HEAD and follow redirects.

        ``authorization`` is sent to the first origin only, and no longer after a redirect to another one.
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
        """Discard a response and return its Location if :func:`check_redirect` allows it."""
        location = response.get_header("Location")
        response.discard()
        if not location:
            raise RegistryError(f"{response.url.origin} sent no Location header")
        target = Url.parse(location, response.url)
        check_redirect(self._registry_url, response.url, target, self._options.resolve)
        return target

    def post(self, url: Url, form: Mapping[str, str]) -> Response:
        """Send a form; redirects are not followed."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        return self.with_retries("POST", url, lambda: self.send("POST", url, headers, body))

    def with_retries(self, method: str, url: Url, send_request: Callable[[], Response]) -> Response:
        """Send a request again while it fails temporarily, within the limits on retries and waiting."""
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
        """Wait, or raise ``failure`` if that exceeds what is left of ``max_wait``.

        Time during which several threads wait counts once.
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
        """Send one request; redirects are not followed. An iterable ``body`` must have a length."""
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
                raise RegistryError(f"the request to {url.origin} was aborted")
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
    except importlib.metadata.PackageNotFoundError:  # not installed
        return "buildkit-tasks"


def _parse_retry_after(response: Response) -> float | None:
    """Return the seconds of a Retry-After header (RFC 9110, section 10.2.3: a number or a date)."""
    value = response.get_header("Retry-After")
    try:
        return urllib3.Retry().parse_retry_after(value) if value else None
    except (InvalidHeader, ValueError, OverflowError):
        return None
