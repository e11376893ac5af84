"""Run other programs, or print their commands in a dry run.

Each child leads a session, so that a signal to its process group reaches its own children as well. After
its timeout it gets SIGTERM, then SIGKILL. No shell is involved, and secrets are redacted in everything
that is printed or kept for messages.
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
from typing import IO, TYPE_CHECKING, Any, Protocol

from buildkit_tasks.errors import BuildkitTasksError, DeadlineExceeded, EngineError, Interrupted
from buildkit_tasks.printable import escape_message, escape_output
from buildkit_tasks.system.output import allows_colour, tolerate_closed_pipe

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    _Output = int | IO[str] | IO[bytes]

__all__ = ["CommandResult", "CommandRunner", "SubprocessRunner", "print_bytes_of_paths", "redact"]

_GRACE_SECONDS = 10.0  # between SIGINT and SIGKILL: buildx needs time to cancel the build
_WATCH_INTERVAL = 5.0  # seconds between calls of CommandOptions.watch
_TAIL_LINES = 200  # of a streamed command's output, kept for messages

_SURROGATE = re.compile("[\ud800-\udfff]")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # ECMA-48, SGR

_SECRET_PATTERNS = (
    (re.compile(r"(?<=://)[^/\s@]+@"), "***@"),
    (re.compile(r"(?i)(authorization:\s*(?:bearer\s+|basic\s+)?)\S+"), r"\1***"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/=-]{16,}"), r"\1***"),
)


def print_bytes_of_paths(text: str, stream: IO[str]) -> None:
    """Print a line as the bytes that it stands for: names of files need not be UTF-8 (PEP 383).

    What a stream for text alone cannot hold is written as escapes.
    """
    encoding, buffer = getattr(stream, "encoding", None) or "utf-8", getattr(stream, "buffer", None)
    try:
        line = f"{text}\n".encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        line = f"{text}\n".encode(encoding, "backslashreplace")
    with tolerate_closed_pipe(stream):
        if buffer is None:
            stream.write(line.decode(encoding, "backslashreplace"))
        else:
            stream.flush()
            buffer.write(line)


def redact(text: str) -> str:
    """Replace user information in URLs and the values of Authorization headers by ``***``."""
    for pattern, replacement in _SECRET_PATTERNS:
        text = pattern.sub(replacement, text)
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A finished command; ``returncode`` is negative for a signal, as in :mod:`subprocess`."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str = ""
    stderr: str = ""

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.returncode == 0

    @property
    def reason(self) -> str:
        """The last line of standard error, without ``ERROR:``, or a description of the exit status."""
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        if not lines:
            return f"{self.argv[0]} ended with status {self.returncode}"
        return lines[-1].removeprefix("ERROR: ")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOptions:
    """Additional environment, standard input, timeout in seconds and working directory of a command.

    ``watch`` is called every five seconds while the command runs. An error that it returns ends the
    command and is raised.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes | None = None
    timeout: float | None = None
    cwd: Path | None = None
    watch: Callable[[], BuildkitTasksError | None] | None = None


_DEFAULT_OPTIONS = CommandOptions()


