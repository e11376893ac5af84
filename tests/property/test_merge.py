from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import CheckFailed
from buildkit_tasks.oci.copy.index import Part, merge_parts
from buildkit_tasks.oci.model import OCI_MANIFEST, Digest, parse_index
from buildkit_tasks.platforms import Platform, known_platforms

PLATFORMS = st.sampled_from(known_platforms())
TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


def entry(text: str, platform: Platform | None, annotations: dict[str, str]) -> dict[str, object]:
    variant = {"variant": platform.variant} if platform and platform.variant else {}
    platform_json = {"os": platform.os, "architecture": platform.architecture, **variant} if platform else {}
    return {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.from_bytes(text.encode())),
        "size": len(text),
        "platform": platform_json or {"os": "unknown", "architecture": "unknown"},
        "annotations": annotations,
    }


@st.composite
def platform_parts(draw: st.DrawFn) -> list[Part]:
    """Draw parts of different platforms, some with attestations, in any order."""
    parts = []
    for platform in draw(st.lists(PLATFORMS, min_size=1, max_size=12, unique=True)):
        image = entry(f"image {platform}", platform, draw(st.dictionaries(TEXT, TEXT, max_size=2)))
        reference = {"vnd.docker.reference.digest": str(image["digest"])}
        count = draw(st.integers(0, 2))
        attestations = tuple(entry(f"{number} {platform}", None, reference) for number in range(count))
        annotations = draw(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")))
        parts.append(
            Part(
                name=str(platform),
                platform=platform,
                image=image,
                attestations=attestations,
                annotations=annotations,
            )
        )
    return parts


@given(platform_parts(), st.data())
def test_index_has_all_entries(parts: list[Part], data: st.DataObject) -> None:
    expected = data.draw(st.permutations([part.platform for part in parts]))
    document = json.loads(merge_parts(parts, expected))
    entries = document["manifests"]
    part_entries = [each for part in parts for each in (part.image, *part.attestations)]
    assert sorted(entries, key=json.dumps) == sorted(part_entries, key=json.dumps)
    assert entries[: len(expected)] == [
        next(part.image for part in parts if part.platform == platform) for platform in expected
    ]


@given(platform_parts(), st.data())
def test_order_does_not_matter(parts: list[Part], data: st.DataObject) -> None:
    expected = [part.platform for part in parts]
    permuted = data.draw(st.permutations(parts))
    merged = merge_parts(parts, expected)
    assert merge_parts(permuted, expected) == merged
    index = parse_index(merged)
    images = [entry for entry in index.manifests if not entry.is_attestation]
    assert [entry.platform for entry in images] == expected


@given(platform_parts(), st.lists(PLATFORMS, min_size=1, unique=True))
def test_exact_platforms(parts: list[Part], expected: list[Platform]) -> None:
    platforms = {part.platform for part in parts}
    if platforms == set(expected):
        assert merge_parts(parts, expected)
        return
    with pytest.raises(CheckFailed) as caught:
        merge_parts(parts, expected)
    assert all(str(platform) in caught.value.message for platform in platforms ^ set(expected))


@given(platform_parts(), st.data())
def test_duplicate_platform(parts: list[Part], data: st.DataObject) -> None:
    duplicate = data.draw(st.sampled_from(parts))
    with pytest.raises(CheckFailed) as caught:
        merge_parts([*parts, duplicate])
    assert caught.value.platform == duplicate.platform
