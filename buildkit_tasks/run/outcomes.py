"""Classify how a guest ended: expectations, exit statuses and messages to outcomes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.report.model import Outcome

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform

__all__ = ["MISSING_PROGRAM_STATUSES", "Expectation", "ProcessResult", "classify_outcome"]

_SIGNAL_BASE = 128  # plus the signal's number, as a shell and an init report a fatal signal
_SIGILL = _SIGNAL_BASE + 4
# ABRT, BUS, FPE and SEGV, by the host's numbers
_FATAL_SIGNAL_STATUSES = frozenset(_SIGNAL_BASE + number for number in (6, 7, 8, 11))
_QEMU_SIGNAL_MESSAGE = "uncaught target signal"
_MISSING_SIGNAL_NOTE = " (QEMU reported no fatal signal of the guest: it may itself have crashed)"
MISSING_PROGRAM_STATUSES = frozenset({127, 255})
"""The exit statuses of shells, inits and QEMU if a program, or its loader, does not exist."""
# Guests choose what they print, so every repetition below is bounded. QEMU's own error comes last.
_TAIL_CHARS = 1 << 16
_MAX_MESSAGE_CHARS = 300  # characters of a guest's last line in a message
# QEMU's messages about its own faults. A guest's fatal signal is reported as "uncaught target signal".
_QEMU_FAULT = re.compile(
    r"QEMU internal SIG[A-Z]+|qemu[\w-]{0,40}: (?:fatal|internal error|unhandled)|"
    r"qemu[\w/.-]{0,200}:[^\n]{0,400}Assertion|\*\*\s{0,9}ERROR:[^\n]{0,400}(?:tcg|accel|linux-user)",
    re.IGNORECASE,
)
# Messages of programs that check the CPU first, or catch SIGILL: Go's runtime (asm_amd64.s,
# os_linux_arm.go, signal_unix.go) and glibc's loader.
_UNSUPPORTED_CPU = re.compile(
    r"^(?:This program can only be run on AMD64 processors with v\d|SIGILL: illegal instruction|"
    r"runtime: this CPU has no (?:VFPv3 )?floating point hardware|Fatal glibc error: CPU |"
    r"[^\n]{0,400}: CPU ISA level is lower than required)",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """The exit status that a guest must have, and the regular expression that its standard output must match.

    In the expression, ``{goarch}`` stands for Go's name of the architecture, ``{platform}`` for the
    platform, and ``{machine}`` for any name that ``uname -m`` prints for it.
    """

    pattern: str = ""
    exit_code: int = 0

    def __post_init__(self) -> None:
        try:
            re.compile(self._fill_placeholders("x", "x", "x"))
        except re.error as error:
            raise UsageError(
                f"--expect {self.pattern!r} is not a valid regular expression: {error}"
            ) from error

    def expand_regex(self, platform: Platform) -> str:
        """Return the expression for one platform."""
        machine = "|".join(map(re.escape, platform.machine.uname_machines))
        return self._fill_placeholders(
            re.escape(platform.architecture), re.escape(str(platform)), f"(?:{machine})"
        )

    def _fill_placeholders(self, goarch: str, platform: str, machine: str) -> str:
        values = {"{goarch}": goarch, "{platform}": platform, "{machine}": machine}
        text = self.pattern
        for name, value in values.items():
            text = text.replace(name, value)
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessResult:
    """How a guest ended.

    ``cpu`` is the CPU model that QEMU was given, empty for its default. ``limit_exceeded`` is the limit for
    which the guest was killed, as text (``more than 256 processes``). ``timeout_exceeded`` is the timeout in
    seconds for which it was killed, and 0 if it ended before. ``missing_loader`` says that the loader of a
    program that it may have started is missing, which the exit status cannot tell.
    """

    exit_code: int
    stdout: str
    stderr: str
    emulated: bool
    out_of_memory: bool = False
    cpu: str = ""
    limit_exceeded: str = ""
    timeout_exceeded: float = 0.0
    missing_loader: str = ""

    @property
    def is_limited(self) -> bool:
        """True if the guest exceeded a limit."""
        return self.out_of_memory or bool(self.limit_exceeded)


def classify_outcome(
    result: ProcessResult, expectation: Expectation, platform: Platform
) -> tuple[Outcome, str]:
    """Return the outcome and, unless it passed, the reason.

    A crash of the emulator is distinguished from one of the guest, and both from a program that failed.
    """
    return (
        _classify_limits(result)
        or _classify_crash(result, expectation, platform)
        or _check_expectation(result, expectation, platform)
    )


def _classify_limits(result: ProcessResult) -> tuple[Outcome, str] | None:
    """Classify a guest that was killed for a limit or its timeout; None for another."""
    if result.limit_exceeded:
        return Outcome.FAILED, f"the guest went over a limit: {result.limit_exceeded}"
    if result.out_of_memory:
        return Outcome.FAILED, "the guest was killed: it went over its memory limit"
    if result.timeout_exceeded:
        return Outcome.TIMEOUT, f"it ran for more than {result.timeout_exceeded:g} s and was killed"
    return None


def _classify_crash(
    result: ProcessResult, expectation: Expectation, platform: Platform
) -> tuple[Outcome, str] | None:
    """Classify a guest that could not start, or that crashed; None for another."""
    tail = result.stderr[-_TAIL_CHARS:]
    if result.emulated and result.exit_code > _SIGNAL_BASE and _QEMU_FAULT.search(tail):
        return Outcome.EMULATOR_CRASH, f"the emulator crashed: {_get_last_line(tail)}"
    cpu_error = result.exit_code != 0 and _UNSUPPORTED_CPU.search(result.stderr)
    if result.exit_code != expectation.exit_code and (result.exit_code == _SIGILL or cpu_error):
        return Outcome.ILLEGAL_INSTRUCTION, _explain_illegal_instruction(result, platform)
    return None


def _explain_illegal_instruction(result: ProcessResult, platform: Platform) -> str:
    """Return which CPU lacks an instruction, the platform's baseline, and the options to build for it."""
    cpu = result.cpu or ("the emulated CPU" if result.emulated else "this CPU")
    message = f"{platform}: an instruction that {cpu} does not have"
    if platform.baseline is None:
        return message
    options = platform.baseline_build_options
    advice = f": build it with {' or '.join(options)}" if options else ""
    return f"{message}; the baseline of {platform} is {platform.baseline.title}{advice}"


def _check_expectation(
    result: ProcessResult, expectation: Expectation, platform: Platform
) -> tuple[Outcome, str]:
    if result.exit_code != expectation.exit_code:
        last_line = _get_last_line(result.stderr) if result.stderr.strip() else ""
        signal_note = (
            _MISSING_SIGNAL_NOTE
            if result.emulated
            and result.exit_code in _FATAL_SIGNAL_STATUSES
            and _QEMU_SIGNAL_MESSAGE not in result.stderr
            else ""
        )
        status = f"exit status {result.exit_code}, expected {expectation.exit_code}{signal_note}"
        return Outcome.FAILED, ": ".join(filter(None, (status, last_line, result.missing_loader)))
    regex = expectation.expand_regex(platform)
    if not re.search(regex, result.stdout, re.MULTILINE):
        return Outcome.FAILED, f"its output does not match {regex!r}"
    return Outcome.PASSED, ""


def _get_last_line(text: str) -> str:
    lines = [line.strip() for line in text[-_TAIL_CHARS:].splitlines() if line.strip()]
    if not lines:
        return "only blank lines"
    return lines[-1] if len(lines[-1]) <= _MAX_MESSAGE_CHARS else f"{lines[-1][:_MAX_MESSAGE_CHARS]}..."
