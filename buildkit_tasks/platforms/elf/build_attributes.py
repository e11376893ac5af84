"""Build attributes, in which compilers record the instruction set and the ABI that they used.

The format is from "Addenda to, and Errata in, the ABI for the Arm Architecture", chapter "Build
Attributes"; the RISC-V ELF psABI, section "Attributes", uses it too. A section is the letter A, then
subsections by vendor, each with attributes of the file, of sections or of symbols: pairs of a tag and
a number (ULEB128) or a NUL-terminated string.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.platforms.elf.view import ByteOrder

__all__ = ["MAX_ATTRIBUTES_SIZE", "read_attributes"]

MAX_ATTRIBUTES_SIZE = 1 << 16
"""How many bytes of a section are read at most; real ones have about 50."""

_TAG_FILE = 1
_TAG_COMPATIBILITY = 32
_STRING_TAGS = {"aeabi": frozenset({4, 5, 65, 67}), "riscv": frozenset()}
_FIRST_PARITY_TAG = {"aeabi": 33, "riscv": 0}
_MAX_STRING_SIZE = 4096
_MAX_COUNT = 1024


def read_attributes(data: bytes, vendor: str, byte_order: ByteOrder) -> dict[int, int | str]:
    """Return the attributes of the whole file from one vendor (``aeabi`` or ``riscv``) by tag.

    Raise :class:`MalformedImage` for an unknown version, a wrong length or an unterminated value.
    """
    if data[:1] != b"A":
        raise MalformedImage("build attributes: unknown version")
    attributes: dict[int, int | str] = {}
    for subsection in _iter_blocks(data, 1, byte_order, length_offset=0):
        subsection_vendor, offset = _read_string(subsection, 4)
        if subsection_vendor != vendor:
            continue
        for subsubsection in _iter_blocks(subsection, offset, byte_order, length_offset=1):
            if subsubsection[0] == _TAG_FILE:
                attributes.update(_iter_attributes(subsubsection, vendor))
    return attributes


def _iter_blocks(data: bytes, offset: int, byte_order: ByteOrder, length_offset: int) -> Iterator[bytes]:
    """Yield the blocks at ``offset``; each has its length in 4 bytes at ``length_offset``."""
    count = 0
    while offset < len(data):
        length_field = data[offset + length_offset : offset + length_offset + 4]
        size = int.from_bytes(length_field, byte_order)
        count += 1
        if (
            len(length_field) < 4
            or size < length_offset + 4
            or offset + size > len(data)
            or count > _MAX_COUNT
        ):
            raise MalformedImage(f"build attributes: invalid block of {size} bytes at offset {offset}")
        yield data[offset : offset + size]
        offset += size


def _iter_attributes(subsubsection: bytes, vendor: str) -> Iterator[tuple[int, int | str]]:
    offset, count = 5, 0
    while offset < len(subsubsection) and count < _MAX_COUNT:
        tag, offset = _read_uleb128(subsubsection, offset)
        value: int | str
        if vendor == "aeabi" and tag == _TAG_COMPATIBILITY:
            # The only attribute with two values: a flag, then the name of a toolchain.
            _, offset = _read_uleb128(subsubsection, offset)
            value, offset = _read_string(subsubsection, offset)
        elif _is_string_tag(tag, vendor):
            value, offset = _read_string(subsubsection, offset)
        else:
            value, offset = _read_uleb128(subsubsection, offset)
        yield tag, value
        count += 1


def _is_string_tag(tag: int, vendor: str) -> bool:
    """Return True for a tag whose value is a string: unknown odd tags are, so that they can be skipped."""
    return tag in _STRING_TAGS[vendor] or (tag >= _FIRST_PARITY_TAG[vendor] and tag % 2 == 1)


def _read_uleb128(data: bytes, offset: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[offset : offset + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:  # the top bit is set if more bytes follow
            return value, offset + index + 1
    raise MalformedImage("build attributes: unterminated number")


def _read_string(data: bytes, offset: int) -> tuple[str, int]:
    end = data.find(b"\0", offset, offset + _MAX_STRING_SIZE)
    if end < 0:
        raise MalformedImage("build attributes: unterminated string")
    return data[offset:end].decode("utf-8", "replace"), end + 1
