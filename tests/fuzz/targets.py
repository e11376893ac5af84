"""The table of fuzz targets: every reader of bytes that an image, a registry or a user brings."""

from __future__ import annotations

import dataclasses
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from buildkit_tasks.errors import LimitExceeded, MalformedImage, RegistryError, UsageError
from buildkit_tasks.oci.layers.scan import LayerScan, scan_layer
from buildkit_tasks.oci.layers.tar import TarEntry, TarReader
from buildkit_tasks.oci.model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Digest,
    ImageConfig,
    Index,
    Manifest,
    parse_config,
    parse_index,
    parse_manifest,
)
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.registry.challenge import Challenge, parse_challenges
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.platforms import Platform, known_platforms
from buildkit_tasks.platforms.elf.build_attributes import read_attributes
from buildkit_tasks.platforms.elf.go_buildinfo import (
    GO_MAGIC,
    GoBuildInfo,
    find_go_build_info,
    read_go_build_info,
)
from buildkit_tasks.platforms.elf.isa_check import arm_float_abi, isa_problems
from buildkit_tasks.platforms.elf.model import Binary, ElfHeader
from buildkit_tasks.platforms.elf.reader import read_binary, read_elf_header
from buildkit_tasks.platforms.elf.view import PartialFile, WholeFile
from buildkit_tasks.report.model import VerifyReport, to_document
from buildkit_tasks.verify import verify
from tests.fuzz import mutators, oracles, seeds
from tests.fuzz.target import Target
from tests.support.oci import (
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    Json,
    Memory,
    index_json,
    make_tar,
    platform_json,
    probe,
)

_HOSTILE = (MalformedImage, LimitExceeded)


def _one_in(few: int, data: bytes) -> bool:
    """Whether to ask the dear oracles too: for the same bytes always the same answer."""
    return zlib.crc32(data) % few == 0


# Words that a user types, or a registry sends.


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _read_reference(data: bytes) -> Reference:
    return Reference.parse(_text(data))


def _check_reference(data: bytes, found: Reference) -> None:
    del data
    assert Reference.parse(str(found)) == found
    assert found.identifier
    for part in (found.host, found.repository, found.tag):
        assert part.isascii()
        assert part.isprintable()
        assert ".." not in part.split("/")


def _read_platform(data: bytes) -> Platform:
    parts = (_text(data) + "//").split("/")
    free = Platform.normalize(*parts[:3])
    assert Platform.normalize(free.os, free.architecture, free.variant) == free
    return Platform.parse(_text(data))


def _check_platform(data: bytes, found: Platform) -> None:
    del data
    assert found in known_platforms()
    assert Platform.parse(str(found)) == found
    assert found.baseline_cpu
    assert found.machine.architecture == found.architecture


def _read_digest(data: bytes) -> Digest:
    return Digest(_text(data))


def _check_digest(data: bytes, found: Digest) -> None:
    """Judged without a regular expression."""
    assert str(found).encode() == data
    assert len(found.hex) == {"sha256": 64, "sha512": 128}[found.algorithm]
    assert set(found.hex) <= set("0123456789abcdef")


def _refused_digest(data: bytes, error: Exception) -> None:
    del error
    algorithm, colon, digits = data.partition(b":")
    length = {b"sha256": 64, b"sha512": 128}.get(algorithm)
    assert not (colon and len(digits) == length and set(digits) <= set(b"0123456789abcdef"))


def _read_challenge(data: bytes) -> tuple[Challenge, ...]:
    return parse_challenges(data.decode("latin-1"))


def _check_challenge(data: bytes, found: tuple[Challenge, ...]) -> None:
    """Written out again, everything quoted, it is the same."""
    del data
    plain = [each for each in found if each.parameters]
    assert parse_challenges(", ".join(map(_written, plain))) == tuple(plain)


def _written(challenge: Challenge) -> str:
    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    parameters = ", ".join(f"{name}={quoted(value)}" for name, value in challenge.parameters.items())
    return f"{challenge.scheme} {parameters}"


# Documents.


def _read_json(data: bytes) -> dict[str, Any]:
    return load_object(data, "the document")


def _check_index(data: bytes, found: Index) -> None:
    raw = json.loads(data)
    assert [str(entry.digest) for entry in found.manifests] == [entry["digest"] for entry in raw["manifests"]]
    assert [entry.size for entry in found.manifests] == [entry["size"] for entry in raw["manifests"]]
    for entry in found.manifests:
        assert not (entry.is_attestation and entry.platform in known_platforms())


def _check_manifest(data: bytes, found: Manifest) -> None:
    raw = json.loads(data)
    assert "manifests" not in raw
    assert [layer.size for layer in found.layers] == [layer["size"] for layer in raw["layers"]]
    assert str(found.config.digest) == raw["config"]["digest"]


