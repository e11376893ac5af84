from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from buildkit_tasks.system.lock import file_lock, run_once

COMPUTE = """
import sys, time
from pathlib import Path
from buildkit_tasks.system.lock import run_once
def compute():
    with Path(sys.argv[2]).open("a") as log:
        log.write("x")
    time.sleep(0.3)
    return ["value"]
assert run_once(Path(sys.argv[1]), "run", compute) == ["value"]
"""


def test_lock_excludes_others(tmp_path: Path) -> None:
    path, order = tmp_path / "new/lock", list[str]()
    started = threading.Event()

    def wait_for_lock() -> None:
        started.set()
        with file_lock(path):
            order.append("second")

    with file_lock(path):
        thread = threading.Thread(target=wait_for_lock)
        thread.start()
        started.wait(120)
        thread.join(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_dry_run_takes_no_lock(tmp_path: Path) -> None:
    with file_lock(tmp_path / "new/lock", dry_run=True):
        assert list(tmp_path.iterdir()) == []


def test_processes_compute_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", COMPUTE, str(tmp_path / "result.json"), str(tmp_path / "log")]
    children = [subprocess.Popen(argv) for _ in range(3)]
    assert [child.wait(120) for child in children] == [0, 0, 0]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "x"


def test_next_run_computes_again(tmp_path: Path) -> None:
    values = iter([1, 2])
    results = [run_once(tmp_path / "result.json", run, lambda: next(values)) for run in ("a", "a", "b")]
    assert results == [1, 1, 2]


@pytest.mark.parametrize("text", ["", '["run", ', "{}", "null", '["run"]'])
def test_damaged_result_is_computed_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    assert run_once(tmp_path / "result.json", "run", lambda: "new") == "new"


def test_failure_is_not_stored(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path / "result.json", "run", fail)
    assert run_once(tmp_path / "result.json", "run", lambda: "new") == "new"
