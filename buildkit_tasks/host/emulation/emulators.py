"""QEMU and its handlers: find out what runs here, register what is missing, prove it by running.

The probe decides. Whatever an installer's status or the handler table may say, a platform runs here
when its tiny program has been run and has ended with the status that only it can end with.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder
from buildkit_tasks.errors import (
    BuildkitTasksError,
    DeadlineExceeded,
    EmulatorError,
)
from buildkit_tasks.host.emulation.binfmt import Binfmt, Handler
from buildkit_tasks.host.emulation.container_probe import install_with_image, runs_in_containers
from buildkit_tasks.host.emulation.qemu import Qemu, qemu_version
from buildkit_tasks.platforms import Machine, Platform, native_platform
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, probe_program
from buildkit_tasks.report.model import PlatformSetup
from buildkit_tasks.system.command import Call, Runner
from buildkit_tasks.system.lock import only_one

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.system.notify import Tell

__all__ = ["Emulators", "probe", "require_emulators", "with_versions"]

_PROBE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Emulators:
    """What is needed to look after the emulators of one engine."""

    engine: Engine | None
    settings: Settings
    run: Runner
    tell: Tell

    @classmethod
    def here(cls, settings: Settings, run: Runner, tell: Tell) -> Emulators:
        """The emulators of this very kernel, whether or not an engine runs on it."""
        return cls(engine=None, settings=settings, run=run, tell=tell)

    @property
    def _remote(self) -> Engine | None:
        """The engine, if its kernel is another one."""
        return self.engine if self.engine is not None and not self.engine.local else None

    @cached_property
    def table(self) -> Binfmt:
        """The kernel's handlers, with the ledger of those that we added."""
        return Binfmt(run=self.run, ledger=cache_folder(self.settings) / "binfmt.json")

    def inspect(self, platforms: Sequence[Platform]) -> tuple[PlatformSetup, ...]:
        """Run every platform's probe and say how it runs; changes nothing on a local engine."""
        if self._remote is not None:
            failures = runs_in_containers(self._remote, platforms, self.run)
            native = self._remote.native
            return tuple(_remote_row(platform, native, words) for platform, words in failures.items())
        failures_here = probe((platform.machine for platform in platforms), self.settings, self.run)
        return tuple(self._row(platform, failures_here[platform.architecture]) for platform in platforms)

    def ensure(self, platforms: Sequence[Platform], *, recreate: bool = False) -> tuple[PlatformSetup, ...]:
        """Register what is missing, then :meth:`inspect`; a row's ``runs`` is False if it still fails.

        Handlers that work are kept. One that is there and does not work is somebody else's: it is
        replaced only with ``recreate``.
        """
        if self._remote is None and self.settings.emulators != "none":
            self._show_table()
        rows = self.inspect(platforms)
        failing = [row for row in rows if not row.runs]
        hopeless = not recreate and all(row.handler for row in failing)
        if hopeless or self.settings.emulators == "none":
            return rows
        broken = [Platform.parse(row.platform) for row in failing]
        if self._remote is None:
            self._register(broken, recreate=recreate)
        else:
            self._install_image(broken)
        return self.inspect(platforms)

    def _show_table(self) -> None:
        """Mount the table: handlers work unseen, and what runs a program could not be told."""
        if not self.table.mounted and os.geteuid() == 0:
            with contextlib.suppress(EmulatorError):  # it matters only if a platform does not run
                self.table.mount()

    def _register(self, broken: Sequence[Platform], *, recreate: bool) -> None:
        lock = cache_folder(self.settings) / ".binfmt.lock"
        with only_one(lock, dry_run=self.run.dry_run):
            self.table.mount()
            self._register_each(broken, recreate=recreate)

    def _register_each(self, broken: Sequence[Platform], *, recreate: bool) -> None:
        machines = {platform.architecture: platform.machine for platform in broken}
        for machine in machines.values():
            handlers = [each for each in self.table.handlers() if each.matches(machine)]
            if handlers and not recreate:
                continue
            # Had before anything is removed: a handler without F still serves the host itself.
            program = None if self.settings.emulators == "image" else self._qemu(machine)
            for handler in handlers:
                self.tell(f"removing handler {handler.name}, which does not work")
                self.table.remove(handler)
            self._add(machine, program)

    def _add(self, machine: Machine, program: Path | None) -> None:
        """Register one architecture, with the binfmt image where there is no program for it."""
        if program is not None:
            self.tell(f"registering {program} for linux/{machine.architecture}")
            self.table.register(machine, program)
        elif self.settings.emulators != "host":
            self._install_image([Platform("linux", machine.architecture)])

    def _qemu(self, machine: Machine) -> Path | None:
        return Qemu(settings=self.settings, run=self.run, tell=self.tell).find(machine)

    def _install_image(self, platforms: Sequence[Platform]) -> None:
        if self.engine is None:
            return
        self.tell("registering emulators with the tonistiigi/binfmt image")
        complaint = install_with_image(self.engine, platforms, self.run)
        if complaint:
            self.tell(f"tonistiigi/binfmt: {complaint}")

    def _row(self, platform: Platform, failure: str) -> PlatformSetup:
        handler = self.table.winner(platform.machine)
        if handler is None or not (handler.enabled or failure):
            # Unseen handlers may be at work for any machine but this one.
            native = self.table.mounted or platform.machine is native_platform().machine
            message = f"no emulator is registered for it ({failure})" if failure else ""
            return PlatformSetup(
                platform=str(platform), native=native and not failure, runs=not failure, message=message
            )
        message = _fault(handler, failure)
        return PlatformSetup(
            platform=str(platform),
            native=False,
            handler=handler.name,
            interpreter=handler.interpreter,
            flags=handler.flags,
            runs=not message,
            message=message,
        )


