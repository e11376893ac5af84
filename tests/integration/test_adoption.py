"""What another repository needs to use the package: the built wheel, three lines, four lines, five lines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.platforms import parse_platforms
from tests.conftest import ROOT
from tests.support.oci import MemoryImage, add_platform, make_tar, write_archive
from tests.support.project import Project, program

DOCKERFILE = 'FROM alpine:latest\nCMD ["uname", "-m"]\n'
TASKS = "from buildkit_tasks.tasks import ns\n"
NOXFILE = """\
from buildkit_tasks.nox_sessions import arch_matrix

arch_matrix(platforms=["linux/amd64", "linux/arm64", "linux/arm/v7"])
"""
USERS_TEST = """\
import pytest

@pytest.mark.platforms("linux/arm64", "linux/arm/v7")
def test_the_machine_is_what_it_says(run_on_platform):
    assert run_on_platform("uname -m", expect="^{machine}$").ok
"""
PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a fresh environment that has the built wheel and nothing of this checkout."""
    folder = tmp_path_factory.mktemp("adopting")
    wheels = folder / "wheels"
    _do(sys.executable, "-m", "build", "--wheel", f"--outdir={wheels}", str(ROOT), cwd=folder)
    (wheel,) = wheels.glob("*.whl")
    _do(sys.executable, "-m", "venv", str(folder / "venv"), cwd=folder)
    python = folder / "venv/bin/python"
    _do(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=folder)
    return python.parent


def _do(*argv: str, cwd: Path) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def repo(engine: Engine, programs: Path, project: Project) -> Project:
    """A second repository: a Dockerfile, and what the test adds."""
    assert engine.version
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return project.write({"Dockerfile": DOCKERFILE}).with_env(PATH=path, PYTHONNOUSERSITE="1")


def test_one_line_tasks_file(repo: Project, programs: Path) -> None:
    repo.write({"tasks.py": TASKS})
    listed = repo.command(str(programs / "inv"), "--list")
    for name in ("setup-builder", "build-multiarch", "verify-arch", "run-emulated", "arch-matrix"):
        assert f"  {name} " in listed.stdout
    argv = (str(programs / "inv"), "build-multiarch", "--json", "--platform", ",".join(PLATFORMS))
    built = repo.command(*argv)
    assert built.code == 0, built.stderr
    assert [row["platform"] for row in built.document["platforms"]] == list(PLATFORMS)
    assert (repo.folder / "dist/repo.tar").is_file()
    ran = repo.command(str(programs / "inv"), "run_emulated", "--json", "--expect=^{machine}$")
    assert ran.code == 0, ran.stdout + ran.stderr
    assert [row["outcome"] for row in ran.document["results"]] == ["passed"] * 3


def test_the_program_needs_no_tasks_file(repo: Project, programs: Path) -> None:
    argv = (str(programs / "buildkit-tasks"), "build-multiarch", "--json", "--platform=linux/arm64")
    done = repo.command(*argv)
    assert done.code == 0, done.stderr
    assert done.document["outputs"] == [{"type": "oci", "dest": "dist/repo.tar"}]


def test_installed_wheel_is_used(programs: Path) -> None:
    code = "import buildkit_tasks; print(buildkit_tasks.__file__)"
    argv = [str(programs / "python"), "-I", "-c", code]
    found = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(programs.parent)
    types = Path(found.stdout.strip()).parent / "py.typed"
    assert types.is_file()


def test_nox_session_per_platform(repo: Project, programs: Path) -> None:
    repo.write({"noxfile.py": NOXFILE})
    done = repo.command(str(programs / "nox"), "-s", "arch_matrix")
    assert done.code == 0, done.stdout + done.stderr
    for platform in parse_platforms(PLATFORMS):
        assert f"arch_matrix({platform.slug}): success" in done.stderr
    assert (done.stdout + done.stderr).count("build-multiarch --json") == 1


def test_nox_selects_platform_by_id(repo: Project, programs: Path) -> None:
    repo.write({"noxfile.py": NOXFILE})
    done = repo.command(str(programs / "nox"), "-s", "arch_matrix(arm-v7)")
    assert done.code == 0, done.stdout + done.stderr
    said = done.stdout + done.stderr
    assert "arch_matrix(arm-v7) was successful" in said
    assert "arch_matrix(arm64)" not in said


def test_nox_lists_ci_matrix(repo: Project, programs: Path) -> None:
    repo.write({"noxfile.py": NOXFILE})
    done = repo.command(str(programs / "nox"), "-s", "arch_matrix", "-l", "--json")
    assert done.code == 0, done.stderr
    names = [row["session"] for row in json.loads(done.stdout)]
    assert names == ["arch_matrix(amd64)", "arch_matrix(arm64)", "arch_matrix(arm-v7)"]