def _check_config(data: bytes, found: ImageConfig) -> None:
    raw = json.loads(data)
    assert [str(each) for each in found.diff_ids] == (raw["rootfs"].get("diff_ids") or [])
    assert found.platform.os == raw["os"]


# Archives and layers.


def _read_tar(data: bytes) -> tuple[bytes, list[tuple[TarEntry, bytes]]]:
    """Read it as it is; what a wrong checksum stops is read with the right one as well."""
    try:
        return data, _members(data)
    except MalformedImage as error:
        if "checksum" not in error.message:
            raise
    mended = oracles.repaired(data)
    return mended, _members(mended)


def _members(data: bytes) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(io.BytesIO(data), max_entries=1000)
    return [(entry, b"".join(iter(lambda: reader.read(700), b""))) for entry in reader]


def _check_tar(data: bytes, found: tuple[bytes, list[tuple[TarEntry, bytes]]]) -> None:
    del data
    oracles.same_archive(*found)


_MEDIA = (LAYER_TAR, LAYER_GZIP, LAYER_ZSTD)
_PACK: tuple[Callable[[bytes], bytes], ...] = (bytes, seeds.several_members, seeds.zstd_frames)


def _blob(data: bytes) -> tuple[str, bytes]:
    """The first byte chooses: these bytes are a layer as it is stored, or an archive that is packed here."""
    choice, rest = data[0] if data else 0, data[1:]
    form = choice % 3
    return _MEDIA[form], _PACK[form](oracles.repaired(rest)) if choice & 0x80 else rest


def _read_layer(data: bytes) -> LayerScan:
    media_type, blob = _blob(data)
    memory = Memory()
    entry = memory.put(blob, media_type)
    layer = Descriptor(media_type=media_type, digest=Digest(entry["digest"]), size=len(blob))
    return scan_layer(memory, layer)


def _check_layer(data: bytes, found: LayerScan) -> None:
    media_type, blob = _blob(data)
    assert Digest.from_bytes(blob) == found.digest
    if media_type == LAYER_TAR:
        assert (found.diff_id, found.size) == (Digest.from_bytes(blob), len(blob))
    elif media_type == LAYER_GZIP:
        theirs = oracles.gunzip(blob)
        assert (found.diff_id, found.size) == (Digest.from_bytes(theirs), len(theirs))


def _layer_seeds() -> Iterator[bytes]:
    for archive in seeds.archives():
        for form, pack in enumerate(_PACK):
            yield bytes([form]) + pack(archive)
            yield bytes([form | 0x80]) + archive


# Programs.


def _read_program(data: bytes) -> tuple[ElfHeader, Binary]:
    return read_elf_header(data), read_binary(WholeFile(data))


def _check_program(data: bytes, found: tuple[ElfHeader, Binary]) -> None:
    header, binary = found
    assert header.describe().startswith("ELF ")
    oracles.same_header(data, header)
    for platform in known_platforms():
        if platform.machine is header.machine:
            assert all(isa_problems(platform, binary))
    assert arm_float_abi(binary) in ("hard", "soft", "")
    if _one_in(4, data):
        half = len(data) // 2
        # What is searched for lies in one piece: they overlap by more than its length.
        pieces = PartialFile(len(data), [(0, data[: half + 32]), (half, data[half:])])
        assert read_binary(pieces) == binary
        assert read_binary(PartialFile(len(data), [(0, data[:200])])).header == header


def _read_go(data: bytes) -> GoBuildInfo | None:
    return read_go_build_info(
        max(find_go_build_info(WholeFile(data), 0, len(data)), 0),
        lambda offset, size: data[offset : offset + size],
        lambda address, size: data[max(address - seeds.BASE, 0) :][:size],
    )


def _check_go(data: bytes, found: GoBuildInfo | None) -> None:
    if found is not None:
        assert GO_MAGIC in data
        assert len(found.version) <= 256
        json.dumps(dataclasses.asdict(found), ensure_ascii=False).encode()


def _go_seeds() -> Iterator[bytes]:
    yield seeds.go_info(GOARCH="arm", GOARM="7,softfloat", CGO_ENABLED="0")
    yield seeds.go_info("go1.27", GOAMD64="v3")
    yield b"\0" * 16 + seeds.go_info(GO386="sse2")
    yield seeds.old_go_info(seeds.BASE)
    yield seeds.old_go_info(seeds.BASE, "big")


def _read_attributes(data: bytes) -> list[dict[int, int | str]]:
    """The first byte chooses vendor and byte order."""
    choice, section = data[0] if data else 0, data[1:]
    return [read_attributes(section, "riscv" if choice & 1 else "aeabi", "big" if choice & 2 else "little")]


