"""The fuzz targets: each reader of bytes from an image, a registry or a user."""

from __future__ import annotations

import dataclasses
import io
import itertools
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
from tests.fuzz.archive_targets import ARCHIVE_TARGETS
from tests.fuzz.target import Target
from tests.fuzz.text_targets import TEXT_TARGETS
from tests.support.elf import BASE
from tests.support.oci import (
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    Json,
    MemoryImage,
    index_json,
    make_tar,
    platform_json,
    probe_program,
)

_IMAGE_ERRORS = (MalformedImage, LimitExceeded)


def _is_selected(data: bytes) -> bool:
    """Return True for one input in four, for oracles that are slow."""
    return zlib.crc32(data) % 4 == 0


# Arguments of a user, and headers of a registry.


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _read_reference(data: bytes) -> Reference:
    return Reference.parse(_decode(data))


def _check_reference(data: bytes, reference: Reference) -> None:
    del data
    assert Reference.parse(str(reference)) == reference
    assert reference.identifier
    for part in (reference.host, reference.repository, reference.tag):
        assert part.isascii()
        assert part.isprintable()
        assert ".." not in part.split("/")


def _read_platform(data: bytes) -> Platform:
    parts = (_decode(data) + "//").split("/")
    normal = Platform.normalize(*parts[:3])
    assert Platform.normalize(normal.os, normal.architecture, normal.variant) == normal
    return Platform.parse(_decode(data))


def _check_platform(data: bytes, platform: Platform) -> None:
    del data
    assert platform in known_platforms()
    assert Platform.parse(str(platform)) == platform
    assert platform.baseline_cpu
    assert platform.machine.architecture == platform.architecture


def _read_digest(data: bytes) -> Digest:
    return Digest(_decode(data))


def _check_digest(data: bytes, digest: Digest) -> None:
    """Check a digest without a regular expression."""
    assert str(digest).encode() == data
    assert len(digest.hex) == {"sha256": 64, "sha512": 128}[digest.algorithm]
    assert set(digest.hex) <= set("0123456789abcdef")


def _check_digest_error(data: bytes, error: Exception) -> None:
    del error
    algorithm, colon, digits = data.partition(b":")
    length = {b"sha256": 64, b"sha512": 128}.get(algorithm)
    assert not (colon and len(digits) == length and set(digits) <= set(b"0123456789abcdef"))


def _read_challenge(data: bytes) -> tuple[Challenge, ...]:
    return parse_challenges(data.decode("latin-1"))


def _check_challenge(data: bytes, challenges: tuple[Challenge, ...]) -> None:
    """Format the challenges, with every value quoted, and parse them again."""
    del data
    parsed = [each for each in challenges if each.parameters]
    assert parse_challenges(", ".join(map(_format_challenge, parsed))) == tuple(parsed)


