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

from buildkit_tasks.build.outputs import check_destination
from buildkit_tasks.build.secrets import redact_userinfo
from buildkit_tasks.errors import BuildkitTasksError, UsageError
from buildkit_tasks.system.csv_fields import format_csv_row, parse_csv_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = [
    "CacheSpec",
    "cache_exports",
    "cache_imports",
    "cache_warnings",
    "check_cache",
    "check_exporters",
    "has_inline_cache",
    "image_caches",
    "parse_cache_specs",
]

_SCOPE_ATTRIBUTES = {"local": ("src", "dest"), "registry": ("ref",), "gha": ("scope",)}
_DEFAULT_GHA_SCOPE = "buildkit"  # BuildKit's own default
_MAX_TAG_LENGTH = 128  # characters, by the grammar of references


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec:
    """One cache: its type and its other attributes, in order."""

    type: str
    attributes: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return format_csv_row([f"type={self.type}", *(f"{name}={value}" for name, value in self.attributes)])

    def get(self, name: str) -> str:
        """The value of an attribute, or an empty string."""
        return dict(self.attributes).get(name, "")

    @property
    def can_scope(self) -> bool:
        """Whether it can have one scope for each platform."""
        return self.type in _SCOPE_ATTRIBUTES and not self.get("digest") and "@" not in self.get("ref")

    def for_platform(self, platform: Platform) -> CacheSpec:
        """The scope of one platform. Raises :class:`UsageError` for a tag that grows too long."""
        return self.with_suffix(f"{platform.os}-{platform.slug}")

    def with_suffix(self, suffix: str) -> CacheSpec:
        """The same place with a name of its own in it: a subfolder, a tag or a scope."""
        if not self.can_scope:
            return self
        if self.type == "gha":
            return self._with_attribute("scope", f"{self.get('scope') or _DEFAULT_GHA_SCOPE}-{suffix}")
        if self.type == "registry":
            return self._with_attribute("ref", _append_to_tag(self.get("ref"), suffix))
        paths = [(name, value) for name, value in self.attributes if name in _SCOPE_ATTRIBUTES["local"]]
        spec = self
        for name, value in paths:
            spec = spec._with_attribute(name, str(Path(value) / suffix))
        return spec

    def _with_attribute(self, name: str, value: str) -> CacheSpec:
        """The same cache with one attribute set, in its place if it was there."""
        if any(key == name for key, _ in self.attributes):
            pairs = tuple((key, value if key == name else previous) for key, previous in self.attributes)
        else:
            pairs = (*self.attributes, (name, value))
        return replace(self, attributes=pairs)


def parse_cache_specs(texts: Iterable[str], flag: str) -> tuple[CacheSpec, ...]:
    """Read ``type=local,dest=x`` (CSV), or bare references, which mean a registry, as buildx does."""
    return tuple(spec for text in texts for spec in _parse_flag_value(text, flag))


def _parse_flag_value(text: str, flag: str) -> Iterator[CacheSpec]:
    fields = parse_csv_row(text, f"{flag} {redact_userinfo(text)!r}")
    if fields and not any("=" in item for item in fields):
        for ref in fields:
            yield CacheSpec(type="registry", attributes=(("ref", ref),))
        return
    pairs = [item.partition("=") for item in fields]
    values = [(name.strip().lower(), value) for name, separator, value in pairs if separator]
    cache_type = dict(values).get("type", "")
    if len(values) != len(fields) or not cache_type:
        raise UsageError(
            f"{flag} {redact_userinfo(text)!r} is neither type=TYPE,name=value,... nor a reference"
        )
    yield CacheSpec(type=cache_type, attributes=tuple(pair for pair in values if pair[0] != "type"))


def has_inline_cache(texts: Iterable[str]) -> bool:
    """Whether a cache goes into the image itself."""
    return any(spec.type == "inline" for spec in parse_cache_specs(texts, "--cache-to"))


def _append_to_tag(ref: str, suffix: str) -> str:
    last_component = ref.rpartition("/")[2]
    tagged_ref = ref if ":" in last_component else f"{ref}:latest"
    tag = f"{tagged_ref.rpartition(':')[2]}-{suffix}"
    if len(tag) > _MAX_TAG_LENGTH:
        raise UsageError(
            f"the cache's tag {tag!r} has more than {_MAX_TAG_LENGTH} characters",
            hint="give ref a shorter tag",
        )
    return f"{tagged_ref}-{suffix}"


