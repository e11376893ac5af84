"""The seam to the kernel's binfmt_misc: read, add and remove handlers.

See the kernel's Documentation/admin-guide/binfmt-misc.rst for the format of ``register`` and of the
entries. Handlers are always added with F (the kernel opens the interpreter at once, so that it
works in any container) and never with C (which would run setuid guests with their credentials).
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EmulatorError

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine
    from buildkit_tasks.system.command import Runner

__all__ = ["Binfmt", "Handler", "handler_line"]

_MOUNT_POINT = Path("/proc/sys/fs/binfmt_misc")
_MOUNTED = "/mounted"  # no handler can have a slash in its name
_FLAGS = "OPF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One entry of the table; ``flags`` as the kernel prints them, ``age`` orders registrations."""

    name: str
    enabled: bool
    interpreter: str
    flags: str = ""
    offset: int = 0
    magic: bytes = b""
    mask: bytes = b""
    age: tuple[int, int] = (0, 0)

    def matches(self, machine: Machine) -> bool:
        """Whether the kernel would hand this architecture's executables to it."""
        header = machine.magic[self.offset : self.offset + len(self.magic)]
        mask = self.mask or b"\xff" * len(self.magic)
        return (
            bool(self.magic)
            and len(header) == len(self.magic)
            and all(
                (byte ^ wanted) & bits == 0
                for byte, wanted, bits in zip(header, self.magic, mask, strict=True)
            )
        )

    @classmethod
    def parse(cls, name: str, text: str, age: tuple[int, int] = (0, 0)) -> Handler:
        """Read an entry's text: ``enabled``, ``interpreter PATH``, ``flags: X``, ``magic HEX`` ..."""
        lines = [line.partition(" ") for line in text.splitlines()]
        values = {key.rstrip(":"): value.strip() for key, _, value in lines}
        return cls(
            name=name,
            enabled="enabled" in values,
            interpreter=values.get("interpreter", ""),
            flags=values.get("flags", ""),
            offset=int(values.get("offset", "0")),
            magic=bytes.fromhex(values.get("magic", "")),
            mask=bytes.fromhex(values.get("mask", "")),
            age=age,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Binfmt:
    """The handler table of the running kernel, and in ``ledger`` what we added to it."""

    run: Runner
    ledger: Path
    folder: Path = _MOUNT_POINT

    @property
    def mounted(self) -> bool:
        """Whether the table can be seen."""
        return (self.folder / "register").exists()

    def mount(self) -> None:
        """Mount the table where it is not. Raises :class:`EmulatorError` if that is refused."""
        if self.mounted:
            return
        try:
            self.run.attach("binfmt_misc", self.folder)
        except OSError as error:
            words = f"binfmt_misc cannot be mounted: {error.strerror}"
            raise EmulatorError(words, hint="sudo modprobe binfmt_misc") from error
        if not self.run.dry_run:
            self._remember(_MOUNTED, "by us")

    def handlers(self) -> list[Handler]:
        """Every handler, the one that the kernel tries first at the front (the last registered)."""
        return sorted(map(_read, self._entries()), key=lambda handler: handler.age, reverse=True)

    def winner(self, machine: Machine) -> Handler | None:
        """The handler that runs this architecture's programs: enabled ones before disabled."""
        found = [handler for handler in self.handlers() if handler.matches(machine)]
        return next((handler for handler in found if handler.enabled), found[0] if found else None)

    def register(self, machine: Machine, interpreter: Path) -> None:
        """Add a handler. Raises :class:`EmulatorError` when the kernel refuses or the name is taken."""
        name = f"qemu-{machine.qemu}"
        line = handler_line(machine, str(interpreter))
        try:
            self.run.write(self.folder / "register", line.encode("latin-1"))
        except OSError as error:
            raise EmulatorError(
                _refusal(name, interpreter, error), platform=f"linux/{machine.architecture}"
            ) from error
        if not self.run.dry_run:
            self._remember(name, (self.folder / name).read_text(encoding="utf-8"))

    def remove(self, handler: Handler) -> None:
        """Take a handler out of the table."""
        self.run.write(self.folder / handler.name, b"-1")

    def remove_ours(self) -> list[str]:
        """Remove the handlers that we added, if they still are what we added; gives their names.

        A table that we mounted is unmounted again, unless there are handlers of others in it.
        """
        removed = []
        remembered = self._remembered()
        for entry in sorted(self._entries()):
            if entry.read_text(encoding="utf-8") == remembered.get(entry.name):
                self.run.write(entry, b"-1")
                removed.append(entry.name)
        others = {entry.name for entry in self._entries()} - set(removed)
        if _MOUNTED in remembered and self.mounted and not others:
            self.run.detach(self.folder)
        if not self.run.dry_run:
            self.ledger.unlink(missing_ok=True)
        return removed

    def _entries(self) -> list[Path]:
        """The files of handlers; -1 written to one of the two others would remove everybody's."""
        if not self.mounted:
            return []
        return [each for each in self.folder.iterdir() if each.name not in ("register", "status")]

    def _remembered(self) -> dict[str, str]:
        try:
            found = json.loads(self.ledger.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remember(self, name: str, text: str) -> None:
        self.ledger.parent.mkdir(parents=True, exist_ok=True)
        self.ledger.write_text(json.dumps(self._remembered() | {name: text}), encoding="utf-8")


def handler_line(machine: Machine, interpreter: str) -> str:
    """What is written to ``register`` for an architecture's emulator."""
    magic, mask = _escaped(machine.magic), _escaped(machine.mask)
    return f":qemu-{machine.qemu}:M::{magic}:{mask}:{interpreter}:{_FLAGS}"


def _read(path: Path) -> Handler:
    # The kernel numbers and dates an entry when it is registered; the table itself has no order.
    status = path.stat()
    return Handler.parse(path.name, path.read_text(encoding="utf-8"), (status.st_mtime_ns, status.st_ino))


def _escaped(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def _refusal(name: str, interpreter: Path, error: OSError) -> str:
    if error.errno == errno.EEXIST:
        return f"the handler name {name} is taken"
    if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return f"registering {name} needs root on the host, or a privileged container ({error.strerror})"
    return f"the kernel refuses handler {name} for {interpreter}: {error.strerror}"
