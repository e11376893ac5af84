from __future__ import annotations

import io
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from buildkit_tasks.errors import DeadlineExceeded, EngineError
from buildkit_tasks.system.command import CommandOptions, CommandResult, SubprocessRunner, redact
from buildkit_tasks.system.process import Process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PYTHON = sys.executable


def child(code: str, *arguments: str) -> list[str]:
    return [PYTHON, "-I", "-c", code, *arguments]


def until(holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return not Process.from_pid(pid).is_alive
    except ProcessLookupError:
        return True


def test_every_word_reaches_the_child_as_it_is() -> None:
    words = ["two words", "$HOME", "`id`", "a'b\"c", "*", "", "line\nbreak", "--flag=x;y"]
    done = SubprocessRunner().run(child("import sys; sys.stdout.write('\\0'.join(sys.argv[1:]))", *words))
    assert done.stdout.split("\0") == words


def test_status_and_both_outputs_are_given_whatever_the_status_is() -> None:
    done = SubprocessRunner().run(
        child("import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)")
    )
    assert (done.returncode, done.ok, done.stdout, done.stderr) == (7, False, "out\n", "err\n")
    assert SubprocessRunner().run(child("")).ok


def test_a_signal_is_no_success() -> None:
    done = SubprocessRunner().run(child("import os; os.kill(os.getpid(), 9)"))
    assert (done.returncode, done.ok) == (-9, False)


def test_input_environment_and_folder_are_the_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "kept")
    code = "import os, sys; print(sys.stdin.read(), os.environ['ADDED'], os.environ['KEPT'], os.getcwd())"
    done = SubprocessRunner().run(
        child(code), CommandOptions(stdin=b"in", env={"ADDED": "added"}, cwd=tmp_path)
    )
    assert done.stdout.split() == ["in", "added", "kept", str(tmp_path)]
    done = SubprocessRunner().run(
        child(code), CommandOptions(stdin=b"in", env={"ADDED": "x", "KEPT": "replaced"})
    )
    assert done.stdout.split()[:3] == ["in", "x", "replaced"]


READS = """
import sys
from buildkit_tasks.system.command import SubprocessRunner
print(SubprocessRunner().run([sys.executable, "-I", "-c",
"import sys; print(repr(sys.stdin.read()))"]).stdout)
"""


