"""The arguments of ``docker buildx create``, which makes a builder and each of its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.host.builder.spec import OWN_DAEMON
from buildkit_tasks.system.csv_fields import write_row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildkit_tasks.host.builder.spec import WantedBuilder, WantedNode

__all__ = ["create_arguments", "entitlement", "fix_arguments", "leave_arguments"]


def create_arguments(
    wanted: WantedBuilder, node: WantedNode, driver: str, config: str, *, first: bool
) -> list[str]:
    """Make one node; ``config`` is the file of its buildkitd.toml, if it has one.

    The only node of a builder is booted at once; several are booted together when all are there.
    """
    return [
        "create",
        f"--name={wanted.name}",
        *([] if first else ["--append"]),
        f"--driver={driver}",
        *([f"--node={node.name}"] if node.name else []),
        *(f"--driver-opt={write_row([option])}" for option in wanted.options_of(node)),
        *(_daemon(wanted, config) if driver in OWN_DAEMON else ()),
        *([] if wanted.nodes else ["--bootstrap"]),
        *(["--", node.endpoint] if node.endpoint else []),
    ]


def _daemon(wanted: WantedBuilder, config: str) -> Iterator[str]:
    if config:
        yield f"--buildkitd-config={config}"
    if wanted.allow:
        yield f"--buildkitd-flags={' '.join(map(entitlement, wanted.allow))}"


def entitlement(name: str) -> str:
    """The option of buildkitd that lets it give an entitlement to builds that ask for it."""
    return f"--allow-insecure-entitlement={name}"


def fix_arguments(builder: str, node: str, endpoint: str, platforms: Sequence[str]) -> list[str]:
    """Say which platforms are built on a node that is there."""
    named = [f"--name={builder}", "--append", f"--node={node}"]
    return ["create", *named, f"--platform={','.join(platforms)}", "--", endpoint]


def leave_arguments(builder: str, node: str) -> list[str]:
    """Take a node out of a builder; what runs on it is left alone."""
    return ["create", f"--name={builder}", "--leave", f"--node={node}"]
