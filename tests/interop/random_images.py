"""Generate random images from a seed, with at most one planted fault each.

Digests and sizes are computed last, so that the planted fault is the only one.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from buildkit_tasks.oci.model import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Digest
from tests.fuzz.seeds import gzip_in_members, zstd_in_frames
from tests.support.oci import (
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    Json,
    MemoryImage,
    make_tar,
    platform_json,
    probe_program,
)

DOCKER = "application/vnd.docker."
_MEDIA_TYPES = {
    "oci": {"index": OCI_INDEX, "manifest": OCI_MANIFEST, "config": OCI_CONFIG, "plain": LAYER_TAR},
    "docker": {
        "index": f"{DOCKER}distribution.manifest.list.v2+json",
        "manifest": f"{DOCKER}distribution.manifest.v2+json",
        "config": f"{DOCKER}container.image.v1+json",
        "plain": f"{DOCKER}image.rootfs.diff.tar",
    },
}
_MEDIA_TYPES["oci"] |= {"gzip": LAYER_GZIP, "members": LAYER_GZIP, "zstd": LAYER_ZSTD}
_MEDIA_TYPES["docker"] |= dict.fromkeys(("gzip", "members"), f"{DOCKER}image.rootfs.diff.tar.gzip")
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "members": gzip_in_members,
    "zstd": zstd_in_frames,
}
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/s390x", "linux/riscv64")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parameters of an image without its fault."""

    platforms: tuple[str, ...]
    layers: int
    compression: str
    types: str
    shared: bool
    index: bool

    @classmethod
    def draw(cls, rng: random.Random) -> Plan:
        types = rng.choice(("oci", "oci", "docker"))
        index = rng.random() < 0.7
        count = rng.randint(1, 4) if index else 1
        return cls(
            platforms=tuple(rng.sample(PLATFORMS, count)),
            layers=rng.randint(1, 5),
            compression=rng.choice(("gzip", "gzip", "members")),
            types=types,
            shared=rng.random() < 0.5,
            index=index,
        )

    def __str__(self) -> str:
        kind = "index" if self.index else "manifest"
        return f"{self.types} {kind} of {','.join(self.platforms)}, {self.layers} {self.compression} layers"


@dataclass(kw_only=True)
class Layer:
    """A layer before it is compressed, or with a ``blob`` that replaces the compressed archive."""

    tar: bytes
    compression: str
    media_type: str
    blob: bytes | None = None
    descriptor: Json = field(default_factory=dict)  # overrides the computed properties

    def build_blob(self) -> bytes:
        return _COMPRESSORS[self.compression](self.tar) if self.blob is None else self.blob


@dataclass(kw_only=True)
class Part:
    """One platform of an image; the properties in the JSON fields override those of the documents."""

    platform: str
    layers: list[Layer]
    diff_ids: list[str]
    config: Json = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)
    descriptor: Json = field(default_factory=dict)
    config_descriptor: Json = field(default_factory=dict)
    edit_config: Callable[[bytes], bytes] = bytes
    edit_manifest: Callable[[bytes], bytes] = bytes


