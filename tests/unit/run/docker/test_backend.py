from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from docker.errors import APIError, StreamParseError
from requests.exceptions import ConnectionError as Disconnected
from requests.exceptions import ReadTimeout
from urllib3.exceptions import ReadTimeoutError

from buildkit_tasks.errors import EngineError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.report.model import Outcome, PlatformSetup
from buildkit_tasks.run.backend import RunTask
from buildkit_tasks.run.docker import container
from buildkit_tasks.run.docker import monitor as attached
from buildkit_tasks.run.docker.container import ContainerRun, build_run_args, run_container
from buildkit_tasks.run.docker.load import LoadedImage
from buildkit_tasks.run.docker.monitor import OUTPUT_LIMIT, ContainerOutput, ContainerResult
from buildkit_tasks.run.docker.timeouts import translate_connection_errors
from buildkit_tasks.run.outcomes import Expectation, ProcessResult
from buildkit_tasks.run.qemu_env import QEMU_ENV_VARS, explain_cpu_refusal

ARM64, S390X = Platform.parse("linux/arm64"), Platform.parse("linux/s390x")


def guest(*, native: bool = False, cpu: str = "", status: int = 0) -> ContainerRun:
    setup = PlatformSetup(
        platform="linux/arm64", native=native, interpreter="/q/qemu-aarch64", version="11.1.2", runs=True
    )
    task = RunTask(platform=ARM64, expectation=Expectation(exit_code=status), timeout=7, cpu=cpu)
    return ContainerRun(task=task, image=LoadedImage(image_id="i", digest="d"), setup=setup)


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def taken(*chunks: bytes) -> ContainerOutput:
    output = ContainerOutput()
    for chunk in chunks:
        output.feed(chunk)
    return output


def test_frames_may_be_cut_anywhere() -> None:
    data = frame(1, b"one ") + frame(2, b"") + frame(2, b"two") + frame(1, b"three")
    for at in range(len(data)):
        for to in range(at, len(data)):
            assert taken(data[:at], data[at:to], data[to:]).texts == ("one three", "two")


def test_what_is_no_text_is_shown_as_such() -> None:
    assert taken(frame(1, b"a\xff\0b")).texts == ("a\ufffd\0b", "")


@pytest.mark.parametrize(("stream", "name"), [(1, "standard output"), (2, "standard error")])
def test_each_stream_may_have_a_mebibyte_and_not_a_byte_more(stream: int, name: str) -> None:
    other = frame(3 - stream, b"o" * OUTPUT_LIMIT)
    full = taken(other, frame(stream, b"x" * (OUTPUT_LIMIT - 1)), frame(stream, b"x"))
    assert full.limit_exceeded == ""
    full.feed(frame(stream, b"y"))
    assert full.limit_exceeded == f"more than 1 MiB on {name}"
    assert full.texts[stream - 1] == "x" * OUTPUT_LIMIT


def test_a_flood_is_not_kept() -> None:
    output = taken(*[frame(1, b"x" * 65536)] * 100)
    assert [len(text) for text in output.texts] == [OUTPUT_LIMIT, 0]


UNKNOWN = "qemu-aarch64: unable to find CPU model 'nosuch'\n"
PROPERTY = "qemu-aarch64: can't apply global max-arm-cpu.x=on: Property 'max-arm-cpu.x' not found\n"
Z13 = "qemu-s390x: Some features requested in the CPU model are not available: " + "feature " * 200 + "\n"
NAN = "ELF binary's NaN mode not supported by CPU\n"


def refused(
    said: str, *, cpu: str = "m", status: int = 1, stdout: str = "", emulator: str = "/q/qemu-x"
) -> str:
    ending = ProcessResult(exit_code=status, stdout=stdout, stderr=said, emulated=True, cpu=cpu)
    return explain_cpu_refusal(ending, S390X, emulator)


def test_a_model_that_qemu_does_not_have_is_named_with_how_to_list_them() -> None:
    words = "linux/s390x: QEMU has no CPU model 'nosuch'; '/q/qemu-x -cpu help' lists the models"
    assert refused(UNKNOWN, cpu="nosuch") == words
    assert "'qemu-s390x -cpu help'" in refused(UNKNOWN, emulator="")


