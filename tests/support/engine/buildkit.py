"""A real BuildKit in an image of its own, made from its Go module: nothing is pulled from a registry.

The image holds buildkitd, buildctl and runc with the libraries that it names. The two Go programs are
compiled once for a cache folder, from the module's own folder: its go.mod excludes some versions, and
``go install MODULE@VERSION`` refuses such a module.
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
from buildkit_tasks.host.engine.private import PrivateEnginePaths
from buildkit_tasks.system.command import CommandOptions, SubprocessRunner
from buildkit_tasks.system.files import build_atomically
from tests.interop.gotools import NotToBeHad, build_in_module

__all__ = ["IMAGE", "VERSION", "NotToBeHad", "compiled", "import_image", "remove_image"]

VERSION = "v0.32.2"
IMAGE = f"tests/buildkit:{VERSION}"
_MODULE = "github.com/moby/buildkit"
_NAMES = ("buildkitd", "buildctl")
_SECONDS = 300.0


def compiled() -> Path:
    """The folder of buildkitd and buildctl. Raises :class:`NotToBeHad` with the reason."""
    place = cache_folder(load_settings()) / "go" / f"buildkit-{VERSION}"
    return build_atomically(place, lambda folder: build_in_module(_MODULE, VERSION, _NAMES, folder))


def import_image(engine: Engine, name: str = IMAGE) -> str:
    """Put the image into the engine's store; gives its name."""
    programs = compiled()
    runc = PrivateEnginePaths(cache_folder(load_settings())).prefix / "usr/sbin/runc"
    archive = _packed(_files(programs, runc))
    argv = [*engine.tools.docker, "import", "--change", 'ENTRYPOINT ["buildkitd"]', "-", name]
    done = SubprocessRunner().run(argv, engine.command_options(stdin=archive, timeout=_SECONDS))
    assert done.ok, done.stderr
    return name


def remove_image(engine: Engine, name: str) -> None:
    """Take it out of the engine's store again."""
    done = SubprocessRunner().run(
        [*engine.tools.docker, "image", "rm", "--force", name], engine.command_options(timeout=_SECONDS)
    )
    assert done.ok, done.stderr


def _files(programs: Path, runc: Path) -> Iterator[tuple[str, bytes]]:
    """Every file of the image and its content."""
    for name in _NAMES:
        yield f"usr/bin/{name}", (programs / name).read_bytes()
    yield "usr/bin/runc", runc.read_bytes()
    for library in _libraries(runc):
        yield library.lstrip("/"), Path(library).read_bytes()
    yield "etc/ssl/certs/ca-certificates.crt", Path(certifi.where()).read_bytes()
    yield "etc/nsswitch.conf", b"hosts: files dns\n"


def _libraries(program: Path) -> list[str]:
    """The loader and the shared libraries of a program, where ld.so finds them here."""
    folders = ":".join(map(str, program.parents[2].glob("usr/lib/*-linux-*")))
    done = SubprocessRunner().run(["ldd", str(program)], CommandOptions(env={"LD_LIBRARY_PATH": folders}))
    assert done.ok, done.stderr
    return re.findall(r"(/\S+) \(0x", done.stdout)


def _packed(files: Iterator[tuple[str, bytes]]) -> bytes:
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