@dataclass(kw_only=True)
class Draft:
    """An image before its digests are computed; ``edit_blobs`` changes blobs afterwards."""

    plan: Plan
    parts: list[Part]
    index: Json = field(default_factory=dict)
    served_as: str = ""
    edit_blobs: Callable[[MemoryImage, list[Json]], None] | None = None  # with descriptors of the first part

    @property
    def first(self) -> Part:
        return self.parts[0]

    def build(self) -> MemoryImage:
        """Build the image with the digest and size of each document."""
        memory, media_types = MemoryImage(), _MEDIA_TYPES[self.plan.types]
        parts = [self._build_part(memory, part) for part in self.parts]
        if self.plan.index:
            entries = [part[0] for part in parts]
            document = {
                "schemaVersion": 2,
                "mediaType": media_types["index"],
                "manifests": entries,
                **self.index,
            }
            top = put(memory, _json(document), media_types["index"])
        else:
            top = parts[0][0]
        memory.root = Descriptor(
            media_type=self.served_as or top["mediaType"],
            digest=Digest(top["digest"]),
            size=len(memory.blobs[top["digest"]]),
        )
        if self.edit_blobs is not None:
            self.edit_blobs(memory, [*parts[0], top])
        return memory

    def _build_part(self, memory: MemoryImage, part: Part) -> list[Json]:
        """Store the documents of a part and return the descriptors of manifest, config and layers."""
        media_types = _MEDIA_TYPES[self.plan.types]
        layers = [
            put(memory, layer.build_blob(), layer.media_type, layer.descriptor) for layer in part.layers
        ]
        config = {
            **platform_json(part.platform),
            "config": {"Entrypoint": ["/main"]},
            "rootfs": {"type": "layers", "diff_ids": part.diff_ids},
            "history": [{"created_by": "COPY"} for _ in layers],
            **part.config,
        }
        config_descriptor = put(
            memory, part.edit_config(_json(config)), media_types["config"], part.config_descriptor
        )
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_types["manifest"],
            "config": config_descriptor,
            "layers": layers,
        }
        data = part.edit_manifest(_json({**manifest, **part.manifest}))
        platform = {"platform": platform_json(part.platform)} if self.plan.index else {}
        return [
            put(memory, data, media_types["manifest"], {**platform, **part.descriptor}),
            config_descriptor,
            *layers,
        ]


def put(memory: MemoryImage, data: bytes, media_type: str, overrides: Json | None = None) -> Json:
    return {**memory.put(data, media_type), **(overrides or {})}


def _json(document: Json) -> bytes:
    return json.dumps(document).encode()


def draft_image(plan: Plan, rng: random.Random) -> Draft:
    """Draft a valid image: each platform has its own program, other layers may be shared."""
    media_types = _MEDIA_TYPES[plan.types]
    base = [
        make_tar({f"data/{number}": rng.randbytes(rng.randint(0, 3000))}) for number in range(plan.layers - 1)
    ]
    parts = []
    for number, platform in enumerate(plan.platforms):
        own = [] if plan.shared else [make_tar({f"own-{number}": rng.randbytes(200)})]
        tars = [*base, *own, make_tar({"main": probe_program(platform)})][-plan.layers :]
        layers = [
            Layer(tar=tar, compression=plan.compression, media_type=media_types[plan.compression])
            for tar in tars
        ]
        parts.append(
            Part(platform=platform, layers=layers, diff_ids=[str(Digest.from_bytes(tar)) for tar in tars])
        )
    return Draft(plan=plan, parts=parts)


# Faults; the first two make images that are valid but unusual.
Fault = Callable[[Draft, random.Random], None]
FAULTS: dict[str, Fault] = {}


def fault(plant: Fault) -> Fault:
    """Register a fault under the name of its function."""
    FAULTS[plant.__name__.replace("_", " ")] = plant
    return plant


@fault
def zstd_layers(image: Draft, _: random.Random) -> None:
    """Valid: builders write this on request."""
    image.plan = replace(image.plan, compression="zstd", types="oci")
    for layer in (layer for part in image.parts for layer in part.layers):
        layer.compression, layer.media_type = "zstd", LAYER_ZSTD


@fault
def uncompressed_layers(image: Draft, _: random.Random) -> None:
    """Valid."""
    image.plan = replace(image.plan, compression="plain")
    for layer in (layer for part in image.parts for layer in part.layers):
        layer.compression, layer.media_type = "plain", _MEDIA_TYPES[image.plan.types]["plain"]


