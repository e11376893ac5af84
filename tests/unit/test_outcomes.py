from __future__ import annotations

from typing import TypedDict, Unpack

import pytest

from buildkit_tasks.emulate.outcomes import Ending, Expectation, judge
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.results import Outcome

ARM = Platform.parse("linux/arm/v7")
AMD64 = Platform.parse("linux/amd64")


class End(TypedDict, total=False):
    out: str
    err: str
    emulated: bool
    memory: bool
    expectation: Expectation


def judged(code: int = 0, **end: Unpack[End]) -> tuple[Outcome, str]:
    ending = Ending(
        exit_code=code,
        stdout=end.get("out", ""),
        stderr=end.get("err", ""),
        emulated=end.get("emulated", True),
        out_of_memory=end.get("memory", False),
    )
    return judge(ending, end.get("expectation", Expectation()), ARM)


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
        return judge(Ending(exit_code=0, stdout=text, stderr="", emulated=False), wanted, platform)[0]

    assert (outcome(good), outcome(bad)) == (Outcome.PASSED, Outcome.FAILED)


@pytest.mark.parametrize("pattern", ["(", "[{goarch}", "a{2,1}", "(?P<x>"])
def test_a_bad_expression_is_a_usage_error_before_anything_runs(pattern: str) -> None:
    with pytest.raises(UsageError, match="is no regular expression") as caught:
        Expectation(pattern=pattern)
    assert pattern in caught.value.message


def test_a_guest_out_of_memory_says_so() -> None:
    outcome, message = judged(137, memory=True)
    assert outcome is Outcome.FAILED
    assert "memory limit" in message


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


def test_an_instruction_that_the_cpu_lacks_is_named() -> None:
    said = "qemu: uncaught target signal 4 (Illegal instruction) - core dumped\n"
    outcome, message = judged(132, err=said)
    assert outcome is Outcome.ILLEGAL_INSTRUCTION
    assert message == f"an instruction that this CPU does not have: {said.strip()}"
    assert judged(132)[1] == "an instruction that this CPU does not have: it said nothing"


def test_whoever_expects_an_illegal_instruction_gets_it() -> None:
    assert judged(132, expectation=Expectation(exit_code=132))[0] is Outcome.PASSED
