"""Build caches outside the builder: read ``--cache-to`` and ``--cache-from``, one scope for each platform.

A cache is exported as one manifest under one name (a registry's tag, a folder's ``index.json``, a scope
of GitHub's), and whoever exports last under that name replaces it: two jobs that build one platform each
would take turns in losing theirs. So each platform has a scope of its own, made from the name that was
given, which is the *base*:

======== ================= ======================================
type     what names it     scope of linux/arm/v7
======== ================= ======================================
local    ``dest``, ``src`` the subfolder ``linux-arm-v7``
registry ``ref``           the tag with ``-linux-arm-v7`` after it
gha      ``scope``         the scope with ``-linux-arm-v7`` after it
======== ================= ======================================

What was found out by trying, and follows from it:

- One solve of several platforms exports one manifest that holds the layers and the records of all of them.
  Such a build exports to the base, once; what one platform has in common with another is sent once.
- A build of one platform (a job of a fleet) exports to its platform's scope.
- Both import from the base and from the scope of each platform that they build: a cache that was made by
  buildx alone, or the inline cache of an image, lies at the base.
- A builder of several nodes has a solve on each of them, with the same ``--cache-to``: the node that ends
  last would replace what the others exported (github.com/docker/buildx/issues/1044). There each platform
  is a build of its own (:mod:`buildkit_tasks.build.multi_node`), which exports to its own scope.
- A cache that is not there is no error for BuildKit, which says so and builds. An importer that it does
  not know is none either: that would be a cache that never helps, and is refused here.

Inline caches lie in the image and need no scope. Other types (``s3``, ``azblob``) are passed on unchanged.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.outputs import check_place
from buildkit_tasks.build.secrets import without_user
from buildkit_tasks.errors import BuildkitTasksError, UsageError
from buildkit_tasks.system.csv_fields import read_row, write_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = [
    "CacheSpec",
    "cache_notes",
    "check_cache",
    "check_exporters",
    "exports",
    "has_inline",
    "imports",
    "of_image",
    "read_caches",
]

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


# Values that would stand in the process table: buildx and BuildKit read them from their environments.
_CREDENTIALS = ("access_key_id", "secret_access_key", "session_token", "token", "account_key")


# What dockerd's own BuildKit has; with the graph store it exports inline only.
_OF_THE_ENGINE = ("inline", "local", "registry", "gha")


def check_cache(cache_to: Sequence[str], cache_from: Sequence[str]) -> None:
    """Raise :class:`UsageError` for a cache that goes nowhere, destroys something or shows a secret."""
    for flag, texts in (("--cache-to", cache_to), ("--cache-from", cache_from)):
        for spec in read_caches(texts, flag):
            _check_spec(spec, flag)
    _check_together(read_caches(cache_to, "--cache-to"))


def _check_together(specs: Sequence[CacheSpec]) -> None:
    """Refuse a local cache beside another.

    BuildKit gives the client one manifest's digest for all of its exporters (``cache.manifest``), and buildx
    writes that into the folder's ``index.json``, whichever it is: the cache is then there and never found.
    """
    of_their_own = [spec.type for spec in specs if spec.type != "inline"]
    if len(of_their_own) > 1 and "local" in of_their_own:
        raise UsageError(
            "--cache-to type=local does not go together with another cache: buildx may name the other's"
            " manifest in the folder, where nothing then finds it",
            hint="give one --cache-to (an inline one may stand beside it), and build once more for the other",
        )


def _check_spec(spec: CacheSpec, flag: str) -> None:
    imported = flag == "--cache-from"
    for name, _ in spec.attributes:
        if name in _CREDENTIALS:
            raise UsageError(
                f"{flag} type={spec.type} is given {name}, which everybody on this machine could read",
                hint="leave it out: buildx takes it from the environment (AWS_SECRET_ACCESS_KEY and others)",
            )
    if spec.type == "inline" and imported:
        raise UsageError(
            "--cache-from type=inline reads nothing: an inline cache lies in the image it was built into",
            hint="--cache-from type=registry,ref=REGISTRY/NAME:TAG",
        )
    needed = {"registry": "ref", "local": "src" if imported else "dest"}.get(spec.type, "")
    if needed and not spec.get(needed):
        raise UsageError(f"{flag} type={spec.type} names no {needed}", hint=f"add {needed}=PLACE")
    if spec.type == "registry":
        _check_reference(spec.get("ref"), flag)
    if spec.type == "local" and not imported:
        dest = Path(spec.get("dest"))
        check_place(f"--cache-to {dest}", dest)
        if dest.exists() and not dest.is_dir():
            raise UsageError(f"--cache-to {dest} is a file, and a cache is a folder")


def _check_reference(ref: str, flag: str) -> None:
    host = without_user(ref)
    if host != ref:
        login = f"docker login {host.rpartition('@')[2].partition('/')[0]}"
        raise UsageError(f"{flag} {host} has a user's name in it", hint=login)
    from buildkit_tasks.oci.reference import Reference

    Reference.parse(ref)


def check_exporters(cache_to: Sequence[str], cache_from: Sequence[str], driver: str, store: str) -> None:
    """Refuse what the engine's own builder cannot do: it would say so late, or not at all."""
    if driver != "docker":
        return
    for flag, texts in (("--cache-to", cache_to), ("--cache-from", cache_from)):
        for spec in read_caches(texts, flag):
            if spec.type not in _OF_THE_ENGINE:
                raise UsageError(
                    f"{flag} type={spec.type}: the engine's own builder has {', '.join(_OF_THE_ENGINE)} only",
                    hint="--driver=docker-container",
                )
            if flag == "--cache-to" and spec.type != "inline" and store != "containerd":
                raise UsageError(
                    f"--cache-to type={spec.type} needs the containerd image store; this engine has the "
                    "graph store, which exports inline caches only",
                    hint="--driver=docker-container, --cache-to type=inline, or --engine=private",
                )


def cache_notes(
    cache_to: Iterable[str], cache_from: Iterable[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """What buildx does with a cache without a word: it leaves GitHub's out where no runner is."""
    specs = (*read_caches(cache_to, "--cache-to"), *read_caches(cache_from, "--cache-from"))
    missing = {_missing(spec, environ) for spec in specs if spec.type == "gha"} - {""}
    return tuple(f"cache type=gha: {name} is not set, so buildx leaves it out" for name in sorted(missing))


def _missing(spec: CacheSpec, environ: Mapping[str, str]) -> str:
    """The first variable of a runner's that is needed for this cache and not there."""
    if not environ.get("ACTIONS_RUNTIME_TOKEN"):
        return "ACTIONS_RUNTIME_TOKEN"
    places = ("ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL")  # of the service's two versions
    known = spec.get("url") or spec.get("url_v2") or any(environ.get(name) for name in places)
    return "" if known else places[0]
