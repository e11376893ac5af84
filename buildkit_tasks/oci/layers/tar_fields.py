"""Parse the fields of tar headers and pax records: numbers, times, checksums, text.

Every parser raises :class:`ValueError` for a malformed field.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "EXPECTED_ADLER32",
    "MAX_PATH_LENGTH",
    "NS_PER_SECOND",
    "NUMBERS",
    "decode_text",
    "has_invalid_times",
    "parse_int64",
    "parse_pax_records",
    "parse_pax_time",
    "verify_checksum",
]

MAX_PATH_LENGTH = 4096  # PATH_MAX in Linux's include/uapi/linux/limits.h
NS_PER_SECOND = 1_000_000_000  # nanoseconds

_SIGNED_BYTES = struct.Struct("148b8x356b")
_BASE_256_FLAG = 0x80  # GNU: the top bit of the first byte marks a binary number
_OCTAL_NUMBER = re.compile(rb" *([0-7]*)(?:[ \0].*)?", re.DOTALL)
_INTEGER = re.compile("[+-]?[0-9]+", re.ASCII)
_PAX_TIME = re.compile(r"([+-]?[0-9]+)(?:\.([0-9]*))?", re.ASCII)
_INT64_LIMIT = 1 << 63
_PAX_RECORD_LENGTH = re.compile(rb"([0-9]{1,7}) ")
_MAX_PAX_RECORDS = 1024
_MAX_CACHED_FIELDS = 4096


def verify_checksum(header: bytes, checksum_field: bytes) -> None:
    """Raise :class:`ValueError` unless the field has the sum of the header's bytes (POSIX ustar).

    The checksum field itself counts as blanks. Some historic writers summed signed bytes.
    """
    valid_sums = (sum(header) - sum(checksum_field) + 256, sum(_SIGNED_BYTES.unpack(header)) + 256)
    if _parse_checksum(checksum_field) not in valid_sums:
        raise ValueError("the header checksum is wrong")


def _expected_adler32(checksum_field: bytes) -> int:
    """Return what the low half of the header's Adler-32 is if its checksum is right.

    That half is one more than the sum of the bytes, modulo 65521, computed at C speed. A header that has
    another one is summed byte by byte, by :func:`verify_checksum`.
    """
    return 1 + _parse_checksum(checksum_field) - 256 + sum(checksum_field)


def _parse_checksum(field: bytes) -> int:
    """Parse a checksum, which is octal: archive/tar of Go takes no base-256 number for it."""
    if field[0] & _BASE_256_FLAG:
        raise ValueError(f"{field!r} is not an octal number")
    return _parse_number(field)


def has_invalid_times(prefix: bytes) -> bool:
    """Return True if the access or change time that GNU stores in the prefix field is not a number."""
    return any(map(_is_invalid_number, (prefix[:12], prefix[12:24])))


def _is_invalid_number(field: bytes) -> bool:
    if not field[0]:
        return False
    try:
        _parse_number(field)
    except ValueError:
        return True
    return False


def _parse_number(field: bytes) -> int:
    """Parse a number of a header, octal or (GNU) base-256."""
    digits = field.rstrip(b"\0 ")
    if digits.isdigit() and b"8" not in digits and b"9" not in digits:
        return int(digits, 8)
    if field[0] & _BASE_256_FLAG:
        value = int.from_bytes(field, "big", signed=True)
        return value + (1 << (len(field) * 8 - 1)) if value < 0 and field[0] == _BASE_256_FLAG else value
    match = _OCTAL_NUMBER.fullmatch(field)
    if match is None:
        raise ValueError(f"{field!r} is not an octal number")
    return int(match[1] or b"0", 8)


def parse_pax_records(data: bytes) -> dict[str, str]:
    """Return path, linkpath, size and owner of a pax header, whose lines are ``LENGTH KEY=VALUE``.

    Other keys are ignored, except for those of sparse files, which are rejected.
    """
    values: dict[str, str] = {}
    offset = record_count = 0
    while offset < len(data):
        match, record_count = _PAX_RECORD_LENGTH.match(data, offset), record_count + 1
        end = offset + int(match[1]) if match else 0
        record = data[match.end() : end] if match else b""
        key, separator, value = record[:-1].partition(b"=")
        if not separator or record[-1:] != b"\n" or end > len(data) or record_count > _MAX_PAX_RECORDS:
            raise ValueError("a malformed pax record")
        if key in (b"path", b"linkpath", b"size"):
            values[key.decode()] = _decode_pax_value(value)
        elif key in (b"mtime", b"uid", b"gid"):
            values[key.decode()] = decode_text(value)
        elif key.startswith(b"GNU.sparse."):
            raise ValueError("sparse files are not supported")
        offset = end
    return values


def _decode_pax_value(value: bytes) -> str:
    if len(value) > MAX_PATH_LENGTH or b"\0" in value:
        raise ValueError("a pax path that is too long or contains a NUL")
    return decode_text(value)


def parse_int64(text: str) -> int:
    """Parse a decimal 64-bit integer as Go's ``strconv.ParseInt``."""
    if not _INTEGER.fullmatch(text) or not -_INT64_LIMIT <= int(text) < _INT64_LIMIT:
        raise ValueError(f"{text[:40]!r} is not a 64-bit integer")
    return int(text)


def parse_pax_time(text: str) -> int:
    """Parse seconds with a fraction to nanoseconds, rounded towards zero, as Go's ``parsePAXTime``."""
    match = _PAX_TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a valid time")
    fraction = int((match[2] or "")[:9].ljust(9, "0"))
    return parse_int64(match[1]) * NS_PER_SECOND + (-fraction if text[0] == "-" else fraction)


def decode_text(data: bytes) -> str:
    """Decode UTF-8, other bytes as surrogates; plain ASCII takes half the time without an error handler."""
    return data.decode() if data.isascii() else data.decode("utf-8", "surrogateescape")


class _FieldCache(dict[bytes, int]):
    """Parsed fields by their bytes; most repeat. A look-up takes a quarter of ``lru_cache``'s time."""

    def __init__(self, parse: Callable[[bytes], int]) -> None:
        self._parse = parse

    def __missing__(self, field: bytes) -> int:
        if len(self) >= _MAX_CACHED_FIELDS:
            self.clear()
        value = self[field] = self._parse(field)
        return value


NUMBERS = _FieldCache(_parse_number)
EXPECTED_ADLER32 = _FieldCache(_expected_adler32)
