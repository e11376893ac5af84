from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.build.exports import plan_exports, stage_files
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.errors import BuildFailed
from buildkit_tasks.platforms import parse_platforms

TWO_PLATFORMS = parse_platforms(["linux/amd64", "linux/arm/v7"])
SCRATCH_DIR = Path("/scratch")
PUSH_BY_DIGEST = "type=image,name=r.example/app,push=true,push-by-digest=true,name-canonical=true"
IMAGE_NAME = "name=r.example/app:1"


def make_request(*outputs: str, **options: Any) -> BuildRequest:
    platforms = options.pop("platforms", TWO_PLATFORMS)
    specs = tuple(map(OutputSpec.parse, outputs))
    return BuildRequest(platforms=platforms, outputs=specs, tags=("r.example/app:1",), **options)


@pytest.mark.parametrize(
    ("outputs", "driver", "expected", "pushed_archive"),
    [
        (["type=oci,dest=x"], "docker", ["type=oci,dest=x"], None),
        (["type=local,dest=x", "type=tar,dest=y"], "docker", ["type=local,dest=x", "type=tar,dest=y"], None),
        (["type=oci,dest=x", "type=registry"], "docker-container", [f"type=oci,dest=x,{IMAGE_NAME}"], "x"),
        (["type=oci,dest=x", "type=registry"], "docker", [f"type=oci,dest=x,{IMAGE_NAME}"], "x"),
        (["type=registry"], "docker-container", [PUSH_BY_DIGEST], None),
        (["type=image,push=true"], "remote", [PUSH_BY_DIGEST], None),
        (
            ["type=registry"],
            "docker",
            [f"type=oci,dest=/scratch/image.tar,{IMAGE_NAME}"],
            "/scratch/image.tar",
        ),
        (
            ["type=oci,dest=x,compression=zstd", "type=registry"],
            "docker-container",
            [f"type=oci,dest=x,compression=zstd,{IMAGE_NAME}", PUSH_BY_DIGEST],
            None,
        ),
    ],
)
def test_plan(outputs: list[str], driver: str, expected: list[str], pushed_archive: str | None) -> None:
    plan = plan_exports(make_request(*outputs), driver, "containerd", SCRATCH_DIR)
    assert [str(output) for output in plan.buildx_outputs] == expected
    assert plan.pushed_archive == (Path(pushed_archive) if pushed_archive else None)


@pytest.mark.parametrize(
    ("store", "platforms", "per_platform"),
    [
        ("containerd", TWO_PLATFORMS, False),
        ("graph", TWO_PLATFORMS[:1], False),
        ("graph", TWO_PLATFORMS, True),
    ],
)
def test_plan_load(store: str, platforms: Any, *, per_platform: bool) -> None:
    plan = plan_exports(make_request(load=True, platforms=platforms), "docker", store, SCRATCH_DIR)
    assert plan.loads_per_platform is per_platform
    assert [str(output) for output in plan.buildx_outputs] == ([] if per_platform else ["type=docker"])


def test_stage_files(tmp_path: Path) -> None:
    outputs = (f"type=oci,dest={tmp_path}/deep/x", "type=registry", f"type=local,dest={tmp_path}/out/y")
    with stage_files(tuple(map(OutputSpec.parse, outputs))) as (archive, push, folder):
        assert archive.dest is not None
        assert archive.dest.parent == tmp_path / "deep"
        archive.dest.write_bytes(b"new")
    assert (tmp_path / "deep/x").read_bytes() == b"new"
    assert (str(push), str(folder)) == outputs[1:]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "out", "x"]


def test_missing_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    outputs = [OutputSpec.parse(f"type=tar,dest={tmp_path}/{name}") for name in ("x", "y")]

    def write_first() -> None:
        with stage_files(outputs) as (first, _):
            assert first.dest is not None
            first.dest.write_bytes(b"new")

    with pytest.raises(BuildFailed, match="did not write"):
        write_first()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_stage_dry_run(tmp_path: Path) -> None:
    with stage_files([OutputSpec.parse(f"type=oci,dest={tmp_path}/deep/x")], dry_run=True) as (archive,):
        assert ".partial" in str(archive)
    assert list(tmp_path.iterdir()) == []
