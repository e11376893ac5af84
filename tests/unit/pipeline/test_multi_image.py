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
from tests.support.scripted import Scripted
from tests.unit.build.test_bake import ENGINE, plan

TABLES = """
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


class World:
    """A line whose builds, verifications and runs are told instead of made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.run = folder, Scripted()
        buildx = folder / "bin" / "buildx"
        buildx.parent.mkdir()
        buildx.touch(mode=0o755)
        self.engine = replace(ENGINE, tools=ClientTools(docker=("docker",), buildx=(str(buildx),)))
        self.requests: list[BuildRequest] = []
        self.proved: list[tuple[str, str, str]] = []
        self.failures: dict[str, BaseException] = {}
        monkeypatch.chdir(folder)
        told = {
            (Pipeline, "build_checked"): lambda line, request: self._build(line, request),  # noqa: PLW0108 - bound twice
            (Pipeline, "setup"): lambda line: samples.setup(
                *map(samples.platform_setup, line.settings.platforms)
            ),
            (ImageResolver, "verify"): lambda _, image, expected, __: self._verify(image, expected),
            (Pipeline, "run_image"): lambda line, *given: self._emulate(line, *given),  # noqa: PLW0108 - as above
        }
        for (owner, name), instead in told.items():
            monkeypatch.setattr(owner, name, instead)

    def write(self, files: Mapping[str, str]) -> World:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return self

    def line(self, **flags: Any) -> Pipeline:
        line = Pipeline(
            settings=load_settings(flags, environ={}, folder=self.folder),
            commands=self.run,
            notify=lambda _: None,
        )
        vars(line)["engine"] = self.engine
        return line

    def report(
        self, *, flags: Mapping[str, Any] | None = None, setup: bool = False, **choice: Any
    ) -> tuple[ImagesReport, tuple[BuildkitTasksError, ...]]:
        with open_images(self.line(**(flags or {})), ImageSelection(**choice)) as images:
            return images.run_all(setup=setup)

    def request(self, name: str) -> BuildRequest:
        return next(each for each in self.requests if Path(str(each.outputs[0].dest)).stem == name)

    def _build(self, line: Pipeline, request: BuildRequest) -> BuildResult:
        assert line.engine is self.engine
        self.requests.append(request)
        name = Path(str(request.outputs[0].dest)).stem
        if name in self.failures:
            raise self.failures[name]
        return BuildResult(
            digest="sha256:" + "0" * 64,
            outputs=(Output(type="oci", dest=str(request.outputs[0].dest)),),
            platforms=tuple(BuiltPlatform(platform=str(each)) for each in request.platforms),
            builder="b",
            bases="registry",
            seconds=1.0,
        )

    def _verify(self, image: str, expected: Any) -> Any:
        self.proved.append(("verify", image, ",".join(map(str, expected))))
        return samples.verify(*(samples.verdict(str(each)) for each in expected))

    def _emulate(self, line: Pipeline, image: str, platforms: Any) -> Any:
        self.proved.append(("run", image, line.settings.command))
        return samples.run(*(samples.good_run(str(each)) for each in platforms))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch).write(
        {"pyproject.toml": TABLES, "web/Dockerfile": "FROM scratch\n", "tool/Dockerfile": "FROM scratch\n"}
    )


def names(report: ImagesReport) -> list[str]:
    return [image.name for image in report.images]


def test_each_image_is_built_into_its_own_archive_and_that_is_verified_and_run(world: World) -> None:
    report, errors = world.report()
    assert (names(report), report.ok, errors) == (["web", "tool"], True, ())
    assert [[str(each) for each in request.outputs] for request in world.requests] == [
        ["type=oci,dest=dist/web.tar"],
        ["type=oci,dest=dist/tool.tar"],
    ]
    web, tool = (f"oci-archive:{world.folder}/dist/{name}.tar" for name in ("web", "tool"))
    assert world.proved == [
        ("verify", web, "linux/amd64,linux/arm64"),
        ("run", web, "all"),
        ("verify", tool, "linux/386"),
        ("run", tool, "tool"),
    ]


def test_images_are_chosen_by_their_names(world: World) -> None:
    assert names(world.report(names=("tool",))[0]) == ["tool"]
    with pytest.raises(UsageError, match=r"(?s)no image 'nope' in the settings.*choose one of web, tool"):
        world.report(names=("nope",))