class CommandRunner(Protocol):
    """Runs commands and changes kernel state for services. Tests use a scripted one."""

    @property
    def dry_run(self) -> bool:
        """Whether commands that change something are printed instead of run."""

    def run(
        self, argv: Sequence[str], options: CommandOptions = _DEFAULT_OPTIONS, *, mutates: bool = False
    ) -> CommandResult:
        """Run a command and capture its output."""

    def stream(
        self, argv: Sequence[str], options: CommandOptions = _DEFAULT_OPTIONS, *, label: str = ""
    ) -> CommandResult:
        """Run a command that changes something and show its output, each line after ``label``."""

    def interrupt(self) -> None:
        """Interrupt the commands of all threads."""

    def start_daemon(
        self, argv: Sequence[str], log_path: Path, options: CommandOptions = _DEFAULT_OPTIONS
    ) -> int:
        """Start a daemon that outlives this process; return its pid."""

    def write_kernel_file(self, path: Path, data: bytes) -> None:
        """Write to a kernel file such as binfmt_misc's ``register``."""

    def mount(self, filesystem: str, mount_point: Path) -> None:
        """Mount a pseudo file system such as binfmt_misc."""

    def unmount(self, mount_point: Path) -> None:
        """Unmount a file system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubprocessRunner:
    """Runs commands as child processes. A dry run prints to ``dry_run_output``."""

    dry_run: bool = False
    dry_run_output: IO[str] = field(default_factory=lambda: sys.stdout)
    stream_output: IO[str] = field(default_factory=lambda: sys.stderr)
    _children: set[subprocess.Popen[bytes]] = field(
        default_factory=set, init=False, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        _stop_ignoring_interrupts()

    def run(
        self, argv: Sequence[str], options: CommandOptions = _DEFAULT_OPTIONS, *, mutates: bool = False
    ) -> CommandResult:
        """Run a command and return its exit status and output, whatever the status is.

        If ``mutates``, a dry run prints the command and reports success. Raises :class:`EngineError` if
        the program does not exist, :class:`DeadlineExceeded` after the timeout and :class:`Interrupted`
        on Ctrl-C, once the process group has ended.
        """
        if mutates and self.dry_run:
            return self._print_command(argv, options)
        with self._start_child(argv, options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
            stdout, stderr = child.communicate(options.stdin)
        return CommandResult(
            argv=tuple(argv),
            returncode=child.returncode,
            stdout=stdout.decode(errors="replace"),
            stderr=redact(stderr.decode(errors="replace")),
        )

    def stream(
        self, argv: Sequence[str], options: CommandOptions = _DEFAULT_OPTIONS, *, label: str = ""
    ) -> CommandResult:
        """Run a command with its output on ``stream_output``; nothing is written to our stdout.

        On a terminal, without a label, the child writes to it directly, colours and cursor movements
        included. Otherwise its lines are redacted, prefixed with ``label`` and forwarded, and the last
        ones are returned in ``stderr``. Raises the same errors as :meth:`run`.
        """
        if self.dry_run:
            return self._print_command(argv, options)
        if _is_terminal(self.stream_output) and not label:
            output = self.stream_output
            with (
                self._start_child(argv, options, stdout=output, stderr=output) as child,
                _feed_stdin(child, options.stdin),
            ):
                child.wait()
            return CommandResult(argv=tuple(argv), returncode=child.returncode)
        tail: deque[str] = deque(maxlen=_TAIL_LINES)
        with (
            self._start_child(argv, options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child,
            _feed_stdin(child, options.stdin),
        ):
            self._forward_output(child, tail, f"{label} | " if label else "")
        return CommandResult(argv=tuple(argv), returncode=child.returncode, stderr="".join(tail))

    def interrupt(self) -> None:
        """Interrupt the commands of all threads: Python raises KeyboardInterrupt in the main thread only."""
        children = tuple(self._children)
        threads = [
            threading.Thread(target=_terminate_group, args=(each, signal.SIGINT, _GRACE_SECONDS))
            for each in children
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    @contextlib.contextmanager
    def _start_child(
        self, argv: Sequence[str], options: CommandOptions, *, stdout: _Output, stderr: _Output
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Start a child, enforce its timeout and watch, and let :meth:`interrupt` end it meanwhile."""
        with _deferred_interrupts() as deliver_interrupts:
            child = _open_process(argv, options, stdout=stdout, stderr=stderr)
            self._children.add(child)
            try:
                with _watch_child(child, options), _enforce_deadline(child, argv, options.timeout):
                    deliver_interrupts()
                    yield child
            finally:
                self._children.discard(child)

    def start_daemon(
        self, argv: Sequence[str], log_path: Path, options: CommandOptions = _DEFAULT_OPTIONS
    ) -> int:
        """Start a daemon that outlives this process, its output appended to ``log_path``."""
        if self.dry_run:
            self._print_command(argv, options)
            return 0
        with log_path.open("ab") as output:
            child = _open_process(argv, options, stdout=output, stderr=output)
        child.returncode = 0  # avoids the ResourceWarning for a child that is still running
        return child.pid

    def write_kernel_file(self, path: Path, data: bytes) -> None:
        """Write ``data`` with one system call, as binfmt_misc requires; a dry run prints a command."""
        if self.dry_run:
            quoted_data = shlex.quote(data.decode("latin-1"))
            print_bytes_of_paths(f"printf %s {quoted_data} > {path}", self.dry_run_output)
            return
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def mount(self, filesystem: str, mount_point: Path) -> None:
        """Mount a pseudo file system by system call, as there may be no ``mount`` program.

        Raises :class:`OSError`.
        """
        if self.dry_run:
            self._print_command(["mount", "-t", filesystem, filesystem, str(mount_point)], _DEFAULT_OPTIONS)
            return
        filesystem_name = filesystem.encode()
        _check_errno(
            _load_libc().mount(filesystem_name, os.fsencode(mount_point), filesystem_name, 0, None),
            mount_point,
        )

    def unmount(self, mount_point: Path) -> None:
        """Unmount a file system. Raises :class:`OSError`."""
        if self.dry_run:
            self._print_command(["umount", str(mount_point)], _DEFAULT_OPTIONS)
            return
        _check_errno(_load_libc().umount2(os.fsencode(mount_point), 0), mount_point)

    def _print_command(self, argv: Sequence[str], options: CommandOptions) -> CommandResult:
        env_assignments = [f"{name}={_quote_argument(value)}" for name, value in options.env.items()]
        line = " ".join([*env_assignments, *map(_quote_argument, argv)])
        print_bytes_of_paths(redact(line), self.dry_run_output)
        return CommandResult(argv=tuple(argv), returncode=0)

    def _forward_output(self, child: subprocess.Popen[bytes], tail: deque[str], prefix: str) -> None:
        assert child.stdout is not None  # noqa: S101 - for the type checker; the pipe exists
        keep_colours = allows_colour(os.environ)
        for raw_line in child.stdout:
            line = redact(raw_line.decode(errors="replace"))
            # buildx prints the number of warnings in yellow, whatever its environment and --progress are.
            line = line if keep_colours else _COLOUR.sub("", line)
            # The programs of a build print what they like, through buildx.
            line = escape_output(line)
            tail.append(line)
            with tolerate_closed_pipe(self.stream_output):
                self.stream_output.write(prefix + line)
        child.wait()


