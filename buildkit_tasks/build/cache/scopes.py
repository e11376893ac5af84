"""Where a build exports its cache to, and which of the scopes that it may import from are there."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.cache.spec import CacheSpec, read_caches
from buildkit_tasks.errors import BuildkitTasksError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.platforms import Platform

__all__ = ["exports", "imports", "of_image"]

_AT_ONCE = 8  # questions to a registry
_SECONDS = 5.0  # that it has for an answer


def exports(texts: Sequence[str], platforms: Sequence[Platform]) -> tuple[str, ...]:
    """Where one solve of these platforms exports to: one platform's scope, or the base of several."""
    specs = read_caches(texts, "--cache-to")
    if len(platforms) == 1:
        specs = tuple(spec.scoped(platforms[0]) for spec in specs)
    return tuple(map(str, specs))


def of_image(texts: Sequence[str], flag: str, name: str) -> tuple[str, ...]:
    """The caches of one of several images, which would replace each other's under one name."""
    return tuple(str(spec.suffixed(name)) for spec in read_caches(texts, flag))


def imports(texts: Sequence[str], platforms: Sequence[Platform], *, ask: bool = False) -> tuple[str, ...]:
    """Where a build of these platforms imports from: the base, and the scope of each platform.

    Of local folders only those that hold a cache, and with ``ask`` of registries too: each other one
    would be an error in BuildKit's progress. Where none does the base is left, for BuildKit to say that
    nothing is there.
    """
    scopes = {
        spec: (spec, *(spec.scoped(platform) for platform in platforms))
        for spec in read_caches(texts, "--cache-from")
    }
    candidates = list(dict.fromkeys(each for group in scopes.values() for each in group))
    there = _holding(candidates, ask=ask)
    found: dict[str, None] = {}
    for spec, group in scopes.items():
        found.update(dict.fromkeys(map(str, [each for each in group if each in there] or (spec,))))
    return tuple(found)


def _holding(specs: Sequence[CacheSpec], *, ask: bool) -> set[CacheSpec]:
    """Those that hold a cache, or of which nobody knows; registries are asked all at once."""
    missing = {
        spec
        for spec in specs
        if spec.type == "local" and not (Path(spec.get("src")) / "index.json").is_file()
    }
    asked = [spec for spec in specs if spec.type == "registry"] if ask else []
    if asked:
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            missing |= {spec for spec, gone in zip(asked, pool.map(_is_missing, asked), strict=True) if gone}
    return set(specs) - missing


def _is_missing(spec: CacheSpec) -> bool:
    """Whether the registry says that it has no such cache; BuildKit may reach one that does not answer us."""
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.registry.errors import Missing
    from buildkit_tasks.oci.registry.options import Access

    access = Access(connect=_SECONDS, idle=_SECONDS, patience=0)
    try:
        with open_registry(spec.get("ref"), access=access) as registry:
            registry.root()
    except Missing:
        return True
    except BuildkitTasksError:
        return False
    return False
