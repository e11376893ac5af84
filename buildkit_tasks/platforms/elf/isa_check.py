"""Judge what a binary needs against what its platform's name promises.

A platform promises a level of its architecture's instruction set (:attr:`Platform.promise`); a binary
that says that it needs a later one may end with an illegal instruction, or be refused by its loader.
One that needs less passes. A binary that says nothing proves nothing: see :func:`silence`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildkit_tasks.platforms.elf.model import CHOICE, GO_BUILDINFO, Evidence, riscv_extensions

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.platforms import Machine, Platform
    from buildkit_tasks.platforms.elf.model import Binary

__all__ = [
    "STREAM_MAGICS",
    "STREAM_WINDOW",
    "float_abi",
    "isa_doubts",
    "isa_problems",
    "silence",
]

STREAM_MAGICS: tuple[bytes, ...] = (b"\xff Go buildinf:", b"aeabi\0")
"""What to look for in a file that is too large to keep: Go build info and Arm's build attributes.

A kept window should start 16 bytes before a hit and reach :data:`STREAM_WINDOW` bytes behind it.
"""
STREAM_WINDOW = 1 << 17


# Sources that are merged from all object files of a binary, hand-written ones included.
_OF_ALL_CODE = frozenset({".ARM.attributes", ".riscv.attributes", ".MIPS.abiflags"})


def isa_problems(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """Why the binary needs more than the platform promises, in words; nothing if it does not.

    Only for binaries of the platform's own machine; one for another machine has worse problems.
    """
    return _words(platform, binary, doubted=False)


def isa_doubts(platform: Platform, binary: Binary) -> tuple[str, ...]:
    """What the binary has beyond the platform's promise, and seems to use only where the machine has it.

    Build attributes are of the whole file. A library that chooses among several forms of a function
    when it runs has the attributes of the latest one: Debian's libgcrypt for ARMv7 says ARMv8.
    """
    return _words(platform, binary, doubted=True)


def _words(platform: Platform, binary: Binary, *, doubted: bool) -> tuple[str, ...]:
    row = binary.header.row
    if row is None or row.architecture != platform.architecture:
        return ()
    choice = next((item.value for item in binary.evidence if item.name == CHOICE), "")
    found = []
    for item in binary.evidence:
        chosen = bool(choice) and item.source in _OF_ALL_CODE
        need = _need(platform, row, item) if chosen == doubted else ""
        if need and doubted:
            found.append(
                f"has code for {need} ({item}) and asks the machine when it runs ({choice}): "
                f"taken as a choice; {_promise(platform)}"
            )
        elif need:
            found.append(f"needs {need} ({item}); {_promise(platform)}{_remedy(platform, row, item)}")
    return tuple(dict.fromkeys(found))


def _need(platform: Platform, row: Machine, item: Evidence) -> str:
    """What the item says is needed beyond the platform's promise."""
    if item.source == GO_BUILDINFO and item.name not in ("GOOS", row.go_setting):
        return ""  # another machine's setting, which chose nothing here
    judge = _JUDGES.get((item.source, item.name))
    if judge:
        return judge(platform, item.value)
    named = item.source == GO_BUILDINFO or (item.source, item.name) in _LADDERS
    return _level(platform, row, item.value) if named else ""


def _level(platform: Platform, row: Machine, value: str) -> str:
    """The title of a level that the architecture table knows by this value, if the promise is below it."""
    for number, level in enumerate(row.ladder):
        if value == level.go or value in level.said:
            return level.title if platform.promise in row.ladder[:number] else ""
    return f"{value}, a level that is not known here" if row.ladder else ""


def _promise(platform: Platform) -> str:
    level = platform.promise
    return f"{platform} promises {level.title}" if level else f"{platform} promises nothing of the kind"


def _remedy(platform: Platform, row: Machine, item: Evidence) -> str:
    level = platform.promise
    if level is None or item.name in ("OS ABI", "GOOS"):
        return ""
    setting = f"{row.go_setting}={level.go}" if level.go else ""
    way = setting if item.source == GO_BUILDINFO else level.option
    return f": build it with {way}" if way else ""


# Evidence whose values are names of levels in the architecture table.
_LADDERS = frozenset(
    {
        (".ARM.attributes", "CPU architecture"),
        ("entry point", "instructions"),
        ("x86 ISA note", "needed"),
        ("ELF flags", "MIPS architecture"),
    }
)

_ARM64 = re.compile(r"v([89]\.[0-9])((?:,(?:lse|crypto))*)\Z", re.ASCII)


