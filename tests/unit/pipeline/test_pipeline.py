"""What a pipeline checks before and after its steps, whose work is replaced here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from buildkit_tasks.build.execute import BuildExecution, FrontendAnswer
from buildkit_tasks.build.multi_node import MultiNodeBuild
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.config.settings import Settings, load_settings
from buildkit_tasks.errors import BuilderError, EmulatorError, RegistryError, UsageError
from buildkit_tasks.host.builder import BuilderManager
from buildkit_tasks.host.emulation.binfmt import HandlerTable
from buildkit_tasks.host.emulation.emulators import EmulatorManager
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.report.model import BuilderSummary, BuildResult, NodeSummary, Output, PushResult
from tests.support import report_samples as samples
from tests.support.fake_engine import make_engine
from tests.support.scripted import Scripted

NAMES = ("linux/amd64", "linux/arm64")
PLATFORMS = parse_platforms(NAMES)
OCI_OUTPUT, PUSH = OutputSpec.parse("type=oci,dest=x.tar"), OutputSpec.parse("type=registry")
RESULT = replace(samples.build(*NAMES), digest=samples.digest("index"))


@dataclass
class Steps:
    """The steps around a build: what they answer, and what was executed."""

    builder: BuilderSummary = field(default_factory=lambda: BuilderSummary(name="default", driver="docker"))
    runs: bool = True
    executed: list[str] = field(default_factory=list)


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.chdir(tmp_path)
    Path("Dockerfile").write_text("FROM scratch\n", encoding="utf-8")

    def ensure_emulators(_: object, platforms: Any) -> tuple[Any, ...]:
        rows = map(samples.platform_setup, map(str, platforms))
        return tuple(replace(row, runs=steps.runs) for row in rows)

    def execute(build: BuildExecution | MultiNodeBuild) -> BuildResult:
        steps.executed.append(f"fallback={getattr(build, 'fallback', None)}")
        return RESULT

    monkeypatch.setattr("buildkit_tasks.system.reachability.is_registry_reachable", lambda _: True)
    monkeypatch.setattr(EmulatorManager, "ensure", ensure_emulators)
    monkeypatch.setattr(BuilderManager, "ensure", lambda *_: steps.builder)
    monkeypatch.setattr(BuildExecution, "execute", execute)
    monkeypatch.setattr(MultiNodeBuild, "execute", execute)
    return steps


def make_pipeline(*, dry_run: bool = False, store: str = "containerd", **settings: Any) -> Pipeline:
    pipeline = Pipeline(
        settings=Settings(cache=str(Path("cache").absolute()), **settings),
        commands=Scripted(dry_run=dry_run),
        notify=lambda _: None,
    )
    vars(pipeline)["engine"] = make_engine(store=store)
    return pipeline


def make_request(*outputs: OutputSpec, **fields: Any) -> BuildRequest:
    return BuildRequest(platforms=PLATFORMS, outputs=outputs or (OCI_OUTPUT,), **fields)


def test_invalid_request_is_not_executed(steps: Steps) -> None:
    with pytest.raises(UsageError, match="no platform to build for"):
        make_pipeline().build(replace(make_request(), platforms=()))
    assert steps.executed == []


def test_unreachable_registry_is_found_first(steps: Steps) -> None:
    request = make_request(OutputSpec(type="registry"), tags=("127.0.0.1:1/team/app:1",))
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1 cannot be reached: Connection refused"):
        make_pipeline().build(request)
    assert steps.executed == []
    make_pipeline(dry_run=True).build(request)
    assert len(steps.executed) == 1


def test_call_of_frontend(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = FrontendAnswer(output="x", exit_code=1)
    monkeypatch.setattr(BuildExecution, "call_frontend", lambda _: answer)
    pipeline = make_pipeline()
    assert pipeline.call_frontend(pipeline.create_request(call="check")) is answer
    assert steps.executed == []
    assert not pipeline.resolver.last_build.path.exists()


def test_platform_that_does_not_run_is_not_built(steps: Steps) -> None:
    steps.runs = False
    with pytest.raises(EmulatorError):
        make_pipeline().build(make_request())
    assert steps.executed == []
    make_pipeline(dry_run=True).build(make_request())
    assert len(steps.executed) == 1


def test_emulators_of_remote_builder_are_not_ours(steps: Steps) -> None:
    steps.runs = False
    pipeline = make_pipeline()
    vars(pipeline)["_is_remote"] = True
    vars(pipeline)["client_engine"] = make_engine()
    pipeline.build(make_request())
    assert len(steps.executed) == 1


def test_index_that_the_engine_cannot_store_is_not_built(steps: Steps) -> None:
    with pytest.raises(BuilderError, match="builds one platform at a time"):
        make_pipeline(store="graph").build(make_request())
    assert steps.executed == []


def test_dry_run_is_not_the_last_build(steps: Steps) -> None:
    pipeline = make_pipeline(dry_run=True)
    pipeline.build(make_request())
    with pytest.raises(UsageError, match="nothing was built here yet"):
        _ = pipeline.resolver.last_built
    make_pipeline().build(make_request())
    assert pipeline.resolver.last_built.startswith("oci-archive:")
    assert len(steps.executed) == 2


@pytest.mark.parametrize("method", ["build", "run_matrix"])
def test_failed_build_is_recorded(steps: Steps, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Pipeline) -> NoReturn:
        raise EmulatorError("broken")

    make_pipeline().build(make_request())
    steps.runs = False
    monkeypatch.setattr(Pipeline, "setup", fail)
    pipeline = make_pipeline()
    with contextlib.suppress(EmulatorError):
        getattr(pipeline, method)(make_request())
    with pytest.raises(UsageError, match="has not succeeded; the one before it is oci-archive:"):
        _ = pipeline.resolver.last_built


@pytest.mark.parametrize("method", ["build", "run_matrix"])
def test_refused_build_is_not_recorded(steps: Steps, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pipeline, "setup", lambda _: samples.setup())
    make_pipeline().build(make_request())
    last_built = make_pipeline().resolver.last_built
    outputs = OutputSpec.parse("type=docker,dest=x.tar"), OCI_OUTPUT  # refused when the engine is known
    with contextlib.suppress(UsageError):
        getattr(make_pipeline(), method)(make_request(*outputs))
    assert make_pipeline().resolver.last_built == last_built
    assert len(steps.executed) == 1


@pytest.mark.usefixtures("steps")
def test_hint_builds_the_same_again() -> None:
    Path("app").mkdir()
    Path("app/Dockerfile.prod").write_text("FROM scratch\n", encoding="utf-8")
    flags = {
        "context": "app",
        "file": "app/Dockerfile.prod",
        "tags": ["x"],
        "target": "y",
        "build_args": ["A=b c"],
        "platforms": list(NAMES),
    }
    settings = load_settings({**flags, "cache": str(Path("cache").absolute())}, environ={})
    pipeline = replace(make_pipeline(), settings=settings)
    vars(pipeline)["engine"] = make_engine()
    request = pipeline.create_request(
        labels=("a=https://me:hunter2@r.example/",), no_attest=True, outputs=(OutputSpec.parse("out"),)
    )
    pipeline.record_result("", replace(pipeline.build(request), outputs=(Output(type="local", dest="out"),)))
    with pytest.raises(UsageError, match="is a local output directory") as excinfo:
        pipeline.run_image("")
    assert excinfo.value.hint == (
        "inv build-multiarch --context=app --file=app/Dockerfile.prod --tag=x --target=y "
        f"'--build-arg=A=b c' --platform={','.join(NAMES)} '--label=a=https://***@r.example/' --no-attest "
        "-o type=oci,dest=dist/image.tar"
    )


@pytest.mark.parametrize(("setting", "fallback"), [("none", "False"), ("emulate", "True")])
def test_other_nodes_emulate_only_with_consent(steps: Steps, setting: str, fallback: str) -> None:
    nodes = (NodeSummary(name=name, endpoint=name, platforms=(name,), fixed=(name,)) for name in NAMES)
    steps.builder = BuilderSummary(name="mine", driver="remote", nodes=tuple(nodes))
    make_pipeline(fallback=setting).build(make_request())
    assert steps.executed == [f"fallback={fallback}"]


class FakeReleases:
    """A release service that verifies nothing and returns ``result``."""

    def __init__(self, result: PushResult) -> None:
        self.result = result
        self.specs: list[Any] = []

    def verify_and_tag(self, _digest: object, _platforms: object, spec: Any, *_: object) -> PushResult:
        self.specs.append(spec)
        return self.result


def release(result: PushResult, *, dry_run: bool = False, **fields: Any) -> tuple[BuildResult, FakeReleases]:
    """Release a build that was pushed."""
    pipeline, releases = make_pipeline(dry_run=dry_run), FakeReleases(result)
    vars(pipeline)["releases"] = releases
    request = make_request(PUSH, tags=("r.example/app:1",), **fields)
    return pipeline.release_build(request, RESULT), releases


TAGGED = samples.push()
NOT_TAGGED = replace(TAGGED, tags=())


def test_release_of_build() -> None:
    result, releases = release(TAGGED)
    assert (result.ok, result.pushed) == (TAGGED.ok, TAGGED)
    assert [output.ref for output in result.outputs if output.type == "registry"] == [
        tag.ref for tag in TAGGED.tags
    ]
    (spec,) = releases.specs
    assert (spec.verify_first, spec.expected_platforms) == (True, PLATFORMS)


def test_failed_release_is_not_ok() -> None:
    result, _ = release(NOT_TAGGED)
    assert (result.ok, result.pushed, result.outputs) == (False, NOT_TAGGED, RESULT.outputs)


def test_release_without_verification() -> None:
    _, releases = release(TAGGED, verify_first=False)
    assert [spec.verify_first for spec in releases.specs] == [False]


@pytest.mark.parametrize("options", [{"split": True}, {"dry_run": True}])
def test_build_that_is_not_released(options: dict[str, bool]) -> None:
    result, releases = release(TAGGED, **options)
    assert (result, releases.specs) == (RESULT, [])


def test_removal_of_builder_starts_no_engine(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_engine(*_: object) -> NoReturn:
        raise AssertionError("no engine is needed")

    monkeypatch.setattr("buildkit_tasks.host.engine.find_engine", lambda *_: "no daemon answers")
    monkeypatch.setattr("buildkit_tasks.host.engine.ensure_engine", refuse_engine)
    monkeypatch.setattr(HandlerTable, "remove_registered", lambda _: ["qemu-arm"])
    pipeline = make_pipeline()
    del vars(pipeline)["engine"]
    assert pipeline.remove_builder(keep_state=False) == ["handler qemu-arm"]
    assert steps.executed == []
