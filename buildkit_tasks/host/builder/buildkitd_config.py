"""Generate buildkitd.toml, the configuration of a builder's BuildKit daemons, from the settings.

The keys are documented in BuildKit's docs/buildkitd.toml.md. Mirrors are for docker.io, as in all
settings.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import TYPE_CHECKING

from buildkit_tasks.errors import SettingsError
from buildkit_tasks.system.files import expand_home

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildkit_tasks.config.settings import Settings

__all__ = ["has_buildkitd_settings", "render_buildkitd_toml"]

_HOST_PORT = r"(?:\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?"
_REGISTRY_PATTERN = re.compile(rf"{_HOST_PORT}\Z", re.ASCII)
_MIRROR_PATTERN = re.compile(rf"(?:(?P<scheme>https?)://)?(?P<host>{_HOST_PORT}(?:/[\w.-]+)*)\Z", re.ASCII)


def has_buildkitd_settings(settings: Settings) -> bool:
    """Return True if settings need a buildkitd.toml. Mirrors do not: our own pulls use them as well."""
    values = (settings.buildkitd_config, settings.plain_http, settings.parallelism, settings.builder_cache)
    return any(values)


def render_buildkitd_toml(settings: Settings) -> str:
    """Return the text of buildkitd.toml; empty if no setting needs one.

    Raise :class:`SettingsError` for a file that cannot be read, for settings that conflict with the
    file, and for an invalid registry or mirror.
    """
    lines = list(_render_lines(settings))
    if not settings.buildkitd_config:
        return "\n".join([*lines, ""]) if lines else ""
    conflicting = [key for key in ("plain_http", "parallelism", "builder_cache") if settings.is_explicit(key)]
    if conflicting:
        raise SettingsError(
            f"{', '.join(conflicting)} cannot be combined with buildkitd-config = "
            f"{settings.buildkitd_config!r}",
            hint="write them into that file",
        )
    try:
        text = expand_home(settings.buildkitd_config).read_text(encoding="utf-8")
        tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise SettingsError(f"buildkitd-config: {settings.buildkitd_config}: {error}") from error
    return text


def _render_lines(settings: Settings) -> Iterator[str]:
    if settings.parallelism or settings.builder_cache:
        yield "[worker.oci]"
    if settings.parallelism:
        yield f"  max-parallelism = {settings.parallelism}"
    if settings.builder_cache:
        yield "  gc = true"
        yield f'  maxUsedSpace = "{settings.builder_cache}MB"'
    plain_http = {_check_registry(text) for text in settings.plain_http}
    if settings.mirrors:
        mirrors = [_parse_mirror(text) for text in settings.mirrors]
        plain_http |= {host for scheme, host in mirrors if scheme == "http"}
        yield '[registry."docker.io"]'
        yield f"  mirrors = {json.dumps([host for _, host in mirrors])}"  # JSON's arrays are valid in TOML
    for registry in sorted(plain_http):
        yield f"[registry.{json.dumps(registry)}]"
        yield "  http = true"


def _check_registry(text: str) -> str:
    if not _REGISTRY_PATTERN.match(text):
        raise SettingsError(f"plain-http: {text!r} is not a valid registry", hint="write HOST or HOST:PORT")
    return text


def _parse_mirror(text: str) -> tuple[str, str]:
    match = _MIRROR_PATTERN.match(text.rstrip("/"))
    if match is None:
        raise SettingsError(f"mirrors: {text!r} is not a valid mirror", hint="write https://HOST[:PORT]")
    return match["scheme"] or "https", match["host"]
