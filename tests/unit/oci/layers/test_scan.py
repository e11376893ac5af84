from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.image import Image
from buildkit_tasks.oci.layers.entrypoint import find_command
from buildkit_tasks.oci.layers.rootfs import FileType, RootFs, iter_names
from buildkit_tasks.oci.layers.scan import LayerScanCache, flatten_layers, scan_layer
from buildkit_tasks.oci.layers.stream import open_layer
from buildkit_tasks.oci.limits import Limits
from buildkit_tasks.oci.model import Digest
from tests.support.elf import elf
from tests.support.growth import assert_linear
from tests.support.oci import (
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MemoryImage,
    add_platform,
    descriptor,
    directory,
    flip,
    hard_link,
    make_tar,
    member,
    probe_program,
    single_platform_image,
    symlink,
)
from tests.support.zstd import zstd

TAR = make_tar({"a": b"x" * 100, "b": os.urandom(300_000)})
SKIPPABLE = b"\x5a\x2a\x4d\x18\x04\0\0\0meta"


def flatten(*tars: bytes) -> RootFs:
    image = Image(single_platform_image(tars))
    return flatten_layers(image, image.platform_manifests[0][1])


def list_names(rootfs: RootFs, path: str = "/") -> list[str]:
    directory = rootfs.resolve(path)
    assert directory is not None
    return sorted({name for name, _ in iter_names(directory.node)})


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        (LAYER_TAR, TAR),
        ("application/vnd.docker.image.rootfs.diff.tar", TAR),
        (LAYER_GZIP, gzip.compress(TAR)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.compress(TAR)),
        (LAYER_GZIP, gzip.compress(TAR[:5000]) + gzip.compress(b"") + gzip.compress(TAR[5000:])),
        (
            LAYER_GZIP,
            b"".join(gzip.compress(TAR[offset : offset + 999], 1) for offset in range(0, len(TAR), 999)),
        ),
        (LAYER_ZSTD, zstd.compress(TAR)),
        (LAYER_ZSTD, zstd.compress(TAR[:5000]) + SKIPPABLE + zstd.compress(TAR[5000:]) + SKIPPABLE),
        (LAYER_ZSTD, SKIPPABLE + zstd.compress(TAR)),
    ],
)
def test_layer_media_types(media_type: str, data: bytes) -> None:
    memory = MemoryImage()
    scan = scan_layer(memory, descriptor(memory.put(data, media_type)))
    assert scan.diff_id == Digest.from_bytes(TAR)
    assert scan.size == len(TAR)
    assert sorted(scan.root.children) == ["a", "b"]


@pytest.mark.parametrize(
    ("media_type", "data", "cause"),
    [
        (LAYER_GZIP, zstd.compress(TAR), "says gzip, but the data is zstd"),
        (LAYER_TAR, gzip.compress(TAR), "says plain, but the data is gzip"),
        (LAYER_GZIP, TAR, "says gzip, but the data is plain"),
        (LAYER_GZIP, gzip.compress(TAR)[:-4], "truncated"),
        (LAYER_GZIP, gzip.compress(TAR)[:-5000], "truncated"),
        (LAYER_GZIP, flip(gzip.compress(TAR), -6), "gzip data is corrupt"),
        (LAYER_GZIP, gzip.compress(TAR) + b"garbage" * 9, "gzip data is corrupt"),
        (LAYER_ZSTD, zstd.compress(TAR)[:-4], "truncated"),
        (LAYER_ZSTD, zstd.compress(TAR) + b"garbage", "zstd data is corrupt"),
        ("application/vnd.in-toto+json", b"{}", "not a supported layer media type"),
        (f"{LAYER_GZIP}+encrypted", b"{}", "not a supported layer media type"),
    ],
)
def test_wrong_compression_or_type(media_type: str, data: bytes, cause: str) -> None:
    memory = MemoryImage()
    with pytest.raises(MalformedImage, match=cause):
        scan_layer(memory, descriptor(memory.put(data, media_type)))


