from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Stands in for the interpreter that builds and tests: it notes its words, and fails where it is told to.
FAKE = f"""#!{sys.executable} -I
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
with (here / "log").open("a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
if "build-multiarch" in sys.argv:
    archive = {{"type": "oci", "dest": "dist/x.tar"}}
    print(json.dumps({{"outputs": [{{"type": "docker", "ref": "x"}}, archive]}}))
sys.exit(any(word in sys.argv for word in os.environ.get("FAILING", "").split()))
"""

NOXFILE = """
import pathlib, sys
from buildkit_tasks.nox_sessions import arch_matrix
sys.executable = str(pathlib.Path(__file__).with_name("python"))
arch_matrix({arguments})
"""


class Nox:
    """The real Nox on a noxfile in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        program = folder / "python"
        program.write_text(FAKE, encoding="utf-8")
        program.chmod(0o755)
        (folder / "pyproject.toml").touch()

    def __call__(self, arguments: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "noxfile.py").write_text(NOXFILE.format(arguments=arguments), encoding="utf-8")
        argv = [sys.executable, "-m", "nox", "--no-venv", *words]
        kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
        env = {**kept, "HOME": str(self.folder), **environ}
        return subprocess.run(argv, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    @property
    def log(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.folder / "log").read_text(encoding="utf-8").splitlines()]

    @property
    def builds(self) -> list[list[str]]:
        return [words for words in self.log if "build-multiarch" in words]

    @property
    def tests(self) -> list[list[str]]:
        return [words for words in self.log if "pytest" in words]


@pytest.fixture
def nox(tmp_path: Path) -> Nox:
    return Nox(tmp_path)


TWO = 'platforms=["linux/arm/v7", "linux/amd64"]'


def test_there_is_a_session_for_each_platform_for_ci_to_list(nox: Nox) -> None:
    done = nox(TWO, "-l", "--json")
    rows = json.loads(done.stdout)
    assert [row["session"] for row in rows] == ["arch_matrix(arm-v7)", "arch_matrix(amd64)"]


def test_without_platforms_those_of_the_settings_are_taken(nox: Nox) -> None:
    text = '[tool.buildkit-tasks]\nplatforms = ["linux/s390x"]\n'
    (nox.folder / "pyproject.toml").write_text(text, encoding="utf-8")
    done = nox('name="matrix"', "-l", "--json")
    assert [row["session"] for row in json.loads(done.stdout)] == ["matrix(s390x)"]


def test_the_image_is_built_once_for_all_and_tested_on_each(nox: Nox) -> None:
    done = nox(TWO)
    assert done.returncode == 0, done.stderr
    (build,) = nox.builds
    assert build == [
        "-m", "buildkit_tasks", "build-multiarch", "--json",
        "--platform=linux/arm/v7", "--platform=linux/amd64",
    ]  # fmt: skip
    image = f"--image=oci-archive:{nox.folder / 'dist/x.tar'}"
    assert nox.tests == [
        ["-m", "pytest", "--pyargs", "buildkit_tasks.matrix_checks", "-p", "no:cacheprovider", option, image]
        for option in ("--platform=linux/arm/v7", "--platform=linux/amd64")
    ]


def test_one_session_can_be_asked_for_and_words_reach_pytest(nox: Nox) -> None:
    done = nox(f'{TWO}, tests=["tests/image"]', "-s", "arch_matrix(arm-v7)", "--", "-k", "x y")
    assert done.returncode == 0, done.stderr
    (words,) = nox.tests
    assert words[2] == "tests/image"
    assert words[-2:] == ["-k", "x y"]
    assert "--platform=linux/arm/v7" in words


def test_a_platform_that_fails_does_not_stop_the_others(nox: Nox) -> None:
    done = nox(TWO, FAILING="no:cacheprovider")
    assert done.returncode == 1
    assert len(nox.tests) == 2
    assert len(nox.builds) == 1


def test_an_image_that_cannot_be_built_is_tried_once_and_fails_every_session(nox: Nox) -> None:
    done = nox(TWO, FAILING="build-multiarch")
    assert done.returncode == 1
    assert "build-multiarch ended with status 1" in done.stderr
    assert done.stderr.count("the image could not be built") == 2
    assert (len(nox.builds), nox.tests) == (1, [])


def test_in_ci_an_engine_is_required(nox: Nox) -> None:
    assert nox(TWO, "-s", "arch_matrix(amd64)", CI="true").returncode == 0
    assert "--require-engine" in nox.tests[0]


def test_an_unknown_platform_is_found_when_the_noxfile_is_read(nox: Nox) -> None:
    done = nox('platforms=["linux/amd46"]', "-l")
    assert done.returncode != 0
    assert "did you mean linux/amd64?" in done.stderr
