"""Run programs of classic BPF over system calls, as the kernel does (linux/filter.h, seccomp(2))."""

from __future__ import annotations

import struct

__all__ = ["ALLOW", "ERRNO", "KILL_PROCESS", "KILL_THREAD", "evaluate"]

ALLOW, ERRNO, KILL_PROCESS, KILL_THREAD = 0x7FFF0000, 0x00050000, 0x80000000, 0  # linux/seccomp.h
_LOAD, _AND, _JUMP, _RETURN = 0x20, 0x54, 0x05, 0x06
_EQUAL, _GREATER, _AT_LEAST, _COMMON_BIT = 0x15, 0x25, 0x35, 0x45
_WORD, _DOUBLE_WORD = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF


def evaluate(program: bytes, arch: int, number: int, *arguments: int, order: str = "<") -> int:
    """Return what a filter answers; ``order`` is ``"<"`` or ``">"``, the byte order of its machine.

    Like the kernel's verifier it raises an error for an instruction, a jump or an offset that is not valid.
    """
    padded = [value & _DOUBLE_WORD for value in (*arguments, *[0] * (6 - len(arguments)))]
    data = struct.pack(f"{order}IIQ6Q", number & _WORD, arch, 0, *padded)
    instructions = list(struct.iter_unpack(f"{order}HBBI", program))
    position = accumulator = 0
    while True:
        code, if_true, if_false, constant = instructions[position]
        position += 1
        if code == _RETURN:
            return int(constant)
        if code == _LOAD:
            (accumulator,) = struct.unpack_from(f"{order}I", data, constant)
        elif code == _AND:
            accumulator &= constant
        elif code == _JUMP:
            position += constant
        else:
            holds = {
                _EQUAL: accumulator == constant,
                _GREATER: accumulator > constant,
                _AT_LEAST: accumulator >= constant,
                _COMMON_BIT: bool(accumulator & constant),
            }[code]
            position += if_true if holds else if_false
