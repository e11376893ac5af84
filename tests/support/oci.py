"""Generate small images, valid ones and ones with a planted fault.

An image is a :class:`MemoryImage`. It is a :class:`buildkit_tasks.oci.source.Source`, and can be written
as a layout directory or an archive.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.model import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Digest
from buildkit_tasks.platforms import Platform
from buildkit_tasks.platforms.elf.probe import build_probe_program

LAYER_TAR = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = f"{LAYER_TAR}+gzip"
LAYER_ZSTD = f"{LAYER_TAR}+zstd"

Json = dict[str, Any]


@dataclass
class MemoryImage:
    """Blobs by digest, and the root descriptor. A test may change blobs without changing their digests."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    root: Descriptor | None = None
    opened: list[str] = field(default_factory=list)

    def root_descriptor(self) -> Descriptor:
        assert self.root is not None
        return self.root

    def open(self, descriptor: Descriptor) -> BinaryIO:
        self.opened.append(str(descriptor.digest))
        if str(descriptor.digest) not in self.blobs:
            raise MalformedImage(f"{descriptor.digest} is missing")
        return io.BytesIO(self.blobs[str(descriptor.digest)])

    def put(self, data: bytes | Json, media_type: str, **more: object) -> Json:
        """Store a blob and return its descriptor as JSON."""
        raw = json.dumps(data).encode() if isinstance(data, dict) else data
        digest = str(Digest.from_bytes(raw))
        self.blobs[digest] = raw
        return {"mediaType": media_type, "digest": digest, "size": len(raw), **more}

    def set_root(self, entry: Json) -> MemoryImage:
        """Make a stored document the root."""
        self.root = descriptor(entry)
        return self

    def set_index(self, entries: Sequence[Json], **more: object) -> MemoryImage:
        """Make an index of these entries the root."""
        return self.set_root(self.put(index_json(entries, **more), OCI_INDEX))


def index_json(entries: Sequence[Json], **more: object) -> Json:
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(entries), **more}


def descriptor(entry: Json) -> Descriptor:
    value = entry.get("platform")
    platform = value and Platform(value["os"], value["architecture"], value.get("variant", ""))
    return Descriptor(
        media_type=entry["mediaType"], digest=Digest(entry["digest"]), size=entry["size"], platform=platform
    )


def platform_json(platform: str) -> Json:
    parts = platform.split("/")
    return dict(zip(("os", "architecture", "variant"), parts, strict=False))


def probe_program(platform: str) -> bytes:
    """Return a real executable for the platform; it exits with ``PROBE_STATUS``."""
    return build_probe_program(Platform.parse(platform).machine)


def member(name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o755, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


def symlink(name: str, target: str) -> tarfile.TarInfo:
    return member(name, tarfile.SYMTYPE, link=target)


def hard_link(name: str, target: str) -> tarfile.TarInfo:
    return member(name, tarfile.LNKTYPE, link=target)


def directory(name: str) -> tarfile.TarInfo:
    return member(name, tarfile.DIRTYPE)


def make_tar(
    files: Mapping[str, bytes], others: Iterable[tarfile.TarInfo] = (), form: int = tarfile.PAX_FORMAT
) -> bytes:
    """Return a tar archive of regular files (mode 0755) and then other members, written by ``tarfile``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, data in files.items():
            info = member(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in others:
            archive.addfile(info)
    return buffer.getvalue()


def put_manifest(memory: MemoryImage, config: Json, layers: Sequence[Json], **more: object) -> Json:
    """Store config and manifest; return the manifest's descriptor without a platform."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": memory.put(config, OCI_CONFIG),
        "layers": list(layers),
        **more,
    }
    return memory.put(manifest, OCI_MANIFEST)


def add_platform(
    memory: MemoryImage,
    platform: str,
    tars: Sequence[bytes],
    *,
    config_platform: str | None = None,
    diff_ids: Sequence[str] | None = None,
    **runtime_config: object,
) -> Json:
    """Store one platform's image with gzipped layers; return its index entry.

    ``config_platform`` is the platform in the config if it differs; ``runtime_config`` is the config's
    ``config`` object (``Entrypoint``, ``Cmd``, ``Env``...).
    """
    layers = [memory.put(gzip.compress(tar, mtime=0), LAYER_GZIP) for tar in tars]
    if diff_ids is None:
        diff_ids = [str(Digest.from_bytes(tar)) for tar in tars]
    config = {
        **platform_json(config_platform or platform),
        "config": runtime_config,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
    }
    return {**put_manifest(memory, config, layers), "platform": platform_json(platform)}


def hello(platforms: Sequence[str] = ("linux/amd64", "linux/arm64", "linux/arm/v7")) -> MemoryImage:
    """Return a valid image: one layer with ``/usr/bin/main`` for each platform."""
    memory = MemoryImage()
    entries = [
        add_platform(
            memory, name, [make_tar({"usr/bin/main": probe_program(name)})], Entrypoint=["/usr/bin/main"]
        )
        for name in platforms
    ]
    return memory.set_index(entries)


def single_platform_image(
    tars: Sequence[bytes], platform: str = "linux/amd64", **runtime_config: object
) -> MemoryImage:
    """Return an index with one platform, whose layers are these archives."""
    memory = MemoryImage()
    entry = add_platform(memory, platform, tars, config_platform=None, diff_ids=None, **runtime_config)
    return memory.set_index([entry])


def flip(data: bytes, at: int = -20) -> bytes:
    """Return the bytes with one bit changed."""
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)


def layout_files(memory: MemoryImage, **annotations: str) -> dict[str, bytes]:
    """Return the files of an OCI image layout; as buildx writes it, index.json has one entry."""
    root = memory.root_descriptor()
    entry = {
        "mediaType": root.media_type,
        "digest": str(root.digest),
        "size": root.size,
        "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z", **annotations},
    }
    blobs = {f"blobs/{digest.replace(':', '/')}": data for digest, data in memory.blobs.items()}
    index = json.dumps(index_json([entry])).encode()
    return {**blobs, "index.json": index, "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}


def write_layout_dir(memory: MemoryImage, path: Path, **annotations: str) -> Path:
    for name, data in layout_files(memory, **annotations).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_archive(memory: MemoryImage, path: Path, **annotations: str) -> Path:
    path.write_bytes(make_tar(layout_files(memory, **annotations), form=tarfile.USTAR_FORMAT))
    return path


def write_program_image(folder: Path, *programs: tuple[str, bytes], env: Sequence[str] = ()) -> str:
    """Write an archive of an image with one program for each platform; return its path."""
    memory = MemoryImage()
    tars = {platform: make_tar({"main": data, "tmp/x": b""}) for platform, data in programs}
    memory.set_index(
        [add_platform(memory, name, [tar], Entrypoint=["/main"], Env=list(env)) for name, tar in tars.items()]
    )
    return str(write_archive(memory, folder / "image.tar"))
