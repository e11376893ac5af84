"""Mutations that keep a document well-formed; random bytes mostly end in a syntax error."""

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


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove, duplicate or move parts of a JSON document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        document = _mutate_tree(document, rng)
    try:
        text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    except (ValueError, RecursionError):
        return data
    if rng.random() < 0.1:  # a duplicate key, which a dict cannot have
        key = rng.choice(_KEYS)
        text = text.replace(f'"{key}":', f'"{key}": {rng.choice(("0", "null", "[]"))}, "{key}":', 1)
    return text.encode("utf-8", "surrogatepass")


def mutate_json_after_selector(data: bytes, rng: random.Random) -> bytes:
    """Mutate the document that follows a selector byte."""
    return data[:1] + mutate_json(data[1:], rng)


def mutate_json_after_zero(data: bytes, rng: random.Random) -> bytes:
    """Mutate the document, which may follow a zero byte."""
    selector = data[:1] if data[:1] == b"\0" else b""
    return selector + mutate_json(data[len(selector) :], rng)


def _mutate_tree(document: Any, rng: random.Random) -> Any:
    """Change one value, or one key, somewhere in the tree."""
    slots = [(None, None), *_list_slots(document)]
    container, key = rng.choice(slots)
    if container is None:
        return document if rng.random() < 0.9 else rng.choice(_VALUES)
    kind = rng.randrange(5)
    if kind == 0:
        del container[key]
    elif kind == 1 and isinstance(container, list):
        container.insert(rng.randrange(len(container) + 1), copy.deepcopy(container[key]))
    elif kind == 1:
        container[rng.choice(_KEYS)] = copy.deepcopy(container[key])
    elif kind == 2:
        other, other_key = rng.choice(slots)
        container[key] = copy.deepcopy(document if other is None else other[other_key])
    elif kind == 3 and isinstance(container, dict):
        container[rng.choice(_KEYS)] = rng.choice(_VALUES)
    else:
        container[key] = _mutate_value(container[key], rng)
    return document


def _mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a value that differs slightly, or another one."""
    if isinstance(value, int) and rng.random() < 0.5:
        return value + rng.choice((-1, 1))
    if isinstance(value, str) and value and rng.random() < 0.5:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(("", "0", "\n", "/", "..", "A", "\ud800")) + value[at + 1 :]
    return copy.deepcopy(rng.choice(_VALUES))


def _list_slots(document: Any) -> list[tuple[Any, Any]]:
    """Return each object or array of the document with each of its keys; about 500 at most."""
    slots: list[tuple[Any, Any]] = []
    pending = [document]
    while pending and len(slots) < 500:
        node = pending.pop()
        if isinstance(node, dict | list):
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            slots += [(node, key) for key in keys]
            pending += [node[key] for key in keys]
    return slots


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


def mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """Change header fields of members, duplicate or move members, and add pax headers."""
    members = [header + _pad_to_block(content) for header, content in oracles.iter_members(data)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not members:
            break
        at = rng.randrange(len(members))
        kind = rng.randrange(8)
        if kind == 0:
            members.insert(rng.randrange(len(members) + 1), members[at])
        elif kind == 1:
            members.append(members.pop(at))
        elif kind == 2:
            members.insert(at, _random_pax_member(rng))
        else:
            members[at] = _replace_field(members[at], rng)
    ends = (bytes(1024), bytes(1024), bytes(1024), b"", bytes(512), bytes(10240))
    return b"".join(_fix_checksum(member) for member in members) + rng.choice(ends)


def mutate_packed_tar(data: bytes, rng: random.Random) -> bytes:
    """Mutate the archive that follows a selector byte, and select a compression for it."""
    return bytes([0x80 | rng.randrange(3)]) + mutate_tar(data[1:], rng)


def mutate_image_part(data: bytes, rng: random.Random) -> bytes:
    """Mutate the document or archive that follows a selector byte (``_PARTS`` of the targets)."""
    if data[:1] == b"\3":
        return b"\3" + mutate_tar(data[1:], rng)
    return mutate_json_after_selector(data, rng)


def _replace_field(member: bytes, rng: random.Random) -> bytes:
    header = bytearray(member[:512])
    start, width, values = rng.choice((
        (0, 100, _NAMES), (157, 100, _NAMES), (124, 12, _SIZES), (345, 155, _NAMES), (100, 8, _SIZES),
        (257, 8, (b"ustar\x0000", b"ustar  \0", b"", b"ustar\0xx", b"ustar\0 \0")), (508, 4, (b"tar\0",)),
    ))  # fmt: skip
    if rng.random() < 0.3:
        header[156] = rng.choice(_FLAGS)
    else:
        header[start : start + width] = rng.choice(values)[:width].ljust(width, b"\0")
    return bytes(header) + member[512:]


def _random_pax_member(rng: random.Random) -> bytes:
    records = b""
    for record in rng.sample(_PAX, rng.choice((1, 1, 2, 3))):
        body = b" " + record + b"\n"
        size = len(body) + len(str(len(body) + 2))
        records += str(size).encode() + body
    header = bytearray(512)
    header[0:1] = b"p"
    header[124:136] = b"%011o\0" % len(records)
    header[156:157] = rng.choice((b"x", b"x", b"x", b"g"))
    header[257:265] = b"ustar\x0000"
    return bytes(header) + _pad_to_block(records)


def _pad_to_block(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 512) * 512, b"\0")


def _fix_checksum(member: bytes) -> bytes:
    return member[:148] + oracles.checksum_field(member) + member[156:]


_PLATFORM_COMPONENTS = (
    "linux", "windows", "darwin", "Linux", "amd64", "x86_64", "arm64", "aarch64", "arm", "armhf", "armv7l",
    "386", "i686", "s390x", "ppc64le", "ppc64el", "riscv64", "mips64le", "loong64", "v5", "v6", "v7", "v8",
    "v9", "v1", "v3", "", " ", "zz", "..", "v8.2",
)  # fmt: skip


def join_platform_components(data: bytes, rng: random.Random) -> bytes:
    """Join known and unknown components of platforms; the input is ignored."""
    del data
    return "/".join(rng.choices(_PLATFORM_COMPONENTS, k=rng.choice((1, 2, 2, 3, 3, 4)))).encode()