def _flip_bit(index: int) -> Fault:
    """Flip one bit of a blob and keep its digest."""

    def plant(image: Draft, rng: random.Random) -> None:
        def edit_blobs(memory: MemoryImage, descriptors: list[Json]) -> None:
            digest = descriptors[index]["digest"]
            data = bytearray(memory.blobs[digest])
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            memory.blobs[digest] = bytes(data)

        image.edit_blobs = edit_blobs

    return plant


FAULTS["flipped bit in config"] = _flip_bit(1)
FAULTS["flipped bit in layer"] = _flip_bit(2)


@fault
def flipped_bit_in_manifest(image: Draft, rng: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    _flip_bit(0)(image, rng)


@fault
def whitespace_in_tagged_document(image: Draft, _: random.Random) -> None:
    """The tagged document is equivalent, but does not match the registry's digest header."""

    def edit_blobs(memory: MemoryImage, _: list[Json]) -> None:
        assert memory.root is not None
        memory.blobs[str(memory.root.digest)] += b"\n"

    image.edit_blobs = edit_blobs


def _remove_blob(index: int) -> Fault:
    def plant(image: Draft, _: random.Random) -> None:
        def edit_blobs(memory: MemoryImage, descriptors: list[Json]) -> None:
            del memory.blobs[descriptors[index]["digest"]]

        image.edit_blobs = edit_blobs

    return plant


FAULTS["missing config"] = _remove_blob(1)
FAULTS["missing layer"] = _remove_blob(2)


@fault
def missing_manifest(image: Draft, rng: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    _remove_blob(0)(image, rng)


@fault
def truncated_layer(image: Draft, _: random.Random) -> None:
    """The registry sends fewer bytes than the descriptor states."""

    def edit_blobs(memory: MemoryImage, descriptors: list[Json]) -> None:
        memory.blobs[descriptors[2]["digest"]] = memory.blobs[descriptors[2]["digest"]][:-10]

    image.edit_blobs = edit_blobs


@fault
def bytes_after_layer(image: Draft, _: random.Random) -> None:
    def edit_blobs(memory: MemoryImage, descriptors: list[Json]) -> None:
        memory.blobs[descriptors[2]["digest"]] += b"more"

    image.edit_blobs = edit_blobs


@fault
def layer_size_too_large(image: Draft, rng: random.Random) -> None:
    layer = rng.choice(image.first.layers)
    layer.descriptor = {"size": len(layer.build_blob()) + rng.randint(1, 100)}


@fault
def layer_size_too_small(image: Draft, rng: random.Random) -> None:
    layer = rng.choice(image.first.layers)
    layer.descriptor = {"size": len(layer.build_blob()) - rng.randint(1, 20)}


@fault
def negative_layer_size(image: Draft, rng: random.Random) -> None:
    rng.choice(image.first.layers).descriptor = {"size": -1}


@fault
def config_size_wrong(image: Draft, rng: random.Random) -> None:
    image.first.config_descriptor = {"size": rng.randint(1, 40)}


@fault
def manifest_size_wrong(image: Draft, rng: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.first.descriptor = {"size": rng.randint(1, 40)}


@fault
def unknown_layer_digest(image: Draft, rng: random.Random) -> None:
    rng.choice(image.first.layers).descriptor = {"digest": f"sha256:{'0' * 64}"}


@fault
def malformed_layer_digest(image: Draft, rng: random.Random) -> None:
    rng.choice(image.first.layers).descriptor = {"digest": "sha256:../../etc/passwd"}


@fault
def diff_id_of_another_layer(image: Draft, rng: random.Random) -> None:
    at = rng.randrange(len(image.first.diff_ids))
    image.first.diff_ids[at] = str(Digest.from_bytes(b"another"))


@fault
def diff_ids_swapped(image: Draft, _: random.Random) -> None:
    image.first.diff_ids.reverse()
    if len(set(image.first.diff_ids)) == 1:
        image.first.diff_ids[0] = str(Digest.from_bytes(b"another"))


@fault
def extra_diff_id(image: Draft, _: random.Random) -> None:
    image.first.diff_ids.append(str(Digest.from_bytes(b"another")))


@fault
def diff_id_missing(image: Draft, _: random.Random) -> None:
    image.first.diff_ids.pop()


@fault
def diff_id_of_compressed_layer(image: Draft, rng: random.Random) -> None:
    """A common mistake: the digest of the blob as the diff_id."""
    layer = rng.choice(image.first.layers)
    if layer.compression == "plain":
        layer.compression, layer.media_type = "gzip", _MEDIA_TYPES[image.plan.types]["gzip"]
    at = image.first.layers.index(layer)
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.build_blob()))


@fault
def truncated_gzip(image: Draft, rng: random.Random) -> None:
    """The gzip data is truncated; its digest is right."""
    layer = rng.choice(image.first.layers)
    layer.media_type = _MEDIA_TYPES[image.plan.types]["gzip"]
    data = gzip.compress(layer.tar, mtime=0)
    layer.blob = data[: len(data) - rng.randint(1, 40)]


@fault
def damaged_gzip_checksum(image: Draft, rng: random.Random) -> None:
    layer = rng.choice(image.first.layers)
    layer.media_type = _MEDIA_TYPES[image.plan.types]["gzip"]
    data = bytearray(gzip.compress(layer.tar, mtime=0))
    data[-6] ^= 1
    layer.blob = bytes(data)


@fault
def bytes_after_gzip(image: Draft, rng: random.Random) -> None:
    layer = rng.choice(image.first.layers)
    layer.media_type = _MEDIA_TYPES[image.plan.types]["gzip"]
    layer.blob = gzip.compress(layer.tar, mtime=0) + b"trailing bytes"


@fault
def wrong_tar_checksum(image: Draft, rng: random.Random) -> None:
    """A tar header has a wrong checksum; digests and diff_id are right."""
    at = rng.randrange(len(image.first.layers))
    layer = image.first.layers[at]
    layer.tar = layer.tar[:5] + b"?" + layer.tar[6:]
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.tar))


