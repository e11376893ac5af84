"""Scanned layers equal the model that unpacked ones equal: what is verified is what runs."""

from __future__ import annotations

import contextlib
import gzip

from hypothesis import event, example, given, settings
from hypothesis import strategies as st

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.rootfs import FileNode, FileType, iter_names, resolve_path
from buildkit_tasks.oci.layers.scan import flatten_layers, scan_layer
from tests.support.layer_model import Malformed, Model
from tests.support.layer_strategies import images, valid_images
from tests.support.oci import LAYER_GZIP, MemoryImage, descriptor, make_tar, single_platform_image
from tests.support.unpacking import Entry, directory, file, hard_link, layer_tar, symlink

EXAMPLES = settings().max_examples


def list_nodes(root: FileNode) -> dict[str, tuple[object, ...]]:
    """Return each path with its type and its mode or target; devices and FIFOs are left out."""
    nodes: dict[str, tuple[object, ...]] = {}
    pending = [("", root)]
    while pending:
        prefix, parent = pending.pop()
        for name in {name for name, _ in iter_names(parent)}:
            resolved = resolve_path(parent, name, follow_last=False)
            assert resolved is not None
            node, path = resolved.node, f"{prefix}{name}"
            if node.type is FileType.DIRECTORY:
                nodes[path] = ("directory", node.mode & 0o1777)
                pending.append((f"{path}/", node))
            elif node.type is not FileType.OTHER:
                is_link = node.type is FileType.SYMLINK
                nodes[path] = ("link", node.target) if is_link else (node.type.value, node.mode & 0o777)
    return nodes


def model_nodes(model: Model) -> dict[str, tuple[object, ...]]:
    return {path: (node[0], node[-1]) for path, node in model.list_nodes().items() if node[0] != "fifo"}


def check_scan(layers: list[list[Entry]]) -> None:
    image = Image(single_platform_image([layer_tar(*entries) for entries in layers]))
    try:
        model = Model(layers)
    except Malformed:
        model = None
    try:
        root = flatten_layers(image, image.platform_manifests[0][1]).root
    except MalformedImage:
        event("malformed")
        assert model is None or model.may_be_rejected
    else:
        event("scanned")
        assert model is not None
        assert list_nodes(root) == model_nodes(model)


@settings(max_examples=3 * EXAMPLES)
@given(images())
@example([[directory("a", mode=0o700)], [file("a/b")]])
@example([[directory("a/.", mode=0o700), directory("a", mode=0o711)]])
@example([[file("a/b")], [symlink("a", "/c"), directory("a")]])
@example([[], [hard_link("a", "b"), directory("a")]])
@example([[file("a/a"), hard_link("a", "a/a")]])
@example([[file("a/b")], [file(".wh.a/.")]])
def test_scan_equals_model(layers: list[list[Entry]]) -> None:
    check_scan(layers)


@settings(max_examples=2 * EXAMPLES)
@given(valid_images())
def test_scanned_whiteouts_equal_model(layers: list[list[Entry]]) -> None:
    check_scan(layers)


@given(st.binary(max_size=1200), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=5))
def test_any_damage(data: bytes, damage: list[tuple[int, int]]) -> None:
    packed = bytearray(gzip.compress(make_tar({"a/b": data})) + gzip.compress(data))
    for at, byte in damage:
        packed[at % len(packed)] = byte
    memory = MemoryImage()
    with contextlib.suppress(MalformedImage, LimitExceeded):
        scan_layer(memory, descriptor(memory.put(bytes(packed), LAYER_GZIP)))
