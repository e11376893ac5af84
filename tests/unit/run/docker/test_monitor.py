from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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