def test_without_any_image_in_the_settings_it_is_said_how_to_write_one(world: World) -> None:
    world.write({"pyproject.toml": ""})
    with pytest.raises(UsageError, match=r"\[\[tool\.buildkit-tasks\.image\]\]"):
        world.report(names=("web",))


def test_one_that_fails_does_not_keep_the_others_from_going_on(world: World) -> None:
    world.failures["web"] = BuildFailed("it is broken", hint="mend it")
    report, errors = world.report()
    assert [(image.name, image.ok) for image in report.images] == [("web", False), ("tool", True)]
    assert report.images[0].error == "it is broken\n  try: mend it"
    assert errors == (world.failures["web"],)


def test_an_interruption_ends_it(world: World) -> None:
    world.failures["web"] = Interrupted("interrupted")
    report, errors = world.report()
    assert (names(report), report.ok, errors[0].exit_code) == (["web"], False, 130)


def test_there_is_one_setup_for_the_platforms_of_all(world: World) -> None:
    report, _ = world.report(setup=True)
    assert report.setup is not None
    assert [row.platform for row in report.setup.platforms] == ["linux/amd64", "linux/arm64", "linux/386"]


def test_a_setup_that_fails_is_the_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Pipeline) -> None:
        raise EngineError("no engine")

    monkeypatch.setattr(Pipeline, "setup", fails)
    report, errors = world.report(setup=True)
    assert (report.error, report.images, [error.exit_code for error in errors]) == ("no engine", (), [3])
    assert world.requests == []


def test_nothing_is_built_if_one_image_cannot_be(world: World) -> None:
    (world.folder / "tool/Dockerfile").unlink()
    with pytest.raises(UsageError, match=r"tool: there is no tool/Dockerfile"):
        world.report()
    assert world.requests == []


