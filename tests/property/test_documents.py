from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.model import (
    OCI_INDEX,
    OCI_MANIFEST,
    Digest,
    parse_config,
    parse_index,
    parse_manifest,
)
from buildkit_tasks.oci.strict_json import load_object

texts = st.text(st.characters(codec="utf-8"), max_size=8)
numbers = st.integers(-(10**19) + 1, 10**19 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | texts
values = st.recursive(scalars, lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=4))
objects = st.dictionaries(texts, values, max_size=5)

digests = st.binary(max_size=4).map(lambda data: str(Digest.from_bytes(data)))
names = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=20)
platforms = st.fixed_dictionaries({"os": names, "architecture": names}, optional={"variant": names})
descriptors = st.fixed_dictionaries(
    {"mediaType": names, "digest": digests, "size": st.integers(0, 2**63 - 1)},
    optional={"platform": platforms, "annotations": st.dictionaries(texts, texts, max_size=3)},
)
indexes = st.fixed_dictionaries(
    {"schemaVersion": st.just(2), "manifests": st.lists(descriptors, max_size=4)},
    optional={"mediaType": st.just(OCI_INDEX)},
)
manifests = st.fixed_dictionaries(
    {"schemaVersion": st.just(2), "config": descriptors, "layers": st.lists(descriptors, max_size=4)},
    optional={"mediaType": st.just(OCI_MANIFEST)},
)
PARSERS: list[Callable[[bytes], object]] = [parse_index, parse_manifest, parse_config]


@given(objects, st.booleans())
def test_same_as_json_loads(document: dict[str, Any], ascii_only: bool) -> None:
    text = json.dumps(document, ensure_ascii=ascii_only)
    assert load_object(text.encode(), "it") == json.loads(text)


@given(objects.filter(bool), st.data())
def test_duplicate_key(document: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(document)))
    text = f"{json.dumps(document)[:-1]}, {json.dumps(key)}: 1}}"
    with pytest.raises(MalformedImage, match="twice"):
        load_object(text.encode(), "it")


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()), st.sampled_from(PARSERS))
def test_any_bytes(data: bytes, parse: Callable[[bytes], object]) -> None:
    with contextlib.suppress(MalformedImage):
        parse(data)


@given(indexes)
def test_any_valid_index(document: dict[str, Any]) -> None:
    parsed = parse_index(json.dumps(document).encode())
    expected = [(e["mediaType"], e["digest"], e["size"]) for e in document["manifests"]]
    assert [(e.media_type, str(e.digest), e.size) for e in parsed.manifests] == expected
    for entry, raw in zip(parsed.manifests, document["manifests"], strict=True):
        assert (entry.platform is None) == ("platform" not in raw)
        assert entry.annotations == raw.get("annotations", {})


@given(manifests)
def test_any_valid_manifest(document: dict[str, Any]) -> None:
    parsed = parse_manifest(json.dumps(document).encode())
    assert str(parsed.config.digest) == document["config"]["digest"]
    assert [str(layer.digest) for layer in parsed.layers] == [e["digest"] for e in document["layers"]]


@given(indexes, manifests, st.booleans())
def test_index_and_manifest_at_once(
    index: dict[str, Any], manifest: dict[str, Any], with_all_keys: bool
) -> None:
    both = {**index, **(manifest if with_all_keys else {"layers": []})}
    both.pop("mediaType", None)
    for parse in (parse_index, parse_manifest):
        with pytest.raises(MalformedImage):
            parse(json.dumps(both).encode())


@given(indexes | manifests, st.data())
def test_any_replaced_value(document: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(document)))
    raw = json.dumps({**document, key: data.draw(values)}).encode()
    for parse in PARSERS:
        with contextlib.suppress(MalformedImage):
            parse(raw)
