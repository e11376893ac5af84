"""Lay the trees of layers over one another, as overlayfs would.

OCI image specification, "Image Layer Filesystem Changeset". Trees are never changed: what an upper
layer does not touch is the lower tree's own folder again, so that platforms with common layers cost
little more than one.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage
from buildkit_tasks.oci.layers.rootfs import WHITEOUT, Node, NodeType, walk

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.oci.layers.packed_names import Names

__all__ = ["overlay", "relink"]

_OPAQUE = f"{WHITEOUT}{WHITEOUT}.opq"


def overlay(lower: Node, upper: Node, *, whiteouts: bool = True) -> Node:
    """The tree of one layer over another; neither is changed.

    A whiteout ``.wh.NAME`` removes the name below and an opaque folder everything below in it;
    neither touches what its own layer adds. Folders merge, everything else replaces. ``whiteouts``
    tells whether the upper layer may have any: a folder of one without is taken as it is.
    """
    root = _merged(lower, upper)
    todo = [(root, upper)]
    while todo:
        here, above = todo.pop()
        for name, node in above.children.items():
            if name.startswith(WHITEOUT):
                continue
            below = here.children.get(name)
            merges = below is not None and below.type is NodeType.FOLDER
            if node.type is NodeType.FOLDER and (merges or whiteouts):
                here.children[name] = _merged(below, node)
                todo.append((here.children[name], node))
            else:
                here.children[name] = node
    return root


def _merged(old: Node | None, folder: Node) -> Node:
    """A new folder: the upper one with what it leaves of the lower one, if that is a folder."""
    children: dict[str, Node] = {}
    plain: list[Names] = []
    if old is not None and old.type is NodeType.FOLDER and _OPAQUE not in folder.children:
        children, plain = dict(old.children), list(old.plain)
        gone = {name.removeprefix(WHITEOUT) for name in folder.children if name.startswith(WHITEOUT)}
        if gone:
            plain = [names.without(gone) for names in plain]
        for name in gone:
            children.pop(name, None)
        if children:
            for names in folder.plain:
                for name in names:
                    children.pop(name, None)
    return Node(
        type=NodeType.FOLDER, mode=folder.mode, layer=folder.layer, children=children,
        plain=[*plain, *folder.plain],
    )  # fmt: skip


def relink(root: Node, links: Iterable[tuple[str, str]]) -> Node:
    """The tree with the files of lower layers where a layer has only hard links to them.

    Engines link in the file system as it is by then, whatever layer brought the file. Raises
    :class:`MalformedImage` for a target that is not there, or is a folder.
    """
    links = tuple(links)
    root = _copied(root) if links else root
    for path, target in links:
        found, place = walk(root, target, follow=False), walk(root, path, follow=False)
        if place is None or place.node.type is not NodeType.HARD_LINK:
            continue  # its own layer put something else there
        if found is None or found.node.type in (NodeType.FOLDER, NodeType.HARD_LINK):
            raise MalformedImage(f"{path!r} is a hard link to {target!r}, which is no file here")
        folder, _, name = path.rstrip("/").rpartition("/")
        parent = walk(root, folder)
        if parent is not None:
            parent.node.children[name] = found.node
    return root


def _copied(root: Node) -> Node:
    """The same tree of folders that nobody else holds; layers with such links are rare."""
    top = dataclasses.replace(root, children=dict(root.children))
    todo = [top]
    while todo:
        children = todo.pop().children
        for name, node in children.items():
            if node.type is NodeType.FOLDER:
                children[name] = dataclasses.replace(node, children=dict(node.children))
                todo.append(children[name])
    return top
