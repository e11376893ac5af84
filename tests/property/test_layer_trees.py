"""Merge layers and compare the paths with a simple model, a set of paths."""

from __future__ import annotations

import contextlib
import gzip

from hypothesis import given
from hypothesis import strategies as st

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.rootfs import FileNode, FileType
from buildkit_tasks.oci.layers.scan import flatten_layers, scan_layer
from tests.support.oci import LAYER_GZIP, MemoryImage, descriptor, make_tar, single_platform_image

folders = st.sampled_from(["a", "b", "a/c", "a/c/d"])
files = st.tuples(folders, st.sampled_from(["x", "y"])).map("/".join)
whiteouts = st.tuples(folders, st.sampled_from([".wh.x", ".wh.c", ".wh..wh..opq"])).map("/".join)
layers = st.lists(st.lists(files | whiteouts, max_size=8, unique=True), min_size=1, max_size=4)


def model_paths(stack: list[list[str]]) -> set[str]:
    paths: set[str] = set()
    for layer in stack:
        for name in layer:
            directory, _, base = name.rpartition("/")
            if base == ".wh..wh..opq":
                paths = {path for path in paths if not path.startswith(f"{directory}/")}
            elif base.startswith(".wh."):
                removed = f"{directory}/{base.removeprefix('.wh.')}"
                paths = {path for path in paths if path != removed and not path.startswith(f"{removed}/")}
        paths |= {name for name in layer if "/.wh." not in name}
    return paths


def file_paths(node: FileNode, prefix: str = "") -> set[str]:
    paths: set[str] = set()
    for name, child in node.children.items():
        path = f"{prefix}{name}"
        paths |= file_paths(child, f"{path}/") if child.type is FileType.DIRECTORY else {path}
    return paths


@given(layers)
def test_merged_layers_match_model(stack: list[list[str]]) -> None:
    image = Image(single_platform_image([make_tar(dict.fromkeys(layer, b"")) for layer in stack]))
    rootfs = flatten_layers(image, image.platform_manifests[0][1])
    assert file_paths(rootfs.root) == model_paths(stack)


@given(st.binary(max_size=1200), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=5))
def test_any_damage(data: bytes, damage: list[tuple[int, int]]) -> None:
    packed = bytearray(gzip.compress(make_tar({"a/b": data})) + gzip.compress(data))
    for at, byte in damage:
        packed[at % len(packed)] = byte
    memory = MemoryImage()
    with contextlib.suppress(MalformedImage, LimitExceeded):
        scan_layer(memory, descriptor(memory.put(bytes(packed), LAYER_GZIP)))