@fault
def truncated_tar(image: Draft, rng: random.Random) -> None:
    at = rng.randrange(len(image.first.layers))
    layer = image.first.layers[at]
    whole = make_tar({"main": probe_program(image.first.platform), "more": bytes(range(256)) * 8})
    layer.tar = whole[: 512 + 512 + 512 + 700]
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.tar))


@fault
def layer_without_tar(image: Draft, rng: random.Random) -> None:
    at = rng.randrange(len(image.first.layers))
    layer = image.first.layers[at]
    layer.tar = b"not a tar archive, " * 60
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.tar))


@fault
def gzip_layer_as_tar(image: Draft, rng: random.Random) -> None:
    layer = rng.choice(image.first.layers)
    layer.blob, layer.media_type = gzip.compress(layer.tar, mtime=0), _MEDIA_TYPES[image.plan.types]["plain"]


@fault
def tar_layer_as_gzip(image: Draft, rng: random.Random) -> None:
    layer = rng.choice(image.first.layers)
    layer.blob, layer.media_type = layer.tar, _MEDIA_TYPES[image.plan.types]["gzip"]


@fault
def unknown_layer_media_type(image: Draft, rng: random.Random) -> None:
    rng.choice(image.first.layers).media_type = "text/plain"


@fault
def manifest_with_index_media_type(image: Draft, _: random.Random) -> None:
    image.first.manifest = {"mediaType": _MEDIA_TYPES[image.plan.types]["index"]}


@fault
def manifest_with_other_media_type(image: Draft, _: random.Random) -> None:
    """Docker's media type in the document and OCI's in the header, or the reverse."""
    other = "docker" if image.plan.types == "oci" else "oci"
    image.first.manifest = {"mediaType": _MEDIA_TYPES[other]["manifest"]}


@fault
def both_index_and_manifest(image: Draft, _: random.Random) -> None:
    """CVE-2021-41190."""
    image.first.manifest = {"manifests": []}