def test_failing_platform_does_not_stop_others(repo: Project, programs: Path) -> None:
    dockerfile = 'FROM alpine:latest\nCMD ["sh", "-c", "test $(uname -m) != aarch64"]\n'
    repo.write({"noxfile.py": NOXFILE, "Dockerfile": dockerfile})
    done = repo.command(str(programs / "nox"), "-s", "arch_matrix")
    assert done.code == 1
    assert "arch_matrix(amd64): success" in done.stderr
    assert "arch_matrix(arm64): failed" in done.stderr
    assert "arch_matrix(arm-v7): success" in done.stderr


def test_users_test_runs_per_platform(repo: Project, programs: Path) -> None:
    repo.write({"test_image.py": USERS_TEST})
    options = [f"--platform={name}" for name in PLATFORMS]
    done = repo.command(str(programs / "pytest"), "-v", "-p", "no:cacheprovider", *options)
    assert done.code == 0, done.stdout + done.stderr
    assert "test_the_machine_is_what_it_says[arm64] PASSED" in done.stdout
    assert "test_the_machine_is_what_it_says[arm-v7] PASSED" in done.stdout
    assert "2 passed" in done.stdout


def test_readme_example_test(repo: Project, programs: Path) -> None:
    shutil.copytree(ROOT / "examples/hello", repo.folder, dirs_exist_ok=True)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (lines,) = (
        block
        for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        if "run_on" in block
    )
    assert len(list(filter(None, lines.splitlines()))) <= 5  # the formatter's empty lines do not count
    repo.write({"test_image.py": lines})
    options = [f"--platform={name}" for name in PLATFORMS]
    done = repo.command(str(programs / "pytest"), "-v", "-p", "no:cacheprovider", *options)
    assert done.code == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    repo.write({"test_image.py": lines.replace('"[{', '"[no {')})
    done = repo.command(str(programs / "pytest"), "-v", "-p", "no:cacheprovider", *options)
    assert done.code == 1
    assert "2 failed" in done.stdout


ENDINGS = {"linux/amd64": 0, "linux/arm64": 3, "linux/arm/v7": 4, "linux/s390x": 5}
ON_EACH = """\
import pytest

def test_it_ends_as_it_is_made_to(platform, run_on_platform, multiarch_image):
    expected = ENDINGS[str(platform)]
    result = run_on_platform(expect_exit=expected)
    assert result.ok, result.message
    assert (result.platform, result.exit_code, result.stdout) == (str(platform), expected, "")
    assert result.runner in ("sandbox", "docker")
    assert 0 < result.seconds < 60
    assert result.emulated == (result.emulator is not None) == (expected != 0)
    wrong = run_on_platform(expect_exit=expected + 1)
    assert (wrong.ok, wrong.exit_code, wrong.outcome) == (False, expected, "failed")
    assert wrong.message == f"exit status {expected}, expected {expected + 1}"
"""


def test_xdist_workers_share_archive(engine: Engine, project: Project) -> None:
    """Real programs, one for each platform, each of which ends with a status of its own."""
    assert engine.version
    image = MemoryImage()
    entries = [
        add_platform(image, name, [make_tar({"main": program(name, status)})], Entrypoint=["/main"])
        for name, status in ENDINGS.items()
    ]
    write_archive(image.set_index(entries), project.folder / "image.tar")
    project.write({"pyproject.toml": "", "test_it.py": f"ENDINGS = {ENDINGS}\n{ON_EACH}"})
    argv = (
        sys.executable,
        "-m",
        "pytest",
        "-n2",
        "-v",
        "-p",
        "no:cacheprovider",
        "--image=oci-archive:image.tar",
    )
    done = project.command(*argv, *(f"--platform={name}" for name in ENDINGS))
    assert done.code == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert set(re.findall(r"^\[(gw\d+)\]", done.stdout, re.MULTILINE)) == {"gw0", "gw1"}


def test_missing_engine_skips_or_fails(repo: Project, programs: Path) -> None:
    nowhere = repo.write({"test_image.py": USERS_TEST}).with_env(
        DOCKER_HOST=f"unix://{repo.folder}/dead.sock", INVOKE_BUILDKIT_ENGINE="system"
    )
    argv = (str(programs / "pytest"), "-rs", "-p", "no:cacheprovider", "--platform=linux/arm64")
    done = nowhere.command(*argv)
    assert done.code == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "no Docker daemon answers" in done.stdout
    done = nowhere.command(*argv, "--arch-require-engine")
    assert done.code == 1
    assert "no Docker daemon answers" in done.stdout
