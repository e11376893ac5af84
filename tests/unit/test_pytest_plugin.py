from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def outcomes(folder: Path, text: str, *options: str) -> tuple[int, str]:
    """What pytest says of a test module in a folder of its own, without this process's settings."""
    (folder / "test_it.py").write_text(text, encoding="utf-8")
    if not (folder / "pyproject.toml").exists():
        (folder / "pyproject.toml").touch()
    argv = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options, "test_it.py"]
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    env = kept | {
        "HOME": str(folder),
        "DOCKER_CONFIG": str(folder),
        "DOCKER_HOST": f"unix://{folder}/no.sock",
    }
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


ONE = "def test_one(platform):\n    assert str(platform).startswith('linux/')\n"


def test_a_test_that_takes_platform_runs_once_for_each_asked_for(tmp_path: Path) -> None:
    code, said = outcomes(tmp_path, ONE, "--platform=linux/arm/v7,linux/386", "--platform=s390x")
    assert code == 0
    assert [line for line in said.splitlines() if line.startswith("PASSED")] == [
        "PASSED test_it.py::test_one[arm-v7]",
        "PASSED test_it.py::test_one[386]",
        "PASSED test_it.py::test_one[s390x]",
    ]


def test_without_an_option_the_settings_platforms_hold(tmp_path: Path) -> None:
    text = '[tool.buildkit-tasks]\nplatforms = ["linux/riscv64"]\n'
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    code, said = outcomes(tmp_path, ONE)
    assert (code, "test_one[riscv64]" in said, "1 passed" in said) == (0, True, True)


def test_the_marker_narrows_the_platforms_down(tmp_path: Path) -> None:
    marked = f"import pytest\n@pytest.mark.platforms('arm64', 'linux/386')\n{ONE}"
    code, said = outcomes(tmp_path, marked, "--strict-markers", "--platform=linux/386,linux/amd64")
    assert (code, "test_one[386]" in said, "1 passed" in said) == (0, True, True)


OWN = [
    pytest.param(
        "import pytest\n@pytest.mark.parametrize('platform', ['win32'])\n"
        "def test_own(platform):\n    assert platform == 'win32'\n",
        id="parameter",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.parametrize(('x', 'platform'), [(1, 'win32')])\n"
        "def test_own(x, platform):\n    assert platform == 'win32'\n",
        id="one-of-two-parameters",
    ),
    pytest.param(
        "import pytest\n@pytest.fixture\ndef platform():\n    return 'win32'\n"
        "def test_own(platform):\n    assert platform == 'win32'\n",
        id="fixture",
    ),
]


@pytest.mark.parametrize("text", OWN)
def test_somebody_elses_platform_is_left_alone(tmp_path: Path, text: str) -> None:
    code, said = outcomes(tmp_path, text)
    assert code == 0, said
    assert "1 passed" in said


NEEDS = "def test_two(line):\n    pass\n"
SYSTEM = '[tool.buildkit-tasks]\nengine = "system"\n'


def test_without_an_engine_a_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SYSTEM, encoding="utf-8")
    code, said = outcomes(tmp_path, NEEDS)
    assert code == 0
    assert "1 skipped" in said
    assert "no engine: no Docker daemon answers at unix://" in said


def test_where_an_engine_is_required_its_absence_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(SYSTEM, encoding="utf-8")
    code, said = outcomes(tmp_path, NEEDS, "--require-engine")
    assert code == 1
    assert "no engine: no Docker daemon answers at unix://" in said
    assert "Traceback" not in said


def test_an_unknown_platform_is_named_with_the_nearest(tmp_path: Path) -> None:
    code, said = outcomes(tmp_path, ONE, "--platform=linux/amd46")
    assert code != 0
    assert "did you mean linux/amd64?" in said


def test_a_suite_that_uses_nothing_of_it_imports_nothing_heavy_of_it(tmp_path: Path) -> None:
    text = (
        "import sys\ndef test_three():\n"
        "    heavy = {'docker', 'requests', 'rich', 'msgspec', 'isal', 'nox', 'invoke'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    code, said = outcomes(tmp_path, text)
    assert code == 0, said
