"""One image from several nodes, by a buildx that is scripted."""

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
from buildkit_tasks.errors import BuilderError, BuildFailed, BuildkitTasksError, UsageError
from buildkit_tasks.host.engine.daemon import ClientTools, Engine
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import BuilderSummary, BuildResult, NodeSummary, Output
from buildkit_tasks.system.command import CommandOptions
from buildkit_tasks.verify import verify
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted
from tests.unit.build.test_execute import _no_temporary_file_is_left, here, option

__all__ = ["_no_temporary_file_is_left", "here"]  # fixtures of every test here

AMD64, ARM64, RISCV64 = THREE = parse_platforms(["linux/amd64", "linux/arm64", "linux/riscv64"])
EVERYTHING = tuple(map(str, THREE))
GONE = "ERROR: failed to build: Unavailable: closing transport due to: connection error\n"


def builder(**fixed: Sequence[str]) -> BuilderSummary:
    """Nodes by their names, each with the platforms that are fixed on it; the first is an amd64."""
    nodes = (
        NodeSummary(
            name=name,
            endpoint=f"docker-container://{name}",
            native="linux/amd64" if number == 0 else "linux/arm64",
            platforms=EVERYTHING,
            fixed=tuple(platforms),
        )
        for number, (name, platforms) in enumerate(fixed.items())
    )
    return BuilderSummary(name="mine", driver="remote", nodes=tuple(nodes))


TWO_NODES = builder(a=["linux/amd64"], b=["linux/arm64", "linux/riscv64"])
ALONE = builder(a=EVERYTHING)


def builds(argv: list[str], _: CommandOptions) -> None:
    """What a buildx does that builds one platform."""
    (platform,) = option(argv, "platform")
    image = hello([platform])
    for spec in map(OutputSpec.parse, option(argv, "output")):
        if spec.is_file and spec.dest is not None:
            write_archive(image, spec.dest)
        elif spec.dest is not None:
            spec.dest.mkdir(parents=True)
            (spec.dest / "made-for").write_text(platform, encoding="utf-8")
    (metadata,) = option(argv, "metadata-file")
    Path(metadata).write_text(
        json.dumps({"containerimage.digest": str(image.root_descriptor().digest)}), encoding="utf-8"
    )


class Bench:
    def __init__(self, *outputs: str, fallback: bool = False, **options: Any) -> None:
        self.run = Scripted()
        self.told: list[str] = []
        self.left_out: list[tuple[str, ...]] = []
        engine = Engine(
            kind="system", endpoint="unix:///x", version="28", store="containerd", platform=AMD64,
            is_local=True,
            tools=ClientTools(docker=("docker",), buildx=("docker", "buildx")), env={},
        )  # fmt: skip
        build = BuildExecution(
            request=BuildRequest(platforms=THREE, outputs=tuple(map(OutputSpec.parse, outputs)), **options),
            engine=engine,
            builder=TWO_NODES,
            base_plan=BasePlan(),
            commands=self.run,
            notify=self.told.append,
        )
        self.fleet = MultiNodeBuild(build=build, drop_nodes=self._without, fallback=fallback)
        self.run.expect("docker buildx build *", effect=builds)

    def _without(self, _: BuilderSummary, names: Sequence[str]) -> BuilderSummary:
        self.left_out.append(tuple(names))
        return ALONE

    def fails(self, platform: str, stderr: str, *, times: int | None = 1) -> Bench:
        pattern = f"docker buildx build *--platform={platform} *"
        self.run.expect(pattern, returncode=1, stderr=stderr, times=times)
        return self

    def result(self) -> BuildResult:
        return self.fleet.execute()

    def raises(self, kind: type[BuildkitTasksError]) -> BuildkitTasksError:
        with pytest.raises(kind) as caught:
            self.result()
        return caught.value


def rows(result: BuildResult) -> list[tuple[str, str, bool]]:
    return [(row.platform, row.node, row.native) for row in result.platforms]


@pytest.mark.parametrize(
    ("found", "platforms", "needed"),
    [
        (TWO_NODES, THREE, True),
        (TWO_NODES, (ARM64, RISCV64), False),
        (TWO_NODES, (AMD64,), False),
        (ALONE, THREE, False),
    ],
)
def test_several_builds_are_made_only_where_several_nodes_build(
    found: BuilderSummary, platforms: tuple[Platform, ...], needed: bool
) -> None:
    assert needs_multi_node(found, platforms) is needed


ATTESTED = [
    pytest.param({}, {}, ["mode=min"], id="as-by-buildx-itself"),
    pytest.param({"sbom": "true"}, {}, ["mode=min"], id="beside-an-sbom"),
    pytest.param({"provenance": "mode=max"}, {}, ["mode=max"], id="another-is-asked-for"),
    pytest.param({"provenance": "false"}, {}, ["false"], id="none"),
    pytest.param({"attest": ("type=provenance,mode=max",)}, {}, [], id="by-attest"),
    pytest.param({"no_attest": True}, {}, ["false"], id="no-attest"),
    pytest.param({"reproducible": True}, {}, ["false"], id="reproducible"),
    pytest.param({}, {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}, [], id="not-by-default"),
]


