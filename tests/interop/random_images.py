"""Images made at random from a seed, with at most one planted fault each.

Everything but the fault is sound: digests and sizes are made last, so that a checker that finds
something has found what was planted.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from buildkit_tasks.oci.model import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Descriptor, Digest
from tests.fuzz.seeds import several_members, zstd_frames
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
_TYPES = {
    "oci": {"index": OCI_INDEX, "manifest": OCI_MANIFEST, "config": OCI_CONFIG, "plain": LAYER_TAR},
    "docker": {
        "index": f"{DOCKER}distribution.manifest.list.v2+json",
        "manifest": f"{DOCKER}distribution.manifest.v2+json",
        "config": f"{DOCKER}container.image.v1+json",
        "plain": f"{DOCKER}image.rootfs.diff.tar",
    },
}
_TYPES["oci"] |= {"gzip": LAYER_GZIP, "members": LAYER_GZIP, "zstd": LAYER_ZSTD}
_TYPES["docker"] |= dict.fromkeys(("gzip", "members"), f"{DOCKER}image.rootfs.diff.tar.gzip")
_PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "members": several_members,
    "zstd": zstd_frames,
}
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/s390x", "linux/riscv64")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an image is made of, before anything is planted."""

    platforms: tuple[str, ...]
    layers: int
    packing: str
    types: str
    shared: bool
    index: bool

    @classmethod
    def by_chance(cls, chance: random.Random) -> Plan:
        types = chance.choice(("oci", "oci", "docker"))
        index = chance.random() < 0.7
        count = chance.randint(1, 4) if index else 1
        return cls(
            platforms=tuple(chance.sample(PLATFORMS, count)),
            layers=chance.randint(1, 5),
            packing=chance.choice(("gzip", "gzip", "members")),
            types=types,
            shared=chance.random() < 0.5,
            index=index,
        )

    def __str__(self) -> str:
        kind = "index" if self.index else "manifest"
        return f"{self.types} {kind} of {','.join(self.platforms)}, {self.layers} layers {self.packing}"


@dataclass(kw_only=True)
class Layer:
    """A layer on its way into a manifest; ``tar`` may be changed before it is packed."""

    tar: bytes
    packing: str
    media_type: str
    blob: bytes | None = None
    stated: Json = field(default_factory=dict)  # over what its descriptor says

    def packed(self) -> bytes:
        return _PACK[self.packing](self.tar) if self.blob is None else self.blob


@dataclass(kw_only=True)
class Part:
    """One platform on its way into the image; the fields named after documents change those."""

    platform: str
    layers: list[Layer]
    diff_ids: list[str]
    config: Json = field(default_factory=dict)
    manifest: Json = field(default_factory=dict)
    entry: Json = field(default_factory=dict)
    config_entry: Json = field(default_factory=dict)
    config_text: Callable[[bytes], bytes] = bytes
    manifest_text: Callable[[bytes], bytes] = bytes


@dataclass(kw_only=True)
class Draft:
    """An image on its way; ``after`` changes what lies under digests that are already stated."""

    plan: Plan
    parts: list[Part]
    index: Json = field(default_factory=dict)
    index_text: Callable[[bytes], bytes] = bytes
    served_as: str = ""
    after: Callable[[MemoryImage, list[Json]], None] | None = None  # gets the first part's descriptors

    @property
    def first(self) -> Part:
        return self.parts[0]

    def finished(self) -> MemoryImage:
        """The image, every digest and size made of what it is about."""
        memory, names = MemoryImage(), _TYPES[self.plan.types]
        rows = [self._finish_part(memory, part) for part in self.parts]
        if self.plan.index:
            entries = [row[0] for row in rows]
            document = {"schemaVersion": 2, "mediaType": names["index"], "manifests": entries, **self.index}
            top = put(memory, self.index_text(_json(document)), names["index"])
        else:
            top = rows[0][0]
        memory.root = Descriptor(
            media_type=self.served_as or top["mediaType"],
            digest=Digest(top["digest"]),
            size=len(memory.blobs[top["digest"]]),
        )
        if self.after is not None:
            self.after(memory, [*rows[0], top])
        return memory

    def _finish_part(self, memory: MemoryImage, part: Part) -> list[Json]:
        """Descriptors of the manifest, the config and the layers."""
        names = _TYPES[self.plan.types]
        layers = [put(memory, layer.packed(), layer.media_type, layer.stated) for layer in part.layers]
        config = {
            **platform_json(part.platform),
            "config": {"Entrypoint": ["/main"]},
            "rootfs": {"type": "layers", "diff_ids": part.diff_ids},
            "history": [{"created_by": "COPY"} for _ in layers],
            **part.config,
        }
        stated = put(memory, part.config_text(_json(config)), names["config"], part.config_entry)
        manifest = {"schemaVersion": 2, "mediaType": names["manifest"], "config": stated, "layers": layers}
        text = part.manifest_text(_json({**manifest, **part.manifest}))
        platform = {"platform": platform_json(part.platform)} if self.plan.index else {}
        return [put(memory, text, names["manifest"], {**platform, **part.entry}), stated, *layers]