@pytest.mark.parametrize("said", [PROPERTY, Z13, NAN, "qemu-x86_64: Property 'a.b' not found\n"])
def test_a_model_that_qemu_cannot_be_is_named_with_what_qemu_says(said: str) -> None:
    words = refused(f"qemu-x: warning: TCG doesn't support requested feature\n{said}")
    assert words.startswith("linux/s390x: QEMU does not run as CPU model 'm' (")
    assert said.strip()[:60] in words
    assert words.endswith("; '/q/qemu-x -cpu help' lists others")
    assert len(words) < 400


def test_a_guest_that_says_the_same_is_none_of_qemus_refusals() -> None:
    assert refused(UNKNOWN, cpu="") == ""
    assert refused(UNKNOWN, status=2) == ""
    assert refused(UNKNOWN, stdout="started") == ""
    assert refused("the log has qemu-x: unable to find CPU model\n") == ""


def test_a_refused_model_is_not_the_images_failure() -> None:
    ending = ProcessResult(exit_code=1, stdout="", stderr=UNKNOWN, emulated=True, cpu="nosuch")
    chosen = guest(cpu="nosuch")
    result = chosen.task.classify_result(ending, emulator=chosen.emulator)
    assert result.outcome is Outcome.NOT_REGISTERED
    assert "'/q/qemu-aarch64 -cpu help'" in result.message


def test_an_emulators_crash_is_told_with_its_version() -> None:
    said = "qemu-aarch64: QEMU internal SIGBUS {code=ADRERR, addr=0x20000}"
    ending = ProcessResult(exit_code=135, stdout="", stderr=said, emulated=True)
    result = guest().task.classify_result(ending, emulator=guest().emulator)
    assert result.outcome is Outcome.EMULATOR_CRASH
    assert result.message == f"the emulator crashed: {said} (/q/qemu-aarch64, version 11.1.2)"


class Untouchable:
    def __getattr__(self, name: str) -> NoReturn:
        raise AssertionError(f"the engine was asked for {name}")


def test_a_native_guest_cannot_be_given_a_cpu_and_is_not_run() -> None:
    client: Any = Untouchable()
    result = run_container(client, guest(native=True, cpu="qemu64"))
    assert result.outcome is Outcome.NOT_REGISTERED
    assert "--runner=sandbox" in result.message
    assert "'qemu64'" in result.message


def test_the_environment_chooses_the_cpu_and_takes_qemus_other_variables_away() -> None:
    assert container._build_environment(guest(native=True)) == []
    assert container._build_environment(guest()) == list(QEMU_ENV_VARS)
    chosen = container._build_environment(guest(cpu="cortex-a53"))
    assert chosen[0] == "QEMU_CPU=cortex-a53"
    assert sorted(name.partition("=")[0] for name in chosen) == sorted(QEMU_ENV_VARS)
    assert len(set(QEMU_ENV_VARS)) == len(QEMU_ENV_VARS)


def test_a_dry_run_shows_the_cpu() -> None:
    assert "--env=QEMU_CPU=cortex-a53" in build_run_args(ARM64, "IMAGE", ("/x", "-y"), "cortex-a53")
    plain = build_run_args(ARM64, "IMAGE", ("/x", "-y"))
    assert plain[-4:] == ["--", "IMAGE", "/x", "-y"]
    assert not any("QEMU_CPU" in word for word in plain)


def seen(stderr: str = "", **more: Any) -> ContainerResult:
    return ContainerResult(stdout="", stderr=stderr, seconds=1.0, **more)


