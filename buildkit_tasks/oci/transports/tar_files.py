"""Say what a file is that is not a tar archive, before a tar reader finds no header in it."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

from buildkit_tasks.errors import LimitExceeded, MalformedImage, UsageError
from buildkit_tasks.oci.layers.decompress import PLAIN, DecompressedStream, detect_compression
from buildkit_tasks.oci.layers.tar import BLOCK_SIZE
from buildkit_tasks.oci.layers.tar_fields import verify_checksum
from buildkit_tasks.oci.transports.tar_members import open_regular_file

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_tar_file"]

_BUILD_HINT = "inv build-multiarch -o type=oci,dest=dist/image.tar"
_CHECKSUM = slice(148, 156)  # of a header block (POSIX.1-1988 ustar)
_MAGIC = slice(257, 262)
_KIND_OF_MAGIC = {
    b"\x7fELF": "an ELF program",
    b"PK\x03\x04": "a zip archive",
    b"\xfd7zXZ\x00": "xz-compressed data",
    b"BZh": "bzip2-compressed data",
    b"%PDF": "a PDF document",
}


def check_tar_file(path: Path) -> None:
    """Raise :class:`UsageError` unless a file begins as a tar archive does, compressed or not.

    Corrupt data is left to the reader, whose messages say where it is.
    """
    with os.fdopen(open_regular_file(path), "rb", buffering=0) as file:
        compression = detect_compression(os.pread(file.fileno(), 4, 0))
        try:
            block = DecompressedStream(file, str(path)).read(BLOCK_SIZE)
        except (MalformedImage, LimitExceeded):
            return
    if not _is_header(block):
        kind = _describe_content(block)
        found = kind if compression == PLAIN else f"{compression}-compressed {kind.removeprefix('an ')}"
        raise UsageError(
            f"{path} is not an image archive: expected a tar file of an OCI layout or of docker save, "
            f"found {found}",
            hint=_BUILD_HINT,
        )


def _is_header(block: bytes) -> bool:
    """Return True for a header with the magic of ustar, for an older one, and for the end of an archive."""
    if len(block) < BLOCK_SIZE:
        return block[_MAGIC] == b"ustar"
    if block[_MAGIC] == b"ustar" or not any(block):
        return True
    try:
        verify_checksum(block, block[_CHECKSUM])
    except ValueError:
        return False
    return True


def _describe_content(block: bytes) -> str:
    if not block:
        return "an empty file"
    magic = next((magic for magic in _KIND_OF_MAGIC if block.startswith(magic)), b"")
    if magic:
        return _KIND_OF_MAGIC[magic]
    text = block.decode("utf-8", "ignore")
    is_text = len(text.encode()) >= len(block) - 3 and not any(map(_is_control_character, text))
    return "text" if is_text else "binary data"


def _is_control_character(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\t\n\r\f"