def put(memory: MemoryImage, data: bytes, media_type: str, stated: Json | None = None) -> Json:
    return {**memory.put(data, media_type), **(stated or {})}


def _json(document: Json) -> bytes:
    return json.dumps(document).encode()


def draft(plan: Plan, chance: random.Random) -> Draft:
    """A sound image: each platform has its own program, other layers may be shared."""
    names = _TYPES[plan.types]
    base = [
        make_tar({f"data/{number}": chance.randbytes(chance.randint(0, 3000))})
        for number in range(plan.layers - 1)
    ]
    parts = []
    for number, platform in enumerate(plan.platforms):
        own = [] if plan.shared else [make_tar({f"own-{number}": chance.randbytes(200)})]
        tars = [*base, *own, make_tar({"main": probe_program(platform)})][-plan.layers :]
        layers = [Layer(tar=tar, packing=plan.packing, media_type=names[plan.packing]) for tar in tars]
        parts.append(
            Part(platform=platform, layers=layers, diff_ids=[str(Digest.from_bytes(tar)) for tar in tars])
        )
    return Draft(plan=plan, parts=parts)


# What is planted: nearly all of it is a fault.
Fault = Callable[[Draft, random.Random], None]
FAULTS: dict[str, Fault] = {}


def fault(plant: Fault) -> Fault:
    FAULTS[plant.__name__.replace("_", " ")] = plant
    return plant


@fault
def layers_of_zstd(image: Draft, _: random.Random) -> None:
    """Sound: what a builder writes that was asked for it."""
    image.plan = replace(image.plan, packing="zstd", types="oci")
    for layer in (layer for part in image.parts for layer in part.layers):
        layer.packing, layer.media_type = "zstd", LAYER_ZSTD


@fault
def layers_not_packed(image: Draft, _: random.Random) -> None:
    """Sound as well."""
    image.plan = replace(image.plan, packing="plain")
    for layer in (layer for part in image.parts for layer in part.layers):
        layer.packing, layer.media_type = "plain", _TYPES[image.plan.types]["plain"]


def _flipped(which: int) -> Fault:
    """One bit of a blob changed, behind the back of its digest."""

    def plant(image: Draft, chance: random.Random) -> None:
        def after(memory: MemoryImage, rows: list[Json]) -> None:
            digest = rows[which]["digest"]
            data = bytearray(memory.blobs[digest])
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            memory.blobs[digest] = bytes(data)

        image.after = after

    return plant


FAULTS["flipped bit in config"] = _flipped(1)
FAULTS["flipped bit in layer"] = _flipped(2)


