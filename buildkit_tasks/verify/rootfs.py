"""Check a platform's root file system: the programs that it starts, and every binary in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from buildkit_tasks.oci.layers.entrypoint import find_programs
from buildkit_tasks.report.model import Check
from buildkit_tasks.verify.binaries import check_binaries, check_loaded_isa, check_machines, compile_globs
from buildkit_tasks.verify.dynamic_linking import check_dynamic_linking
from buildkit_tasks.verify.entrypoint import check_completeness, check_program
from buildkit_tasks.verify.parity import ParityChecker

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from buildkit_tasks.oci.layers.rootfs import ResolvedPath, RootFs
    from buildkit_tasks.oci.model import ImageConfig
    from buildkit_tasks.platforms import Platform

__all__ = ["RootfsVerifier", "VerifyOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """Options of a verification besides the expected platforms.

    ``allow_foreign`` are globs of paths where binaries of another machine, or with a larger instruction
    set, are accepted. ``parity`` is ``warn``, ``fail``, or ``ignore`` (also called ``off``): what a
    difference between platforms means. With ``hosts`` it is only verified that the image starts on these;
    the values are the number of a cluster's nodes of that platform, or 0.
    """

    allow_foreign: tuple[str, ...] = ()
    parity: str = "warn"
    hosts: Mapping[Platform, int] = field(default_factory=dict)


class RootfsVerifier:
    """Checks the root file systems of one image's platforms, one after the other."""

    def __init__(self, options: VerifyOptions) -> None:
        self._options = options
        self._is_allowed = compile_globs(options.allow_foreign)
        self._parity_checker = (
            ParityChecker(is_failure=options.parity == "fail") if options.parity in ("warn", "fail") else None
        )

    def check_platform(
        self, platform: Platform, config: ImageConfig | None, rootfs: RootFs
    ) -> Iterator[Check]:
        """Yield every check of one platform; if the options have hosts, only whether it starts there.

        A local output has no ``config``.
        """
        loaded: list[ResolvedPath] = []
        entrypoint_checks = tuple(self._check_programs(platform, config, rootfs, loaded))
        yield from entrypoint_checks
        already_reported = frozenset(
            check.path for check in entrypoint_checks if not check.ok and check.name == "entrypoint-arch"
        )
        if self._options.hosts:
            yield from check_machines(platform, rootfs, self._is_allowed, already_reported)
            yield from check_loaded_isa(platform, loaded)
            return
        yield from check_binaries(platform, rootfs, self._is_allowed, already_reported)
        if self._parity_checker is not None:
            yield from self._parity_checker.check_platform(platform, config, rootfs)

    def _check_programs(
        self, platform: Platform, config: ImageConfig | None, rootfs: RootFs, loaded: list[ResolvedPath]
    ) -> Iterator[Check]:
        """Yield the checks of the programs that the image starts; add what they load to ``loaded``."""
        programs = find_programs(config, rootfs) if config is not None else ()
        for program in programs:
            checks = tuple(check_program(platform, program))
            if all(check.ok for check in checks):
                checks = tuple(check_completeness(platform, program)) or checks
            yield from checks
            if program.resolved is not None and config is not None and all(check.ok for check in checks):
                linking_checks, files = check_dynamic_linking(platform, program.resolved, rootfs, config.env)
                yield from linking_checks
                loaded += files
        if not programs:
            reason = "no ENTRYPOINT or CMD" if config is not None else "a local output has no ENTRYPOINT"
            message = f"{reason}: nothing to check"
            needs_command = config is not None and bool(self._options.hosts)
            message += "; a pod needs `command:`, or it does not start" if needs_command else ""
            yield Check(name="entrypoint-arch", ok=True, warning=needs_command, message=message)