_MAX_PARALLEL_PROBES = 8  # questions to a registry


_PROBE_TIMEOUT = 5.0  # that it has for an answer


def cache_exports(texts: Sequence[str], platforms: Sequence[Platform]) -> tuple[str, ...]:
    """Where one solve of these platforms exports to: one platform's scope, or the base of several."""
    specs = parse_cache_specs(texts, "--cache-to")
    if len(platforms) == 1:
        specs = tuple(spec.for_platform(platforms[0]) for spec in specs)
    return tuple(map(str, specs))


def image_caches(texts: Sequence[str], flag: str, name: str) -> tuple[str, ...]:
    """The caches of one of several images, which would replace each other's under one name."""
    return tuple(str(spec.with_suffix(name)) for spec in parse_cache_specs(texts, flag))


def cache_imports(
    texts: Sequence[str], platforms: Sequence[Platform], *, probe_registries: bool = False
) -> tuple[str, ...]:
    """Where a build of these platforms imports from: the base, and the scope of each platform.

    Of local folders only those that hold a cache, and with ``ask`` of registries too: each other one
    would be an error in BuildKit's progress. Where none does the base is left, for BuildKit to say that
    nothing is there.
    """
    scopes_by_spec = {
        spec: (spec, *(spec.for_platform(platform) for platform in platforms))
        for spec in parse_cache_specs(texts, "--cache-from")
    }
    candidates = list(dict.fromkeys(scope for group in scopes_by_spec.values() for scope in group))
    existing = _existing_caches(candidates, probe_registries=probe_registries)
    imports: dict[str, None] = {}
    for spec, group in scopes_by_spec.items():
        imports.update(dict.fromkeys(map(str, [scope for scope in group if scope in existing] or (spec,))))
    return tuple(imports)


def _existing_caches(specs: Sequence[CacheSpec], *, probe_registries: bool) -> set[CacheSpec]:
    """Those that hold a cache, or of which nobody knows; registries are asked all at once."""
    missing = {
        spec
        for spec in specs
        if spec.type == "local" and not (Path(spec.get("src")) / "index.json").is_file()
    }
    probed = [spec for spec in specs if spec.type == "registry"] if probe_registries else []
    if probed:
        with ThreadPoolExecutor(max_workers=_MAX_PARALLEL_PROBES) as pool:
            missing |= {
                spec
                for spec, is_missing in zip(probed, pool.map(_is_cache_missing, probed), strict=True)
                if is_missing
            }
    return set(specs) - missing


def _is_cache_missing(spec: CacheSpec) -> bool:
    """Whether the registry says that it has no such cache; BuildKit may reach one that does not answer us."""
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.registry.errors import ManifestUnknown
    from buildkit_tasks.oci.registry.options import RegistryOptions

    access = RegistryOptions(connect_timeout=_PROBE_TIMEOUT, read_timeout=_PROBE_TIMEOUT, max_wait=0)
    try:
        with open_registry(spec.get("ref"), options=access) as registry:
            registry.root_descriptor()
    except ManifestUnknown:
        return True
    except BuildkitTasksError:
        return False
    return False


# Values that would stand in the process table: buildx and BuildKit read them from their environments.
_CREDENTIAL_ATTRIBUTES = ("access_key_id", "secret_access_key", "session_token", "token", "account_key")


# What dockerd's own BuildKit has; with the graph store it exports inline only.
_DOCKER_DRIVER_TYPES = ("inline", "local", "registry", "gha")


def check_cache(cache_to: Sequence[str], cache_from: Sequence[str]) -> None:
    """Raise :class:`UsageError` for a cache that goes nowhere, destroys something or shows a secret."""
    for flag, texts in (("--cache-to", cache_to), ("--cache-from", cache_from)):
        for spec in parse_cache_specs(texts, flag):
            _check_spec(spec, flag)
    _check_combination(parse_cache_specs(cache_to, "--cache-to"))


