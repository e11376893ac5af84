"""What QEMU's user-mode emulator takes from the environment, and what it says before a guest runs.

The names are those that ``qemu-aarch64 --help`` lists as environment variables (QEMU 11.1), and those
of the options that older versions had (5.2 and newer): QEMU reads them in the guest's own environment.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.outcomes import ProcessResult

__all__ = ["QEMU_ENV_VARS", "explain_cpu_refusal"]

# An image that sets QEMU_VERSION is not run at all: QEMU prints its version and ends with 0. One that
# sets QEMU_GDB waits for a debugger. Neither is a program's to choose.
QEMU_ENV_VARS = tuple(
    f"QEMU_{name}"
    for name in (
        "ARGV0", "CPU", "DFILTER", "GDB", "GUEST_BASE", "JITDUMP", "LD_PREFIX", "LOG", "LOG_FILENAME",
        "ONE_INSN_PER_TB", "PAGESIZE", "PERFMAP", "PLUGIN", "RAND_SEED", "RESERVED_VA", "RTSIG_MAP",
        "SET_ENV", "SINGLESTEP", "STACK_SIZE", "STRACE", "TB_SIZE", "TRACE", "UNAME", "UNSET_ENV",
        "VERSION",
    )
)  # fmt: skip

_QEMU_ERROR_STATUS = 1  # QEMU's exit status where it does not even start the guest
_CPU_MODEL_ERROR = re.compile(
    r"^qemu[\w-]*: (?:(?P<unknown>unable to find CPU model)|Some features requested in the CPU model|"
    r"can't apply global|Property '|Expected key=value)|^ELF binary's NaN mode not supported by CPU",
    re.MULTILINE,
)
_MAX_REASON_CHARS = 200  # s390x lists every feature that is missing


def explain_cpu_refusal(result: ProcessResult, platform: Platform, emulator_path: str = "") -> str:
    """The words why QEMU did not start a guest on the CPU model asked for; empty if it did.

    ``emulator`` is the interpreter's path, where it is known: it lists the models that it has.
    """
    match = _CPU_MODEL_ERROR.search(result.stderr)
    if not result.cpu or result.exit_code != _QEMU_ERROR_STATUS or result.stdout or match is None:
        return ""
    help_command = f"{emulator_path or 'qemu-' + platform.machine.qemu_suffix} -cpu help"
    if match["unknown"]:
        return f"{platform}: QEMU has no CPU model {result.cpu!r}; '{help_command}' lists those that it has"
    line = result.stderr[match.start() :].partition("\n")[0]
    reason = line if len(line) <= _MAX_REASON_CHARS else f"{line[:_MAX_REASON_CHARS]}..."
    return (
        f"{platform}: QEMU does not run as CPU model {result.cpu!r} ({reason}); '{help_command}' lists others"
    )
