"""Find out which platforms run here, register missing QEMU emulators, and probe the result.

Only the probe decides: a platform runs here if its minimal program exits with its own status. The exit
status of an installer and the handler table prove nothing.
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

from buildkit_tasks.config.settings import Settings, cache_folder, create_cache_folder
from buildkit_tasks.errors import BuildkitTasksError, DeadlineExceeded, EmulatorError
from buildkit_tasks.host.emulation.binfmt import Handler, HandlerTable
from buildkit_tasks.host.emulation.container_probe import install_emulators, probe_in_containers
from buildkit_tasks.host.emulation.qemu import QemuFinder, read_qemu_version
from buildkit_tasks.host.privileges import command_as_root
from buildkit_tasks.platforms import Machine, Platform, native_platform
from buildkit_tasks.platforms.elf.probe import PROBE_STATUS, build_probe_program
from buildkit_tasks.report.model import PlatformSetup
from buildkit_tasks.system.command import CommandOptions, CommandRunner
from buildkit_tasks.system.files import explain_unwritable
from buildkit_tasks.system.lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.system.notify import Notify

__all__ = ["EmulatorManager", "add_versions", "probe_machines", "repair_command", "require_emulators"]

_PROBE_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class EmulatorManager:
    """The emulators of the kernel that runs an engine."""

    engine: Engine | None
    settings: Settings
    commands: CommandRunner
    notify: Notify

    @classmethod
    def for_host(cls, settings: Settings, commands: CommandRunner, notify: Notify) -> EmulatorManager:
        """Return the emulators of this host's kernel, with or without an engine."""
        return cls(engine=None, settings=settings, commands=commands, notify=notify)

    @property
    def _remote_engine(self) -> Engine | None:
        """The engine, if it runs on another kernel."""
        return self.engine if self.engine is not None and not self.engine.is_local else None

    @cached_property
    def handler_table(self) -> HandlerTable:
        """The kernel's binfmt_misc handlers."""
        return HandlerTable(commands=self.commands, state_path=cache_folder(self.settings) / "binfmt.json")

    def inspect(self, platforms: Sequence[Platform]) -> tuple[PlatformSetup, ...]:
        """Probe every platform and describe how it runs, without registering anything."""
        if self._remote_engine is not None:
            failures = probe_in_containers(self._remote_engine, platforms, self.commands)
            engine_platform = self._remote_engine.platform
            return tuple(
                _describe_remote_platform(platform, engine_platform, failure)
                for platform, failure in failures.items()
            )
        failure_by_architecture = probe_machines(
            (platform.machine for platform in platforms), self.settings, self.commands
        )
        return tuple(
            self._describe_platform(platform, failure_by_architecture[platform.architecture])
            for platform in platforms
        )

    def ensure(self, platforms: Sequence[Platform], *, recreate: bool = False) -> tuple[PlatformSetup, ...]:
        """Register missing emulators, then return :meth:`inspect`.

        Working handlers are kept. One that does not work may belong to other software, and is replaced
        only with ``recreate``.
        """
        if self._remote_engine is None and self.settings.emulators != "none":
            self._mount_table()
        rows = self.inspect(platforms)
        failed = [row for row in rows if not row.runs]
        is_irreparable = not recreate and all(row.handler for row in failed)
        if is_irreparable or self.settings.emulators == "none":
            return rows
        failed_platforms = [Platform.parse(row.platform) for row in failed]
        if self._remote_engine is not None:
            self._install_with_image(failed_platforms)
        elif self.handler_table.is_writable:
            self._register_locked(failed_platforms, recreate=recreate)
        else:
            self._install_unprivileged([each for each in failed if not each.handler])
        return self.inspect(platforms)

    def remove_handlers(self, prefix: Path) -> None:
        """Remove the handlers whose emulators are below a directory: the kernel keeps those files open."""
        if self._remote_engine is not None or not self.handler_table.is_writable:
            return
        with file_lock(cache_folder(self.settings) / ".binfmt.lock", dry_run=self.commands.dry_run):
            for handler in self.handler_table.read_handlers():
                if Path(handler.interpreter).is_relative_to(prefix):
                    self.handler_table.remove(handler)

    def _install_unprivileged(self, rows: Sequence[PlatformSetup]) -> None:
        """Let the engine register emulators: this user may not, and nothing is downloaded for it.

        A handler that exists but does not work cannot be replaced in this way.
        """
        if self.settings.emulators != "host" and self.engine is not None and rows:
            self._install_with_image([Platform.parse(row.platform) for row in rows])

    def _mount_table(self) -> None:
        """Mount binfmt_misc, because handlers work without it but cannot be listed."""
        if not self.handler_table.is_mounted and os.geteuid() == 0:
            with contextlib.suppress(EmulatorError):  # relevant only if a platform does not run
                self.handler_table.mount()

    def _register_locked(self, platforms: Sequence[Platform], *, recreate: bool) -> None:
        lock = cache_folder(self.settings) / ".binfmt.lock"
        if not self.commands.dry_run:
            create_cache_folder(self.settings)
        with file_lock(lock, dry_run=self.commands.dry_run):
            self.handler_table.mount()
            self._register_machines(platforms, recreate=recreate)

    def _register_machines(self, platforms: Sequence[Platform], *, recreate: bool) -> None:
        machines = {platform.architecture: platform.machine for platform in platforms}
        for machine in machines.values():
            handlers = [each for each in self.handler_table.read_handlers() if each.matches(machine)]
            if handlers and not recreate:
                continue
            # Find it before removing anything: a handler without F still works on the host.
            program = None if self.settings.emulators == "image" else self._find_qemu(machine)
            for handler in handlers:
                self.notify(f"removing handler {handler.name}, which does not work")
                self.handler_table.remove(handler)
            self._register_machine(machine, program)

    def _register_machine(self, machine: Machine, program: Path | None) -> None:
        """Register one architecture, with the binfmt image if there is no program for it."""
        if program is not None:
            self.notify(f"registering {program} for linux/{machine.architecture}")
            self.handler_table.register(machine, program)
        elif self.settings.emulators != "host":
            self._install_with_image([Platform("linux", machine.architecture)])

    def _find_qemu(self, machine: Machine) -> Path | None:
        return QemuFinder(settings=self.settings, commands=self.commands, notify=self.notify).find(machine)

    def _install_with_image(self, platforms: Sequence[Platform]) -> None:
        if self.engine is None:
            return
        self.notify("registering emulators with the tonistiigi/binfmt image")
        failure = install_emulators(self.engine, platforms, self.commands)
        if failure:
            self.notify(f"tonistiigi/binfmt: {failure}")

    def _describe_platform(self, platform: Platform, failure: str) -> PlatformSetup:
        handler = self.handler_table.effective_handler(platform.machine)
        if handler is None or not (handler.enabled or failure):
            # Without binfmt_misc mounted, only this machine's own architecture is certain to be native.
            native = self.handler_table.is_mounted or platform.machine is native_platform().machine
            message = f"no emulator is registered for it ({failure})" if failure else ""
            return PlatformSetup(
                platform=str(platform), native=native and not failure, runs=not failure, message=message
            )
        message = _explain_handler_failure(handler, failure)
        return PlatformSetup(
            platform=str(platform),
            native=False,
            handler=handler.name,
            interpreter=handler.interpreter,
            flags=handler.flags,
            runs=not message,
            message=message,
        )


