"""What an index and the configurations say: the exact platforms, and nothing that contradicts itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

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

PlatformEntry = tuple[Platform, "Descriptor"]


def check_missing_platform(expected: Platform, present: Sequence[Platform]) -> Check:
    """The failing check of a platform that the image, which has those ``found``, does not have."""
    present_text = join_platforms(present) or "no platform"
    similar = [platform for platform in present if _is_same_machine(platform, expected)]
    hint = f"; {_describe_variants(expected, similar[0])}" if similar else ""
    message = f"{expected} is not in the image, which holds {present_text}{hint}"
    return Check(name="present", ok=False, expected=str(expected), actual=present_text, message=message)


def check_missing_content(platform: Platform, subject: str, *, is_requested: bool) -> Check:
    """The check of a platform whose content an engine does not have: a failure if it was asked for."""
    reference = subject.removeprefix("docker-daemon:")
    message = (
        f"{platform} is in the index, but its content is not in this engine\n"
        f"try: docker pull --platform {platform} {reference}"
    )
    return Check(
        name="present", ok=not is_requested, warning=not is_requested, expected=str(platform), message=message
    )


def check_unique_entry(platform: Platform, entries: Sequence[PlatformEntry]) -> Check:
    """The platform is in the index once; Windows may name one several times, for its versions."""
    entries_by_version = Counter(entry.os_version for each, entry in entries if each == platform)
    count = max(entries_by_version.values())
    message = f"{platform} is in the index {count} times: which one runs is chance" if count > 1 else ""
    name = str(platform)
    return Check(name="present", ok=count == 1, expected=name, actual=name, message=message)


def check_expected_platform(platform: Platform, expected: Sequence[Platform]) -> Check:
    """The platform is one of those asked for, where any were."""
    ok = not expected or platform in expected
    expected_text = join_platforms(expected) if expected else "any"
    message = "" if ok else f"{platform} is in the image, but was not expected; expected: {expected_text}"
    return Check(name="expected", ok=ok, expected=expected_text, actual=str(platform), message=message)


def check_config_platform(platform: Platform, entry: Descriptor, config: ImageConfig) -> Check:
    """The index's entry and the configuration name the same platform; each difference in words."""
    config_platform, ok, message = config.platform, config.platform == platform, ""
    if entry.platform is None:
        message = "no index states a platform: this is the config's own word"
    elif not ok and _is_same_machine(platform, config_platform) and not config.variant:
        # The specification lets a config leave its variant out: that contradicts nothing.
        ok, message = True, f"the index says {platform}; the config states no variant"
    elif not ok:
        difference = (
            f": {_describe_variants(platform, config_platform)}"
            if _is_same_machine(platform, config_platform)
            else ""
        )
        message = f"the index says {platform}, the config says {config_platform}{difference}"
    return Check(
        name="config-platform", ok=ok, expected=str(platform), actual=str(config_platform), message=message
    )


def _is_same_machine(first: Platform, second: Platform) -> bool:
    return (first.os, first.architecture) == (second.os, second.architecture)


def _describe_variants(first: Platform, second: Platform) -> str:
    """Say how two variants of one architecture differ; the table lists them oldest first."""
    known_variants = (
        [level.name for level in _MACHINES[first.architecture].variants]
        if first.architecture in _MACHINES
        else []
    )
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
    """The names, with commas."""
    return ", ".join(str(platform) for platform in platforms)
