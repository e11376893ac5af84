"""Compare the instruction set that a binary needs with the baseline of its platform.

Every CPU of a platform has its baseline (:attr:`Platform.baseline`). A binary that needs more may end
with an illegal instruction, or be refused by its loader; one that needs less passes. A binary without
evidence proves nothing: see :func:`missing_isa_info_reason`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.platforms.elf.go_buildinfo import GO_MAGIC
from buildkit_tasks.platforms.elf.model import GO_BUILDINFO, RUNTIME_DETECTION, Evidence, riscv_extensions

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = [
    "STREAM_MAGICS",
    "STREAM_WINDOW_SIZE",
    "arm_float_abi",
    "isa_problems",
    "isa_warnings",
    "missing_isa_info_reason",
]

STREAM_MAGICS: tuple[bytes, ...] = (GO_MAGIC, b"aeabi\0")
"""Byte strings to search for in a file that is too large to keep: Go build info, Arm build attributes.

A piece that is kept starts 16 bytes before a hit and ends :data:`STREAM_WINDOW_SIZE` bytes after it.
"""
STREAM_WINDOW_SIZE = 1 << 17

# Sections that the linker merges from all object files, those in assembly language included.
_WHOLE_FILE_SOURCES = frozenset({".ARM.attributes", ".riscv.attributes", ".MIPS.abiflags"})


def isa_problems(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """Return why the binary needs more than the platform's baseline, a message for each reason.

    Binaries of another machine have no such problems: that they are is reported elsewhere.
    """
    return _isa_messages(platform, binary, as_warnings=False)


def isa_warnings(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """Return what the binary has beyond the baseline but appears to use only on CPUs that support it.

    Build attributes describe the whole file: a library that selects among several implementations of
    a function at run time has the attributes of the newest one. Debian's libgcrypt for ARMv7 has ARMv8.
    """
    return _isa_messages(platform, binary, as_warnings=True)


def _isa_messages(platform: Platform, binary: Binary, *, as_warnings: bool) -> tuple[str, ...]:
    machine = binary.header.machine
    if machine is None or machine.architecture != platform.architecture:
        return ()
    detection = next((item.value for item in binary.evidence if item.name == RUNTIME_DETECTION), "")
    messages = []
    for item in binary.evidence:
        is_detected = bool(detection) and item.source in _WHOLE_FILE_SOURCES
        requirement = _unmet_requirement(platform, machine, item) if is_detected == as_warnings else ""
        if requirement and as_warnings:
            messages.append(
                f"has code for {requirement} ({item}), which seems optional because it checks the CPU at "
                f"run time ({detection}); {_describe_baseline(platform)}"
            )
        elif requirement:
            messages.append(
                f"needs {requirement} ({item}); "
                f"{_describe_baseline(platform)}{_suggest_build_option(platform, machine, item)}"
            )
    return tuple(dict.fromkeys(messages))


def _unmet_requirement(platform: Platform, machine: Machine, evidence: Evidence) -> str:
    """Return what this evidence needs beyond the platform's baseline, or an empty string."""
    if evidence.source == GO_BUILDINFO and evidence.name not in ("GOOS", machine.go_variable):
        return ""  # another machine's setting, which has no effect here
    check = _CHECKS.get((evidence.source, evidence.name))
    if check:
        return check(platform, evidence.value)
    is_level = evidence.source == GO_BUILDINFO or (evidence.source, evidence.name) in _LEVEL_EVIDENCE
    return _unmet_level(platform, machine, evidence.value) if is_level else ""


def _unmet_level(platform: Platform, machine: Machine, value: str) -> str:
    """Return the title of the level with this value if the platform's baseline is below it."""
    for index, level in enumerate(machine.isa_levels):
        if value == level.go_value or value in level.evidence_values:
            return level.title if platform.baseline in machine.isa_levels[:index] else ""
    return f"{value}, an unknown level" if machine.isa_levels else ""


def _describe_baseline(platform: Platform) -> str:
    baseline = platform.baseline
    if baseline is None:
        return f"{platform} does not include it"
    return f"the baseline of {platform} is {baseline.title}"


def _suggest_build_option(platform: Platform, machine: Machine, evidence: Evidence) -> str:
    baseline = platform.baseline
    if baseline is None or evidence.name in ("OS ABI", "GOOS"):
        return ""
    setting = f"{machine.go_variable}={baseline.go_value}" if baseline.go_value else ""
    option = setting if evidence.source == GO_BUILDINFO else baseline.compiler_option
    return f": build it with {option}" if option else ""


# Evidence whose values are in IsaLevel.evidence_values.
_LEVEL_EVIDENCE = frozenset(
    {
        (".ARM.attributes", "CPU architecture"),
        ("entry point", "instructions"),
        ("x86 ISA note", "needed"),
        ("ELF flags", "MIPS architecture"),
    }
)

_GOARM64_PATTERN = re.compile(r"v([89]\.[0-9])((?:,(?:lse|crypto))*)\Z", re.ASCII)