def _describe_remote_platform(platform: Platform, engine_platform: Platform, failure: str) -> PlatformSetup:
    return PlatformSetup(
        platform=str(platform), native=platform == engine_platform, runs=not failure, message=failure
    )


def require_emulators(rows: Iterable[PlatformSetup]) -> None:
    """Raise :class:`EmulatorError` if a platform does not run, with the cause for each."""
    failed = [row for row in rows if not row.runs]
    if not failed:
        return
    others = "".join(f"\n{row.platform}: {row.message}" for row in failed[1:])
    hint = repair_command(failed)
    raise EmulatorError(failed[0].message + others, platform=failed[0].platform, hint=hint)


def repair_command(failed: Iterable[PlatformSetup]) -> str:
    """Return the command that makes failed platforms run; ``--recreate`` replaces failing handlers."""
    command = "inv setup-builder" + (" --recreate" if any(row.handler for row in failed) else "")
    return command if os.geteuid() == 0 else command_as_root(command)


def probe_machines(
    machines: Iterable[Machine], settings: Settings, commands: CommandRunner
) -> dict[str, str]:
    """Return why each architecture's program does not run, or an empty string if it does."""
    machine_by_architecture = {machine.architecture: machine for machine in machines}
    with (
        tempfile.TemporaryDirectory(prefix=".probe-", dir=_probe_parent(settings, commands)) as directory,
        ThreadPoolExecutor(4) as pool,
    ):
        programs = [
            _write_probe(Path(directory) / name, machine) for name, machine in machine_by_architecture.items()
        ]
        # All files are closed before the first is run: one open for writing cannot be executed (ETXTBSY).
        failures = pool.map(lambda path: _run_probe(path, commands), programs)
        return dict(zip(machine_by_architecture, failures, strict=True))


def _probe_parent(settings: Settings, commands: CommandRunner) -> Path | None:
    """Return the cache directory, because /tmp may be mounted noexec; None if it cannot be written."""
    folder = cache_folder(settings)
    if explain_unwritable(folder):
        return None
    if not commands.dry_run:
        create_cache_folder(settings)
    return folder if folder.is_dir() else None


def _write_probe(path: Path, machine: Machine) -> Path:
    path.write_bytes(build_probe_program(machine))
    path.chmod(0o700)
    return path


def _run_probe(program: Path, commands: CommandRunner) -> str:
    try:
        result = commands.run([str(program)], CommandOptions(timeout=_PROBE_SECONDS))
    except DeadlineExceeded:
        return f"its probe did not end within {_PROBE_SECONDS:.0f} s"
    except BuildkitTasksError as error:
        return error.message
    except OSError as error:
        return error.strerror or str(error)
    return "" if result.returncode == PROBE_STATUS else f"its probe failed: {result.reason}"


def _explain_handler_failure(handler: Handler, failure: str) -> str:
    """Return why a handler does not work, or an empty string; without F it works only on the host."""
    if not handler.enabled:
        return f"handler {handler.name} is disabled"
    if failure and _is_missing(Path(handler.interpreter)):
        return f"handler {handler.name} names the interpreter {handler.interpreter}, which does not exist"
    if failure:
        return f"handler {handler.name} with {handler.interpreter}: {failure}"
    if "F" not in handler.flags:
        return (
            f"handler {handler.name} has flags {handler.flags or 'none'!r} without F: "
            f"{handler.interpreter} cannot be found inside a container"
        )
    return ""


def _is_missing(path: Path) -> bool:
    """Return True if a file does not exist; False also if this user may not look, as below /root."""
    try:
        path.stat()  # exists() says False for both from Python 3.14
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def add_versions(rows: Sequence[PlatformSetup], commands: CommandRunner) -> tuple[PlatformSetup, ...]:
    """Return the rows with the version of each interpreter that this user may run."""
    programs = {row.interpreter for row in rows if os.access(row.interpreter, os.X_OK)}
    versions = {program: read_qemu_version(program, commands) for program in programs}
    return tuple(replace(row, version=versions.get(row.interpreter, "")) for row in rows)
