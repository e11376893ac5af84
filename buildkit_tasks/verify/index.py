"""What an index and the configurations say: the exact platforms, and nothing that contradicts itself."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from buildkit_tasks.platforms import MACHINES, Platform
from buildkit_tasks.report.model import Check

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.oci.model import Descriptor, ImageConfig

__all__ = ["absent_check", "expected_check", "missing_check", "names_of", "present_check", "stated_check"]

_ROWS = {machine.architecture: machine for machine in MACHINES}

Found = tuple[Platform, "Descriptor"]


def missing_check(wanted: Platform, found: Sequence[Platform]) -> Check:
    """The failing check of a platform that the image, which has those ``found``, does not have."""
    held = names_of(found) or "no platform"
    near = [platform for platform in found if _same_machine(platform, wanted)]
    why = f"; {_variants_text(wanted, near[0])}" if near else ""
    message = f"{wanted} is not in the image, which holds {held}{why}"
    return Check(name="present", ok=False, expected=str(wanted), actual=held, message=message)


def absent_check(platform: Platform, subject: str, *, asked: bool) -> Check:
    """The check of a platform whose content an engine does not have: a failure if it was asked for."""
    reference = subject.removeprefix("docker-daemon:")
    message = (
        f"{platform} is in the index, but its content is not in this engine\n"
        f"next: docker pull --platform {platform} {reference}"
    )
    return Check(name="present", ok=not asked, warning=not asked, expected=str(platform), message=message)


def present_check(platform: Platform, found: Sequence[Found]) -> Check:
    """The platform is in the index once; Windows may name one several times, for its versions."""
    versions = Counter(entry.os_version for each, entry in found if each == platform)
    count = max(versions.values())
    message = f"{platform} is in the index {count} times: which one runs is chance" if count > 1 else ""
    name = str(platform)
    return Check(name="present", ok=count == 1, expected=name, actual=name, message=message)


def expected_check(platform: Platform, expected: Sequence[Platform]) -> Check:
    """The platform is one of those asked for, where any were."""
    ok = not expected or platform in expected
    wanted = names_of(expected) if expected else "any"
    message = "" if ok else f"{platform} is in the image, but was not expected; expected: {wanted}"
    return Check(name="expected", ok=ok, expected=wanted, actual=str(platform), message=message)


def stated_check(platform: Platform, entry: Descriptor, config: ImageConfig) -> Check:
    """The index's entry and the configuration name the same platform; each difference in words."""
    stated, ok, message = config.platform, config.platform == platform, ""
    if entry.platform is None:
        message = "no index states a platform: this is the config's own word"
    elif not ok and _same_machine(platform, stated) and not config.variant:
        # The specification lets a config leave its variant out: that contradicts nothing.
        ok, message = True, f"the index says {platform}; the config states no variant"
    elif not ok:
        why = f": {_variants_text(platform, stated)}" if _same_machine(platform, stated) else ""
        message = f"the index says {platform}, the config says {stated}{why}"
    return Check(name="config-platform", ok=ok, expected=str(platform), actual=str(stated), message=message)


def _same_machine(one: Platform, other: Platform) -> bool:
    return (one.os, one.architecture) == (other.os, other.architecture)


def _variants_text(one: Platform, other: Platform) -> str:
    """Say how two variants of one architecture differ; the table lists them oldest first."""
    names = [row.name for row in _ROWS[one.architecture].variants] if one.architecture in _ROWS else []
    pair = [_variant(platform) for platform in (one, other)]
    text = f"the variants differ, {pair[0]} against {pair[1]}"
    if not set(pair) <= set(names):
        return text
    old, new = sorted(pair, key=names.index)
    return f"{text}; programs for {new} may use instructions that a machine of {old} does not have"


def _variant(platform: Platform) -> str:
    row = _ROWS.get(platform.architecture)
    return platform.variant or (row.implied_variant if row else "") or "none"


def names_of(platforms: Iterable[Platform]) -> str:
    """The names, with commas."""
    return ", ".join(str(platform) for platform in platforms)