def test_flipped_byte_is_the_cause() -> None:
    for data, media_type in ((gzip.compress(TAR), LAYER_GZIP), (TAR, LAYER_TAR)):
        memory = MemoryImage()
        entry = memory.put(data, media_type)
        for offset in (5, 150, 600, 2000, -30, -3):
            memory.blobs[entry["digest"]] = flip(data, offset)
            with pytest.raises(MalformedImage, match=r"holds other bytes|the data is plain"):
                scan_layer(memory, descriptor(entry))


def test_wrong_blob_size() -> None:
    for change, cause in ((-1, "is longer than"), (1, "are stated")):
        memory = MemoryImage()
        entry = memory.put(gzip.compress(TAR), LAYER_GZIP)
        with pytest.raises(MalformedImage, match=cause):
            scan_layer(memory, descriptor({**entry, "size": entry["size"] + change}))


@pytest.mark.parametrize(
    "pack", [(LAYER_GZIP, gzip.compress), (LAYER_ZSTD, zstd.compress)], ids=["gzip", "zstd"]
)
def test_decompression_bomb(pack: tuple[str, Callable[[bytes], bytes]]) -> None:
    media_type, compress = pack
    memory = MemoryImage()
    bomb = descriptor(memory.put(compress(make_tar({"zeros": bytes(48 << 20)})), media_type))
    for limits, cause in (
        (Limits(layer_bytes=1 << 20), "larger than 1048576 bytes"),
        (Limits(compression_ratio=600, ratio_threshold=1 << 20), "decompression bomb"),
    ):
        tracemalloc.start()
        with pytest.raises(LimitExceeded, match=cause):
            scan_layer(memory, bomb, limits=limits)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20  # five batches of 4 MiB wait to be hashed
        tracemalloc.stop()
    assert scan_layer(memory, bomb).size > 48 << 20


def test_exact_limits() -> None:
    memory = MemoryImage()
    layer = descriptor(memory.put(TAR, LAYER_TAR))  # two executables
    assert scan_layer(memory, layer, limits=Limits(layer_bytes=len(TAR), nodes=2)).size == len(TAR)
    for limits, cause in (
        (Limits(layer_bytes=len(TAR) - 1), "larger than"),
        (Limits(nodes=1), "too many executables"),
    ):
        with pytest.raises(LimitExceeded, match=cause):
            scan_layer(memory, layer, limits=limits)


def test_zstd_window_limit() -> None:
    options = {
        int(zstd.CompressionParameter.window_log): 27,
        int(zstd.CompressionParameter.content_size_flag): 0,
    }
    packer = zstd.ZstdCompressor(options=options)
    data = packer.compress(TAR) + packer.flush()
    memory = MemoryImage()
    with pytest.raises(MalformedImage, match="zstd data is corrupt"):
        scan_layer(memory, descriptor(memory.put(data, LAYER_ZSTD)))


def test_finish_layer_stream() -> None:
    memory = MemoryImage()
    with open_layer(memory, descriptor(memory.put(gzip.compress(TAR), LAYER_GZIP))) as stream:
        assert stream.read(100) == TAR[:100]
        assert stream.finish() == Digest.from_bytes(TAR)


def test_file_nodes() -> None:
    program, script = probe_program("linux/arm64").ljust(1000, b"x"), b"#!/bin/sh\n" + b"#" * 500
    tar = make_tar({"p": program, "s": script, "t": b"text" * 100}, [member("dev", tarfile.CHRTYPE)])
    rootfs = flatten(tar)
    node = rootfs.root.children["p"]
    assert (node.type, node.mode, node.size, node.head) == (FileType.FILE, 0o755, 1000, program[:512])
    assert node.layer == str(Digest.from_bytes(gzip.compress(tar, mtime=0)))
    assert rootfs.root.children["s"].head == script[:512]
    assert rootfs.root.children["t"].head == b"text" * 16
    assert rootfs.root.children["dev"].type is FileType.OTHER


