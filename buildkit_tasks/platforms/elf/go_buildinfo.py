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
    from buildkit_tasks.platforms.elf.view import ByteOrder, FileView

__all__ = ["GO_MAGIC", "GoBuildInfo", "find_go_build_info", "read_go_build_info"]

GO_MAGIC = b"\xff Go buildinf:"
_ALIGNMENT = 16
_HEADER_SIZE = 32
_FLAG_BIG_ENDIAN, _FLAG_INLINE_STRINGS = 1, 2
_MAX_VERSION_SIZE = 256
_MAX_MODULE_INFO_SIZE = 1 << 20  # the largest known programs have 0.1 MiB here
_MAX_SETTINGS = 256
_SENTINEL_SIZE = 16  # the linker frames the module text by 16 bytes on either side

ReadAt = Callable[[int, int], bytes]
"""Bytes at an offset or at an address, and their number; fewer where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoBuildInfo:
    """A Go program's own account: ``version`` of Go, ``path`` of its main package, its settings."""

    version: str
    path: str = ""
    settings: dict[str, str] = field(default_factory=dict)


def find_go_build_info(view: FileView, start: int, end: int) -> int:
    """Where the header lies between these offsets of the data segment, or -1; it is aligned to 16 bytes."""
    offset = view.find(GO_MAGIC, start, end)
    while offset > 0 and offset % _ALIGNMENT:
        offset = view.find(GO_MAGIC, offset + 1, end)
    return offset


def read_go_build_info(offset: int, read_offset: ReadAt, read_address: ReadAt) -> GoBuildInfo | None:
    """Read the build information whose header is at ``offset``; None where there is no magic.

    ``read`` takes offsets in the file and ``read_address`` addresses. Raises
    :class:`MalformedImage` for a header that leads nowhere.
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
    """A length as Go's ``binary.Uvarint`` writes it, and that many bytes; then where they end."""
    length_field = read_offset(offset, 10)
    size = shift = length_size = 0
    for byte in length_field:
        size |= (byte & 0x7F) << shift
        shift, length_size = shift + 7, length_size + 1
        if byte < 0x80:  # the top bit says that more follows
            break
    else:
        raise MalformedImage("Go build info with a length that has no end")
    return _require_size(
        read_offset(offset + length_size, min(size, max_size + 1)), size, max_size
    ), offset + length_size + size


def _require_size(data: bytes, size: int, max_size: int) -> bytes:
    if size > max_size:
        raise MalformedImage(f"Go build info with a string of {size} bytes")
    if len(data) != size:
        raise MalformedImage(f"Go build info is cut off: {len(data)} of {size} bytes are there")
    return data


@dataclass(frozen=True, slots=True)
class _PointerReader:
    """The form before Go 1.18: addresses of string headers, each an address and a length."""

    pointer_size: int
    byte_order: ByteOrder
    read_address: ReadAt

    def decode_pointer(self, data: bytes) -> int:
        if self.pointer_size not in (4, 8):
            raise MalformedImage(f"Go build info with pointers of {self.pointer_size} bytes")
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
    """Read the module text: a line each, fields separated by tabs."""
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