@pytest.mark.parametrize(
    ("flags", "options", "place"),
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
def test_two_images_do_not_go_to_one_place(
    world: World, flags: dict[str, Any], options: dict[str, Any], place: str
) -> None:
    with pytest.raises(UsageError, match=f"web and tool would both be {place}"):
        world.report(flags=flags, options=options)
    assert world.requests == []
    world.report(flags=flags, options={**options, "outputs": ()}, names=("web",))


def test_in_a_dry_run_nothing_is_verified_or_run(world: World) -> None:
    world.run = Scripted(dry_run=True)
    report, errors = world.report()
    assert (names(report), errors, world.proved) == (["web", "tool"], (), [])


def test_what_is_pushed_is_proved_there_and_then_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    line, tag = samples.matrix(), NamedTag(ref="r.example.org/a:1", digest="sha256:1")
    pushed = PushResult(digest="sha256:1", tags=(tag,), platforms=(), verify=line.verify, run=line.run)
    monkeypatch.setattr(Pipeline, "release_build", lambda *given: replace(given[2], pushed=pushed))
    options = {"outputs": (OutputSpec(type="registry"),)}
    report, _ = world.report(flags={"tags": ["r.example.org/a:1"]}, names=("web",), options=options)
    assert [[str(each) for each in request.outputs] for request in world.requests] == [
        ["type=oci,dest=dist/web.tar", "type=registry"]
    ]
    (web,) = report.images
    assert (web.tags, web.verify, web.run, web.ok) == ((tag,), line.verify, line.run, True)
    assert web.build is not None
    assert web.build.pushed is None
    assert world.proved == []


def test_what_is_pushed_without_proof_is_proved_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = PushResult(digest="sha256:1", tags=(), platforms=())
    monkeypatch.setattr(Pipeline, "release_build", lambda *given: replace(given[2], pushed=pushed))
    assert world.report(names=("web",))[0].ok
    assert [what for what, *_ in world.proved] == ["verify", "run"]


def bake(world: World, targets: Mapping[str, Any], default: list[str] | None = None) -> World:
    world.write({"docker-bake.hcl": ""})
    world.run.expect("*/buildx bake --print *", stdout=plan(targets, default))
    return world


BASE = {"base": {"platforms": ["linux/amd64", "linux/arm64"], "dockerfile-inline": "FROM alpine\n"}}
ON_BASE = {"context": "web", "platforms": ["linux/arm64"], "contexts": {"base": "target:base"}}


def test_a_bake_files_platforms_win_over_the_settings_and_lose_to_a_flag(world: World) -> None:
    bake(world, {"web": {"context": "web", "platforms": ["linux/s390x"]}, "tool": {"context": "tool"}})
    world.report(bake_file="docker-bake.hcl")
    asked = {Path(str(each.outputs[0].dest)).stem: list(map(str, each.platforms)) for each in world.requests}
    assert asked == {"web": ["linux/s390x"], "tool": ["linux/amd64", "linux/arm64"]}
    world.requests.clear()
    world.report(bake_file="docker-bake.hcl", flags={"platforms": ["linux/386"]})
    assert [list(map(str, each.platforms)) for each in world.requests] == [["linux/386"], ["linux/386"]]


@pytest.mark.parametrize("name", ["linux/zz", "local", "--privileged"])
def test_a_platform_of_a_bake_file_that_is_none_is_named_with_its_target(world: World, name: str) -> None:
    bake(world, {"web": {"context": "web", "platforms": [name]}})
    with pytest.raises(UsageError, match=r"docker-bake\.hcl: target web: "):
        world.report(bake_file="docker-bake.hcl")


def test_the_settings_image_of_a_targets_name_says_what_to_run(world: World) -> None:
    bake(world, {"tool": {"context": "web"}, "web": {"context": "web"}})
    world.report(bake_file="docker-bake.hcl")
    assert [
        (image.rpartition("/")[2], command) for what, image, command in world.proved if what == "run"
    ] == [
        ("tool.tar", "tool"),
        ("web.tar", "all"),
    ]
    assert [request.context for request in world.requests] == ["web", "web"]


def test_the_command_line_adds_to_lists_and_replaces_outputs(world: World) -> None:
    target = {"context": "web", "labels": {"a": "b"}, "args": {"A": "1"}, "no-cache": True}
    bake(world, {"web": target})
    options = {
        "labels": ("c=d", "a=b"),
        "outputs": (OutputSpec.parse("type=oci,dest=mine.tar"),),
        "pull": True,
    }
    world.report(bake_file="docker-bake.hcl", options=options, flags={"build_args": ["B=2"]})
    (request,) = world.requests
    assert (request.labels, request.build_args) == (("a=b", "c=d"), ("A=1", "B=2"))
    assert [str(each) for each in request.outputs] == ["type=oci,dest=mine.tar"]
    assert (request.no_cache, request.pull, request.verify_first) == (True, True, True)


def test_a_flag_that_takes_something_away_reaches_a_bake_files_images(world: World) -> None:
    bake(world, {"web": {"context": "web", "pull": True}})
    world.report(
        bake_file="docker-bake.hcl", options={"verify_first": False, "pull": False, "provenance": ""}
    )
    assert (world.requests[0].verify_first, world.requests[0].pull) == (False, True)


@pytest.mark.parametrize(("key", "flag"), [("context", "--context"), ("file", "--file"), ("tags", "--tag")])
def test_options_that_describe_one_image_are_refused_with_a_bake_file(
    world: World, key: str, flag: str
) -> None:
    bake(world, {"web": {"context": "web"}})
    with pytest.raises(UsageError, match=f"{flag} applies to one image"):
        world.report(bake_file="docker-bake.hcl", flags={key: "x"})
    assert world.run.calls == []


def test_an_agent_is_given_only_by_the_command_line(world: World) -> None:
    bake(world, {"web": {"context": "web", "ssh": [{"id": "default"}]}})
    with pytest.raises(UsageError, match=r"(?s)target web asks for the SSH agent.*--ssh default"):
        world.report(bake_file="docker-bake.hcl")


def test_an_image_is_built_on_the_bytes_that_were_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts: list[tuple[str, str]] = []
    monkeypatch.setattr("buildkit_tasks.oci.transports.oci_archive.OciArchive", str)
    monkeypatch.setattr(
        "buildkit_tasks.oci.transports.layout.write_layout",
        lambda source, place: layouts.append((source, str(place))),
    )
    bake(world, {**BASE, "web": ON_BASE}, ["web"])
    report, _ = world.report(bake_file="docker-bake.hcl")
    base, web = world.requests
    assert (names(report), report.ok) == (["web"], True)
    assert base.outputs[0].dest is not None
    assert not base.outputs[0].dest.is_relative_to(world.folder / "dist")
    assert layouts[0][0] == str(base.outputs[0].dest)
    assert web.build_contexts == (f"base=oci-layout://{layouts[0][1]}@sha256:{'0' * 64}",)
    assert [image for what, image, _ in world.proved if what == "run"] == [
        f"oci-archive:{world.folder}/dist/web.tar"
    ]
    assert not base.outputs[0].dest.parent.exists()


def test_what_is_built_on_a_failure_is_not_built(world: World) -> None:
    bake(world, {**BASE, "web": ON_BASE, "tool": {"context": "tool"}}, ["web", "tool"])
    world.failures["base"] = LimitExceeded("the disk is full")
    report, errors = world.report(bake_file="docker-bake.hcl")
    assert [(image.name, image.ok) for image in report.images] == [("web", False), ("tool", True)]
    assert "because the build of base, its base, failed" in report.images[0].error
    assert [error.exit_code for error in errors] == [5, 1]


def test_an_image_cannot_be_built_on_one_that_lacks_a_platform(world: World) -> None:
    bake(world, {**BASE, "web": {**ON_BASE, "platforms": ["linux/arm64", "linux/386"]}}, ["web"])
    with pytest.raises(UsageError, match="target web is built on base, which is not built for linux/386"):
        world.report(bake_file="docker-bake.hcl")


def test_the_order_of_the_report_is_that_of_the_file_with_what_others_are_built_on_first(
    world: World,
) -> None:
    world.run = Scripted(dry_run=True)
    bake(world, {**BASE, "web": ON_BASE}, ["web", "base"])
    report, _ = world.report(bake_file="docker-bake.hcl")
    assert names(report) == ["base", "web"]
    assert "@sha256:DIGEST" in world.request("web").build_contexts[0]


def test_an_inline_dockerfile_is_a_file_while_it_is_built(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    build: Callable[..., BuildResult] = Pipeline.build_checked

    def look(line: Pipeline, request: BuildRequest) -> BuildResult:
        seen.append(request.dockerfile.read_text(encoding="utf-8"))
        return build(line, request)

    monkeypatch.setattr(Pipeline, "build_checked", look)
    bake(world, BASE)
    world.report(bake_file="docker-bake.hcl")
    assert seen == ["FROM alpine\n"]
    assert not world.requests[0].dockerfile.exists()


def test_a_line_for_other_settings_has_the_same_engine(world: World) -> None:
    line = world.line()
    other = line.with_settings(replace(line.settings, platforms=("linux/386",)))
    assert other.engine is line.engine
    assert [str(each) for each in other.platforms] == ["linux/386"]
    assert isinstance(other.settings, Settings)
    assert json.dumps([str(each) for each in line.platforms]) == '["linux/amd64", "linux/arm64"]'


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
def test_the_exit_code_is_1_if_a_check_failed_and_else_the_errors_own(
    steps: list[dict[str, Any]], errors: list[BuildkitTasksError], code: int
) -> None:
    report = samples.images(*(replace(samples.image("web"), **step) for step in steps))
    assert not report.ok
    assert images_exit_code(report, errors) == code


def test_images_do_not_replace_each_others_caches(world: World) -> None:
    options = {
        "cache_to": ("type=registry,ref=r.example.org/x:cache", "type=inline"),
        "cache_from": ("r.example.org/x:cache",),
    }
    world.report(options=options)
    assert [request.cache_to for request in world.requests] == [
        (f"type=registry,ref=r.example.org/x:cache-{name}", "type=inline") for name in ("web", "tool")
    ]
    assert world.requests[0].cache_from == (
        "r.example.org/x:cache", "type=registry,ref=r.example.org/x:cache-web",
    )  # fmt: skip


def test_images_for_a_builder_elsewhere_start_no_engine(world: World) -> None:
    line = world.line(driver="remote", nodes=["name=a,endpoint=tcp://127.0.0.1:1"])
    vars(line)["client_engine"] = clients = replace(world.engine, kind="none")
    del vars(line)["engine"]
    other = line.with_settings(line.settings)
    assert other.client_engine is clients
    assert "engine" not in vars(other)
