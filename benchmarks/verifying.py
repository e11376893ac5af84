"""Benchmark verify-arch against a manual check, plain decompression and fixed limits."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from isal import isal_zlib

from benchmarks.building import Bench
from benchmarks.images import (
    Layer,
    generate_entries,
    image,
    load_layout,
    noise,
    select_data,
    select_files,
    write_archive,
    write_layer,
)
from benchmarks.timing import Row, command, compare
from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.system.debian import PackageSet, install_packages
from buildkit_tasks.verify import verify
from tests.support.registry.real import push, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from buildkit_tasks.platforms import Platform

__all__ = ["measure"]

_ROOT = Path(__file__).parent.parent
_PROGRAM = "usr/local/bin/hello"  # of the example: what a user would look at
_KINDS = {
    "plain files": (tarfile.REGTYPE, 0o644, ""),
    "files of mode 0755": (tarfile.REGTYPE, 0o755, ""),
    "symlinks": (tarfile.SYMTYPE, 0o777, "../d000/f000"),
}
_MB = 1_000_000


def measure(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure every limit of this group in a new directory that is emptied after each."""
    for group in (_hello, _usr, _million, _large, _sharing):
        folder = directory / group.__name__
        folder.mkdir()
        yield from group(folder, rounds)
        shutil.rmtree(folder)


def _hello(directory: Path, rounds: int) -> Iterator[Row]:
    """Compare verify-arch of the ten-platform example with the manual check of each platform."""
    bench = Bench(directory, rounds)
    command(bench.tasks("build-multiarch", *bench.options), cwd=bench.directory)()
    (archive,) = (bench.directory / "dist").glob("*.tar")
    layout = directory / "layout"
    with tarfile.open(archive) as packed:
        packed.extractall(layout, filter="data")
    manual_check = _ManualCheck.install(bench)
    registry = directory / "registry"
    registry.mkdir()
    with serve(registry) as host:
        push(host, load_layout(layout), "hello")
        for where, name in (
            ("archive", f"oci-archive:{archive}"),
            ("registry", f"docker://{host}/hello:latest"),
        ):
            ours = command(bench.tasks("verify-arch", name, "--json"), cwd=bench.directory)
            theirs = manual_check.run(name, bench.pipeline.platforms, directory / "by-hand")
            times = compare(ours, theirs, rounds=rounds)
            title = f"ten platforms, {where}: verify-arch / skopeo + umoci + file"
            yield Row(title=title, ours=times[0], theirs=times[1], limit=1 / 3, rounds=rounds)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ManualCheck:
    """The three programs of the usual manual check, from Debian packages under their own prefix."""

    prefix: Path
    env: dict[str, str]

    @classmethod
    def install(cls, bench: Bench) -> _ManualCheck:
        """Download the programs once; later runs use the cache directory."""
        packages = PackageSet(names=("skopeo", "umoci", "file"), suite="host", with_dependencies=True)
        prefix = cache_folder(bench.pipeline.settings) / "debian/by-hand"
        install_packages(prefix, [packages], bench.pipeline.commands, bench.pipeline.notify)
        libraries = ":".join(str(path) for path in (prefix / "usr/lib").glob("*-linux-gnu*"))
        magic = prefix / "usr/lib/file/magic.mgc"
        magic_env = {"MAGIC": str(magic)} if magic.exists() else {}
        return cls(prefix=prefix, env={**os.environ, "LD_LIBRARY_PATH": libraries, **magic_env})

    def run(self, name: str, platforms: Sequence[Platform], directory: Path) -> Callable[[], None]:
        """Copy, unpack and inspect one platform after the other."""
        steps = [step for platform in platforms for step in self._steps(name, platform, directory)]

        def run_side() -> None:
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir()
            for step in steps:
                step()

        return run_side

    def _steps(self, name: str, platform: Platform, directory: Path) -> Iterator[Callable[[], None]]:
        layout = directory / str(platform).replace("/", "-")
        chosen = [f"--override-os={platform.os}", f"--override-arch={platform.architecture}"]
        if platform.variant:
            chosen.append(f"--override-variant={platform.variant}")
        policy = ["--insecure-policy", *chosen, "copy", "--quiet"]
        plain = ["--src-tls-verify=false"] if name.startswith("docker:") else []
        yield self._call("skopeo", *policy, *plain, name, f"oci:{layout}:checked")
        unpacked = f"{layout}-unpacked"
        yield self._call("umoci", "unpack", "--rootless", f"--image={layout}:checked", unpacked)
        yield self._call("file", "--brief", f"{unpacked}/rootfs/{_PROGRAM}")

    def _call(self, program: str, *arguments: str) -> Callable[[], None]:
        return command([str(self.prefix / "usr/bin" / program), *arguments], env=self.env)


def _usr(directory: Path, rounds: int) -> Iterator[Row]:
    """Compare all checks and both hashes of a layer of /usr with decompression and with tarfile."""
    chosen = select_files(16_000, 800 * _MB)
    layer = write_layer(directory, chosen.write)
    name = image(directory, layer, ["linux/amd64"], "/usr/bin/env")
    what = f"{len(chosen.files):,} files of /usr, {layer.size / _MB:.0f} MB gzip"
    sides = (lambda: _verified(name), lambda: _decompressed(layer), lambda: _listed(layer))
    ours, bare, listed = compare(*sides, rounds=rounds)
    yield Row(title=f"{what}: verify / bare isal", ours=ours, theirs=bare, limit=1.6, rounds=rounds)
    title = f"{what}: verify / tarfile r:gz, headers only"
    yield Row(title=title, ours=ours, theirs=listed, limit=1 / 1.7, rounds=rounds)


