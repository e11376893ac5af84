"""Check the shell commands of the documentation without an engine, a registry or a cluster.

The tasks of this package run up to their first service: Invoke parses the command line, and settings,
images, builds and builders are read from it. Nox lists the sessions, pytest collects the tests, and pip
parses its arguments. Commands of other programs are only known by name.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from invoke.program import Program

from buildkit_tasks.build.request import check_request
from buildkit_tasks.cli.declared_task import DeclaredTask, create_namespace
from buildkit_tasks.cli.invocation import TaskContext
from buildkit_tasks.cli.requests import build_request, image_selection
from buildkit_tasks.config.images import settings_for_image
from buildkit_tasks.config.settings import ImageSettings, Settings
from buildkit_tasks.host.builder.spec import BuilderSpec
from buildkit_tasks.nox_sessions import split_posargs
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.transports import find_local_output, open_image
from buildkit_tasks.pipeline.multi_image import open_images
from buildkit_tasks.pipeline.parts_file import read_parts
from buildkit_tasks.pipeline.release import ReleaseSpec
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.run.outcomes import Expectation
from buildkit_tasks.tasks import ns
from buildkit_tasks.verify.host_match import read_hosts
from tests.conftest import ROOT
from tests.support.environment import NO_OTHER_PLUGINS, delete_env, minimal_env
from tests.support.oci import hello, write_archive
from tests.support.snippets import ShellCommand

__all__ = ["CommandChecker", "CommandError"]

# Programs of others; their arguments are theirs.
FOREIGN_PROGRAMS = frozenset(
    {
        *("apt-get", "git", "pre-commit", "towncrier", "taplo"),
        *("buildkitd", "docker", "go", "kubectl", "mmdebstrap", "sysctl"),
        *("cat", "cd", "echo", "export", "gzip", "sed", "tar"),
    }
)
# What pages write where a reader puts a value of their own.
PLACEHOLDERS = {
    r"\[(?:IMAGE|ARCHIVE)\]|\bARCHIVE\b": "oci-archive:dist/image.tar",
    r"\blinux/NAME\b": "linux/riscv64",
    r"\bREF\b": "registry.example.org/team/app:1",
    r"\bMODEL\b": "cortex-a53",
    r"\bTASK\b": "doctor",
    r"\bNAME\b": "web",
    r"\b(?:BAKE_)?FILE\b": "docker-bake.hcl",
    r"sha256:\.\.\.": "sha256:" + "0" * 64,
}
NOXFILE = """
from buildkit_tasks.nox_sessions import arch_matrix
arch_matrix(platforms=["linux/amd64", "linux/arm64", "linux/arm/v7"])
"""
SETTINGS = """
[tool.buildkit-tasks]
platforms = ["linux/amd64", "linux/arm64"]
"""
TWO_IMAGES = """
[[tool.buildkit-tasks.image]]
name = "web"
tags = ["registry.example.org/team/web:1"]
[[tool.buildkit-tasks.image]]
name = "tool"
tags = ["registry.example.org/team/tool:1"]
"""


class CommandError(AssertionError):
    """A documented command does not work."""


class CommandChecker:
    """A repository as the pages describe it, in which their commands are checked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        delete_env(monkeypatch, "INVOKE_*", "GITHUB_*", "DOCKER_*", "BUILDX_*", "PYTEST_*", "CI")
        for name, value in {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)
        self.folder, self.monkeypatch = folder, monkeypatch
        _write_repository(folder, SETTINGS)
        (folder / "several").mkdir()
        _write_repository(folder / "several", SETTINGS + TWO_IMAGES)

    def check_mention(self, command: ShellCommand) -> None:
        """Raise :class:`CommandError` unless the task and its options exist; values may be missing."""
        name, *words = command.argv
        names = [each for argument in ns[name].get_arguments() for each in argument.names]
        flags = {f"--{each}" if len(each) > 1 else f"-{each}" for each in names}
        for word in words:
            if word.startswith("-") and word.partition("=")[0] not in flags:
                raise CommandError(f"{name} has no option {word}")

    def check(self, command: ShellCommand, *, several_images: bool = False) -> None:
        """Raise :class:`CommandError` for a command that would not work.

        ``several_images`` is for a page that describes settings with the images ``web`` and ``tool``.
        """
        program, *args = (_fill_placeholders(word) for word in command.argv)
        name = program.removeprefix(".venv/bin/").removeprefix("/opt/venv/bin/")
        with self.monkeypatch.context() as patch:
            if several_images:
                patch.chdir(self.folder / "several")
            for variable, value in command.env:
                patch.setenv(variable, value)
            if name in _CHECKS:
                _CHECKS[name](args)
            elif name not in FOREIGN_PROGRAMS:
                raise CommandError(f"no rule covers the program {name!r}")


