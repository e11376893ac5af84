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
from buildkit_tasks.oci.registry.connection import Adapter
from buildkit_tasks.oci.registry.errors import LATER, Interruption, busy, problem_of, reason_of, silence
from buildkit_tasks.oci.registry.tls import make_context
from buildkit_tasks.oci.registry.url_policy import Place, check_hop, is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from buildkit_tasks.oci.registry.connection import Meter
    from buildkit_tasks.oci.registry.options import Access

__all__ = ["Answer", "Transport"]

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_RETRIES = 3
_BACKOFF = 0.5  # the first retry comes at once, then 1 s, then 2 s
_SMALL = 1 << 16  # bytes of an unwanted body that are read to keep a connection
_PIECE = 1 << 20


class Answer:
    """A response whose body is still to be read."""

    def __init__(self, response: requests.Response, place: Place, idle: float) -> None:
        self.status = response.status_code
        self.place = place
        self._headers = response.headers
        self._raw: urllib3.HTTPResponse = response.raw
        # Whether its end is marked: then an early end of the connection is noticed.
        self.framed = self._raw.chunked or self._raw.length_remaining is not None
        self._idle = idle

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return self._headers.get(name, "")

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes of the body as they were sent; none at its end.

        Raises :class:`Interruption` for a connection that broke.
        """
        meter: Meter | None = getattr(getattr(self._raw, "_original_response", None), "meter", None)
        if meter is not None:
            meter.allow(size)
        try:
            return self._raw.read(size, decode_content=False)
        except ReadTimeoutError:
            raise silence(self.place, self._idle) from None
        except (HTTPError, OSError, ValueError) as error:  # http.client's for a chunk of size -2
            raise Interruption(f"{self.place.origin} broke off: {reason_of(error)}", hint=LATER) from None

    def document(self, limit: int, what: str) -> bytes:
        """The whole body; :class:`LimitExceeded` past ``limit`` bytes."""
        parts: list[bytes] = []
        size = 0
        try:
            while data := self.read(min(limit + 1 - size, _PIECE)):
                parts.append(data)
                size += len(data)
                if size > limit:
                    raise LimitExceeded(f"{what} from {self.place.origin} has more than {limit} bytes")
        finally:
            self.close()
        return b"".join(parts)

    def discard(self) -> None:
        """Be done with it, its connection kept for the next request where that is cheap."""
        length = self._raw.length_remaining  # 0 for what HEAD gets
        try:
            if length is not None and length < _SMALL:
                self.read(length + 1)
        except RegistryError:
            pass  # nobody wanted it
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection unless the body was read to its end; nothing more is read."""
        self._raw.close()


