"""Changes that keep a document well-formed: bytes changed at random mostly end in a syntax error."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from tests.fuzz import oracles

_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 2**31, 2**63, 2**64, 1.5, 1e300, "", "x", "é\0", "../x", "unknown", [], {}, [[]],
    "sha256:" + "0" * 64, "sha512:" + "a" * 128, "linux", "arm64", "v7", "/bin/sh", "a" * 300,
    "/usr/bin/main",
    "application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.oci.empty.v1+json",
    {"os": "unknown", "architecture": "unknown"}, {"vnd.docker.reference.type": "attestation-manifest"},
)  # fmt: skip
_KEYS = (
    "mediaType", "digest", "size", "platform", "os", "architecture", "variant", "os.version", "annotations",
    "artifactType", "schemaVersion", "manifests", "layers", "config", "rootfs", "diff_ids", "Entrypoint",
    "Cmd", "Env", "WorkingDir", "User", "subject", "urls", "data", "history", "Layers", "OS",
    "created", "Shell",
)  # fmt: skip


def change_json(data: bytes, chance: random.Random) -> bytes:
    """The document with some of its parts replaced, removed, doubled or moved."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        document = _changed(document, chance)
    try:
        text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    except (ValueError, RecursionError):
        return data
    if chance.random() < 0.1:  # a key twice, which no dict can hold
        key = chance.choice(_KEYS)
        text = text.replace(f'"{key}":', f'"{key}": {chance.choice(("0", "null", "[]"))}, "{key}":', 1)
    return text.encode("utf-8", "surrogatepass")


def after_prefix(data: bytes, chance: random.Random) -> bytes:
    """The same behind a first byte that chooses something."""
    return data[:1] + change_json(data[1:], chance)


