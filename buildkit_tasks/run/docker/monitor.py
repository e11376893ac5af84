"""Follow a container while it runs: its output as it comes, its deadline, and the caps that it meets."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker.api import APIClient

__all__ = ["OUTPUT_CAP", "PROCESSES_CAP", "Followed", "Output", "attached", "follow"]

OUTPUT_CAP = 1 << 20  # bytes of each stream
PROCESSES_CAP = 256
_TICK = 0.05  # seconds: a fork bomb needs longer than this for its 256 processes
_ASK_SECONDS = 1.0  # between looks at a container for which the engine has to be asked
_CHUNK = 1 << 16
_FRAME = 8  # stream, three zero bytes, length: "Stream format" at the engine API's attach
_STDOUT, _STDERR = 1, 2
_NAMES = {_STDOUT: "standard output", _STDERR: "standard error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What was seen of a container: its output, the cap for which it was killed, or its deadline."""

    stdout: str
    stderr: str
    seconds: float
    limit: str = ""
    timed_out: bool = False


@contextlib.contextmanager
def attached(api: APIClient, container: str) -> Iterator[socket.socket]:
    """The output of a container that is not started yet, so that nothing of it is missed."""
    sdk: Any = api  # its attach_socket waits for ever for an engine that is silent: its helpers do not
    response = sdk._post(  # noqa: SLF001 - see above
        sdk._url("/containers/{0}/attach", container),  # noqa: SLF001
        params={"stdout": 1, "stderr": 1, "stream": 1},
        headers={"Connection": "Upgrade", "Upgrade": "tcp"},
        stream=True,
    )
    with contextlib.closing(response):  # and with it the connection
        raw = sdk._get_raw_response_socket(response)  # noqa: SLF001
        yield getattr(raw, "_sock", raw)  # where the engine is local: a file of http.client's around it


def follow(api: APIClient, container: str, stream: socket.socket, timeout: float) -> Followed:
    """Follow a container that was just started to its end, or end it.

    It is killed when it has run for ``timeout`` seconds or goes over a cap. An engine that stops
    answering meanwhile raises what the SDK raises, soon after the API's own time-out.
    """
    return _Watch(api=api, container=container, stream=stream, timeout=timeout).follow()


class Output:
    """What a container writes: the frames of the engine's stream, and of each stream what the cap allows."""

    def __init__(self) -> None:
        self._streams = {_STDOUT: bytearray(), _STDERR: bytearray()}
        self._header = bytearray()
        self._stream, self._left = _STDOUT, 0
        self.flood = ""

    @property
    def texts(self) -> tuple[str, str]:
        """Standard output and standard error."""
        stdout, stderr = (bytes(data).decode(errors="replace") for data in self._streams.values())
        return stdout, stderr

    def take(self, data: bytes) -> None:
        """Add what was received; frames may be cut anywhere."""
        rest = memoryview(data)
        while rest:
            if self._left:
                part, rest = rest[: self._left], rest[self._left :]
                self._left -= len(part)
                self._keep(part)
                continue
            wanted = _FRAME - len(self._header)
            self._header += rest[:wanted]
            rest = rest[wanted:]
            if len(self._header) == _FRAME:
                self._stream = _STDOUT if self._header[0] == _STDOUT else _STDERR
                self._left = int.from_bytes(self._header[4:], "big")
                self._header.clear()

    def _keep(self, part: memoryview) -> None:
        kept = self._streams[self._stream]
        room = OUTPUT_CAP - len(kept)
        kept += part[:room]
        if len(part) > room:
            self.flood = f"more than {OUTPUT_CAP >> 20} MiB on {_NAMES[self._stream]}"


