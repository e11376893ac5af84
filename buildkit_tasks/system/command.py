"""The seam to other programs: run an argv list, or say what would be run.

Each child leads its own session, so that one signal reaches it and all that it started; it has a
deadline, then TERM, then KILL. Nothing ever passes through a shell, and whatever is echoed or kept
is redacted first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Protocol

from buildkit_tasks.errors import BuildkitTasksError, DeadlineExceeded, EngineError, Interrupted

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["Commands", "Completed", "Runner", "redact"]

_GRACE = 10.0  # seconds between a polite signal and KILL: buildx needs some to cancel its solve
_WATCH = 5.0  # seconds between two questions whether what a command works with is still there
_TAIL = 200  # lines of a streamed child's output that are kept for messages

_SECRETS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)(authorization:\s*(?:bearer\s+|basic\s+)?)\S+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}"), r"\1***"),
)


def redact(text: str) -> str:
    """The text without user information in URLs and without authorization headers."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Completed:
    """A command that has ended; ``returncode`` is negative for a signal, as in subprocess."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str = ""
    stderr: str = ""

    @property
    def ok(self) -> bool:
        """Whether it exited with status 0."""
        return self.returncode == 0

    @property
    def reason(self) -> str:
        """The last line that it wrote to standard error, or its status in words."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return lines[-1] if lines else f"{self.argv[0]} ended with status {self.returncode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """How a command is to run: added environment, standard input, deadline in seconds, folder.

    ``watch`` is asked every five seconds while it runs: an error that it gives ends the command, and
    is raised in its place.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    timeout: float | None = None
    cwd: Path | None = None
    watch: Callable[[], BuildkitTasksError | None] | None = None


_PLAIN = Call()


class Runner(Protocol):
    """What a service may do to the world. Tests pass a scripted one."""

    @property
    def dry_run(self) -> bool:
        """Whether commands that change something are shown instead of run."""

    def run(self, argv: Sequence[str], call: Call = _PLAIN, *, mutates: bool = False) -> Completed:
        """Run a command to its end and capture what it writes."""

    def stream(self, argv: Sequence[str], call: Call = _PLAIN, *, label: str = "") -> Completed:
        """Run a changing command whose output the user watches; with a label, beside others."""

    def interrupt(self) -> None:
        """End what other threads run, as Ctrl-C ends what this one does."""

    def start(self, argv: Sequence[str], log: Path, call: Call = _PLAIN) -> int:
        """Start a daemon that outlives this process; gives its pid."""

    def write(self, path: Path, data: bytes) -> None:
        """Write to a kernel file such as binfmt_misc's ``register``."""

    def attach(self, kind: str, place: Path) -> None:
        """Mount a file system of the kernel's own."""

    def detach(self, place: Path) -> None:
        """Unmount it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """The real runner. ``echo`` is where a dry run prints; ``live`` where streamed output goes."""

    dry_run: bool = False
    echo: IO[str] = field(default_factory=lambda: sys.stdout)
    live: IO[str] = field(default_factory=lambda: sys.stderr)
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set, init=False, compare=False, repr=False)

    def run(self, argv: Sequence[str], call: Call = _PLAIN, *, mutates: bool = False) -> Completed:
        """Run ``argv`` to its end and give status and output, whatever the status is.

        With ``mutates`` a dry run prints the command and reports success. Raises
        :class:`EngineError` for a program that does not exist and :class:`DeadlineExceeded`
        past the call's time-out, when the whole process group has been ended.
        """
        if mutates and self.dry_run:
            return self._show(argv, call)
        child = _popen(argv, call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with self._followed(child, argv, call):
            stdout, stderr = child.communicate(call.stdin)
        return Completed(
            argv=tuple(argv),
            returncode=child.returncode,
            stdout=stdout.decode(errors="replace"),
            stderr=redact(stderr.decode(errors="replace")),
        )

    def stream(self, argv: Sequence[str], call: Call = _PLAIN, *, label: str = "") -> Completed:
        """Run ``argv`` with its output on the terminal, unharmed; nothing reaches our stdout.

        On a terminal the child has it to itself, colours and moving cursor included. Elsewhere,
        and where several run at once and each line begins with a ``label``, its lines are
        redacted, passed on, and the last of them kept in ``stderr``.
        """
        if self.dry_run:
            return self._show(argv, call)
        if _is_terminal(self.live) and not label:
            child = _popen(argv, call, stdout=self.live, stderr=self.live)
            with self._followed(child, argv, call):
                child.wait()
            return Completed(argv=tuple(argv), returncode=child.returncode)
        child = _popen(argv, call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        tail: deque[str] = deque(maxlen=_TAIL)
        with self._followed(child, argv, call):
            self._pass_on(child, tail, f"{label} | " if label else "")
        return Completed(argv=tuple(argv), returncode=child.returncode, stderr="".join(tail))

    def interrupt(self) -> None:
        """End the commands of all threads, politely first: Ctrl-C reaches the main thread alone."""
        children = tuple(self._running)
        ending = [threading.Thread(target=_end, args=(each, signal.SIGINT, _GRACE)) for each in children]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()

    @contextlib.contextmanager
    def _followed(self, child: subprocess.Popen[bytes], argv: Sequence[str], call: Call) -> Iterator[None]:
        """Supervise the child and keep it among those that can be interrupted."""
        self._running.add(child)
        try:
            with _watched(child, call), _supervised(child, argv, call.timeout):
                yield
        finally:
            self._running.discard(child)

    def start(self, argv: Sequence[str], log: Path, call: Call = _PLAIN) -> int:
        """Start a daemon that outlives this process, its output appended to ``log``."""
        if self.dry_run:
            self._show(argv, call)
            return 0
        with log.open("ab") as output:
            child = _popen(argv, call, stdout=output, stderr=output)
        child.returncode = 0  # it outlives us: Python need not warn that nobody waited for it
        return child.pid

    def write(self, path: Path, data: bytes) -> None:
        """Write ``data`` in one system call, as binfmt_misc wants it; a dry run prints it."""
        if self.dry_run:
            shown = shlex.quote(data.decode("latin-1"))
            print(f"printf %s {shown} > {path}", file=self.echo, flush=True)
            return
        descriptor = os.open(path, os.O_WRONLY)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)

    def attach(self, kind: str, place: Path) -> None:
        """Mount a file system that the kernel makes up; raises :class:`OSError`.

        By system call: a small machine may have no ``mount`` program.
        """
        if self.dry_run:
            self._show(["mount", "-t", kind, kind, str(place)], _PLAIN)
            return
        name = kind.encode()
        _checked(_libc().mount(name, os.fsencode(place), name, 0, None), place)

    def detach(self, place: Path) -> None:
        """Unmount a file system; raises :class:`OSError`."""
        if self.dry_run:
            self._show(["umount", str(place)], _PLAIN)
            return
        _checked(_libc().umount2(os.fsencode(place), 0), place)

    def _show(self, argv: Sequence[str], call: Call) -> Completed:
        added = [f"{name}={shlex.quote(value)}" for name, value in call.env.items()]
        print(redact(" ".join([*added, shlex.join(argv)])), file=self.echo, flush=True)
        return Completed(argv=tuple(argv), returncode=0)

    def _pass_on(self, child: subprocess.Popen[bytes], tail: deque[str], before: str) -> None:
        assert child.stdout is not None  # noqa: S101 - for the type checker; _popen made the pipe
        for raw in child.stdout:
            line = redact(raw.decode(errors="replace"))
            tail.append(line)
            self.live.write(before + line)
            self.live.flush()
        child.wait()


def _libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _checked(status: int, place: Path) -> None:
    import ctypes

    if status != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(place))


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return os.isatty(stream.fileno())
    except (OSError, ValueError):  # a captured stream has no descriptor
        return False


def _popen(
    argv: Sequence[str], call: Call, *, stdout: int | IO[str] | IO[bytes], stderr: int | IO[str] | IO[bytes]
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if call.stdin is None else subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **call.env},
            cwd=call.cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        missing = call.cwd if call.cwd is not None and not call.cwd.is_dir() else argv[0]
        raise EngineError(f"{str(missing)!r} does not exist here", hint="inv doctor") from error


@contextlib.contextmanager
def _supervised(child: subprocess.Popen[bytes], argv: Sequence[str], timeout: float | None) -> Iterator[None]:
    """End the child's group when the deadline passes or when this process is interrupted."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _end(child, signal.SIGTERM, grace=2.0)

    timer = threading.Timer(timeout, expire) if timeout is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    except KeyboardInterrupt:
        _end(child, signal.SIGINT, grace=_GRACE)
        raise Interrupted("interrupted; the command that ran was ended") from None
    except BaseException:
        _end(child, signal.SIGTERM, grace=2.0)
        raise
    finally:
        if timer is not None:
            timer.cancel()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
    if expired.is_set():
        raise DeadlineExceeded(f"{redact(shlex.join(argv))} took longer than {timeout:g} s and was ended")


@contextlib.contextmanager
def _watched(child: subprocess.Popen[bytes], call: Call) -> Iterator[None]:
    """End the child's group when its watch has found that it waits for nothing; raises what it found."""
    watch, ended = call.watch, threading.Event()
    if watch is None:
        yield
        return
    found: list[BuildkitTasksError] = []

    def look() -> None:
        while not found and not ended.wait(_WATCH):
            error = watch()
            if error is not None:
                found.append(error)
                _end(child, signal.SIGTERM, grace=2.0)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
    if found and child.returncode != 0:
        raise found[0]


def _end(child: subprocess.Popen[bytes], polite: int, grace: float) -> None:
    """Send ``polite`` to the child's group, wait, then KILL whatever is left of the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, polite)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(grace)
        finally:  # a second Ctrl-C waits no longer
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
