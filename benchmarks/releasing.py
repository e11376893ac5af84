"""Benchmark verified pushes, caches for a cold builder, nodes, and other tools."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.building import Bench
from benchmarks.timing import Row, command, compare
from tests.support.engine.buildkit import ToolUnavailable, import_image, remove_image
from tests.support.engine.nodes import bridge_nodes
from tests.support.go_tools import KO, install
from tests.support.oci import MemoryImage, add_platform, make_tar
from tests.support.registry.actions_cache import serve as serve_actions
from tests.support.registry.real import push, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from buildkit_tasks.platforms import Platform
    from tests.support.engine.nodes import Node

__all__ = ["measure"]

_MAX_VERIFICATION_SECONDS = 1.5  # for the ten platforms of the hello image


@dataclass(frozen=True, kw_only=True)
class _Releases:
    """The example, an engine and an empty registry."""

    bench: Bench
    registry: str

    def verified_push(self, label: str, *options: str, builder: str) -> Row:
        """Measure the cost of verifying and running every platform by digest before tagging."""
        bench, numbers = self.bench, itertools.count()
        tag = f"{self.registry}/hello"

        def ours() -> None:
            names = [f"--tag={tag}:ours-{next(numbers)}", "--push", *options]
            command(bench.tasks("build-multiarch", "--context=hello", *names), cwd=bench.directory)()

        def raw() -> None:
            name = f"{tag}:raw-{next(numbers)}"
            build = [
                arg for arg in bench.raw_build() if not arg.startswith(("--output=", "--tag=", "--builder="))
            ]
            at = build.index("--")
            argv = [*build[:at], f"--builder={builder}", f"--tag={name}", "--push", *build[at:]]
            command(argv, cwd=bench.directory, env=bench.env)()
            inspect = [*bench.engine.tools.buildx, "imagetools", "inspect", name]
            command(inspect, cwd=bench.directory, env=bench.env)()

        ours()
        raw()
        our_time, their_time = compare(ours, raw, rounds=bench.rounds)
        return Row(
            title=f"verified --push - raw buildx --push and inspect ({label})",
            ours=our_time,
            theirs=their_time,
            limit=_MAX_VERIFICATION_SECONDS,
            rounds=bench.rounds,
            absolute=True,
        )

    def caches(self, image: str) -> Iterator[Row]:
        """Compare a build on a cold builder with each kind of cache with one without."""
        tag = f"{self.registry}/inline:hello"
        cache_options = {
            "local": ("type=local,dest=cache", "type=local,src=cache"),
            "registry": (f"type=registry,ref={self.registry}/cache:hello",) * 2,
            "inline": ("type=inline", f"type=registry,ref={tag}"),
            "gha": ("type=gha", "type=gha"),
        }
        # GitHub's service is not available here: serve one on the loopback interface, like the registry.
        with serve_actions() as actions:
            with self._cold(image, actions.env) as build:
                for export, _ in cache_options.values():
                    build(f"--cache-to={export}", f"--tag={tag}", "--push", "--no-verify")()
            without = self._timed(image, {})
            for kind, (_, directory) in cache_options.items():
                cached = self._timed(image, actions.env, f"--cache-from={directory}")
                yield Row(
                    title=f"cold builder with a {kind} cache / without",
                    ours=cached,
                    theirs=without,
                    rounds=1,
                )

    def _timed(self, image: str, env: Mapping[str, str], *options: str) -> float:
        with self._cold(image, env) as build:
            (seconds,) = compare(build(*options, "--output=type=oci,dest=cold.tar"), rounds=1)
        return seconds

    @contextlib.contextmanager
    def _cold(self, image: str, env: Mapping[str, str]) -> Iterator[Callable[..., Callable[[], None]]]:
        """Create a new builder, and the function that builds the example on it."""
        bench, name = self.bench, f"bench-{uuid.uuid4().hex[:8]}"
        driver = ["--driver=docker-container", f"--driver-opt=image={image}", "--driver-opt=network=host"]
        command(bench.tasks("setup-builder", f"--name={name}", *driver), cwd=bench.directory)()
        try:
            yield lambda *options: command(
                bench.tasks("build-multiarch", "--context=hello", f"--builder={name}", *options),
                cwd=bench.directory,
                env={**os.environ, **env},
            )
        finally:
            bench.pipeline.builders.remove(name)

    def nodes(self, image: str) -> Row:
        """Compare an uncached build for ten platforms on two nodes with one node, all on this machine."""
        with bridge_nodes(self.bench.engine, image, ("a", "b")) as nodes, contextlib.ExitStack() as stack:
            sides = [stack.enter_context(self._on_nodes(nodes[:count])) for count in (2, 1)]
            for side in sides:
                side()
            our_time, their_time = compare(*sides, rounds=self.bench.rounds)
        return Row(
            title="uncached build: two nodes / one node (one machine)",
            ours=our_time,
            theirs=their_time,
            rounds=self.bench.rounds,
        )

    @contextlib.contextmanager
    def _on_nodes(self, nodes: Sequence[Node]) -> Iterator[Callable[[], None]]:
        """Build without cache on a builder whose nodes share the platforms."""
        bench, name = self.bench, f"bench-{uuid.uuid4().hex[:8]}"
        platforms = [str(platform) for platform in bench.pipeline.platforms]
        options = [
            ",".join([node.option(), *(f"platform={each}" for each in platforms[number :: len(nodes)])])
            for number, node in enumerate(nodes)
        ]
        command(
            bench.tasks("setup-builder", f"--name={name}", "--driver=remote", *options), cwd=bench.directory
        )()
        build = ["--context=hello", "--no-cache", "--output=type=oci,dest=nodes.tar", f"--builder={name}"]
        yield command(bench.tasks("build-multiarch", *build), cwd=bench.directory)
        command(bench.tasks("remove-builder", f"--name={name}"), cwd=bench.directory)()

    def bake(self, builder: str) -> Row:
        """Compare with an unchanged ``docker buildx bake`` of the same target."""
        bench = self.bench
        build = bench.raw_build()
        contexts = [
            arg.removeprefix("--build-context=") for arg in build if arg.startswith("--build-context=")
        ]
        named = ", ".join(
            f'"{name.removesuffix(":latest")}" = "{value}"'
            for name, _, value in (each.partition("=") for each in contexts)
        )
        platforms = ", ".join(f'"{platform}"' for platform in bench.pipeline.platforms)
        lines = ['context = "hello"', f"contexts = {{ {named} }}", f"platforms = [{platforms}]"]
        text = "\n  ".join(['target "default" {', *lines, 'output = ["type=oci,dest=bake.tar"]'])
        (bench.directory / "docker-bake.hcl").write_text(f"{text}\n}}\n", encoding="utf-8")
        bake = [*bench.engine.tools.buildx, "bake", f"--builder={builder}", "--allow=fs=*"]
        ours = command(bench.tasks("build-multiarch", *bench.options), cwd=bench.directory)
        theirs = command(bake, cwd=bench.directory, env=bench.env)
        ours()
        theirs()
        our_time, their_time = compare(ours, theirs, rounds=bench.rounds)
        return Row(
            title="nothing changed: build-multiarch / buildx bake",
            ours=our_time,
            theirs=their_time,
            rounds=bench.rounds,
        )

    def ko(self) -> Row:
        """Compare with ko, which builds only Go programs and needs no engine, for the same platforms."""
        bench, source = self.bench, self.bench.directory / "ko"
        source.mkdir()
        shutil.copy(bench.example / "main.go", source)
        (source / "go.mod").write_text("module example.org/hello\n\ngo 1.22\n", encoding="utf-8")
        # Without attestations and on an empty base: an index of only the program.
        platforms = ",".join(map(str, bench.pipeline.platforms))
        argv = [
            str(install(KO)), "build", ".", f"--platform={platforms}", "--push=false", "--sbom=none",
            "--oci-layout-path=out",
        ]  # fmt: skip
        push(self.registry, _empty(bench.pipeline.platforms), "base")
        env = {**bench.env, "KO_DEFAULTBASEIMAGE": f"{self.registry}/base", "KO_DOCKER_REPO": "ko.local"}
        theirs = command(argv, cwd=source, env=env)
        ours = command(bench.tasks("build-multiarch", *bench.options), cwd=bench.directory)
        theirs()
        ours()

        def edit() -> None:
            bench.edit()
            shutil.copy(bench.example / "main.go", source)

        our_time, their_time = compare(ours, theirs, rounds=bench.rounds, before=edit)
        return Row(
            title="edit of main.go: build-multiarch / ko",
            ours=our_time,
            theirs=their_time,
            rounds=bench.rounds,
        )


def _empty(platforms: Iterable[Platform]) -> MemoryImage:
    """Return an empty image for each platform."""
    memory = MemoryImage()
    return memory.set_index([add_platform(memory, str(platform), [make_tar({})]) for platform in platforms])


def measure(directory: Path, rounds: int) -> Iterator[Row]:
    """Measure every limit of this group in a new directory."""
    bench = Bench(directory, rounds)
    (directory / "registry").mkdir()
    with serve(directory / "registry") as registry:
        releases = _Releases(bench=bench, registry=registry)
        yield releases.verified_push("docker", builder="default")
        yield releases.bake("default")
        try:
            image = import_image(bench.engine)
        except ToolUnavailable as missing:
            print(f"without a BuildKit image: {missing}", file=sys.stderr)
            return
        try:
            yield from releases.caches(image)
            yield releases.nodes(image)
        finally:
            remove_image(bench.engine, image)
        try:
            yield releases.ko()
        except ToolUnavailable as missing:
            print(f"without ko: {missing}", file=sys.stderr)