def test_without_input_a_child_reads_nothing_of_ours() -> None:
    done = subprocess.run([PYTHON, "-c", READS], input="ours", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "''"


def test_bytes_that_are_no_text_do_no_harm() -> None:
    done = SubprocessRunner().run(child("import sys; sys.stdout.buffer.write(b'a\\xffb')"))
    assert done.stdout == "a\ufffdb"


def test_a_missing_program_is_named_with_a_next_command() -> None:
    with pytest.raises(EngineError, match="'no-such-program-here' does not exist") as caught:
        SubprocessRunner().run(["no-such-program-here"])
    assert caught.value.hint == "inv doctor"


def test_a_missing_folder_is_not_taken_for_a_missing_program(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        SubprocessRunner().run(child(""), CommandOptions(cwd=tmp_path / "gone"))
    assert str(tmp_path / "gone") in caught.value.message


def test_the_reason_is_the_last_line_that_says_something() -> None:
    said = CommandResult(argv=("x",), returncode=3, stderr="first\n  ERROR: why  \n\n")
    silent = CommandResult(argv=("docker", "x"), returncode=3, stderr=" \n")
    assert said.reason == "ERROR: why"
    assert silent.reason == "docker ended with status 3"


IGNORES_TERM = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(60)
    os._exit(0)
{then}
"""


@pytest.mark.parametrize(
    "then",
    [
        pytest.param("time.sleep(60)", id="child-waits"),
        pytest.param("signal.signal(signal.SIGTERM, signal.SIG_DFL); time.sleep(60)", id="child-obeys"),
        pytest.param("os._exit(0)", id="child-is-gone"),
    ],
)
def test_past_the_deadline_a_grandchild_that_ignores_term_is_ended_too(tmp_path: Path, then: str) -> None:
    noted = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"took longer than 0\.5 s and was ended"):
        SubprocessRunner().run(child(IGNORES_TERM.format(then=then), str(noted)), CommandOptions(timeout=0.5))
    assert time.monotonic() - started < 10
    until(lambda: gone(int(noted.read_text(encoding="utf-8"))))


def test_a_streamed_command_has_a_deadline_too(tmp_path: Path) -> None:
    live = io.StringIO()
    code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(DeadlineExceeded):
        SubprocessRunner(stream_output=live).stream(child(code), CommandOptions(timeout=0.5, cwd=tmp_path))
    until(lambda: gone(int(live.getvalue())))


STUBBORN = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGINT, lambda *_: pathlib.Path(sys.argv[1]).with_name("heard").touch())
place = pathlib.Path(sys.argv[1])
place.with_name("writing").write_text(str(os.getpid()))
place.with_name("writing").rename(place)
while True:
    time.sleep(60)
"""


def test_a_command_that_ends_in_time_is_left_alone() -> None:
    assert SubprocessRunner().run(child("print(1)"), CommandOptions(timeout=30)).stdout == "1\n"


INTERRUPTED = """
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

TIDY = """
import pathlib, signal, sys, time
place = pathlib.Path(sys.argv[1])
def tidy(*_):
    place.with_name("tidied").touch()
    sys.exit(0)
signal.signal(signal.SIGINT, tidy)
place.touch()
time.sleep(60)
"""


@pytest.mark.parametrize("how", ["run", "stream"])
def test_ctrl_c_is_passed_on_and_waited_for(tmp_path: Path, how: str) -> None:
    ready = tmp_path / "ready"
    ours = subprocess.Popen([PYTHON, "-c", INTERRUPTED, how, TIDY, str(ready)], stderr=subprocess.PIPE)
    try:
        until(ready.exists)
        ours.send_signal(signal.SIGINT)
        _, said = ours.communicate(timeout=20)
    finally:
        ours.kill()
        ours.wait()
    assert (ours.returncode, said) == (130, b"")
    assert (tmp_path / "tidied").exists()


def test_a_second_ctrl_c_waits_no_longer_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ours = subprocess.Popen(
        [PYTHON, "-c", INTERRUPTED, "run", STUBBORN, str(ready)], stderr=subprocess.DEVNULL
    )
    try:
        until(ready.exists)
        ours.send_signal(signal.SIGINT)
        until((tmp_path / "heard").exists)
        ours.send_signal(signal.SIGINT)
        ours.wait(5)
    finally:
        ours.kill()
        ours.wait()
    until(lambda: gone(int(ready.read_text(encoding="utf-8"))))


def dry() -> tuple[SubprocessRunner, io.StringIO]:
    page = io.StringIO()
    return SubprocessRunner(dry_run=True, dry_run_output=page), page


def test_a_dry_run_prints_what_a_shell_would_run_the_same_way_and_runs_nothing(tmp_path: Path) -> None:
    runner, page = dry()
    mark = tmp_path / "it's here"
    argv = child("import os, sys; open(sys.argv[1], 'w').write(os.environ['NOTE'])", str(mark))
    done = runner.run(argv, CommandOptions(env={"NOTE": "two words; $HOME"}), mutates=True)
    assert done.ok
    assert not mark.exists()
    subprocess.run(["/bin/sh", "-c", page.getvalue()], check=True)
    assert mark.read_text(encoding="utf-8") == "two words; $HOME"
    assert shlex.split(page.getvalue()) == ["NOTE=two words; $HOME", *argv]


def test_a_dry_run_still_looks() -> None:
    runner, page = dry()
    assert runner.run(child("print('seen')")).stdout == "seen\n"
    assert page.getvalue() == ""


def test_a_dry_run_streams_starts_and_writes_nothing(tmp_path: Path) -> None:
    runner, page = dry()
    entry, log = tmp_path / "register", tmp_path / "log"
    entry.touch()
    assert runner.stream(["docker", "buildx", "build", "--", "."]).ok
    assert runner.start_daemon(["dockerd", "--config-file=x"], log) == 0
    runner.write_kernel_file(entry, b":a b:\\x7f")
    assert entry.read_bytes() == b""
    assert not log.exists()
    assert page.getvalue().splitlines() == [
        "docker buildx build -- .",
        "dockerd --config-file=x",
        f"printf %s ':a b:\\x7f' > {entry}",
    ]


def test_a_write_reaches_the_file_in_one_piece_and_makes_none(tmp_path: Path) -> None:
    entry = tmp_path / "register"
    entry.touch()
    SubprocessRunner().write_kernel_file(entry, b":x:")
    assert entry.read_bytes() == b":x:"
    with pytest.raises(FileNotFoundError):
        SubprocessRunner().write_kernel_file(tmp_path / "other", b"x")


def test_a_daemon_is_started_in_a_session_of_its_own_and_writes_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    code = "import os; print('out', os.getsid(0) == os.getpid()); print('err', file=__import__('sys').stderr)"
    os.waitpid(SubprocessRunner().start_daemon(child(code), log), 0)
    assert sorted(log.read_text(encoding="utf-8").splitlines()) == ["before", "err", "out True"]


SECRET = "hunter2-hunter2-hunter2"  # noqa: S105 - nobody's


@pytest.mark.parametrize(
    ("text", "shown"),
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
def test_user_information_and_authorization_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_what_is_echoed_and_what_is_kept_holds_no_secret() -> None:
    url, header = f"https://me:{SECRET}@example.org/x", f"Authorization: Bearer {SECRET}"
    runner, page = dry()
    runner.run(
        ["fetch", url, header], CommandOptions(env={"HTTPS_PROXY": f"http://me:{SECRET}@proxy"}), mutates=True
    )
    assert SECRET not in page.getvalue()
    code = "import sys; print(*sys.argv[1:], file=sys.stderr, sep='\\n')"
    done = SubprocessRunner().run(child(code, url, header))
    assert done.stderr == "https://***@example.org/x\nAuthorization: Bearer ***\n"
    live = io.StringIO()
    done = SubprocessRunner(stream_output=live).stream(child(code, url, header))
    assert done.stderr == live.getvalue() == "https://***@example.org/x\nAuthorization: Bearer ***\n"


def test_a_deadlines_message_holds_no_secret_either() -> None:
    url = f"https://me:{SECRET}@example.org/x"
    with pytest.raises(DeadlineExceeded) as caught:
        SubprocessRunner().run(child("import time; time.sleep(60)", url), CommandOptions(timeout=0.2))
    assert SECRET not in str(caught.value)


def test_streamed_output_is_passed_on_and_its_end_kept(capfd: pytest.CaptureFixture[str]) -> None:
    live = io.StringIO()
    code = (
        "import sys\nfor n in range(500): print(n, flush=True)\nprint('last', file=sys.stderr)\nsys.exit(4)"
    )
    done = SubprocessRunner(stream_output=live).stream(child(code))
    assert live.getvalue().splitlines() == [*map(str, range(500)), "last"]
    kept = done.stderr.splitlines()
    assert kept == [*map(str, range(301, 500)), "last"]
    assert (done.returncode, done.stdout) == (4, "")
    assert capfd.readouterr() == ("", "")


STREAMS = """
import sys
from buildkit_tasks.system.command import SubprocessRunner
SubprocessRunner(stream_output=sys.stdout).stream(sys.argv[1:])
"""


@pytest.mark.timeout(30)
def test_a_streamed_line_is_shown_before_the_command_ends(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    go = tmp_path / "go"
    code = (
        "import pathlib, sys, time\nprint('early', flush=True)\n"
        "while not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)"
    )
    argv = child(code, str(go))
    with os.fdopen(reader, encoding="utf-8") as shown, os.fdopen(writer, "w", encoding="utf-8") as live:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        ours = subprocess.Popen([PYTHON, "-c", STREAMS, *argv], stdout=live, env=buffered)
        try:
            assert shown.readline() == "early\n"
            go.touch()
            assert ours.wait(20) == 0
        finally:
            ours.kill()
            ours.wait()


def test_on_a_terminal_the_child_has_it_to_itself() -> None:
    ours, theirs = pty.openpty()
    try:
        with os.fdopen(theirs, "w", encoding="utf-8") as live:
            code = (
                "import sys; print('seen'); sys.exit(5 if sys.stdout.isatty() and sys.stderr.isatty() else 9)"
            )
            done = SubprocessRunner(stream_output=live).stream(child(code))
        assert (done.returncode, done.stderr) == (5, "")
        assert os.read(ours, 100) == b"seen\r\n"
    finally:
        os.close(ours)


def test_what_other_threads_run_is_ended_by_an_interruption() -> None:
    run = SubprocessRunner(stream_output=io.StringIO())
    with ThreadPoolExecutor() as pool:
        going = [pool.submit(run.stream, ["sleep", "600"], label=name) for name in ("a", "b")]
        going.append(pool.submit(run.run, ["sleep", "600"]))
        deadline = time.monotonic() + 20
        while len(run._children) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        run.interrupt()
        assert [each.result(timeout=20).returncode for each in going] == [-signal.SIGINT] * 3
    assert run._children == set()
