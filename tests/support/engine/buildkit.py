"""Build an image of a real BuildKit from its Go module, without a registry.

The image has buildkitd, buildctl, and runc with its libraries. The two Go programs are compiled once
and cached. They are compiled in the module's directory, because ``go install MODULE@VERSION`` refuses
modules whose go.mod excludes versions.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import certifi

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from buildkit_tasks.system.files import build_atomically
from tests.support.go_tools import ToolUnavailable, build_in_module

__all__ = ["IMAGE", "VERSION", "ToolUnavailable", "compile_programs", "import_image", "remove_image"]

VERSION = "v0.32.2"
IMAGE = f"tests/buildkit:{VERSION}"
_MODULE = "github.com/moby/buildkit"
_NAMES = ("buildkitd", "buildctl")
_SECONDS = 300.0


def compile_programs() -> Path:
    """Return the directory of buildkitd and buildctl. Raise :class:`ToolUnavailable` with the reason."""
    path = cache_folder(load_settings()) / "go" / f"buildkit-{VERSION}"
    return build_atomically(path, lambda folder: build_in_module(_MODULE, VERSION, _NAMES, folder))


def import_image(engine: Engine, name: str = IMAGE) -> str:
    """Import the image into the engine and return its name."""
    programs = compile_programs()
    runc = PrivateEnginePaths(cache_folder(load_settings())).prefix / "usr/sbin/runc"
    archive = _pack(_iter_files(programs, runc))
    argv = [*engine.tools.docker, "import", "--change", 'ENTRYPOINT ["buildkitd"]', "-", name]
    result = SubprocessRunner().run(argv, engine.command_options(stdin=archive, timeout=_SECONDS))
    assert result.ok, result.stderr
    return name


def remove_image(engine: Engine, name: str) -> None:
    """Remove the image from the engine."""
    result = SubprocessRunner().run(
        [*engine.tools.docker, "image", "rm", "--force", name], engine.command_options(timeout=_SECONDS)
    )
    assert result.ok, result.stderr


def _iter_files(programs: Path, runc: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of the image."""
    for name in _NAMES:
        yield f"usr/bin/{name}", (programs / name).read_bytes()
    yield "usr/bin/runc", runc.read_bytes()
    for library in _find_libraries(runc):
        yield library.lstrip("/"), Path(library).read_bytes()
    yield "etc/ssl/certs/ca-certificates.crt", Path(certifi.where()).read_bytes()
    yield "etc/nsswitch.conf", b"hosts: files dns\n"


def _find_libraries(program: Path) -> list[str]:
    """Return the paths of a program's interpreter and shared libraries."""
    folders = ":".join(map(str, program.parents[2].glob("usr/lib/*-linux-*")))
    result = SubprocessRunner().run(["ldd", str(program)], CommandOptions(env={"LD_LIBRARY_PATH": folders}))
    assert result.ok, result.stderr
    return re.findall(r"(/\S+) \(0x", result.stdout)


def _pack(files: Iterator[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("tmp", "run", "var/lib/buildkit"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, data in files:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
