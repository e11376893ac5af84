"""Follow the recipes of CONTRIBUTING.md, each once, in a copy of the checkout."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.environment import minimal_env

# The Motorola 68020 and later: psABI of System V, Linux's arch/m68k, Debian's port.
M68K = """
    Machine(
        architecture="m68k",
        aliases=("mc68000",),
        uname_machines=("m68k",),
        qemu_suffix="m68k",
        bits=32,
        byte_order="big",
        e_machine=4,
        debian_architecture="m68k",
        baseline_cpu="m68040",
        elf_interpreters=("/lib/ld.so.1", "/lib/ld-musl-m68k.so.1"),
        multiarch_triplets=("m68k-linux-gnu",),
        # moveq #STATUS, %d1; moveq #1, %d0 (exit); trap #0
        exit_instructions="72 SS  70 01  4e 40",
    ),
)

# Other machines"""


class Checkout:
    """A copy of the package, its tests and its documentation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "_build", "_build*")
        for name in ("buildkit_tasks", "docs", "tests", "examples"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def replace(self, file: str, old: str, new: str) -> None:
        """Replace the first occurrence of a text."""
        path = self.folder / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}: adapt this test, and perhaps the recipe"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    def insert(self, file: str, after: str, *lines: str) -> None:
        """Insert lines after the first line that ends so."""
        self.replace(file, f"{after}\n", "\n".join([after, *lines, ""]))

    def python(self, *args: str, cwd: Path | None = None) -> str:
        """Run Python with this package, which must succeed, and return its standard output."""
        argv = [sys.executable, *args]
        env = minimal_env(HOME=str(self.folder)) | {"PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            argv, cwd=cwd or self.folder, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "checkout")


def test_new_architecture(checkout: Checkout) -> None:
    table = "buildkit_tasks/platforms/architectures.py"
    foreign_name = '    (32, "big", 4): "m68k",\n'
    checkout.replace(table, ")\n\n# Other machines", M68K.removeprefix("\n"))
    checkout.replace(table, foreign_name, "")
    checkout.python("docs/tables.py")
    assert "| `linux/m68k` |" in (checkout.folder / "docs/running.md").read_text(encoding="utf-8")
    code = (
        "from buildkit_tasks.platforms import Platform; print(Platform.parse('mc68000').debian_architecture)"
    )
    assert checkout.python("-c", code) == "m68k\n"
    tests = (
        "tests/unit/platforms",
        "tests/unit/support/test_elf.py",
        "tests/unit/host",
        "tests/unit/docs/test_tables.py",
    )
    output = checkout.python("-m", "pytest", "-v", "-p", "no:cacheprovider", *tests)
    assert len(re.findall(r"\[m68k\] PASSED", output)) > 5


# Prints the command that a build would run.
BUILD_WITH_NEW_OPTIONS = """
from pathlib import Path
from invoke.program import Program
from buildkit_tasks.build.request import make_buildx_argv
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.tasks import ns

def build(self, request):
    print(*make_buildx_argv(request, "builder", Path("metadata")), sep="\\n")
    raise SystemExit

Pipeline.build = build
Program(namespace=ns, version="0").run(["inv", "build-multiarch", "--frames=many", "--wobble"])
"""


def test_new_option(checkout: Checkout) -> None:
    """``--frames``, a setting with choices, and ``--wobble``, a flag; buildx takes both."""
    package = "buildkit_tasks"
    checkout.insert(
        f"{package}/cli/options.py",
        "BUILD_OPTIONS = (",
        '    _text_option("frames", "how many frames", setting="frames"),',
        '    _flag_option("wobble", "wobble"),',
    )
    checkout.insert(f"{package}/config/settings.py", '    file: str = ""', '    frames: str = "few"')
    checkout.insert(f"{package}/config/schema.py", "CHOICES = {", '    "frames": ("few", "many"),')
    request = f"{package}/build/request.py"
    checkout.insert(request, '    file: str = ""', '    frames: str = ""', "    wobble: bool = False")
    scalars = ('"frames": request.frames,', '"wobble": "true" if request.wobble else "",')
    checkout.insert(request, '        "file": request.file,', *scalars)
    checkout.insert(f"{package}/pipeline/pipeline.py", "file=settings.file,", "frames=settings.frames,")
    checkout.insert(f"{package}/cli/requests.py", "_SCALAR_FIELDS = (", '    "wobble",')
    checkout.insert(
        f"{package}/pipeline/api.py", "    sbom: str | bool", "    frames: str", "    wobble: bool"
    )
    checkout.python("docs/tables.py")
    checkout.replace("docs/settings.md", "(not described)", "The number of frames")
    rows = ("| `--frames` | yes | |", "| `--wobble` | yes | |")
    checkout.insert("docs/build-options.md", "| `--label` | yes | |", *rows)
    checkout.python("docs/schemas.py")
    schema = json.loads((checkout.folder / package / "schemas/settings.json").read_text(encoding="utf-8"))
    frames = {"description": "The number of frames", "enum": ["few", "many"], "default": "few"}
    assert schema["properties"]["frames"] == {"type": "string", **frames}
    assert "| `--frames" in (checkout.folder / "docs/tasks.md").read_text(encoding="utf-8")
    argv = checkout.python("-c", BUILD_WITH_NEW_OPTIONS).splitlines()
    assert {"--frames=many", "--wobble=true"} <= set(argv)
    tests = ("docs", "build", "report/test_schemas.py", "test_api.py")
    checkout.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/unit/{each}" for each in tests))