def _format_challenge(challenge: Challenge) -> str:
    def quote(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    parameters = ", ".join(f"{name}={quote(value)}" for name, value in challenge.parameters.items())
    return f"{challenge.scheme} {parameters}"


# Documents.


def _read_json(data: bytes) -> dict[str, Any]:
    return load_object(data, "the document")


def _check_index(data: bytes, index: Index) -> None:
    raw = json.loads(data)
    assert [str(entry.digest) for entry in index.manifests] == [entry["digest"] for entry in raw["manifests"]]
    assert [entry.size for entry in index.manifests] == [entry["size"] for entry in raw["manifests"]]
    for entry in index.manifests:
        assert not (entry.is_attestation and entry.platform in known_platforms())


def _check_manifest(data: bytes, manifest: Manifest) -> None:
    raw = json.loads(data)
    assert "manifests" not in raw
    assert [layer.size for layer in manifest.layers] == [layer["size"] for layer in raw["layers"] or []]
    assert str(manifest.config.digest) == raw["config"]["digest"]


def _check_config(data: bytes, config: ImageConfig) -> None:
    raw = json.loads(data)
    (rootfs,) = (value for key, value in raw.items() if key.casefold() == "rootfs")  # in any case, but once
    assert [str(each) for each in config.diff_ids] == (rootfs.get("diff_ids") or [])
    assert config.platform.os == raw["os"]


# Archives and layers.


def _read_tar(data: bytes) -> tuple[bytes, list[tuple[TarEntry, bytes]]]:
    """Read an archive; if a checksum is wrong, fix all checksums and read it again."""
    try:
        return data, _read_members(data)
    except MalformedImage as error:
        if "checksum" not in error.message:
            raise
    fixed = oracles.fix_checksums(data)
    return fixed, _read_members(fixed)


def _read_members(data: bytes) -> list[tuple[TarEntry, bytes]]:
    reader = TarReader(io.BytesIO(data), max_entries=1000)
    return [(entry, b"".join(iter(lambda: reader.read(700), b""))) for entry in reader]


def _check_tar(data: bytes, result: tuple[bytes, list[tuple[TarEntry, bytes]]]) -> None:
    del data
    oracles.check_same_archive(*result)


_MEDIA_TYPES = (LAYER_TAR, LAYER_GZIP, LAYER_ZSTD)
_COMPRESSORS: tuple[Callable[[bytes], bytes], ...] = (bytes, seeds.gzip_in_members, seeds.zstd_in_frames)


def _layer_blob(data: bytes) -> tuple[str, bytes]:
    """Return media type and blob; the first byte selects them, and whether the rest is compressed here."""
    selector, rest = data[0] if data else 0, data[1:]
    form = selector % 3
    blob = _COMPRESSORS[form](oracles.fix_checksums(rest)) if selector & 0x80 else rest
    return _MEDIA_TYPES[form], blob


def _read_layer(data: bytes) -> LayerScan:
    media_type, blob = _layer_blob(data)
    memory = MemoryImage()
    entry = memory.put(blob, media_type)
    layer = Descriptor(media_type=media_type, digest=Digest(entry["digest"]), size=len(blob))
    return scan_layer(memory, layer)


def _check_layer(data: bytes, scan: LayerScan) -> None:
    media_type, blob = _layer_blob(data)
    assert Digest.from_bytes(blob) == scan.digest
    if media_type == LAYER_TAR:
        assert (scan.diff_id, scan.size) == (Digest.from_bytes(blob), len(blob))
    elif media_type == LAYER_GZIP:
        archive = oracles.decompress_gzip(blob)
        assert (scan.diff_id, scan.size) == (Digest.from_bytes(archive), len(archive))


def _layer_seeds() -> Iterator[bytes]:
    for archive in seeds.iter_archives():
        for form, compress in enumerate(_COMPRESSORS):
            yield bytes([form]) + compress(archive)
            yield bytes([form | 0x80]) + archive


# Programs.


def _read_program(data: bytes) -> tuple[ElfHeader, Binary]:
    return read_elf_header(data), read_binary(WholeFile(data))


def _check_program(data: bytes, result: tuple[ElfHeader, Binary]) -> None:
    header, binary = result
    assert header.describe().startswith("ELF ")
    oracles.check_same_header(data, header)
    for platform in known_platforms():
        if platform.machine is header.machine:
            assert all(isa_problems(platform, binary))
    assert arm_float_abi(binary) in ("hard", "soft", "")
    if _is_selected(data):
        half = len(data) // 2
        # The halves overlap, because the magic that is searched for has to be within one of them.
        halves = PartialFile(len(data), [(0, data[: half + 32]), (half, data[half:])])
        assert read_binary(halves) == binary
        assert read_binary(PartialFile(len(data), [(0, data[:200])])).header == header


def _read_go(data: bytes) -> GoBuildInfo | None:
    return read_go_build_info(
        max(find_go_build_info(WholeFile(data), 0, len(data)), 0),
        lambda offset, size: data[offset : offset + size],
        lambda address, size: data[max(address - BASE, 0) :][:size],
    )


def _check_go(data: bytes, info: GoBuildInfo | None) -> None:
    if info is not None:
        assert GO_MAGIC in data
        assert len(info.version) <= 256
        json.dumps(dataclasses.asdict(info), ensure_ascii=False).encode()


def _go_seeds() -> Iterator[bytes]:
    yield seeds.inline_go_info(GOARCH="arm", GOARM="7,softfloat", CGO_ENABLED="0")
    yield seeds.inline_go_info("go1.27", GOAMD64="v3")
    yield b"\0" * 16 + seeds.inline_go_info(GO386="sse2")
    yield seeds.pointer_go_info(BASE)
    yield seeds.pointer_go_info(BASE, "big")


def _read_attributes(data: bytes) -> list[dict[int, int | str]]:
    """Read attributes; the first byte selects vendor and byte order."""
    selector, section = data[0] if data else 0, data[1:]
    return [
        read_attributes(section, "riscv" if selector & 1 else "aeabi", "big" if selector & 2 else "little")
    ]


def _attribute_seeds() -> Iterator[bytes]:
    yield b"\0" + seeds.arm_attributes()
    yield b"\2" + seeds.arm_attributes("big")
    yield b"\1" + seeds.riscv_attributes()
    yield b"\0" + seeds.arm_attributes() + seeds.arm_attributes()[1:]


# A whole image.

_PLATFORM = "linux/arm/v7"
_OTHER_FILES = {"etc/os-release": b"ID=x\n"}
_VALID_TAR = make_tar({"usr/bin/main": probe_program(_PLATFORM), **_OTHER_FILES})
_PARTS = ("index", "manifest", "config", "layer", "program", "blob")


def _build_image(data: bytes) -> MemoryImage:
    """Build a small image with one part, selected by the first byte, replaced by the other bytes.

    Descriptors are computed afterwards, so that no digest is wrong; except for ``blob``, where the
    bytes are stored under the digest of the valid layer.
    """
    part, rest = _PARTS[data[0] % len(_PARTS)] if data else "index", data[1:]
    memory = MemoryImage()
    tar = oracles.fix_checksums(rest) if part == "layer" else _VALID_TAR
    if part == "program":
        tar = make_tar({"usr/bin/main": rest, **_OTHER_FILES})
    layer = memory.put(tar, LAYER_TAR)
    if part == "blob":
        memory.blobs[layer["digest"]] = rest
    rootfs = {"type": "layers", "diff_ids": [layer["digest"]]}
    config: Json = {**platform_json(_PLATFORM), "config": {"Entrypoint": ["/usr/bin/main"]}, "rootfs": rootfs}
    config_descriptor = memory.put(rest if part == "config" else config, OCI_CONFIG)
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config_descriptor,
        "layers": [layer],
    }
    entry = memory.put(rest if part == "manifest" else manifest, OCI_MANIFEST)
    index = index_json([{**entry, "platform": platform_json(_PLATFORM)}])
    return memory.set_root(memory.put(rest if part == "index" else index, OCI_INDEX))