def _attribute_seeds() -> Iterator[bytes]:
    yield b"\0" + seeds.arm_attributes()
    yield b"\2" + seeds.arm_attributes(order="big")
    yield b"\1" + seeds.riscv_attributes()
    yield b"\0" + seeds.arm_attributes() + seeds.arm_attributes()[1:]


# A whole image.

_PLATFORM = "linux/arm/v7"
_RELEASE = {"etc/os-release": b"ID=x\n"}
_SOUND = make_tar({"usr/bin/main": probe(_PLATFORM), **_RELEASE})
_PARTS = ("index", "manifest", "config", "layer", "program", "blob")


def _image(data: bytes) -> Memory:
    """A small sound image of which one part, that the first byte chooses, is these bytes.

    What refers to the part is made to fit, so that nothing is refused for its digest; except for
    ``blob``, where the bytes lie under another blob's digest.
    """
    part, rest = _PARTS[data[0] % len(_PARTS)] if data else "index", data[1:]
    memory = Memory()
    tar = oracles.repaired(rest) if part == "layer" else _SOUND
    if part == "program":
        tar = make_tar({"usr/bin/main": rest, **_RELEASE})
    layer = memory.put(tar, LAYER_TAR)
    if part == "blob":
        memory.blobs[layer["digest"]] = rest
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config: Json = {**platform_json(_PLATFORM), "config": {"Entrypoint": ["/usr/bin/main"]}, "rootfs": rootfs}
    stated = memory.put(rest if part == "config" else config, OCI_CONFIG)
    manifest: Json = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": stated, "layers": [layer]}
    entry = memory.put(rest if part == "manifest" else manifest, OCI_MANIFEST)
    index = index_json([{**entry, "platform": platform_json(_PLATFORM)}])
    return memory.point(memory.put(rest if part == "index" else index, OCI_INDEX))


def _read_image(data: bytes) -> VerifyReport:
    return verify(_image(data), (), "fuzz")


def _check_image(data: bytes, found: VerifyReport) -> None:
    """A verdict can be written down, and says why where it is a no."""
    if _one_in(4, data):
        json.dumps(to_document(found), ensure_ascii=False).encode()
    failed = [check for verdict in found.platforms for check in verdict.checks if not check.ok]
    assert found.ok != bool(failed)
    assert all(check.message for check in failed)
    if data[:1] == b"\5" and found.ok:
        assert data[1:] == _SOUND


def _image_seeds() -> Iterator[bytes]:
    sound = _image(b"\5" + _SOUND)
    for number, kind in enumerate(("index", "manifest", "config")):
        for each in seeds.documents(sound)[kind]:
            yield bytes([number]) + each
    for archive in seeds.archives():
        yield b"\3" + archive
    for row, program in zip(range(40), seeds.programs(), strict=False):
        if row % 3 == 0:
            yield b"\4" + program
    yield b"\5" + _SOUND


_JSON = (
    b'{"', b'":', b'","', b"null", b"true", b"[]", b"{}", b"1e999", b"NaN", b"-0", b"\\ud800",
    b"\xef\xbb\xbf", b"9999999999999999999", b'"mediaType":', b'"schemaVersion":2', b'"size":',
    b'"digest":', b"sha256:",
)  # fmt: skip
_DOCUMENT = (
    b'"manifests":[', b'"layers":[', b'"config":{', b'"platform":{', b'"annotations":{', b'"architecture":',
    b'"os":', b'"variant":', b'"rootfs":{', b'"diff_ids":[', b'"artifactType":', b'"Layers":',
    b"vnd.docker.reference.type", b"unknown", b"Entrypoint", b"Env",
)  # fmt: skip
_TAR = (
    b"ustar\x0000", b"ustar  \0", b"x", b"g", b"L", b"K", b"S", b"7", b"1", b"2", b"5", b"30 path=", b"size=",
    b"linkpath=", b"GNU.sparse.", b"\x80\0\0\0\0\0\0\0", b"\xff" * 8, b"../", b".wh.", b".wh..wh..opq",
)  # fmt: skip
_PACKED = (b"\x1f\x8b\x08\0", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"\x5f\x2a\x4d\x18")
_ELF = (
    b"\x7fELF", b"\x01\x01\x01", b"\x02\x01\x01", b"\x02\x02\x01", GO_MAGIC, b"aeabi\0", b"riscv\0",
    b".go.buildinfo\0", b".ARM.attributes\0", b"GNU\0", b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\xff\xff",
    b"\xff\xff\xff\x7f", b"build\tGOARM=", b"\n", b"\t",
)  # fmt: skip


