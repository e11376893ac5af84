"""Read Go build information: the toolchain, module and build settings that the Go linker records.

The format is that of Go's ``debug/buildinfo`` package: a 32-byte header, aligned to 16 bytes, starts
with a magic. Since Go 1.18 two strings follow it, each with its length as a varint; before, the header
held the addresses of two Go string headers. ``go version -m FILE`` prints the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from buildkit_tasks.platforms.elf.view import ByteOrder, FileView

__all__ = ["GO_MAGIC", "GoBuildInfo", "find_go_build_info", "read_go_build_info"]

GO_MAGIC = b"\xff Go buildinf:"
_ALIGNMENT = 16
_HEADER_SIZE = 32
_FLAG_BIG_ENDIAN, _FLAG_INLINE_STRINGS = 1, 2
_MAX_VERSION_SIZE = 256
_MAX_MODULE_INFO_SIZE = 1 << 20  # the largest known programs have 0.1 MiB here
_MAX_SETTINGS = 256
_SENTINEL_SIZE = 16  # the linker puts 16 bytes before and after the module information

ReadAt = Callable[[int, int], bytes]
"""Return ``size`` bytes at an offset or address, or fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBuildInfo:
    """The version of Go, the path of the main package and the build settings of a Go program."""

    version: str
    path: str = ""
    settings: dict[str, str] = field(default_factory=dict)


def find_go_build_info(view: FileView, start: int, end: int) -> int:
    """Return the offset of the header in the data segment at these file offsets, or -1."""
    offset = view.find(GO_MAGIC, start, end)
    while offset > 0 and offset % _ALIGNMENT:
        offset = view.find(GO_MAGIC, offset + 1, end)
    return offset


def read_go_build_info(offset: int, read_offset: ReadAt, read_address: ReadAt) -> GoBuildInfo | None:
    """Read the build information whose header is at ``offset``; return None if there is no magic.

    ``read_offset`` reads at a file offset, ``read_address`` at an address. Raise
    :class:`MalformedImage` for strings that are truncated or too long.
    """
    header = read_offset(offset, _HEADER_SIZE)
    if not header.startswith(GO_MAGIC) or len(header) < _HEADER_SIZE:
        return None
    if header[15] & _FLAG_INLINE_STRINGS:
        version, next_offset = _read_varint_string(read_offset, offset + _HEADER_SIZE, _MAX_VERSION_SIZE)
        module_info, _ = _read_varint_string(read_offset, next_offset, _MAX_MODULE_INFO_SIZE)
    else:
        byte_order: ByteOrder = "big" if header[15] & _FLAG_BIG_ENDIAN else "little"
        pointer_reader = _PointerReader(header[14], byte_order, read_address)
        version = pointer_reader.read_string(pointer_reader.decode_pointer(header[16:]), _MAX_VERSION_SIZE)
        module_info = pointer_reader.read_string(
            pointer_reader.decode_pointer(header[16 + header[14] :]), _MAX_MODULE_INFO_SIZE
        )
    return _parse_module_info(version, module_info)


def _read_varint_string(read_offset: ReadAt, offset: int, max_size: int) -> tuple[bytes, int]:
    """Return a string after its length (Go's ``binary.Uvarint``), and the offset of its end."""
    length_field = read_offset(offset, 10)
    size = shift = length_size = 0
    for byte in length_field:
        size |= (byte & 0x7F) << shift
        shift, length_size = shift + 7, length_size + 1
        if byte < 0x80:  # the top bit is set if more bytes follow
            break
    else:
        raise MalformedImage("Go build info: unterminated length")
    start = offset + length_size
    return _require_size(read_offset(start, min(size, max_size + 1)), size, max_size), start + size


def _require_size(data: bytes, size: int, max_size: int) -> bytes:
    if size > max_size:
        raise MalformedImage(f"Go build info: a string of {size} bytes")
    if len(data) != size:
        raise MalformedImage(f"Go build info is truncated: {len(data)} of {size} bytes")
    return data


@dataclass(frozen=True, slots=True)
class _PointerReader:
    """Reads the format before Go 1.18: addresses of string headers, each an address and a length."""

    pointer_size: int
    byte_order: ByteOrder
    read_address: ReadAt

    def decode_pointer(self, data: bytes) -> int:
        if self.pointer_size not in (4, 8):
            raise MalformedImage(f"Go build info: pointers of {self.pointer_size} bytes")
        return int.from_bytes(data[: self.pointer_size], self.byte_order)

    def read_string(self, address: int, max_size: int) -> bytes:
        if address == 0:
            return b""
        header = _require_size(
            self.read_address(address, 2 * self.pointer_size), 2 * self.pointer_size, 2 * self.pointer_size
        )
        data_address, size = self.decode_pointer(header), self.decode_pointer(header[self.pointer_size :])
        return _require_size(self.read_address(data_address, min(size, max_size + 1)), size, max_size)


def _parse_module_info(version: bytes, module_info: bytes) -> GoBuildInfo:
    """Parse the module information: lines of fields separated by tabs."""
    if len(module_info) > 2 * _SENTINEL_SIZE and module_info[-_SENTINEL_SIZE - 1] == ord("\n"):
        module_info = module_info[_SENTINEL_SIZE:-_SENTINEL_SIZE]
    path, settings = "", dict[str, str]()
    for line in module_info.decode("utf-8", "replace").split("\n"):
        key, _, rest = line.partition("\t")
        if key == "path":
            path = path or rest
        elif key == "build" and len(settings) < _MAX_SETTINGS:
            name, _, value = rest.partition("=")
            settings.setdefault(name.strip('"'), value.strip('"'))
    return GoBuildInfo(version=version.decode("utf-8", "replace"), path=path, settings=settings)
