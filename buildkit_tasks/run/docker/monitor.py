"""Monitor a running container: read its output, and enforce its deadline and its limits."""

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
_POLL_SECONDS = 0.05  # a fork bomb takes longer to start 256 processes
_ENGINE_POLL_SECONDS = 1.0  # between requests to the engine
_CHUNK_SIZE = 1 << 16
_FRAME_HEADER_SIZE = (
    8  # stream, three zero bytes, length: Docker Engine API, ContainerAttach, "Stream format"
)
_STDOUT, _STDERR = 1, 2
_STREAM_NAMES = {_STDOUT: "standard output", _STDERR: "standard error"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerResult:
    """A container's output, and whether it exceeded a limit (as text, or empty) or its deadline."""

    stdout: str
    stderr: str
    seconds: float
    limit_exceeded: str = ""
    timed_out: bool = False


@contextlib.contextmanager
def attach_output(api: APIClient, container_id: str) -> Iterator[socket.socket]:
    """Yield the output stream of a container, attached before it is started so that no output is missed."""
    sdk: Any = api  # its attach_socket has no timeout: an unresponsive engine would block it for ever
    response = sdk._post(  # noqa: SLF001 - see above
        sdk._url("/containers/{0}/attach", container_id),  # noqa: SLF001
        params={"stdout": 1, "stderr": 1, "stream": 1},
        headers={"Connection": "Upgrade", "Upgrade": "tcp"},
        stream=True,
    )
    with contextlib.closing(response):  # closes the connection as well
        raw_socket = sdk._get_raw_response_socket(response)  # noqa: SLF001
        # For a local engine this is a file object of http.client around the socket.
        yield getattr(raw_socket, "_sock", raw_socket)


def monitor(api: APIClient, container_id: str, stream: socket.socket, timeout: float) -> ContainerResult:
    """Wait for a container that was just started; kill it after ``timeout`` seconds or over a limit.

    If the engine stops answering, the SDK's exception is raised soon after the client's own timeout.
    """
    return _ContainerMonitor(api=api, container_id=container_id, stream=stream, timeout=timeout).run()


class ContainerOutput:
    """Decodes the frames of the attached stream; keeps at most ``OUTPUT_LIMIT`` bytes per stream."""

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
        """Add received data; a frame may be split anywhere."""
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
            else:  # end of output, which a guest may close before it ends
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
        """Return what the guest has written; None if there is nothing yet, empty at the end."""
        self.stream.settimeout(max(0.001, min(_POLL_SECONDS, self._seconds_left)))
        try:
            return self.stream.recv(_CHUNK_SIZE)
        except TimeoutError:
            return None
        except OSError:  # the engine closed the connection: the next request finds out why
            return b""

    def _has_ended(self) -> bool:
        from requests.exceptions import ConnectionError as Disconnected
        from requests.exceptions import ReadTimeout

        wait: Any = self.api.wait  # typed for whole seconds only
        try:
            wait(self.container_id, timeout=max(0.001, min(_ENGINE_POLL_SECONDS, self._seconds_left)))
        except (ReadTimeout, Disconnected):
            # Both mean "not yet"; ping() raises if the engine does not answer at all.
            self.api.ping()
            return False
        return True

    def _ping_if_silent(self) -> None:
        """Check that the engine still answers when the guest has printed nothing for a while."""
        if time.monotonic() - self.last_activity > self.api.timeout / 3:
            self.api.ping()
            self.last_activity = time.monotonic()

    def _kill(self) -> bool:
        """Kill the guest with SIGKILL. Return False if it has ended by itself."""
        from docker.errors import APIError

        # Nothing reads the output any more; without this the engine would wait for us while we wait for it.
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
    """Detects that a container has reached its process limit.

    If the engine runs on this kernel, ``events_file`` counts the forks that were refused (pids.events:
    Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/pids.rst). Otherwise the engine is asked for the
    number of processes.
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
        """Return the limit as text if it was reached, else an empty string."""
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
    """Return pids.events of a process's cgroup; None if that is not the container's (of another kernel)."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    rows = [line.split(":", 2) for line in lines]  # cgroups(7): hierarchy, controllers, path
    directories = (
        Path(f"/sys/fs/cgroup/{controllers}{group}")
        for _, controllers, group in rows
        if container_id in group
    )
    return next(
        (directory / "pids.events" for directory in directories if (directory / "pids.events").exists()), None
    )


def _count_refusals(events_file: Path) -> int:
    """Return how many forks were refused (``max N``); 0 if the cgroup no longer exists."""
    try:
        rows = [line.split() for line in events_file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return 0
    return next((int(row[1]) for row in rows if row[0] == "max"), 0)