def _goarm64(platform: Platform, value: str) -> str:
    """GOARM64 is a level and options: ``v8.0``, ``v9.2``, ``v8.0,lse,crypto``.

    Armv9.N has all of Armv8.(N+5); LSE (atomics) is part of Armv8.1; crypto is promised by none.
    """
    match = _ARM64.match(value)
    if match is None:
        return _level(platform, platform.machine, value)
    promised_v9, promised = _arm64_rank(platform.variant or "v8")
    needed_v9, needed = _arm64_rank(f"v{match[1]}")
    needs = []
    if needed_v9 > promised_v9 or needed > promised:
        needs.append(f"Armv{match[1]}-A")
    if "lse" in match[2] and not promised and not needed:
        needs.append("the atomics of Armv8.1-A (LSE)")
    if "crypto" in match[2]:
        needs.append("the cryptography extension")
    return " and ".join(needs)


def _arm64_rank(level: str) -> tuple[bool, int]:
    """Whether it is Armv9, and the number of the Armv8 level that it has all of."""
    major, _, minor = level.removeprefix("v").partition(".")
    number = int(minor) if minor.isdecimal() and minor.isascii() and len(minor) == 1 else 0
    return (True, number + 5) if major == "9" else (False, number)


def _goarm(platform: Platform, value: str) -> str:
    """GOARM may also choose floating point: ``6,softfloat``, ``5,hardfloat``; 5 alone has none."""
    if value == "5,hardfloat" and platform.variant == "v5":
        return "a floating-point unit (VFP)"
    return _level(platform, platform.machine, value.partition(",")[0])


def _goos(platform: Platform, value: str) -> str:
    # Android's Go programs are Linux programs that look for Android's loader, if for any.
    theirs = value == platform.os or (value == "android" and platform.os == "linux")
    return "" if theirs else value


def _os_abi(platform: Platform, value: str) -> str:
    return value if platform.os == "linux" else ""


def _riscv_arch(platform: Platform, value: str) -> str:
    """The extensions beyond the promised profile, by name."""
    more = riscv_extensions(value) - _promised_extensions(platform)
    if "v" in more:  # which implies these
        more = {name for name in more if not name.startswith(("zve", "zvl"))}
    kind = "extension" if len(more) == 1 else "extensions"
    return f"the RISC-V {kind} {', '.join(sorted(more, key=_canonical))}" if more else ""


def _canonical(name: str) -> tuple[bool, str]:
    return len(name) > 1, name


def _promised_extensions(platform: Platform) -> frozenset[str]:
    names: list[str] = []
    for level in platform.machine.ladder:
        names += level.extensions.split()
        if level == platform.promise:
            break
    return frozenset(names)


def _riscv_rve(_: Platform, __: str) -> str:
    return "the RV64E calling convention"


def _ppc64_abi(_: Platform, value: str) -> str:
    return "" if value == "v2" else f"ELF ABI {value}, and little-endian Linux has v2"


def _mips_nan(_: Platform, value: str) -> str:
    """The kernel refuses programs of the encoding that the FPU does not have (arch/mips/kernel/elf.c)."""
    return f"NaN as in IEEE 754-{value}"


def _mips_ase(_: Platform, value: str) -> str:
    return f"the {value} extension"


_JUDGES: dict[tuple[str, str], Callable[[Platform, str], str]] = {
    (GO_BUILDINFO, "GOARM"): _goarm,
    (GO_BUILDINFO, "GOARM64"): _goarm64,
    (GO_BUILDINFO, "GOOS"): _goos,
    ("ELF header", "OS ABI"): _os_abi,
    (".riscv.attributes", "arch"): _riscv_arch,
    ("ELF flags", "RVE"): _riscv_rve,
    ("ELF flags", "NaN"): _mips_nan,
    ("ELF flags", "PPC64 ABI"): _ppc64_abi,
    (".MIPS.abiflags", "ASE"): _mips_ase,
}


def float_abi(binary: Binary) -> str:
    """How an ARM binary passes floating-point numbers: ``hard``, ``soft``, or nothing if it is not said."""
    if binary.header.row is None or binary.header.row.architecture != "arm":
        return ""
    said = [item.value for item in binary.evidence if item.name == "float ABI"]
    return next((value for value in said if value in ("hard", "soft")), "")


def silence(binary: Binary) -> str:
    """Why nothing is known of the instruction set that a binary needs; nothing where it names a level."""
    row = binary.header.row
    if row is None:
        return "its machine is not known here"
    named = {row.go_setting, "CPU architecture", "needed", "MIPS architecture", "arch"}
    if any(item.name in named for item in binary.evidence):
        return ""
    if row.architecture in _NO_RECORD:
        return (
            f"{row.architecture} files record no level of the instruction set{_NO_RECORD[row.architecture]}"
        )
    return "the file records no level of the instruction set"


# Architectures whose ABI has no place for it.
_NO_RECORD = {"arm64": ", except Go's", "ppc64le": ", except Go's", "s390x": "", "loong64": ""}