def _changed(document: Any, chance: random.Random) -> Any:
    """One change somewhere in the tree."""
    places = [(None, None), *_places(document)]
    holder, key = chance.choice(places)
    if holder is None:
        return document if chance.random() < 0.9 else chance.choice(_VALUES)
    kind = chance.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(chance.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 1:
        holder[chance.choice(_KEYS)] = copy.deepcopy(holder[key])
    elif kind == 2:
        other, its = chance.choice(places)
        holder[key] = copy.deepcopy(document if other is None else other[its])
    elif kind == 3 and isinstance(holder, dict):
        holder[chance.choice(_KEYS)] = chance.choice(_VALUES)
    else:
        holder[key] = _near(holder[key], chance)
    return document


def _near(value: Any, chance: random.Random) -> Any:
    """Another value, or nearly the same."""
    if isinstance(value, int) and chance.random() < 0.5:
        return value + chance.choice((-1, 1))
    if isinstance(value, str) and value and chance.random() < 0.5:
        at = chance.randrange(len(value))
        return value[:at] + chance.choice(("", "0", "\n", "/", "..", "A", "\ud800")) + value[at + 1 :]
    return copy.deepcopy(chance.choice(_VALUES))


def _places(document: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    todo = [document]
    while todo and len(found) < 500:
        node = todo.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            found += [(node, key) for key in keys]
            todo += [node[key] for key in keys]
    return found


_NAMES = (
    b"a", b"a/", b"a/b", b"./a", b"/a", b"../a", b"a/../b", b"", b".", b"..", b"//", b"usr", b"usr/bin/main",
    b"usr/lib/a",
    b".wh.a", b"usr/.wh.bin", b".wh..wh..opq", b"usr/.wh..wh..opq", b"a\0b", b"\xff\xfe", b"etc/ld.so.conf",
    b"lib/ld-musl-armhf.so.1", "ü".encode(), b"x" * 100, b"PaxHeaders.0/a",
)  # fmt: skip
_SIZES = (
    b"0", b"1", b"777", b"1000", b"10000", b"7777777777777", b"-1", b" 12", b"12 ", b"12\x00",
    b"9", b"0x1", b"",
    b"1_0",
    b"\x80\0\0\0\0\0\0\0\0\0\0\1", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80\0\0\0\x40\0\0\0\0\0\0\0",
)  # fmt: skip
_FLAGS = b"0123456789xgXLKSDMVA\0 \xff"
_PAX = (
    b"path=../x", b"path=a/b", b"path=", b"linkpath=a", b"size=1", b"size=99999999999999999999", b"size=-1",
    b"GNU.sparse.major=1", b"mtime=1.5", b"SCHILY.xattr.user.a=b", b"hdrcharset=BINARY", b"uid=0",
    b"path=a\0b",
)  # fmt: skip


def change_tar(data: bytes, chance: random.Random) -> bytes:
    """The archive with members whose headers say something else, or that are doubled, dropped, moved."""
    members = [
        header + held.ljust(-(-len(held) // 512) * 512, b"\0") for header, held in oracles.members(data)
    ]
    for _ in range(chance.choice((1, 1, 2, 3))):
        if not members:
            break
        at = chance.randrange(len(members))
        kind = chance.randrange(8)
        if kind == 0:
            members.insert(chance.randrange(len(members) + 1), members[at])
        elif kind == 1:
            members.append(members.pop(at))
        elif kind == 2:
            members.insert(at, _pax_header(chance))
        else:
            members[at] = _with_field(members[at], chance)
    ends = (bytes(1024), bytes(1024), bytes(1024), b"", bytes(512), bytes(10240))
    return b"".join(_summed(member) for member in members) + chance.choice(ends)


def packed_tar(data: bytes, chance: random.Random) -> bytes:
    """The same behind a first byte that says that it is to be packed, and how."""
    return bytes([0x80 | chance.randrange(3)]) + change_tar(data[1:], chance)


def image_part(data: bytes, chance: random.Random) -> bytes:
    """A document or an archive, as the first byte says (see ``_PARTS`` of the targets)."""
    return (b"\3" + change_tar(data[1:], chance)) if data[:1] == b"\3" else after_prefix(data, chance)


def _with_field(member: bytes, chance: random.Random) -> bytes:
    header = bytearray(member[:512])
    start, width, values = chance.choice((
        (0, 100, _NAMES), (157, 100, _NAMES), (124, 12, _SIZES), (345, 155, _NAMES), (100, 8, _SIZES),
        (257, 8, (b"ustar\x0000", b"ustar  \0", b"", b"ustar\0xx", b"ustar\0 \0")), (508, 4, (b"tar\0",)),
    ))  # fmt: skip
    if chance.random() < 0.3:
        header[156] = chance.choice(_FLAGS)
    else:
        header[start : start + width] = chance.choice(values)[:width].ljust(width, b"\0")
    return bytes(header) + member[512:]


def _pax_header(chance: random.Random) -> bytes:
    records = b""
    for record in chance.sample(_PAX, chance.choice((1, 1, 2, 3))):
        body = b" " + record + b"\n"
        size = len(body) + len(str(len(body) + 2))
        records += str(size).encode() + body
    header = bytearray(512)
    header[0:1] = b"p"
    header[124:136] = b"%011o\0" % len(records)
    header[156:157] = chance.choice((b"x", b"x", b"x", b"g"))
    header[257:265] = b"ustar\x0000"
    return bytes(header) + _padded(records)


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def _summed(member: bytes) -> bytes:
    header = member[:512]
    checksum = sum(header[:148]) + sum(header[156:]) + 256
    return header[:148] + b"%06o\0 " % checksum + member[156:]


_PLATFORM_WORDS = (
    "linux", "windows", "darwin", "Linux", "amd64", "x86_64", "arm64", "aarch64", "arm", "armhf", "armv7l",
    "386", "i686", "s390x", "ppc64le", "ppc64el", "riscv64", "mips64le", "loong64", "v5", "v6", "v7", "v8",
    "v9", "v1", "v3", "", " ", "zz", "..", "v8.2",
)  # fmt: skip


def join_platform_words(data: bytes, chance: random.Random) -> bytes:
    """Words that are or were parts of platforms, in any number and order; the bytes do not count."""
    del data
    return "/".join(chance.choices(_PLATFORM_WORDS, k=chance.choice((1, 2, 2, 3, 3, 4)))).encode()
