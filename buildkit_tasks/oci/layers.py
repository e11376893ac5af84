"""Layers read through once: what each adds, and the root file system that they make together.

Every read is forward only and in memory; nothing of an image is ever written to disk here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from buildkit_tasks.errors import LimitExceeded, MalformedImage
from buildkit_tasks.oci.blobs import Source, read_blob
from buildkit_tasks.oci.compression import LayerStream, open_layer
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor, Digest, Manifest, parse_config
from buildkit_tasks.oci.rootfs import Node, NodeType, RootFs, lay_over, walk
from buildkit_tasks.oci.tar import DIRECTORY, HARD_LINK, REGULAR, SYMLINK, Entry, TarReader

__all__ = ["LayerScan", "LayerScans", "check_diff_id", "flatten", "scan_layer"]

_HEAD = 256  # an ELF header and its first program headers, or a `#!` line (BINPRM_BUF_SIZE)
_SHORT = 16  # what is kept of any other file: enough to say what it is not
_TYPES = {REGULAR: NodeType.FILE, "7": NodeType.FILE, DIRECTORY: NodeType.FOLDER, SYMLINK: NodeType.SYMLINK}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScan:
    """A layer that was read to its end: its diff_id, its uncompressed size, its tree of names."""

    digest: Digest
    diff_id: Digest
    size: int
    root: Node


class LayerScans:
    """Scans of one source's layers, each made once: platforms share layers."""

    def __init__(self, source: Source, limits: Limits = LIMITS) -> None:
        self._source = source
        self._limits = limits
        self._scans: dict[tuple[Descriptor, str], LayerScan] = {}

    def get(self, layer: Descriptor, algorithm: str = "sha256") -> LayerScan:
        """The scan of this layer; fails as :func:`scan_layer` does, each time anew."""
        key = (dataclasses.replace(layer, annotations={}), algorithm)
        if key not in self._scans:
            self._scans[key] = scan_layer(self._source, layer, algorithm=algorithm, limits=self._limits)
        return self._scans[key]


def scan_layer(
    source: Source, layer: Descriptor, *, algorithm: str = "sha256", limits: Limits = LIMITS
) -> LayerScan:
    """Read one layer through, checking digest, size and caps.

    A blob with other bytes than its digest promises is reported as that, whatever else its bytes
    upset on the way.
    """
    with open_layer(source, layer, algorithm=algorithm, limits=limits) as stream:
        try:
            root = _tree(stream, str(layer.digest), limits)
            return LayerScan(digest=layer.digest, diff_id=stream.finish(), size=stream.raw.size, root=root)
        except MalformedImage as error:
            stream.check_blob()
            raise MalformedImage(f"layer {layer.digest}: {error.message}") from error


def check_diff_id(scan: LayerScan, stated: Digest) -> None:
    """Raise :class:`MalformedImage` unless the config states this layer's diff_id."""
    if scan.diff_id != stated:
        raise MalformedImage(
            f"layer {scan.digest} has the diff_id {scan.diff_id} uncompressed; the config states {stated}"
        )


def flatten(source: Source, manifest: Manifest, scans: LayerScans | None = None) -> RootFs:
    """The root file system of one platform's image, its diff_ids checked.

    ``scans`` keeps layers that were read already. Raises :class:`MalformedImage` and
    :class:`LimitExceeded` at the first problem.
    """
    scans = scans or LayerScans(source)
    diff_ids = parse_config(read_blob(source, manifest.config, LIMITS.document)).diff_ids
    check_layer_count(manifest, diff_ids)
    rootfs, size = RootFs(), 0
    for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
        scan = scans.get(layer, diff_id.algorithm)
        check_diff_id(scan, diff_id)
        size += scan.size
        if size > LIMITS.image:
            raise LimitExceeded(f"the image is larger than {LIMITS.image} bytes uncompressed")
        lay_over(rootfs.root, scan.root)
    return rootfs


def check_layer_count(manifest: Manifest, diff_ids: tuple[Digest, ...]) -> None:
    """Raise :class:`MalformedImage` unless there is one diff_id per layer."""
    if len(diff_ids) != len(manifest.layers):
        raise MalformedImage(
            f"the manifest has {len(manifest.layers)} layers, the config {len(diff_ids)} diff_ids"
        )


def _tree(stream: LayerStream, digest: str, limits: Limits) -> Node:
    root = Node(type=NodeType.FOLDER, layer=digest)
    reader = TarReader(stream, max_entries=limits.entries)
    for entry in reader:
        _add(root, entry, reader, digest)
    return root


def _add(root: Node, entry: Entry, reader: TarReader, digest: str) -> None:
    path = entry.name.rstrip("/")
    folder, _, name = path.rpartition("/")
    if name in ("", "."):
        return  # the root itself
    if name == ".." or ".." in folder.split("/"):
        raise MalformedImage(f"the entry {entry.name!r} leads out of its folder")
    parent = walk(root, folder, make=True)
    if parent is None or parent.node.type is not NodeType.FOLDER:
        raise MalformedImage(f"the entry {entry.name!r} is below something that is no folder")
    children = parent.node.children
    children[name] = _node(root, entry, reader, digest, children.get(name))


def _node(root: Node, entry: Entry, reader: TarReader, digest: str, old: Node | None) -> Node:
    if entry.type == HARD_LINK:
        return _linked(root, entry)
    kind = _TYPES.get(entry.type, NodeType.OTHER)
    kept = old.children if old is not None and old.type is kind is NodeType.FOLDER else {}
    return Node(
        type=kind,
        mode=entry.mode & 0o7777,
        size=entry.size,
        target=entry.linkname if kind is NodeType.SYMLINK else "",
        head=_head(reader) if kind is NodeType.FILE else b"",
        layer=digest,
        children=kept,
    )


def _linked(root: Node, entry: Entry) -> Node:
    """The file that a hard link names; the specification wants it in the same layer."""
    found = walk(root, entry.linkname, follow=False)
    if found is None or found.node.type is NodeType.FOLDER:
        raise MalformedImage(f"{entry.name!r} is a hard link to {entry.linkname!r}, which is no file here")
    return found.node


def _head(reader: TarReader) -> bytes:
    head = reader.read(_HEAD)
    return head if head.startswith((b"\x7fELF", b"#!")) else head[:_SHORT]
