"""A command runner with scripted results. An unexpected command fails the test."""

from __future__ import annotations

import fnmatch
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import pytest

from buildkit_tasks.system.command import CommandOptions, CommandResult

if TYPE_CHECKING:
    from pathlib import Path

Effect = Callable[[list[str], CommandOptions], None]
_PLAIN = CommandOptions()


@dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """A requested command: its kind (run, stream, start), argv and options."""

    kind: str
    argv: tuple[str, ...]
    options: CommandOptions
    mutates: bool

    @property
    def line(self) -> str:
        return shlex.join(self.argv)


@dataclass(kw_only=True)
class _Expectation:
    pattern: str
    result: CommandResult
    effect: Effect | None
    error: BaseException | None
    remaining: int | None


@dataclass(kw_only=True)
class Scripted:
    """Answer commands by patterns over their argv joined by blanks; the latest expectation wins.

    In a dry run commands that change something succeed, as with the real runner, and are recorded
    in ``dry_run_lines``.
    """

    dry_run: bool = False
    calls: list[RecordedCall] = field(default_factory=list)
    dry_run_lines: list[str] = field(default_factory=list)
    written: list[tuple[Path, bytes]] = field(default_factory=list)
    write_error: OSError | None = None
    _expectations: list[_Expectation] = field(default_factory=list)

    def expect(  # noqa: PLR0913 - each is a keyword with a default
        self,
        pattern: str,
        *,
        returncode: int = 0,
        stdout: str = "",
        stderr: str = "",
        effect: Effect | None = None,
        error: BaseException | None = None,
        times: int | None = None,
    ) -> Scripted:
        """Set the result of commands that match ``pattern``, a shell pattern."""
        result = CommandResult(argv=(), returncode=returncode, stdout=stdout, stderr=stderr)
        self._expectations.insert(
            0, _Expectation(pattern=pattern, result=result, effect=effect, error=error, remaining=times)
        )
        return self

    def mount(self, filesystem: str, mount_point: Path) -> None:
        done = self.run(["mount", "-t", filesystem, filesystem, str(mount_point)], mutates=True)
        if not done.ok:
            raise OSError(done.returncode, done.reason)

    def unmount(self, mount_point: Path) -> None:
        self.run(["umount", str(mount_point)], mutates=True)

    @property
    def lines(self) -> list[str]:
        """Return every requested command in order."""
        return [each.line for each in self.calls]

    def matching_calls(self, pattern: str) -> list[RecordedCall]:
        """Return the requested commands that match a pattern."""
        return [each for each in self.calls if fnmatch.fnmatchcase(" ".join(each.argv), pattern)]

    def run(
        self, argv: Sequence[str], options: CommandOptions = _PLAIN, *, mutates: bool = False
    ) -> CommandResult:
        return self._record("run", argv, options, mutates=mutates)

    def stream(
        self, argv: Sequence[str], options: CommandOptions = _PLAIN, *, label: str = ""
    ) -> CommandResult:
        del label
        return self._record("stream", argv, options, mutates=True)

    def interrupt(self) -> None:
        """Ignore the interrupt: no command is running."""

    def start_daemon(self, argv: Sequence[str], log_path: Path, options: CommandOptions = _PLAIN) -> int:
        self._record("start", argv, options, mutates=True)
        return 0 if self.dry_run else int(log_path.read_text(encoding="utf-8"))

    def write_kernel_file(self, path: Path, data: bytes) -> None:
        if self.write_error is not None:
            raise self.write_error
        self.written.append((path, data))

    def _record(
        self, kind: str, argv: Sequence[str], options: CommandOptions, *, mutates: bool
    ) -> CommandResult:
        args = tuple(argv)
        assert all(type(arg) is str for arg in args), f"not a list of strings: {args}"
        self.calls.append(RecordedCall(kind=kind, argv=args, options=options, mutates=mutates))
        if mutates and self.dry_run:
            self.dry_run_lines.append(shlex.join(args))
            return CommandResult(argv=args, returncode=0)
        for expectation in self._expectations:
            if expectation.remaining != 0 and fnmatch.fnmatchcase(" ".join(args), expectation.pattern):
                return _result_of(expectation, args, options)
        pytest.fail(f"unexpected command: {shlex.join(args)}")


def _result_of(expectation: _Expectation, args: tuple[str, ...], options: CommandOptions) -> CommandResult:
    if expectation.remaining is not None:
        expectation.remaining -= 1
    if expectation.effect is not None:
        expectation.effect(list(args), options)
    if expectation.error is not None:
        raise expectation.error
    result = expectation.result
    return CommandResult(argv=args, returncode=result.returncode, stdout=result.stdout, stderr=result.stderr)


class Entry(NamedTuple):
    """A handler of binfmt_misc."""

    name: str
    interpreter: str
    flags: str
    magic: bytes
    mask: bytes
    enabled: bool = True


@dataclass(kw_only=True)
class Kernel(Scripted):
    """A scripted runner whose writes do to ``folder`` what the kernel does to binfmt_misc."""

    folder: Path
    clock: int = 0

    def mount_binfmt_misc(self) -> Kernel:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "register").touch()
        (self.folder / "status").write_text("enabled\n", encoding="utf-8")
        return self

    def write_kernel_file(self, path: Path, data: bytes) -> None:
        super().write_kernel_file(path, data)
        if self.dry_run:
            return
        if data == b"-1":
            path.unlink()
            return
        assert path == self.folder / "register"
        _, name, kind, offset, magic, mask, interpreter, flags = data.decode("latin-1").split(":")
        assert (kind, offset) == ("M", "")
        value, bits = (bytes.fromhex(each.replace("\\x", "")) for each in (magic, mask))
        self.add(Entry(name, interpreter, flags, value, bits))

    def add(self, new: Entry) -> None:
        """Add an entry to the table, newer than all others."""
        entry = self.folder / new.name
        if entry.exists():
            raise FileExistsError(17, "File exists")
        state = "enabled" if new.enabled else "disabled"
        lines = [state, f"interpreter {new.interpreter}", f"flags: {new.flags}"]
        lines += ["offset 0", f"magic {new.magic.hex()}", f"mask {new.mask.hex()}", ""]
        entry.write_text("\n".join(lines), encoding="utf-8")
        self.clock += 1
        os.utime(entry, (self.clock, self.clock))