class Transport:
    """Connections for the registry at ``home``, and its patience. Several threads may use it at once."""

    def __init__(self, home: Place, access: Access) -> None:
        self._home = home
        self._access = access
        self._adapters: dict[str, Adapter] = {}
        self._patience = access.patience
        self._lock = threading.Lock()
        self._waiting = 0
        self._until = 0.0
        self._given_up = threading.Event()

    def close(self) -> None:
        """Close every connection."""
        for adapter in self._adapters.values():
            adapter.close()

    def abort(self) -> None:
        """Let every thread that uses it fail at once: nobody waits for the outcome any more."""
        self._given_up.set()
        with self._lock:
            adapters = list(self._adapters.values())
        for adapter in adapters:
            adapter.abort()

    def get(
        self, place: Place, headers: Mapping[str, str], authorization: str = "", *, method: str = "GET"
    ) -> Answer:
        """Ask for ``place`` by GET or HEAD, and follow its redirects.

        ``authorization`` is sent to that scheme, host and port alone, and to nobody once a redirect
        has led away.
        """
        origin = place.origin
        for _ in range(_MAX_REDIRECTS + 1):
            authorization = authorization if place.origin == origin else ""
            ask = functools.partial(self.once, method, place, headers, authorization=authorization)
            answer = self.patiently(method, place, ask)
            if answer.status not in _REDIRECTS or not answer.header("Location"):
                return answer
            place = self.led_to(answer)
        raise RegistryError(f"{origin} redirects more than {_MAX_REDIRECTS} times")

    def led_to(self, answer: Answer) -> Place:
        """Where an answer's Location leads, if the registry may lead there; the answer is done with."""
        location = answer.header("Location")
        answer.discard()
        if not location:
            raise RegistryError(f"{answer.place.origin} does not say where to go on")
        following = Place.parse(location, answer.place)
        check_hop(self._home, answer.place, following, self._access.look_up)
        return following

    def post(self, place: Place, form: Mapping[str, str]) -> Answer:
        """Send a form; a redirect is not followed."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        body = urlencode(form).encode()
        return self.patiently("POST", place, lambda: self.once("POST", place, headers, body))

    def patiently(self, method: str, place: Place, ask: Callable[[], Answer]) -> Answer:
        """Ask until there is an answer, as often and as long as that is allowed."""
        retry = urllib3.Retry(total=_RETRIES, backoff_factor=_BACKOFF)
        while True:
            asked: float | None = None
            try:
                answer = ask()
            except Interruption as error:
                problem: RegistryError = error
            else:
                if answer.status not in _TRANSIENT:
                    return answer
                asked = _retry_after(answer)
                problem = busy(answer.place, answer.status, asked)
                answer.discard()
            try:
                retry = retry.increment(method, place.origin)
            except MaxRetryError:
                raise problem from None
            self._wait(retry.get_backoff_time() if asked is None else asked, problem)

    def _wait(self, seconds: float, problem: RegistryError) -> None:
        """Wait, unless that is longer than all patience that is left: then it is told at once.

        Seconds in which another thread waits as well count once.
        """
        with self._lock:
            now = time.monotonic()
            more = seconds - max(self._until - now, 0) if self._waiting else seconds
            if more > self._patience or self._given_up.is_set():
                raise problem
            self._patience -= max(more, 0)
            self._until = max(self._until, now + seconds)
            self._waiting += 1
        try:
            (self._access.sleep or self._given_up.wait)(seconds)
        finally:
            with self._lock:
                self._waiting -= 1

    def once(
        self,
        method: str,
        place: Place,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None = None,
        *,
        authorization: str = "",
    ) -> Answer:
        """Ask once; a redirect is not followed. A ``body`` that is no bytes has a length all the same."""
        access = self._access
        sent = {"User-Agent": _user_agent(), "Accept-Encoding": "identity", **headers}
        if authorization:
            sent["Authorization"] = authorization
        try:
            request = requests.Request(method, place.url, headers=sent, data=body).prepare()
            response = self._adapter(place).send(
                request,
                stream=True,
                timeout=(access.connect, access.idle),
                proxies={} if is_loopback(place.host) else get_environ_proxies(place.url),
            )
        except (requests.RequestException, HTTPError, UnicodeError) as error:
            raise problem_of(place, error, access) from None
        return Answer(response, place, access.idle)

    def _adapter(self, place: Place) -> Adapter:
        with self._lock:
            if self._given_up.is_set():
                raise RegistryError(f"{place.origin} is no longer asked")
            if place.origin not in self._adapters:
                context = make_context(self._home, place, self._access) if place.scheme == "https" else None
                self._adapters[place.origin] = Adapter(context, self._access.idle)
            return self._adapters[place.origin]


@functools.cache
def _user_agent() -> str:
    try:
        return f"buildkit-tasks/{importlib.metadata.version('buildkit-tasks')}"
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "buildkit-tasks"


def _retry_after(answer: Answer) -> float | None:
    """Seconds that the server asks us to wait (RFC 9110, section 10.2.3: a number or a date)."""
    stated = answer.header("Retry-After")
    try:
        return urllib3.Retry().parse_retry_after(stated) if stated else None
    except (InvalidHeader, ValueError, OverflowError):
        return None
