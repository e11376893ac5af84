from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.build.execute import BuildExecution
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.build.standin_bases import BasePlan
from buildkit_tasks.errors import BuilderError, BuildFailed, LimitExceeded, RegistryError, UsageError
from buildkit_tasks.host.engine.daemon import ClientTools, Engine
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import BuilderSummary, BuildResult, Output
from buildkit_tasks.system.files import temporary_path
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from buildkit_tasks.system.command import CommandOptions

TWO = parse_platforms(["linux/amd64", "linux/arm/v7"])
IMAGE = hello(["linux/amd64", "linux/arm/v7"])
ROOT = str(IMAGE.root_descriptor().digest)
OLD = b"the old file\0byte for byte"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to build in; temporary files go beside it, where leftovers are seen."""
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("CI", raising=False)
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def _no_temporary_file_is_left(tmp_path: Path, here: Path) -> Any:
    yield
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path for path in here.rglob("*") if path.name.endswith(".partial")] == []


def option(argv: list[str], name: str) -> list[str]:
    return [word.removeprefix(f"--{name}=") for word in argv if word.startswith(f"--{name}=")]


def buildx(digest: str = ROOT) -> Any:
    """What a buildx that succeeds does: it writes each file output and its metadata."""

    def build(argv: list[str], _: CommandOptions) -> None:
        for spec in map(OutputSpec.parse, option(argv, "output")):
            if spec.is_file and spec.dest is not None:
                write_archive(IMAGE, spec.dest)
        (metadata,) = option(argv, "metadata-file")
        found = {"containerimage.digest": digest} if digest else {"buildx.build.ref": "x"}
        Path(metadata).write_text(json.dumps(found), encoding="utf-8")

    return build


def scribbles(argv: list[str], _: CommandOptions) -> None:
    """What a buildx that fails does: it has begun to write."""
    for spec in map(OutputSpec.parse, option(argv, "output")):
        if spec.dest is not None:
            spec.dest.write_bytes(b"half")


class Bench:
    def __init__(
        self, *outputs: str, store: str = "containerd", driver: str = "docker", **options: Any
    ) -> None:
        self.run = Scripted()
        self.told: list[str] = []
        engine = Engine(
            kind="system", endpoint="unix:///x", version="28", store=store, platform=Platform.parse("amd64"),
            is_local=True, tools=ClientTools(docker=("docker",), buildx=("docker", "buildx")),
            env={"DOCKER_HOST": "unix:///x"},
        )  # fmt: skip
        plan = options.pop("plan", BasePlan())
        platforms = options.pop("platforms", TWO)
        specs = tuple(map(OutputSpec.parse, outputs))
        self.build = BuildExecution(
            request=BuildRequest(platforms=platforms, outputs=specs, **options),
            engine=engine,
            builder=BuilderSummary(name="mine", driver=driver, reason="it is all there is"),
            base_plan=plan,
            commands=self.run,
            notify=self.told.append,
        )

    def succeeds(self, digest: str = ROOT) -> Bench:
        self.run.expect("docker buildx build *", effect=buildx(digest))
        return self

    def fails(self, code: int = 1, stderr: str = "", effect: Any = scribbles) -> Bench:
        self.run.expect("docker buildx build *", returncode=code, stderr=stderr, effect=effect)
        return self

    def result(self) -> BuildResult:
        return self.build.execute()

    def check(self) -> None:
        check_capabilities(self.build.request, self.build.engine, self.build.builder)


def test_a_build_says_what_was_made_and_where_it_lies(here: Path) -> None:
    bench = Bench("type=oci,dest=dist/hello.tar", tags=("hello:1",)).succeeds()
    result = bench.result()
    assert (result.ok, result.digest, result.builder, result.bases) == (True, ROOT, "mine", "registry")
    assert result.outputs == (Output(type="oci", dest="dist/hello.tar"),)
    entries = json.loads(IMAGE.blobs[ROOT])["manifests"]
    assert [(row.platform, row.digest) for row in result.platforms] == [
        ("linux/amd64", entries[0]["digest"]),
        ("linux/arm/v7", entries[1]["digest"]),
    ]
    assert [path.name for path in (here / "dist").iterdir()] == ["hello.tar"]
    (ran,) = bench.run.calls
    assert (ran.kind, dict(ran.call.env)) == ("stream", {"DOCKER_HOST": "unix:///x"})
    assert ran.argv[:5] == (
        "docker",
        "buildx",
        "build",
        "--builder=mine",
        "--platform=linux/amd64,linux/arm/v7",
    )


def test_buildx_writes_beside_and_never_into_the_place_itself(here: Path) -> None:
    bench = Bench("type=oci,dest=hello.tar").succeeds()
    (here / "hello.tar").write_bytes(OLD)
    bench.result()
    (dest,) = option(list(bench.run.calls[0].argv), "output")
    assert dest == f"type=oci,dest={temporary_path(Path('hello.tar'))}"
    assert (here / "hello.tar").read_bytes() != OLD


@pytest.mark.parametrize("kind", ["oci", "tar"])
def test_row_24_a_failing_build_leaves_the_old_file_byte_for_byte(here: Path, kind: str) -> None:
    (here / "hello.tar").write_bytes(OLD)
    with pytest.raises(BuildFailed):
        Bench(f"type={kind},dest=hello.tar").fails().result()
    assert (here / "hello.tar").read_bytes() == OLD
    assert [path.name for path in here.iterdir()] == ["hello.tar"]


def test_an_interrupted_build_leaves_the_old_file_too(here: Path) -> None:
    (here / "hello.tar").write_bytes(OLD)
    bench = Bench("type=oci,dest=hello.tar")
    bench.run.expect("docker buildx build *", effect=scribbles, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        bench.result()
    assert (here / "hello.tar").read_bytes() == OLD


def test_row_23_what_a_killed_build_left_is_reaped(here: Path) -> None:
    (here / ".hello.tar.4194305.partial").touch()
    Bench("type=oci,dest=hello.tar").succeeds().result()
    assert [path.name for path in here.iterdir()] == ["hello.tar"]


@pytest.mark.parametrize("code", [1, 17, 100, 130])
def test_buildx_own_status_is_passed_on_with_its_last_error(code: int) -> None:
    said = "#5 ERROR: in passing\nERROR: first\nERROR: failed to solve: it broke\nnote\n"
    with pytest.raises(BuildFailed) as caught:
        Bench("type=oci,dest=x.tar").fails(code, said).result()
    assert caught.value.exit_code == code
    assert caught.value.message == (
        f"docker buildx build failed with status {code}: failed to solve: it broke"
    )


def test_a_buildx_that_was_killed_is_a_plain_failure() -> None:
    with pytest.raises(BuildFailed) as caught:
        Bench("type=oci,dest=x.tar").fails(-9).result()
    assert caught.value.exit_code == 1


def test_row_32_a_failure_without_words_is_still_one() -> None:
    with pytest.raises(BuildFailed, match="failed with status 3"):
        Bench("type=oci,dest=x.tar").fails(3).result()


@pytest.mark.parametrize(
    "said",
    [
        "ERROR: failed to solve: write /x: no space left on device\n",
        "ERROR: failed to copy: Disk quota exceeded\n",
    ],
)
def test_rows_25_and_26_a_full_disk_is_a_limit_with_what_to_do(here: Path, said: str) -> None:
    (here / "x.tar").write_bytes(OLD)
    with pytest.raises(LimitExceeded) as caught:
        Bench("type=oci,dest=x.tar").fails(1, said).result()
    assert caught.value.exit_code == 5
    assert "docker buildx prune" in (caught.value.hint or "")
    assert said.strip().removeprefix("ERROR: ") in caught.value.message
    assert (here / "x.tar").read_bytes() == OLD


def test_a_success_without_the_file_is_none(here: Path) -> None:
    (here / "x.tar").write_bytes(OLD)
    bench = Bench("type=oci,dest=x.tar")

    def nothing(argv: list[str], _: CommandOptions) -> None:
        Path(option(argv, "metadata-file")[0]).write_text("{}", encoding="utf-8")

    bench.run.expect("docker buildx build *", effect=nothing)
    with pytest.raises(BuildFailed, match=r"did not write x\.tar"):
        bench.result()
    assert (here / "x.tar").read_bytes() == OLD


@pytest.mark.parametrize("metadata", [None, "", "{"])
def test_a_success_without_metadata_is_none(here: Path, metadata: str | None) -> None:
    (here / "x.tar").write_bytes(OLD)
    bench = Bench("type=oci,dest=x.tar")

    def half(argv: list[str], call: CommandOptions) -> None:
        scribbles(argv, call)
        if metadata is not None:
            Path(option(argv, "metadata-file")[0]).write_text(metadata, encoding="utf-8")

    bench.run.expect("docker buildx build *", effect=half)
    with pytest.raises(BuildFailed, match="metadata"):
        bench.result()
    assert (here / "x.tar").read_bytes() == OLD


def test_several_outputs_are_made_at_once(here: Path) -> None:
    bench = Bench("type=oci,dest=a.tar", "type=tar,dest=b.tar", "type=local,dest=out").succeeds()
    result = bench.result()
    assert [output.dest for output in result.outputs] == ["a.tar", "b.tar", "out"]
    assert len(bench.run.calls) == 1
    assert {path.name for path in here.iterdir()} == {"a.tar", "b.tar"}


def test_named_contexts_of_stand_ins_come_before_the_users_own() -> None:
    plan = BasePlan(mode="standin", contexts=(("alpine:3", "oci-layout:///x@sha256:1"),))
    bench = Bench("type=oci,dest=a.tar", plan=plan, build_contexts=("alpine:3=mine",)).succeeds()
    assert bench.result().bases == "standin"
    given = option(list(bench.run.calls[0].argv), "build-context")
    assert given == ["alpine:3=oci-layout:///x@sha256:1", "alpine:3=mine"]


def test_the_metadata_is_also_written_where_it_is_asked_for(here: Path) -> None:
    Bench("type=oci,dest=a.tar", metadata_file="meta/m.json").succeeds().result()
    assert json.loads((here / "meta/m.json").read_text(encoding="utf-8")) == {"containerimage.digest": ROOT}
    assert [path.name for path in (here / "meta").iterdir()] == ["m.json"]


def test_a_failing_build_leaves_old_metadata_alone(here: Path) -> None:
    (here / "m.json").write_bytes(OLD)
    with pytest.raises(BuildFailed):
        Bench("type=oci,dest=a.tar", metadata_file="m.json").fails().result()
    assert (here / "m.json").read_bytes() == OLD


def test_a_docker_output_of_several_platforms_is_refused_on_a_graph_store_with_two_ways_out() -> None:
    bench = Bench("type=docker", store="graph", driver="docker-container", tags=("a:1",))
    with pytest.raises(UsageError) as caught:
        bench.check()
    assert "needs the containerd image store" in caught.value.message
    assert "this engine has the graph store" in caught.value.message
    assert "--load" in (caught.value.hint or "")
    assert "--engine=private" in (caught.value.hint or "")
    assert (caught.value.exit_code, bench.run.calls) == (2, [])


@pytest.mark.parametrize("store", ["graph", "containerd"])
def test_a_docker_archive_of_several_platforms_is_refused(store: str) -> None:
    bench = Bench("type=docker,dest=x.tar", store=store)
    with pytest.raises(UsageError, match="holds one platform only") as caught:
        bench.check()
    assert "type=oci" in (caught.value.hint or "")
    assert "--load" in (caught.value.hint or "")
    assert bench.run.calls == []


def test_a_docker_archive_of_one_platform_is_made_on_any_store(here: Path) -> None:
    Bench("type=docker,dest=x.tar", store="graph", platforms=TWO[:1]).succeeds("").result()
    assert (here / "x.tar").exists()


def test_an_engines_own_builder_on_a_graph_store_makes_no_index() -> None:
    bench = Bench("type=oci,dest=x.tar", store="graph", driver="docker")
    with pytest.raises(BuilderError, match="one platform at a time") as caught:
        bench.check()
    assert (caught.value.exit_code, bench.run.calls) == (3, [])


def test_load_on_a_graph_store_goes_one_by_one_and_says_so() -> None:
    bench = Bench(store="graph", tags=("hello:0.1", "r.example:5000/hello"), load=True).succeeds("")
    result = bench.result()
    assert "holds one platform per tag" in bench.told[0]
    assert [each.argv[4] for each in bench.run.calls] == ["--platform=linux/amd64", "--platform=linux/arm/v7"]
    assert [option(list(each.argv), "output") for each in bench.run.calls] == [["type=docker"]] * 2
    tags = [
        "hello:0.1-linux-amd64",
        "r.example:5000/hello:latest-linux-amd64",
        "hello:0.1-linux-arm-v7",
        "r.example:5000/hello:latest-linux-arm-v7",
    ]
    assert [tag for each in bench.run.calls for tag in option(list(each.argv), "tag")] == tags
    assert result.outputs == tuple(Output(type="docker", ref=tag) for tag in tags)
    assert bench.told[1:] == [f"loaded {', '.join(tags[:2])}", f"loaded {', '.join(tags[2:])}"]


def test_load_of_one_platform_keeps_its_tag_on_any_store() -> None:
    bench = Bench(store="graph", tags=("hello:1",), load=True, platforms=TWO[:1]).succeeds("")
    assert bench.result().outputs == (Output(type="docker", ref="hello:1"),)
    assert option(list(bench.run.calls[0].argv), "tag") == ["hello:1"]


def test_load_beside_another_output_keeps_both(here: Path) -> None:
    bench = Bench("type=oci,dest=x.tar", store="graph", driver="docker-container", tags=("a:1",), load=True)
    result = bench.succeeds().result()
    assert [(each.type, each.dest or each.ref) for each in result.outputs] == [
        ("oci", "x.tar"), ("docker", "a:1-linux-amd64"), ("docker", "a:1-linux-arm-v7"),
    ]  # fmt: skip
    assert len(bench.run.calls) == 3
    assert (here / "x.tar").exists()


def test_metadata_of_platforms_loaded_one_by_one_does_not_replace_the_builds(here: Path) -> None:
    bench = Bench(
        "type=oci,dest=x.tar", store="graph", driver="docker-container", tags=("a:1",), load=True,
        metadata_file="m.json",
    ).succeeds()  # fmt: skip
    bench.run.expect("*--output=type=docker *", effect=buildx("sha256:other"))
    bench.result()
    assert json.loads((here / "m.json").read_text(encoding="utf-8")) == {"containerimage.digest": ROOT}


NOWHERE = "127.0.0.1:1"  # a registry's address at which nobody listens


def test_a_push_names_nothing_and_what_cannot_be_read_back_is_a_registry_error() -> None:
    tags = (f"{NOWHERE}/team/a:1", f"{NOWHERE}/team/a:2", f"{NOWHERE}/b")
    bench = Bench("type=registry,compression=zstd", tags=tags, driver="docker-container").succeeds()
    with pytest.raises(RegistryError, match="Connection refused") as caught:
        bench.result()
    assert caught.value.exit_code == 4
    argv = list(bench.run.calls[0].argv)
    assert option(argv, "tag") == []
    assert option(argv, "output") == [
        f'type=image,compression=zstd,"name={NOWHERE}/team/a,{NOWHERE}/b",push=true,push-by-digest=true,name-canonical=true'
    ]


@pytest.mark.parametrize("driver", ["docker", "docker-container"])
def test_an_archive_that_is_made_anyway_is_what_is_pushed(here: Path, driver: str) -> None:
    outputs = ("type=oci,dest=x.tar,compression=zstd", "type=registry,compression=zstd")
    bench = Bench(*outputs, tags=(f"{NOWHERE}/a:1",), driver=driver).succeeds()
    with pytest.raises(RegistryError, match="Connection refused"):
        bench.result()
    (made,) = map(OutputSpec.parse, option(list(bench.run.calls[0].argv), "output"))
    assert (made.type, made.get("compression"), made.names) == ("oci", "zstd", (f"{NOWHERE}/a:1",))
    assert (here / "x.tar").exists()


def test_one_that_is_packed_in_another_way_is_not(here: Path) -> None:
    outputs = ("type=oci,dest=x.tar", "type=registry,compression=zstd")
    bench = Bench(*outputs, tags=(f"{NOWHERE}/a:1",), driver="docker-container").succeeds()
    found = bench.result()
    archive, pushed = map(OutputSpec.parse, option(list(bench.run.calls[0].argv), "output"))
    assert (archive.type, archive.names) == ("oci", (f"{NOWHERE}/a:1",))
    assert (pushed.type, pushed.get("push-by-digest"), pushed.get("compression")) == ("image", "true", "zstd")
    assert found.outputs == (
        Output(type="oci", dest="x.tar"), Output(type="registry", ref=f"{NOWHERE}/a@{ROOT}"),
    )  # fmt: skip
    assert (here / "x.tar").exists()


def test_for_an_engine_that_cannot_push_by_digest_an_archive_is_made_and_sent() -> None:
    bench = Bench("type=registry,compression=zstd", tags=(f"{NOWHERE}/a:1",)).succeeds()
    with pytest.raises(RegistryError, match="Connection refused"):
        bench.result()
    (output,) = option(list(bench.run.calls[0].argv), "output")
    made = OutputSpec.parse(output)
    assert (made.type, made.get("compression"), made.names) == ("oci", "zstd", (f"{NOWHERE}/a:1",))


@pytest.mark.parametrize(
    ("said", "kind", "code"),
    [
        ("failed to solve: failed to push r.example/a: 401 Unauthorized", RegistryError, 4),
        ("failed to solve: Unavailable: error reading from server: EOF", BuilderError, 3),
        ("failed to receive status: rpc error: code = Unavailable desc = closing", BuilderError, 3),
        ('failed to solve: process "/bin/sh -c false" did not complete', BuildFailed, 1),
    ],
)
def test_what_ended_a_build_is_told_apart(said: str, kind: type[Exception], code: int) -> None:
    bench = Bench("type=registry", tags=("r.example/a:1",), driver="docker-container")
    bench.fails(1, f"#5 DONE\nERROR: failed to build: {said}\n")
    with pytest.raises(kind) as caught:
        bench.result()
    assert getattr(caught.value, "exit_code", None) == code
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"), [("stopped", BuilderError), ("running", BuildFailed), ("", BuildFailed)]
)
def test_where_the_terminal_had_its_words_a_builder_is_asked_whether_it_still_runs(
    status: str, kind: type[Exception]
) -> None:
    bench = Bench("type=oci,dest=x.tar", driver="docker-container").fails(1)
    said = f"Name: mine\nDriver: docker-container\n\nNodes:\nName: mine0\nEndpoint: x\nStatus: {status}\n"
    bench.run.expect("docker buildx inspect mine", stdout=said, returncode=0 if status else 1)
    with pytest.raises(kind):
        bench.result()


def test_a_dry_run_shows_the_exact_command_and_makes_nothing(here: Path) -> None:
    bench = Bench("type=oci,dest=dist/x.tar", tags=("a:1",))
    bench.run.dry_run = True
    result = bench.result()
    assert result.digest == ""
    (shown,) = bench.run.shown
    assert shown.startswith(
        "docker buildx build --builder=mine --platform=linux/amd64,linux/arm/v7 --tag=a:1 "
    )
    assert shown.endswith(" -- .")
    assert list(here.iterdir()) == []


def test_a_place_that_cannot_be_made_is_found_before_anything_is_built(here: Path) -> None:
    (here / "file").touch()
    bench = Bench("type=oci,dest=file/x.tar")
    with pytest.raises(OSError, match="file") as caught:
        bench.result()
    assert os.fspath(here / "file") in str(Path(str(caught.value.filename)).absolute())
    assert bench.run.calls == []


LOCKED = (
    "ERROR: failed to build: failed to solve: mount callback failed on /x: failed to open writer: "
    "ref moby/1/uo27 locked for 7.080101ms (since 2026-11-25 02:07:40 UTC m=+281.3): unavailable\n"
)


def test_a_build_that_stood_in_its_own_way_is_tried_again() -> None:
    bench = Bench("type=oci,dest=hello.tar").succeeds()
    bench.run.expect("docker buildx build *", returncode=1, stderr=LOCKED, effect=scribbles, times=2)
    assert bench.result().ok
    assert len(bench.run.asked("docker buildx build *")) == 3
    assert len(bench.told) == 2


def test_it_is_not_tried_for_ever_and_nothing_else_is_tried_again() -> None:
    for stderr, times in ((LOCKED, 3), ("ERROR: it failed\n", 1)):
        bench = Bench("type=oci,dest=hello.tar").fails(stderr=stderr)
        with pytest.raises(BuildFailed):
            bench.result()
        assert len(bench.run.asked("docker buildx build *")) == times