@fault
def flipped_bit_in_manifest(image: Draft, chance: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    _flipped(0)(image, chance)


@fault
def other_blanks_in_tagged_document(image: Draft, _: random.Random) -> None:
    """What the tag leads to means the same, and is not what the registry's digest header says."""

    def after(memory: MemoryImage, _: list[Json]) -> None:
        assert memory.root is not None
        memory.blobs[str(memory.root.digest)] += b"\n"

    image.after = after


def _removed(which: int) -> Fault:
    def plant(image: Draft, _: random.Random) -> None:
        def after(memory: MemoryImage, rows: list[Json]) -> None:
            del memory.blobs[rows[which]["digest"]]

        image.after = after

    return plant


FAULTS["missing config"] = _removed(1)
FAULTS["missing layer"] = _removed(2)


@fault
def missing_manifest(image: Draft, chance: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    _removed(0)(image, chance)


@fault
def layer_cut_short(image: Draft, _: random.Random) -> None:
    """The registry gives fewer bytes than were stated."""

    def after(memory: MemoryImage, rows: list[Json]) -> None:
        memory.blobs[rows[2]["digest"]] = memory.blobs[rows[2]["digest"]][:-10]

    image.after = after


@fault
def bytes_behind_layer(image: Draft, _: random.Random) -> None:
    def after(memory: MemoryImage, rows: list[Json]) -> None:
        memory.blobs[rows[2]["digest"]] += b"more"

    image.after = after


@fault
def layer_size_too_large(image: Draft, chance: random.Random) -> None:
    layer = chance.choice(image.first.layers)
    layer.stated = {"size": len(layer.packed()) + chance.randint(1, 100)}


@fault
def layer_size_too_small(image: Draft, chance: random.Random) -> None:
    layer = chance.choice(image.first.layers)
    layer.stated = {"size": len(layer.packed()) - chance.randint(1, 20)}


@fault
def negative_layer_size(image: Draft, chance: random.Random) -> None:
    chance.choice(image.first.layers).stated = {"size": -1}


@fault
def config_size_wrong(image: Draft, chance: random.Random) -> None:
    image.first.config_entry = {"size": chance.randint(1, 40)}


@fault
def manifest_size_wrong(image: Draft, chance: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.first.entry = {"size": chance.randint(1, 40)}


@fault
def layer_digest_of_nothing(image: Draft, chance: random.Random) -> None:
    chance.choice(image.first.layers).stated = {"digest": f"sha256:{'0' * 64}"}


@fault
def malformed_layer_digest(image: Draft, chance: random.Random) -> None:
    chance.choice(image.first.layers).stated = {"digest": "sha256:../../etc/passwd"}


@fault
def diff_id_of_another_layer(image: Draft, chance: random.Random) -> None:
    at = chance.randrange(len(image.first.diff_ids))
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
def diff_id_of_the_packed_layer(image: Draft, chance: random.Random) -> None:
    """A common mistake of tools: the blob's digest in the config."""
    layer = chance.choice(image.first.layers)
    if layer.packing == "plain":
        layer.packing, layer.media_type = "gzip", _TYPES[image.plan.types]["gzip"]
    at = image.first.layers.index(layer)
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.packed()))


@fault
def truncated_gzip(image: Draft, chance: random.Random) -> None:
    """The blob is what its digest says, and ends too early."""
    layer = chance.choice(image.first.layers)
    layer.media_type = _TYPES[image.plan.types]["gzip"]
    data = gzip.compress(layer.tar, mtime=0)
    layer.blob = data[: len(data) - chance.randint(1, 40)]


@fault
def damaged_gzip_checksum(image: Draft, chance: random.Random) -> None:
    layer = chance.choice(image.first.layers)
    layer.media_type = _TYPES[image.plan.types]["gzip"]
    data = bytearray(gzip.compress(layer.tar, mtime=0))
    data[-6] ^= 1
    layer.blob = bytes(data)


@fault
def rubbish_behind_gzip(image: Draft, chance: random.Random) -> None:
    layer = chance.choice(image.first.layers)
    layer.media_type = _TYPES[image.plan.types]["gzip"]
    layer.blob = gzip.compress(layer.tar, mtime=0) + b"rubbish"


@fault
def bad_tar(image: Draft, chance: random.Random) -> None:
    """A header whose checksum does not hold; digests and diff_id are of the damaged archive."""
    at = chance.randrange(len(image.first.layers))
    layer = image.first.layers[at]
    layer.tar = layer.tar[:5] + b"?" + layer.tar[6:]
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.tar))


@fault
def truncated_tar(image: Draft, chance: random.Random) -> None:
    at = chance.randrange(len(image.first.layers))
    layer = image.first.layers[at]
    whole = make_tar({"main": probe_program(image.first.platform), "more": bytes(range(256)) * 8})
    layer.tar = whole[: 512 + 512 + 512 + 700]
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.tar))


@fault
def no_tar_at_all(image: Draft, chance: random.Random) -> None:
    at = chance.randrange(len(image.first.layers))
    layer = image.first.layers[at]
    layer.tar = b"this is no archive " * 60
    image.first.diff_ids[at] = str(Digest.from_bytes(layer.tar))


@fault
def gzip_called_plain(image: Draft, chance: random.Random) -> None:
    layer = chance.choice(image.first.layers)
    layer.blob, layer.media_type = gzip.compress(layer.tar, mtime=0), _TYPES[image.plan.types]["plain"]


