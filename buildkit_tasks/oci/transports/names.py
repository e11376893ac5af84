"""Explain names of images that are neither a transport's name, nor a path, nor a registry reference."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import MalformedImage, UsageError
from buildkit_tasks.oci.reference import Reference, check_no_login

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ARCHIVE_SUFFIXES", "TRANSPORTS", "check_forgotten_suffix", "check_prefix"]

ARCHIVE_SUFFIXES = (".tar", ".oci", ".tgz", ".gz", ".zst")
TRANSPORTS = ("docker://", "docker-daemon:", "docker-archive:", "oci:", "oci-archive:", "dir:")

# Prefixes of other tools, and buildx's types of outputs.
_ALIASES = {
    "docker": ("docker-daemon:", "docker://"),
    "registry": ("docker://",),
    "image": ("docker-daemon:", "docker://"),
    "docker-image": ("docker://",),
    "oci-layout": ("oci:",),
    "local": ("dir:",),
    "tar": ("oci-archive:", "docker-archive:"),
    "http": ("docker://",),
    "https": ("docker://",),
}
# A misspelt `docker-daemon:app` is a reference, too: the tag `app` of the image `docker-deamon`.
_LONG_NAMES = tuple(each.rstrip(":") for each in TRANSPORTS if "-" in each)
_CUTOFF = 0.85


def check_prefix(name: str) -> None:
    """Raise :class:`UsageError` for a name with a prefix that is none of the transports, with what was meant.

    Nothing exists at the path ``name``.
    """
    check_no_login(name)
    prefix, colon, rest = name.partition(":")
    if not colon or (_is_reference(name) and not _misspelt_transport(prefix)):
        return
    prefixes = _ALIASES.get(prefix.lower()) or _nearest_transports(prefix)
    rest = rest.removeprefix("//").strip("/")
    if not prefixes and "://" not in name and _is_reference(rest):
        prefixes = _ALIASES["docker"]
    if prefixes and rest:
        raise UsageError(
            f"unknown image name {name!r}", hint=" or ".join(f"{each}{rest}" for each in prefixes)
        )
    if "://" in name:
        raise UsageError(
            f"{name}: transport {prefix!r} is not supported", hint=f"use one of {', '.join(TRANSPORTS)}"
        )


def _nearest_transports(prefix: str) -> Sequence[str]:
    lowered = prefix.lower()
    exact = [each for each in TRANSPORTS if each.rstrip(":/") == lowered]
    return exact or _misspelt_transport(lowered)


def _misspelt_transport(prefix: str) -> list[str]:
    return [f"{each}:" for each in difflib.get_close_matches(prefix, _LONG_NAMES, n=1, cutoff=_CUTOFF)]


def check_forgotten_suffix(name: str) -> None:
    """Raise :class:`UsageError` for ``dist/app`` in a folder, instead of asking Docker Hub for that image.

    Nothing exists at the path ``name``.
    """
    folder, slash, _ = name.partition("/")
    if ":" in name or "@" in name or not _is_reference(name):
        return
    files = [f"{name}{suffix}" for suffix in ARCHIVE_SUFFIXES if Path(f"{name}{suffix}").is_file()]
    if files:
        raise UsageError(f"{name} does not exist, but {files[0]} does", hint=files[0])
    if slash and Path(folder).is_dir():
        raise UsageError(f"there is no {name} in the folder {folder}", hint=f"docker://{name} for a registry")


def _is_reference(text: str) -> bool:
    try:
        Reference.parse(text)
    except (UsageError, MalformedImage):
        return False
    return True
