"""Check the index against the configurations and the expected platforms."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from buildkit_tasks.hints import translate_commands
from buildkit_tasks.platforms import MACHINES, Platform
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.oci.model import Descriptor, ImageConfig

__all__ = [
    "check_config_platform",
    "check_expected_platform",
    "check_missing_content",
    "check_missing_platform",
    "check_unique_entry",
    "join_platforms",
]

_MACHINES = {machine.architecture: machine for machine in MACHINES}


def check_missing_platform(expected: Platform, present: Sequence[Platform]) -> Check:
    """Return the failing check of an expected platform that the image does not have."""
    present_text = join_platforms(present) or "no platform"
    similar = next((platform for platform in present if _is_same_machine(platform, expected)), None)
    hint = f"; {_describe_variants(expected, similar)}" if similar else ""
    message = f"{expected} is not in the image, which holds {present_text}{hint}"
    return Check(name="present", ok=False, expected=str(expected), actual=present_text, message=message)


def check_missing_content(platform: Platform, subject: str, *, is_requested: bool) -> Check:
    """Return the check of a platform whose content an engine lacks: a failure if it was requested."""
    reference = subject.removeprefix("docker-daemon:")
    return Check(
        name="present",
        ok=not is_requested,
        warning=not is_requested,
        expected=str(platform),
        message=f"{platform} is in the index, but its content is not in this engine",
        hint=translate_commands(f"docker pull --platform {platform} {reference}"),
    )


def check_unique_entry(platform: Platform, entries: Sequence[tuple[Platform, Descriptor]]) -> Check:
    """Check that the platform is listed once; for Windows, once for each OS version."""
    entries_by_version = Counter(entry.os_version for each, entry in entries if each == platform)
    count = max(entries_by_version.values())
    message = f"{platform} is in the index {count} times: which one runs is not defined" if count > 1 else ""
    name = str(platform)
    return Check(name="present", ok=count == 1, expected=name, actual=name, message=message)


def check_expected_platform(platform: Platform, expected: Sequence[Platform]) -> Check:
    """Check that the platform is one of the expected ones, if there are any."""
    ok = not expected or platform in expected
    expected_text = join_platforms(expected) if expected else "any"
    message = "" if ok else f"{platform} is in the image, but was not expected; expected: {expected_text}"
    return Check(name="expected", ok=ok, expected=expected_text, actual=str(platform), message=message)


def check_config_platform(platform: Platform, entry: Descriptor, config: ImageConfig) -> Check:
    """Check that the index entry and the configuration state the same platform."""
    config_platform, ok, message = config.platform, config.platform == platform, ""
    if entry.platform is None:
        message = "no index states a platform; this is the one of the config"
    elif not ok and _is_same_machine(platform, config_platform) and not config.variant:
        # OCI image specification, "Image Configuration": the variant is optional, so this is no conflict.
        ok, message = True, f"the index says {platform}; the config states no variant"
    elif not ok:
        is_variant = _is_same_machine(platform, config_platform)
        difference = f": {_describe_variants(platform, config_platform)}" if is_variant else ""
        message = f"the index says {platform}, the config says {config_platform}{difference}"
    return Check(
        name="config-platform", ok=ok, expected=str(platform), actual=str(config_platform), message=message
    )


def _is_same_machine(first: Platform, second: Platform) -> bool:
    return (first.os, first.architecture) == (second.os, second.architecture)


def _describe_variants(first: Platform, second: Platform) -> str:
    """Return how two variants of one architecture differ; the table lists them oldest first."""
    machine = _MACHINES.get(first.architecture)
    known_variants = [level.name for level in machine.variants] if machine else []
    variants = [_variant_name(platform) for platform in (first, second)]
    text = f"the variants differ, {variants[0]} against {variants[1]}"
    if not set(variants) <= set(known_variants):
        return text
    older, newer = sorted(variants, key=known_variants.index)
    return f"{text}; programs for {newer} may use instructions that a machine of {older} does not have"


def _variant_name(platform: Platform) -> str:
    machine = _MACHINES.get(platform.architecture)
    return platform.variant or (machine.implied_variant if machine else "") or "none"


def join_platforms(platforms: Iterable[Platform]) -> str:
    """Return the names, separated by commas."""
    return ", ".join(str(platform) for platform in platforms)