@dataclass(slots=True, kw_only=True)
class _Watch:
    api: APIClient
    container: str
    stream: socket.socket
    timeout: float
    output: Output = field(default_factory=Output)
    started: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)

    def follow(self) -> Followed:
        processes = _Processes.of(self.api, self.container)
        limit, ended = "", False
        while not (limit or ended) and self._left > 0:
            data = self._receive()
            if data:
                self.output.take(data)
                self.heard = time.monotonic()
            elif data is None:
                self._expect_an_answer()
            else:  # the end of its output, which a guest may close before its own
                ended = self._has_ended()
            limit = self.output.flood or processes.limit()
        late = not (limit or ended) and self._kill()
        if limit:
            self._kill()
        seconds = round(time.monotonic() - self.started, 3)
        stdout, stderr = self.output.texts
        return Followed(stdout=stdout, stderr=stderr, seconds=seconds, limit=limit, timed_out=late)

    @property
    def _left(self) -> float:
        return self.started + self.timeout - time.monotonic()

    def _receive(self) -> bytes | None:
        """What the guest has written; None if that is nothing for now, empty at the end."""
        self.stream.settimeout(max(0.001, min(_TICK, self._left)))
        try:
            return self.stream.recv(_CHUNK)
        except TimeoutError:
            return None
        except OSError:  # the engine ended the connection: what is asked next tells why
            return b""

    def _has_ended(self) -> bool:
        from requests.exceptions import ConnectionError as Disconnected
        from requests.exceptions import ReadTimeout

        wait: Any = self.api.wait  # its type says whole seconds
        try:
            wait(self.container, timeout=max(0.001, min(_ASK_SECONDS, self._left)))
        except (ReadTimeout, Disconnected):
            # Both mean "not yet"; that the engine still answers is for the next call to prove.
            self.api.ping()
            return False
        return True

    def _expect_an_answer(self) -> None:
        """A guest may be silent, the engine may not."""
        if time.monotonic() - self.heard > self.api.timeout / 3:
            self.api.ping()
            self.heard = time.monotonic()

    def _kill(self) -> bool:
        """End the guest, which may ignore TERM; False if it has come to its end by itself."""
        from docker.errors import APIError

        # Nobody reads its output any more: without this the engine waits for us, and we for the engine.
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        try:
            self.api.kill(self.container)
        except APIError:
            if self.api.inspect_container(self.container)["State"]["Running"]:
                raise
            return False
        self.api.wait(self.container)
        return True


@dataclass(slots=True, kw_only=True)
class _Processes:
    """Whether a container goes over its cap of processes.

    Where the engine's kernel is this one, ``events`` is the file in which it counts how often one was
    refused (pids.events: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/pids.rst). Elsewhere the
    engine can only be asked how many there are.
    """

    api: APIClient
    container: str
    events: Path | None
    asked: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, api: APIClient, container: str) -> _Processes:
        pid = api.inspect_container(container)["State"].get("Pid") or 0
        return cls(api=api, container=container, events=_events_file(pid, container))

    def limit(self) -> str:
        """The words of the cap if it was met."""
        if self.events is not None:
            return f"more than {PROCESSES_CAP} processes" if _refusals(self.events) else ""
        if time.monotonic() - self.asked < _ASK_SECONDS:
            return ""
        self.asked = time.monotonic()
        return f"all of its {PROCESSES_CAP} processes" if self._count() >= PROCESSES_CAP else ""

    def _count(self) -> int:
        found: Any = self.api.stats(self.container, stream=False, one_shot=True)
        return int((found.get("pids_stats") or {}).get("current") or 0)


def _events_file(pid: int, container: str) -> Path | None:
    """The file of that process's group, if it is the container's: another kernel has other processes."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [line.split(":", 2) for line in lines]  # cgroups(7): number, controllers, place
    places = (
        Path(f"/sys/fs/cgroup/{controllers}{place}") for _, controllers, place in rows if container in place
    )
    return next((place / "pids.events" for place in places if (place / "pids.events").exists()), None)


def _refusals(events: Path) -> int:
    """How often a process was refused (``max N``); 0 once the group is gone."""
    try:
        rows = [line.split() for line in events.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0
    return next((int(row[1]) for row in rows if row[0] == "max"), 0)