def _fill_placeholders(word: str) -> str:
    for pattern, value in PLACEHOLDERS.items():
        word = re.sub(pattern, value, word)
    return word


def _write_repository(folder: Path, settings: str) -> None:
    """Write every file that a command of the documentation reads."""
    image = hello(("linux/amd64", "linux/arm64", "linux/arm/v7"))
    part = f"registry.example.org/team/app@sha256:{'0' * 64}\n"
    node = {"status": {"nodeInfo": {"operatingSystem": "linux", "architecture": "amd64"}}}
    files = {
        "Dockerfile": "FROM scratch\n",
        "docker-bake.hcl": "",
        "compose.yaml": "",
        "noxfile.py": NOXFILE,
        "pyproject.toml": settings,
        "nodes.json": json.dumps({"items": [node]}),
        "parts.json": part,
        **{f"part-{name}.json": part for name in ("amd64", "arm64", "linux-amd64", "linux-arm64")},
        "suite/test_image.py": "def test_image(run_on_platform):\n    pass\n",
    }
    (folder / "dist").mkdir()
    (folder / "docs").mkdir()
    (folder / "suite").mkdir()
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    for name in ("image.tar", "dist/image.tar", "dist/app.tar", "dist/web.tar"):
        write_archive(image, folder / name)


def _check_task(args: list[str]) -> None:
    """Run a task's command line up to the task's first service."""
    dockerfile = io.TextIOWrapper(io.BytesIO(b"FROM scratch\n"))
    try:
        with mock.patch.object(sys, "stdin", dockerfile):
            Program(namespace=_CHECKED_TASKS, version="0", binary="inv").run(["inv", *args])
    except SystemExit as end:
        if end.code:
            raise CommandError(f"ends with exit status {end.code}") from None


def _check_options(ctx: TaskContext) -> None:
    """Read the options of a task as the task reads them; raise its errors."""
    settings, options = ctx.settings, ctx.options
    parse_platforms(settings.platforms)
    Expectation(pattern=settings.expect)
    if "for_" in options:
        read_hosts(options["for_"], options["for_nodes"])
    if "driver" in options:
        BuilderSpec.from_settings(settings)
    if "output" in options:
        _check_build(ctx)
    elif "part" in options:
        _check_release(settings_for_image(settings, options["image"]))
        read_parts(options["part"], options["parts_file"], options["image"])
    elif "archive" in options:
        for each in settings.images or [ImageSettings(name="")]:
            _check_release(settings.for_image(each))
        _check_images(options["archive"], settings)
    elif "image" in options:
        _check_images(options["image"], settings)


def _check_build(ctx: TaskContext) -> None:
    if ctx.options["bake"]:  # buildx reads the file
        return
    if ctx.settings.images:
        with open_images(ctx.pipeline, image_selection(ctx)):
            return
    check_request(build_request(ctx))


class _RegistryImageError(Exception):
    """An image of a registry, which is not opened."""


def _check_release(settings: Settings) -> None:
    ReleaseSpec.from_tags(settings.tags, parse_platforms(settings.platforms), verify_first=True)


def _check_images(names: str | tuple[str, ...], settings: Settings) -> None:
    known = ["", *(image.name for image in settings.images)]
    for name in (names,) if isinstance(names, str) else names:
        if name not in known:
            _check_image(name)


def _check_image(name: str) -> None:
    """Raise the error that a task raises for this image name, unless it is in a registry or an engine."""

    def open_registry(reference: str) -> Any:
        Reference.parse(reference)
        raise _RegistryImageError

    try:
        if find_local_output(name) is None:
            with open_image(
                str(name), export=lambda _: pytest.fail("exported"), registry_opener=open_registry
            ):
                pass
    except _RegistryImageError:
        pass