@pytest.mark.parametrize(("asked", "environ", "said"), ATTESTED)
def test_a_part_has_the_provenance_that_a_build_of_one_node_has(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], environ: dict[str, str], said: list[str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    bench = Bench("type=oci,dest=x.tar", **asked)
    bench.result()
    assert [option([*each.argv], "provenance") for each in bench.run.asked("docker buildx build *")] == [
        said
    ] * 3


def test_a_folder_gets_no_provenance_by_itself() -> None:
    bench = Bench("type=local,dest=out")
    bench.result()
    assert [option([*each.argv], "provenance") for each in bench.run.asked("docker buildx build *")] == [
        []
    ] * 3


def test_every_platform_is_a_build_of_its_own_and_the_parts_are_joined(here: Path) -> None:
    bench = Bench("type=oci,dest=dist/hello.tar", tags=("hello:1",))
    result = bench.result()
    assert rows(result) == [
        ("linux/amd64", "a", True),
        ("linux/arm64", "b", True),
        ("linux/riscv64", "b", False),
    ]
    assert result.outputs == (Output(type="oci", dest="dist/hello.tar"),)
    with open_image(f"oci-archive:{here}/dist/hello.tar") as source:
        assert str(source.root_descriptor().digest) == result.digest
        report = verify(source, THREE, "it")
    assert report.ok
    assert [row.digest for row in report.platforms] == [row.digest for row in result.platforms]
    asked = [option(list(ran.argv), "platform") for ran in bench.run.calls]
    assert sorted(asked) == [["linux/amd64"], ["linux/arm64"], ["linux/riscv64"]]
    assert all("--builder=mine" in ran.argv and not option(list(ran.argv), "tag") for ran in bench.run.calls)


def test_the_metadata_file_tells_of_the_whole_and_of_every_part(here: Path) -> None:
    result = Bench("type=oci,dest=x.tar", metadata_file="deep/meta.json").result()
    found = json.loads((here / "deep/meta.json").read_bytes())
    assert found == {
        "containerimage.digest": result.digest,
        **{
            f"containerimage.digest/{platform}": str(hello([str(platform)]).root_descriptor().digest)
            for platform in THREE
        },
    }


def test_folders_are_named_as_buildkit_names_those_of_several_platforms(here: Path) -> None:
    result = Bench("type=local,dest=out").result()
    assert result.outputs == (Output(type="local", dest="out"),)
    assert {path.name: (path / "made-for").read_text() for path in (here / "out").iterdir()} == {
        str(platform).replace("/", "_"): str(platform) for platform in THREE
    }


def test_load_hands_one_joined_archive_to_the_engine() -> None:
    bench = Bench(load=True, tags=("hello:1",))
    seen: list[list[str]] = []

    def load(argv: list[str], _: CommandOptions) -> None:
        archive = argv[-1].removeprefix("--input=")
        with open_image(f"oci-archive:{archive}") as source:
            seen.append([row.platform for row in verify(source, THREE, "it").platforms])

    bench.run.expect("docker load *", effect=load)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BuildExecution, "_read_stored_digests", lambda *_: {})
        result = bench.result()
    assert seen == [list(EVERYTHING)]
    assert result.outputs == (Output(type="docker", ref="hello:1"),)


def test_an_engine_that_does_not_load_it_is_a_failure() -> None:
    bench = Bench(load=True, tags=("hello:1",))
    bench.run.expect("docker load *", returncode=1, stderr="no space left on device\n")
    assert "no space left on device" in bench.raises(BuildFailed).message


def test_tar_is_refused_before_anything_is_built() -> None:
    bench = Bench("type=tar,dest=x.tar")
    assert "cannot be joined into one tar file" in bench.raises(UsageError).message
    assert bench.run.calls == []


def test_a_failing_step_is_the_error_and_an_old_file_stays(here: Path) -> None:
    (here / "x.tar").write_bytes(b"old")
    bench = Bench("type=oci,dest=x.tar", fallback=True).fails("linux/arm64", "ERROR: exit code: 7\n")
    error = bench.raises(BuildFailed)
    assert (error.platform, "exit code: 7" in error.message) == (ARM64, True)
    assert bench.left_out == []  # its node is well
    assert (here / "x.tar").read_bytes() == b"old"


def test_a_node_that_went_away_is_named_with_platform_and_what_to_do() -> None:
    error = Bench("type=oci,dest=x.tar").fails("linux/arm64", GONE).raises(BuilderError)
    assert error.platform == ARM64
    assert error.message.startswith("node b was lost during the build: ")
    assert "--fallback=emulate" in (error.hint or "")


def test_with_fallback_only_what_it_had_left_to_build_is_built_by_the_others(here: Path) -> None:
    bench = Bench("type=oci,dest=x.tar", fallback=True).fails("linux/arm64", GONE)
    result = bench.result()
    assert bench.left_out == [("b",)]
    assert rows(result) == [
        ("linux/amd64", "a", True),
        ("linux/arm64", "a", False),
        ("linux/riscv64", "b", False),  # was finished when the node went
    ]
    (told,) = bench.told
    assert told.startswith("node b was lost during the build: the builder 'mine' was lost: ")
    assert told.endswith("; the other nodes emulate its platforms")
    assert len(bench.run.calls) == len(THREE) + 1
    with open_image(f"oci-archive:{here}/x.tar") as source:
        assert verify(source, THREE, "it").ok


def test_a_second_loss_is_an_error() -> None:
    bench = Bench("type=oci,dest=x.tar", fallback=True).fails("linux/arm64", GONE, times=2)
    assert bench.raises(BuilderError).platform == ARM64
    assert bench.left_out == [("b",)]


def test_where_a_step_failed_too_nothing_is_built_again() -> None:
    bench = Bench("type=oci,dest=x.tar", fallback=True)
    bench.fails("linux/arm64", GONE).fails("linux/amd64", "ERROR: exit code: 7\n")
    bench.raises(BuildkitTasksError)
    assert bench.left_out == []
    assert len(bench.run.calls) == len(THREE)


def test_a_dry_run_shows_a_build_for_each_platform_and_joins_nothing(here: Path) -> None:
    bench = Bench("type=oci,dest=x.tar")
    bench.run.dry_run = True
    assert bench.result().digest == ""
    assert len(bench.run.shown) == len(THREE)
    assert list(here.iterdir()) == []