def _read_image(data: bytes) -> VerifyReport:
    return verify(_build_image(data), (), "fuzz")


def _check_image(data: bytes, report: VerifyReport) -> None:
    """Check that a report can be serialized, and that each failed check has a message."""
    if _is_selected(data):
        json.dumps(to_document(report), ensure_ascii=False).encode()
    failed = [check for result in report.platforms for check in result.checks if not check.ok]
    assert report.ok != bool(failed)
    assert all(check.message for check in failed)
    if data[:1] == b"\5" and report.ok:
        assert data[1:] == _VALID_TAR


def _image_seeds() -> Iterator[bytes]:
    valid = _build_image(b"\5" + _VALID_TAR)
    for selector, kind in enumerate(("index", "manifest", "config")):
        for each in seeds.documents_by_kind(valid)[kind]:
            yield bytes([selector]) + each
    for archive in seeds.iter_archives():
        yield b"\3" + archive
    for program in itertools.islice(seeds.iter_programs(), 0, None, 3):
        yield b"\4" + program
    yield b"\5" + _VALID_TAR


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
    return lambda: seeds.documents_by_kind()[kind]


TARGETS = {
    target.name: target
    for target in (
        *TEXT_TARGETS,
        *ARCHIVE_TARGETS,
        Target(
            name="reference",
            read=_read_reference,
            check_result=_check_reference,
            allowed_errors=(UsageError,),
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
            check_result=_check_platform,
            mutate=mutators.join_platform_components,
            allowed_errors=(UsageError,),
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
            check_result=_check_digest,
            check_error=_check_digest_error,
            allowed_errors=(MalformedImage,),
            max_len=200,
            seeds=lambda: [b"sha256:" + b"0123456789abcdef" * 4, b"sha512:" + b"0123456789abcdef" * 8],
            tokens=(b"sha256:", b"sha512:", b"sha384:", b"../", b"\n", b"\0", "٣".encode()),
        ),
        Target(
            name="challenge",
            read=_read_challenge,
            check_result=_check_challenge,
            allowed_errors=(RegistryError,),
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
            check_result=oracles.check_same_json,
            check_error=oracles.check_json_error,
            allowed_errors=(MalformedImage,),
            seeds=lambda: [
                b'{"a":1,"b":[true,null,"\\u00e9"],"c":{"d":-1.5e3}}', b'{"a":%b%b}' % (b"[" * 62, b"]" * 62),
                *seeds.documents_by_kind()["config"],
            ],
            tokens=_JSON,
            mutate=mutators.mutate_json,
        ),
        Target(
            name="index", read=parse_index, check_result=_check_index, allowed_errors=(MalformedImage,),
            seeds=_documents("index"), tokens=_JSON + _DOCUMENT,
            mutate=mutators.mutate_json,
        ),
        Target(
            name="manifest", read=parse_manifest, check_result=_check_manifest,
            allowed_errors=(MalformedImage,), seeds=_documents("manifest"), tokens=_JSON + _DOCUMENT,
            mutate=mutators.mutate_json,
        ),
        Target(
            name="config", read=parse_config, check_result=_check_config, allowed_errors=(MalformedImage,),
            seeds=lambda: [*seeds.documents_by_kind()["config"], seeds.full_config("linux/arm/v6")],
            tokens=_JSON + _DOCUMENT,
            mutate=mutators.mutate_json,
        ),
        Target(
            name="tar", read=_read_tar, check_result=_check_tar, allowed_errors=_IMAGE_ERRORS, max_len=6144,
            seeds=seeds.iter_archives, tokens=_TAR, mutate=mutators.mutate_tar,
        ),
        Target(
            name="layer", read=_read_layer, check_result=_check_layer, allowed_errors=_IMAGE_ERRORS,
            seeds=_layer_seeds, tokens=_TAR + _PACKED, mutate=mutators.mutate_packed_tar,
        ),
        Target(
            name="elf", read=_read_program, check_result=_check_program, allowed_errors=(MalformedImage,),
            seeds=seeds.iter_programs, tokens=_ELF,
        ),
        Target(
            name="gobuild", read=_read_go, check_result=_check_go, allowed_errors=(MalformedImage,),
            max_len=1024, seeds=_go_seeds, tokens=_ELF,
        ),
        Target(
            name="attributes", read=_read_attributes, allowed_errors=(MalformedImage,), max_len=512,
            seeds=_attribute_seeds,
            tokens=(b"A", b"aeabi\0", b"riscv\0", b"gnu\0", b"\xff" * 10, b"\x20\0", b"\x01"),
        ),
        Target(
            # Errors of an image are in the report: verify must not raise.
            name="image", read=_read_image, check_result=_check_image,
            seeds=_image_seeds, tokens=_JSON + _DOCUMENT + _TAR,
            mutate=mutators.mutate_image_part,
        ),
    )
}  # fmt: skip
