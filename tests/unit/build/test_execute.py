from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.build import execute
from buildkit_tasks.build.capabilities import check_capabilities
from buildkit_tasks.build.execute import BuildExecution, write_metadata
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.build.standin_bases import BasePlan
from buildkit_tasks.errors import (
    BuilderError,
    BuildFailed,
    BuildkitTasksError,
    LimitExceeded,
    RegistryError,
    UsageError,
)
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.report.model import BuilderSummary, BuildResult, Output
from buildkit_tasks.system.files import temporary_path
from tests.support.argv import option_values
from tests.support.fake_engine import make_engine
from tests.support.oci import hello, write_archive
from tests.support.registry.fake import fake_registry
from tests.support.scripted import Scripted

if TYPE_CHECKING:
    from buildkit_tasks.system.command import CommandOptions

TWO_PLATFORMS = parse_platforms(["linux/amd64", "linux/arm/v7"])
IMAGE = hello(["linux/amd64", "linux/arm/v7"])
IMAGE_DIGEST = str(IMAGE.root_descriptor().digest)
OLD_CONTENT = b"the old file\0byte for byte"
CLOSED_REGISTRY = "127.0.0.1:1"  # a registry that refuses connections


@pytest.fixture(autouse=True)
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty folder, with another one for temporary files."""
    for name in ("work", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("CI", raising=False)
    return tmp_path / "work"


@pytest.fixture(autouse=True)
def _no_temporary_files(tmp_path: Path, work_dir: Path) -> Any:
    yield
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [path for path in work_dir.rglob("*") if path.name.endswith(".partial")] == []


def successful_buildx(digest: str = IMAGE_DIGEST) -> Any:
    """Return the effect of a buildx that succeeds: it writes each file output and its metadata."""

    def build(argv: list[str], _: CommandOptions) -> None:
        for spec in map(OutputSpec.parse, option_values(argv, "output")):
            if spec.is_file and spec.dest is not None:
                write_archive(IMAGE, spec.dest)
        (metadata,) = option_values(argv, "metadata-file")
        content = {"containerimage.digest": digest} if digest else {"buildx.build.ref": "x"}
        Path(metadata).write_text(json.dumps(content), encoding="utf-8")

    return build


def write_partial_files(argv: list[str], _: CommandOptions) -> None:
    """Write the beginning of each file output, as a buildx does that fails later."""
    for spec in map(OutputSpec.parse, option_values(argv, "output")):
        if spec.dest is not None:
            spec.dest.write_bytes(b"half")


class Harness:
    """A build by a scripted buildx."""

    def __init__(
        self, *outputs: str, store: str = "containerd", driver: str = "docker", **options: Any
    ) -> None:
        self.commands = Scripted()
        self.messages: list[str] = []
        plan = options.pop("plan", BasePlan())
        platforms = options.pop("platforms", TWO_PLATFORMS)
        specs = tuple(map(OutputSpec.parse, outputs))
        self.build = BuildExecution(
            request=BuildRequest(platforms=platforms, outputs=specs, **options),
            engine=make_engine(store=store, env={"DOCKER_HOST": "unix:///x"}),
            builder=BuilderSummary(name="mine", driver=driver, reason="test"),
            base_plan=plan,
            commands=self.commands,
            notify=self.messages.append,
        )

    def expect_success(self, digest: str = IMAGE_DIGEST) -> Harness:
        self.commands.expect("docker buildx build *", effect=successful_buildx(digest))
        return self

    def expect_failure(self, code: int = 1, stderr: str = "", effect: Any = write_partial_files) -> Harness:
        self.commands.expect("docker buildx build *", returncode=code, stderr=stderr, effect=effect)
        return self

    def execute(self) -> BuildResult:
        return self.build.execute()

    def check_capabilities(self) -> None:
        check_capabilities(self.build.request, self.build.engine, self.build.builder)


def test_result_of_build(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=dist/hello.tar", tags=("hello:1",)).expect_success()
    result = harness.execute()
    assert (result.ok, result.digest, result.builder, result.bases) == (
        True,
        IMAGE_DIGEST,
        "mine",
        "registry",
    )
    assert result.outputs == (Output(type="oci", dest="dist/hello.tar"),)
    entries = json.loads(IMAGE.blobs[IMAGE_DIGEST])["manifests"]
    assert [(row.platform, row.digest) for row in result.platforms] == [
        ("linux/amd64", entries[0]["digest"]),
        ("linux/arm/v7", entries[1]["digest"]),
    ]
    assert [path.name for path in (work_dir / "dist").iterdir()] == ["hello.tar"]
    (command,) = harness.commands.calls
    assert (command.kind, dict(command.options.env)) == ("stream", {"DOCKER_HOST": "unix:///x"})
    assert command.argv[:5] == (
        "docker",
        "buildx",
        "build",
        "--builder=mine",
        "--platform=linux/amd64,linux/arm/v7",
    )


def test_buildx_writes_temporary_file(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=hello.tar").expect_success()
    (work_dir / "hello.tar").write_bytes(OLD_CONTENT)
    harness.execute()
    (dest,) = option_values(harness.commands.calls[0].argv, "output")
    assert dest == f"type=oci,dest={temporary_path(Path('hello.tar'))}"
    assert (work_dir / "hello.tar").read_bytes() != OLD_CONTENT


@pytest.mark.parametrize("kind", ["oci", "tar"])
def test_failed_build_keeps_old_file(work_dir: Path, kind: str) -> None:
    (work_dir / "hello.tar").write_bytes(OLD_CONTENT)
    with pytest.raises(BuildFailed):
        Harness(f"type={kind},dest=hello.tar").expect_failure().execute()
    assert (work_dir / "hello.tar").read_bytes() == OLD_CONTENT
    assert [path.name for path in work_dir.iterdir()] == ["hello.tar"]


def test_interrupt_keeps_old_file(work_dir: Path) -> None:
    (work_dir / "hello.tar").write_bytes(OLD_CONTENT)
    harness = Harness("type=oci,dest=hello.tar")
    harness.commands.expect("docker buildx build *", effect=write_partial_files, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        harness.execute()
    assert (work_dir / "hello.tar").read_bytes() == OLD_CONTENT


def test_stale_partial_is_removed(work_dir: Path) -> None:
    (work_dir / ".hello.tar.4194305.partial").touch()
    Harness("type=oci,dest=hello.tar").expect_success().execute()
    assert [path.name for path in work_dir.iterdir()] == ["hello.tar"]


@pytest.mark.parametrize("code", [1, 17, 100, 130])
def test_exit_status_of_buildx(code: int) -> None:
    stderr = "#5 ERROR: not the last\nERROR: first\nERROR: failed to solve: it broke\nnote\n"
    with pytest.raises(BuildFailed) as excinfo:
        Harness("type=oci,dest=x.tar").expect_failure(code, stderr).execute()
    assert excinfo.value.exit_code == code
    assert excinfo.value.message == "build failed: it broke"


def test_killed_buildx() -> None:
    with pytest.raises(BuildFailed, match="buildx ended with status -9") as excinfo:
        Harness("type=oci,dest=x.tar").expect_failure(-9).execute()
    assert excinfo.value.exit_code == 1


def test_failure_without_stderr() -> None:
    with pytest.raises(BuildFailed, match="buildx ended with status 3"):
        Harness("type=oci,dest=x.tar").expect_failure(3).execute()


@pytest.mark.parametrize(
    "stderr",
    [
        "ERROR: failed to solve: write /x: no space left on device\n",
        "ERROR: failed to copy: Disk quota exceeded\n",
    ],
)
def test_full_disk(work_dir: Path, stderr: str) -> None:
    (work_dir / "x.tar").write_bytes(OLD_CONTENT)
    with pytest.raises(LimitExceeded) as excinfo:
        Harness("type=oci,dest=x.tar").expect_failure(1, stderr).execute()
    assert excinfo.value.exit_code == 5
    assert "docker buildx prune" in (excinfo.value.hint or "")
    assert stderr.strip().rpartition("failed to solve: ")[2].removeprefix("ERROR: ") in excinfo.value.message
    assert (work_dir / "x.tar").read_bytes() == OLD_CONTENT


def test_missing_output_file(work_dir: Path) -> None:
    (work_dir / "x.tar").write_bytes(OLD_CONTENT)
    harness = Harness("type=oci,dest=x.tar")

    def write_metadata_only(argv: list[str], _: CommandOptions) -> None:
        Path(option_values(argv, "metadata-file")[0]).write_text("{}", encoding="utf-8")

    harness.commands.expect("docker buildx build *", effect=write_metadata_only)
    with pytest.raises(BuildFailed, match=r"did not write x\.tar"):
        harness.execute()
    assert (work_dir / "x.tar").read_bytes() == OLD_CONTENT


@pytest.mark.parametrize("metadata", [None, "", "{"])
def test_missing_metadata(work_dir: Path, metadata: str | None) -> None:
    (work_dir / "x.tar").write_bytes(OLD_CONTENT)
    harness = Harness("type=oci,dest=x.tar")

    def write_partly(argv: list[str], options: CommandOptions) -> None:
        write_partial_files(argv, options)
        if metadata is not None:
            Path(option_values(argv, "metadata-file")[0]).write_text(metadata, encoding="utf-8")

    harness.commands.expect("docker buildx build *", effect=write_partly)
    with pytest.raises(BuildFailed, match="metadata"):
        harness.execute()
    assert (work_dir / "x.tar").read_bytes() == OLD_CONTENT


def test_several_outputs(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=a.tar", "type=tar,dest=b.tar", "type=local,dest=out").expect_success()
    result = harness.execute()
    assert [output.dest for output in result.outputs] == ["a.tar", "b.tar", "out"]
    assert len(harness.commands.calls) == 1
    assert {path.name for path in work_dir.iterdir()} == {"a.tar", "b.tar"}


def test_stand_in_contexts() -> None:
    plan = BasePlan(mode="standin", contexts=(("alpine:3", "oci-layout:///x@sha256:1"),))
    harness = Harness("type=oci,dest=a.tar", plan=plan, build_contexts=("alpine:3=mine",)).expect_success()
    assert harness.execute().bases == "standin"
    contexts = option_values(harness.commands.calls[0].argv, "build-context")
    assert contexts == ["alpine:3=oci-layout:///x@sha256:1", "alpine:3=mine"]


def test_metadata_file(work_dir: Path) -> None:
    Harness("type=oci,dest=a.tar", metadata_file="meta/m.json").expect_success().execute()
    assert json.loads((work_dir / "meta/m.json").read_text(encoding="utf-8")) == {
        "containerimage.digest": IMAGE_DIGEST
    }
    assert [path.name for path in (work_dir / "meta").iterdir()] == ["m.json"]


def test_failed_build_keeps_metadata(work_dir: Path) -> None:
    (work_dir / "m.json").write_bytes(OLD_CONTENT)
    with pytest.raises(BuildFailed):
        Harness("type=oci,dest=a.tar", metadata_file="m.json").expect_failure().execute()
    assert (work_dir / "m.json").read_bytes() == OLD_CONTENT


def test_docker_output_on_graph_store() -> None:
    harness = Harness("type=docker", store="graph", driver="docker-container", tags=("a:1",))
    with pytest.raises(UsageError) as excinfo:
        harness.check_capabilities()
    assert "needs the containerd image store" in excinfo.value.message
    assert "this engine has the graph store" in excinfo.value.message
    assert "--load loads one tag for each platform" in excinfo.value.message
    assert excinfo.value.hint == "--engine=private"
    assert (excinfo.value.exit_code, harness.commands.calls) == (2, [])


@pytest.mark.parametrize("store", ["graph", "containerd"])
def test_multi_platform_docker_archive(store: str) -> None:
    harness = Harness("type=docker,dest=x.tar", store=store)
    with pytest.raises(UsageError, match="holds one platform only") as excinfo:
        harness.check_capabilities()
    assert excinfo.value.hint == "-o type=oci,dest=dist/image.tar"
    assert harness.commands.calls == []


def test_one_platform_docker_archive(work_dir: Path) -> None:
    Harness("type=docker,dest=x.tar", store="graph", platforms=TWO_PLATFORMS[:1]).expect_success("").execute()
    assert (work_dir / "x.tar").exists()


def test_no_index_on_graph_store() -> None:
    harness = Harness("type=oci,dest=x.tar", store="graph", driver="docker")
    with pytest.raises(BuilderError, match="one platform at a time") as excinfo:
        harness.check_capabilities()
    assert (excinfo.value.exit_code, harness.commands.calls) == (3, [])


def test_load_per_platform() -> None:
    harness = Harness(store="graph", tags=("hello:0.1", "r.example:5000/hello"), load=True).expect_success("")
    result = harness.execute()
    assert "holds one platform per tag" in harness.messages[0]
    assert [call.argv[4] for call in harness.commands.calls] == [
        "--platform=linux/amd64",
        "--platform=linux/arm/v7",
    ]
    assert [option_values(call.argv, "output") for call in harness.commands.calls] == [["type=docker"]] * 2
    tags = [
        "hello:0.1-linux-amd64",
        "r.example:5000/hello:latest-linux-amd64",
        "hello:0.1-linux-arm-v7",
        "r.example:5000/hello:latest-linux-arm-v7",
    ]
    assert [tag for call in harness.commands.calls for tag in option_values(call.argv, "tag")] == tags
    assert [(each.type, each.ref) for each in result.outputs] == [("docker", tag) for tag in tags]
    assert [each.only_platform for each in result.outputs[1:3]] == ["linux/amd64", "linux/arm/v7"]
    assert harness.messages[1:] == [f"loaded {', '.join(tags[:2])}", f"loaded {', '.join(tags[2:])}"]


@pytest.mark.parametrize(
    ("output", "tags", "names", "typed_tags"),
    [
        ("type=docker", ("a:1", "b:1"), ["a:1", "b:1"], ["a:1", "b:1"]),
        ("type=docker,name=c:1", (), ["c:1"], []),
        ("type=docker,name=c:1", ("a:1", "c:1"), ["a:1", "c:1"], []),
        ("type=image", ("a:1",), ["a:1"], ["a:1"]),
        ("type=image,name=c:1", (), ["c:1"], []),
        ("type=image", (), [IMAGE_DIGEST], []),
    ],
)
def test_names_in_store(
    output: str,
    tags: tuple[str, ...],
    names: list[str],
    typed_tags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored: list[str] = []

    def read(_: BuildExecution, name: str) -> dict[Platform, str]:
        stored.append(name)
        return {}

    monkeypatch.setattr(BuildExecution, "_read_stored_digests", read)
    harness = Harness(output, tags=tags).expect_success()
    assert [each.ref for each in harness.execute().outputs] == names
    (command,) = harness.commands.calls
    assert option_values(command.argv, "tag") == typed_tags
    (spec,) = map(OutputSpec.parse, option_values(command.argv, "output"))
    assert spec.names == (() if typed_tags else tuple(each for each in names if each != IMAGE_DIGEST))
    assert stored == (names[:1] if spec.is_loaded else [])


def test_load_one_platform() -> None:
    harness = Harness(
        store="graph", tags=("hello:1",), load=True, platforms=TWO_PLATFORMS[:1]
    ).expect_success("")
    assert harness.execute().outputs == (Output(type="docker", ref="hello:1"),)
    assert option_values(harness.commands.calls[0].argv, "tag") == ["hello:1"]


def test_load_with_other_output(work_dir: Path) -> None:
    harness = Harness(
        "type=oci,dest=x.tar", store="graph", driver="docker-container", tags=("a:1",), load=True
    )
    result = harness.expect_success().execute()
    assert [(output.type, output.dest or output.ref) for output in result.outputs] == [
        ("oci", "x.tar"), ("docker", "a:1-linux-amd64"), ("docker", "a:1-linux-arm-v7"),
    ]  # fmt: skip
    assert len(harness.commands.calls) == 3
    assert (work_dir / "x.tar").exists()


def test_load_per_platform_with_push() -> None:
    harness = Harness(
        "type=oci,dest=x.tar", "type=registry,compression=zstd", store="graph", driver="docker-container",
        tags=(f"{CLOSED_REGISTRY}/a:1",), load=True,
    ).expect_success()  # fmt: skip
    harness.execute()
    pushed, *loaded = (option_values(call.argv, "tag") for call in harness.commands.calls)
    assert pushed == []
    assert loaded == [[f"{CLOSED_REGISTRY}/a:1-linux-amd64"], [f"{CLOSED_REGISTRY}/a:1-linux-arm-v7"]]


def test_load_keeps_metadata_file(work_dir: Path) -> None:
    harness = Harness(
        "type=oci,dest=x.tar", store="graph", driver="docker-container", tags=("a:1",), load=True,
        metadata_file="m.json",
    ).expect_success()  # fmt: skip
    harness.commands.expect("*--output=type=docker *", effect=successful_buildx("sha256:other"))
    harness.execute()
    assert json.loads((work_dir / "m.json").read_text(encoding="utf-8")) == {
        "containerimage.digest": IMAGE_DIGEST
    }


def test_push_by_digest() -> None:
    tags = (f"{CLOSED_REGISTRY}/team/a:1", f"{CLOSED_REGISTRY}/team/a:2", f"{CLOSED_REGISTRY}/b")
    harness = Harness("type=registry,compression=zstd", tags=tags, driver="docker-container").expect_success()
    with pytest.raises(RegistryError, match="Connection refused") as excinfo:
        harness.execute()
    assert excinfo.value.exit_code == 4
    argv = list(harness.commands.calls[0].argv)
    assert option_values(argv, "tag") == []
    assert option_values(argv, "output") == [
        f'type=image,compression=zstd,"name={CLOSED_REGISTRY}/team/a,{CLOSED_REGISTRY}/b",push=true,push-by-digest=true,name-canonical=true'
    ]


@pytest.mark.parametrize("driver", ["docker", "docker-container"])
def test_push_of_archive_output(work_dir: Path, driver: str) -> None:
    outputs = ("type=oci,dest=x.tar,compression=zstd", "type=registry,compression=zstd")
    harness = Harness(*outputs, tags=(f"{CLOSED_REGISTRY}/a:1",), driver=driver).expect_success()
    with pytest.raises(RegistryError, match="Connection refused"):
        harness.execute()
    (archive,) = map(OutputSpec.parse, option_values(harness.commands.calls[0].argv, "output"))
    assert (archive.type, archive.get("compression"), archive.names) == (
        "oci",
        "zstd",
        (f"{CLOSED_REGISTRY}/a:1",),
    )
    assert (work_dir / "x.tar").exists()


def test_push_of_archive_to_several_repositories() -> None:
    with fake_registry() as server:
        tags = (f"{server.host}/team/a:1", f"{server.host}/b:1")
        Harness("type=oci,dest=x.tar", "type=registry", tags=tags).expect_success().execute()
        for name in ("team/a", "b"):
            assert IMAGE_DIGEST in server.repository(name).content["manifests"]
        assert server.moved_tags == []


def test_push_with_other_packing(work_dir: Path) -> None:
    outputs = ("type=oci,dest=x.tar", "type=registry,compression=zstd")
    harness = Harness(*outputs, tags=(f"{CLOSED_REGISTRY}/a:1",), driver="docker-container").expect_success()
    result = harness.execute()
    archive, pushed = map(OutputSpec.parse, option_values(harness.commands.calls[0].argv, "output"))
    assert (archive.type, archive.names) == ("oci", (f"{CLOSED_REGISTRY}/a:1",))
    assert (pushed.type, pushed.get("push-by-digest"), pushed.get("compression")) == ("image", "true", "zstd")
    assert result.outputs == (
        Output(type="oci", dest="x.tar"), Output(type="registry", ref=f"{CLOSED_REGISTRY}/a@{IMAGE_DIGEST}"),
    )  # fmt: skip
    assert (work_dir / "x.tar").exists()


def test_push_with_docker_driver() -> None:
    harness = Harness("type=registry,compression=zstd", tags=(f"{CLOSED_REGISTRY}/a:1",)).expect_success()
    with pytest.raises(RegistryError, match="Connection refused"):
        harness.execute()
    (output,) = option_values(harness.commands.calls[0].argv, "output")
    archive = OutputSpec.parse(output)
    assert (archive.type, archive.get("compression"), archive.names) == (
        "oci",
        "zstd",
        (f"{CLOSED_REGISTRY}/a:1",),
    )


@pytest.mark.parametrize(
    ("reason", "error_type", "code"),
    [
        ("failed to solve: failed to push r.example/a: 401 Unauthorized", RegistryError, 4),
        ("failed to solve: Unavailable: error reading from server: EOF", BuilderError, 3),
        ("failed to receive status: rpc error: code = Unavailable desc = closing", BuilderError, 3),
        ('failed to solve: process "/bin/sh -c false" did not complete', BuildFailed, 1),
    ],
)
def test_failure_classes(reason: str, error_type: type[Exception], code: int) -> None:
    harness = Harness("type=registry", tags=("r.example/a:1",), driver="docker-container")
    harness.expect_failure(1, f"#5 DONE\nERROR: failed to build: {reason}\n")
    with pytest.raises(error_type) as excinfo:
        harness.execute()
    assert getattr(excinfo.value, "exit_code", None) == code
    assert reason.removeprefix("failed to solve: ") in str(excinfo.value)


FRONTEND_FAILED = (
    "failed to solve: rpc error: code = Unknown desc = failed to solve with frontend dockerfile.v0: "
    "failed to create LLB definition: "
)
PROCESS_FAILED = 'process "/bin/sh -c false" did not complete successfully: exit code: 1'


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            'failed to build: failed to solve: target stage "release" could not be found',
            'target stage "release" not found',
        ),
        (
            f'{FRONTEND_FAILED}target stage "x" could not be found (did you mean y?)',
            'target stage "x" not found (did you mean y?)',
        ),
        (f"failed to solve: {PROCESS_FAILED}", PROCESS_FAILED),
    ],
)
def test_cause_of_failed_build(error: str, cause: str) -> None:
    with pytest.raises(BuildFailed) as excinfo:
        Harness("type=oci,dest=x.tar").expect_failure(1, f"#1 DONE\nERROR: {error}\n").execute()
    assert str(excinfo.value) == f"build failed: {cause}"


CHECKSUM_FAILED = (
    "failed to build: failed to solve: failed to compute cache key: failed to calculate checksum of "
    "ref vurnm0x7897j::vgi86zz0m: "
)


@pytest.mark.parametrize(
    ("error", "message", "hint"),
    [
        (
            "failed to solve: secret tok: not found",
            "build failed: secret tok: not found",
            "--secret id=tok,env=VARIABLE or --secret id=tok,src=FILE",
        ),
        (
            f'{CHECKSUM_FAILED}"/no file": not found',
            'build failed: "/no file": not found',
            "check COPY and ADD: a path is one of the build context",
        ),
    ],
)
def test_what_is_missing(error: str, message: str, hint: str) -> None:
    with pytest.raises(BuildFailed) as excinfo:
        Harness("type=oci,dest=x.tar").expect_failure(1, f"#1 DONE\nERROR: {error}\n").execute()
    assert excinfo.value.message == message
    assert excinfo.value.hint is not None
    assert excinfo.value.hint.startswith(hint)


HUB, HUB_AUTH = "registry-1.docker.io", "auth.docker.io"


@pytest.mark.parametrize(
    ("image", "host", "hint"),
    [
        ("docker.io/library/python:3", HUB, "--build-context python:3=docker-image://REGISTRY/python:3"),
        ("docker.io/team/app:1", HUB_AUTH, "--build-context team/app:1=docker-image://REGISTRY/team/app:1"),
        ("docker.io/docker/dockerfile:1", HUB, "remove the line '# syntax=' of the Dockerfile"),
    ],
)
def test_base_that_cannot_be_pulled(image: str, host: str, hint: str) -> None:
    reason = {
        HUB: f'failed to do request: Head "https://{HUB}/v2/x": dial tcp: no such host',
        HUB_AUTH: "failed to authorize: failed to fetch anonymous token: "
        f'Get "https://{HUB_AUTH}/token?x": dial tcp: i/o timeout',
    }[host]
    stderr = f"ERROR: failed to solve: x: failed to resolve source metadata for {image}: {reason}\n"
    with pytest.raises(RegistryError) as excinfo:
        Harness("type=oci,dest=x.tar").expect_failure(1, stderr).execute()
    assert excinfo.value.message == f"the base image {image} cannot be pulled: {host} does not answer"
    assert excinfo.value.hint == hint


def test_base_that_is_denied() -> None:
    error = "failed to solve: failed to resolve source metadata for docker.io/a/b:1: pull access denied"
    with pytest.raises(BuildFailed, match="pull access denied"):
        Harness("type=oci,dest=x.tar").expect_failure(1, f"ERROR: {error}\n").execute()


def test_option_unknown_to_buildx() -> None:
    harness = Harness("type=oci,dest=x.tar", resources=("memory=1g",))
    with pytest.raises(UsageError, match=r"too old for it, which buildx 0\.35 and newer have"):
        harness.expect_failure(1, "ERROR: unknown flag: --resource\n").execute()


def test_dockerfile_on_stdin_of_each_run() -> None:
    harness = Harness("type=oci,dest=x.tar", file="-", dockerfile_text="FROM scratch\n").expect_success()
    harness.execute()
    (call,) = harness.commands.calls
    assert "--file=-" in call.argv
    assert call.options.stdin == b"FROM scratch\n"


def test_image_id_file(work_dir: Path) -> None:
    Harness("type=oci,dest=x.tar", iidfile="out/id").expect_success().execute()
    assert (work_dir / "out/id").read_text(encoding="utf-8") == IMAGE_DIGEST


def test_image_id_is_that_of_the_config(work_dir: Path) -> None:
    digests = {"containerimage.digest": "sha256:m", "containerimage.config.digest": "sha256:c"}
    write_metadata(BuildRequest(platforms=(), iidfile="id"), digests)
    assert (work_dir / "id").read_text(encoding="utf-8") == "sha256:c"


@pytest.mark.parametrize("option", ["iidfile", "metadata_file"])
def test_no_metadata_of_images_loaded_one_by_one(option: str) -> None:
    options: dict[str, Any] = {option: "f", "tags": ("a:1",), "load": True}
    with pytest.raises(UsageError, match="makes an image of each platform, not one image"):
        Harness(store="graph", **options).check_capabilities()
    Harness(store="containerd", **options).check_capabilities()
    Harness("type=oci,dest=x.tar", store="graph", driver="docker-container", **options).check_capabilities()


CALL_ERROR = 'ERROR: target stage "x" could not be found\n'


@pytest.mark.parametrize(
    ("status", "stdout", "stderr", "error"),
    [
        (0, "no warnings\n", "#1 DONE\n", "None"),
        (1, "1 warning\n", "#1 DONE\n", "None"),
        (1, "1 warning\n", CALL_ERROR, 'build failed: target stage "x" not found'),
        (1, "", CALL_ERROR, 'build failed: target stage "x" not found'),
    ],
)
def test_call_of_frontend(status: int, stdout: str, stderr: str, error: str) -> None:
    harness = Harness(call="check")
    harness.commands.expect("docker buildx build *", returncode=status, stdout=stdout, stderr=stderr)
    answer = harness.build.call_frontend()
    assert (answer.output, answer.exit_code, str(answer.error)) == (stdout, status, error)
    assert harness.commands.calls[0].mutates  # a dry run prints it


def test_archive_is_kept_if_its_push_fails(work_dir: Path) -> None:
    harness = Harness("type=registry", tags=(f"{CLOSED_REGISTRY}/team/a:1",)).expect_success()
    with pytest.raises(RegistryError) as excinfo:
        harness.execute()
    assert "Connection refused; the image is kept in dist/a-1.tar" in excinfo.value.message
    assert excinfo.value.hint == f"inv push-multiarch dist/a-1.tar -t {CLOSED_REGISTRY}/team/a:1"
    assert (work_dir / "dist/a-1.tar").is_file()


def test_login_before_push_of_kept_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> str:
        raise RegistryError("denied", hint="docker login r.example")

    monkeypatch.setattr(execute, "push_archive", deny)
    harness = Harness("type=oci,dest=x.tar", "type=registry", tags=("r.example/a:1",)).expect_success()
    with pytest.raises(RegistryError, match=r"denied; the image is kept in x\.tar") as excinfo:
        harness.execute()
    assert excinfo.value.hint == "docker login r.example && inv push-multiarch x.tar -t r.example/a:1"


def test_failed_step_that_prints_other_failures() -> None:
    harness = Harness("type=registry", tags=("r.example/a:1",), driver="docker-container")
    step_output = "#5 failed to push some refs\n#5 code = Unavailable: transport is closing\n"
    harness.expect_failure(1, f"{step_output}ERROR: failed to build: exit code: 7\n")
    with pytest.raises(BuildFailed, match="exit code: 7"):
        harness.execute()


@pytest.mark.parametrize(
    ("status", "error_type"), [("stopped", BuilderError), ("running", BuildFailed), ("", BuildFailed)]
)
def test_inspect_after_silent_failure(status: str, error_type: type[Exception]) -> None:
    harness = Harness("type=oci,dest=x.tar", driver="docker-container").expect_failure(1)
    stdout = f"Name: mine\nDriver: docker-container\n\nNodes:\nName: mine0\nEndpoint: x\nStatus: {status}\n"
    harness.commands.expect("docker buildx inspect mine", stdout=stdout, returncode=0 if status else 1)
    with pytest.raises(error_type):
        harness.execute()


def test_dry_run(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=dist/x.tar", tags=("a:1",))
    harness.commands.dry_run = True
    result = harness.execute()
    assert result.digest == ""
    (line,) = harness.commands.dry_run_lines
    assert line.startswith(
        "docker buildx build --builder=mine --platform=linux/amd64,linux/arm/v7 --tag=a:1 "
    )
    assert line.endswith(" -- .")
    assert list(work_dir.iterdir()) == []


def test_dry_run_pushes_nothing(work_dir: Path) -> None:
    harness = Harness("type=oci,dest=x.tar", "type=registry", tags=("r.example/app:1",))
    harness.commands.dry_run = True
    assert harness.execute().digest == ""
    assert "would push x.tar to r.example/app, by its digest" in harness.messages
    assert list(work_dir.iterdir()) == []


def test_unusable_dest(work_dir: Path) -> None:
    (work_dir / "file").touch()
    harness = Harness("type=oci,dest=file/x.tar")
    with pytest.raises(OSError, match="file") as excinfo:
        harness.execute()
    assert os.fspath(work_dir / "file") in str(Path(str(excinfo.value.filename)).absolute())
    assert harness.commands.calls == []


LOCKED_REF_ERROR = (
    "ERROR: failed to build: failed to solve: mount callback failed on /x: failed to open writer: "
    "ref moby/1/uo27 locked for 7.080101ms (since 2026-11-25 02:07:40 UTC m=+281.3): unavailable\n"
)


# The digest has 403 in it, which is no status.
EMPTY_LINK_ERROR = (
    "ERROR: failed to build: failed to solve: failed to push 127.0.0.1:5000/app: failed commit on ref "
    '"manifest-sha256:1f4030": unexpected status from PUT request to '
    "http://127.0.0.1:5000/v2/app/manifests/sha256:1f4030: 400 Bad Request\n"
    "errors:\n"
    "digest invalid: provided digest did not match uploaded content\n"
    "manifest blob unknown: blob unknown to registry\n"
)
UNKNOWN_BLOB_ERROR = (
    "ERROR: failed to build: failed to solve: failed to push 127.0.0.1:5000/app: "
    "404 Not Found: blob unknown: blob unknown to registry\n"
)


@pytest.mark.parametrize(
    ("stderr", "failures"), [(LOCKED_REF_ERROR, 2), (EMPTY_LINK_ERROR, 1), (UNKNOWN_BLOB_ERROR, 1)]
)
def test_transient_failure_is_retried(stderr: str, failures: int) -> None:
    harness = Harness("type=oci,dest=hello.tar").expect_success()
    harness.commands.expect(
        "docker buildx build *", returncode=1, stderr=stderr, effect=write_partial_files, times=failures
    )
    assert harness.execute().ok
    assert len(harness.commands.matching_calls("docker buildx build *")) == failures + 1
    assert [message.partition(": ")[2] for message in harness.messages] == (
        ["building again, with what is cached"] * failures
    )


@pytest.mark.parametrize(
    ("stderr", "error", "builds"),
    [
        (LOCKED_REF_ERROR, BuildFailed, 3),
        (EMPTY_LINK_ERROR, RegistryError, 2),
        (UNKNOWN_BLOB_ERROR, RegistryError, 2),
        ("ERROR: it failed\n", BuildFailed, 1),
    ],
)
def test_retry_limit(stderr: str, error: type[BuildkitTasksError], builds: int) -> None:
    harness = Harness("type=oci,dest=hello.tar").expect_failure(stderr=stderr)
    with pytest.raises(error) as excinfo:
        harness.execute()
    assert len(harness.commands.matching_calls("docker buildx build *")) == builds
    assert "reachable" not in (excinfo.value.hint or "")
    assert "login" not in (excinfo.value.hint or "")


def test_errors_of_registry_are_quoted() -> None:
    harness = Harness("type=oci,dest=hello.tar").expect_failure(stderr=f"#7 1.2 x\n{EMPTY_LINK_ERROR}")
    with pytest.raises(RegistryError) as excinfo:
        harness.execute()
    assert excinfo.value.message.endswith(
        "400 Bad Request: digest invalid: provided digest did not match uploaded content; "
        "manifest blob unknown: blob unknown to registry"
    )
