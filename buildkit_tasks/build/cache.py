"""Build caches outside the builder: ``--cache-to`` and ``--cache-from``, with one scope per platform.

A cache is exported as one manifest under one name, and a later export under that name replaces it. Two CI
jobs that build one platform each would overwrite each other's cache. So each platform has a scope of its
own, derived from the *base*, which is the name that the user gives:

======== ================== ======================== ==================================
type     named by           base                     scope of linux/arm/v7
======== ================== ======================== ==================================
local    ``dest``, ``src``  ``cache``                ``cache/linux-arm-v7``
registry ``ref``            ``r.example/app:cache``  ``r.example/app:cache-linux-arm-v7``
gha      ``scope``          ``buildkit``             ``buildkit-linux-arm-v7``
======== ================== ======================== ==================================

======================================= ============ ==============================================
build                                   exports to   imports from
======================================= ============ ==============================================
several platforms, one node             the base     the base and the scope of each platform
one platform (a CI job)                 its scope    the base and its scope
several nodes: one build per platform   its scope    the base and its scope
======================================= ============ ==============================================

Why, as measured:

- One solve of several platforms exports one manifest with the layers and records of all of them: common
  layers are sent once.
- The base is always imported: a cache exported by buildx alone, or the inline cache of an image, is there.
- A builder of several nodes runs one solve on each, with the same ``--cache-to``, of which the last one
  would replace the others (https://github.com/docker/buildx/issues/1044). So each platform is a build of
  its own (:mod:`buildkit_tasks.build.multi_node`).
- BuildKit does not fail for a missing cache, nor for an unknown cache importer. The latter would be a
  cache that never helps, and is refused here.

An inline cache is part of the image and needs no scope. Other types (``s3``, ``azblob``) are passed on.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.outputs import check_destination
from buildkit_tasks.build.secrets import redact_userinfo
from buildkit_tasks.build.typed_option import TypedOption, parse_attributes
from buildkit_tasks.errors import BuildkitTasksError, UsageError
from buildkit_tasks.system.csv_fields import parse_csv_row

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
_MAX_PARALLEL_PROBES = 8
_PROBE_TIMEOUT = 5.0  # seconds that a registry has to answer
# buildx and BuildKit read these from the environment; as attributes they would be in the process table.
_CREDENTIAL_ATTRIBUTES = ("access_key_id", "secret_access_key", "session_token", "token", "account_key")
_DOCKER_DRIVER_TYPES = ("inline", "local", "registry", "gha")  # of the BuildKit in dockerd


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec(TypedOption):
    """One cache of ``--cache-to`` or ``--cache-from``."""

    @property
    def can_scope(self) -> bool:
        """Return True if each platform can have a scope: by type, and not named by its digest."""
        return self.type in _SCOPE_ATTRIBUTES and not self.get("digest") and "@" not in self.get("ref")

    def for_platform(self, platform: Platform) -> CacheSpec:
        """Return the scope of one platform. Raises :class:`UsageError` if its tag is too long."""
        return self.with_suffix(f"{platform.os}-{platform.slug}")

    def with_suffix(self, suffix: str) -> CacheSpec:
        """Return this cache under a longer name: a subfolder, tag or scope; unchanged if it has none."""
        if not self.can_scope:
            return self
        if self.type == "gha":
            return self.with_attribute("scope", f"{self.get('scope') or _DEFAULT_GHA_SCOPE}-{suffix}")
        if self.type == "registry":
            return self.with_attribute("ref", _append_to_tag(self.get("ref"), suffix))
        spec = self
        for name in _SCOPE_ATTRIBUTES["local"]:
            if self.get(name):
                spec = spec.with_attribute(name, str(Path(self.get(name)) / suffix))
        return spec


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


def parse_cache_specs(texts: Iterable[str], flag: str) -> tuple[CacheSpec, ...]:
    """Parse ``type=local,dest=x`` (CSV), or bare references, which mean type registry, as buildx does."""
    return tuple(spec for text in texts for spec in _parse_flag_value(text, flag))


def _parse_flag_value(text: str, flag: str) -> Iterator[CacheSpec]:
    label = f"{flag} {redact_userinfo(text)!r}"
    fields = parse_csv_row(text, label)
    if fields and not any("=" in item for item in fields):
        yield from (CacheSpec(type="registry", attributes=(("ref", ref),)) for ref in fields)
        return
    cache_type, attributes = parse_attributes(fields) or ("", ())
    if not cache_type:
        raise UsageError(f"{label} is neither type=TYPE,name=value,... nor an image reference")
    yield CacheSpec(type=cache_type, attributes=attributes)


def has_inline_cache(texts: Iterable[str]) -> bool:
    """Return True if a cache is exported into the image itself."""
    return any(spec.type == "inline" for spec in parse_cache_specs(texts, "--cache-to"))


def image_caches(texts: Sequence[str], flag: str, name: str) -> tuple[str, ...]:
    """Return the caches of one of several images, whose name makes them distinct."""
    return tuple(str(spec.with_suffix(name)) for spec in parse_cache_specs(texts, flag))


def cache_exports(texts: Sequence[str], platforms: Sequence[Platform]) -> tuple[str, ...]:
    """Return where one solve of these platforms exports to: a scope for one platform, else the base."""
    specs = parse_cache_specs(texts, "--cache-to")
    if len(platforms) == 1:
        specs = tuple(spec.for_platform(platforms[0]) for spec in specs)
    return tuple(map(str, specs))


def cache_imports(
    texts: Sequence[str], platforms: Sequence[Platform], *, probe_registries: bool = False
) -> tuple[str, ...]:
    """Return where a solve of these platforms imports from: the base, and the scope of each platform.

    BuildKit shows an error for each cache that is missing. Local folders without a cache are therefore left
    out, and with ``probe_registries`` references that do not exist. If nothing of a cache exists, its base
    stays, so that BuildKit reports it. For ``--cache-from=app:cache`` and amd64, arm64::

        app:cache  app:cache-linux-amd64  app:cache-linux-arm64    import
        exists     exists                 missing                  the first two
        missing    missing                exists                   the third
        missing    missing                missing                  the first
    """
    scopes_by_spec = {
        spec: (spec, *(spec.for_platform(platform) for platform in platforms))
        for spec in parse_cache_specs(texts, "--cache-from")
    }
    scopes = dict.fromkeys(scope for group in scopes_by_spec.values() for scope in group)
    missing = _missing_caches(list(scopes), probe_registries=probe_registries)
    imports = (
        str(scope)
        for spec, group in scopes_by_spec.items()
        for scope in [each for each in group if each not in missing] or [spec]
    )
    return tuple(dict.fromkeys(imports))


def _missing_caches(specs: Sequence[CacheSpec], *, probe_registries: bool) -> set[CacheSpec]:
    """Return the caches that certainly do not exist; registries are asked in parallel."""
    folders = [spec for spec in specs if spec.type == "local"]
    missing = {spec for spec in folders if not (Path(spec.get("src")) / "index.json").is_file()}
    probed = [spec for spec in specs if spec.type == "registry"] if probe_registries else []
    if probed:
        with ThreadPoolExecutor(max_workers=_MAX_PARALLEL_PROBES) as pool:
            answers = zip(probed, pool.map(_is_cache_missing, probed), strict=True)
            missing |= {spec for spec, is_missing in answers if is_missing}
    return missing


def _is_cache_missing(spec: CacheSpec) -> bool:
    """Return True if the registry answers that it has no such manifest.

    After any other error BuildKit decides: it may reach a registry that we do not.
    """
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.registry.errors import ManifestUnknown
    from buildkit_tasks.oci.registry.options import RegistryOptions

    options = RegistryOptions(connect_timeout=_PROBE_TIMEOUT, read_timeout=_PROBE_TIMEOUT, max_wait=0)
    try:
        with open_registry(spec.get("ref"), options=options) as registry:
            registry.root_descriptor()
    except ManifestUnknown:
        return True
    except BuildkitTasksError:
        return False
    return False


def check_cache(cache_to: Sequence[str], cache_from: Sequence[str]) -> None:
    """Raise :class:`UsageError` for a cache without a name, or one that destroys data or shows a secret."""
    exports = parse_cache_specs(cache_to, "--cache-to")
    for spec in exports:
        _check_spec(spec, "--cache-to", required={"registry": "ref", "local": "dest"})
        if spec.type == "local":
            _check_cache_folder(Path(spec.get("dest")))
    _check_combination(exports)
    for spec in parse_cache_specs(cache_from, "--cache-from"):
        if spec.type == "inline":
            raise UsageError(
                "--cache-from type=inline imports nothing: an inline cache is imported from its image",
                hint="--cache-from type=registry,ref=REGISTRY/NAME:TAG",
            )
        _check_spec(spec, "--cache-from", required={"registry": "ref", "local": "src"})


def _check_spec(spec: CacheSpec, flag: str, required: Mapping[str, str]) -> None:
    for name, _ in spec.attributes:
        if name in _CREDENTIAL_ATTRIBUTES:
            raise UsageError(
                f"{flag} type={spec.type} has the attribute {name}, which any user of this machine can read",
                hint="omit it: buildx reads it from the environment (AWS_SECRET_ACCESS_KEY and others)",
            )
    attribute = required.get(spec.type, "")
    if attribute and not spec.get(attribute):
        value = "REGISTRY/NAME:TAG" if attribute == "ref" else "FOLDER"
        raise UsageError(f"{flag} type={spec.type} has no {attribute}", hint=f"add {attribute}={value}")
    if spec.type == "registry":
        _check_reference(spec.get("ref"), flag)


def _check_reference(ref: str, flag: str) -> None:
    safe_ref = redact_userinfo(ref)
    if safe_ref != ref:
        hint = f"docker login {safe_ref.rpartition('@')[2].partition('/')[0]}"
        raise UsageError(f"{flag} {safe_ref} contains a user name", hint=hint)
    from buildkit_tasks.oci.reference import Reference

    Reference.parse(ref)


def _check_cache_folder(dest: Path) -> None:
    check_destination(f"--cache-to {dest}", dest)
    if dest.exists() and not dest.is_dir():
        raise UsageError(f"--cache-to {dest} is a file, but a local cache is a folder")


def _check_combination(exports: Sequence[CacheSpec]) -> None:
    """Raise :class:`UsageError` for a local cache together with another exported one.

    BuildKit reports one manifest's digest for all cache exporters of a solve (``cache.manifest``). buildx
    writes it to the folder's ``index.json``, even if it is another exporter's: then the cache is in the
    folder but is never found.
    """
    external_types = [spec.type for spec in exports if spec.type != "inline"]
    if len(external_types) > 1 and "local" in external_types:
        raise UsageError(
            "--cache-to type=local cannot be combined with another cache: buildx may write the other one's"
            " digest to the folder, whose cache is then never found",
            hint="give one --cache-to (and type=inline if you like), and build again for the other one",
        )


def check_exporters(cache_to: Sequence[str], cache_from: Sequence[str], driver: str, store: str) -> None:
    """Raise :class:`UsageError` for what the engine's own builder does not support.

    BuildKit would report it at the end of the build, or not at all.
    """
    if driver != "docker":
        return
    exports, imports = (
        parse_cache_specs(cache_to, "--cache-to"),
        parse_cache_specs(cache_from, "--cache-from"),
    )
    for flag, specs in (("--cache-to", exports), ("--cache-from", imports)):
        for spec in specs:
            if spec.type not in _DOCKER_DRIVER_TYPES:
                raise UsageError(
                    f"{flag} type={spec.type}: the engine's own builder supports only "
                    f"{', '.join(_DOCKER_DRIVER_TYPES)}",
                    hint="inv setup-builder --driver=docker-container --recreate",
                )
    for spec in exports:
        if spec.type != "inline" and store != "containerd":
            raise UsageError(
                f"--cache-to type={spec.type} needs the containerd image store; this engine has the "
                "graph store, which exports only inline caches",
                hint="--engine=private",
            )


def cache_warnings(
    cache_to: Iterable[str], cache_from: Iterable[str], environ: Mapping[str, str]
) -> tuple[str, ...]:
    """Return a warning for each variable without which buildx silently skips a cache of GitHub Actions."""
    specs = (*parse_cache_specs(cache_to, "--cache-to"), *parse_cache_specs(cache_from, "--cache-from"))
    missing = {_missing_variable(spec, environ) for spec in specs if spec.type == "gha"} - {""}
    return tuple(f"cache type=gha: {name} is not set, so buildx skips it" for name in sorted(missing))


def _missing_variable(spec: CacheSpec, environ: Mapping[str, str]) -> str:
    """Return the first variable of GitHub's runner that this cache needs and that is not set, or ""."""
    if not environ.get("ACTIONS_RUNTIME_TOKEN"):
        return "ACTIONS_RUNTIME_TOKEN"
    url_variables = ("ACTIONS_RESULTS_URL", "ACTIONS_CACHE_URL")  # of the service's versions 2 and 1
    has_url = spec.get("url") or spec.get("url_v2") or any(environ.get(name) for name in url_variables)
    return "" if has_url else url_variables[0]