@fault
def duplicate_layers_key(image: Draft, _: random.Random) -> None:
    """Readers differ in which of two keys they use."""
    image.first.edit_manifest = lambda data: data.replace(b'"layers":', b'"layers": [], "layers":', 1)


@fault
def layers_key_in_other_case(image: Draft, _: random.Random) -> None:
    image.first.edit_manifest = lambda data: data[:-1] + b', "Layers": []}'


@fault
def duplicate_config_key(image: Draft, _: random.Random) -> None:
    image.first.edit_config = lambda data: data.replace(b'"os":', b'"os": "windows", "os":', 1)


@fault
def invalid_config_json(image: Draft, _: random.Random) -> None:
    image.first.edit_config = lambda data: data[:-1]


@fault
def bytes_after_config(image: Draft, _: random.Random) -> None:
    image.first.edit_config = lambda data: data + b"{}"


@fault
def invalid_manifest_json(image: Draft, _: random.Random) -> None:
    image.first.edit_manifest = lambda data: data[:-1]


@fault
def manifest_of_schema_1(image: Draft, _: random.Random) -> None:
    image.first.manifest = {"schemaVersion": 1}


@fault
def index_of_schema_1(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.index = {"schemaVersion": 1}


@fault
def index_without_entries(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.index = {"manifests": []}


@fault
def index_served_as_manifest(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.served_as = _MEDIA_TYPES[image.plan.types]["manifest"]


@fault
def config_without_rootfs(image: Draft, _: random.Random) -> None:
    image.first.config = {"rootfs": None}


@fault
def wrong_platform_in_config(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.first.config = platform_json("linux/ppc64le")


@fault
def wrong_os_in_config(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.first.config = {"os": "windows"}


@fault
def wrong_variant_in_config(image: Draft, rng: random.Random) -> None:
    """go-containerregistry compares os.version twice and never the variant."""
    platform, config_platform = rng.sample(("linux/arm/v6", "linux/arm/v7"), 2)
    image.plan = replace(image.plan, index=True)
    image.parts = [image.first]
    _set_platform(image.first, platform)
    image.first.config = platform_json(config_platform)


@fault
def duplicate_platform(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.parts.append(image.first)


@fault
def program_of_another_platform(image: Draft, _: random.Random) -> None:
    """Every digest is right, but running the image fails with `exec format error`."""
    platform = image.first.platform
    _set_platform(image.first, "linux/ppc64le")
    image.first.platform = platform


@fault
def missing_entrypoint(image: Draft, _: random.Random) -> None:
    image.first.config = {"config": {"Entrypoint": ["/nothing"]}}


def _set_platform(part: Part, platform: str) -> None:
    """Give a part another platform and a program for it."""
    part.platform = platform
    part.layers[-1].tar = make_tar({"main": probe_program(platform)})
    part.diff_ids[-1] = str(Digest.from_bytes(part.layers[-1].tar))


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image and the name of its fault (``none`` for a valid image)."""

    name: str
    fault: str
    plan: Plan
    memory: MemoryImage

    def __str__(self) -> str:
        return f"{self.name}: {self.fault} in {self.plan}"


def make_cases(seed: int, valid_count: int, count_per_fault: int) -> list[Case]:
    """Generate valid images, and images with each fault."""
    names = ["none"] * valid_count + [name for name in FAULTS for _ in range(count_per_fault)]
    return [_make_case(seed, number, name) for number, name in enumerate(names)]


def _make_case(seed: int, number: int, fault_name: str) -> Case:
    rng = random.Random(f"{seed}-{number}")  # noqa: S311 - repeatable, not secret
    image = draft_image(Plan.draw(rng), rng)
    if fault_name != "none":
        FAULTS[fault_name](image, rng)
    return Case(name=f"image-{number:03}", fault=fault_name, plan=image.plan, memory=image.build())
