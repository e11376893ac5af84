"""Options in the arguments of a command."""

from __future__ import annotations

from collections.abc import Sequence


def option_values(argv: Sequence[str], name: str) -> list[str]:
    """Return the values of each ``--name=value`` in order."""
    return [argument.removeprefix(f"--{name}=") for argument in argv if argument.startswith(f"--{name}=")]
