"""Whether the nodes' daemons are there at all, asked in seconds: buildx itself waits 20 for each."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.builder.wanted import WantedNode

__all__ = ["silent_nodes"]

_SECONDS = 5.0


def silent_nodes(nodes: Sequence[WantedNode]) -> dict[str, str]:
    """The nodes at whose tcp endpoint nobody listens, each with the reason; others are buildx's to ask."""
    asked = [node for node in nodes if node.address is not None]
    if not asked:
        return {}
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        answers = pool.map(_silence, asked)
        return {node.name: words for node, words in zip(asked, answers, strict=True) if words}


def _silence(node: WantedNode) -> str:
    if node.address is None:
        return ""
    try:
        socket.create_connection(node.address, timeout=_SECONDS).close()
    except TimeoutError:
        return f"{node.endpoint} does not answer within {_SECONDS:g} s"
    except OSError as error:
        return f"nobody listens at {node.endpoint}: {error.strerror or error}"
    return ""
