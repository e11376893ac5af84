from __future__ import annotations

from typing import Any

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, known_platforms
from buildkit_tasks.report.model import Outcome
from buildkit_tasks.run.outcomes import Expectation, ProcessResult, classify_outcome

ARM = Platform.parse("linux/arm/v7")
AMD64 = Platform.parse("linux/amd64")
DEFAULT = Expectation()


def classify(
    code: int = 0, *, expectation: Expectation = DEFAULT, platform: Platform = ARM, **fields: Any
) -> tuple[Outcome, str]:
    return classify_outcome(process_result(code, **fields), expectation, platform)


def process_result(code: int = 0, **fields: Any) -> ProcessResult:
    """Return the result of an emulated process without output, changed by fields of ``ProcessResult``."""
    defaults: dict[str, Any] = {"exit_code": code, "stdout": "", "stderr": "", "emulated": True}
    return ProcessResult(**defaults | fields)


def test_expected_end_passes() -> None:
    assert classify() == (Outcome.PASSED, "")
    assert classify(3, expectation=Expectation(exit_code=3)) == (Outcome.PASSED, "")


def test_unexpected_status() -> None:
    assert classify(2, stderr="first\nboom\n\n") == (Outcome.FAILED, "exit status 2, expected 0: boom")
    assert classify(0, expectation=Expectation(exit_code=2)) == (Outcome.FAILED, "exit status 0, expected 2")


def test_missing_loader() -> None:
    loader = "/p cannot start: its loader /l is not in the image"
    assert classify(255, stderr="qemu: x\n", missing_loader=loader) == (
        Outcome.FAILED,
        f"exit status 255, expected 0: qemu: x: {loader}",
    )
    assert classify(127, missing_loader=loader)[1] == f"exit status 127, expected 0: {loader}"
    expected = classify(127, expectation=Expectation(exit_code=127), missing_loader=loader)
    assert expected == (Outcome.PASSED, "")


def test_unexpected_status_with_expected_output() -> None:
    expectation = Expectation(pattern="^yes$")
    assert classify(2, stdout="yes\n", expectation=expectation) == (
        Outcome.FAILED,
        "exit status 2, expected 0",
    )


def test_unexpected_output() -> None:
    outcome, message = classify(stdout="Hello [arm64]\n", expectation=Expectation(pattern=r"\[{goarch}\]"))
    assert (outcome, message) == (Outcome.FAILED, r"its output does not match '\\[arm\\]'")


def test_expected_status_needs_output() -> None:
    expectation = Expectation(pattern="^yes$", exit_code=2)
    assert classify(2, stdout="a\nyes\nb\n", expectation=expectation)[0] is Outcome.PASSED
    assert classify(2, stdout="no\n", expectation=expectation)[0] is Outcome.FAILED


def test_only_stdout_is_matched() -> None:
    assert classify(stdout="", stderr="yes", expectation=Expectation(pattern="yes"))[0] is Outcome.FAILED


@pytest.mark.parametrize(
    ("pattern", "platform", "match", "mismatch"),
    [
        (r"\[{goarch}\]", ARM, "[arm]", "[arm64]"),
        (r"^{platform}$", ARM, "linux/arm/v7", "linux/arm/v6"),
        (r"^{platform}$", AMD64, "linux/amd64", "linux/amd64x"),
        (r"^{machine}$", ARM, "armv7l", "aarch64"),
        (r"^{machine}$", ARM, "armv8l", "armv8lx"),
        (r"^{machine}$", ARM, "armv6l", "armv7lx"),
        (r"^{machine}$", AMD64, "x86_64", "i686"),
        (r"x{2,3}", AMD64, "xxx", "x"),
    ],
)
def test_placeholders(pattern: str, platform: Platform, match: str, mismatch: str) -> None:
    expectation = Expectation(pattern=pattern)

    def outcome(text: str) -> Outcome:
        return classify_outcome(
            ProcessResult(exit_code=0, stdout=text, stderr="", emulated=False), expectation, platform
        )[0]

    assert (outcome(match), outcome(mismatch)) == (Outcome.PASSED, Outcome.FAILED)