def test_whiteout() -> None:
    below = make_tar({"d/a": b"1", "d/b": b"1", "gone/x/y": b"1"})
    above = make_tar({"d/.wh.a": b"", "d/a": b"22", "d/.wh.b": b"", ".wh.gone": b"", ".wh.never": b""})
    rootfs = flatten(below, above)
    assert list_names(rootfs) == ["d"]
    assert list_names(rootfs, "/d") == ["a"]
    assert rootfs.root.children["d"].children["a"].size == 2


def test_whiteout_in_first_layer() -> None:
    assert list_names(flatten(make_tar({"a": b"", ".wh.b": b""}))) == ["a"]


def test_whiteout_of_plain_files() -> None:
    below = make_tar({}, [member("d/a", mode=0o644), member("d/b", mode=0o644), symlink("d/link", "b")])
    rootfs = flatten(below, make_tar({"d/.wh.a": b"", "d/.wh.link": b""}))
    assert list_names(rootfs, "/d") == ["b"]


@pytest.mark.parametrize(
    "above",
    [
        ["d/a", "d/.wh.a"],
        ["d/.wh.a", "d/.wh.a"],
        ["d/sub/x", "d/.wh.sub"],
        ["d/.wh.sub", "d/sub/x"],
        ["d/.wh.sub", "d/sub/"],
    ],
)
def test_whiteout_of_own_entry(above: list[str]) -> None:
    entries = [directory(name) if name.endswith("/") else member(name) for name in above]
    with pytest.raises(
        MalformedImage, match=r"has an entry '(a|sub)', or one below it, and a whiteout of it"
    ):
        flatten(make_tar({"d/a": b"1", "d/sub/y": b"1"}), make_tar({}, entries))


def test_whiteout_of_own_entry_in_lowest_layer() -> None:
    entries = [member("x"), member("d/e"), symlink("y", "x"), *(member(f".wh.{name}") for name in "xdyyz")]
    assert list_names(flatten(make_tar({}, [*entries, member("y")]))) == ["y"]


def test_name_alone_makes_a_whiteout() -> None:
    entries = [directory("d/.wh.a"), symlink("d/.wh.b", "x"), member("d/.wh.c/x"), member(".wh.e/.")]
    rootfs = flatten(make_tar({"d/a": b"", "d/b": b"", "d/c": b"", "e/f": b""}), make_tar({}, entries))
    assert list_names(rootfs) == ["d"]
    assert list_names(rootfs, "/d") == [".wh.c", "c"]


def test_opaque_root() -> None:
    layer = make_tar({".wh..wh..opq": b"", "a": b""})
    assert list_names(flatten(layer)) == ["a"]
    with pytest.raises(MalformedImage, match="has an opaque whiteout of the root directory"):
        flatten(layer, layer)


@pytest.mark.parametrize("names", [["d/e/f", "d/.wh..wh..opq"], ["d/.wh..wh..opq"] * 2])
def test_late_opaque_whiteout(names: list[str]) -> None:
    layer = make_tar({}, [member(name) for name in names])
    flatten(make_tar({}), layer)
    with pytest.raises(MalformedImage, match="has an opaque whiteout after directories"):
        flatten(layer)


@pytest.mark.parametrize("first", [True, False])
def test_opaque_whiteout(first: bool) -> None:
    mark, new = {"d/.wh..wh..opq": b""}, {"d/new": b""}
    above = make_tar({**mark, **new} if first else {**new, **mark})
    rootfs = flatten(make_tar({"d/old": b"1", "d/sub/x": b"1", "e/old": b"1"}), above)
    assert list_names(rootfs, "/d") == ["new"]
    assert list_names(rootfs, "/e") == ["old"]


def test_merge_and_replace() -> None:
    below = make_tar({"d/a": b"", "file": b"", "sub/x": b""}, [symlink("link", "d")])
    above = make_tar({"d/b": b"", "file/x": b"", "sub": b"", "link/c": b""})
    rootfs = flatten(below, above)
    assert list_names(rootfs, "/d") == ["a", "b"]
    assert list_names(rootfs, "/file") == ["x"]
    assert rootfs.root.children["sub"].type is FileType.FILE
    assert list_names(rootfs, "/link") == ["c"]