def _documents(kind: str) -> Callable[[], list[bytes]]:
    return lambda: seeds.documents()[kind]


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="reference",
            read=_read_reference,
            check=_check_reference,
            allowed=(UsageError,),
            max_len=1200,
            seeds=lambda: [
                b"alpine", b"docker.io/library/alpine:3.21", b"localhost:5000/a/b__c:tag", b"[::1]:5000/x:y",
                b"ghcr.io/o/r@sha256:" + b"a" * 64, b"h.example/r:t@sha512:" + b"0" * 128,
            ],
            tokens=(b"docker.io/", b"localhost", b":5000", b"[::1]", b"@sha256:", b"__", b"..", b"://"),
        ),
        Target(
            name="platform",
            read=_read_platform,
            check=_check_platform,
            change=mutators.join_platform_words,
            allowed=(UsageError,),
            max_len=200,
            seeds=lambda: [
                *(str(each).encode() for each in known_platforms()),
                b"aarch64", b"armhf", b"linux/arm64/v8", b"windows/amd64", b" Linux/ARM ", b"linux/zz",
            ],
            tokens=(b"linux/", b"/v", b"x86_64", b"armel", b"wasip1", b"mips64", b"loong", b","),
        ),
        Target(
            name="digest",
            read=_read_digest,
            check=_check_digest,
            refused=_refused_digest,
            allowed=(MalformedImage,),
            max_len=200,
            seeds=lambda: [b"sha256:" + b"0123456789abcdef" * 4, b"sha512:" + b"0123456789abcdef" * 8],
            tokens=(b"sha256:", b"sha512:", b"sha384:", b"../", b"\n", b"\0", "٣".encode()),
        ),
        Target(
            name="challenge",
            read=_read_challenge,
            check=_check_challenge,
            allowed=(RegistryError,),
            max_len=2000,
            seeds=lambda: [
                b'Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull"',
                b'Basic realm="x\\"y", Bearer realm=a', b"Negotiate abcd==, Basic realm=z", b"Basic",
            ],
            tokens=(b"Bearer ", b"Basic ", b"realm=", b"service=", b"scope=", b'\\"', b'="', b", "),
        ),
        Target(
            name="json",
            read=_read_json,
            check=oracles.same_json,
            refused=oracles.refused_json,
            allowed=(MalformedImage,),
            seeds=lambda: [
                b'{"a":1,"b":[true,null,"\\u00e9"],"c":{"d":-1.5e3}}', b'{"a":%b%b}' % (b"[" * 62, b"]" * 62),
                *seeds.documents()["config"],
            ],
            tokens=_JSON,
            change=mutators.change_json,
        ),
        Target(
            name="index", read=parse_index, check=_check_index, allowed=(MalformedImage,),
            seeds=_documents("index"), tokens=_JSON + _DOCUMENT,
            change=mutators.change_json,
        ),
        Target(
            name="manifest", read=parse_manifest, check=_check_manifest, allowed=(MalformedImage,),
            seeds=_documents("manifest"), tokens=_JSON + _DOCUMENT,
            change=mutators.change_json,
        ),
        Target(
            name="config", read=parse_config, check=_check_config, allowed=(MalformedImage,),
            seeds=lambda: [*seeds.documents()["config"], seeds.config_with_everything("linux/arm/v6")],
            tokens=_JSON + _DOCUMENT,
            change=mutators.change_json,
        ),
        Target(
            name="tar", read=_read_tar, check=_check_tar, allowed=_HOSTILE, max_len=6144,
            seeds=seeds.archives, tokens=_TAR, change=mutators.change_tar,
        ),
        Target(
            name="layer", read=_read_layer, check=_check_layer, allowed=_HOSTILE,
            seeds=_layer_seeds, tokens=_TAR + _PACKED, change=mutators.packed_tar,
        ),
        Target(
            name="elf", read=_read_program, check=_check_program, allowed=(MalformedImage,),
            seeds=seeds.programs, tokens=_ELF,
        ),
        Target(
            name="gobuild", read=_read_go, check=_check_go, allowed=(MalformedImage,), max_len=1024,
            seeds=_go_seeds, tokens=_ELF,
        ),
        Target(
            name="attributes", read=_read_attributes, allowed=(MalformedImage,), max_len=512,
            seeds=_attribute_seeds,
            tokens=(b"A", b"aeabi\0", b"riscv\0", b"gnu\0", b"\xff" * 10, b"\x20\0", b"\x01"),
        ),
        Target(
            # Whatever is wrong with an image is in the report: nothing may be raised.
            name="image", read=_read_image, check=_check_image,
            seeds=_image_seeds, tokens=_JSON + _DOCUMENT + _TAR,
            change=mutators.image_part,
        ),
    )
}  # fmt: skip
