"""Build attributes: what a compiler noted of the instruction set and the ABI that it used.

The format is that of "Addenda to, and Errata in, the ABI for the Arm Architecture", chapter "Build
Attributes"; the RISC-V ELF psABI, section "Attributes", uses it too. A section holds the letter A,
then subsections by vendor, each with attributes of the file, of sections or of symbols: pairs of a
tag and a number (ULEB128) or a text (ended by a NUL byte).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.platforms.elf.view import Order

__all__ = ["MAX_ATTRIBUTES", "read_attributes"]

MAX_ATTRIBUTES = 1 << 16
"""The most bytes of a section that are read; real ones have about 50."""

_FILE = 1
_COMPATIBILITY = 32
_TEXT_TAGS = {"aeabi": frozenset({4, 5, 65, 67}), "riscv": frozenset()}
_FIRST_BY_PARITY = {"aeabi": 33, "riscv": 0}
_MAX_TEXT = 4096
_MAX_COUNT = 1024


def read_attributes(data: bytes, vendor: str, order: Order) -> dict[int, int | str]:
    """The attributes of the whole file from one vendor (``aeabi`` or ``riscv``), by their tags.

    Raises :class:`MalformedImage` for a section that contradicts itself.
    """
    if data[:1] != b"A":
        raise MalformedImage("build attributes of an unknown version")
    found: dict[int, int | str] = {}
    for block in _blocks(data, 1, order, before=0):
        name, at = _text(block, 4)
        if name != vendor:
            continue
        for part in _blocks(block, at, order, before=1):
            if part[0] == _FILE:
                found.update(_pairs(part, vendor))
    return found


def _blocks(data: bytes, at: int, order: Order, before: int) -> Iterator[bytes]:
    """Pieces that start with their own length in 4 bytes, ``before`` bytes into the piece."""
    count = 0
    while at < len(data):
        raw = data[at + before : at + before + 4]
        size = int.from_bytes(raw, order)
        count += 1
        if len(raw) < 4 or size < before + 4 or at + size > len(data) or count > _MAX_COUNT:
            raise MalformedImage(f"a block of build attributes of {size} bytes at {at}")
        yield data[at : at + size]
        at += size


def _pairs(part: bytes, vendor: str) -> Iterator[tuple[int, int | str]]:
    at, count = 5, 0
    while at < len(part) and count < _MAX_COUNT:
        tag, at = _number(part, at)
        value: int | str
        if vendor == "aeabi" and tag == _COMPATIBILITY:
            # The one attribute of two values: a flag, then the name of a tool chain.
            _, at = _number(part, at)
            value, at = _text(part, at)
        elif _is_text(tag, vendor):
            value, at = _text(part, at)
        else:
            value, at = _number(part, at)
        yield tag, value
        count += 1


def _is_text(tag: int, vendor: str) -> bool:
    """Odd tags are texts, so that readers can step over what they do not know."""
    return tag in _TEXT_TAGS[vendor] or (tag >= _FIRST_BY_PARITY[vendor] and tag % 2 == 1)


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for count, byte in enumerate(data[at : at + 10]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:  # the top bit says that more follows
            return value, at + count + 1
    raise MalformedImage("a build attribute that is a number without end")


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = data.find(b"\0", at, at + _MAX_TEXT)
    if end < 0:
        raise MalformedImage("a build attribute that is a text without end")
    return data[at:end].decode("utf-8", "replace"), end + 1
