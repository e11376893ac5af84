"""Merge the file trees of layers as overlayfs does.

OCI image specification, "Image Layer Filesystem Changeset". Trees are immutable: directories that the
upper layer does not touch are shared with the lower tree, so that platforms with common layers need
little more memory than one of them.

The sandbox applies the whiteouts of a layer on disk: see ``buildkit_tasks/run/sandbox/whiteouts.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.rootfs import (
    OPAQUE_WHITEOUT,
    WHITEOUT_PREFIX,
    FileNode,
    FileType,
)

if TYPE_CHECKING:
    from buildkit_tasks.oci.layers.packed_names import PackedNames

__all__ = ["apply_layer"]


def apply_layer(lower: FileNode, upper: FileNode, *, has_whiteouts: bool = True) -> FileNode:
    """Return a new tree with ``upper`` applied over ``lower``.

    ============================= ===================== =================================================
    lower                         upper                 result
    ============================= ===================== =================================================
    anything                      ``.wh.NAME``          NAME of the lower layers is removed; an entry NAME
                                                        of the upper layer itself stays
    directory                     ``.wh..wh..opq`` in   only the upper directory's own entries
                                  the same directory
    directory                     directory             both are merged; the mode is that of the upper
                                                        one, unless only entries below it imply it
    anything else, or no entry    any entry             the upper entry
    ============================= ===================== =================================================

    Without ``has_whiteouts`` the upper layer has none, and its new directories are used as they are.
    """
    root = _merge_directory(lower, upper)
    pending = [(root, upper)]
    while pending:
        merged, upper_directory = pending.pop()
        for name, node in upper_directory.children.items():
            if node.type is FileType.WHITEOUT:
                continue
            lower_node = merged.children.get(name)
            merges_lower = lower_node is not None and lower_node.type is FileType.DIRECTORY
            if node.type is FileType.DIRECTORY and (merges_lower or has_whiteouts):
                merged.children[name] = _merge_directory(lower_node, node)
                pending.append((merged.children[name], node))
            else:
                merged.children[name] = node
    return root


def _merge_directory(lower: FileNode | None, upper: FileNode) -> FileNode:
    """Return a new directory with the upper entries and the lower ones that these do not hide."""
    children: dict[str, FileNode] = {}
    packed_names: list[PackedNames] = []
    lower = lower if lower is not None and lower.type is FileType.DIRECTORY else None
    if lower is not None and f"/{OPAQUE_WHITEOUT}" not in upper.children:
        children, packed_names = dict(lower.children), list(lower.packed_names)
        removed = {
            name.removeprefix(f"/{WHITEOUT_PREFIX}")
            for name, node in upper.children.items()
            if node.type is FileType.WHITEOUT
        }
        if removed:
            packed_names = [names.exclude_names(removed) for names in packed_names]
        for name in removed:
            children.pop(name, None)
        if children:
            for names in upper.packed_names:
                for name in names:
                    if name not in upper.children:
                        children.pop(name, None)
    mode = lower.mode if lower is not None and upper.is_implied else upper.mode
    return FileNode(
        type=FileType.DIRECTORY, mode=mode, layer=upper.layer, children=children,
        packed_names=[*packed_names, *upper.packed_names],
    )  # fmt: skip
