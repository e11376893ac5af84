"""What one platform's root file system holds: what it starts, and every binary in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.entrypoint import programs_of
from buildkit_tasks.report.model import Check
from buildkit_tasks.verify.binaries import binary_checks, compile_globs, needs_checks
from buildkit_tasks.verify.dynamic_linking import start_checks
from buildkit_tasks.verify.entrypoint import program_checks
from buildkit_tasks.verify.parity import Parity

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.oci.layers.rootfs import Found, RootFs
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Platform

__all__ = ["Contents", "Rules"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is asked of an image beyond its platforms.

    ``allow_foreign`` are globs of paths that may hold binaries of other machines or of a larger
    instruction set. ``parity`` is what a difference between platforms is: ``warn``, ``fail`` or
    ``off``. ``hosts`` narrow the question to whether the image starts on these, each with the number
    of a cluster's nodes of that kind, or 0.
    """

    allow_foreign: tuple[str, ...] = ()
    parity: str = "warn"
    hosts: Mapping[Platform, int] = field(default_factory=dict)


class Contents:
    """Judges the file systems of one image's platforms, one after the other."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._allowed = compile_globs(rules.allow_foreign)
        self._parity = Parity(fails=rules.parity == "fail") if rules.parity != "off" else None

    def checks(self, platform: Platform, config: ImageConfig | None, rootfs: RootFs) -> Iterator[Check]:
        """Every check of one platform; with hosts in the rules only whether it starts there."""
        loaded: list[Found] = []
        started = tuple(self._programs(platform, config, rootfs, loaded))
        yield from started
        if self._rules.hosts:
            yield from needs_checks(platform, loaded)
            return
        told = frozenset(check.path for check in started if not check.ok and check.name == "entrypoint-arch")
        yield from binary_checks(platform, rootfs, self._allowed, told)
        if self._parity is not None:
            yield from self._parity.checks(platform, config, rootfs)

    def _programs(
        self, platform: Platform, config: ImageConfig | None, rootfs: RootFs, loaded: list[Found]
    ) -> Iterator[Check]:
        programs = programs_of(config, rootfs) if config is not None else ()
        for program in programs:
            checks = tuple(program_checks(platform, program))
            yield from checks
            if program.found is not None and config is not None and all(check.ok for check in checks):
                starts, found = start_checks(platform, program.found, rootfs, config.env)
                yield from starts
                loaded += found
        if not programs:
            what = "no ENTRYPOINT or CMD" if config is not None else "a local output names no ENTRYPOINT"
            yield Check(name="entrypoint-arch", ok=True, message=f"{what}: nothing to check")