def _quote_argument(argument: str) -> str:
    """Quote an argument for a shell; with escapes (``$'...'``, POSIX.1-2024) if it would not be printable.

    Names of files that are not UTF-8 stay as they are.
    """
    text = _SURROGATE.sub("", argument)
    if escape_message(text) == text:
        return shlex.quote(argument)
    return f"$'{''.join(map(_escape_byte, os.fsencode(argument)))}'"


def _escape_byte(byte: int) -> str:
    character = chr(byte)
    is_safe = character.isascii() and (character.isalnum() or character in " ,-./=_")
    return character if is_safe else f"\\{byte:03o}"


def _stop_ignoring_interrupts() -> None:
    """Handle SIGINT and SIGQUIT by doing nothing where they are ignored, so that children do not ignore them.

    A shell script starts its background jobs with both ignored. execve(2) keeps ignored signals ignored,
    but resets handled ones to the default.
    """
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        return
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def _load_libc() -> ctypes.CDLL:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _check_errno(status: int, mount_point: Path) -> None:
    import ctypes

    if status != 0:
        error_number = ctypes.get_errno()
        raise OSError(error_number, os.strerror(error_number), str(mount_point))


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return os.isatty(stream.fileno())
    except (OSError, ValueError):  # a captured stream has no file descriptor
        return False


@contextlib.contextmanager
def _deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Keep SIGINT and SIGTERM until the yielded function is called, or the context is left.

    An exception out of :class:`subprocess.Popen` would lose a child that has started already.
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def deliver() -> None:
        while handlers:
            signal.signal(*handlers.popitem())
        while received:
            signal.raise_signal(received.pop())

    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda signum, _: received.append(signum))
    try:
        yield deliver
    finally:
        deliver()


def _open_process(
    argv: Sequence[str], options: CommandOptions, *, stdout: _Output, stderr: _Output
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if options.stdin is None else subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            env={**os.environ, **options.env},
            cwd=options.cwd,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        missing_path = options.cwd if options.cwd is not None and not options.cwd.is_dir() else argv[0]
        raise EngineError(f"{str(missing_path)!r} does not exist", hint="inv doctor") from error


@contextlib.contextmanager
def _enforce_deadline(
    child: subprocess.Popen[bytes], argv: Sequence[str], timeout: float | None
) -> Iterator[None]:
    """End the child's process group after the timeout, on Ctrl-C and on any other exception."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        _terminate_group(child, signal.SIGTERM, grace_seconds=2.0)

    timer = threading.Timer(timeout, expire) if timeout is not None else None
    if timer is not None:
        timer.daemon = True
        timer.start()
    try:
        yield
    except KeyboardInterrupt:
        _terminate_group(child, signal.SIGINT, grace_seconds=_GRACE_SECONDS)
        raise Interrupted("interrupted; the running command was ended") from None
    except BaseException:
        _terminate_group(child, signal.SIGTERM, grace_seconds=2.0)
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
def _feed_stdin(child: subprocess.Popen[bytes], data: bytes | None) -> Iterator[None]:
    """Write a child's standard input in a thread, since the child may write output before it reads."""
    pipe = child.stdin
    if pipe is None or data is None:
        yield
        return

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), pipe:  # a child may end without reading
            pipe.write(data)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join()


@contextlib.contextmanager
def _watch_child(child: subprocess.Popen[bytes], options: CommandOptions) -> Iterator[None]:
    """End the child's process group when ``options.watch`` returns an error, and raise that error.

    A command that has succeeded meanwhile counts as successful.
    """
    watch, finished = options.watch, threading.Event()
    if watch is None:
        yield
        return
    errors: list[BuildkitTasksError] = []

    def poll_watch() -> None:
        while not errors and not finished.wait(_WATCH_INTERVAL):
            error = watch()
            if error is not None:
                errors.append(error)
                _terminate_group(child, signal.SIGTERM, grace_seconds=2.0)

    thread = threading.Thread(target=poll_watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
    if errors and child.returncode != 0:
        raise errors[0]


def _terminate_group(child: subprocess.Popen[bytes], first_signal: int, grace_seconds: float) -> None:
    """Send ``first_signal`` to the child's process group, wait for the child, then send SIGKILL."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, first_signal)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(grace_seconds)
        finally:  # also when a second Ctrl-C interrupts the wait
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()
