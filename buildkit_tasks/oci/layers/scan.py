"""Scan layers, each once, and merge their trees into a root file system.

Layers are read forward only and scanned in memory; nothing is written to disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.overlay import apply_layer
from buildkit_tasks.oci.layers.rootfs import FileNode, RootFs
from buildkit_tasks.oci.layers.stream import LayerStream, check_diff_id, check_layer_count, open_layer
from buildkit_tasks.oci.layers.tar import TarReader, truncated_error
from buildkit_tasks.oci.layers.tree_builder import TreeBuilder
from buildkit_tasks.oci.limits import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.source import Source

__all__ = ["LayerScan", "LayerScanCache", "flatten_layers", "scan_layer"]

_MAX_CACHED_TREES = 8  # platforms differ in their last few layers


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScan:
    """The result of reading a layer: its diff_id, its uncompressed size in bytes, its tree.

    ``hard_links`` are (path, target) of hard links to files of lower layers.
    """

    digest: Digest
    diff_id: Digest
    size: int
    root: FileNode
    has_whiteouts: bool = False
    lowest_error: str = ""
    upper_error: str = ""

    def check_position(self, *, is_lowest: bool) -> None:
        """Raise :class:`MalformedImage` if engines unpack the layer otherwise at this position."""
        if error := self.lowest_error if is_lowest else self.upper_error:
            raise MalformedImage(f"layer {self.digest} has {error}")


class LayerScanCache:
    """Scans and merged trees of one source's layers: platforms share layers, and stacks of layers."""

    def __init__(self, source: Source, limits: Limits = LIMITS) -> None:
        self._source = source
        self._limits = limits
        self._scans: dict[tuple[object, ...], LayerScan | BuildkitTasksError] = {}
        self._trees: dict[tuple[Digest, ...], FileNode] = {(): FileNode.make_directory()}

    def get(self, layer: Descriptor, algorithm: str = "sha256") -> LayerScan:
        """Return the layer's scan, or raise the error of :func:`scan_layer`; each layer is read once."""
        # Only what reading it depends on: an image can name a layer often, with other URLs or annotations.
        key = (layer.media_type, layer.digest, layer.size, bool(layer.urls), algorithm)
        if key not in self._scans:
            self._scans[key] = self._try_scan(layer, algorithm)
        scan = self._scans[key]
        if isinstance(scan, LayerScan):
            return scan
        raise scan

    def merge_layers(self, scans: Sequence[LayerScan]) -> FileNode:
        """Return the merged tree of these layers, lowest first."""
        digests = tuple(scan.digest for scan in scans)
        cached_count = max(count for count in range(len(digests) + 1) if digests[:count] in self._trees)
        tree = self._trees[digests[:cached_count]]
        for count, scan in enumerate(scans[cached_count:], cached_count + 1):
            scan.check_position(is_lowest=count == 1)
            if count > 1 or scan.has_whiteouts:
                tree = apply_layer(tree, scan.root, has_whiteouts=scan.has_whiteouts)
            else:
                tree = scan.root
            self._trees[digests[:count]] = tree
            if len(self._trees) > _MAX_CACHED_TREES:
                del self._trees[next(key for key in self._trees if key)]
        return tree

    def _try_scan(self, layer: Descriptor, algorithm: str) -> LayerScan | BuildkitTasksError:
        try:
            return scan_layer(self._source, layer, algorithm=algorithm, limits=self._limits)
        except (MalformedImage, LimitExceeded) as error:
            return error.with_traceback(None)


def scan_layer(
    source: Source, layer: Descriptor, *, algorithm: str = "sha256", limits: Limits = LIMITS
) -> LayerScan:
    """Read one layer, checking digest, size and limits.

    Raises :class:`MalformedImage` and :class:`LimitExceeded`. If the data cannot be read as a layer, a
    blob that does not match its digest is reported as that, as it is the cause.
    """
    with open_layer(source, layer, algorithm=algorithm, limits=limits) as stream:
        try:
            reader = _LayerReader(stream, limits)
            builder = TreeBuilder(reader, str(layer.digest), limits)
            builder.read_entries()
            diff_id = stream.finish()
        except MalformedImage as error:
            stream.verify_blob()
            raise MalformedImage(f"layer {layer.digest}: {error.message}") from error
    return LayerScan(
        digest=layer.digest, diff_id=diff_id, size=stream.size, root=builder.root,
        has_whiteouts=builder.has_whiteouts,
        lowest_error=builder.lowest_error,
        upper_error=builder.upper_error,
    )  # fmt: skip


class _LayerReader(TarReader):
    """A tar reader that can also peek at an entry's data."""

    def __init__(self, stream: LayerStream, limits: Limits) -> None:
        super().__init__(stream, max_entries=limits.entries)
        self._layer_stream = stream

    def peek(self, limit: int) -> bytes:
        count = min(limit, self.remaining)
        data = self._layer_stream.peek(count)
        if len(data) != count:
            raise truncated_error(self._layer_stream.size)
        return data


def flatten_layers(image: Image, descriptor: Descriptor, scans: LayerScanCache | None = None) -> RootFs:
    """Return the root file system of the platform with this manifest; its diff_ids are checked.

    ``scans`` caches layers that were read before. Raises :class:`MalformedImage` and
    :class:`LimitExceeded` at the first problem.
    """
    scans = scans or LayerScanCache(image)
    manifest, diff_ids = image.manifest(descriptor), image.config(descriptor).diff_ids
    check_layer_count(manifest, diff_ids)
    layer_scans, size = [], 0
    for layer, diff_id in zip(manifest.layers, diff_ids, strict=True):
        scan = scans.get(layer, diff_id.algorithm)
        check_diff_id(layer, scan.diff_id, diff_id)
        size += scan.size
        if size > LIMITS.image_bytes:
            raise LimitExceeded(f"the image is larger than {LIMITS.image_bytes} bytes uncompressed")
        layer_scans.append(scan)
    return RootFs(scans.merge_layers(layer_scans))
