from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError
from requests.exceptions import ReadTimeout

from buildkit_tasks.run.docker import monitor
from buildkit_tasks.run.docker.monitor import OUTPUT_LIMIT, ContainerOutput


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def feed_output(*chunks: bytes) -> ContainerOutput:
    output = ContainerOutput()
    for chunk in chunks:
        output.feed(chunk)
    return output


def test_frames_split_anywhere() -> None:
    data = frame(1, b"one ") + frame(2, b"") + frame(2, b"two") + frame(1, b"three")
    for start in range(len(data)):
        for end in range(start, len(data)):
            assert feed_output(data[:start], data[start:end], data[end:]).texts == ("one three", "two")


def test_invalid_utf_8() -> None:
    assert feed_output(frame(1, b"a\xff\0b")).texts == ("a\ufffd\0b", "")


@pytest.mark.parametrize(("stream", "name"), [(1, "standard output"), (2, "standard error")])
def test_output_limit_per_stream(stream: int, name: str) -> None:
    other = frame(3 - stream, b"o" * OUTPUT_LIMIT)
    output = feed_output(other, frame(stream, b"x" * (OUTPUT_LIMIT - 1)), frame(stream, b"x"))
    assert output.limit_exceeded == ""
    output.feed(frame(stream, b"y"))
    assert output.limit_exceeded == f"more than 1 MiB on {name}"
    assert output.texts[stream - 1] == "x" * OUTPUT_LIMIT


def test_excess_output_is_dropped() -> None:
    output = feed_output(*[frame(1, b"x" * 65536)] * 100)
    assert [len(text) for text in output.texts] == [OUTPUT_LIMIT, 0]


@dataclass
class RemoteApi:
    """An engine on another kernel, whose cgroups are not visible here."""

    processes: int
    requests: list[str] = field(default_factory=list)

    def inspect_container(self, container: str) -> dict[str, Any]:
        return {"State": {"Pid": os.getpid()}, "Id": container}

    def stats(self, container: str, *, stream: bool, one_shot: bool) -> dict[str, Any]:
        assert (stream, one_shot) == (False, True)
        self.requests.append(container)
        return {"pids_stats": {"current": self.processes}} if self.processes else {}


@pytest.mark.parametrize(("count", "limit"), [(0, ""), (255, ""), (256, "all of its 256 processes")])
def test_process_limit_of_remote_engine(count: int, limit: str) -> None:
    """The engine is queried once a second."""
    api: Any = RemoteApi(processes=count)
    process_limit = monitor._ProcessLimit.for_container(api, "c" * 64)
    assert process_limit.events_file is None  # this process is not in the container's cgroup
    assert (process_limit.check_limit(), api.requests) == ("", [])
    process_limit.last_polled -= 1.1
    assert process_limit.check_limit() == limit
    assert (process_limit.check_limit(), len(api.requests)) == ("", 1)


def test_process_limit_of_local_engine(tmp_path: Path) -> None:
    events = tmp_path / "pids.events"
    api: Any = RemoteApi(processes=999)
    process_limit = monitor._ProcessLimit(api=api, container_id="c", events_file=events)
    assert process_limit.check_limit() == ""  # the cgroup does not exist any more
    events.write_text("max 0\n")
    assert process_limit.check_limit() == ""
    events.write_text("max 3\n")
    assert process_limit.check_limit() == "more than 256 processes"
    assert api.requests == []


def test_events_file_of_ended_process() -> None:
    assert monitor._find_events_file(0, "c" * 64) is None


def test_events_file_of_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "Path", lambda path: tmp_path / path.lstrip("/"))
    for group in ("system/ours", "docker/abc"):
        (tmp_path / "sys/fs/cgroup" / group).mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup" / group / "pids.events").touch()
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/cgroup").write_text("1::/system/ours\n0::/docker/abc\n")
    assert monitor._find_events_file(7, "abc") == tmp_path / "sys/fs/cgroup/docker/abc/pids.events"
    assert monitor._find_events_file(7, "def") is None


@dataclass
class FakeEngine:
    """An engine with a guest that runs until it is killed, unless it ``has_ended`` already."""

    answers: bool = True
    has_ended: bool = False
    timeout: float = 0.03
    killed: list[str] = field(default_factory=list)

    def inspect_container(self, _: str) -> dict[str, Any]:
        return {"State": {"Running": not self.has_ended}}

    def ping(self) -> None:
        if not self.answers:
            raise ReadTimeout("the engine does not answer")

    def kill(self, container: str) -> None:
        self.killed.append(container)
        if self.has_ended:
            raise APIError("it is not running")

    def wait(self, _: str) -> None:
        """Return at once: the guest was killed."""


def run_monitor(engine: FakeEngine, output: bytes = b"", timeout: float = 10.0) -> monitor.ContainerResult:
    api: Any = engine
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(output)
        return monitor.monitor(api, "c", ours, timeout)


def test_guest_over_output_limit_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "OUTPUT_LIMIT", 3)
    engine = FakeEngine()
    result = run_monitor(engine, frame(1, b"1234"))
    assert (result.stdout, bool(result.limit_exceeded), result.timed_out) == ("123", True, False)
    assert engine.killed == ["c"]


def test_guest_is_killed_after_timeout() -> None:
    engine = FakeEngine()
    assert run_monitor(engine, timeout=0.1).timed_out
    assert engine.killed == ["c"]


def test_guest_that_ends_with_the_timeout() -> None:
    assert not run_monitor(FakeEngine(has_ended=True), timeout=0).timed_out


def test_engine_that_stops_answering_a_silent_guest() -> None:
    with pytest.raises(ReadTimeout):
        run_monitor(FakeEngine(answers=False))
