from __future__ import annotations

from typing import TypedDict, Unpack

import pytest

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform, known_platforms
from buildkit_tasks.report.model import Outcome
from buildkit_tasks.run.outcomes import Expectation, ProcessResult, classify_outcome

ARM = Platform.parse("linux/arm/v7")
AMD64 = Platform.parse("linux/amd64")


class End(TypedDict, total=False):
    out: str
    err: str
    emulated: bool
    memory: bool
    cpu: str
    limit: str
    timed_out: float
    on: Platform
    expectation: Expectation


def judged(code: int = 0, **end: Unpack[End]) -> tuple[Outcome, str]:
    ending = ended(code, **end)
    return classify_outcome(ending, end.get("expectation", Expectation()), end.get("on", ARM))


def ended(code: int = 0, **end: Unpack[End]) -> ProcessResult:
    return ProcessResult(
        exit_code=code,
        stdout=end.get("out", ""),
        stderr=end.get("err", ""),
        emulated=end.get("emulated", True),
        out_of_memory=end.get("memory", False),
        cpu=end.get("cpu", ""),
        limit_exceeded=end.get("limit", ""),
        timeout_exceeded=end.get("timed_out", 0.0),
    )


def test_an_end_as_expected_passes_without_words() -> None:
    assert judged() == (Outcome.PASSED, "")
    assert judged(3, expectation=Expectation(exit_code=3)) == (Outcome.PASSED, "")


def test_another_status_fails_with_both_and_the_last_words() -> None:
    assert judged(2, err="first\nboom\n\n") == (Outcome.FAILED, "exit status 2, expected 0: boom")
    assert judged(0, expectation=Expectation(exit_code=2)) == (Outcome.FAILED, "exit status 0, expected 2")


def test_other_output_fails_with_what_was_wanted() -> None:
    outcome, message = judged(out="Hello [arm64]\n", expectation=Expectation(pattern=r"\[{goarch}\]"))
    assert (outcome, message) == (Outcome.FAILED, r"its output does not match '\\[arm\\]'")


def test_a_status_that_is_expected_still_wants_its_output() -> None:
    wanted = Expectation(pattern="^yes$", exit_code=2)
    assert judged(2, out="a\nyes\nb\n", expectation=wanted)[0] is Outcome.PASSED
    assert judged(2, out="no\n", expectation=wanted)[0] is Outcome.FAILED


def test_only_standard_output_is_looked_at() -> None:
    assert judged(out="", err="yes", expectation=Expectation(pattern="yes"))[0] is Outcome.FAILED


