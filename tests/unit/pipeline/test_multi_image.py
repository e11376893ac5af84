from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.cli.exit_codes import images_exit_code
from buildkit_tasks.config.settings import Settings, load_settings
from buildkit_tasks.errors import (
    BuildFailed,
    BuildkitTasksError,
    EngineError,
    Interrupted,
    LimitExceeded,
    UsageError,
)
from buildkit_tasks.host.engine.daemon import ClientTools
from buildkit_tasks.pipeline.images import ImageResolver
from buildkit_tasks.pipeline.multi_image import ImageSelection, open_images
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.report.model import (
    BuildResult,
    BuiltPlatform,
    ImagesReport,
    NamedTag,
    Outcome,
    Output,
    PushResult,
)
from tests.support import report_samples as samples
from tests.support.fake_engine import make_engine
from tests.support.scripted import Scripted
from tests.unit.build.test_bake import format_plan

IMAGE_TABLES = """
[tool.buildkit-tasks]
platforms = ["linux/amd64", "linux/arm64"]
command = "all"

[[tool.buildkit-tasks.image]]
name = "web"
context = "web"

[[tool.buildkit-tasks.image]]
name = "tool"
context = "tool"
platforms = ["linux/386"]
command = "tool"
"""


class Harness:
    """Pipelines whose builds, verifications and runs are recorded, not executed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands = folder, Scripted()
        buildx = folder / "bin" / "buildx"
        buildx.parent.mkdir()
        buildx.touch(mode=0o755)
        self.engine = make_engine(tools=ClientTools(docker=("docker",), buildx=(str(buildx),)))
        self.requests: list[BuildRequest] = []
        self.checked: list[tuple[str, str, str]] = []
        self.failures: dict[str, BaseException] = {}
        monkeypatch.chdir(folder)
        replacements = {
            (Pipeline, "build_checked"): lambda pipeline, request: self._build(pipeline, request),  # noqa: PLW0108 - bound twice
            (Pipeline, "setup"): lambda pipeline: samples.setup(
                *map(samples.platform_setup, pipeline.settings.platforms)
            ),
            (ImageResolver, "verify"): lambda _, image, expected, __: self._verify(image, expected),
            (Pipeline, "run_image"): lambda pipeline, *args: self._run(pipeline, *args),  # noqa: PLW0108 - as above
        }
        for (owner, name), replacement in replacements.items():
            monkeypatch.setattr(owner, name, replacement)

    def write(self, files: Mapping[str, str]) -> Harness:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return self

    def pipeline(self, **flags: Any) -> Pipeline:
        pipeline = Pipeline(
            settings=load_settings(
                {"cache": str(self.folder / "cache"), **flags}, environ={}, folder=self.folder
            ),
            commands=self.commands,
            notify=lambda _: None,
        )
        vars(pipeline)["engine"] = self.engine
        return pipeline

    def report(
        self, *, flags: Mapping[str, Any] | None = None, setup: bool = False, **selection: Any
    ) -> tuple[ImagesReport, tuple[BuildkitTasksError, ...]]:
        with open_images(self.pipeline(**(flags or {})), ImageSelection(**selection)) as images:
            return images.run_all(setup=setup)

    def request(self, name: str) -> BuildRequest:
        return next(each for each in self.requests if Path(str(each.outputs[0].dest)).stem == name)

    def _build(self, pipeline: Pipeline, request: BuildRequest) -> BuildResult:
        assert pipeline.engine is self.engine
        self.requests.append(request)
        name = Path(str(request.outputs[0].dest)).stem
        if name in self.failures:
            raise self.failures[name]
        return BuildResult(
            digest="sha256:" + "0" * 64,
            outputs=(Output(type="oci", dest=str(request.outputs[0].dest)),),
            platforms=tuple(BuiltPlatform(platform=str(platform)) for platform in request.platforms),
            builder="b",
            bases="registry",
            seconds=1.0,
        )

    def _verify(self, image: str, expected: Any) -> Any:
        self.checked.append(("verify", image, ",".join(map(str, expected))))
        return samples.verify(*(samples.verdict(str(platform)) for platform in expected))

    def _run(self, pipeline: Pipeline, image: str, platforms: Any) -> Any:
        self.checked.append(("run", image, pipeline.settings.command))
        return samples.run(*(samples.good_run(str(platform)) for platform in platforms))


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    return Harness(tmp_path, monkeypatch).write(
        {
            "pyproject.toml": IMAGE_TABLES,
            "web/Dockerfile": "FROM scratch\n",
            "tool/Dockerfile": "FROM scratch\n",
        }
    )


def image_names(report: ImagesReport) -> list[str]:
    return [image.name for image in report.images]


def test_build_verify_run_each(harness: Harness) -> None:
    report, errors = harness.report()
    assert (image_names(report), report.ok, errors) == (["web", "tool"], True, ())
    assert [[str(output) for output in request.outputs] for request in harness.requests] == [
        ["type=oci,dest=dist/web.tar"],
        ["type=oci,dest=dist/tool.tar"],
    ]
    web, tool = (f"oci-archive:{harness.folder}/dist/{name}.tar" for name in ("web", "tool"))
    assert harness.checked == [
        ("verify", web, "linux/amd64,linux/arm64"),
        ("run", web, "all"),
        ("verify", tool, "linux/386"),
        ("run", tool, "tool"),
    ]


def test_select_by_name(harness: Harness) -> None:
    assert image_names(harness.report(names=("tool",))[0]) == ["tool"]
    with pytest.raises(UsageError, match=r"(?s)no image 'nope' in the settings.*choose one of web, tool"):
        harness.report(names=("nope",))


def test_no_images_in_settings(harness: Harness) -> None:
    harness.write({"pyproject.toml": ""})
    with pytest.raises(UsageError, match=r"\[\[tool\.buildkit-tasks\.image\]\]"):
        harness.report(names=("web",))


def test_failure_does_not_stop_others(harness: Harness) -> None:
    harness.failures["web"] = BuildFailed("it is broken", hint="fix it")
    report, errors = harness.report()
    assert [(image.name, image.ok) for image in report.images] == [("web", False), ("tool", True)]
    assert report.images[0].error == "it is broken\n  try: fix it"
    assert errors == (harness.failures["web"],)


def test_record_of_build(harness: Harness) -> None:
    harness.report()
    harness.failures["web"] = BuildFailed("broken")
    harness.report(names=("web",))
    record = harness.pipeline().resolver.last_build.read()
    assert (record.last, [*record.images]) == (("web",), ["web", "tool"])
    assert "has not succeeded" in record.images["web"].problem
    assert record.images["tool"].image == f"oci-archive:{harness.folder}/dist/tool.tar"
    assert record.images["tool"].platforms == ("linux/386",)


def test_refused_builds_are_not_recorded(harness: Harness) -> None:
    harness.report()
    record = harness.pipeline().resolver.last_build.read()
    harness.failures |= {"web": UsageError("refused")}
    harness.report(names=("web",))
    assert harness.pipeline().resolver.last_build.read() == record


def test_typed_options_in_hint(harness: Harness) -> None:
    harness.failures["web"] = BuildFailed("broken")
    flags = {"build_args": ["A=b"], "platforms": ["linux/386", "linux/arm64"]}
    harness.report(flags=flags, names=("web",), options={"labels": ("x=y",)})
    with pytest.raises(UsageError) as excinfo:
        _ = harness.pipeline().resolver.last_built
    assert excinfo.value.hint == (
        "inv build-multiarch --image web --build-arg=A=b --platform=linux/386,linux/arm64 --label=x=y"
    )


def test_typed_options_of_target(harness: Harness) -> None:
    write_bake_file(harness, {"web": {"context": "web", "labels": {"from": "file"}}})
    harness.failures["web"] = BuildFailed("broken")
    flags, options = {"target": "web", "build_args": ["A=b"]}, {"labels": ("x=y",)}
    overrides = ("web.target=last",)
    harness.report(flags=flags, bake_files=("docker-bake.hcl",), bake_overrides=overrides, options=options)
    with pytest.raises(UsageError) as excinfo:
        _ = harness.pipeline().resolver.last_built
    assert excinfo.value.hint == (
        "inv build-multiarch --bake docker-bake.hcl --target web --build-arg=A=b --label=x=y "
        "--set web.target=last"
    )


def test_push_of_target_without_tag(harness: Harness) -> None:
    write_bake_file(harness, {"web": {"context": "web"}})
    with pytest.raises(UsageError, match="web: a push needs a tag") as excinfo:
        harness.report(
            bake_files=("docker-bake.hcl",), options={"outputs": (OutputSpec.parse("type=registry"),)}
        )
    assert excinfo.value.hint == "--set web.tags=REGISTRY/NAME:TAG"


def test_push_of_image_without_tag(harness: Harness) -> None:
    push = {"outputs": (OutputSpec.parse("type=registry"),)}
    with pytest.raises(UsageError, match="web: a push needs a tag") as excinfo:
        harness.report(options=push)
    assert excinfo.value.hint == 'tags = ["REGISTRY/NAME:TAG"] in the settings\' table of web'


def test_interrupt_stops(harness: Harness) -> None:
    harness.failures["web"] = Interrupted("interrupted")
    report, errors = harness.report()
    assert (image_names(report), report.ok, errors[0].exit_code) == (["web"], False, 130)


def test_setup_of_all_platforms(harness: Harness) -> None:
    report, _ = harness.report(setup=True)
    assert report.setup is not None
    assert [row.platform for row in report.setup.platforms] == ["linux/amd64", "linux/arm64", "linux/386"]


def test_setup_failure(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_engine_error(_: Pipeline) -> None:
        raise EngineError("no engine")

    monkeypatch.setattr(Pipeline, "setup", raise_engine_error)
    report, errors = harness.report(setup=True)
    assert (report.error, report.images, [error.exit_code for error in errors]) == ("no engine", (), [3])
    assert harness.requests == []


def test_check_all_before_build(harness: Harness) -> None:
    (harness.folder / "tool/Dockerfile").unlink()
    with pytest.raises(UsageError, match=r"tool: there is no tool/Dockerfile"):
        harness.report()
    assert harness.requests == []


@pytest.mark.parametrize(
    ("flags", "options", "destination"),
    [
        ({"tags": ["one:1"]}, {}, "tagged one:1"),
        ({}, {"outputs": (OutputSpec.parse("type=oci,dest=x.tar"),)}, "written to .*/x.tar"),
        ({}, {"outputs": (OutputSpec.parse("type=local,dest=x"),)}, "written to .*/x"),
        (
            {},
            {"outputs": (OutputSpec.parse("type=registry,name=r.example.org/x"),)},
            "tagged r.example.org/x",
        ),
        ({}, {"metadata_file": "m.json"}, "described in m.json"),
    ],
)
def test_same_destination(
    harness: Harness, flags: dict[str, Any], options: dict[str, Any], destination: str
) -> None:
    with pytest.raises(UsageError, match=f"web and tool would both be {destination}"):
        harness.report(flags=flags, options=options)
    assert harness.requests == []
    harness.report(flags=flags, options={**options, "outputs": ()}, names=("web",))


def test_dry_run(harness: Harness) -> None:
    harness.commands = Scripted(dry_run=True)
    report, errors = harness.report()
    assert (image_names(report), errors, harness.checked) == (["web", "tool"], (), [])


def test_pushed_image(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, tag = samples.matrix(), NamedTag(ref="r.example.org/a:1", digest="sha256:1")
    pushed = PushResult(digest="sha256:1", tags=(tag,), platforms=(), verify=matrix.verify, run=matrix.run)
    monkeypatch.setattr(Pipeline, "release_build", lambda *args: replace(args[2], pushed=pushed))
    options = {"outputs": (OutputSpec(type="registry"),)}
    report, _ = harness.report(flags={"tags": ["r.example.org/a:1"]}, names=("web",), options=options)
    assert [[str(output) for output in request.outputs] for request in harness.requests] == [
        ["type=oci,dest=dist/web.tar", "type=registry"]
    ]
    (web,) = report.images
    assert (web.tags, web.verify, web.run, web.ok) == ((tag,), matrix.verify, matrix.run, True)
    assert web.build is not None
    assert web.build.pushed is None
    assert harness.checked == []


def test_push_without_verification(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed = PushResult(digest="sha256:1", tags=(), platforms=())
    monkeypatch.setattr(Pipeline, "release_build", lambda *args: replace(args[2], pushed=pushed))
    assert harness.report(names=("web",))[0].ok
    assert [step for step, *_ in harness.checked] == ["verify", "run"]


def write_bake_file(
    harness: Harness, targets: Mapping[str, Any], default: list[str] | None = None
) -> Harness:
    harness.write({"docker-bake.hcl": ""})
    harness.commands.expect("*/buildx bake --print *", stdout=format_plan(targets, default))
    return harness


BASE_TARGET = {"base": {"platforms": ["linux/amd64", "linux/arm64"], "dockerfile-inline": "FROM alpine\n"}}
WEB_ON_BASE = {"context": "web", "platforms": ["linux/arm64"], "contexts": {"base": "target:base"}}


def test_platforms_precedence(harness: Harness) -> None:
    write_bake_file(
        harness, {"web": {"context": "web", "platforms": ["linux/s390x"]}, "tool": {"context": "tool"}}
    )
    harness.report(bake_files=("docker-bake.hcl",))
    platforms = {
        Path(str(each.outputs[0].dest)).stem: list(map(str, each.platforms)) for each in harness.requests
    }
    assert platforms == {"web": ["linux/s390x"], "tool": ["linux/amd64", "linux/arm64"]}
    harness.requests.clear()
    harness.report(bake_files=("docker-bake.hcl",), flags={"platforms": ["linux/386"]})
    assert [list(map(str, each.platforms)) for each in harness.requests] == [["linux/386"], ["linux/386"]]


@pytest.mark.parametrize("name", ["linux/zz", "local", "--privileged"])
def test_invalid_bake_platform(harness: Harness, name: str) -> None:
    write_bake_file(harness, {"web": {"context": "web", "platforms": [name]}})
    with pytest.raises(UsageError, match=r"docker-bake\.hcl: target web: "):
        harness.report(bake_files=("docker-bake.hcl",))


def test_run_settings_of_target(harness: Harness) -> None:
    write_bake_file(harness, {"tool": {"context": "web"}, "web": {"context": "web"}})
    harness.report(bake_files=("docker-bake.hcl",))
    assert [
        (image.rpartition("/")[2], command) for step, image, command in harness.checked if step == "run"
    ] == [("tool.tar", "tool"), ("web.tar", "all")]
    assert [request.context for request in harness.requests] == ["web", "web"]


def test_flags_extend_lists(harness: Harness) -> None:
    target = {"context": "web", "labels": {"a": "b"}, "args": {"A": "1"}, "no-cache": True}
    write_bake_file(harness, {"web": target})
    options = {
        "labels": ("c=d", "a=b"),
        "outputs": (OutputSpec.parse("type=oci,dest=mine.tar"),),
        "pull": True,
    }
    harness.report(bake_files=("docker-bake.hcl",), options=options, flags={"build_args": ["B=2"]})
    (request,) = harness.requests
    assert (request.labels, request.build_args) == (("a=b", "c=d"), ("A=1", "B=2"))
    assert [str(output) for output in request.outputs] == ["type=oci,dest=mine.tar"]
    assert (request.no_cache, request.pull, request.verify_first) == (True, True, True)


def test_container_flags(harness: Harness) -> None:
    target = {"context": "web", "shm-size": "1g", "ulimits": ["nofile=9"], "network": "none"}
    write_bake_file(harness, {"web": target})
    flags = {"network": "host", "ulimits": ["nproc=5"], "add_hosts": ["db:10.0.0.1"]}
    harness.report(bake_files=("docker-bake.hcl",), flags=flags)
    (request,) = harness.requests
    assert (request.network, request.shm_size) == ("host", "1g")
    assert (request.ulimits, request.add_hosts) == (("nofile=9", "nproc=5"), ("db:10.0.0.1",))


def test_entitlement_needs_flag(harness: Harness) -> None:
    write_bake_file(harness, {"web": {"context": "web", "entitlements": ["network.host"]}})
    with pytest.raises(UsageError, match=r"target web asks for the entitlement network\.host") as excinfo:
        harness.report(bake_files=("docker-bake.hcl",))
    assert excinfo.value.hint == "allow it by --allow network.host"
    harness.report(bake_files=("docker-bake.hcl",), flags={"allow": ["network.host"]})
    assert [request.allow for request in harness.requests] == [("network.host",)]


def test_bake_overrides(harness: Harness) -> None:
    write_bake_file(harness, {"web": {"context": "web"}})
    harness.report(bake_files=("docker-bake.hcl",), bake_overrides=("web.args.A=1",))
    assert "--set=web.args.A=1" in harness.commands.calls[0].argv


def test_no_push_of_bake_outputs(harness: Harness) -> None:
    harness.write({"docker-bake.hcl": "output"})
    pushed = {"context": "web", "tags": ["r.example/web:1"], "output": [{"type": "registry"}]}
    harness.commands.expect("*/buildx bake --print *", stdout=format_plan({"web": pushed}))
    report, _ = harness.report(bake_files=("docker-bake.hcl",), options={"no_push": True})
    assert [str(output) for output in harness.requests[0].outputs] == ["type=oci,dest=dist/web.tar"]
    assert report.ok


def test_image_settings(harness: Harness) -> None:
    table = '[[tool.buildkit-tasks.image]]\nname = "web"\ncontext = "web"\n'
    keys = 'network = "none"\nadd-hosts = ["db:10.0.0.1"]\nshm-size = "1g"\nulimits = ["nofile=9"]\n'
    harness.write({"pyproject.toml": table + keys})
    harness.report()
    (request,) = harness.requests
    assert (request.network, request.shm_size) == ("none", "1g")
    assert (request.add_hosts, request.ulimits) == (("db:10.0.0.1",), ("nofile=9",))


def test_dockerfile_from_stdin_of_several_images(harness: Harness) -> None:
    with pytest.raises(UsageError, match="--file=- applies to one image, and there are 2"):
        harness.report(flags={"file": "-"})


def test_flag_without_value(harness: Harness) -> None:
    write_bake_file(harness, {"web": {"context": "web", "pull": True}})
    harness.report(
        bake_files=("docker-bake.hcl",), options={"verify_first": False, "pull": False, "provenance": ""}
    )
    assert (harness.requests[0].verify_first, harness.requests[0].pull) == (False, True)


@pytest.mark.parametrize(("key", "flag"), [("context", "--context"), ("file", "--file"), ("tags", "--tag")])
def test_single_image_flags(harness: Harness, key: str, flag: str) -> None:
    write_bake_file(harness, {"web": {"context": "web"}})
    with pytest.raises(UsageError, match=f"{flag} applies to one image"):
        harness.report(bake_files=("docker-bake.hcl",), flags={key: "x"})
    assert harness.commands.calls == []


def test_ssh_agent_needs_flag(harness: Harness) -> None:
    write_bake_file(harness, {"web": {"context": "web", "ssh": [{"id": "default"}]}})
    with pytest.raises(UsageError, match=r"(?s)target web asks for the SSH agent.*--ssh default"):
        harness.report(bake_files=("docker-bake.hcl",))


def test_linked_context(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    written_layouts: list[tuple[str, str]] = []
    monkeypatch.setattr("buildkit_tasks.oci.transports.oci_archive.OciArchive", str)
    monkeypatch.setattr(
        "buildkit_tasks.oci.transports.layout.write_layout",
        lambda source, path: written_layouts.append((source, str(path))),
    )
    write_bake_file(harness, {**BASE_TARGET, "web": WEB_ON_BASE}, ["web"])
    report, _ = harness.report(bake_files=("docker-bake.hcl",))
    base, web = harness.requests
    assert (image_names(report), report.ok) == (["web"], True)
    assert base.outputs[0].dest is not None
    assert not base.outputs[0].dest.is_relative_to(harness.folder / "dist")
    assert written_layouts[0][0] == str(base.outputs[0].dest)
    assert web.build_contexts == (f"base=oci-layout://{written_layouts[0][1]}@sha256:{'0' * 64}",)
    assert [image for step, image, _ in harness.checked if step == "run"] == [
        f"oci-archive:{harness.folder}/dist/web.tar"
    ]
    assert not base.outputs[0].dest.parent.exists()


def test_base_is_not_pushed(harness: Harness) -> None:
    web_target = {**WEB_ON_BASE, "tags": ["r.example/web:1"]}
    write_bake_file(harness, {**BASE_TARGET, "web": web_target}, ["web"])
    options = {"outputs": (OutputSpec.parse("type=registry"),)}
    with open_images(
        harness.pipeline(), ImageSelection(bake_files=("docker-bake.hcl",), options=options)
    ) as images:
        requests = {job.name: job.request for job in images.image_jobs}
    assert [output.type for output in requests["base"].outputs] == ["oci"]
    assert [output.type for output in requests["web"].outputs] == ["oci", "registry"]


def test_base_failure(harness: Harness) -> None:
    write_bake_file(
        harness, {**BASE_TARGET, "web": WEB_ON_BASE, "tool": {"context": "tool"}}, ["web", "tool"]
    )
    harness.failures["base"] = LimitExceeded("the disk is full")
    report, errors = harness.report(bake_files=("docker-bake.hcl",))
    assert [(image.name, image.ok) for image in report.images] == [("web", False), ("tool", True)]
    assert "because the build of base, its base, failed" in report.images[0].error
    assert [error.exit_code for error in errors] == [5, 1]


def test_base_lacks_platform(harness: Harness) -> None:
    write_bake_file(
        harness, {**BASE_TARGET, "web": {**WEB_ON_BASE, "platforms": ["linux/arm64", "linux/386"]}}, ["web"]
    )
    with pytest.raises(UsageError, match="target web is built on base, which is not built for linux/386"):
        harness.report(bake_files=("docker-bake.hcl",))


def test_report_order(harness: Harness) -> None:
    harness.commands = Scripted(dry_run=True)
    write_bake_file(harness, {**BASE_TARGET, "web": WEB_ON_BASE}, ["web", "base"])
    report, _ = harness.report(bake_files=("docker-bake.hcl",))
    assert image_names(report) == ["base", "web"]
    assert "@sha256:DIGEST" in harness.request("web").build_contexts[0]


def test_inline_dockerfile(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    dockerfiles: list[str] = []
    build: Callable[..., BuildResult] = Pipeline.build_checked

    def read_dockerfile(pipeline: Pipeline, request: BuildRequest) -> BuildResult:
        dockerfiles.append(request.dockerfile.read_text(encoding="utf-8"))
        return build(pipeline, request)

    monkeypatch.setattr(Pipeline, "build_checked", read_dockerfile)
    write_bake_file(harness, BASE_TARGET)
    harness.report(bake_files=("docker-bake.hcl",))
    assert dockerfiles == ["FROM alpine\n"]
    assert not harness.requests[0].dockerfile.exists()


def test_with_settings_shares_engine(harness: Harness) -> None:
    pipeline = harness.pipeline()
    other = pipeline.with_settings(replace(pipeline.settings, platforms=("linux/386",)))
    assert other.engine is pipeline.engine
    assert [str(platform) for platform in other.platforms] == ["linux/386"]
    assert isinstance(other.settings, Settings)
    assert json.dumps([str(platform) for platform in pipeline.platforms]) == '["linux/amd64", "linux/arm64"]'


LIMITED = replace(samples.bad_run("linux/arm64", Outcome.FAILED), limited=True)
LATE = samples.bad_run("linux/arm64", Outcome.TIMEOUT)


@pytest.mark.parametrize(
    ("steps", "errors", "code"),
    [
        ([{"verify": samples.verify(samples.verdict("linux/386", samples.bad_check()))}], [], 1),
        ([{"run": samples.run(LATE)}], [], 124),
        ([{"run": samples.run(LIMITED)}, {"run": samples.run(LATE)}], [], 124),
        (
            [{"run": samples.run(LATE)}, {"run": samples.run(samples.bad_run("linux/386", Outcome.FAILED))}],
            [],
            1,
        ),
        ([{"error": "x"}], [LimitExceeded("x")], 5),
        ([{"error": "x"}, {}], [EngineError("x")], 3),
        ([{"error": "x"}, {"error": "y"}], [EngineError("x"), BuildFailed("y")], 1),
        ([{"error": "x"}, {"error": "y"}], [BuildFailed("x"), Interrupted("y")], 130),
        ([{"error": "x"}], [BuildFailed("x", exit_code=102)], 102),
        ([{"run": samples.run(samples.good_run("linux/amd64"))}], [], 1),
    ],
)
def test_exit_codes(steps: list[dict[str, Any]], errors: list[BuildkitTasksError], code: int) -> None:
    report = samples.images(*(replace(samples.image("web"), **step) for step in steps))
    assert not report.ok
    assert images_exit_code(report, errors) == code


def test_no_engine_is_one_error(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_engine(*_: object) -> None:
        raise EngineError("no engine")

    monkeypatch.setattr("buildkit_tasks.host.engine.ensure_engine", no_engine)
    pipeline = harness.pipeline()
    del vars(pipeline)["engine"]
    with open_images(pipeline, ImageSelection()) as images, pytest.raises(EngineError):
        images.run_all()
    assert harness.requests == []


def test_cache_per_image(harness: Harness) -> None:
    options = {
        "cache_to": ("type=registry,ref=r.example.org/x:cache", "type=inline"),
        "cache_from": ("r.example.org/x:cache",),
    }
    harness.report(options=options)
    assert [request.cache_to for request in harness.requests] == [
        (f"type=registry,ref=r.example.org/x:cache-{name}", "type=inline") for name in ("web", "tool")
    ]
    assert harness.requests[0].cache_from == (
        "r.example.org/x:cache", "type=registry,ref=r.example.org/x:cache-web",
    )  # fmt: skip


def test_remote_builder_starts_no_engine(harness: Harness) -> None:
    pipeline = harness.pipeline(driver="remote", nodes=["name=a,endpoint=tcp://127.0.0.1:1"])
    vars(pipeline)["client_engine"] = clients = replace(harness.engine, kind="none")
    del vars(pipeline)["engine"]
    other = pipeline.with_settings(pipeline.settings)
    assert other.client_engine is clients
    assert "engine" not in vars(other)