def _checked_task(task: DeclaredTask) -> DeclaredTask:
    def body(ctx: TaskContext) -> None:
        _check_options(ctx)

    body.__name__, body.__doc__ = task.__name__, task.__doc__
    return DeclaredTask(body, tuple(task.options.values()))


_CHECKED_TASKS = create_namespace(
    *(_checked_task(each) for each in ns.tasks.values() if isinstance(each, DeclaredTask))
)


def _check_nox(args: list[str]) -> None:
    """List the sessions that the command selects; let pytest collect with the options of ``arch_matrix``."""
    before, after = _split_at_dashes(args)
    is_matrix = any("arch_matrix" in word for word in before)
    _run("-m", "nox", "--list", *before, cwd=None if is_matrix else ROOT)
    if is_matrix and after:
        settings, pytest_args = split_posargs(after)
        environ = {f"INVOKE_BUILDKIT_{key.upper()}": value for key, value in settings.items()}
        image = ("--arch-platform=linux/arm64", "--arch-image=oci-archive:dist/image.tar")
        tests = ("--pyargs", "buildkit_tasks.testing.default_checks")
        _run("-m", "pytest", "--collect-only", "-q", *_QUICK, *image, *tests, *pytest_args, env=environ)


_QUICK = ("-p", "no:cacheprovider", *NO_OTHER_PLUGINS)


def _split_at_dashes(args: list[str]) -> tuple[list[str], list[str]]:
    at = args.index("--") if "--" in args else len(args)
    return args[:at], args[at + 1 :]


def _check_pytest(args: list[str]) -> None:
    """Collect with these arguments; the tests of this repository are represented by one file."""
    own = [ROOT / arg for arg in args if not arg.startswith("-") and arg.startswith("tests/")]
    if not own:
        image = f"--arch-image=oci-archive:{Path.cwd()}/image.tar"
        _run("-m", "pytest", "--collect-only", *_QUICK, image, *args, cwd=Path("suite"))
        return
    if missing := [path for path in own if not path.exists()]:
        raise CommandError(f"there is no {missing[0]}")


def _check_pip(args: list[str]) -> None:
    """Parse with pip's own parser. What is installed must be a project, or the requirement of the pages."""
    from pip._internal.commands import create_command

    name, *rest = args
    groups = [word for before, word in itertools.pairwise(rest) if before == "--group"]
    plain = [word for word in rest if word != "--group" and word not in groups]  # new in pip 25.1
    command: Any = create_command(name)
    options, requirements = command.parse_args(plain)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    for group in groups:
        if group not in declared:
            raise CommandError(f"pyproject.toml has no dependency group {group!r}")
    for requirement in (*requirements, *options.editables):
        path = ROOT / requirement
        if not (path / "pyproject.toml").is_file() and requirement not in (_pipeline_requirement(), "pip"):
            raise CommandError(
                f"{requirement!r} is neither this repository nor the requirement of the pipelines"
            )


def _pipeline_requirement() -> str:
    text = (ROOT / "docs/tables.py").read_text(encoding="utf-8")
    (requirement,) = re.findall(r'^REQUIREMENT = "(.*)"$', text, re.MULTILINE)
    return str(requirement)


def _check_python(args: list[str]) -> None:
    option, *values = args
    if option == "-c":
        _run("-c", *values)
    elif option == "-m":
        if importlib.util.find_spec(values[0]) is None:
            raise CommandError(f"there is no module {values[0]}")
    elif not (ROOT / option).is_file():
        raise CommandError(f"there is no {option}")


def _run(*args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> None:
    """Run Python with these arguments, and without this process's settings."""
    argv = [sys.executable, *args]
    variables = minimal_env(HOME=str(Path.cwd()), **(env or {}))
    done = subprocess.run(argv, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandError(f"exit status {done.returncode}:\n{done.stdout}{done.stderr}")


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "inv": _check_task,
    "buildkit-tasks": _check_task,
    "nox": _check_nox,
    "pytest": _check_pytest,
    "pip": _check_pip,
    "python": _check_python,
    "python3": _check_python,
}