def test_upper_symlink_and_mode() -> None:
    below = make_tar({"old": b"1", "new": b"1"}, [symlink("link", "old"), directory("d")])
    above = make_tar({}, [symlink("link", "new"), member("d", tarfile.DIRTYPE, mode=0o700)])
    rootfs = flatten(below, above)
    link, changed = rootfs.resolve("/link"), rootfs.resolve("/d")
    assert link is not None
    assert changed is not None
    assert (link.path, changed.node.mode) == ("/new", 0o700)


def flatten_stacks(*stacks: list[bytes]) -> list[RootFs]:
    """Return the root file systems of platforms with these layers, which share their scans."""
    memory = MemoryImage()
    names = ("linux/amd64", "linux/arm64")
    memory.set_index([add_platform(memory, *each) for each in zip(names, stacks, strict=True)])
    image, scans = Image(memory), LayerScanCache(memory)
    return [flatten_layers(image, entry, scans) for _, entry in image.platform_manifests]


def test_stack_that_is_the_top_of_another() -> None:
    low, top = make_tar({"low": b"1"}), make_tar({"top": b"1"})
    assert [list_names(each) for each in flatten_stacks([low, top], [top])] == [["low", "top"], ["top"]]


def test_shared_scan_is_not_changed() -> None:
    memory = MemoryImage()
    base, add, drop = make_tar({"d/a": b"1"}), make_tar({"d/b": b""}), make_tar({"d/.wh.a": b""})
    memory.set_index(
        [add_platform(memory, p, [base, t]) for p, t in (("linux/amd64", add), ("linux/arm64", drop))]
    )
    image, scans = Image(memory), LayerScanCache(memory)
    images = [flatten_layers(image, entry, scans) for _, entry in image.platform_manifests]
    assert [list_names(each, "/d") for each in images] == [["a", "b"], []]
    assert memory.opened.count(str(Digest.from_bytes(gzip.compress(base, mtime=0)))) == 1


@pytest.mark.parametrize(
    "more",
    [
        {"urls": ("https://example.org/1", "https://example.org/2")},
        {"annotations": {"a": "1"}},
        {"artifact_type": "text/plain"},
        {"os_version": "10"},
    ],
    ids=lambda more: next(iter(more)),
)
def test_layer_that_is_named_again(more: dict[str, Any]) -> None:
    """It is read once, whatever else its descriptors say; an image may have thousands of them."""
    memory = MemoryImage()
    layer = descriptor(memory.put(make_tar({"a": b"1"}), LAYER_TAR))
    scans = LayerScanCache(memory)
    urls = [{**more, "urls": (each,)} for each in more.get("urls", ())]
    for values in urls or [more, {}]:
        scans.get(replace(layer, **values))
    assert memory.opened == [str(layer.digest)]


def test_hard_link() -> None:
    rootfs = flatten(
        make_tar({"bin/busybox": probe_program("linux/amd64")}, [hard_link("bin/sh", "bin/busybox")])
    )
    assert rootfs.root.children["bin"].children["sh"].head.startswith(b"\x7fELF")


def test_hard_link_to_symlink() -> None:
    rootfs = flatten(make_tar({"f": b""}, [symlink("s", "f"), symlink("gone", "x"), hard_link("h", "gone")]))
    assert (rootfs.root.children["h"].type, rootfs.root.children["h"].target) == (FileType.SYMLINK, "x")


@pytest.mark.parametrize("target", ["missing", "../../etc/passwd", "d", "d/x/.", "h", ""])
def test_hard_link_without_target(target: str) -> None:
    with pytest.raises(MalformedImage, match="hard link"):
        flatten(make_tar({"d/x": b""}, [hard_link("h", target)]))
    with pytest.raises(MalformedImage, match="hard link"):
        flatten(make_tar({"d/x": b"", "missing": b""}), make_tar({"d/y": b""}, [hard_link("h", target)]))


