"""The emulators that a sandbox's guests run through."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import cache_folder
from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.host.emulation.qemu import Qemu, qemu_version
from buildkit_tasks.platforms import native_platform
from buildkit_tasks.report.model import EmulatorSummary
from buildkit_tasks.run.sandbox.supervisor import Warden

if TYPE_CHECKING:
    from pathlib import Path

    from buildkit_tasks.platforms import Machine

__all__ = ["Wardens"]

_PADDING = 15  # the last byte of e_ident: nobody reads it (System V gABI, chapter 4)
_MARK = b"q"


class Wardens:
    """The wardens of one task, with each emulator registered once.

    Programs of the host's own machine run without an emulator in the first. Those that are to run on
    another CPU have a warden of their own: where that machine has a handler, nothing of it runs
    natively.
    """

    def __init__(self, first: Warden, qemu: Qemu) -> None:
        self._first = first
        self._qemu = qemu
        self._native = native_platform().architecture
        self._lock = Lock()
        self._known: dict[tuple[Machine, bool], tuple[Warden, Path | None]] = {}
        self._versions: dict[Path, Future[str]] = {}
        self._aside = ThreadPoolExecutor(max_workers=1)

    def close(self) -> None:
        """End them all."""
        for warden in {self._first, *(warden for warden, _ in self._known.values())}:
            warden.close()
        self._aside.shutdown()

    def summary(self, program: Path | None, cpu: str) -> EmulatorSummary | None:
        """What a program ran through."""
        if program is None:
            return None
        return EmulatorSummary(path=str(program), version=self._versions[program.parent].result(), cpu=cpu)

    def ready(self, machine: Machine, cpu: str) -> tuple[Warden, Path | None]:
        """Where this machine's programs run on such a CPU, and through which program; None for natively.

        Raises :class:`EmulatorError` if there is no emulator.
        """
        foreign = machine.architecture != self._native
        key = (machine, not foreign and bool(cpu))
        with self._lock:
            if key not in self._known:
                self._known[key] = self._made(machine, emulated=foreign or bool(cpu))
            return self._known[key]

    def _made(self, machine: Machine, *, emulated: bool) -> tuple[Warden, Path | None]:
        if not emulated:
            return self._first, None
        program = self._qemu.find(machine)
        if program is None:
            raise EmulatorError(
                f"there is no static qemu-{machine.qemu} here",
                platform=f"linux/{machine.architecture}",
                hint="apt-get install qemu-user-static, or inv run-emulated --runner=docker",
            )
        # Programs of one folder are of one package and have one version; it is asked for beside the runs.
        if program.parent not in self._versions:
            self._versions[program.parent] = self._aside.submit(qemu_version, str(program), self._qemu.run)
        if machine.architecture != self._native:
            self._first.register(machine, program)
            return self._first, program
        warden = Warden()
        warden.register(machine, _marked(program, cache_folder(self._qemu.settings) / "emulators"))
        return warden, program


def _marked(program: Path, folder: Path) -> Path:
    """A copy of a QEMU for the host's own machine, which the handler for that machine does not match.

    Without it the kernel would hand QEMU to QEMU, five times, and then give up (fs/exec.c).
    """
    stated = program.stat()
    copy = folder / f"{program.name}-{stated.st_size}-{stated.st_mtime_ns}"
    if not copy.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f".{copy.name}.{os.getpid()}"
        shutil.copyfile(program, unfinished)
        with unfinished.open("r+b") as file:
            file.seek(_PADDING)
            file.write(_MARK)
        unfinished.chmod(0o755)
        unfinished.rename(copy)
    return copy
