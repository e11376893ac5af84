"""Requests and releases that the tasks make of their options."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.execute import FrontendAnswer
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.errors import RegistryError
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.pipeline.release import ReleasePlan, ReleaseService, ReleaseSpec
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.report.model import BuildResult, MatrixReport, PushResult
from buildkit_tasks.tasks import ns
from tests.support import report_samples as samples
from tests.unit.cli.test_invocation import inv, project_dir

__all__ = ["project_dir"]  # an autouse fixture

TAG = "--tag=r.example/app:1"


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[BuildRequest]:
    """Return the requests that are built, without building them."""
    built: list[BuildRequest] = []

    def build(_: Pipeline, request: BuildRequest) -> BuildResult:
        built.append(request)
        return samples.build("linux/amd64")

    monkeypatch.setattr(Pipeline, "build", build)
    monkeypatch.setattr(Pipeline, "release_build", lambda _, __, result, *___: result)
    monkeypatch.setattr(Pipeline, "run_matrix", lambda *_: (MatrixReport(), None))
    return built


@pytest.mark.parametrize("flag", ["--push", "--split"])
def test_pushed_build(requests: list[BuildRequest], flag: str) -> None:
    assert inv("build-multiarch", flag, TAG, "--platform=linux/386", tasks=ns) == 0
    (request,) = requests
    assert (request.split, request.verify_first) == (flag == "--split", True)
    assert request.pushed_names == ("r.example/app:1",)


def test_push_without_verification(requests: list[BuildRequest]) -> None:
    assert inv("build-multiarch", "--push", "--no-verify", TAG, tasks=ns) == 0
    assert [request.verify_first for request in requests] == [False]


@pytest.mark.parametrize(
    ("args", "flag"),
    [
        (["build-multiarch", "--no-verify"], "--no-verify"),
        (["build-multiarch", "--cpu=floor"], "--cpu"),
        (["build-multiarch", "--split", TAG, "--platform=linux/386", "--parity=fail"], "--parity"),
        (["arch-matrix", "--no-verify"], "--no-verify"),
    ],
)
def test_options_of_a_release_without_release(
    requests: list[BuildRequest], args: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inv(*args, tasks=ns) == 2
    assert f"{flag}: applies to a push, and nothing is pushed" in capsys.readouterr().err
    assert requests == []


@pytest.mark.parametrize("args", [[], ["--platform=linux/386,linux/arm64"]])
def test_part_of_two_platforms(
    project_dir: Path, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (project_dir / "Dockerfile").write_text("FROM scratch\n", encoding="utf-8")
    assert inv("build-multiarch", "--split", TAG, *args, tasks=ns) == 2
    assert "error: --split builds a part of one platform, not of linux/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--no-push", "--no-verify"], "--no-push contradicts --no-verify"),
        (["--no-push", "--split", TAG], "--no-push contradicts --split"),
        (["--set=web.args.A=1"], "--set changes targets of a bake file"),
        (["--check", "--call=outline"], "--check contradicts --call=outline"),
        (["--check", "--iidfile=id"], "--call=check makes no image that --iidfile describes"),
        (["--call=targets", "--report=x.json"], "--call=targets makes no image that --report describes"),
    ],
)
def test_contradicting_options(
    requests: list[BuildRequest], capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert inv("build-multiarch", *args, tasks=ns) == 2
    assert message in capsys.readouterr().err
    assert requests == []


def test_no_push_is_a_matrix(requests: list[BuildRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    proved: list[BuildRequest] = []

    def run_matrix(_: Pipeline, request: BuildRequest, *__: object) -> tuple[MatrixReport, None]:
        proved.append(request)
        return MatrixReport(), None

    monkeypatch.setattr(Pipeline, "run_matrix", run_matrix)
    inv("build-multiarch", "--push", "--no-push", TAG, tasks=ns)
    assert [str(output) for output in proved[0].outputs] == ["type=oci,dest=dist/app-1.tar"]
    assert requests == []


def test_container_options(requests: list[BuildRequest]) -> None:
    args = ["--network=none", "--add-host=a:10.0.0.1", "--add-host", "b:10.0.0.2", "--shm-size=1g"]
    args += ["--ulimit=nofile=9", "--no-cache-filter=build", "--iidfile=id", "--cgroup-parent=x"]
    assert inv("build-multiarch", *args, "--resource=memory=1g", tasks=ns) == 0
    (request,) = requests
    assert (request.network, request.add_hosts) == ("none", ("a:10.0.0.1", "b:10.0.0.2"))
    assert (request.shm_size, request.ulimits, request.resources) == ("1g", ("nofile=9",), ("memory=1g",))
    assert (request.no_cache_filters, request.iidfile, request.cgroup_parent) == (("build",), "id", "x")


def test_dockerfile_from_stdin(requests: list[BuildRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"FROM scratch\n")))
    assert inv("build-multiarch", "-f", "-", tasks=ns) == 0
    assert requests[0].dockerfile_text == "FROM scratch\n"


def test_call(
    requests: list[BuildRequest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[str] = []

    def call(_: Pipeline, request: BuildRequest) -> FrontendAnswer:
        called.append(request.call)
        return FrontendAnswer(output='{"warnings": [1]}\n', exit_code=1)

    monkeypatch.setattr(Pipeline, "call_frontend", call)
    assert inv("build-multiarch", "--check", tasks=ns) == 1
    assert capsys.readouterr().out == '{"warnings": [1]}\n'
    assert inv("build-multiarch", "--call=outline", "--json", tasks=ns) == 1
    document = json.loads(capsys.readouterr().out)
    answer = {"image": "", "ok": False, "result": {"warnings": [1]}, "error": ""}
    assert (document["ok"], document["results"]) == (False, [answer])
    assert (called, requests) == (["check", "outline,format=json"], [])


def test_call_that_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answer = FrontendAnswer(output="", exit_code=1, error=RegistryError("no answer", hint="docker login"))
    monkeypatch.setattr(Pipeline, "call_frontend", lambda *_: answer)
    assert inv("build-multiarch", "--check", tasks=ns) == 4
    assert capsys.readouterr().err == "error: no answer\n  try: docker login\n"


def test_image_of_settings_with_bake_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert inv("build-multiarch", "--bake=docker-bake.hcl", "--image=web", tasks=ns) == 2
    assert "--image selects images of the settings, not of a bake file" in capsys.readouterr().err


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch) -> list[ReleaseSpec]:
    """Return what is released, without pushing it."""
    released: list[ReleaseSpec] = []

    def push(_: ReleaseService, __: Any, spec: ReleaseSpec, *___: object) -> PushResult:
        released.append(spec)
        return samples.push()

    monkeypatch.setattr(ReleaseService, "push", push)
    monkeypatch.setattr(ReleaseService, "merge", push)
    return released


@pytest.mark.parametrize(
    ("args", "platforms", "verify_first"),
    [((), (), True), (("--platform=linux/arm64",), ("linux/arm64",), True), (("--no-verify",), (), False)],
)
def test_release_of_archive(
    specs: list[ReleaseSpec], args: tuple[str, ...], platforms: tuple[str, ...], *, verify_first: bool
) -> None:
    assert inv("push-multiarch", "x.tar", TAG, *args, tasks=ns) == 0
    (spec,) = specs
    assert (spec.expected_platforms, spec.verify_first) == (parse_platforms(platforms), verify_first)


def test_dry_run_pushes_nothing(specs: list[ReleaseSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(_: ReleaseService, __: Any, spec: ReleaseSpec) -> ReleasePlan:
        digest: Any = samples.digest("index")
        return ReleasePlan(spec=spec, digest=digest, platforms=(), upload_summary="nothing")

    monkeypatch.setattr(ReleaseService, "plan_push", plan)
    monkeypatch.setattr(ReleaseService, "plan_merge", plan)
    assert inv("push-multiarch", "x.tar", TAG, "--dry-run", tasks=ns) == 0
    part = f"--part=r.example/app@{samples.digest('part')}"
    assert inv("merge-multiarch", part, TAG, "--dry-run", tasks=ns) == 0
    assert specs == []


def test_parts_of_the_named_image(specs: list[ReleaseSpec], project_dir: Path) -> None:
    (project_dir / "pyproject.toml").write_text(
        '[[tool.buildkit-tasks.image]]\nname = "web"\ntags = ["r.example/web:1"]\n'
        '[[tool.buildkit-tasks.image]]\nname = "api"\ntags = ["r.example/api:1"]\n'
    )
    references = {name: f"r.example/{name}@{samples.digest(name)}" for name in ("web", "api")}
    rows = [{"name": name, "build": {"outputs": [{"ref": ref}]}} for name, ref in references.items()]
    Path("parts.json").write_text(json.dumps({"images": rows}))
    assert inv("merge-multiarch", "--parts-file=parts.json", "--image=web", tasks=ns) == 0
    assert [spec.tags[0].name for spec in specs] == ["r.example/web"]
    assert inv("merge-multiarch", "--parts-file=parts.json", "--image=other", tasks=ns) == 2