@pytest.mark.parametrize("size", [0, 100])
def test_hard_link_sets_mode(size: int) -> None:
    links = [
        member(name, tarfile.LNKTYPE, mode=mode, link="f") for name, mode in (("g", 0o755), ("h", 0o640))
    ]
    rootfs = flatten(make_tar({"f": b"x" * size}, links))
    files = [rootfs.find_file(f"/{name}") for name in "fgh"]
    assert [found.node.mode for found in files if found] == [0o640] * 3


def test_entry_below_symlink() -> None:
    layer = make_tar({}, [symlink("lib", "usr/lib"), directory("lib/deep")])
    assert list_names(flatten(layer), "/usr/lib") == ["deep"]


def test_entry_replaces_symlink_on_its_path() -> None:
    links = [symlink("l", "."), directory("l/l"), symlink("l/x", "target")]
    rootfs = flatten(make_tar({"x": b"1"}, links))
    assert rootfs.root.children["x"].type is FileType.FILE
    assert list_names(rootfs, "/l") == ["x"]


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil", "a/..", ".."])
def test_dot_dot_in_entry_path(name: str) -> None:
    with pytest.raises(MalformedImage, match="contains"):
        flatten(make_tar({name: b""}))


def test_symlinks_stay_inside_root() -> None:
    layer = make_tar({}, [symlink("up", "../../../.."), symlink("etc", "/../../etc2"), directory("up/etc/x")])
    assert list_names(flatten(layer)) == ["etc", "etc2", "up"]


def test_entry_below_file() -> None:
    with pytest.raises(MalformedImage, match="is not a directory"):
        flatten(make_tar({"f": b"", "f/x": b""}))
    with pytest.raises(MalformedImage, match="is not a directory"):
        flatten(make_tar({"d/x": b"", "d": b"", "d/y": b""}))


def test_symlink_targets() -> None:
    links = [symlink("a/b/near", "x"), symlink("a/b/root", "/x"), symlink("a/b/up", "../x")]
    rootfs = flatten(make_tar({"x": b"", "a/x": b"", "a/b/x": b""}, links))
    resolved = [rootfs.resolve(f"/a/b/{name}") for name in ("near", "root", "up")]
    assert [each.path for each in resolved if each] == ["/a/b/x", "/x", "/a/x"]


def test_image_size_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buildkit_tasks.oci.layers.scan.LIMITS", Limits(image_bytes=2 * len(TAR) - 1))
    assert list_names(flatten(TAR)) == ["a", "b"]
    with pytest.raises(LimitExceeded, match="the image is larger than"):
        flatten(TAR, TAR)


def test_symlink_cycles() -> None:
    links = [symlink("a", "b"), symlink("b", "a"), symlink("self", "self/x"), symlink("up", "./up")]
    rootfs = flatten(make_tar({}, links))
    assert [rootfs.resolve(f"/{name}") for name in ("a", "b", "self", "up")] == [None] * 4


def test_symlink_limit() -> None:
    chain = [symlink(f"l{offset}", f"l{offset + 1}") for offset in range(60)]
    rootfs = flatten(make_tar({"l60": b""}, chain))
    assert rootfs.resolve("/l20") is not None
    assert rootfs.resolve("/l19") is None


def test_very_deep_tree() -> None:
    deep = "d/" * 2000 + "f"
    rootfs = flatten(make_tar({deep: b"1"}), make_tar({deep: b"22"}))
    file = rootfs.resolve(f"/{deep}")
    assert file is not None
    assert file.node.size == 2


def test_find_command() -> None:
    files = {"usr/bin/tool": b"#!", "opt/tool": b"#!", "w/run": b"#!"}
    rootfs = flatten(make_tar(files, [symlink("bin", "usr/bin"), symlink("sbin", "/bin")]))

    def path(name: str, *more: str) -> str | None:
        command = find_command(rootfs, name, *more)
        return command.path if command else None

    assert path("tool") == "/usr/bin/tool"
    assert path("tool", "/nowhere:/opt:/bin") == "/opt/tool"
    assert path("/sbin/tool") == "/usr/bin/tool"
    assert path("./run", "", "/w") == "/w/run"
    assert path("../w/run", "", "/opt") == "/w/run"
    assert [path("run"), path("/usr/bin"), path("bin", "/"), path("")] == [None] * 4


