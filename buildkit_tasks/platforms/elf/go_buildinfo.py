"""What the Go linker writes into every program: the toolchain, the module and the build settings.

The format is that of Go's ``debug/buildinfo`` package: a 32 byte header that is aligned to 16 bytes
starts with a magic; since Go 1.18 two strings follow it, each with its length as a varint, and before
that it held two addresses of Go string headers. ``go version -m FILE`` prints the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from buildkit_tasks.platforms.elf.view import Order, View

__all__ = ["GO_MAGIC", "GoBuild", "find_go", "read_go"]

GO_MAGIC = b"\xff Go buildinf:"
_ALIGN = 16
_HEADER = 32
_BIG_ENDIAN, _INLINE = 1, 2
_MAX_VERSION = 256
_MAX_MODULES = 1 << 20  # the largest known programs have 0.1 MiB here
_MAX_SETTINGS = 256
_SENTINEL = 16  # the linker frames the module text by 16 bytes on either side

Read = Callable[[int, int], bytes]
"""Bytes at an offset or at an address, and their number; fewer where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBuild:
    """A Go program's own account: ``version`` of Go, ``path`` of its main package, its settings."""

    version: str
    path: str = ""
    settings: dict[str, str] = field(default_factory=dict)


def find_go(view: View, start: int, end: int) -> int:
    """Where the header lies between these offsets of the data segment, or -1; it is aligned to 16 bytes."""
    at = view.find(GO_MAGIC, start, end)
    while at > 0 and at % _ALIGN:
        at = view.find(GO_MAGIC, at + 1, end)
    return at


def read_go(offset: int, read: Read, read_address: Read) -> GoBuild | None:
    """Read the build information whose header is at ``offset``; None where there is no magic.

    ``read`` takes offsets in the file and ``read_address`` addresses. Raises
    :class:`MalformedImage` for a header that leads nowhere.
    """
    head = read(offset, _HEADER)
    if not head.startswith(GO_MAGIC) or len(head) < _HEADER:
        return None
    if head[15] & _INLINE:
        version, after = _varint_string(read, offset + _HEADER, _MAX_VERSION)
        modules, _ = _varint_string(read, after, _MAX_MODULES)
    else:
        order: Order = "big" if head[15] & _BIG_ENDIAN else "little"
        pointers = _Pointers(head[14], order, read_address)
        version = pointers.string(pointers.value(head[16:]), _MAX_VERSION)
        modules = pointers.string(pointers.value(head[16 + head[14] :]), _MAX_MODULES)
    return _parse(version, modules)


def _varint_string(read: Read, offset: int, most: int) -> tuple[bytes, int]:
    """A length as Go's ``binary.Uvarint`` writes it, and that many bytes; then where they end."""
    prefix = read(offset, 10)
    size = shift = used = 0
    for byte in prefix:
        size |= (byte & 0x7F) << shift
        shift, used = shift + 7, used + 1
        if byte < 0x80:  # the top bit says that more follows
            break
    else:
        raise MalformedImage("Go build info with a length that has no end")
    return _exactly(read(offset + used, min(size, most + 1)), size, most), offset + used + size


def _exactly(data: bytes, size: int, most: int) -> bytes:
    if size > most:
        raise MalformedImage(f"Go build info with a string of {size} bytes")
    if len(data) != size:
        raise MalformedImage(f"Go build info is cut off: {len(data)} of {size} bytes are there")
    return data


@dataclass(frozen=True, slots=True)
class _Pointers:
    """The form before Go 1.18: addresses of string headers, each an address and a length."""

    size: int
    order: Order
    read: Read

    def value(self, data: bytes) -> int:
        if self.size not in (4, 8):
            raise MalformedImage(f"Go build info with pointers of {self.size} bytes")
        return int.from_bytes(data[: self.size], self.order)

    def string(self, address: int, most: int) -> bytes:
        if address == 0:
            return b""
        header = _exactly(self.read(address, 2 * self.size), 2 * self.size, 2 * self.size)
        data, size = self.value(header), self.value(header[self.size :])
        return _exactly(self.read(data, min(size, most + 1)), size, most)


def _parse(version: bytes, modules: bytes) -> GoBuild:
    """Read the module text: a line each, fields separated by tabs."""
    if len(modules) > 2 * _SENTINEL and modules[-_SENTINEL - 1] == ord("\n"):
        modules = modules[_SENTINEL:-_SENTINEL]
    path, settings = "", dict[str, str]()
    for line in modules.decode("utf-8", "replace").split("\n"):
        kind, _, rest = line.partition("\t")
        if kind == "path":
            path = path or rest
        elif kind == "build" and len(settings) < _MAX_SETTINGS:
            name, _, value = rest.partition("=")
            settings.setdefault(name.strip('"'), value.strip('"'))
    return GoBuild(version=version.decode("utf-8", "replace"), path=path, settings=settings)
