from __future__ import annotations

import io
import os
import pty
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.errors import DeadlineExceeded, EngineError, Interrupted
from buildkit_tasks.system.command import (
    CommandOptions,
    CommandResult,
    SubprocessRunner,
    _deferred_interrupts,
    redact,
)
from buildkit_tasks.system.process import Process
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

PYTHON = sys.executable


def python_argv(code: str, *arguments: str) -> list[str]:
    return [PYTHON, "-I", "-c", code, *arguments]


def has_ended(pid: int) -> bool:
    try:
        return not Process.from_pid(pid).is_alive
    except ProcessLookupError:
        return True


def test_arguments_are_passed_unchanged() -> None:
    arguments = ["two arguments", "$HOME", "`id`", "a'b\"c", "*", "", "line\nbreak", "--flag=x;y"]
    result = SubprocessRunner().run(
        python_argv("import sys; sys.stdout.write('\\0'.join(sys.argv[1:]))", *arguments)
    )
    assert result.stdout.split("\0") == arguments


def test_status_and_output() -> None:
    result = SubprocessRunner().run(
        python_argv("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    )
    assert (result.returncode, result.ok, result.stdout, result.stderr) == (7, False, "out\n", "err\n")
    assert SubprocessRunner().run(python_argv("")).ok


def test_death_by_signal() -> None:
    result = SubprocessRunner().run(python_argv("import os; os.kill(os.getpid(), 9)"))
    assert (result.returncode, result.ok) == (-9, False)


def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    code = "import os, sys; print(sys.stdin.read(), os.environ['ADDED'], os.environ['KEPT'], os.getcwd())"
    result = SubprocessRunner().run(
        python_argv(code), CommandOptions(stdin=b"in", env={"ADDED": "added"}, cwd=tmp_path)
    )
    assert result.stdout.split() == ["in", "added", "kept", str(tmp_path)]
    result = SubprocessRunner().run(
        python_argv(code), CommandOptions(stdin=b"in", env={"ADDED": "x", "KEPT": "replaced"})
    )
    assert result.stdout.split()[:3] == ["in", "x", "replaced"]


READ_STDIN = """
import sys
from buildkit_tasks.system.command import SubprocessRunner
print(SubprocessRunner().run([sys.executable, "-I", "-c",
"import sys; print(repr(sys.stdin.read()))"]).stdout)
"""


def test_empty_stdin() -> None:
    result = subprocess.run(
        [PYTHON, "-c", READ_STDIN], input="ours", capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "''"


def test_invalid_utf8_output() -> None:
    result = SubprocessRunner().run(python_argv("import sys; sys.stdout.buffer.write(b'a\\xffb')"))
    assert result.stdout == "a\ufffdb"


def test_missing_program() -> None:
    with pytest.raises(EngineError, match="'no-such-program-here' does not exist") as excinfo:
        SubprocessRunner().run(["no-such-program-here"])
    assert excinfo.value.hint == "inv doctor"


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as excinfo:
        SubprocessRunner().run(python_argv(""), CommandOptions(cwd=tmp_path / "gone"))
    assert str(tmp_path / "gone") in excinfo.value.message


def test_reason() -> None:
    with_output = CommandResult(argv=("x",), returncode=3, stderr="first\n  ERROR: why  \n\n")
    without_output = CommandResult(argv=("docker", "x"), returncode=3, stderr=" \n")
    assert with_output.reason == "why"
    assert without_output.reason == "docker ended with status 3"


IGNORE_SIGTERM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(600)
    os._exit(0)
{last_step}
"""


@pytest.mark.timeout(120)  # less than the processes sleep
@pytest.mark.parametrize(
    "last_step",
    [
        pytest.param("time.sleep(600)", id="child-waits"),
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(600)", id="child-ends"),
        pytest.param("os._exit(0)", id="child-is-gone"),
    ],
)
def test_timeout_kills_process_group(tmp_path: Path, last_step: str) -> None:
    pid_file = tmp_path / "pid"
    with pytest.raises(DeadlineExceeded, match=r"took longer than 0\.5 s and was ended"):
        SubprocessRunner().run(
            python_argv(IGNORE_SIGTERM.format(last_step=last_step), str(pid_file)),
            CommandOptions(timeout=0.5),
        )
    wait_until(lambda: has_ended(int(pid_file.read_text(encoding="utf-8"))))


def test_stream_timeout(tmp_path: Path) -> None:
    stream = io.StringIO()
    code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(DeadlineExceeded):
        SubprocessRunner(stream_output=stream).stream(
            python_argv(code), CommandOptions(timeout=0.5, cwd=tmp_path)
        )
    wait_until(lambda: has_ended(int(stream.getvalue())))


IGNORE_SIGINT = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: pathlib.Path(sys.argv[1]).with_name("received").touch())
path = pathlib.Path(sys.argv[1])
path.with_name("writing").write_text(str(os.getpid()))
path.with_name("writing").rename(path)
while True:
    time.sleep(60)
"""


def test_command_within_timeout() -> None:
    assert SubprocessRunner().run(python_argv("print(1)"), CommandOptions(timeout=30)).stdout == "1\n"


RUN_UNTIL_INTERRUPTED = """
import io, signal, sys
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.errors import Interrupted
signal.signal(signal.SIGINT, signal.default_int_handler)
runner = SubprocessRunner(stream_output=io.StringIO())
try:
    getattr(runner, sys.argv[1])([sys.executable, "-I", "-c", sys.argv[2], sys.argv[3]])
except Interrupted as error:
    sys.exit(error.exit_code)
sys.exit("nothing was raised")
"""

CLEAN_UP = """
import pathlib, signal, sys, time
path = pathlib.Path(sys.argv[1])
def clean_up(*_):
    path.with_name("cleaned").touch()
    sys.exit(0)
signal.signal(signal.SIGINT, clean_up)
path.touch()
time.sleep(60)
"""


CLEAN_UP_IN_GRANDCHILD = f"""
import os, signal
if os.fork():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.wait()
    os._exit(0)
{CLEAN_UP}
"""


@pytest.mark.parametrize(
    ("method", "code"),
    [
        pytest.param("run", CLEAN_UP, id="run"),
        pytest.param("stream", CLEAN_UP, id="stream"),
        pytest.param("run", CLEAN_UP_IN_GRANDCHILD, id="grandchild"),
    ],
)
def test_ctrl_c_is_forwarded(tmp_path: Path, method: str, code: str) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [PYTHON, "-c", RUN_UNTIL_INTERRUPTED, method, code, str(ready)], stderr=subprocess.PIPE
    )
    try:
        wait_until(ready.exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, stderr) == (130, b"")
    assert (tmp_path / "cleaned").exists()


def test_second_ctrl_c_kills(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = subprocess.Popen(
        [PYTHON, "-c", RUN_UNTIL_INTERRUPTED, "run", IGNORE_SIGINT, str(ready)], stderr=subprocess.DEVNULL
    )
    try:
        wait_until(ready.exists)
        process.send_signal(signal.SIGINT)
        wait_until((tmp_path / "received").exists)
        process.send_signal(signal.SIGINT)
        process.wait(120)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: has_ended(int(ready.read_text(encoding="utf-8"))))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_during_start(monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    started = []

    class InterruptedPopen(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    previous = signal.signal(number, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted):
            SubprocessRunner().run(["sleep", "600"])
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, previous)
    assert [child.returncode for child in started] == [-signal.SIGINT]


def dry_runner() -> tuple[SubprocessRunner, io.StringIO]:
    output = io.StringIO()
    return SubprocessRunner(dry_run=True, dry_run_output=output), output


def test_dry_run_output(tmp_path: Path) -> None:
    runner, output = dry_runner()
    path = tmp_path / "it's here"
    argv = python_argv("import os, sys; open(sys.argv[1], 'w').write(os.environ['NOTE'])", str(path))
    result = runner.run(argv, CommandOptions(env={"NOTE": "two words; $HOME"}), mutates=True)
    assert result.ok
    assert not path.exists()
    subprocess.run(["/bin/sh", "-c", output.getvalue()], check=True)
    assert path.read_text(encoding="utf-8") == "two words; $HOME"
    assert shlex.split(output.getvalue()) == ["NOTE=two words; $HOME", *argv]


def test_dry_run_runs_queries() -> None:
    runner, output = dry_runner()
    assert runner.run(python_argv("print('shown')")).stdout == "shown\n"
    assert output.getvalue() == ""


def test_dry_run_changes_nothing(tmp_path: Path) -> None:
    runner, output = dry_runner()
    entry, log = tmp_path / "register", tmp_path / "log"
    entry.touch()
    assert runner.stream(["docker", "buildx", "build", "--", "."]).ok
    assert runner.start_daemon(["dockerd", "--config-file=x"], log) == 0
    runner.write_kernel_file(entry, b":a b:\\x7f")
    runner.mount("binfmt_misc", tmp_path / "missing")
    runner.unmount(tmp_path / "missing")
    assert entry.read_bytes() == b""
    assert not log.exists()
    assert output.getvalue().splitlines() == [
        "docker buildx build -- .",
        "dockerd --config-file=x",
        f"printf %s ':a b:\\x7f' > {entry}",
        f"mount -t binfmt_misc binfmt_misc {tmp_path}/missing",
        f"umount {tmp_path}/missing",
    ]


def test_refused_mount_is_an_error(tmp_path: Path) -> None:
    runner, mount_point = SubprocessRunner(), tmp_path / "missing"
    with pytest.raises(FileNotFoundError):
        runner.mount("binfmt_misc", mount_point)
    with pytest.raises(FileNotFoundError):
        runner.unmount(mount_point)


def test_write_kernel_file(tmp_path: Path) -> None:
    entry = tmp_path / "register"
    entry.touch()
    SubprocessRunner().write_kernel_file(entry, b":x:")
    assert entry.read_bytes() == b":x:"
    with pytest.raises(FileNotFoundError):
        SubprocessRunner().write_kernel_file(tmp_path / "other", b"x")


def test_daemon(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    code = "import os; print('out', os.getsid(0) == os.getpid()); print('err', file=__import__('sys').stderr)"
    os.waitpid(SubprocessRunner().start_daemon(python_argv(code), log), 0)
    assert sorted(log.read_text(encoding="utf-8").splitlines()) == ["before", "err", "out True"]


SECRET = "hunter2-hunter2-hunter2"  # noqa: S105 - not a real one


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (f"https://user:{SECRET}@example.org/x", "https://***@example.org/x"),
        (f"fetch https://{SECRET}@example.org", "fetch https://***@example.org"),
        (f"Authorization: Basic {SECRET}", "Authorization: Basic ***"),
        (f"authorization: {SECRET}", "authorization: ***"),
        (f"AUTHORIZATION: bearer {SECRET}\nnext", "AUTHORIZATION: bearer ***\nnext"),
        (f"sent bearer {SECRET} to it", "sent bearer *** to it"),
        ("a@b.org wrote", "a@b.org wrote"),
        ("https://example.org/a@sha256:0", "https://example.org/a@sha256:0"),
        ("the bearer of news", "the bearer of news"),
    ],
)
def test_redact(text: str, redacted: str) -> None:
    assert redact(text) == redacted


def test_output_is_redacted() -> None:
    url, header = f"https://me:{SECRET}@example.org/x", f"Authorization: Bearer {SECRET}"
    runner, output = dry_runner()
    runner.run(
        ["fetch", url, header], CommandOptions(env={"HTTPS_PROXY": f"http://me:{SECRET}@proxy"}), mutates=True
    )
    assert SECRET not in output.getvalue()
    code = "import sys; print(*sys.argv[1:], file=sys.stderr, sep='\\n')"
    result = SubprocessRunner().run(python_argv(code, url, header))
    assert result.stderr == "https://***@example.org/x\nAuthorization: Bearer ***\n"
    stream = io.StringIO()
    result = SubprocessRunner(stream_output=stream).stream(python_argv(code, url, header))
    assert result.stderr == stream.getvalue() == "https://***@example.org/x\nAuthorization: Bearer ***\n"


PRINT_IGNORED_SIGNALS = """
import sys
from buildkit_tasks.system.command import SubprocessRunner
runner = SubprocessRunner()
print(runner.run(["grep", "SigIgn", "/proc/self/status"]).stdout)
"""


def test_child_does_not_ignore_signals() -> None:
    # A shell without job control starts background jobs with SIGINT and SIGQUIT ignored.
    in_background = ["sh", "-c", '"$@" & wait $!', "sh"]
    output = subprocess.check_output([*in_background, "grep", "SigIgn", "/proc/self/status"])
    assert int(output.split()[1], 16) & 0b110
    output = subprocess.check_output([*in_background, PYTHON, "-c", PRINT_IGNORED_SIGNALS])
    assert int(output.split()[1], 16) & 0b110 == 0


def test_timeout_message_is_redacted() -> None:
    url = f"https://me:{SECRET}@example.org/x"
    with pytest.raises(DeadlineExceeded) as excinfo:
        SubprocessRunner().run(python_argv("import time; time.sleep(60)", url), CommandOptions(timeout=0.2))
    assert SECRET not in str(excinfo.value)


def test_stream_forwards_output(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    code = (
        "import sys\nfor n in range(500): print(n, flush=True)\nprint('last', file=sys.stderr)\nsys.exit(4)"
    )
    result = SubprocessRunner(stream_output=stream).stream(python_argv(code))
    assert stream.getvalue().splitlines() == [*map(str, range(500)), "last"]
    tail = result.stderr.splitlines()
    assert tail == [*map(str, range(301, 500)), "last"]
    assert (result.returncode, result.stdout) == (4, "")
    assert capfd.readouterr() == ("", "")


STREAM_COMMAND = """
import sys
from buildkit_tasks.system.command import SubprocessRunner
SubprocessRunner(stream_output=sys.stdout).stream(sys.argv[1:])
"""


def test_child_ends_if_its_output_cannot_be_shown(tmp_path: Path) -> None:
    stream, pid_file = io.StringIO(), tmp_path / "pid"
    stream.close()
    code = (
        "import os, pathlib, sys, time\npathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "print('shown', flush=True)\ntime.sleep(60)"
    )
    with pytest.raises(ValueError, match="closed file"):
        SubprocessRunner(stream_output=stream).stream(python_argv(code, str(pid_file)))
    assert has_ended(int(pid_file.read_text(encoding="utf-8")))


@pytest.mark.timeout(60)
def test_stream_feeds_stdin() -> None:
    stream = io.StringIO()
    code = "import sys; print('x' * 300_000); sys.stdout.flush(); print(len(sys.stdin.read()))"
    options = CommandOptions(stdin=b"y" * 300_000)  # more than a pipe holds, in both directions
    assert SubprocessRunner(stream_output=stream).stream(python_argv(code), options).ok
    assert stream.getvalue().splitlines()[1] == "300000"


def test_stdin_that_is_not_read() -> None:
    options = CommandOptions(stdin=b"y" * 300_000)
    assert SubprocessRunner(stream_output=io.StringIO()).stream(python_argv("pass"), options).ok


def test_stream_is_unbuffered(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    continue_file = tmp_path / "go"
    code = (
        "import pathlib, sys, time\nprint('early', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    )
    argv = python_argv(code, str(continue_file))
    with os.fdopen(reader, encoding="utf-8") as output, os.fdopen(writer, "w", encoding="utf-8") as stream:
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen([PYTHON, "-c", STREAM_COMMAND, *argv], stdout=stream, env=env)
        try:
            assert output.readline() == "early\n"
            continue_file.touch()
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.wait()


def test_stream_on_terminal() -> None:
    master, slave = pty.openpty()
    try:
        with os.fdopen(slave, "w", encoding="utf-8") as stream:
            on_terminal = "sys.stdout.isatty() and sys.stderr.isatty()"
            code = f"import sys; print('shown'); sys.exit(5 if {on_terminal} else 9)"
            result = SubprocessRunner(stream_output=stream).stream(python_argv(code))
        assert (result.returncode, result.stderr) == (5, "")
        assert os.read(master, 100) == b"shown\r\n"
    finally:
        os.close(master)


def test_started_child_is_known() -> None:
    runner, handler = SubprocessRunner(), signal.getsignal(signal.SIGINT)
    output = subprocess.DEVNULL
    with runner._start_child(["true"], CommandOptions(), stdout=output, stderr=output) as child:
        known, handler_meanwhile = set(runner._children), signal.getsignal(signal.SIGINT)
        child.wait()
    assert (known, runner._children) == ({child}, set())
    assert handler_meanwhile == handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_deferred_signal(number: signal.Signals) -> None:
    received: list[int] = []
    previous = signal.signal(number, lambda number, _: received.append(number))
    try:
        with _deferred_interrupts() as deliver:
            signal.raise_signal(number)
            assert received == []
            deliver()
            assert received == [number]
            signal.raise_signal(number)
        assert received == [number, number]
    finally:
        signal.signal(number, previous)


def test_interrupt_ends_all_threads() -> None:
    runner = SubprocessRunner(stream_output=io.StringIO())
    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(runner.stream, ["sleep", "600"], label=name) for name in ("a", "b")]
        futures.append(pool.submit(runner.run, ["sleep", "600"]))
        wait_until(lambda: len(runner._children) == 3)
        runner.interrupt()
        assert [future.result(timeout=120).returncode for future in futures] == [-signal.SIGINT] * 3
    assert runner._children == set()


@pytest.mark.parametrize(
    ("environ", "heading"),
    [
        ({}, "\x1b[33m1 warning\x1b[0m\n"),
        ({"CI": "true"}, "1 warning\n"),
        ({"NO_COLOR": "1"}, "1 warning\n"),
        ({"NO_COLOR": ""}, "\x1b[33m1 warning\x1b[0m\n"),
    ],
)
def test_colours_of_child(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], heading: str) -> None:
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    code = r"print('\x1b[33m1 warning\x1b[0m')"
    result = SubprocessRunner(stream_output=stream).stream(python_argv(code))
    assert (stream.getvalue(), result.stderr) == (heading, heading)
