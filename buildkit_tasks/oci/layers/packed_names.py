"""The names in one folder of files and links about which nothing more is kept, packed.

A layer may have millions of them; as objects of their own they would fill the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from buildkit_tasks.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

__all__ = ["Names", "Packed"]

_MODES = [f"{mode:03o}" for mode in range(0o1000)]
_DIGITS = 3
_PATIENCE = 64 << 20  # bytes gone through by look-ups before an index is made
_MAX_INDEX = 1_000_000


class Packed(NamedTuple):
    """What is known of a name: a file's permissions, or a symbolic link's target."""

    mode: int
    target: str | None = None


class Names:
    """A list of names, the latest of which counts.

    A record is three octal digits of the mode, the name, for a symbolic link a slash, which no name
    holds, and its target, and a NUL. A look-up goes through the bytes; where look-ups are many, as an
    image may be made to need, an index is made.
    """

    __slots__ = ("_index", "_packed", "_passed")

    def __init__(self, packed: bytes = b"") -> None:
        self._packed = bytearray(packed)
        self._passed = 0
        self._index: dict[bytes, int] | None = None

    def add(self, name: str, mode: int, target: str | None = None) -> None:
        """Add a file, or with a ``target`` a symbolic link."""
        if self._index is not None:
            self._index[_raw(name)] = len(self._packed)
        if target is not None:
            name = f"{name}/{target}"
        self._packed += _raw(f"{_MODES[mode & 0o777]}{name}\0")

    def find(self, name: str) -> Packed | None:
        """What is known of that name, or None if it is not among these."""
        raw = _raw(name)
        at = self._indexed(raw) if self._passed > _PATIENCE else self._search(raw)
        if at < 0:
            return None
        end = self._packed.index(b"\0", at)
        mode, rest = int(self._packed[at : at + _DIGITS], 8), self._packed[at + _DIGITS + len(raw) : end]
        return Packed(mode, _text(rest[1:]) if rest else None)

    def __iter__(self) -> Iterator[str]:
        for record in self._packed.split(b"\0")[:-1]:
            yield _text(record[_DIGITS:].partition(b"/")[0])

    def __len__(self) -> int:
        return self._packed.count(0)

    def without(self, names: Container[str]) -> Names:
        """The others."""
        records = self._packed.split(b"\0")[:-1]
        kept = (each + b"\0" for each in records if _text(each[_DIGITS:].partition(b"/")[0]) not in names)
        return Names(b"".join(kept))

    def _search(self, raw: bytes) -> int:
        """Where the latest record of the name begins, or -1."""
        return max(self._last(raw + b"\0"), self._last(raw + b"/"))

    def _last(self, wanted: bytes) -> int:
        at = end = len(self._packed)
        while (at := self._packed.rfind(wanted, 0, at + len(wanted) - 1)) >= 0:
            start = at - _DIGITS
            if start == 0 or (start > 0 and self._packed[start - 1] == 0):
                break
        self._passed += end - max(at, 0)
        return at - _DIGITS if at >= 0 else -1

    def _indexed(self, raw: bytes) -> int:
        if self._index is None:
            if len(self) > _MAX_INDEX:
                raise LimitExceeded(f"a folder of {len(self)} files is looked into too often")
            self._index = dict(self._records())
        return self._index.get(raw, -1)

    def _records(self) -> Iterator[tuple[bytes, int]]:
        at = 0
        for record in self._packed.split(b"\0")[:-1]:
            yield bytes(record[_DIGITS:].partition(b"/")[0]), at
            at += len(record) + 1


def _raw(name: str) -> bytes:
    return name.encode() if name.isascii() else name.encode("utf-8", "surrogateescape")


def _text(raw: bytes | bytearray) -> str:
    return raw.decode("utf-8", "surrogateescape")
