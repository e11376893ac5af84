"""Guests that take memory which belongs to no process, or which their processes share, and threads.

Each is a list of system calls made once, and one made over and over, as machine code for amd64 and arm64.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.support.project import program

_SIZE = 3 << 29  # bytes: more than a guest may have
_SEGMENT_SIZE = 1 << 28
_BUFFER = 0x20000  # in the program's memory, behind its file
_BUFFER_SIZE = 1 << 20
_SAVED = "the last result that was saved"
_STORED = "the descriptor at the start of the buffer"

_MAP_SHARED_ANONYMOUS_POPULATE = 0x8021
_MADV_POPULATE_WRITE = 23
_SIGCHLD = 17
_THREAD_FLAGS = 0x50F00  # CLONE_VM, FS, FILES, SIGHAND, THREAD and SYSVSEM: include/uapi/linux/sched.h


@dataclass(frozen=True)
class Call:
    """A system call: its numbers on amd64 and arm64, and its arguments; ``saves`` keeps its result."""

    amd64: int
    arm64: int
    arguments: tuple[int | str, ...] = ()
    saves: bool = False


_WAIT = Call(271, 73, (0, 0, 0, 0))  # ppoll
_FORK = Call(56, 220, (_SIGCHLD, 0, 0, 0, 0))  # clone
BOMBS: dict[str, tuple[list[Call], list[Call]]] = {
    "memfd": (
        [Call(319, 279, (_BUFFER, 0), saves=True)],
        [Call(1, 64, (_SAVED, _BUFFER, _BUFFER_SIZE // 2))],  # write
    ),
    "shared mapping": ([Call(9, 222, (0, _SIZE, 3, _MAP_SHARED_ANONYMOUS_POPULATE, -1, 0))], [_WAIT]),
    # Each segment is mapped nowhere before the next is made.
    "System V shared memory": (
        [],
        [
            Call(29, 194, (0, _SEGMENT_SIZE, 0o1600), saves=True),  # shmget
            Call(30, 196, (_SAVED, 0, 0), saves=True),  # shmat
            Call(28, 233, (_SAVED, _SEGMENT_SIZE, _MADV_POPULATE_WRITE)),
            Call(67, 197, (_SAVED,)),  # shmdt
        ],
    ),
    "threads": ([], [Call(56, 220, (_THREAD_FLAGS, 0, 0, 0, 0))]),  # clone: each goes on on the same stack
    "sockets": (
        [_FORK] * 4,
        [
            Call(53, 199, (1, 0x801, 0, _BUFFER)),  # socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK)
            Call(1, 64, (_STORED, _BUFFER, _BUFFER_SIZE // 2)),
        ],
    ),
}


def bomb(platform: str, name: str) -> bytes:
    """Return one of :data:`BOMBS` as a program."""
    once, repeated = BOMBS[name]
    assemble = {"linux/amd64": _assemble_amd64, "linux/arm64": _assemble_arm64}[platform]
    loop = b"".join(map(assemble, repeated))
    jump = _jump_amd64(-len(loop)) if platform == "linux/amd64" else _jump_arm64(-len(loop))
    data = bytearray(program(platform, code=(b"".join(map(assemble, once)) + loop + jump).hex()))
    struct.pack_into("<I", data, 64 + 4, 7)  # p_flags: read, write, execute
    struct.pack_into("<Q", data, 64 + 40, _BUFFER - 0x10000 + _BUFFER_SIZE)  # p_memsz
    return bytes(data)


# mov to rdi, rsi, rdx, r10, r8 and r9
_AMD64_ARGUMENTS = ("48c7c7", "48c7c6", "48c7c2", "49c7c2", "49c7c0", "49c7c1")


def _assemble_amd64(call: Call) -> bytes:
    code = b""
    for opcode, argument in zip(_AMD64_ARGUMENTS, call.arguments, strict=False):
        if argument == _SAVED:
            code += bytes.fromhex("4889df")  # mov rdi, rbx
        elif argument == _STORED:
            code += bytes.fromhex("8b3c25") + struct.pack("<i", _BUFFER)  # mov edi, [buffer]
        else:
            code += bytes.fromhex(opcode) + struct.pack("<i", argument)
    code += b"\xb8" + struct.pack("<i", call.amd64) + bytes.fromhex("0f05")  # mov eax; syscall
    return code + (bytes.fromhex("4889c3") if call.saves else b"")  # mov rbx, rax


def _assemble_arm64(call: Call) -> bytes:
    words = []
    for register, argument in enumerate(call.arguments):
        if argument == _SAVED:
            words.append(0xAA1303E0 | register)  # mov x0, x19
        elif argument == _STORED:
            words += [*_load_arm64(register, _BUFFER), 0xB9400000 | register << 5 | register]  # ldr w0, [x0]
        else:
            words += _load_arm64(register, int(argument))
    words += [*_load_arm64(8, call.arm64), 0xD4000001]  # svc
    words += [0xAA0003F3] if call.saves else []  # mov x19, x0
    return struct.pack(f"<{len(words)}I", *words)


def _load_arm64(register: int, value: int) -> list[int]:
    if value < 0:
        return [0x92800000 | ~value << 5 | register]  # movn
    low, high = value & 0xFFFF, value >> 16
    return [0xD2800000 | low << 5 | register, 0xF2A00000 | high << 5 | register]  # movz, movk


def _jump_amd64(offset: int) -> bytes:
    return b"\xe9" + struct.pack("<i", offset - 5)


def _jump_arm64(offset: int) -> bytes:
    return struct.pack("<I", 0x14000000 | offset // 4 & 0x3FFFFFF)