@pytest.mark.parametrize(
    "said",
    [
        "sh: can't fork: Resource temporarily unavailable",
        "bash: fork: retry: Resource temporarily unavailable",
        "runtime: failed to create new OS thread (have 250 already; errno=11)",
    ],
)
def test_a_guest_that_was_refused_a_process_and_ended_is_limited(said: str) -> None:
    state = {"ExitCode": 2, "OOMKilled": False}
    result = container._classify_run(guest(), state, seen(f"first\n{said}\n"))
    assert (result.outcome, result.limited) == (Outcome.FAILED, True)
    assert result.message == f"the guest went over a limit: it may have 256 processes and says {said!r}"
    # One that copes with it, or fails for another reason, is not.
    assert container._classify_run(guest(status=2), state, seen(said)).ok
    assert not container._classify_run(guest(), state, seen("fork failed")).limited


def test_the_daemons_own_state_tells_of_memory_and_the_watch_of_the_deadline() -> None:
    result = container._classify_run(guest(), {"ExitCode": 0, "OOMKilled": True}, seen())
    assert (result.outcome, result.limited) == (Outcome.FAILED, True)
    late = container._classify_run(guest(), {"ExitCode": 137}, seen(timed_out=True))
    assert (late.outcome, late.message) == (Outcome.TIMEOUT, "it ran for more than 7 s and was killed")
    assert not late.limited


@dataclass
class Api:
    """An engine of another kernel: it has no group here, and can only be asked."""

    processes: int
    asked: list[str] = field(default_factory=list)

    def inspect_container(self, container: str) -> dict[str, Any]:
        return {"State": {"Pid": os.getpid()}, "Id": container}

    def stats(self, container: str, *, stream: bool, one_shot: bool) -> dict[str, Any]:
        assert (stream, one_shot) == (False, True)
        self.asked.append(container)
        return {"pids_stats": {"current": self.processes}} if self.processes else {}


@pytest.mark.parametrize(("count", "words"), [(0, ""), (255, ""), (256, "all of its 256 processes")])
def test_elsewhere_the_engine_is_asked_for_the_processes_once_a_second(count: int, words: str) -> None:
    api: Any = Api(processes=count)
    processes = attached._ProcessLimit.for_container(api, "c" * 64)
    assert processes.events_file is None  # this very process is not the container's
    assert (processes.check_limit(), api.asked) == ("", [])
    processes.last_polled -= 1.1
    assert processes.check_limit() == words
    assert (processes.check_limit(), len(api.asked)) == ("", 1)


def test_here_the_kernel_counts_the_refusals(tmp_path: Path) -> None:
    events = tmp_path / "pids.events"
    api: Any = Api(processes=999)
    processes = attached._ProcessLimit(api=api, container_id="c", events_file=events)
    assert processes.check_limit() == ""  # the group is gone
    events.write_text("max 0\n")
    assert processes.check_limit() == ""
    events.write_text("max 3\n")
    assert processes.check_limit() == "more than 256 processes"
    assert api.asked == []


def test_a_process_that_is_gone_has_no_group() -> None:
    assert attached._find_events_file(0, "c" * 64) is None


SILENCES: list[Exception] = [
    ReadTimeout("Read timed out. (read timeout=30)"),
    ReadTimeoutError(Any, "/x", "Read timed out."),  # type: ignore[arg-type]
    Disconnected("Connection aborted."),
    StreamParseError("no JSON"),
]


@pytest.mark.parametrize("error", SILENCES)
def test_every_way_to_say_nothing_is_an_engine_error(error: Exception) -> None:
    client: Any = SimpleNamespace(api=SimpleNamespace(timeout=30))
    with (
        pytest.raises(EngineError) as caught,
        translate_connection_errors(client, "the container x", platform=ARM64),
    ):
        raise error
    words = "no response for 30 s" if "timed out" in str(error) else str(error)
    assert caught.value.message == f"the engine stopped answering: {words}; the container x may be left"
    assert caught.value.platform is ARM64
    assert "docker ps -a --filter label=io.buildkit-tasks.owner" in (caught.value.hint or "")


@pytest.mark.parametrize("error", [APIError("no"), KeyError("x"), EngineError("other")])
def test_whatever_else_goes_wrong_is_not_taken_for_silence(error: Exception) -> None:
    client: Any = SimpleNamespace(api=SimpleNamespace(timeout=30))
    with pytest.raises(type(error)) as caught, translate_connection_errors(client):
        raise error
    assert caught.value is error
