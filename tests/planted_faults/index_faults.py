"""Faults of an index: its platforms, attestations, and whether a host can run it."""

from __future__ import annotations

import json

from tests.conftest import TEN
from tests.planted_faults.bases import Samples
from tests.planted_faults.planting import (
    Finding,
    PlantedImage,
    VerifyRequest,
    declare_fault,
    declare_valid_image,
)
from tests.support import edits
from tests.support.oci import Json, MemoryImage, flip

AMD64, ARM64, V6, V7 = "linux/amd64", "linux/arm64", "linux/arm/v6", "linux/arm/v7"
UNKNOWN = "unknown/unknown"  # BuildKit's platform of attestations
TWO_PLATFORMS = VerifyRequest(platforms=[AMD64, ARM64])


def _with_entry_platform(image: MemoryImage, platform: str, **stated: str) -> MemoryImage:
    """Change the platform in the index entry of a platform."""

    def rename(index: Json) -> None:
        for entry in index["manifests"]:
            if edits.platform_name(entry) == platform:
                entry["platform"] = stated

    return edits.change_index(image, rename)


@declare_fault(
    "a platform is missing",
    Finding("present", ARM64),
    message="is not in the image, which holds",
    exit_status=1,
)
def platform_missing(samples: Samples) -> PlantedImage:
    others = [platform for platform in TEN if platform != ARM64]
    request = VerifyRequest(platforms=TEN)
    return PlantedImage(edits.select_platforms(samples.hello, *others), samples.hello, request=request)


@declare_fault(
    "the image has an unexpected platform", Finding("expected", V6), message="was not expected", exit_status=1
)
def platform_unexpected(samples: Samples) -> PlantedImage:
    two = edits.select_platforms(samples.hello, AMD64, ARM64)
    request = VerifyRequest(platforms=[AMD64, ARM64], parity="off")
    return PlantedImage(edits.select_platforms(samples.hello, AMD64, ARM64, V6), two, request=request)


@declare_fault(
    "the index has a platform twice",
    Finding("present", AMD64),
    message="2 times: which one runs is not defined",
)
def platform_twice(samples: Samples) -> PlantedImage:
    two = edits.select_platforms(samples.hello, AMD64, ARM64)
    other = edits.set_runtime_config(edits.select_platforms(two, AMD64), AMD64, User="nobody")
    extra = [*edits.index_entries(two), *edits.index_entries(other)]
    both = MemoryImage(blobs={**two.blobs, **other.blobs}, root=two.root)
    image = edits.change_index(both, lambda index: index.update(manifests=extra))
    return PlantedImage(image, two, request=VerifyRequest(platforms=[AMD64, ARM64], parity="off"))


@declare_fault(
    "the index states v7 for a linux/arm/v6 image",
    Finding("config-platform", V7),
    message="the index says linux/arm/v7, the config says linux/arm/v6: the variants differ",
)
def v6_listed_as_v7(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, V6)
    return PlantedImage(_with_entry_platform(valid, V6, os="linux", architecture="arm", variant="v7"), valid)


@declare_fault(
    "the index states v6 for an image whose config states v7",
    Finding("config-platform", V6),
    message="programs for v7 may use instructions that a machine of v6 does not have",
)
def v7_listed_as_v6(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, V6)
    image = edits.change_config(valid, V6, lambda config: config.update(variant="v7"))
    return PlantedImage(image, valid)


@declare_fault(
    "the index states arm64, the config amd64",
    Finding("config-platform", ARM64),
    message="the config says linux/amd64",
    exit_status=1,
)
def config_of_another_architecture(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)
    image = edits.change_config(valid, ARM64, lambda config: config.update(architecture="amd64"))
    return PlantedImage(image, valid, request=TWO_PLATFORMS)