@fault
def plain_called_gzip(image: Draft, chance: random.Random) -> None:
    layer = chance.choice(image.first.layers)
    layer.blob, layer.media_type = layer.tar, _TYPES[image.plan.types]["gzip"]


@fault
def layer_of_unknown_type(image: Draft, chance: random.Random) -> None:
    chance.choice(image.first.layers).media_type = "text/plain"


@fault
def manifest_calls_itself_something_else(image: Draft, _: random.Random) -> None:
    image.first.manifest = {"mediaType": _TYPES[image.plan.types]["index"]}


@fault
def manifest_calls_itself_the_other_kind(image: Draft, _: random.Random) -> None:
    """Docker's media type in the body, OCI's in the header, or the other way round."""
    other = "docker" if image.plan.types == "oci" else "oci"
    image.first.manifest = {"mediaType": _TYPES[other]["manifest"]}


@fault
def index_and_manifest_at_once(image: Draft, _: random.Random) -> None:
    """CVE-2021-41190."""
    image.first.manifest = {"manifests": []}


@fault
def layers_twice(image: Draft, _: random.Random) -> None:
    """A duplicate key: readers differ in which one they take."""
    image.first.manifest_text = lambda text: text.replace(b'"layers":', b'"layers": [], "layers":', 1)


@fault
def layers_in_other_letters(image: Draft, _: random.Random) -> None:
    image.first.manifest_text = lambda text: text[:-1] + b', "Layers": []}'


@fault
def config_key_twice(image: Draft, _: random.Random) -> None:
    image.first.config_text = lambda text: text.replace(b'"os":', b'"os": "windows", "os":', 1)


@fault
def config_is_no_json(image: Draft, _: random.Random) -> None:
    image.first.config_text = lambda text: text[:-1]


@fault
def config_with_more_behind(image: Draft, _: random.Random) -> None:
    image.first.config_text = lambda text: text + b"{}"


@fault
def manifest_is_no_json(image: Draft, _: random.Random) -> None:
    image.first.manifest_text = lambda text: text[:-1]


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
    image.served_as = _TYPES[image.plan.types]["manifest"]


@fault
def no_rootfs(image: Draft, _: random.Random) -> None:
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
def wrong_variant_in_config(image: Draft, chance: random.Random) -> None:
    """Where go-containerregistry compares the version of the system twice, and the variant never."""
    stated, said = chance.sample(("linux/arm/v6", "linux/arm/v7"), 2)
    image.plan = replace(image.plan, index=True)
    image.parts = [image.first]
    _make(image.first, stated)
    image.first.config = platform_json(said)


@fault
def platform_twice(image: Draft, _: random.Random) -> None:
    image.plan = replace(image.plan, index=True)
    image.parts.append(image.first)


@fault
def program_of_another_platform(image: Draft, _: random.Random) -> None:
    """Every digest holds; it would end with `exec format error`."""
    platform = image.first.platform
    _make(image.first, "linux/ppc64le")
    image.first.platform = platform


@fault
def no_such_entrypoint(image: Draft, _: random.Random) -> None:
    image.first.config = {"config": {"Entrypoint": ["/nothing"]}}


def _make(part: Part, platform: str) -> None:
    """Give a part another platform, with its program."""
    part.platform = platform
    part.layers[-1].tar = make_tar({"main": probe_program(platform)})
    part.diff_ids[-1] = str(Digest.from_bytes(part.layers[-1].tar))


@dataclass(frozen=True, kw_only=True)
class Case:
    """An image, and the name of what is wrong with it (``none`` with a sound one)."""

    name: str
    fault: str
    plan: Plan
    memory: MemoryImage

    def __str__(self) -> str:
        return f"{self.name}: {self.fault} in {self.plan}"


def cases(seed: int, sound: int, each: int) -> list[Case]:
    """So many sound images, and for each fault so many with it."""
    wanted = ["none"] * sound + [name for name in FAULTS for _ in range(each)]
    return [_case(seed, number, name) for number, name in enumerate(wanted)]


def _case(seed: int, number: int, fault_name: str) -> Case:
    chance = random.Random(f"{seed}-{number}")  # noqa: S311 - repeatable, not secret
    image = draft(Plan.by_chance(chance), chance)
    if fault_name != "none":
        FAULTS[fault_name](image, chance)
    return Case(name=f"image-{number:03}", fault=fault_name, plan=image.plan, memory=image.finished())
