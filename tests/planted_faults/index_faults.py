"""Faults of an index: its platforms and their names."""

from __future__ import annotations

import json

from tests.conftest import TEN
from tests.planted_faults.bases import Parts
from tests.planted_faults.planting import Catch, Planted, Question, fault, sound_image
from tests.support import edits
from tests.support.oci import Json, MemoryImage, flip

AMD64, ARM64, V6, V7 = "linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"
NOWHERE = "unknown/unknown"  # the platform of what is no image
TWO = Question(platforms=[AMD64, ARM64])


def _called(image: MemoryImage, platform: str, **kind: str) -> MemoryImage:
    """The image with another platform in the index entry of one."""

    def rename(index: Json) -> None:
        for entry in index["manifests"]:
            if edits.platform_name(entry) == platform:
                entry["platform"] = kind

    return edits.change_index(image, rename)


@fault("a platform is missing", Catch("present", ARM64), says="is not in the image, which holds", task=1)
def platform_missing(parts: Parts) -> Planted:
    others = [platform for platform in TEN if platform != ARM64]
    question = Question(platforms=TEN)
    return Planted(image=edits.select_platforms(parts.hello, *others), control=parts.hello, question=question)


@fault("a platform that nobody asked for is there", Catch("expected", V6), says="was not expected", task=1)
def platform_extra(parts: Parts) -> Planted:
    two = edits.select_platforms(parts.hello, AMD64, ARM64)
    question = Question(platforms=[AMD64, ARM64], parity="off")
    return Planted(
        image=edits.select_platforms(parts.hello, AMD64, ARM64, V6), control=two, question=question
    )


@fault(
    "the same platform is there twice", Catch("present", AMD64), says="2 times: which one runs is not defined"
)
def platform_twice(parts: Parts) -> Planted:
    two = edits.select_platforms(parts.hello, AMD64, ARM64)
    other = edits.set_runtime_config(edits.select_platforms(two, AMD64), AMD64, User="nobody")
    extra = [*edits.index_entries(two), *edits.index_entries(other)]
    both = MemoryImage(blobs={**two.blobs, **other.blobs}, root=two.root)
    image = edits.change_index(both, lambda index: index.update(manifests=extra))
    return Planted(image=image, control=two, question=Question(platforms=[AMD64, ARM64], parity="off"))


@fault(
    "the entry of a linux/arm/v6 image says v7",
    Catch("config-platform", V7),
    says="the index says linux/arm/v7, the config says linux/arm/v6: the variants differ",
)
def v6_is_called_v7(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, V6)
    return Planted(image=_called(sound, V6, os="linux", architecture="arm", variant="v7"), control=sound)


@fault(
    "the entry of an image whose config says v7 says v6",
    Catch("config-platform", V6),
    says="programs for v7 may use instructions that a machine of v6 does not have",
)
def v7_is_called_v6(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, V6)
    image = edits.change_config(sound, V6, lambda config: config.update(variant="v7"))
    return Planted(image=image, control=sound)


@fault(
    "index says arm64, config amd64",
    Catch("config-platform", ARM64),
    says="the config says linux/amd64",
    task=1,
)
def config_of_another_architecture(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)
    image = edits.change_config(sound, ARM64, lambda config: config.update(architecture="amd64"))
    return Planted(image=image, control=sound, question=TWO)


