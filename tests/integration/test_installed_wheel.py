"""The installed wheel in another repository: tasks file, program, Nox file and pytest plugin."""

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
from tests.support.task_server import CompletedCommand
from tests.support.workflows import code_blocks

PLATFORMS = ("linux/amd64", "linux/arm64", "linux/arm/v7")
DOCKERFILE = 'FROM alpine:latest\nCMD ["uname", "-m"]\n'
TASKS = "from buildkit_tasks.tasks import ns\n"
NOXFILE = """\
from buildkit_tasks.nox_sessions import arch_matrix

arch_matrix(platforms=["linux/amd64", "linux/arm64", "linux/arm/v7"])
"""
USER_TEST = """\
import pytest

@pytest.mark.platforms("linux/arm64", "linux/arm/v7")
def test_uname(run_on_platform):
    assert run_on_platform("uname -m", expect="^{machine}$").ok
"""


@pytest.fixture(scope="module")
def bin_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment with the built wheel, without this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    wheels = folder / "wheels"
    _run(sys.executable, "-m", "build", "--wheel", f"--outdir={wheels}", str(ROOT), cwd=folder)
    (wheel,) = wheels.glob("*.whl")
    _run(sys.executable, "-m", "venv", str(folder / "venv"), cwd=folder)
    python = folder / "venv/bin/python"
    _run(
        str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel), cwd=folder
    )
    return python.parent


def _run(*argv: str, cwd: Path) -> None:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def user_project(engine: Engine, bin_dir: Path, project: Project) -> Project:
    """A repository with a Dockerfile, whose commands find the wheel's environment first."""
    assert engine.version
    path = f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
    return project.write({"Dockerfile": DOCKERFILE}).with_env(PATH=path, PYTHONNOUSERSITE="1")


def run_pytest(project: Project, bin_dir: Path) -> CompletedCommand:
    """Run the project's image tests for PLATFORMS."""
    options = [f"--platform={name}" for name in PLATFORMS]
    return project.command(str(bin_dir / "pytest"), "-v", "-p", "no:cacheprovider", *options)


def test_one_line_tasks_file(user_project: Project, bin_dir: Path) -> None:
    user_project.write({"tasks.py": TASKS})
    listed = user_project.command(str(bin_dir / "inv"), "--list")
    for name in ("setup-builder", "build-multiarch", "verify-arch", "run-emulated", "arch-matrix"):
        assert f"  {name} " in listed.stdout
    platforms = ("--platform", ",".join(PLATFORMS))
    built = user_project.command(str(bin_dir / "inv"), "build-multiarch", "--json", *platforms)
    assert built.code == 0, built.stderr
    assert [row["platform"] for row in built.document["platforms"]] == list(PLATFORMS)
    assert (user_project.folder / "dist/repo.tar").is_file()
    ran = user_project.command(str(bin_dir / "inv"), "run_emulated", "--json", "--expect=^{machine}$")
    assert ran.code == 0, ran.stdout + ran.stderr
    assert [row["outcome"] for row in ran.document["results"]] == ["passed"] * 3


def test_program_without_tasks_file(user_project: Project, bin_dir: Path) -> None:
    argv = (str(bin_dir / "buildkit-tasks"), "build-multiarch", "--json", "--platform=linux/arm64")
    done = user_project.command(*argv)
    assert done.code == 0, done.stderr
    assert done.document["outputs"] == [{"type": "oci", "dest": "dist/repo.tar"}]


def test_installed_wheel_is_used(bin_dir: Path) -> None:
    code = "import buildkit_tasks; print(buildkit_tasks.__file__)"
    argv = [str(bin_dir / "python"), "-I", "-c", code]
    package = Path(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip())
    assert package.is_relative_to(bin_dir.parent)
    assert (package.parent / "py.typed").is_file()


def test_nox_session_per_platform(user_project: Project, bin_dir: Path) -> None:
    user_project.write({"noxfile.py": NOXFILE})
    done = user_project.command(str(bin_dir / "nox"), "-s", "arch_matrix")
    assert done.code == 0, done.stdout + done.stderr
    for platform in parse_platforms(PLATFORMS):
        assert f"arch_matrix({platform.slug}): success" in done.stderr
    assert (done.stdout + done.stderr).count("build-multiarch --json") == 1


def test_nox_selects_platform_by_id(user_project: Project, bin_dir: Path) -> None:
    user_project.write({"noxfile.py": NOXFILE})
    done = user_project.command(str(bin_dir / "nox"), "-s", "arch_matrix(arm-v7)")
    assert done.code == 0, done.stdout + done.stderr
    output = done.stdout + done.stderr
    assert "arch_matrix(arm-v7) was successful" in output
    assert "arch_matrix(arm64)" not in output