def _remote_row(platform: Platform, native: Platform, failure: str) -> PlatformSetup:
    return PlatformSetup(platform=str(platform), native=platform == native, runs=not failure, message=failure)


def require_emulators(rows: Iterable[PlatformSetup]) -> None:
    """Raise :class:`EmulatorError` if a platform does not run, with each one's cause."""
    broken = [row for row in rows if not row.runs]
    if not broken:
        return
    others = "".join(f"\n{row.platform}: {row.message}" for row in broken[1:])
    stubborn = any(row.handler for row in broken)
    hint = (
        "inv setup-builder --recreate (replaces handlers that do not work)"
        if stubborn
        else "sudo inv setup-builder"
    )
    raise EmulatorError(broken[0].message + others, platform=broken[0].platform, hint=hint)


def probe(machines: Iterable[Machine], settings: Settings, run: Runner) -> dict[str, str]:
    """For each architecture the words why its program does not run; empty where it does."""
    wanted = {machine.architecture: machine for machine in machines}
    folder = cache_folder(settings)
    if not run.dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    # Not in /tmp, which may be mounted noexec, if there is another place.
    parent = folder if folder.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=parent) as place, ThreadPoolExecutor(4) as pool:
        programs = [_written(Path(place) / name, machine) for name, machine in wanted.items()]
        # All files are closed before the first is run: a child holding one open gives ETXTBSY.
        found = pool.map(lambda path: _run_probe(path, run), programs)
        return dict(zip(wanted, found, strict=True))


def _written(path: Path, machine: Machine) -> Path:
    path.write_bytes(probe_program(machine))
    path.chmod(0o700)
    return path


def _run_probe(program: Path, run: Runner) -> str:
    try:
        done = run.run([str(program)], Call(timeout=_PROBE_SECONDS))
    except DeadlineExceeded:
        return f"its probe did not end within {_PROBE_SECONDS:.0f} s"
    except BuildkitTasksError as error:
        return error.message
    except OSError as error:
        return error.strerror or str(error)
    return "" if done.returncode == PROBE_STATUS else f"its probe failed: {done.reason}"


def _fault(handler: Handler, failure: str) -> str:
    """Why a handler does not serve, or nothing. Without F it serves the host, but no container."""
    present = Path(handler.interpreter).exists()
    if not handler.enabled:
        return f"handler {handler.name} is disabled"
    if not present and failure:
        return f"handler {handler.name} names the interpreter {handler.interpreter}, which does not exist"
    if failure:
        return f"handler {handler.name} with {handler.interpreter}: {failure}"
    if "F" not in handler.flags:
        return (
            f"handler {handler.name} has flags {handler.flags or 'none'!r} without F: "
            f"{handler.interpreter} cannot be found inside a container"
        )
    return ""


def with_versions(rows: Sequence[PlatformSetup], run: Runner) -> tuple[PlatformSetup, ...]:
    """The same rows with the version that each interpreter prints of itself."""
    programs = {row.interpreter for row in rows if row.interpreter and Path(row.interpreter).exists()}
    versions = {program: qemu_version(program, run) for program in programs}
    return tuple(replace(row, version=versions.get(row.interpreter, "")) for row in rows)