@pytest.mark.parametrize(
    ("pattern", "platform", "good", "bad"),
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
def test_names_in_braces_are_filled_in_for_the_platform(
    pattern: str, platform: Platform, good: str, bad: str
) -> None:
    wanted = Expectation(pattern=pattern)

    def outcome(text: str) -> Outcome:
        return classify_outcome(
            ProcessResult(exit_code=0, stdout=text, stderr="", emulated=False), wanted, platform
        )[0]

    assert (outcome(good), outcome(bad)) == (Outcome.PASSED, Outcome.FAILED)


@pytest.mark.parametrize("pattern", ["(", "[{goarch}", "a{2,1}", "(?P<x>"])
def test_a_bad_expression_is_a_usage_error_before_anything_runs(pattern: str) -> None:
    with pytest.raises(UsageError, match="is not a valid regular expression") as caught:
        Expectation(pattern=pattern)
    assert pattern in caught.value.message


def test_a_guest_out_of_memory_says_so() -> None:
    outcome, message = judged(137, memory=True)
    assert outcome is Outcome.FAILED
    assert "memory limit" in message


@pytest.mark.parametrize("code", [0, 1, 132, 137])
def test_a_guest_that_went_over_a_limit_says_over_which(code: int) -> None:
    end = End(limit="more than 256 processes", err="QEMU internal SIGSEGV\n")
    assert judged(code, **end) == (
        Outcome.FAILED,
        "the guest went over a limit: more than 256 processes",
    )


def test_a_guest_that_was_killed_at_its_deadline_is_a_time_out_whatever_its_status() -> None:
    for code in (0, 132, 137):
        wanted = (Outcome.TIMEOUT, "it ran for more than 1.5 s and was killed")
        assert judged(code, timed_out=1.5, err=FAULTS[0]) == wanted


def test_a_limit_that_led_to_a_time_out_is_the_reason() -> None:
    assert "256 processes" in judged(137, timed_out=2, limit="more than 256 processes")[1]
    assert "memory limit" in judged(137, timed_out=2, memory=True)[1]


@pytest.mark.parametrize(
    ("end", "limited"),
    [(End(), False), (End(timed_out=1), False), (End(memory=True), True), (End(limit="x"), True)],
)
def test_a_limit_and_only_a_limit_makes_an_end_limited(end: End, limited: bool) -> None:
    assert ended(137, **end).is_limited is limited


@pytest.mark.parametrize("code", [1, 126, 127, 255])
def test_a_kernel_without_a_handler_is_told_from_a_failing_program(code: int) -> None:
    outcome, message = judged(code, err="exec /hello: Exec format error\n")
    assert outcome is Outcome.NOT_REGISTERED
    assert message == "the kernel has no handler for linux/arm/v7: exec format error"


def test_a_program_that_only_speaks_of_format_errors_is_no_missing_handler() -> None:
    assert judged(0, err="saw an exec format error, went on")[0] is Outcome.PASSED
    assert judged(3, err="saw an exec format error, gave up")[0] is Outcome.FAILED


FAULTS = [
    "qemu-arm: fatal: unhandled ARM exception\n",
    "QEMU internal SIGSEGV {code=MAPERR, addr=0x20}\n",
    "**\nERROR:../accel/tcg/cpu-exec.c:928:cpu_exec_loop: code should not be reached\n",
    "qemu-s390x: ../target/s390x/tcg/translate.c:6531: Assertion `x' failed.\n",
]


@pytest.mark.parametrize("said", FAULTS)
def test_row_52_an_emulators_own_crash_is_told_from_the_guests(said: str) -> None:
    outcome, message = judged(139, err=said)
    assert outcome is Outcome.EMULATOR_CRASH
    assert message == f"the emulator crashed: {said.splitlines()[-1]}"


def test_a_guests_own_crash_is_not_laid_to_the_emulator() -> None:
    said = "qemu: uncaught target signal 11 (Segmentation fault) - core dumped\n"
    assert judged(139, err=said)[0] is Outcome.FAILED


def test_without_an_emulator_there_is_no_emulator_crash() -> None:
    assert judged(139, err=FAULTS[0], emulated=False)[0] is Outcome.FAILED


def test_a_program_that_prints_an_emulators_words_and_ends_by_itself_did_not_crash_it() -> None:
    assert judged(0, err=FAULTS[0])[0] is Outcome.PASSED
    assert judged(1, err=FAULTS[0])[0] is Outcome.FAILED


def test_an_instruction_that_the_cpu_lacks_is_named_with_the_promise_and_how_to_keep_it() -> None:
    said = "qemu: uncaught target signal 4 (Illegal instruction) - core dumped\n"
    outcome, message = judged(132, err=said, cpu="arm1176", on=Platform.parse("linux/arm/v6"))
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message == (
        "linux/arm/v6: an instruction that arm1176 does not have; linux/arm/v6 promises ARMv6: "
        "build it with GOARM=6 (Go) or -march=armv6 (C)"
    )


@pytest.mark.parametrize(
    ("end", "cpu"),
    [
        (End(), "the emulated CPU"),
        (End(cpu="cortex-a8"), "cortex-a8"),
        (End(emulated=False), "this CPU"),
    ],
)
def test_the_cpu_that_lacks_an_instruction_is_the_one_that_ran_it(end: End, cpu: str) -> None:
    assert judged(132, **end)[1].startswith(f"linux/arm/v7: an instruction that {cpu} does not have; ")


PROMISES = [
    ("linux/amd64", "x86-64 (baseline): build it with GOAMD64=v1 (Go) or -march=x86-64 (C)"),
    ("linux/amd64/v3", "x86-64-v3: build it with GOAMD64=v3 (Go) or -march=x86-64-v3 (C)"),
    ("linux/386", "x86 with SSE2: build it with GO386=sse2 (Go) or -march=pentium4 (C)"),
    ("linux/mips64le", "MIPS64 release 2: build it with -march=mips64r2 (C)"),
]


@pytest.mark.parametrize(("name", "promise"), PROMISES)
def test_the_advice_is_that_of_the_architecture_table(name: str, promise: str) -> None:
    message = judged(132, on=Platform.parse(name))[1]
    assert message == f"{name}: an instruction that the emulated CPU does not have; {name} promises {promise}"


@pytest.mark.parametrize("name", ["linux/s390x", "linux/loong64"])
def test_an_architecture_without_levels_gets_no_advice(name: str) -> None:
    message = judged(132, cpu="qemu", on=Platform.parse(name))[1]
    assert message == f"{name}: an instruction that qemu does not have"


@pytest.mark.parametrize("platform", known_platforms(), ids=str)
def test_every_platform_has_a_sentence_for_a_lacking_instruction(platform: Platform) -> None:
    outcome, message = judged(132, on=platform)
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message.startswith(f"{platform}: an instruction that ")
    assert "=)" not in message
    assert "= (" not in message
    assert not message.endswith((" ", ":", "with"))


REFUSALS = [
    (1, "This program can only be run on AMD64 processors with v3 microarchitecture support.\n"),
    (2, "SIGILL: illegal instruction\nPC=0x84690 m=0 sigcode=1\n\ngoroutine 1 [running]:\nmain.bad()\n"),
    (1, "runtime: this CPU has no VFPv3 floating point hardware, so it cannot run\na binary compiled\n"),
    (1, "runtime: this CPU has no floating point hardware, so it cannot run\na binary compiled\n"),
    (127, "Fatal glibc error: CPU does not support x86-64-v2\n"),
    (127, "hello: libx.so: CPU ISA level is lower than required\n"),
]


@pytest.mark.parametrize(("code", "said"), REFUSALS)
def test_a_program_that_refuses_a_cpu_lacks_its_instructions(code: int, said: str) -> None:
    outcome, message = judged(code, err=f"starting\n{said}", cpu="qemu64", on=AMD64)
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message.startswith("linux/amd64: an instruction that qemu64 does not have; linux/amd64 promises")
    assert "GOAMD64=v1" in message


@pytest.mark.parametrize(("code", "said"), REFUSALS)
def test_a_refusal_that_is_expected_or_survived_or_only_quoted_is_none(code: int, said: str) -> None:
    assert judged(code, err=said, expectation=Expectation(exit_code=code))[0] is Outcome.PASSED
    assert judged(0, err=said)[0] is Outcome.PASSED
    assert judged(code, err=f"> {said.splitlines()[0].removesuffix('required')}")[0] is Outcome.FAILED


BOMBS = ["qemu" * (1 << 18), "qemu:" * 200_000, "**ERROR:" * 130_000, "**" * (1 << 19), ": " * (1 << 19),
         "\n" * (1 << 20), "QEMU internal SIG" * 60_000, "a: CPU ISA\n" * 100_000]  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: repr(bomb[:8]))
