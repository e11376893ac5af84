"""Values such as ``type=oci,dest=x.tar``: the CSV of ``--output``, ``--cache-to`` and ``--cache-from``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from buildkit_tasks.system.csv_fields import format_csv_row

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TypedOption", "parse_attributes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedOption:
    """A type and its other attributes, in order. ``str()`` gives the value as buildx reads it."""

    type: str
    attributes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return format_csv_row([f"type={self.type}", *(f"{name}={value}" for name, value in self.attributes)])

    def get(self, name: str) -> str:
        """Return the value of an attribute, or ""."""
        return dict(self.attributes).get(name, "")

    def with_attribute(self, name: str, value: str) -> Self:
        """Return a copy with one attribute set: replaced where it is, else appended."""
        if any(key == name for key, _ in self.attributes):
            pairs = tuple((key, value if key == name else old) for key, old in self.attributes)
        else:
            pairs = (*self.attributes, (name, value))
        return replace(self, attributes=pairs)


def parse_attributes(fields: Iterable[str]) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    """Return the type ("" if missing) and the other attributes, or None if a field is not NAME=VALUE."""
    pairs = [field.partition("=") for field in fields]
    if not all(separator for _, separator, _ in pairs):
        return None
    attributes = [(name.strip().lower(), value) for name, _, value in pairs]
    return dict(attributes).get("type", ""), tuple(pair for pair in attributes if pair[0] != "type")
