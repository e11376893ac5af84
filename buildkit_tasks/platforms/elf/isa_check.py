"""Judge what a binary needs against what its platform's name promises.

A platform promises a level of its architecture's instruction set (:attr:`Platform.promise`); a binary
that says that it needs a later one may end with an illegal instruction, or be refused by its loader.
One that needs less passes. A binary that says nothing proves nothing: see :func:`silence`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

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

STREAM_MAGICS: tuple[bytes, ...] = (b"\xff Go buildinf:", b"aeabi\0")
"""What to look for in a file that is too large to keep: Go build info and Arm's build attributes.

A kept window should start 16 bytes before a hit and reach :data:`STREAM_WINDOW` bytes behind it.
"""
STREAM_WINDOW_SIZE = 1 << 17


# Sources that are merged from all object files of a binary, hand-written ones included.
_WHOLE_FILE_SOURCES = frozenset({".ARM.attributes", ".riscv.attributes", ".MIPS.abiflags"})


def isa_problems(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """Why the binary needs more than the platform promises, in words; nothing if it does not.

    Only for binaries of the platform's own machine; one for another machine has worse problems.
    """
    return _isa_messages(platform, binary, as_warnings=False)


def isa_warnings(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """What the binary has beyond the platform's promise, and seems to use only where the machine has it.

    Build attributes are of the whole file. A library that chooses among several forms of a function
    when it runs has the attributes of the latest one: Debian's libgcrypt for ARMv7 says ARMv8.
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
                f"has code for {requirement} ({item}) and asks the machine when it runs ({detection}): "
                f"taken as a choice; {_describe_baseline(platform)}"
            )
        elif requirement:
            messages.append(
                f"needs {requirement} ({item}); "
                f"{_describe_baseline(platform)}{_suggest_build_option(platform, machine, item)}"
            )
    return tuple(dict.fromkeys(messages))


def _unmet_requirement(platform: Platform, machine: Machine, evidence: Evidence) -> str:
    """What the item says is needed beyond the platform's promise."""
    if evidence.source == GO_BUILDINFO and evidence.name not in ("GOOS", machine.go_variable):
        return ""  # another machine's setting, which chose nothing here
    check = _CHECKS.get((evidence.source, evidence.name))
    if check:
        return check(platform, evidence.value)
    named = evidence.source == GO_BUILDINFO or (evidence.source, evidence.name) in _LEVEL_EVIDENCE
    return _unmet_level(platform, machine, evidence.value) if named else ""


def _unmet_level(platform: Platform, machine: Machine, value: str) -> str:
    """The title of a level that the architecture table knows by this value, if the promise is below it."""
    for index, level in enumerate(machine.isa_levels):
        if value == level.go_value or value in level.evidence_values:
            return level.title if platform.baseline in machine.isa_levels[:index] else ""
    return f"{value}, a level that is not known here" if machine.isa_levels else ""


def _describe_baseline(platform: Platform) -> str:
    baseline = platform.baseline
    return f"{platform} promises {baseline.title}" if baseline else f"{platform} promises nothing of the kind"


def _suggest_build_option(platform: Platform, machine: Machine, evidence: Evidence) -> str:
    baseline = platform.baseline
    if baseline is None or evidence.name in ("OS ABI", "GOOS"):
        return ""
    setting = f"{machine.go_variable}={baseline.go_value}" if baseline.go_value else ""
    way = setting if evidence.source == GO_BUILDINFO else baseline.compiler_option
    return f": build it with {way}" if way else ""


# Evidence whose values are names of levels in the architecture table.
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
    """GOARM64 is a level and options: ``v8.0``, ``v9.2``, ``v8.0,lse,crypto``.

    Armv9.N has all of Armv8.(N+5); LSE (atomics) is part of Armv8.1; crypto is promised by none.
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
    """Whether it is Armv9, and the number of the Armv8 level that it has all of."""
    major, _, minor = level.removeprefix("v").partition(".")
    rank = int(minor) if minor.isdecimal() and minor.isascii() and len(minor) == 1 else 0
    return (True, rank + 5) if major == "9" else (False, rank)


def _check_goarm(platform: Platform, value: str) -> str:
    """GOARM may also choose floating point: ``6,softfloat``, ``5,hardfloat``; 5 alone has none."""
    if value == "5,hardfloat" and platform.variant == "v5":
        return "a floating-point unit (VFP)"
    return _unmet_level(platform, platform.machine, value.partition(",")[0])


def _check_goos(platform: Platform, value: str) -> str:
    # Android's Go programs are Linux programs that look for Android's loader, if for any.
    is_same_os = value == platform.os or (value == "android" and platform.os == "linux")
    return "" if is_same_os else value


def _check_os_abi(platform: Platform, value: str) -> str:
    return value if platform.os == "linux" else ""


def _check_riscv_arch(platform: Platform, value: str) -> str:
    """The extensions beyond the promised profile, by name."""
    unmet_extensions = riscv_extensions(value) - _baseline_extensions(platform)
    if "v" in unmet_extensions:  # which implies these
        unmet_extensions = {name for name in unmet_extensions if not name.startswith(("zve", "zvl"))}
    noun = "extension" if len(unmet_extensions) == 1 else "extensions"
    return (
        f"the RISC-V {noun} {', '.join(sorted(unmet_extensions, key=_extension_sort_key))}"
        if unmet_extensions
        else ""
    )


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
    """The kernel refuses programs of the encoding that the FPU does not have (arch/mips/kernel/elf.c)."""
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
    """How an ARM binary passes floating-point numbers: ``hard``, ``soft``, or nothing if it is not said."""
    if binary.header.machine is None or binary.header.machine.architecture != "arm":
        return ""
    values = [item.value for item in binary.evidence if item.name == "float ABI"]
    return next((value for value in values if value in ("hard", "soft")), "")


def missing_isa_info_reason(binary: Binary) -> str:
    """Why nothing is known of the instruction set that a binary needs; nothing where it names a level."""
    machine = binary.header.machine
    if machine is None:
        return "its machine is not known here"
    level_names = {machine.go_variable, "CPU architecture", "needed", "MIPS architecture", "arch"}
    if any(item.name in level_names for item in binary.evidence):
        return ""
    if machine.architecture in _WITHOUT_ISA_INFO:
        return (
            f"{machine.architecture} files record no level of the instruction "
            f"set{_WITHOUT_ISA_INFO[machine.architecture]}"
        )
    return "the file records no level of the instruction set"


# Architectures whose ABI has no place for it.
_WITHOUT_ISA_INFO = {"arm64": ", except Go's", "ppc64le": ", except Go's", "s390x": "", "loong64": ""}
