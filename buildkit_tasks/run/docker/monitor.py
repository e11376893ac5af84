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

__all__ = ["OUTPUT_LIMIT", "PIDS_LIMIT", "ContainerOutput", "ContainerResult", "attach_output", "monitor"]

OUTPUT_LIMIT = 1 << 20  # bytes of each stream
PIDS_LIMIT = 256
_POLL_SECONDS = 0.05  # seconds: a fork bomb needs longer than this for its 256 processes
_ENGINE_POLL_SECONDS = 1.0  # between looks at a container for which the engine has to be asked
_CHUNK_SIZE = 1 << 16
_FRAME_HEADER_SIZE = 8  # stream, three zero bytes, length: "Stream format" at the engine API's attach
_STDOUT, _STDERR = 1, 2
_STREAM_NAMES = {_STDOUT: "standard output", _STDERR: "standard error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerResult:
    """What was seen of a container: its output, the cap for which it was killed, or its deadline."""

    stdout: str
    stderr: str
    seconds: float
    limit_exceeded: str = ""
    timed_out: bool = False


@contextlib.contextmanager
def attach_output(api: APIClient, container_id: str) -> Iterator[socket.socket]:
    """The output of a container that is not started yet, so that nothing of it is missed."""
    sdk: Any = api  # its attach_socket waits for ever for an engine that is silent: its helpers do not
    response = sdk._post(  # noqa: SLF001 - see above
        sdk._url("/containers/{0}/attach", container_id),  # noqa: SLF001
        params={"stdout": 1, "stderr": 1, "stream": 1},
        headers={"Connection": "Upgrade", "Upgrade": "tcp"},
        stream=True,
    )
    with contextlib.closing(response):  # and with it the connection
        raw_socket = sdk._get_raw_response_socket(response)  # noqa: SLF001
        yield getattr(
            raw_socket, "_sock", raw_socket
        )  # where the engine is local: a file of http.client's around it


def monitor(api: APIClient, container_id: str, stream: socket.socket, timeout: float) -> ContainerResult:
    """Follow a container that was just started to its end, or end it.

    It is killed when it has run for ``timeout`` seconds or goes over a cap. An engine that stops
    answering meanwhile raises what the SDK raises, soon after the API's own time-out.
    """
    return _ContainerMonitor(api=api, container_id=container_id, stream=stream, timeout=timeout).run()


class ContainerOutput:
    """What a container writes: the frames of the engine's stream, and of each stream what the cap allows."""

    def __init__(self) -> None:
        self._streams = {_STDOUT: bytearray(), _STDERR: bytearray()}
        self._header = bytearray()
        self._stream, self._frame_bytes_left = _STDOUT, 0
        self.limit_exceeded = ""

    @property
    def texts(self) -> tuple[str, str]:
        """Standard output and standard error."""
        stdout, stderr = (bytes(data).decode(errors="replace") for data in self._streams.values())
        return stdout, stderr

    def feed(self, data: bytes) -> None:
        """Add what was received; frames may be cut anywhere."""
        remaining = memoryview(data)
        while remaining:
            if self._frame_bytes_left:
                payload, remaining = remaining[: self._frame_bytes_left], remaining[self._frame_bytes_left :]
                self._frame_bytes_left -= len(payload)
                self._append_payload(payload)
                continue
            missing = _FRAME_HEADER_SIZE - len(self._header)
            self._header += remaining[:missing]
            remaining = remaining[missing:]
            if len(self._header) == _FRAME_HEADER_SIZE:
                self._stream = _STDOUT if self._header[0] == _STDOUT else _STDERR
                self._frame_bytes_left = int.from_bytes(self._header[4:], "big")
                self._header.clear()

    def _append_payload(self, payload: memoryview) -> None:
        buffer = self._streams[self._stream]
        capacity = OUTPUT_LIMIT - len(buffer)
        buffer += payload[:capacity]
        if len(payload) > capacity:
            self.limit_exceeded = f"more than {OUTPUT_LIMIT >> 20} MiB on {_STREAM_NAMES[self._stream]}"


@dataclass(slots=True, kw_only=True)
class _ContainerMonitor:
    api: APIClient
    container_id: str
    stream: socket.socket
    timeout: float
    output: ContainerOutput = field(default_factory=ContainerOutput)
    started: float = field(default_factory=time.monotonic)
    last_activity: float = field(default_factory=time.monotonic)

    def run(self) -> ContainerResult:
        process_limit = _ProcessLimit.for_container(self.api, self.container_id)
        limit_exceeded, ended = "", False
        while not (limit_exceeded or ended) and self._seconds_left > 0:
            data = self._receive()
            if data:
                self.output.feed(data)
                self.last_activity = time.monotonic()
            elif data is None:
                self._ping_if_silent()
            else:  # the end of its output, which a guest may close before its own
                ended = self._has_ended()
            limit_exceeded = self.output.limit_exceeded or process_limit.check_limit()
        timed_out = not (limit_exceeded or ended) and self._kill()
        if limit_exceeded:
            self._kill()
        seconds = round(time.monotonic() - self.started, 3)
        stdout, stderr = self.output.texts
        return ContainerResult(
            stdout=stdout, stderr=stderr, seconds=seconds, limit_exceeded=limit_exceeded, timed_out=timed_out
        )

    @property
    def _seconds_left(self) -> float:
        return self.started + self.timeout - time.monotonic()

    def _receive(self) -> bytes | None:
        """What the guest has written; None if that is nothing for now, empty at the end."""
        self.stream.settimeout(max(0.001, min(_POLL_SECONDS, self._seconds_left)))
        try:
            return self.stream.recv(_CHUNK_SIZE)
        except TimeoutError:
            return None
        except OSError:  # the engine ended the connection: what is asked next tells why
            return b""

    def _has_ended(self) -> bool:
        from requests.exceptions import ConnectionError as Disconnected
        from requests.exceptions import ReadTimeout

        wait: Any = self.api.wait  # its type says whole seconds
        try:
            wait(self.container_id, timeout=max(0.001, min(_ENGINE_POLL_SECONDS, self._seconds_left)))
        except (ReadTimeout, Disconnected):
            # Both mean "not yet"; that the engine still answers is for the next call to prove.
            self.api.ping()
            return False
        return True

    def _ping_if_silent(self) -> None:
        """A guest may be silent, the engine may not."""
        if time.monotonic() - self.last_activity > self.api.timeout / 3:
            self.api.ping()
            self.last_activity = time.monotonic()

    def _kill(self) -> bool:
        """End the guest, which may ignore TERM; False if it has come to its end by itself."""
        from docker.errors import APIError

        # Nobody reads its output any more: without this the engine waits for us, and we for the engine.
        with contextlib.suppress(OSError):
            self.stream.shutdown(socket.SHUT_RDWR)
        try:
            self.api.kill(self.container_id)
        except APIError:
            if self.api.inspect_container(self.container_id)["State"]["Running"]:
                raise
            return False
        self.api.wait(self.container_id)
        return True


@dataclass(slots=True, kw_only=True)
class _ProcessLimit:
    """Whether a container goes over its cap of processes.

    Where the engine's kernel is this one, ``events`` is the file in which it counts how often one was
    refused (pids.events: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/pids.rst). Elsewhere the
    engine can only be asked how many there are.
    """

    api: APIClient
    container_id: str
    events_file: Path | None
    last_polled: float = field(default_factory=time.monotonic)

    @classmethod
    def for_container(cls, api: APIClient, container_id: str) -> _ProcessLimit:
        pid = api.inspect_container(container_id)["State"].get("Pid") or 0
        return cls(api=api, container_id=container_id, events_file=_find_events_file(pid, container_id))

    def check_limit(self) -> str:
        """The words of the cap if it was met."""
        if self.events_file is not None:
            return f"more than {PIDS_LIMIT} processes" if _count_refusals(self.events_file) else ""
        if time.monotonic() - self.last_polled < _ENGINE_POLL_SECONDS:
            return ""
        self.last_polled = time.monotonic()
        return f"all of its {PIDS_LIMIT} processes" if self._count_processes() >= PIDS_LIMIT else ""

    def _count_processes(self) -> int:
        stats: Any = self.api.stats(self.container_id, stream=False, one_shot=True)
        return int((stats.get("pids_stats") or {}).get("current") or 0)


def _find_events_file(pid: int, container_id: str) -> Path | None:
    """The file of that process's group, if it is the container's: another kernel has other processes."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [line.split(":", 2) for line in lines]  # cgroups(7): number, controllers, place
    directories = (
        Path(f"/sys/fs/cgroup/{controllers}{group}")
        for _, controllers, group in rows
        if container_id in group
    )
    return next(
        (directory / "pids.events" for directory in directories if (directory / "pids.events").exists()), None
    )


def _count_refusals(events_file: Path) -> int:
    """How often a process was refused (``max N``); 0 once the group is gone."""
    try:
        rows = [line.split() for line in events_file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0
    return next((int(row[1]) for row in rows if row[0] == "max"), 0)