def test_a_mebibyte_made_to_be_hard_to_search_is_judged_at_once(bomb: str) -> None:
    assert judged(139, err=bomb)[0] in (Outcome.FAILED, Outcome.EMULATOR_CRASH)


def test_the_last_words_of_a_guest_are_cut_in_a_message() -> None:
    message = judged(1, err="x" * 1000)[1]
    assert message == f"exit status 1, expected 0: {'x' * 300}..."


def test_whoever_expects_an_illegal_instruction_gets_it() -> None:
    assert judged(132, expectation=Expectation(exit_code=132))[0] is Outcome.PASSED


@pytest.mark.parametrize(("code", "err", "doubted"), [
    (135, "", True),
    (139, "qemu: uncaught target signal 11 (Segmentation fault) - core dumped", False),
    (3, "", False),
    (143, "", False),
])  # fmt: skip
def test_a_fatal_signal_of_which_qemu_says_nothing_may_be_its_own(code: int, err: str, doubted: bool) -> None:
    ending = ProcessResult(exit_code=code, stdout="", stderr=err, emulated=True)
    outcome, message = classify_outcome(ending, Expectation(), AMD64)
    assert outcome is Outcome.FAILED
    assert ("may itself have crashed" in message) == doubted
    native = ProcessResult(exit_code=code, stdout="", stderr=err, emulated=False)
    assert "QEMU reported no" not in classify_outcome(native, Expectation(), AMD64)[1]
