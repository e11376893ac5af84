"""Well-formed inputs to start from: a mutation of a valid document gets further than random bytes."""

from __future__ import annotations

import gzip
import io
import json
import struct
import sys
import tarfile
from collections.abc import Iterator

from buildkit_tasks.platforms import MACHINES
from buildkit_tasks.platforms.elf.go_buildinfo import GO_MAGIC
from buildkit_tasks.platforms.elf.view import ByteOrder
from tests.support.elf import (
    BASE,
    ISA_NEEDED,
    PT_GNU_PROPERTY,
    PT_NOTE,
    PT_PROCESSOR,
    Elf,
    attributes,
    elf,
    go_info,
    x86_note,
)
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

RUNPATHS = "/opt/lib:$ORIGIN"


def inline_go_info(version: str = "go1.26.1", **settings: str) -> bytes:
    """Return Go build information as Go 1.18 and later write it."""
    lines = ["path\texample.com/hello", "mod\texample.com/hello\t(devel)\t"]
    lines += [f"build\t{name}={value}" for name, value in settings.items()]
    return go_info(version, "\n".join(lines) + "\n")


def pointer_go_info(address: int, order: ByteOrder = "little") -> bytes:
    """Return Go build information as before Go 1.18: two addresses of string headers, which follow it."""
    pointers = [address + 32, address + 48, address + 64, 8, address + 72, 14]
    data = b"".join(pointer.to_bytes(8, order) for pointer in pointers)
    return GO_MAGIC + bytes([8, int(order == "big")]) + data + b"go1.17.3" + b"path\texample\n\n"


def arm_attributes(order: ByteOrder = "little") -> bytes:
    """Return what a compiler for ARMv7 with hard floats writes: CPU name, architecture, profile, FP, ABI."""
    values = [(6, 10), (7, 65), (8, 1), (9, 2), (10, 3), (12, 1), (28, 1)]
    return attributes("aeabi", [(5, "cortex-a8"), *values, (32, b"\0tool\0")], order)


def riscv_attributes() -> bytes:
    return attributes("riscv", [(4, 16), (5, "rv64i2p1_m2p0_a2p1_f2p2_d2p2_c2p0")])


def iter_programs() -> Iterator[bytes]:
    """Yield an ELF file for each path through the readers."""
    for machine in MACHINES:
        architecture = machine.architecture
        yield probe_program(f"linux/{architecture}")
        info = inline_go_info(GOARCH=architecture, GOARM="7,hardfloat")
        yield Elf(machine=architecture, load_flags=6, sections={".go.buildinfo": info}).build()
    libraries = ["libc.so.6", "libm.so.6"]
    yield elf("amd64", interpreter="/lib64/ld-linux-x86-64.so.2", needed=libraries, runpath=RUNPATHS)
    yield elf("arm", interpreter="/lib/ld-musl-armhf.so.1", needed=["libc.musl-armv7.so.1"], runpath=RUNPATHS)
    yield elf("s390x", interpreter="/lib/ld64.so.1", needed=["libc.so.6"], runpath=RUNPATHS)
    yield Elf(segments=[(PT_GNU_PROPERTY, x86_note((ISA_NEEDED, 4)))]).build()
    yield Elf(segments=[(PT_NOTE, x86_note((ISA_NEEDED, 8)))]).build()
    yield Elf(machine="arm", sections={".ARM.attributes": arm_attributes()}).build()
    riscv = riscv_attributes()
    yield Elf(
        machine="riscv64", segments=[(PT_PROCESSOR, riscv)], sections={".riscv.attributes": riscv}
    ).build()
    # The information contains its own address: the first section of this file is at offset 0x80.
    yield Elf(load_flags=6, sections={".go.buildinfo": pointer_go_info(BASE + 0x80)}).build()


def iter_archives() -> Iterator[bytes]:
    """Yield tar archives in every supported format (ustar, pax, GNU) and with every type of member."""
    files = {"usr/bin/main": probe_program("linux/amd64"), "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}
    others = [
        member("dir", tarfile.DIRTYPE), symlink("usr/lib/a", "../bin/main"),
        hard_link("again", "usr/bin/main"), member("pipe", tarfile.FIFOTYPE), member("null", tarfile.CHRTYPE),
    ]  # fmt: skip
    long_names = {f"{'long/' * 30}name": b"x", "ünïcode": b"y"}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        yield make_tar(files, others, form)
    yield make_tar(long_names, [symlink("l", "t" * 120)], tarfile.GNU_FORMAT)
    yield make_tar(long_names, [symlink("l", "t" * 120)], tarfile.PAX_FORMAT)
    yield make_tar({"etc/.wh..wh..opq": b"", "etc/.wh.passwd": b"", "etc/ld.so.conf": b"/opt/lib\n"})
    yield _tar_with_global_header()
    yield make_tar({})
    yield make_tar({"a": b"1"})[:1024]  # the two zero blocks at the end may be missing
    yield make_tar({"a": b"1", "a/b": b"2"}, [symlink("s", "s"), hard_link("h", "s")])


def _tar_with_global_header() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x", "path": "other"}
    ) as archive:
        archive.addfile(tarfile.TarInfo("name"))
    return buffer.getvalue()


def gzip_in_members(data: bytes) -> bytes:
    """Compress data into three gzip members."""
    third = len(data) // 3
    parts = (data[:third], data[third : 2 * third], data[2 * third :])
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


def zstd_in_frames(data: bytes) -> bytes:
    """Compress data into two zstd frames with a skippable one between them, as zstd:chunked does."""
    half = len(data) // 2
    skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    return zstd.compress(data[:half]) + skippable + zstd.compress(data[half:])


def documents_by_kind(memory: MemoryImage | None = None) -> dict[str, list[bytes]]:
    """Return the documents of a valid image by kind: ``index``, ``manifest`` and ``config``."""
    memory = memory or hello(["linux/amd64", "linux/arm/v6"])
    documents: dict[str, list[bytes]] = {"index": [], "manifest": [], "config": []}
    for data in memory.blobs.values():
        if not data.startswith(b"{"):
            continue
        document = json.loads(data)
        kind = "index" if "manifests" in document else "manifest" if "layers" in document else "config"
        documents[kind].append(data)
    return documents


def full_config(platform: str) -> bytes:
    """Return an image configuration with most of the optional properties."""
    execution = {
        "Entrypoint": ["/usr/bin/main"], "Cmd": ["-v"], "Env": ["PATH=/usr/bin"], "WorkingDir": "/srv",
        "User": "nobody", "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}, "StopSignal": "SIGTERM",
    }  # fmt: skip
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{'0' * 64}", f"sha512:{'1' * 128}"]}
    history = [{"created": "2026-01-01T00:00:00Z", "created_by": "COPY", "empty_layer": True}]
    config = {**platform_json(platform), "config": execution, "rootfs": rootfs, "history": history}
    return json.dumps(config).encode()
