"""The supervisors of one run, with the emulators that guests need registered in them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import cache_folder
from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.host.emulation.qemu import QemuFinder, read_qemu_version
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.report.model import EmulatorSummary
from buildkit_tasks.run.sandbox.supervisor import Supervisor
from buildkit_tasks.system.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit_tasks.platforms import Machine

__all__ = ["SupervisorPool"]

_PADDING_OFFSET = 15  # the last byte of e_ident, padding without a meaning: System V gABI, chapter 4
_MARK = b"q"


class SupervisorPool:
    """Creates supervisors as needed and registers each emulator once.

    =====================  ===========  ====================================================
    architecture           CPU model    runs in
    =====================  ===========  ====================================================
    the host's             none         the default supervisor, natively
    the host's             any          a second supervisor, through QEMU
    any other              none or any  the default supervisor, through QEMU
    =====================  ===========  ====================================================

    The second is needed because a handler for the host's architecture would apply to all native programs.
    """

    def __init__(self, default_supervisor: Supervisor, qemu: QemuFinder) -> None:
        self._default_supervisor = default_supervisor
        self._qemu = qemu
        self._native_architecture = native_platform().architecture
        self._lock = Lock()
        self._supervisors: dict[tuple[Machine, bool], tuple[Supervisor, Path | None]] = {}
        self._versions: dict[Path, Future[str]] = {}
        self._executor = ThreadPoolExecutor(max_workers=1)

    def close(self) -> None:
        """Kill all supervisors, and with them their guests."""
        for supervisor in {self._default_supervisor, *(each for each, _ in self._supervisors.values())}:
            supervisor.close()
        self._executor.shutdown()

    def summarize_emulator(self, emulator_path: Path | None, cpu: str) -> EmulatorSummary | None:
        """Return the emulator that a program ran through; None for a native one."""
        if emulator_path is None:
            return None
        return EmulatorSummary(
            path=str(emulator_path), version=self._versions[emulator_path.parent].result(), cpu=cpu
        )

    def get_supervisor(self, machine: Machine, cpu: str) -> tuple[Supervisor, Path | None]:
        """Return the supervisor for a machine and CPU model, and the emulator's path (None: native).

        Raises :class:`EmulatorError` if there is no emulator.
        """
        is_foreign = machine.architecture != self._native_architecture
        key = (machine, not is_foreign and bool(cpu))
        with self._lock:
            if key not in self._supervisors:
                self._supervisors[key] = self._create_supervisor(machine, emulated=is_foreign or bool(cpu))
            return self._supervisors[key]

    def _create_supervisor(self, machine: Machine, *, emulated: bool) -> tuple[Supervisor, Path | None]:
        if not emulated:
            return self._default_supervisor, None
        emulator_path = self._qemu.find(machine)
        if emulator_path is None:
            raise EmulatorError(
                f"no static qemu-{machine.qemu_suffix} was found",
                platform=f"linux/{machine.architecture}",
                hint="apt-get install qemu-user-static, or inv run-emulated --runner=docker",
            )
        # Emulators in one directory are of one package and version, which is read while guests run.
        if emulator_path.parent not in self._versions:
            self._versions[emulator_path.parent] = self._executor.submit(
                read_qemu_version, str(emulator_path), self._qemu.commands
            )
        if machine.architecture != self._native_architecture:
            self._default_supervisor.register(machine, emulator_path)
            return self._default_supervisor, emulator_path
        supervisor = Supervisor()
        supervisor.register(
            machine, _copy_with_mark(emulator_path, cache_folder(self._qemu.settings) / "emulators")
        )
        return supervisor, emulator_path


def _copy_with_mark(emulator_path: Path, directory: Path) -> Path:
    """Return a copy of a native QEMU that the handler for its own machine does not match.

    Without the changed byte the kernel would start QEMU through QEMU, five times, and then fail (fs/exec.c).
    """
    file_stat = emulator_path.stat()
    copy = directory / f"{emulator_path.name}-{file_stat.st_size}-{file_stat.st_mtime_ns}"
    if not copy.exists():
        data = emulator_path.read_bytes()
        marked = data[:_PADDING_OFFSET] + _MARK + data[_PADDING_OFFSET + len(_MARK) :]
        write_atomically(copy, marked, mode=0o755)
    return copy