def _check_goarm64(platform: Platform, value: str) -> str:
    """Check GOARM64, a level with options: ``v8.0``, ``v9.2``, ``v8.0,lse,crypto``.

    Armv9.N includes Armv8.(N+5). LSE (atomics) is part of Armv8.1; no level includes crypto.
    """
    match = _GOARM64_PATTERN.match(value)
    if match is None:
        return _unmet_level(platform, platform.machine, value)
    baseline_is_v9, baseline_rank = _rank_arm64_level(platform.variant or "v8")
    required_is_v9, required_rank = _rank_arm64_level(f"v{match[1]}")
    requirements = []
    if required_is_v9 > baseline_is_v9 or required_rank > baseline_rank:
        requirements.append(f"Armv{match[1]}-A")
    if "lse" in match[2] and not baseline_rank and not required_rank:
        requirements.append("the atomics of Armv8.1-A (LSE)")
    if "crypto" in match[2]:
        requirements.append("the cryptography extension")
    return " and ".join(requirements)


def _rank_arm64_level(level: str) -> tuple[bool, int]:
    """Return whether the level is Armv9, and the minor version of Armv8 that it includes."""
    major, _, minor = level.removeprefix("v").partition(".")
    rank = int(minor) if minor.isdecimal() and minor.isascii() and len(minor) == 1 else 0
    return (True, rank + 5) if major == "9" else (False, rank)


def _check_goarm(platform: Platform, value: str) -> str:
    """Check GOARM, a level with an optional float ABI: ``6,softfloat``, ``5,hardfloat``.

    Without it, level 5 is soft-float and the others are hard-float.
    """
    if value == "5,hardfloat" and platform.variant == "v5":
        return "a floating-point unit (VFP)"
    return _unmet_level(platform, platform.machine, value.partition(",")[0])


def _check_goos(platform: Platform, value: str) -> str:
    # Go programs for Android are Linux programs; a dynamic one has Android's loader as its interpreter.
    is_same_os = value == platform.os or (value == "android" and platform.os == "linux")
    return "" if is_same_os else value


def _check_os_abi(platform: Platform, value: str) -> str:
    return value if platform.os == "linux" else ""


def _check_riscv_arch(platform: Platform, value: str) -> str:
    """Name the extensions beyond those of the baseline profile."""
    unmet_extensions = riscv_extensions(value) - _baseline_extensions(platform)
    if "v" in unmet_extensions:  # v implies zve* and zvl*
        unmet_extensions = {name for name in unmet_extensions if not name.startswith(("zve", "zvl"))}
    if not unmet_extensions:
        return ""
    noun = "extension" if len(unmet_extensions) == 1 else "extensions"
    return f"the RISC-V {noun} {', '.join(sorted(unmet_extensions, key=_extension_sort_key))}"


def _extension_sort_key(name: str) -> tuple[bool, str]:
    return len(name) > 1, name


def _baseline_extensions(platform: Platform) -> frozenset[str]:
    extensions: list[str] = []
    for level in platform.machine.isa_levels:
        extensions += level.extensions.split()
        if level == platform.baseline:
            break
    return frozenset(extensions)


def _check_riscv_rve(_: Platform, __: str) -> str:
    return "the RV64E calling convention"


def _check_ppc64_abi(_: Platform, value: str) -> str:
    return "" if value == "v2" else f"ELF ABI {value}, and little-endian Linux has v2"


def _check_mips_nan(_: Platform, value: str) -> str:
    """Report 2008 NaNs: the kernel refuses an encoding that the FPU lacks (arch/mips/kernel/elf.c)."""
    return f"NaN as in IEEE 754-{value}"


def _check_mips_ase(_: Platform, value: str) -> str:
    return f"the {value} extension"


_CHECKS: dict[tuple[str, str], Callable[[Platform, str], str]] = {
    (GO_BUILDINFO, "GOARM"): _check_goarm,
    (GO_BUILDINFO, "GOARM64"): _check_goarm64,
    (GO_BUILDINFO, "GOOS"): _check_goos,
    ("ELF header", "OS ABI"): _check_os_abi,
    (".riscv.attributes", "arch"): _check_riscv_arch,
    ("ELF flags", "RVE"): _check_riscv_rve,
    ("ELF flags", "NaN"): _check_mips_nan,
    ("ELF flags", "PPC64 ABI"): _check_ppc64_abi,
    (".MIPS.abiflags", "ASE"): _check_mips_ase,
}


def arm_float_abi(binary: Binary) -> str:
    """Return the float ABI of an ARM binary: ``hard``, ``soft``, or an empty string if it is not recorded."""
    if binary.header.machine is None or binary.header.machine.architecture != "arm":
        return ""
    values = [item.value for item in binary.evidence if item.name == "float ABI"]
    return next((value for value in values if value in ("hard", "soft")), "")


def missing_isa_info_reason(binary: Binary) -> str:
    """Return why the level that a binary needs is unknown, or an empty string if it records one."""
    machine = binary.header.machine
    if machine is None:
        return "its machine is unknown"
    level_names = {machine.go_variable, "CPU architecture", "needed", "MIPS architecture", "arch"}
    if any(item.name in level_names for item in binary.evidence):
        return ""
    if machine.has_isa_records:
        return "the file records no level of the instruction set"
    exception = ", except Go's" if machine.go_variable else ""
    return f"{machine.architecture} files record no level of the instruction set{exception}"
