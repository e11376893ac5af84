from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.document_keys import (
    CONFIG,
    DOCKER_MANIFEST,
    INDEX,
    LAYOUT,
    MANIFEST,
    STATEMENT,
    check_keys,
    fold_key,
)
from buildkit_tasks.oci.model import parse_config, parse_index, parse_manifest

if TYPE_CHECKING:
    from buildkit_tasks.oci.document_keys import KeyTable

DIGEST = f"sha256:{'0' * 64}"
OTHER_LETTERS = str.maketrans({"s": "\u017f", "k": "\u212a", "S": "\u017f", "K": "\u212a"})


def field_paths(table: KeyTable, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the keys that lead to each field of a table; ``*`` for any key of a map."""
    for name, inner in table.items():
        if name != "*":
            yield (*path, name)
        if inner:
            yield from field_paths(inner, (*path, name))


def nest(path: tuple[str, ...], value: dict[str, Any]) -> Any:
    """Return a document that has ``value`` at the end of a path, in lists of one object."""
    for key in reversed(path):
        value = {"any" if key == "*" else key: value if key == "*" else [value]}
    return value


ALL_FIELDS = [
    pytest.param(table, path, id=".".join(path))
    for table in (INDEX, MANIFEST, CONFIG, DOCKER_MANIFEST, LAYOUT, STATEMENT)
    for path in field_paths(table)
]


@pytest.mark.parametrize(("table", "path"), ALL_FIELDS)
def test_every_field_has_one_spelling(table: KeyTable, path: tuple[str, ...]) -> None:
    *parents, name = path
    check_keys(nest(tuple(parents), {name: 1}), table, "it")
    for other in {name.upper(), name.lower(), name.swapcase(), name.translate(OTHER_LETTERS)} - {name}:
        for value in ({name: 1, other: 2}, {other: 2, name: 1}, {other: 2}):
            with pytest.raises(
                MalformedImage, match=f"it has the key {other!r}, which differs from {name!r}"
            ):
                check_keys(nest(tuple(parents), value), table, "it")


@pytest.mark.parametrize("table", [INDEX, CONFIG, STATEMENT])
def test_unknown_field_in_two_spellings(table: KeyTable) -> None:
    check_keys({"x-extension": 1, "y-extension": 1}, table, "it")
    with pytest.raises(MalformedImage, match="'X-Extension', which differs from 'x-extension'"):
        check_keys({"x-extension": 1, "X-Extension": 2}, table, "it")


@pytest.mark.parametrize(
    ("table", "document"),
    [
        (INDEX, {"annotations": {"Name": "a", "name": "b"}}),
        (CONFIG, {"config": {"Labels": {"Name": "a", "name": "b", "Entrypoint": "c"}}}),
        (CONFIG, {"config": {"ExposedPorts": {"80/tcp": {}, "80/TCP": {}}}}),
        (STATEMENT, {"subject": [{"digest": {"sha256": "a", "SHA256": "b"}}]}),
        (DOCKER_MANIFEST, [{"LayerSources": {"digest": {}, "Digest": {}}}]),
    ],
)
def test_keys_of_maps_are_data(table: KeyTable, document: Any) -> None:
    check_keys(document, table, "it")


@pytest.mark.parametrize("document", [None, 1, "digest", [], [None, [1]], {"config": None}, {"config": [3]}])
def test_other_values_are_ignored(document: Any) -> None:
    check_keys(document, MANIFEST, "it")


@pytest.mark.parametrize(
    ("key", "other", "is_same"),
    [
        ("layers", "LAYER\u017f", True),
        ("disk", "DIS\u212a", True),
        ("\u00df", "\u1e9e", True),
        ("\u00b5", "\u03bc", True),
        ("\u03c3", "\u03c2", True),
        ("\u00df", "ss", False),  # equal under full folding only
        ("\ufb01", "fi", False),
        ("\u0130", "i\u0307", False),
        ("\u0130", "i", False),
        ("\u0131", "I", False),
        ("e\u0301", "\u00e9", False),
    ],
)
def test_simple_folding(key: str, other: str, is_same: bool) -> None:
    assert (fold_key(key) == fold_key(other)) == is_same


def config_document(**more: object) -> bytes:
    return json.dumps({"os": "linux", "architecture": "arm64", **more}).encode()


@pytest.mark.parametrize("key", ["rootfs", "rootfS", "RootFS", "rootf\u017f"])
def test_one_spelling_of_rootfs(key: str) -> None:
    assert parse_config(config_document(**{key: {"diff_ids": [DIGEST]}})).diff_ids[0].hex == "0" * 64


def test_two_spellings_of_rootfs() -> None:
    with pytest.raises(MalformedImage, match="'rootfS', which differs from 'rootfs'"):
        parse_config(config_document(rootfS={"diff_ids": []}, rootfs={"diff_ids": []}))


ROOTFS = {"diff_ids": [DIGEST]}
DESCRIPTOR = {"mediaType": "a", "digest": DIGEST, "size": 1}


@pytest.mark.parametrize(
    ("parse", "document"),
    [
        (parse_index, {"manifests": [{**DESCRIPTOR, "Digest": f"sha256:{'1' * 64}"}]}),
        (
            parse_index,
            {"manifests": [{**DESCRIPTOR, "platform": {"os": "a", "architecture": "b", "OS": "c"}}]},
        ),
        (parse_index, {"manifests": [], "manife\u017fts": [DESCRIPTOR]}),
        (parse_manifest, {"config": DESCRIPTOR, "layers": [], "layer\u017f": [DESCRIPTOR]}),
        (parse_manifest, {"config": {**DESCRIPTOR, "\u017fize": 2}, "layers": []}),
        (parse_config, {"os": "a", "architecture": "b", "rootfs": {**ROOTFS, "diff_id\u017f": []}}),
        (parse_config, {"os": "a", "architecture": "b", "rootfs": ROOTFS, "config": {"entrypoint": ["/b"]}}),
        (
            parse_config,
            {"os": "a", "architecture": "b", "rootfs": ROOTFS, "history": [{"EMPTY_layer": True}]},
        ),
        (parse_config, {"os": "a", "architecture": "b", "rootfs": ROOTFS, "Config": {"Cmd": ["/b"]}}),
    ],
)
def test_documents_are_checked_at_every_level(parse: Any, document: dict[str, Any]) -> None:
    with pytest.raises(MalformedImage, match=re.compile("which differs from .* only in case")):
        parse(json.dumps({"schemaVersion": 2, **document}).encode())