@fault(
    "index says linux, config windows", Catch("config-platform", AMD64), says="the config says windows/amd64"
)
def config_of_another_system(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    return Planted(
        image=edits.change_config(sound, AMD64, lambda config: config.update(os="windows")), control=sound
    )


@fault(
    "index and config say arm64, and the program was COPYd from the amd64 host",
    Catch("entrypoint-arch", ARM64, "/usr/local/bin/main"),
    says="/usr/local/bin/main is made for amd64, not for arm64",
    layer=3,
    task=1,
)
def program_of_the_host(parts: Parts) -> Planted:
    right = edits.replace_file(parts.copied, ARM64, "usr/local/bin/main", parts.go["arm64-v8.0"])
    return Planted(image=parts.copied, control=right, question=TWO)


@fault(
    "the entries of two platforms are swapped: each names the other's manifest",
    Catch("config-platform", AMD64),
    Catch("config-platform", ARM64),
    Catch("entrypoint-arch", AMD64, "/usr/local/bin/hello"),
    Catch("entrypoint-arch", ARM64, "/usr/local/bin/hello"),
    Catch("binaries", AMD64, "/bin/busybox"),
    Catch("binaries", ARM64, "/bin/busybox"),
)
def entries_swapped(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64, ARM64)

    def swap(index: Json) -> None:
        one, two = index["manifests"]
        one["platform"], two["platform"] = two["platform"], one["platform"]

    return Planted(image=edits.change_index(sound, swap), control=sound, question=TWO)


@fault(
    "a single manifest, of another architecture than was asked for",
    Catch("present", AMD64),
    Catch("expected", ARM64),
    says="linux/amd64 is not in the image, which holds linux/arm64",
    task=1,
)
def single_manifest(parts: Parts) -> Planted:
    control, image = edits.drop_index(parts.hello, AMD64), edits.drop_index(parts.hello, ARM64)
    return Planted(image=image, control=control, question=Question(platforms=[AMD64]))


def _nested(image: MemoryImage, depth: int) -> MemoryImage:
    for _ in range(depth):
        root = image.root_descriptor()
        entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
        image = edits.copy_image(image).set_index([entry])
    return image


@fault("indexes are nested too deep", Catch("integrity", "unknown"), says="nested more than 3 deep")
def nested_too_deep(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    return Planted(image=_nested(sound, 5), control=_nested(sound, 2))


@fault("an index that is a manifest, too", Catch("integrity", "unknown"), says="at once")
def index_and_manifest(parts: Parts) -> Planted:
    sound = edits.select_platforms(parts.hello, AMD64)
    layers = edits.read_manifest(sound, AMD64)["layers"]
    return Planted(image=edits.change_index(sound, lambda index: index.update(layers=layers)), control=sound)


# Attestations.


def _provenance(image: MemoryImage) -> list[Json]:
    return [entry for entry in edits.index_entries(image) if edits.platform_name(entry) == NOWHERE]


def _orphaned(image: MemoryImage) -> MemoryImage:
    """The image without its second platform, whose attestation stays."""
    return edits.change_index(
        image,
        lambda index: index.update(
            manifests=[entry for entry in index["manifests"] if edits.platform_name(entry) != ARM64]
        ),
    )


@fault(
    "an attestation is about a manifest that is not in the index (annotation)",
    Catch("attestations", NOWHERE),
    says="which is not in this index",
    task=1,
)
def attestation_dangling(parts: Parts) -> Planted:
    return Planted(image=_orphaned(parts.attested), control=parts.attested)


def _told_by_subject(parts: Parts) -> MemoryImage:
    """BuildKit's OCI artifacts as other tools list them: the manifest's ``subject`` alone says of what."""
    image = parts.attested_as_artifacts

    def plain(index: Json) -> None:
        for entry in index["manifests"]:
            if edits.platform_name(entry) == NOWHERE:
                entry["artifactType"] = edits.read_document(image, entry["digest"])["artifactType"]
                del entry["platform"], entry["annotations"]

    return edits.change_index(image, plain)


@fault(
    "an attestation is about a manifest that is not in the index (OCI artifact with a subject)",
    Catch("attestations", "attestation"),
    says="which is not in this index",
)
def artifact_dangling(parts: Parts) -> Planted:
    sound = _told_by_subject(parts)
    return Planted(image=_orphaned(sound), control=sound)


@fault(
    "an attestation's annotation and its subject name two images",
    Catch("attestations", NOWHERE),
    says="it has to be about one image",
)
def artifact_of_two_images(parts: Parts) -> Planted:
    sound = parts.attested_as_artifacts

    def mislead(index: Json) -> None:
        notes = index["manifests"][-1]["annotations"]
        notes[edits.REFERENCE] = f"sha256:{'0' * 64}"

    return Planted(image=edits.change_index(sound, mislead), control=sound)


@fault("the provenance itself was altered", Catch("attestations", AMD64), says="holds other bytes")
def attestation_damaged(parts: Parts) -> Planted:
    sound = parts.attested
    manifest = edits.read_document(sound, _provenance(sound)[0]["digest"])
    layer, image = manifest["layers"][0]["digest"], edits.copy_image(sound)
    image.blobs[layer] = flip(image.blobs[layer])
    return Planted(image=image, control=sound)


@fault("an attestation's manifest is not there", Catch("attestations", NOWHERE), says="missing")
def attestation_missing(parts: Parts) -> Planted:
    sound = parts.attested
    image = edits.copy_image(sound)
    del image.blobs[_provenance(sound)[0]["digest"]]
    return Planted(image=image, control=sound)


@fault(
    "two platforms' attestations are swapped",
    Catch("attestations", AMD64),
    Catch("attestations", ARM64),
    says="its statement is about",
)
def attestations_swapped(parts: Parts) -> Planted:
    sound = parts.attested
    digests = [entry["annotations"][edits.REFERENCE] for entry in _provenance(sound)]

    def swap(index: Json) -> None:
        about = dict(zip(digests, digests[::-1], strict=True))
        for entry in index["manifests"]:
            notes = entry.get("annotations", {})
            notes |= {key: about[value] for key, value in notes.items() if key == edits.REFERENCE}

    return Planted(image=edits.change_index(sound, swap), control=sound)


# What a user asks of a host, and of a cluster.


@fault(
    "`--for linux/amd64` on an image for arm64 alone",
    Catch("for", AMD64),
    says=["holds linux/arm64", "exec format error", "inv build-multiarch --platform linux/arm64,linux/amd64"],
    task=1,
)
def host_of_another_architecture(parts: Parts) -> Planted:
    control = edits.select_platforms(parts.hello, AMD64, ARM64)
    question = Question(hosts=[AMD64])
    return Planted(image=edits.select_platforms(parts.hello, ARM64), control=control, question=question)


@fault(
    "`--for linux/arm/v6` on an image for v7", Catch("for", V6), says="--platform linux/arm/v7,linux/arm/v6"
)
def host_of_an_older_variant(parts: Parts) -> Planted:
    control = edits.select_platforms(parts.hello, V6)
    return Planted(
        image=edits.select_platforms(parts.hello, V7), control=control, question=Question(hosts=[V6])
    )


@sound_image("`--for linux/arm/v7` on an image for v6: containerd takes it")
def host_of_a_newer_variant(parts: Parts) -> Planted:
    image = edits.select_platforms(parts.hello, V6)
    return Planted(image=image, control=image, question=Question(hosts=[V7]))


def _cluster(**nodes: int) -> str:
    items = [
        {"kind": "Node", "status": {"nodeInfo": {"operatingSystem": "linux", "architecture": architecture}}}
        for architecture, count in nodes.items()
        for _ in range(count)
    ]
    return json.dumps({"kind": "List", "items": items})


@fault(
    "`--for-nodes` of a mixed cluster, one architecture of which the image lacks",
    Catch("for", "linux/s390x"),
    says="2 linux/s390x nodes cannot start",
    task=1,
)
def cluster_of_more_architectures(parts: Parts) -> Planted:
    image = edits.select_platforms(parts.hello, AMD64, ARM64)
    control = edits.select_platforms(parts.hello, AMD64, ARM64, "linux/s390x")
    return Planted(image=image, control=control, question=Question(nodes=_cluster(amd64=3, arm64=1, s390x=2)))


@fault(
    "`--for linux/arm64`, and what the image starts there is the host's amd64 program",
    Catch("entrypoint-arch", ARM64, "/usr/local/bin/main"),
    says="is made for amd64, not for arm64",
)
def host_gets_another_program(parts: Parts) -> Planted:
    right = edits.replace_file(parts.copied, ARM64, "usr/local/bin/main", parts.go["arm64-v8.0"])
    return Planted(image=parts.copied, control=right, question=Question(hosts=[ARM64]))


__all__ = ["AMD64", "ARM64", "V6", "V7"]