def _verified(name: str) -> None:
    with open_image(name) as source:
        report = verify(source, (), name)
    if not report.ok:
        bad = (check.message for verdict in report.platforms for check in verdict.checks if not check.ok)
        raise SystemExit("\n".join([f"{name} failed verification:", *itertools.islice(bad, 10)]))


def _decompressed(layer: Layer) -> None:
    """Decompress and discard the output: the lower bound. 64 KiB was the fastest chunk size."""
    inflate = isal_zlib.decompressobj(wbits=31)
    with layer.path.open("rb") as file:
        while data := file.read(1 << 16):
            inflate.decompress(data)


def _listed(layer: Layer) -> None:
    with tarfile.open(layer.path, "r:gz") as archive:
        for _ in archive:
            pass


def _million(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure the seconds and memory of a separate process for a million entries.

    The image may be rejected for them. That has to be as quick and as small, and the row states it.
    """
    for number, (what, (kind, mode, link)) in enumerate(_KINDS.items()):
        folder = directory / str(number)
        layer = write_layer(folder, generate_entries(kind, mode, link), level=1)
        usage = _Usage.measure(image(folder, layer, ["linux/amd64"]), rounds)
        refused = "".join(f" (refused: {problem})" for problem in usage.problems)
        whole = f"a million {what}, {layer.size / _MB:.0f} MB gzip{refused}"
        yield Row(title=f"{whole}: seconds", ours=usage.seconds, limit=5, rounds=rounds)
        yield Row(title=f"{whole}: memory", ours=usage.megabytes, limit=100, rounds=rounds, unit="MB")


def _large(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure the memory of a separate process for a layer of 1 GB, also compressed."""
    rounds = min(rounds, 3)
    layout = directory / "layout"
    layer = write_layer(layout, noise(1000 * _MB), level=1)
    image(layout, layer, ["linux/amd64"])
    registry = directory / "registry"
    registry.mkdir()
    with serve(registry) as host:
        push(host, load_layout(layout), "large")
        names = {
            "an archive": write_archive(layout, directory / "large.tar"),
            "a registry": f"docker://{host}/large:latest",
        }
        for where, name in names.items():
            usage = _Usage.measure(name, rounds).require_ok()
            whole = f"a layer of {layer.size / _MB:.0f} MB from {where}"
            yield Row(title=f"{whole}: seconds", ours=usage.seconds, rounds=rounds)
            yield Row(title=f"{whole}: memory", ours=usage.megabytes, limit=150, rounds=rounds, unit="MB")


def _sharing(directory: Path, rounds: int) -> Iterator[Row]:
    """Show that a big layer is read once, however many platforms share it."""
    chosen = select_data(530 * _MB)
    layer = write_layer(directory / "layer", chosen.write)
    platforms = [str(platform) for platform in _platforms()]
    names = {}
    for count in (1, 2, 5, 10):
        folder = directory / str(count)
        (folder / "blobs/sha256").mkdir(parents=True)
        os.link(layer.path, folder / "blobs/sha256" / layer.path.name)
        names[count] = image(folder, layer, platforms[:count])
    sides = [_verifying(name) for name in names.values()]
    times = dict(zip(names, compare(*sides, rounds=rounds), strict=True))
    what = f"sharing a layer of {len(chosen.files):,} files, {layer.size / _MB:.0f} MB gzip"
    for count, seconds in times.items():
        plural = "platform" if count == 1 else "platforms"
        yield Row(title=f"{count} {plural} {what}: seconds", ours=seconds, rounds=rounds)
    yield Row(
        title=f"10 platforms / 1 platform {what}", ours=times[10], theirs=times[1], limit=1.3, rounds=rounds
    )


def _verifying(name: str) -> Callable[[], None]:
    return lambda: _verified(name)


def _platforms() -> tuple[Platform, ...]:
    return parse_platforms(load_settings(folder=_ROOT).platforms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usage:
    """Resources of a verification in a separate process: median seconds and peak memory."""

    seconds: float
    megabytes: float
    problems: tuple[str, ...]

    @classmethod
    def measure(cls, name: str, rounds: int) -> _Usage:
        """Verify ``rounds`` times, each in a new process."""
        argv = [sys.executable, "-m", "benchmarks.child", name]
        runs = []
        for _ in range(rounds):
            done = subprocess.run(argv, cwd=_ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(argv)} failed:\n{done.stderr[-2000:]}")
            runs.append(json.loads(done.stdout))
        return cls(
            seconds=statistics.median(run["seconds"] for run in runs),
            megabytes=max(run["peak"] for run in runs) / _MB,
            problems=tuple(runs[-1]["problems"]),
        )

    def require_ok(self) -> _Usage:
        """Return this if the image passed: a verification that fails early is not a measurement."""
        if self.problems:
            raise SystemExit("\n".join(["the image under measurement failed verification:", *self.problems]))
        return self