def test_command_needs_execute_bit() -> None:
    info = member("bin/data", mode=0o644)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(info)
    assert find_command(flatten(buffer.getvalue()), "data") is None


def test_wrong_diff_id() -> None:
    memory = MemoryImage()
    wrong = str(Digest.from_bytes(b"something else"))
    memory.set_index([add_platform(memory, "linux/amd64", [TAR], diff_ids=[wrong])])
    image = Image(memory)
    with pytest.raises(MalformedImage, match=rf"the config states {wrong}"):
        flatten_layers(image, image.platform_manifests[0][1])


@pytest.mark.parametrize("count", [0, 2])
def test_diff_id_count(count: int) -> None:
    memory = MemoryImage()
    diff_ids = [str(Digest.from_bytes(TAR))] * count
    memory.set_index([add_platform(memory, "linux/amd64", [TAR], diff_ids=diff_ids)])
    image = Image(memory)
    with pytest.raises(MalformedImage, match=f"1 layers, the config {count} diff_ids"):
        flatten_layers(image, image.platform_manifests[0][1])


def test_sha512_diff_id() -> None:
    memory = MemoryImage()
    memory.set_index(
        [add_platform(memory, "linux/amd64", [TAR], diff_ids=[str(Digest.from_bytes(TAR, "sha512"))])]
    )
    image = Image(memory)
    assert list_names(flatten_layers(image, image.platform_manifests[0][1])) == ["a", "b"]


def test_entries_of_root_and_repeated_directories() -> None:
    below = make_tar({}, [directory("./"), directory("d"), member("d/a"), directory("d"), member("d/b")])
    rootfs = flatten(below)
    assert list_names(rootfs) == ["d"]
    assert list_names(rootfs, "/d") == ["a", "b"]


def test_symlink_replaces_program_of_same_layer() -> None:
    program = probe_program("linux/arm64")
    rootfs = flatten(
        make_tar({"old": program, "new": program}, [symlink("old", "new"), symlink(".x", "new")])
    )
    assert list_names(rootfs) == [".x", "new", "old"]
    for path in ("/old", "/.x"):
        resolved = rootfs.resolve(path)
        assert resolved is not None
        assert resolved.path == "/new"


def test_path_through_file_is_missing() -> None:
    rootfs = flatten(make_tar({"file": b"1"}))
    assert rootfs.resolve("/file") is not None
    assert rootfs.resolve("/file/x") is None


def test_libraries_of_program_too_large_to_keep() -> None:
    program = elf("linux/amd64", needed=["libc.so.6"]).ljust(21 << 20, b"\0")
    binary = flatten(make_tar({"p": program})).root.children["p"].binary
    assert binary is not None
    assert binary.needed == ("libc.so.6",)


@pytest.mark.parametrize(
    "name",
    [
        "d/.wh.{0:06}",
        ".wh.{0:06}/x",
        "d{0:06}/.wh..wh..opq",
        "d/.wh..wh..opq",
        "a/../{0}",
        "{0:06}/./.",
        "d{0:06}/.",
    ],
)
def test_entries_take_linear_time(name: str) -> None:
    def scan(layer: bytes) -> None:
        with contextlib.suppress(MalformedImage):
            flatten(make_tar({"d/x": b""}), layer)

    assert_linear(
        scan, lambda size: make_tar({}, [member(name.format(number)) for number in range(size)]), 4_000
    )


@pytest.mark.parametrize("hide", [False, True])
def test_whiteouts_of_links_take_linear_time(hide: bool) -> None:
    def make(size: int) -> bytes:
        links = [symlink(f"d/{number:06}", "x") for number in range(size)]
        return make_tar({}, [*links, *(member(f"d/.wh.{number + hide * size:06}") for number in range(size))])

    def scan(layer: bytes) -> None:
        with contextlib.suppress(MalformedImage, LimitExceeded):
            flatten(make_tar({}), layer)

    assert_linear(scan, make, 8_000)
