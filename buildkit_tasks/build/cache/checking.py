"""Caches that go nowhere, destroy something, show a secret, or that a builder cannot make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.cache.spec import CacheSpec, read_caches
from buildkit_tasks.build.outputs import check_place
from buildkit_tasks.build.secrets import without_user
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["cache_notes", "check_cache", "check_exporters"]

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