@declare_fault(
    "the index states linux, the config windows",
    Finding("config-platform", AMD64),
    message="the config says windows/amd64",
)
def config_of_another_system(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    return PlantedImage(edits.change_config(valid, AMD64, lambda config: config.update(os="windows")), valid)


@declare_fault(
    "index and config state arm64, but the program was copied from an amd64 host",
    Finding("entrypoint-arch", ARM64, "/usr/local/bin/main"),
    message="/usr/local/bin/main is made for amd64, not for arm64",
    layer=3,
    exit_status=1,
)
def host_program_copied(samples: Samples) -> PlantedImage:
    right = edits.replace_file(samples.copied, ARM64, "usr/local/bin/main", samples.go["arm64-v8.0"])
    return PlantedImage(samples.copied, right, request=TWO_PLATFORMS)


@declare_fault(
    "two entries of the index have the manifest of the other platform",
    Finding("config-platform", AMD64),
    Finding("config-platform", ARM64),
    Finding("entrypoint-arch", AMD64, "/usr/local/bin/hello"),
    Finding("entrypoint-arch", ARM64, "/usr/local/bin/hello"),
    Finding("binaries", AMD64, "/bin/busybox"),
    Finding("binaries", ARM64, "/bin/busybox"),
)
def entries_swapped(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64, ARM64)

    def swap(index: Json) -> None:
        one, two = index["manifests"]
        one["platform"], two["platform"] = two["platform"], one["platform"]

    return PlantedImage(edits.change_index(valid, swap), valid, request=TWO_PLATFORMS)


@declare_fault(
    "a single manifest without an index, for another architecture",
    Finding("present", AMD64),
    Finding("expected", ARM64),
    message="linux/amd64 is not in the image, which holds linux/arm64",
    exit_status=1,
)
def single_manifest(samples: Samples) -> PlantedImage:
    control, image = edits.drop_index(samples.hello, AMD64), edits.drop_index(samples.hello, ARM64)
    return PlantedImage(image, control, request=VerifyRequest(platforms=[AMD64]))


def _nest_indexes(image: MemoryImage, depth: int) -> MemoryImage:
    for _ in range(depth):
        root = image.root_descriptor()
        entry = {"mediaType": root.media_type, "digest": str(root.digest), "size": root.size}
        image = edits.copy_image(image).set_index([entry])
    return image


@declare_fault(
    "indexes are nested too deeply", Finding("integrity", "unknown"), message="nested more than 3 deep"
)
def nested_too_deep(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    return PlantedImage(_nest_indexes(valid, 5), _nest_indexes(valid, 2))


@declare_fault("an index that is also a manifest", Finding("integrity", "unknown"), message="at once")
def index_and_manifest(samples: Samples) -> PlantedImage:
    valid = edits.select_platforms(samples.hello, AMD64)
    layers = edits.read_manifest(valid, AMD64)["layers"]
    return PlantedImage(edits.change_index(valid, lambda index: index.update(layers=layers)), valid)


# Attestations.


def _attestation_entries(image: MemoryImage) -> list[Json]:
    return [entry for entry in edits.index_entries(image) if edits.platform_name(entry) == UNKNOWN]


def _without_arm64(image: MemoryImage) -> MemoryImage:
    """Remove linux/arm64 from the index, but not its attestation."""
    return edits.change_index(
        image,
        lambda index: index.update(
            manifests=[entry for entry in index["manifests"] if edits.platform_name(entry) != ARM64]
        ),
    )


@declare_fault(
    "the annotation of an attestation refers to a manifest that is not in the index",
    Finding("attestations", UNKNOWN),
    message="which is not in this index",
    exit_status=1,
)
def attestation_dangling(samples: Samples) -> PlantedImage:
    return PlantedImage(_without_arm64(samples.attested), samples.attested)


def _attached_by_subject(samples: Samples) -> MemoryImage:
    """List BuildKit's OCI artifacts as other tools do: only their ``subject`` refers to the image."""
    image = samples.attested_as_artifacts

    def remove_annotations(index: Json) -> None:
        for entry in index["manifests"]:
            if edits.platform_name(entry) == UNKNOWN:
                entry["artifactType"] = edits.read_document(image, entry["digest"])["artifactType"]
                del entry["platform"], entry["annotations"]

    return edits.change_index(image, remove_annotations)


@declare_fault(
    "the subject of an attestation (OCI artifact) is not in the index",
    Finding("attestations", "attestation"),
    message="which is not in this index",
)
def artifact_subject_dangling(samples: Samples) -> PlantedImage:
    valid = _attached_by_subject(samples)
    return PlantedImage(_without_arm64(valid), valid)


@declare_fault(
    "annotation and subject of an attestation refer to different images",
    Finding("attestations", UNKNOWN),
    message="it has to be about one image",
)
def artifact_of_two_images(samples: Samples) -> PlantedImage:
    valid = samples.attested_as_artifacts

    def set_reference(index: Json) -> None:
        index["manifests"][-1]["annotations"][edits.REFERENCE] = f"sha256:{'0' * 64}"

    return PlantedImage(edits.change_index(valid, set_reference), valid)


@declare_fault(
    "the blob of a provenance statement was changed",
    Finding("attestations", AMD64),
    message="holds other bytes",
)
def attestation_damaged(samples: Samples) -> PlantedImage:
    valid = samples.attested
    manifest = edits.read_document(valid, _attestation_entries(valid)[0]["digest"])
    layer, image = manifest["layers"][0]["digest"], edits.copy_image(valid)
    image.blobs[layer] = flip(image.blobs[layer])
    return PlantedImage(image, valid)


@declare_fault(
    "the manifest of an attestation is missing", Finding("attestations", UNKNOWN), message="missing"
)
def attestation_missing(samples: Samples) -> PlantedImage:
    valid = samples.attested
    image = edits.copy_image(valid)
    del image.blobs[_attestation_entries(valid)[0]["digest"]]
    return PlantedImage(image, valid)


@declare_fault(
    "the attestations of two platforms are swapped",
    Finding("attestations", AMD64),
    Finding("attestations", ARM64),
    message="its statement is about",
)
def attestations_swapped(samples: Samples) -> PlantedImage:
    valid = samples.attested
    digests = [entry["annotations"][edits.REFERENCE] for entry in _attestation_entries(valid)]

    def swap(index: Json) -> None:
        swapped = dict(zip(digests, digests[::-1], strict=True))
        for entry in index["manifests"]:
            annotations = entry.get("annotations", {})
            if edits.REFERENCE in annotations:
                annotations[edits.REFERENCE] = swapped[annotations[edits.REFERENCE]]

    return PlantedImage(edits.change_index(valid, swap), valid)


# Hosts and nodes of a cluster that have to run the image.


@declare_fault(
    "`--for linux/amd64` with an image for arm64 only",
    Finding("for", AMD64),
    message=[
        "holds linux/arm64",
        "exec format error",
        "build-multiarch --platform linux/arm64,linux/amd64",
    ],
    exit_status=1,
)
def host_of_another_architecture(samples: Samples) -> PlantedImage:
    control = edits.select_platforms(samples.hello, AMD64, ARM64)
    request = VerifyRequest(hosts=[AMD64])
    return PlantedImage(edits.select_platforms(samples.hello, ARM64), control, request=request)


@declare_fault(
    "`--for linux/arm/v6` with an image for v7",
    Finding("for", V6),
    message="--platform linux/arm/v7,linux/arm/v6",
)
def host_of_an_older_variant(samples: Samples) -> PlantedImage:
    control = edits.select_platforms(samples.hello, V6)
    return PlantedImage(edits.select_platforms(samples.hello, V7), control, request=VerifyRequest(hosts=[V6]))


@declare_valid_image("`--for linux/arm/v7` with an image for v6, which containerd selects")
def host_of_a_newer_variant(samples: Samples) -> PlantedImage:
    image = edits.select_platforms(samples.hello, V6)
    return PlantedImage(image, image, request=VerifyRequest(hosts=[V7]))


def _cluster(**nodes: int) -> str:
    items = [
        {"kind": "Node", "status": {"nodeInfo": {"operatingSystem": "linux", "architecture": architecture}}}
        for architecture, count in nodes.items()
        for _ in range(count)
    ]
    return json.dumps({"kind": "List", "items": items})


@declare_fault(
    "`--for-nodes` of a cluster with an architecture that the image does not have",
    Finding("for", "linux/s390x"),
    message="2 linux/s390x nodes cannot start",
    exit_status=1,
)
def cluster_with_other_architecture(samples: Samples) -> PlantedImage:
    image = edits.select_platforms(samples.hello, AMD64, ARM64)
    control = edits.select_platforms(samples.hello, AMD64, ARM64, "linux/s390x")
    return PlantedImage(image, control, request=VerifyRequest(nodes=_cluster(amd64=3, arm64=1, s390x=2)))


@declare_fault(
    "`--for linux/arm64` with an image for arm64 whose program is made for amd64",
    Finding("entrypoint-arch", ARM64, "/usr/local/bin/main"),
    message="is made for amd64, not for arm64",
)
def host_program_for_arm64(samples: Samples) -> PlantedImage:
    right = edits.replace_file(samples.copied, ARM64, "usr/local/bin/main", samples.go["arm64-v8.0"])
    return PlantedImage(samples.copied, right, request=VerifyRequest(hosts=[ARM64]))
