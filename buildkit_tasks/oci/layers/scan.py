"""Layers read through once: what each adds, and the root file system that they make together.

Every read is forward only and in memory; nothing of an image is ever written to disk here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, LimitExceeded, MalformedImage
from buildkit_tasks.oci.layers.overlay import apply_layer, resolve_hard_links
from buildkit_tasks.oci.layers.rootfs import FileNode, RootFs
from buildkit_tasks.oci.layers.stream import LayerStream, check_diff_id, check_layer_count, open_layer
from buildkit_tasks.oci.layers.tar import TarReader, truncated_error
from buildkit_tasks.oci.layers.tree_builder import TreeBuilder
from buildkit_tasks.oci.limits import LIMITS, Limits
from buildkit_tasks.oci.model import Descriptor, Digest, Manifest, parse_config
from buildkit_tasks.oci.source import Source, read_blob

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LayerScan", "LayerScanCache", "flatten_layers", "scan_layer"]


_MAX_CACHED_TREES = 8  # that are kept: platforms differ in their last few layers


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScan:
    """A layer that was read to its end: its diff_id, its uncompressed size, its tree of names.

    ``links`` are its hard links to files of lower layers, each with its target; ``whiteouts`` tells
    whether it removes anything of theirs.
    """

    digest: Digest
    diff_id: Digest
    size: int
    root: FileNode
    hard_links: tuple[tuple[str, str], ...] = ()
    has_whiteouts: bool = False


class LayerScanCache:
    """Scans of one source's layers, each made once, sound or not: platforms share layers.

    So they do with what some layers make together: :meth:`stacked`.
    """

    def __init__(self, source: Source, limits: Limits = LIMITS) -> None:
        self._source = source
        self._limits = limits
        self._scans: dict[tuple[Descriptor, str], LayerScan | BuildkitTasksError] = {}
        self._trees: dict[tuple[Digest, ...], FileNode] = {(): FileNode.make_directory()}

    def get(self, layer: Descriptor, algorithm: str = "sha256") -> LayerScan:
        """The scan of this layer; fails as :func:`scan_layer` does, however often it is asked for."""
        key = (dataclasses.replace(layer, annotations={}), algorithm)
        if key not in self._scans:
            self._scans[key] = self._try_scan(layer, algorithm)
        scan = self._scans[key]
        if isinstance(scan, LayerScan):
            return scan
        raise scan

    def merge_layers(self, scans: Sequence[LayerScan]) -> FileNode:
        """The tree of these layers laid over one another, lowest first."""
        digests = tuple(scan.digest for scan in scans)
        cached_count = max(count for count in range(len(digests) + 1) if digests[:count] in self._trees)
        tree = self._trees[digests[:cached_count]]
        for count, scan in enumerate(scans[cached_count:], cached_count + 1):
            if count > 1 or scan.has_whiteouts:
                tree = apply_layer(tree, scan.root, has_whiteouts=scan.has_whiteouts)
            else:
                tree = scan.root
            tree = self._trees[digests[:count]] = resolve_hard_links(tree, scan.hard_links)
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
    """Read one layer through, checking digest, size and caps.

    A blob with other bytes than its digest promises is reported as that, whatever else its bytes
    upset on the way.
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
        hard_links=tuple(builder.hard_links),
        has_whiteouts=builder.has_whiteouts,
    )  # fmt: skip


class _LayerReader(TarReader):
    """The entries of a layer, whose data can be looked at before they are read."""

    def __init__(self, stream: LayerStream, limits: Limits) -> None:
        super().__init__(stream, max_entries=limits.entries)
        self._layer_stream = stream

    def peek(self, limit: int) -> bytes:
        count = min(limit, self.remaining)
        data = self._layer_stream.peek(count)
        if len(data) != count:
            raise truncated_error(self._layer_stream.size)
        return data


def flatten_layers(source: Source, manifest: Manifest, scans: LayerScanCache | None = None) -> RootFs:
    """The root file system of one platform's image, its diff_ids checked.

    ``scans`` keeps layers that were read already. Raises :class:`MalformedImage` and
    :class:`LimitExceeded` at the first problem.
    """
    scans = scans or LayerScanCache(source)
    diff_ids = parse_config(read_blob(source, manifest.config, LIMITS.document_bytes)).diff_ids
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
