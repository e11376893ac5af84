"""What is asked of a run, and what its end means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.report.model import Outcome

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform

__all__ = ["Ending", "Expectation", "judge"]

_SIGNALLED = 128  # plus the signal's number, as a shell and an init report a fatal signal
_SIGILL = _SIGNALLED + 4
_FATAL = frozenset(_SIGNALLED + number for number in (6, 7, 8, 11))  # ABRT, BUS, FPE, SEGV of the host
_TOLD = "uncaught target signal"
_SILENT = " (QEMU says nothing of a fatal signal of the guest's: it may itself have crashed)"
_CANNOT_START = (1, 126, 127, 255)  # of shells, inits and the runtime
_FORMAT_ERROR = re.compile(r"exec format error", re.IGNORECASE)
# Guests choose what they print, and every repetition below is bounded. QEMU's own last words come last.
_END = 1 << 16
_WORDS = 300  # characters of a guest's last words in a message
# What QEMU itself says when it is at fault: a guest's own fatal signal reads "uncaught target signal".
_QEMU_FAULT = re.compile(
    r"QEMU internal SIG[A-Z]+|qemu[\w-]{0,40}: (?:fatal|internal error|unhandled)|"
    r"qemu[\w/.-]{0,200}:[^\n]{0,400}Assertion|\*\*\s{0,9}ERROR:[^\n]{0,400}(?:tcg|accel|linux-user)",
    re.IGNORECASE,
)
# What a program says that looks at its CPU before it uses it, or catches the signal: Go's runtime
# (asm_amd64.s, os_linux_arm.go, signal_unix.go) and glibc's loader.
_REFUSAL = re.compile(
    r"^(?:This program can only be run on AMD64 processors with v\d|SIGILL: illegal instruction|"
    r"runtime: this CPU has no (?:VFPv3 )?floating point hardware|Fatal glibc error: CPU |"
    r"[^\n]{0,400}: CPU ISA level is lower than required)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The exit status and the regular expression that a guest's standard output must meet.

    In the expression ``{goarch}``, ``{platform}`` and ``{machine}`` stand for what Go calls the
    architecture, the platform's name, and any name that ``uname -m`` has for it.
    """

    pattern: str = ""
    exit_code: int = 0

    def __post_init__(self) -> None:
        try:
            re.compile(self._filled("x", "x", "x"))
        except re.error as error:
            raise UsageError(f"--expect {self.pattern!r} is no regular expression: {error}") from error

    def regex(self, platform: Platform) -> str:
        """The expression for one platform."""
        machine = "|".join(map(re.escape, platform.machine.uname))
        return self._filled(re.escape(platform.architecture), re.escape(str(platform)), f"(?:{machine})")

    def _filled(self, goarch: str, platform: str, machine: str) -> str:
        values = {"{goarch}": goarch, "{platform}": platform, "{machine}": machine}
        text = self.pattern
        for name, value in values.items():
            text = text.replace(name, value)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What was seen when a guest ended.

    ``cpu`` is the CPU model that QEMU was told, empty for its default. ``limit`` says in words
    which cap ended it (``more than 256 processes``). ``timed_out`` is the deadline in seconds for a
    guest that was killed because of it, and 0 for one that ended before.
    """

    exit_code: int
    stdout: str
    stderr: str
    emulated: bool
    out_of_memory: bool = False
    cpu: str = ""
    limit: str = ""
    timed_out: float = 0.0

    @property
    def limited(self) -> bool:
        """Whether a cap ended it: what a result's ``limited`` is."""
        return self.out_of_memory or bool(self.limit)


def judge(ending: Ending, expectation: Expectation, platform: Platform) -> tuple[Outcome, str]:
    """The outcome and, where it did not pass, the reason in words.

    An emulator's own crash is told from the guest's, and both from a program that ran and failed.
    """
    return (
        _stopped(ending)
        or _broken_off(ending, expectation, platform)
        or _compared(ending, expectation, platform)
    )


def _stopped(ending: Ending) -> tuple[Outcome, str] | None:
    """What a cap or the deadline stopped, whatever it was doing."""
    if ending.limit:
        return Outcome.FAILED, f"the guest went over a limit: {ending.limit}"
    if ending.out_of_memory:
        return Outcome.FAILED, "the guest was killed: it went over its memory limit"
    if ending.timed_out:
        return Outcome.TIMEOUT, f"it ran for more than {ending.timed_out:g} s and was killed"
    return None


def _broken_off(ending: Ending, expectation: Expectation, platform: Platform) -> tuple[Outcome, str] | None:
    """What ended the guest before it could do its work, if anything did."""
    end = ending.stderr[-_END:]
    if _FORMAT_ERROR.search(ending.stderr) and ending.exit_code in _CANNOT_START:
        return Outcome.NOT_REGISTERED, f"the kernel has no handler for {platform}: exec format error"
    if ending.emulated and ending.exit_code > _SIGNALLED and _QEMU_FAULT.search(end):
        return Outcome.EMULATOR_CRASH, f"the emulator crashed: {_last_line(end)}"
    refused = ending.exit_code != 0 and _REFUSAL.search(ending.stderr)
    if ending.exit_code != expectation.exit_code and (ending.exit_code == _SIGILL or refused):
        return Outcome.ILLEGAL_INSTRUCTION, _lacking(ending, platform)
    return None


def _lacking(ending: Ending, platform: Platform) -> str:
    """Which CPU lacks an instruction, what the platform's name promises, and how to build for that."""
    cpu = ending.cpu or ("the emulated CPU" if ending.emulated else "this CPU")
    lacks = f"{platform}: an instruction that {cpu} does not have"
    level, machine = platform.promise, platform.machine
    if level is None:
        return lacks
    settings = [f"{machine.go_setting}={level.go} (Go)"] if machine.go_setting and level.go else []
    settings += [f"{level.option} (C)"] if level.option else []
    advice = f": build it with {' or '.join(settings)}" if settings else ""
    return f"{lacks}; {platform} promises {level.title}{advice}"


def _compared(ending: Ending, expectation: Expectation, platform: Platform) -> tuple[Outcome, str]:
    if ending.exit_code != expectation.exit_code:
        said = f": {_last_line(ending.stderr)}" if ending.stderr.strip() else ""
        silent = (
            _SILENT if ending.emulated and ending.exit_code in _FATAL and _TOLD not in ending.stderr else ""
        )
        status = f"exit status {ending.exit_code}, expected {expectation.exit_code}{silent}"
        return Outcome.FAILED, f"{status}{said}"
    wanted = expectation.regex(platform)
    if not re.search(wanted, ending.stdout, re.MULTILINE):
        return Outcome.FAILED, f"its output does not match {wanted!r}"
    return Outcome.PASSED, ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text[-_END:].splitlines() if line.strip()]
    if not lines:
        return "it said nothing"
    return lines[-1] if len(lines[-1]) <= _WORDS else f"{lines[-1][:_WORDS]}..."
