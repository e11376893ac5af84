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
def parts(draw: st.DrawFn) -> list[Part]:
    """Draw parts of different platforms, some with attestations, in any order."""
    drawn = []
    for platform in draw(st.lists(PLATFORMS, min_size=1, max_size=12, unique=True)):
        image = entry(f"image {platform}", platform, draw(st.dictionaries(TEXT, TEXT, max_size=2)))
        about = {"vnd.docker.reference.digest": str(image["digest"])}
        count = draw(st.integers(0, 2))
        attestations = tuple(entry(f"{number} {platform}", None, about) for number in range(count))
        own = draw(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")))
        drawn.append(
            Part(
                name=str(platform),
                platform=platform,
                image=image,
                attestations=attestations,
                annotations=own,
            )
        )
    return drawn


@given(parts(), st.data())
def test_index_has_all_entries(given_parts: list[Part], data: st.DataObject) -> None:
    expected = data.draw(st.permutations([part.platform for part in given_parts]))
    document = json.loads(merge_parts(given_parts, expected))
    entries = document["manifests"]
    part_entries = [each for part in given_parts for each in (part.image, *part.attestations)]
    assert sorted(entries, key=json.dumps) == sorted(part_entries, key=json.dumps)
    assert entries[: len(expected)] == [
        next(part.image for part in given_parts if part.platform == platform) for platform in expected
    ]


@given(parts(), st.data())
def test_order_does_not_matter(given_parts: list[Part], data: st.DataObject) -> None:
    expected = [part.platform for part in given_parts]
    other = data.draw(st.permutations(given_parts))
    first = merge_parts(given_parts, expected)
    assert merge_parts(other, expected) == first
    index = parse_index(first)
    images = [entry for entry in index.manifests if not entry.is_attestation]
    assert [entry.platform for entry in images] == expected


@given(parts(), st.lists(PLATFORMS, min_size=1, unique=True))
def test_exact_platforms(given_parts: list[Part], expected: list[Platform]) -> None:
    platforms = {part.platform for part in given_parts}
    if platforms == set(expected):
        assert merge_parts(given_parts, expected)
        return
    with pytest.raises(CheckFailed) as caught:
        merge_parts(given_parts, expected)
    assert all(str(platform) in caught.value.message for platform in platforms ^ set(expected))


@given(parts(), st.data())
def test_duplicate_platform(given_parts: list[Part], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(given_parts))
    with pytest.raises(CheckFailed) as caught:
        merge_parts([*given_parts, twice])
    assert caught.value.platform == twice.platform