@pytest.mark.parametrize("pattern", ["(", "[{goarch}", "a{2,1}", "(?P<x>"])
def test_invalid_expression(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a valid regular expression") as excinfo:
        Expectation(pattern=pattern)
    assert pattern in excinfo.value.message


def test_out_of_memory() -> None:
    outcome, message = classify(137, out_of_memory=True)
    assert outcome is Outcome.FAILED
    assert "memory limit" in message


@pytest.mark.parametrize("code", [0, 1, 132, 137])
def test_limit_is_named(code: int) -> None:
    fields: dict[str, Any] = {
        "limit_exceeded": "more than 256 processes",
        "stderr": "QEMU internal SIGSEGV\n",
    }
    assert classify(code, **fields) == (
        Outcome.FAILED,
        "the guest went over a limit: more than 256 processes",
    )


def test_timeout_whatever_the_status() -> None:
    for code in (0, 132, 137):
        expected = (Outcome.TIMEOUT, "it ran for more than 1.5 s and was killed")
        assert classify(code, timeout_exceeded=1.5, stderr=EMULATOR_ERRORS[0]) == expected


def test_limit_takes_precedence() -> None:
    assert "256 processes" in classify(137, timeout_exceeded=2, limit_exceeded="more than 256 processes")[1]
    assert "memory limit" in classify(137, timeout_exceeded=2, out_of_memory=True)[1]


@pytest.mark.parametrize(
    ("fields", "limited"),
    [
        ({}, False),
        ({"timeout_exceeded": 1}, False),
        ({"out_of_memory": True}, True),
        ({"limit_exceeded": "x"}, True),
    ],
)
def test_is_limited(fields: dict[str, Any], limited: bool) -> None:
    assert process_result(137, **fields).is_limited is limited


@pytest.mark.parametrize("code", [1, 3, 126, 127, 255])
def test_program_prints_format_error(code: int) -> None:
    """The handlers were checked before, so only the program, or one that it starts, prints this."""
    assert classify(0, stderr="saw an exec format error, went on")[0] is Outcome.PASSED
    outcome, message = classify(code, stderr="exec /hello: Exec format error\n")
    assert outcome is Outcome.FAILED
    assert message == f"exit status {code}, expected 0: exec /hello: Exec format error"


EMULATOR_ERRORS = [
    "qemu-arm: fatal: unhandled ARM exception\n",
    "QEMU internal SIGSEGV {code=MAPERR, addr=0x20}\n",
    "**\nERROR:../accel/tcg/cpu-exec.c:928:cpu_exec_loop: code should not be reached\n",
    "qemu-s390x: ../target/s390x/tcg/translate.c:6531: Assertion `x' failed.\n",
]


@pytest.mark.parametrize("stderr", EMULATOR_ERRORS)
def test_emulator_crash(stderr: str) -> None:
    outcome, message = classify(139, stderr=stderr)
    assert outcome is Outcome.EMULATOR_CRASH
    assert message == f"the emulator crashed: {stderr.splitlines()[-1]}"


def test_guest_crash() -> None:
    stderr = "qemu: uncaught target signal 11 (Segmentation fault) - core dumped\n"
    assert classify(139, stderr=stderr)[0] is Outcome.FAILED


def test_native_crash() -> None:
    assert classify(139, stderr=EMULATOR_ERRORS[0], emulated=False)[0] is Outcome.FAILED


def test_program_prints_emulator_error() -> None:
    assert classify(0, stderr=EMULATOR_ERRORS[0])[0] is Outcome.PASSED
    assert classify(1, stderr=EMULATOR_ERRORS[0])[0] is Outcome.FAILED


def test_illegal_instruction_message() -> None:
    stderr = "qemu: uncaught target signal 4 (Illegal instruction) - core dumped\n"
    outcome, message = classify(132, stderr=stderr, cpu="arm1176", platform=Platform.parse("linux/arm/v6"))
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message == (
        "linux/arm/v6: an instruction that arm1176 does not have; the baseline of linux/arm/v6 is ARMv6: "
        "build it with GOARM=6 (Go) or -march=armv6 (C)"
    )


@pytest.mark.parametrize(
    ("fields", "cpu"),
    [({}, "the emulated CPU"), ({"cpu": "cortex-a8"}, "cortex-a8"), ({"emulated": False}, "this CPU")],
)
def test_illegal_instruction_names_cpu(fields: dict[str, Any], cpu: str) -> None:
    assert classify(132, **fields)[1].startswith(f"linux/arm/v7: an instruction that {cpu} does not have; ")


BASELINES = [
    ("linux/amd64", "x86-64 (baseline): build it with GOAMD64=v1 (Go) or -march=x86-64 (C)"),
    ("linux/amd64/v3", "x86-64-v3: build it with GOAMD64=v3 (Go) or -march=x86-64-v3 (C)"),
    ("linux/386", "x86 with SSE2: build it with GO386=sse2 (Go) or -march=pentium4 (C)"),
    ("linux/mips64le", "MIPS64 release 2: build it with -march=mips64r2 (C)"),
]


@pytest.mark.parametrize(("name", "baseline"), BASELINES)
def test_build_advice(name: str, baseline: str) -> None:
    message = classify(132, platform=Platform.parse(name))[1]
    assert (
        message
        == f"{name}: an instruction that the emulated CPU does not have; the baseline of {name} is {baseline}"
    )


@pytest.mark.parametrize("name", ["linux/s390x", "linux/loong64"])
def test_no_advice_without_levels(name: str) -> None:
    message = classify(132, cpu="qemu", platform=Platform.parse(name))[1]
    assert message == f"{name}: an instruction that qemu does not have"


@pytest.mark.parametrize("platform", known_platforms(), ids=str)
def test_message_for_every_platform(platform: Platform) -> None:
    outcome, message = classify(132, platform=platform)
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message.startswith(f"{platform}: an instruction that ")
    assert "=)" not in message
    assert "= (" not in message
    assert not message.endswith((" ", ":", "with"))


CPU_REFUSALS = [
    (1, "This program can only be run on AMD64 processors with v3 microarchitecture support.\n"),
    (2, "SIGILL: illegal instruction\nPC=0x84690 m=0 sigcode=1\n\ngoroutine 1 [running]:\nmain.bad()\n"),
    (1, "runtime: this CPU has no VFPv3 floating point hardware, so it cannot run\na binary compiled\n"),
    (1, "runtime: this CPU has no floating point hardware, so it cannot run\na binary compiled\n"),
    (127, "Fatal glibc error: CPU does not support x86-64-v2\n"),
    (127, "hello: libx.so: CPU ISA level is lower than required\n"),
]


@pytest.mark.parametrize(("code", "stderr"), CPU_REFUSALS)
def test_program_refuses_cpu(code: int, stderr: str) -> None:
    outcome, message = classify(code, stderr=f"starting\n{stderr}", cpu="qemu64", platform=AMD64)
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message.startswith(
        "linux/amd64: an instruction that qemu64 does not have; the baseline of linux/amd64 is"
    )
    assert "GOAMD64=v1" in message


@pytest.mark.parametrize(("code", "stderr"), CPU_REFUSALS)
def test_other_cpu_refusals(code: int, stderr: str) -> None:
    assert classify(code, stderr=stderr, expectation=Expectation(exit_code=code))[0] is Outcome.PASSED
    assert classify(0, stderr=stderr)[0] is Outcome.PASSED
    assert classify(code, stderr=f"> {stderr.splitlines()[0].removesuffix('required')}")[0] is Outcome.FAILED


SLOW_INPUTS = [
    "qemu" * (1 << 18), "qemu:" * 200_000, "**ERROR:" * 130_000, "**" * (1 << 19), ": " * (1 << 19),
    "\n" * (1 << 20), "QEMU internal SIG" * 60_000, "a: CPU ISA\n" * 100_000,
]  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stderr", SLOW_INPUTS, ids=lambda stderr: repr(stderr[:8]))
def test_search_time_is_bounded(stderr: str) -> None:
    assert classify(139, stderr=stderr)[0] in (Outcome.FAILED, Outcome.EMULATOR_CRASH)


def test_last_line_is_truncated() -> None:
    message = classify(1, stderr="x" * 1000)[1]
    assert message == f"exit status 1, expected 0: {'x' * 300}..."


def test_expected_illegal_instruction() -> None:
    assert classify(132, expectation=Expectation(exit_code=132))[0] is Outcome.PASSED


@pytest.mark.parametrize(("code", "stderr", "is_doubted"), [
    (135, "", True),
    (139, "qemu: uncaught target signal 11 (Segmentation fault) - core dumped", False),
    (3, "", False),
    (143, "", False),
])  # fmt: skip
def test_unreported_fatal_signal(code: int, stderr: str, is_doubted: bool) -> None:
    result = ProcessResult(exit_code=code, stdout="", stderr=stderr, emulated=True)
    outcome, message = classify_outcome(result, Expectation(), AMD64)
    assert outcome is Outcome.FAILED
    assert ("may itself have crashed" in message) == is_doubted
    native = ProcessResult(exit_code=code, stdout="", stderr=stderr, emulated=False)
    assert "QEMU reported no" not in classify_outcome(native, Expectation(), AMD64)[1]
