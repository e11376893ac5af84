"""Guests that misbehave, for both runners: machine code for amd64 and arm64, and shell commands.

The programs are static ELF files of a few hundred bytes, built without a compiler. The commands are for
``sh -c`` in any base image, a stand-in included.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from tests.support.project import program

Guest = Callable[[str], bytes]  # platform -> program

# Commands for `sh -c` in a base image with at least busybox.
FORK_BOMB = "bomb() { bomb | bomb & }; bomb; sleep 60"
MEMORY_HOG = "dd if=/dev/zero of=/dev/null bs=2000M count=1"
MEMORY_HOG_IN_CHILD = f"{MEMORY_HOG}; exit 0"
FLOOD = "yes"
FLOOD_STDERR = "yes >&2"

PLATFORMS = ("linux/amd64", "linux/arm64")  # of all programs below

_EXIT = {
    "linux/amd64": "31 ff  b8 3c 00 00 00  0f 05",
    "linux/386": "31 db  b8 01 00 00 00  cd 80",
    "linux/arm64": "00 00 80 d2  a8 0b 80 d2  01 00 00 d4",
    "linux/arm/v6": "00 00 a0 e3  01 70 a0 e3  00 00 00 ef",
    "linux/ppc64le": "00 00 60 38  01 00 00 38  02 00 00 44",
    "linux/riscv64": "13 05 00 00  93 08 d0 05  73 00 00 00",
}
_NEWER_INSTRUCTIONS = {
    "linux/amd64": "f3 0f b8 c0",  # popcnt eax, eax: of x86-64-v2
    "linux/386": "f3 0f b8 c0",  # the same; Go's 386 promises SSE2
    "linux/arm64": "e1 03 00 91  20 00 21 b8",  # mov x1, sp; ldadd w1, w0, [x1]: of Armv8.1-A (LSE)
    "linux/arm/v6": "00 00 00 e3",  # movw r0, #0: of ARMv6T2 and ARMv7
    "linux/ppc64le": "16 22 64 7c",  # moduw r3, r4, r4: of POWER9
    "linux/riscv64": "33 a5 c5 20",  # sh1add a0, a1, a2: of RVA22U64 (Zba)
}
NEWER_INSTRUCTION_PLATFORMS = tuple(_NEWER_INSTRUCTIONS)


def newer_instruction(platform: str) -> bytes:
    """Return a program that exits with 0 on a current CPU, and by SIGILL (132) on the baseline CPU."""
    return program(platform, code=f"{_NEWER_INSTRUCTIONS[platform]}  {_EXIT[platform]}")


def ignore_signals(platform: str) -> bytes:
    """Return a program that blocks every signal it can, TERM included, and waits for ever."""
    amd64 = (
        "b8 0e 00 00 00  31 ff  48 8d 35 13 00 00 00  31 d2  41 ba 08 00 00 00  0f 05"  # rt_sigprocmask
        "b8 22 00 00 00  0f 05  eb f7"  # pause in a loop
        "ff ff ff ff ff ff ff ff"
    )
    arm64 = _encode_words(
        0x100001A1, 0xD2800000, 0xD2800002, 0xD2800103, 0xD28010E8, 0xD4000001,  # rt_sigprocmask
        0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA,  # ppoll
        0xFFFFFFFF, 0xFFFFFFFF,
    )  # fmt: skip
    return _program(platform, amd64, arm64)


def segfault(platform: str) -> bytes:
    """Return a program that reads from address 0: SIGSEGV (139), which PID 1 must not survive either."""
    return _program(platform, "31 c0  8b 00", _encode_words(0xD2800000, 0xF9400000))


def fork_bomb(platform: str) -> bytes:
    """Return a program that forks for ever, as does each child."""
    amd64 = "b8 39 00 00 00  0f 05  eb f7"
    arm64 = _encode_words(
        0xD2800220, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0xD2801B88, 0xD4000001, 0x17FFFFF9
    )
    return _program(platform, amd64, arm64)


def memory_hog(platform: str, *, in_child: bool = False) -> bytes:
    """Return a program that writes to each page of a segment larger than a guest's memory limit.

    With ``in_child`` a child does so; the parent waits for it and exits with 0.
    """
    fork = {
        "linux/amd64": (
            "b8 39 00 00 00  0f 05  85 c0  74 1e"  # fork; to the child's part
            "b8 3d 00 00 00  48 c7 c7 ff ff ff ff  31 f6  31 d2  45 31 d2  0f 05"  # wait4(-1)
        ) + _EXIT["linux/amd64"],
        "linux/arm64": _encode_words(
            0xD2800220, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800004, 0xD2801B88, 0xD4000001,
            0xB4000140,  # cbz x0: skip ten instructions in the child
            0x92800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2802088, 0xD4000001,  # wait4(-1)
        ) + _EXIT["linux/arm64"],
    }  # fmt: skip
    hog = {
        "linux/amd64": "bf 00 00 02 00  c6 07 01  48 81 c7 00 10 00 00  eb f4",
        "linux/arm64": _encode_words(0xD2A00041, 0x39000021, 0x91400421, 0x17FFFFFE),
    }
    data = bytearray(program(platform, code=(fork[platform] if in_child else "") + hog[platform]))
    struct.pack_into("<I", data, 64 + 4, 7)  # p_flags: read, write, execute
    struct.pack_into("<Q", data, 64 + 40, 2 << 30)  # p_memsz
    return bytes(data)


def flood(platform: str, *, stream: int = 1) -> bytes:
    """Return a program that writes a page of binary data to standard output (1) or error (2) for ever."""
    amd64 = f"b8 01 00 00 00  bf 0{stream} 00 00 00  be 00 00 01 00  ba 00 10 00 00  0f 05  eb e8"
    arm64 = _encode_words(
        0xD2800000 | stream << 5, 0xD2A00021, 0xD2820002, 0xD2800808, 0xD4000001, 0x17FFFFFB
    )
    return _program(platform, amd64, arm64)


def _program(platform: str, amd64: str, arm64: str) -> bytes:
    return program(platform, code={"linux/amd64": amd64, "linux/arm64": arm64}[platform])


def _encode_words(*words: int) -> str:
    return " ".join(word.to_bytes(4, "little").hex(" ") for word in words) + " "
