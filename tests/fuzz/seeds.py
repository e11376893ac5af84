"""Well-formed input to start from, made by code: a mutation of something good goes deep."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from buildkit_tasks.platforms import MACHINES, Machine, Platform
from buildkit_tasks.platforms.elf.go_buildinfo import GO_MAGIC
from tests.support.oci import (
    MemoryImage,
    hard_link,
    hello,
    make_tar,
    member,
    platform_json,
    probe_program,
    symlink,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BASE = 0x10000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A named section of an ELF file, loaded or not, and the kind of segment that covers it."""

    name: str
    data: bytes
    segment: int = 0


def elf(row: Machine, pieces: Sequence[Piece] = (), *, kind: int = 3) -> bytes:
    """An ELF file with these sections, a loaded segment over all of it, and names for the sections.

    System V gABI, chapters 4 and 5.
    """
    order, wide = "<" if row.byte_order == "little" else ">", row.bits == 64
    header = struct.Struct(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"))
    program = struct.Struct(order + ("IIQQQQQQ" if wide else "IIIIIIII"))
    section = struct.Struct(order + ("IIQQQQIIQQ" if wide else "IIIIIIIIII"))
    covered = [piece for piece in pieces if piece.segment]
    start = 16 + header.size
    at = start + (1 + len(covered)) * program.size
    body, places = b"", []
    for piece in pieces:
        body += b"\0" * (-(at + len(body)) % 16)
        places.append(at + len(body))
        body += piece.data
    names = b"\0" + b"".join(f"{piece.name}\0".encode() for piece in pieces) + b".shstrtab\0"
    names_at = at + len(body)
    sections_at = names_at + len(names)

    def segment(of: int, flags: int, offset: int, size: int) -> bytes:
        fields = (offset, BASE + offset, BASE + offset, size, size)
        return program.pack(of, flags, *fields, 16) if wide else program.pack(of, *fields, flags, 16)

    rows = [section.pack(*[0] * 10)]
    for piece, offset in zip(pieces, places, strict=True):
        name = names.index(f"\0{piece.name}\0".encode()) + 1
        rows.append(section.pack(name, 1, 2, BASE + offset, offset, len(piece.data), 0, 0, 16, 0))
    rows.append(section.pack(names.index(b"\0.shstrtab\0") + 1, 3, 0, 0, names_at, len(names), 0, 0, 1, 0))
    head = header.pack(
        kind, row.e_machine, 1, BASE + start, start, sections_at, row.e_flags,
        start, program.size, 1 + len(covered), section.size, len(rows), len(rows) - 1,
    )  # fmt: skip
    segments = segment(1, 6, 0, names_at) + b"".join(
        segment(piece.segment, 4, offset, len(piece.data))
        for piece, offset in zip(pieces, places, strict=True)
        if piece.segment
    )
    return row.magic[:16] + head + segments + body + names + b"".join(rows)


def dynamic(row: Machine, interpreter: str, libraries: Sequence[str]) -> bytes:
    """A program that needs a loader and libraries: PT_INTERP, PT_DYNAMIC and their strings."""
    form = struct.Struct(("<" if row.byte_order == "little" else ">") + ("QQ" if row.bits == 64 else "II"))
    strings = b"\0" + b"".join(f"{name}\0".encode() for name in libraries) + b"/opt/lib:$ORIGIN\0"

    def pieces(strings_at: int) -> list[Piece]:
        rows = [form.pack(1, strings.index(b"\0" + name.encode()) + 1) for name in libraries]
        rows.append(form.pack(29, strings.index(b"/opt/lib")))
        rows += [form.pack(5, strings_at), form.pack(10, len(strings)), form.pack(0, 0)]
        return [
            Piece(name=".interp", data=f"{interpreter}\0".encode(), segment=3),
            Piece(name=".dynstr", data=strings),
            Piece(name=".dynamic", data=b"".join(rows), segment=2),
        ]

    # The strings' own offset is in the bytes before them: lay out once to learn it.
    first = elf(row, pieces(0))
    return elf(row, pieces(BASE + first.index(strings)))


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def go_info(version: str = "go1.26.1", **settings: str) -> bytes:
    """Go build info as the linker writes it since Go 1.18."""
    lines = ["path\texample.com/hello", "mod\texample.com/hello\t(devel)\t"]
    lines += [f"build\t{name}={value}" for name, value in settings.items()]
    modules = b"0w\xaf\x0c\x92t\x08\x02A\xe1\xc1\x07\xe6\xd6\x18\xe6"
    modules += ("\n".join(lines) + "\n").encode() + b"\xf92C1\x86\x18 r\x00\x82B\x10A\x16\xd8\xf2"
    head = GO_MAGIC + bytes([8, 2]) + bytes(16)
    return head + varint(len(version)) + version.encode() + varint(len(modules)) + modules


def old_go_info(address: int, order: str = "little") -> bytes:
    """Go build info from before Go 1.18: two addresses of string headers, here right behind it."""
    big = order == "big"
    words = [address + 32, address + 48, address + 64, 8, address + 72, 14]
    data = b"".join(word.to_bytes(8, "big" if big else "little") for word in words)
    return GO_MAGIC + bytes([8, int(big)]) + data + b"go1.17.3" + b"path\texample\n\n"


def arm_attributes(*, order: str = "little") -> bytes:
    """What a compiler for ARMv7 with hard floats writes: CPU name, architecture, profile, FP, ABI."""
    pairs = b"\x05cortex-a8\0" + bytes([6, 10, 7, 65, 8, 1, 9, 2, 10, 3, 12, 1, 28, 1]) + b"\x20\x00tool\0"
    return _attributes(b"aeabi", pairs, order)


def riscv_attributes() -> bytes:
    return _attributes(b"riscv", b"\x04\x10\x05rv64i2p1_m2p0_a2p1_f2p2_d2p2_c2p0\0", "little")


def _attributes(vendor: bytes, pairs: bytes, order: str) -> bytes:
    def size(number: int) -> bytes:
        return number.to_bytes(4, "big" if order == "big" else "little")

    part = b"\x01" + size(len(pairs) + 5) + pairs
    return b"A" + size(len(part) + len(vendor) + 5) + vendor + b"\0" + part


def x86_note(level: int = 4) -> bytes:
    """``.note.gnu.property`` that needs a level of x86-64."""
    value = struct.pack("<III", 0xC0008002, 4, level) + bytes(4)
    return struct.pack("<III", 4, len(value), 5) + b"GNU\0" + value


def programs() -> Iterator[bytes]:
    """An ELF file of each kind that the readers have a path for."""
    for row in MACHINES:
        yield probe_program(f"linux/{row.architecture}")
        yield elf(
            row, [Piece(name=".go.buildinfo", data=go_info(GOARCH=row.architecture, GOARM="7,hardfloat"))]
        )
    amd64, arm, riscv, s390x = (Platform.parse(name).machine for name in ("amd64", "arm", "riscv64", "s390x"))
    yield dynamic(amd64, "/lib64/ld-linux-x86-64.so.2", ["libc.so.6", "libm.so.6"])
    yield dynamic(arm, "/lib/ld-musl-armhf.so.1", ["libc.musl-armv7.so.1"])
    yield dynamic(s390x, "/lib/ld64.so.1", ["libc.so.6"])
    yield elf(amd64, [Piece(name=".note.gnu.property", data=x86_note(), segment=0x6474E553)])
    yield elf(amd64, [Piece(name=".note", data=x86_note(8), segment=4)])
    yield elf(arm, [Piece(name=".ARM.attributes", data=arm_attributes())])
    yield elf(riscv, [Piece(name=".riscv.attributes", data=riscv_attributes(), segment=0x70000003)])
    old = Piece(name=".go.buildinfo", data=old_go_info(BASE + 0x100))
    yield elf(amd64, [Piece(name=".pad", data=bytes(0x100 - 0x78)), old])


def archives() -> Iterator[bytes]:
    """Tar archives in all forms that are read: ustar, pax, GNU; all kinds of members."""
    files = {"usr/bin/main": probe_program("linux/amd64"), "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}
    others = [
        member("dir", tarfile.DIRTYPE), symlink("usr/lib/a", "../bin/main"),
        hard_link("again", "usr/bin/main"), member("pipe", tarfile.FIFOTYPE), member("null", tarfile.CHRTYPE),
    ]  # fmt: skip
    long = {f"{'long/' * 30}name": b"x", "ünïcode": b"y"}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        yield make_tar(files, others, form)
    yield make_tar(long, [symlink("l", "t" * 120)], tarfile.GNU_FORMAT)
    yield make_tar(long, [symlink("l", "t" * 120)], tarfile.PAX_FORMAT)
    yield make_tar({"etc/.wh..wh..opq": b"", "etc/.wh.passwd": b"", "etc/ld.so.conf": b"/opt/lib\n"})
    yield _global_header()
    yield make_tar({})
    yield make_tar({"a": b"1"})[:1024]  # an archive may end without its zero blocks
    yield make_tar({"a": b"1", "a/b": b"2"}, [symlink("s", "s"), hard_link("h", "s")])


def _global_header() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x", "path": "other"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("name"))
    return buffer.getvalue()


def several_members(data: bytes) -> bytes:
    """The same gzip data in three members."""
    third = len(data) // 3
    parts = (data[:third], data[third : 2 * third], data[2 * third :])
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


def zstd_frames(data: bytes) -> bytes:
    """zstd data in two frames with a skippable one between, as zstd:chunked has them."""
    half = len(data) // 2
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    return zstd.compress(data[:half]) + skippable + zstd.compress(data[half:])


def documents(memory: MemoryImage | None = None) -> dict[str, list[bytes]]:
    """The documents of a sound image by their kind: ``index``, ``manifest`` and ``config``."""
    memory = memory or hello(["linux/amd64", "linux/arm/v6"])
    found: dict[str, list[bytes]] = {"index": [], "manifest": [], "config": []}
    for data in memory.blobs.values():
        if not data.startswith(b"{"):
            continue
        document = json.loads(data)
        kind = "index" if "manifests" in document else "manifest" if "layers" in document else "config"
        found[kind].append(data)
    return found


def config_with_everything(platform: str) -> bytes:
    start = {
        "Entrypoint": ["/usr/bin/main"], "Cmd": ["-v"], "Env": ["PATH=/usr/bin"], "WorkingDir": "/srv",
        "User": "nobody", "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "StopSignal": "SIGTERM",
    }  # fmt: skip
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}", f"sha512:{'1' * 128}"]}
    history = [{"created": "2026-01-01T00:00:00Z", "created_by": "COPY", "empty_layer": True}]
    whole = {**platform_json(platform), "config": start, "rootfs": rootfs, "history": history}
    return json.dumps(whole).encode()
