"""A program that can write below one folder only, run for real."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.system.landlock import restricted_argv

_HAS_LANDLOCK = ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) > 0


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    # Without site-packages, where coverage would start with Python and write elsewhere.
    argv = restricted_argv(folder, [sys.executable, "-IS", "-c", f"import os\n{code}"])
    return subprocess.run(argv, check=False, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inside").mkdir()
    (tmp_path / "kept").write_bytes(b"kept")
    return tmp_path / "inside"


def test_inside(folder: Path) -> None:
    code = "os.mkdir('d'); open('d/f', 'w').write('x'); print(open('../kept').read())"
    done = run(folder, f"os.chdir({str(folder)!r}); {code}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "kept\n", "")
    assert (folder / "d/f").read_bytes() == b"x"
    assert run(folder, "open(os.devnull, 'w').write('x')").returncode == 0


@pytest.mark.skipif(not _HAS_LANDLOCK, reason="the kernel has no Landlock")
@pytest.mark.parametrize(
    "code",
    [
        "open('kept', 'w')",
        "open('kept', 'a')",
        "os.truncate('kept', 0)",
        "os.unlink('kept')",
        "os.rename('kept', 'other')",
        "os.mkdir('new')",
        "open('new', 'w')",
        "os.symlink('kept', 'new')",
        "os.mkfifo('new')",
        "os.rename('kept', 'inside/kept')",
        "os.link('kept', 'inside/kept')",
        "os.rmdir('inside')",
        "os.system('echo > kept') == 0 or os._exit(1)",
    ],
)
def test_outside(folder: Path, code: str) -> None:
    done = run(folder, f"os.chdir({str(folder.parent)!r})\n{code}")
    assert done.returncode == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == ["inside", "kept"]
    assert (folder.parent / "kept").read_bytes() == b"kept"


def test_status_and_arguments(folder: Path) -> None:
    assert run(folder, "os._exit(7)").returncode == 7
    assert restricted_argv(folder, ["x", "--y"])[-3:] == [str(folder), "x", "--y"]
