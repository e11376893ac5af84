"""One image built on several nodes by a scripted buildx."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.execute import BuildExecution
from buildkit_tasks.build.multi_node import MultiNodeBuild, needs_multi_node
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.build.standin_bases import BasePlan
from buildkit_tasks.errors import (
    BuilderError,
    BuildFailed,
    BuildkitTasksError,
    Interrupted,
    UsageError,
)
from buildkit_tasks.oci.copy.push import copy_image
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import BuilderSummary, BuildResult, NodeSummary, Output
from buildkit_tasks.system.command import CommandOptions
from buildkit_tasks.verify import verify
from tests.support.argv import option_values
from tests.support.fake_engine import make_engine
from tests.support.oci import hello, write_archive
from tests.support.registry.fake import fake_registry
from tests.support.scripted import Scripted
from tests.unit.build.test_execute import _no_temporary_files, work_dir

__all__ = ["_no_temporary_files", "work_dir"]  # autouse fixtures

AMD64, ARM64, RISCV64 = THREE_PLATFORMS = parse_platforms(["linux/amd64", "linux/arm64", "linux/riscv64"])
PLATFORM_NAMES = tuple(map(str, THREE_PLATFORMS))
CONNECTION_LOST = "ERROR: failed to build: Unavailable: closing transport due to: connection error\n"


def make_builder(**fixed_platforms: Sequence[str]) -> BuilderSummary:
    """Return a builder of nodes by name, each with the platforms fixed on it; the first one is an amd64."""
    nodes = (
        NodeSummary(
            name=name,
            endpoint=f"docker-container://{name}",
            native="linux/amd64" if number == 0 else "linux/arm64",
            platforms=PLATFORM_NAMES,
            fixed=tuple(platforms),
        )
        for number, (name, platforms) in enumerate(fixed_platforms.items())
    )
    return BuilderSummary(name="mine", driver="remote", nodes=tuple(nodes))


TWO_NODES = make_builder(a=["linux/amd64"], b=["linux/arm64", "linux/riscv64"])
ONE_NODE = make_builder(a=PLATFORM_NAMES)


def build_platform(argv: list[str], _: CommandOptions) -> None:
    """Write what a buildx writes that builds one platform."""
    (platform,) = option_values(argv, "platform")
    image = hello([platform])
    for spec in map(OutputSpec.parse, option_values(argv, "output")):
        if spec.is_file and spec.dest is not None:
            write_archive(image, spec.dest)
        elif spec.dest is not None:
            spec.dest.mkdir(parents=True)
            (spec.dest / "made-for").write_text(platform, encoding="utf-8")
    (metadata,) = option_values(argv, "metadata-file")
    Path(metadata).write_text(
        json.dumps({"containerimage.digest": str(image.root_descriptor().digest)}), encoding="utf-8"
    )


class Harness:
    """A build on two nodes by a scripted buildx."""

    def __init__(self, *outputs: str, fallback: bool = False, **options: Any) -> None:
        self.commands = Scripted()
        self.messages: list[str] = []
        self.dropped_nodes: list[tuple[str, ...]] = []
        build = BuildExecution(
            request=BuildRequest(
                platforms=THREE_PLATFORMS, outputs=tuple(map(OutputSpec.parse, outputs)), **options
            ),
            engine=make_engine(),
            builder=TWO_NODES,
            base_plan=BasePlan(),
            commands=self.commands,
            notify=self.messages.append,
        )
        self.build = MultiNodeBuild(build=build, drop_nodes=self._drop_nodes, fallback=fallback)
        self.commands.expect("docker buildx build *", effect=build_platform)

    def _drop_nodes(self, _: BuilderSummary, names: Sequence[str]) -> BuilderSummary:
        self.dropped_nodes.append(tuple(names))
        return ONE_NODE

    def expect_failure(self, platform: str, stderr: str, *, times: int | None = 1) -> Harness:
        pattern = f"docker buildx build *--platform={platform} *"
        self.commands.expect(pattern, returncode=1, stderr=stderr, times=times)
        return self

    def execute(self) -> BuildResult:
        return self.build.execute()

    def error(self, error_type: type[BuildkitTasksError]) -> BuildkitTasksError:
        with pytest.raises(error_type) as excinfo:
            self.execute()
        return excinfo.value


def platform_rows(result: BuildResult) -> list[tuple[str, str, bool]]:
    return [(row.platform, row.node, row.native) for row in result.platforms]


@pytest.mark.parametrize(
    ("builder", "platforms", "expected"),
    [
        (TWO_NODES, THREE_PLATFORMS, True),
        (TWO_NODES, (ARM64, RISCV64), False),
        (TWO_NODES, (AMD64,), False),
        (ONE_NODE, THREE_PLATFORMS, False),
    ],
)
def test_needs_multi_node(builder: BuilderSummary, platforms: tuple[Platform, ...], expected: bool) -> None:
    assert needs_multi_node(builder, platforms) is expected


PROVENANCE = [
    pytest.param({}, {}, ["mode=min"], id="default"),
    pytest.param({"sbom": "true"}, {}, ["mode=min"], id="sbom"),
    pytest.param({"provenance": "mode=max"}, {}, ["mode=max"], id="explicit"),
    pytest.param({"provenance": "false"}, {}, ["false"], id="none"),
    pytest.param({"attest": ("type=provenance,mode=max",)}, {}, [], id="attest"),
    pytest.param({"no_attest": True}, {}, ["false"], id="no-attest"),
    pytest.param({"reproducible": True}, {}, ["false"], id="reproducible"),
    pytest.param({}, {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}, [], id="disabled-by-environment"),
]


@pytest.mark.parametrize(("options", "environ", "expected"), PROVENANCE)
def test_default_provenance(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], environ: dict[str, str], expected: list[str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    harness = Harness("type=oci,dest=x.tar", **options)
    harness.execute()
    assert [
        option_values(call.argv, "provenance")
        for call in harness.commands.matching_calls("docker buildx build *")
    ] == [expected] * 3


def test_no_provenance_in_folder() -> None:
    harness = Harness("type=local,dest=out")
    harness.execute()
    assert [
        option_values(call.argv, "provenance")
        for call in harness.commands.matching_calls("docker buildx build *")
    ] == [[]] * 3


def test_parts_are_joined(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=dist/hello.tar", tags=("hello:1",))
    result = harness.execute()
    assert platform_rows(result) == [
        ("linux/amd64", "a", True),
        ("linux/arm64", "b", True),
        ("linux/riscv64", "b", False),
    ]
    assert result.outputs == (Output(type="oci", dest="dist/hello.tar"),)
    with open_image(f"oci-archive:{work_dir}/dist/hello.tar") as source:
        assert str(source.root_descriptor().digest) == result.digest
        report = verify(source, THREE_PLATFORMS, "it")
    assert report.ok
    assert [row.digest for row in report.platforms] == [row.digest for row in result.platforms]
    platforms = [option_values(command.argv, "platform") for command in harness.commands.calls]
    assert sorted(platforms) == [["linux/amd64"], ["linux/arm64"], ["linux/riscv64"]]
    assert all(
        "--builder=mine" in command.argv and not option_values(command.argv, "tag")
        for command in harness.commands.calls
    )


def test_metadata_file(work_dir: Path) -> None:
    result = Harness("type=oci,dest=x.tar", metadata_file="deep/meta.json").execute()
    metadata = json.loads((work_dir / "deep/meta.json").read_bytes())
    assert metadata == {
        "containerimage.digest": result.digest,
        **{
            f"containerimage.digest/{platform}": str(hello([str(platform)]).root_descriptor().digest)
            for platform in THREE_PLATFORMS
        },
    }


def test_image_id_file(work_dir: Path) -> None:
    result = Harness("type=oci,dest=x.tar", iidfile="deep/id").execute()
    assert (work_dir / "deep/id").read_text(encoding="utf-8") == result.digest


def test_no_image_id_of_failed_build(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=x.tar", iidfile="id").expect_failure("linux/riscv64", "ERROR: no\n")
    harness.error(BuildFailed)
    assert not (work_dir / "id").exists()


def test_options_of_every_part() -> None:
    harness = Harness(
        "type=oci,dest=x.tar", network="none", shm_size="1g", add_hosts=("db:10.0.0.1",),
        ulimits=("nofile=9",), no_cache_filters=("build",), file="-", dockerfile_text="FROM scratch\n",
    )  # fmt: skip
    harness.execute()
    flags = {
        "--network=none", "--shm-size=1g", "--add-host=db:10.0.0.1", "--ulimit=nofile=9",
        "--no-cache-filter=build", "--file=-",
    }  # fmt: skip
    assert len(harness.commands.calls) == len(THREE_PLATFORMS)
    for call in harness.commands.calls:
        assert flags <= set(call.argv)
        assert call.options.stdin == b"FROM scratch\n"


def test_local_output_folders(work_dir: Path) -> None:
    result = Harness("type=local,dest=out").execute()
    assert result.outputs == (Output(type="local", dest="out"),)
    assert {path.name: (path / "made-for").read_text() for path in (work_dir / "out").iterdir()} == {
        str(platform).replace("/", "_"): str(platform) for platform in THREE_PLATFORMS
    }


def test_load_joined_archive() -> None:
    harness = Harness(load=True, tags=("hello:1",))
    loaded: list[list[str]] = []

    def load(argv: list[str], _: CommandOptions) -> None:
        archive = argv[-1].removeprefix("--input=")
        with open_image(f"oci-archive:{archive}") as source:
            loaded.append([row.platform for row in verify(source, THREE_PLATFORMS, "it").platforms])

    harness.commands.expect("docker load *", effect=load)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(BuildExecution, "_read_stored_digests", lambda *_: {})
        result = harness.execute()
    assert loaded == [list(PLATFORM_NAMES)]
    assert result.outputs == (Output(type="docker", ref="hello:1"),)


def test_load_failure() -> None:
    harness = Harness(load=True, tags=("hello:1",))
    harness.commands.expect("docker load *", returncode=1, stderr="no space left on device\n")
    assert "no space left on device" in harness.error(BuildFailed).message


def test_tar_output_is_refused() -> None:
    harness = Harness("type=tar,dest=x.tar")
    assert "cannot be joined into one tar file" in harness.error(UsageError).message
    assert harness.commands.calls == []


def test_failed_step(work_dir: Path) -> None:
    (work_dir / "x.tar").write_bytes(b"old")
    harness = Harness("type=oci,dest=x.tar", fallback=True).expect_failure(
        "linux/arm64", "ERROR: exit code: 7\n"
    )
    error = harness.error(BuildFailed)
    assert (error.platform, "exit code: 7" in error.message) == (ARM64, True)
    assert harness.dropped_nodes == []  # its node was not lost
    assert (work_dir / "x.tar").read_bytes() == b"old"


def test_lost_node() -> None:
    error = Harness("type=oci,dest=x.tar").expect_failure("linux/arm64", CONNECTION_LOST).error(BuilderError)
    assert error.platform == ARM64
    assert error.message.startswith("node b was lost during the build: ")
    assert "--fallback=emulate" in (error.hint or "")


def test_fallback_rebuilds_lost_part(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=x.tar", fallback=True).expect_failure("linux/arm64", CONNECTION_LOST)
    result = harness.execute()
    assert harness.dropped_nodes == [("b",)]
    assert platform_rows(result) == [
        ("linux/amd64", "a", True),
        ("linux/arm64", "a", False),
        ("linux/riscv64", "b", False),  # was built before the node was lost
    ]
    (message,) = harness.messages
    assert message.startswith("node b was lost during the build: the builder 'mine' was lost: ")
    assert message.endswith("; the other nodes emulate its platforms")
    assert len(harness.commands.calls) == len(THREE_PLATFORMS) + 1
    with open_image(f"oci-archive:{work_dir}/x.tar") as source:
        assert verify(source, THREE_PLATFORMS, "it").ok


def test_second_lost_node() -> None:
    harness = Harness("type=oci,dest=x.tar", fallback=True).expect_failure(
        "linux/arm64", CONNECTION_LOST, times=2
    )
    assert harness.error(BuilderError).platform == ARM64
    assert harness.dropped_nodes == [("b",)]


def test_no_fallback_with_failed_step() -> None:
    harness = Harness("type=oci,dest=x.tar", fallback=True)
    harness.expect_failure("linux/arm64", CONNECTION_LOST).expect_failure(
        "linux/amd64", "ERROR: exit code: 7\n"
    )
    harness.error(BuildkitTasksError)
    assert harness.dropped_nodes == []
    assert len(harness.commands.calls) == len(THREE_PLATFORMS)


def test_interrupt_ends_running_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    harness, interrupts = Harness("type=oci,dest=x.tar"), []
    monkeypatch.setattr(harness.commands, "interrupt", lambda: interrupts.append("all"))
    harness.commands.expect("docker buildx build *", error=KeyboardInterrupt())
    harness.error(Interrupted)
    assert interrupts == ["all"]


def test_index_is_pushed_to_every_repository() -> None:
    def push_platform(argv: list[str], options: CommandOptions) -> None:
        build_platform(argv, options)
        for spec in map(OutputSpec.parse, option_values(argv, "output")):
            for name in spec.names:
                copy_image(hello(option_values(argv, "platform")), Reference.parse(name))

    with fake_registry() as server:
        harness = Harness("type=registry", tags=(f"{server.host}/team/a:1", f"{server.host}/b:1"))
        harness.commands.expect("docker buildx build *", effect=push_platform)
        digest = harness.execute().digest
        for name in ("team/a", "b"):
            assert digest in server.repository(name).content["manifests"]
        assert server.moved_tags == []


def test_dry_run(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=x.tar")
    harness.commands.dry_run = True
    assert harness.execute().digest == ""
    assert len(harness.commands.dry_run_lines) == len(THREE_PLATFORMS)
    assert list(work_dir.iterdir()) == []


def test_dry_run_pushes_nothing(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=x.tar", "type=registry", tags=("r.example/app:1",))
    harness.commands.dry_run = True
    assert harness.execute().digest == ""
    assert "would push x.tar to r.example/app, by its digest" in harness.messages
    assert list(work_dir.iterdir()) == []
