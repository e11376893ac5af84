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
    stated = {"os": platform.os, "architecture": platform.architecture, **variant} if platform else {}
    return {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.from_bytes(text.encode())),
        "size": len(text),
        "platform": stated or {"os": "unknown", "architecture": "unknown"},
        "annotations": annotations,
    }


@st.composite
def parts(draw: st.DrawFn) -> list[Part]:
    """Parts of platforms that differ, some with attestations, in any order."""
    made = []
    for platform in draw(st.lists(PLATFORMS, min_size=1, max_size=12, unique=True)):
        image = entry(f"image {platform}", platform, draw(st.dictionaries(TEXT, TEXT, max_size=2)))
        about = {"vnd.docker.reference.digest": str(image["digest"])}
        count = draw(st.integers(0, 2))
        attestations = tuple(entry(f"{number} {platform}", None, about) for number in range(count))
        own = draw(st.dictionaries(st.sampled_from("abc"), st.sampled_from("xy")))
        made.append(
            Part(
                name=str(platform),
                platform=platform,
                image=image,
                attestations=attestations,
                annotations=own,
            )
        )
    return made


@given(parts(), st.data())
def test_an_index_has_every_entry_of_its_parts_once_and_as_it_was(
    given_parts: list[Part], data: st.DataObject
) -> None:
    expected = data.draw(st.permutations([part.platform for part in given_parts]))
    document = json.loads(merge_parts(given_parts, expected))
    entries = document["manifests"]
    wanted = [each for part in given_parts for each in (part.image, *part.attestations)]
    assert sorted(entries, key=json.dumps) == sorted(wanted, key=json.dumps)
    assert entries[: len(expected)] == [
        next(part.image for part in given_parts if part.platform == platform) for platform in expected
    ]


@given(parts(), st.data())
def test_the_same_parts_in_any_order_give_the_same_bytes_which_can_be_read(
    given_parts: list[Part], data: st.DataObject
) -> None:
    expected = [part.platform for part in given_parts]
    other = data.draw(st.permutations(given_parts))
    first = merge_parts(given_parts, expected)
    assert merge_parts(other, expected) == first
    index = parse_index(first)
    images = [entry for entry in index.manifests if not entry.is_attestation]
    assert [entry.platform for entry in images] == expected


@given(parts(), st.lists(PLATFORMS, min_size=1, unique=True))
def test_only_the_exact_set_of_platforms_becomes_an_index(
    given_parts: list[Part], expected: list[Platform]
) -> None:
    found = {part.platform for part in given_parts}
    if found == set(expected):
        assert merge_parts(given_parts, expected)
        return
    with pytest.raises(CheckFailed) as caught:
        merge_parts(given_parts, expected)
    assert all(str(platform) in caught.value.message for platform in found ^ set(expected))


@given(parts(), st.data())
def test_a_platform_that_is_there_twice_never_becomes_an_index(
    given_parts: list[Part], data: st.DataObject
) -> None:
    twice = data.draw(st.sampled_from(given_parts))
    with pytest.raises(CheckFailed) as caught:
        merge_parts([*given_parts, twice])
    assert caught.value.platform == twice.platform
