"""``--cache-to`` and ``--cache-from`` as they are written, and the scope of one platform in each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.secrets import without_user
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import read_row, write_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.platforms import Platform

__all__ = ["CacheSpec", "has_inline", "read_caches"]

_PLACES = {"local": ("src", "dest"), "registry": ("ref",), "gha": ("scope",)}
_GHA_SCOPE = "buildkit"  # BuildKit's own default
_MAX_TAG = 128  # characters, by the grammar of references


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """One cache: its type and its other attributes, in order."""

    type: str
    attributes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return write_row([f"type={self.type}", *(f"{name}={value}" for name, value in self.attributes)])

    def get(self, name: str) -> str:
        """The value of an attribute, or an empty string."""
        return dict(self.attributes).get(name, "")

    @property
    def split(self) -> bool:
        """Whether it can have one scope for each platform."""
        return self.type in _PLACES and not self.get("digest") and "@" not in self.get("ref")

    def scoped(self, platform: Platform) -> CacheSpec:
        """The scope of one platform. Raises :class:`UsageError` for a tag that grows too long."""
        return self.suffixed(f"{platform.os}-{platform.slug}")

    def suffixed(self, suffix: str) -> CacheSpec:
        """The same place with a name of its own in it: a subfolder, a tag or a scope."""
        if not self.split:
            return self
        if self.type == "gha":
            return self._with("scope", f"{self.get('scope') or _GHA_SCOPE}-{suffix}")
        if self.type == "registry":
            return self._with("ref", _tagged(self.get("ref"), suffix))
        places = [(name, value) for name, value in self.attributes if name in _PLACES["local"]]
        spec = self
        for name, value in places:
            spec = spec._with(name, str(Path(value) / suffix))
        return spec

    def _with(self, name: str, value: str) -> CacheSpec:
        """The same cache with one attribute set, in its place if it was there."""
        if any(key == name for key, _ in self.attributes):
            pairs = tuple((key, value if key == name else old) for key, old in self.attributes)
        else:
            pairs = (*self.attributes, (name, value))
        return replace(self, attributes=pairs)


def read_caches(texts: Iterable[str], flag: str) -> tuple[CacheSpec, ...]:
    """Read ``type=local,dest=x`` (CSV), or bare references, which mean a registry, as buildx does."""
    return tuple(spec for text in texts for spec in _parse(text, flag))


def _parse(text: str, flag: str) -> Iterator[CacheSpec]:
    fields = read_row(text, f"{flag} {without_user(text)!r}")
    if fields and not any("=" in item for item in fields):
        for ref in fields:
            yield CacheSpec(type="registry", attributes=(("ref", ref),))
        return
    pairs = [item.partition("=") for item in fields]
    values = [(name.strip().lower(), value) for name, separator, value in pairs if separator]
    kind = dict(values).get("type", "")
    if len(values) != len(fields) or not kind:
        raise UsageError(f"{flag} {without_user(text)!r} is neither type=TYPE,name=value,... nor a reference")
    yield CacheSpec(type=kind, attributes=tuple(pair for pair in values if pair[0] != "type"))


def has_inline(texts: Iterable[str]) -> bool:
    """Whether a cache goes into the image itself."""
    return any(spec.type == "inline" for spec in read_caches(texts, "--cache-to"))


def _tagged(ref: str, suffix: str) -> str:
    last = ref.rpartition("/")[2]
    name = ref if ":" in last else f"{ref}:latest"
    tag = f"{name.rpartition(':')[2]}-{suffix}"
    if len(tag) > _MAX_TAG:
        raise UsageError(
            f"the cache's tag {tag!r} has more than {_MAX_TAG} characters", hint="give ref a shorter tag"
        )
    return f"{name}-{suffix}"
