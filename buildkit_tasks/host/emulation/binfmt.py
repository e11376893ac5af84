"""Read, register and remove handlers of the kernel's binfmt_misc.

The formats of ``register`` and of the entries are in the kernel's
Documentation/admin-guide/binfmt-misc.rst. Handlers are registered with F (the kernel opens the interpreter
at once, so that it works in every container) and never with C (setuid guests would get their
credentials).
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import EmulatorError
from buildkit_tasks.system.files import write_atomically

if TYPE_CHECKING:
    from buildkit_tasks.platforms import Machine
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["Handler", "HandlerTable", "format_registration"]

_MOUNT_POINT = Path("/proc/sys/fs/binfmt_misc")
_MOUNTED_KEY = "/mounted"  # no handler can have a slash in its name
_HANDLER_FLAGS = "OPF"
_DENIED = (errno.EPERM, errno.EACCES, errno.EROFS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A handler; ``flags`` are as the kernel prints them, ``registration_order`` is (mtime, inode)."""

    name: str
    enabled: bool
    interpreter: str
    flags: str = ""
    offset: int = 0
    magic: bytes = b""
    mask: bytes = b""
    registration_order: tuple[int, int] = (0, 0)

    def matches(self, machine: Machine) -> bool:
        """Return True if the kernel would run this architecture's executables with the handler."""
        header = machine.magic[self.offset : self.offset + len(self.magic)]
        mask = self.mask or b"\xff" * len(self.magic)
        return (
            bool(self.magic)
            and len(header) == len(self.magic)
            and all(
                (byte ^ expected) & bits == 0
                for byte, expected, bits in zip(header, self.magic, mask, strict=True)
            )
        )

    @classmethod
    def parse(cls, name: str, text: str, registration_order: tuple[int, int] = (0, 0)) -> Handler:
        """Parse an entry: ``enabled``, ``interpreter PATH``, ``flags: X``, ``magic HEX`` ..."""
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
            registration_order=registration_order,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerTable:
    """The handlers of the running kernel; ``state_path`` is a file with those that we registered."""

    commands: CommandRunner
    state_path: Path
    mount_point: Path = _MOUNT_POINT

    @property
    def is_mounted(self) -> bool:
        """Whether binfmt_misc is mounted."""
        return (self.mount_point / "register").exists()

    @property
    def is_writable(self) -> bool:
        """Whether this user may register handlers, or mount binfmt_misc first."""
        return os.access(self.mount_point / "register", os.W_OK) if self.is_mounted else os.geteuid() == 0

    def mount(self) -> None:
        """Mount binfmt_misc if necessary. Raise :class:`EmulatorError` if the kernel refuses."""
        if self.is_mounted:
            return
        try:
            self.commands.mount("binfmt_misc", self.mount_point)
        except OSError as error:
            is_denied = error.errno in _DENIED
            hint = "run on a host or in a privileged container" if is_denied else "modprobe binfmt_misc"
            raise EmulatorError(f"binfmt_misc cannot be mounted: {error.strerror}", hint=hint) from error
        if not self.commands.dry_run:
            self._add_to_state(_MOUNTED_KEY, "by us")

    def read_handlers(self) -> list[Handler]:
        """Return all handlers in the order in which the kernel tries them: the last registered first."""
        return sorted(
            map(_read_handler, self._handler_files()),
            key=lambda handler: handler.registration_order,
            reverse=True,
        )

    def effective_handler(self, machine: Machine) -> Handler | None:
        """Return the handler that runs this architecture's programs, else a disabled one, else None."""
        matching = [handler for handler in self.read_handlers() if handler.matches(machine)]
        return next((handler for handler in matching if handler.enabled), matching[0] if matching else None)

    def register(self, machine: Machine, interpreter: Path) -> None:
        """Register a handler, unless another process was faster: the table is shared by all of the machine.

        Raise :class:`EmulatorError` if the kernel refuses, or the name exists for another architecture.
        """
        name = f"qemu-{machine.qemu_suffix}"
        registration = format_registration(machine, str(interpreter))
        try:
            self.commands.write_kernel_file(self.mount_point / "register", registration.encode("latin-1"))
        except OSError as error:
            if error.errno == errno.EEXIST and any(
                handler.name == name and handler.matches(machine) for handler in self.read_handlers()
            ):
                return  # not ours to remove; a probe finds out whether it works
            raise EmulatorError(
                _explain_refusal(name, interpreter, error), platform=f"linux/{machine.architecture}"
            ) from error
        if not self.commands.dry_run:
            self._add_to_state(name, (self.mount_point / name).read_text(encoding="utf-8"))

    def remove(self, handler: Handler) -> None:
        """Remove a handler."""
        self.commands.write_kernel_file(self.mount_point / handler.name, b"-1")

    def remove_registered(self) -> list[str]:
        """Remove the handlers that we registered and nobody changed since; return their names.

        Unmount binfmt_misc if we mounted it and no other handlers are left.
        """
        removed = []
        registered = self._read_state()
        for entry in sorted(self._handler_files()):
            if entry.read_text(encoding="utf-8") == registered.get(entry.name):
                self.commands.write_kernel_file(entry, b"-1")
                removed.append(entry.name)
        foreign = {entry.name for entry in self._handler_files()} - set(removed)
        if _MOUNTED_KEY in registered and self.is_mounted and not foreign:
            self.commands.unmount(self.mount_point)
        if not self.commands.dry_run:
            self.state_path.unlink(missing_ok=True)
        return removed

    def _handler_files(self) -> list[Path]:
        """Return the files of handlers. Writing -1 to ``status`` would remove all of them."""
        if not self.is_mounted:
            return []
        return [path for path in self.mount_point.iterdir() if path.name not in ("register", "status")]

    def _read_state(self) -> dict[str, str]:
        try:
            document = json.loads(self.state_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _add_to_state(self, name: str, text: str) -> None:
        write_atomically(self.state_path, json.dumps(self._read_state() | {name: text}))


def format_registration(machine: Machine, interpreter: str) -> str:
    """Return the text to write to ``register`` for an architecture's emulator."""
    magic, mask = _escape_bytes(machine.magic), _escape_bytes(machine.mask)
    return f":qemu-{machine.qemu_suffix}:M::{magic}:{mask}:{interpreter}:{_HANDLER_FLAGS}"


def _read_handler(path: Path) -> Handler:
    # An entry's inode number and mtime are from its registration; the directory is not ordered.
    status = path.stat()
    return Handler.parse(path.name, path.read_text(encoding="utf-8"), (status.st_mtime_ns, status.st_ino))


def _escape_bytes(data: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in data)


def _explain_refusal(name: str, interpreter: Path, error: OSError) -> str:
    if error.errno == errno.EEXIST:
        return f"a handler {name} exists already"
    if error.errno in _DENIED:
        return f"registering {name} needs root on the host, or a privileged container ({error.strerror})"
    return f"the kernel refuses handler {name} for {interpreter}: {error.strerror}"
