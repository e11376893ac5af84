"""Merge the file trees of layers as overlayfs does.

OCI image specification, "Image Layer Filesystem Changeset". Trees are immutable: directories that the
upper layer does not touch are shared with the lower tree, so that platforms with common layers need
little more memory than one of them.

The sandbox applies the whiteouts of a layer on disk: see ``buildkit_tasks/run/sandbox/whiteouts.py``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.rootfs import (
    OPAQUE_WHITEOUT,
    WHITEOUT_PREFIX,
    FileNode,
    FileType,
    resolve_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.oci.layers.packed_names import PackedNames

__all__ = ["apply_layer", "resolve_hard_links"]


def apply_layer(lower: FileNode, upper: FileNode, *, has_whiteouts: bool = True) -> FileNode:
    """Return a new tree with ``upper`` applied over ``lower``.

    ============================= ===================== =================================================
    lower                         upper                 result
    ============================= ===================== =================================================
    anything                      ``.wh.NAME``          NAME of the lower layers is removed; an entry NAME
                                                        of the upper layer itself stays
    directory                     ``.wh..wh..opq`` in   only the upper directory's own entries
                                  the same directory
    directory                     directory             both are merged, with the upper one's mode
    anything else, or no entry    any entry             the upper entry
    ============================= ===================== =================================================

    Without ``has_whiteouts`` the upper layer has none, and its new directories are used as they are.
    """
    root = _merge_directory(lower, upper)
    pending = [(root, upper)]
    while pending:
        merged, upper_directory = pending.pop()
        for name, node in upper_directory.children.items():
            if name.startswith(WHITEOUT_PREFIX):
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
    if lower is not None and lower.type is FileType.DIRECTORY and OPAQUE_WHITEOUT not in upper.children:
        children, packed_names = dict(lower.children), list(lower.packed_names)
        removed = {
            name.removeprefix(WHITEOUT_PREFIX) for name in upper.children if name.startswith(WHITEOUT_PREFIX)
        }
        if removed:
            packed_names = [names.exclude_names(removed) for names in packed_names]
        for name in removed:
            children.pop(name, None)
        if children:
            for names in upper.packed_names:
                for name in names:
                    children.pop(name, None)
    return FileNode(
        type=FileType.DIRECTORY, mode=upper.mode, layer=upper.layer, children=children,
        packed_names=[*packed_names, *upper.packed_names],
    )  # fmt: skip


def resolve_hard_links(root: FileNode, hard_links: Iterable[tuple[str, str]]) -> FileNode:
    """Return the tree with a layer's hard links to files of lower layers replaced by those files.

    Engines create the link in the file system as merged so far, whichever layer added the target.
    Raises :class:`MalformedImage` for a target that is missing or is a directory.
    """
    hard_links = tuple(hard_links)
    root = _copy_directories(root) if hard_links else root
    for path, target in hard_links:
        source = resolve_path(root, target, follow_last=False)
        link = resolve_path(root, path, follow_last=False)
        if link is None or link.node.type is not FileType.HARD_LINK:
            continue  # a later entry of the same layer replaced the link
        if source is None or source.node.type in (FileType.DIRECTORY, FileType.HARD_LINK):
            raise MalformedImage(f"{path!r} is a hard link to {target!r}, which is not a file in the image")
        parent_path, _, name = path.rstrip("/").rpartition("/")
        parent = resolve_path(root, parent_path)
        if parent is not None:
            parent.node.children[name] = source.node
    return root


def _copy_directories(root: FileNode) -> FileNode:
    """Copy all directories, so that the copy can be changed; layers with such links are rare."""
    new_root = dataclasses.replace(root, children=dict(root.children))
    pending = [new_root]
    while pending:
        children = pending.pop().children
        for name, node in children.items():
            if node.type is FileType.DIRECTORY:
                children[name] = dataclasses.replace(node, children=dict(node.children))
                pending.append(children[name])
    return new_root