def test_nox_lists_ci_matrix(user_project: Project, bin_dir: Path) -> None:
    user_project.write({"noxfile.py": NOXFILE})
    done = user_project.command(str(bin_dir / "nox"), "-s", "arch_matrix", "-l", "--json")
    assert done.code == 0, done.stderr
    names = [row["session"] for row in json.loads(done.stdout)]
    assert names == ["arch_matrix(amd64)", "arch_matrix(arm64)", "arch_matrix(arm-v7)"]


def test_one_failing_platform(user_project: Project, bin_dir: Path) -> None:
    dockerfile = 'FROM alpine:latest\nCMD ["sh", "-c", "test $(uname -m) != aarch64"]\n'
    user_project.write({"noxfile.py": NOXFILE, "Dockerfile": dockerfile})
    done = user_project.command(str(bin_dir / "nox"), "-s", "arch_matrix")
    assert done.code == 1
    assert "arch_matrix(amd64): success" in done.stderr
    assert "arch_matrix(arm64): failed" in done.stderr
    assert "arch_matrix(arm-v7): success" in done.stderr


def test_user_test_runs_per_platform(user_project: Project, bin_dir: Path) -> None:
    done = run_pytest(user_project.write({"test_image.py": USER_TEST}), bin_dir)
    assert done.code == 0, done.stdout + done.stderr
    assert "test_uname[arm64] PASSED" in done.stdout
    assert "test_uname[arm-v7] PASSED" in done.stdout
    assert "2 passed" in done.stdout


def test_readme_example_test(user_project: Project, bin_dir: Path) -> None:
    shutil.copytree(ROOT / "examples/hello", user_project.folder, dirs_exist_ok=True)
    (example,) = (block for block in code_blocks(ROOT / "README.md", "python") if "run_on" in block)
    assert len(list(filter(None, example.splitlines()))) <= 5  # the formatter's empty lines do not count
    done = run_pytest(user_project.write({"test_image.py": example}), bin_dir)
    assert done.code == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    done = run_pytest(user_project.write({"test_image.py": example.replace('"[{', '"[no {')}), bin_dir)
    assert done.code == 1
    assert "2 failed" in done.stdout


EXIT_STATUS = {"linux/amd64": 0, "linux/arm64": 3, "linux/arm/v7": 4, "linux/s390x": 5}
EXIT_STATUS_TEST = """\
import pytest

def test_exit_status(platform, run_on_platform, multiarch_image):
    expected = EXIT_STATUS[str(platform)]
    result = run_on_platform(expect_exit=expected)
    assert result.ok, result.message
    assert (result.platform, result.exit_code, result.stdout) == (str(platform), expected, "")
    assert result.runner in ("sandbox", "docker")
    assert result.seconds > 0
    assert result.emulated == (result.emulator is not None) == (expected != 0)
    wrong = run_on_platform(expect_exit=expected + 1)
    assert (wrong.ok, wrong.exit_code, wrong.outcome) == (False, expected, "failed")
    assert wrong.message == f"exit status {expected}, expected {expected + 1}"
"""


def test_xdist_workers_share_archive(engine: Engine, project: Project) -> None:
    """Each platform's program exits with its own status, so mixed-up platforms would fail."""
    assert engine.version
    image = MemoryImage()
    entries = [
        add_platform(image, name, [make_tar({"main": program(name, status)})], Entrypoint=["/main"])
        for name, status in EXIT_STATUS.items()
    ]
    write_archive(image.set_index(entries), project.folder / "image.tar")
    test = f"EXIT_STATUS = {EXIT_STATUS}\n{EXIT_STATUS_TEST}"
    project.write({"pyproject.toml": "", "test_exit_status.py": test})
    argv = (sys.executable, "-m", "pytest", "-n2", "-v", "-p", "no:cacheprovider")
    options = ["--image=oci-archive:image.tar", *(f"--platform={name}" for name in EXIT_STATUS)]
    done = project.command(*argv, *options)
    assert done.code == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
    assert set(re.findall(r"^\[(gw\d+)\]", done.stdout, re.MULTILINE)) == {"gw0", "gw1"}


def test_missing_engine_skips_or_fails(user_project: Project, bin_dir: Path) -> None:
    without_engine = user_project.write({"test_image.py": USER_TEST}).with_env(
        DOCKER_HOST=f"unix://{user_project.folder}/dead.sock", INVOKE_BUILDKIT_ENGINE="system"
    )
    argv = (str(bin_dir / "pytest"), "-rs", "-p", "no:cacheprovider", "--platform=linux/arm64")
    done = without_engine.command(*argv)
    assert done.code == 0, done.stdout
    assert "2 skipped" in done.stdout  # the other one is of a platform that the option leaves out
    assert "no Docker daemon answers" in done.stdout
    done = without_engine.command(*argv, "--arch-require-engine")
    assert done.code == 1
    assert "no Docker daemon answers" in done.stdout