def _check_combination(specs: Sequence[CacheSpec]) -> None:
    """Refuse a local cache beside another.

    BuildKit gives the client one manifest's digest for all of its exporters (``cache.manifest``), and buildx
    writes that into the folder's ``index.json``, whichever it is: the cache is then there and never found.
    """
    external_types = [spec.type for spec in specs if spec.type != "inline"]
    if len(external_types) > 1 and "local" in external_types:
        raise UsageError(
            "--cache-to type=local does not go together with another cache: buildx may name the other's"
            " manifest in the folder, where nothing then finds it",
            hint="give one --cache-to (an inline one may stand beside it), and build once more for the other",
        )


def _check_spec(spec: CacheSpec, flag: str) -> None:
    is_import = flag == "--cache-from"
    for name, _ in spec.attributes:
        if name in _CREDENTIAL_ATTRIBUTES:
            raise UsageError(
                f"{flag} type={spec.type} is given {name}, which everybody on this machine could read",
                hint="leave it out: buildx takes it from the environment (AWS_SECRET_ACCESS_KEY and others)",
            )
    if spec.type == "inline" and is_import:
        raise UsageError(
            "--cache-from type=inline reads nothing: an inline cache lies in the image it was built into",
            hint="--cache-from type=registry,ref=REGISTRY/NAME:TAG",
        )
    required = {"registry": "ref", "local": "src" if is_import else "dest"}.get(spec.type, "")
    if required and not spec.get(required):
        raise UsageError(f"{flag} type={spec.type} names no {required}", hint=f"add {required}=PLACE")
    if spec.type == "registry":
        _check_reference(spec.get("ref"), flag)
    if spec.type == "local" and not is_import:
        dest = Path(spec.get("dest"))
        check_destination(f"--cache-to {dest}", dest)
        if dest.exists() and not dest.is_dir():
            raise UsageError(f"--cache-to {dest} is a file, and a cache is a folder")


def _check_reference(ref: str, flag: str) -> None:
    safe_ref = redact_userinfo(ref)
    if safe_ref != ref:
        hint = f"docker login {safe_ref.rpartition('@')[2].partition('/')[0]}"
        raise UsageError(f"{flag} {safe_ref} has a user's name in it", hint=hint)
    from buildkit_tasks.oci.reference import Reference

    Reference.parse(ref)


def check_exporters(cache_to: Sequence[str], cache_from: Sequence[str], driver: str, store: str) -> None:
    """Refuse what the engine's own builder cannot do: it would say so late, or not at all."""
    if driver != "docker":
        return
    for flag, texts in (("--cache-to", cache_to), ("--cache-from", cache_from)):
        for spec in parse_cache_specs(texts, flag):
            if spec.type not in _DOCKER_DRIVER_TYPES:
                raise UsageError(
                    f"{flag} type={spec.type}: the engine's own builder has "
                    f"{', '.join(_DOCKER_DRIVER_TYPES)} only",
                    hint="--driver=docker-container",
                )
            if flag == "--cache-to" and spec.type != "inline" and store != "containerd":
                raise UsageError(
                    f"--cache-to type={spec.type} needs the containerd image store; this engine has the "
                    "graph store, which exports inline caches only",
                    hint="--driver=docker-container, --cache-to type=inline, or --engine=private",
                )


def cache_warnings(
    cache_to: Iterable[str], cache_from: Iterable[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """What buildx does with a cache without a word: it leaves GitHub's out where no runner is."""
    specs = (*parse_cache_specs(cache_to, "--cache-to"), *parse_cache_specs(cache_from, "--cache-from"))
    missing = {_missing_variable(spec, environ) for spec in specs if spec.type == "gha"} - {""}
    return tuple(f"cache type=gha: {name} is not set, so buildx leaves it out" for name in sorted(missing))


def _missing_variable(spec: CacheSpec, environ: Mapping[str, str]) -> str:
    """The first variable of a runner's that is needed for this cache and not there."""
    if not environ.get("ACTIONS_RUNTIME_TOKEN"):
        return "ACTIONS_RUNTIME_TOKEN"
    url_variables = ("ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL")  # of the service's two versions
    has_url = spec.get("url") or spec.get("url_v2") or any(environ.get(name) for name in url_variables)
    return "" if has_url else url_variables[0]
