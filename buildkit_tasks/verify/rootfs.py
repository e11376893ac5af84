"""What one platform's root file system holds: what it starts, and every binary in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.entrypoint import find_programs
from buildkit_tasks.report.model import Check
from buildkit_tasks.verify.binaries import check_binaries, check_loaded_isa, compile_globs
from buildkit_tasks.verify.dynamic_linking import check_dynamic_linking
from buildkit_tasks.verify.entrypoint import check_program
from buildkit_tasks.verify.parity import ParityChecker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.oci.layers.rootfs import ResolvedPath, RootFs
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Platform

__all__ = ["RootfsVerifier", "VerifyOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What is asked of an image beyond its platforms.

    ``allow_foreign`` are globs of paths that may hold binaries of other machines or of a larger
    instruction set. ``parity`` is what a difference between platforms is: ``warn``, ``fail`` or
    ``off``. ``hosts`` narrow the question to whether the image starts on these, each with the number
    of a cluster's nodes of that kind, or 0.
    """

    allow_foreign: tuple[str, ...] = ()
    parity: str = "warn"
    hosts: Mapping[Platform, int] = field(default_factory=dict)


class RootfsVerifier:
    """Judges the file systems of one image's platforms, one after the other."""

    def __init__(self, options: VerifyOptions) -> None:
        self._options = options
        self._is_allowed = compile_globs(options.allow_foreign)
        self._parity_checker = (
            ParityChecker(is_failure=options.parity == "fail") if options.parity != "off" else None
        )

    def check_platform(
        self, platform: Platform, config: ImageConfig | None, rootfs: RootFs
    ) -> Iterator[Check]:
        """Every check of one platform; with hosts in the rules only whether it starts there."""
        loaded: list[ResolvedPath] = []
        entrypoint_checks = tuple(self._check_programs(platform, config, rootfs, loaded))
        yield from entrypoint_checks
        if self._options.hosts:
            yield from check_loaded_isa(platform, loaded)
            return
        already_reported = frozenset(
            check.path for check in entrypoint_checks if not check.ok and check.name == "entrypoint-arch"
        )
        yield from check_binaries(platform, rootfs, self._is_allowed, already_reported)
        if self._parity_checker is not None:
            yield from self._parity_checker.check_platform(platform, config, rootfs)

    def _check_programs(
        self, platform: Platform, config: ImageConfig | None, rootfs: RootFs, loaded: list[ResolvedPath]
    ) -> Iterator[Check]:
        programs = find_programs(config, rootfs) if config is not None else ()
        for program in programs:
            checks = tuple(check_program(platform, program))
            yield from checks
            if program.resolved is not None and config is not None and all(check.ok for check in checks):
                linking_checks, files = check_dynamic_linking(platform, program.resolved, rootfs, config.env)
                yield from linking_checks
                loaded += files
        if not programs:
            reason = "no ENTRYPOINT or CMD" if config is not None else "a local output names no ENTRYPOINT"
            yield Check(name="entrypoint-arch", ok=True, message=f"{reason}: nothing to check")
