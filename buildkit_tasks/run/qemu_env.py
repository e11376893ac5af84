"""QEMU's user-mode emulator: the environment variables that it reads, and its errors before a guest starts.

The variables are those that ``qemu-aarch64 --help`` lists (QEMU 11.1), and those of options of older versions
(5.2 and newer). QEMU reads them from the guest's own environment.

The CPU model of a platform's baseline is :attr:`.Platform.baseline_cpu`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.outcomes import ProcessResult

__all__ = ["QEMU_ENV_VARS", "explain_cpu_refusal", "is_invalid_cpu_model"]

# They are not taken from the image: with QEMU_VERSION, QEMU prints its version and exits with 0 instead of
# running the program; with QEMU_GDB it waits for a debugger.
QEMU_ENV_VARS = tuple(
    f"QEMU_{name}"
    for name in (
        "ARGV0", "CPU", "DFILTER", "GDB", "GUEST_BASE", "JITDUMP", "LD_PREFIX", "LOG", "LOG_FILENAME",
        "ONE_INSN_PER_TB", "PAGESIZE", "PERFMAP", "PLUGIN", "RAND_SEED", "RESERVED_VA", "RTSIG_MAP",
        "SET_ENV", "SINGLESTEP", "STACK_SIZE", "STRACE", "TB_SIZE", "TRACE", "UNAME", "UNSET_ENV",
        "VERSION",
    )
)  # fmt: skip

_QEMU_ERROR_STATUS = 1  # QEMU's exit status if it does not start the guest
_CPU_MODEL_ERROR = re.compile(
    r"^qemu[\w-]*: (?:(?P<unknown>unable to find CPU model)|Some features requested in the CPU model|"
    r"(?P<invalid>can't apply global|Property '|Expected key=value))|"
    r"^ELF binary's NaN mode not supported by CPU",
    re.MULTILINE,
)
_MAX_REASON_CHARS = 200  # s390x lists every missing feature


def is_invalid_cpu_model(stderr: str) -> bool:
    """Return True if QEMU does not know a model or a feature of it; others it knows, and cannot emulate."""
    match = _CPU_MODEL_ERROR.search(stderr)
    return match is not None and bool(match["unknown"] or match["invalid"])


def explain_cpu_refusal(result: ProcessResult, platform: Platform, emulator_path: str = "") -> str:
    """Return why QEMU did not start a guest on the requested CPU model; empty if it did.

    ``emulator_path`` is the interpreter, if known, for the command that lists its models.
    """
    match = _CPU_MODEL_ERROR.search(result.stderr)
    if not result.cpu or result.exit_code != _QEMU_ERROR_STATUS or result.stdout or match is None:
        return ""
    help_command = f"{emulator_path or 'qemu-' + platform.machine.qemu_suffix} -cpu help"
    if match["unknown"]:
        return f"{platform}: QEMU has no CPU model {result.cpu!r}; '{help_command}' lists the models"
    line = result.stderr[match.start() :].partition("\n")[0]
    reason = line if len(line) <= _MAX_REASON_CHARS else f"{line[:_MAX_REASON_CHARS]}..."
    return (
        f"{platform}: QEMU does not run as CPU model {result.cpu!r} ({reason}); '{help_command}' lists others"
    )
