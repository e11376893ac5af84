"""Bake files on a real engine, with the images that others are built on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.system.command import SubprocessRunner
from tests.conftest import Unchanged
from tests.support.project import CompletedCommand, Project, program
from tests.support.registry import real as registry

FIXTURES = Path(__file__).parent.parent / "fixtures" / "bake"
TWO = ("linux/amd64", "linux/arm64")
TINY = """\
FROM scratch
ARG TARGETARCH
COPY hello-$TARGETARCH /hello
CMD ["/hello"]
"""


@pytest.fixture
def baked(engine: Engine, project: Project) -> Project:
    """The bake file that the unit tests have as buildx printed it, with all that it builds."""
    assert engine.version
    shutil.copy(FIXTURES / "group.hcl", project.folder / "docker-bake.hcl")
    web = 'FROM base\nARG GREETING\nRUN test -f /based && echo "$GREETING" > /greeting\n'
    words = 'CMD ["/bin/sh", "-c", "cat /greeting; echo $BASED"]\n'
    tools = 'FROM alpine AS a\nCMD ["echo", "this is a"]\nFROM alpine AS b\nCMD ["echo", "this is b"]\n'
    return project.write({"web/Dockerfile": web + words, "worker/Dockerfile": tools})


@pytest.fixture
def tiny(engine: Engine, project: Project) -> Project:
    """What a bake file needs to build an image of two platforms without a base or a step that runs."""
    assert engine.version
    files = {f"hello-{name.rpartition('/')[2]}": program(name) for name in TWO}
    return project.write({"Dockerfile": TINY, **files}).with_env(INVOKE_BUILDKIT_PLATFORMS=",".join(TWO))


def bake(project: Project, *options: str, expect: int = 0, file: str = "docker-bake.hcl") -> Any:
    return project.json("build-multiarch", "--bake", file, *options, expect=expect)


def rows(document: Any) -> dict[str, bool]:
    return {row["name"]: row["ok"] for row in document["images"]}


@pytest.mark.parametrize("name", ["group.hcl", "every.json", "compose.yaml"])
def test_fixtures_match_buildx(name: str, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "secret").touch()
    shutil.copy(FIXTURES / name, tmp_path)
    argv = [*engine.tools.buildx, "bake", "--print", f"--file={name}", "--set=*.output=", "--"]
    done = SubprocessRunner().run(argv, engine.command_options(cwd=tmp_path, env={"TOKEN": "x"}))
    expected = FIXTURES / f"{name.partition('.')[0]}.printed.json"
    assert json.loads(done.stdout) == json.loads(expected.read_bytes())


def test_every_target_is_verified_and_run(baked: Project, unchanged: Unchanged) -> None:
    with unchanged():
        found = bake(baked)
    assert rows(found) == {"tool-a": True, "tool-b": True, "web": True}
    for row in found["images"]:
        assert row["build"]["outputs"] == [{"type": "oci", "dest": f"dist/{row['name']}.tar"}]
        for step, key in (("build", "platforms"), ("verify", "platforms"), ("run", "results")):
            assert [each["platform"] for each in row[step][key]] == list(TWO)
    said = {row["name"]: {each["stdout"] for each in row["run"]["results"]} for row in found["images"]}
    assert said == {
        "tool-a": {"this is a\n"},
        "tool-b": {"this is b\n"},
        "web": {"hi ${USER}\nyes\n"},
    }
    # What web is built on is no image of this run.
    assert sorted(path.name for path in (baked.folder / "dist").iterdir()) == [
        "tool-a.tar",
        "tool-b.tar",
        "web.tar",
    ]


def test_target_attributes_in_image(baked: Project) -> None:
    bake(baked, "--target=web")
    with open_image(f"oci-archive:{baked.folder}/dist/web.tar") as source:
        for _, entry in source.platform_manifests:
            with source.open(source.manifest(entry).config) as stream:
                config = json.load(stream)["config"]
            assert config["Labels"]["org.example.a"] == 'b,c="d"'
            assert "BASED=yes" in config["Env"]


def test_group_and_repeated_targets(baked: Project) -> None:
    assert list(rows(bake(baked, "--target=matrix", "--platform=linux/amd64"))) == ["tool-a", "tool-b"]
    found = bake(baked, "--target=tool-a", "--target=base", "--platform=linux/amd64")
    assert rows(found) == {"tool-a": True, "base": True}


def test_unknown_target(baked: Project, unchanged: Unchanged) -> None:
    with unchanged():
        refused = bake(baked, "--target=nope", expect=2)
    assert refused["error"] == (
        "docker-bake.hcl: failed to find target nope\n"
        "  try: docker buildx bake --file=docker-bake.hcl --list=targets"
    )


def test_not_a_bake_file(tiny: Project) -> None:
    tiny.write({"docker-bake.hcl": 'target "x" {\n'})
    assert "docker-bake.hcl: " in bake(tiny, expect=2)["error"]


def test_failing_target_does_not_stop_others(baked: Project) -> None:
    baked.write({"worker/Dockerfile": "FROM alpine AS a\nRUN false\nFROM alpine AS b\n"})
    done = baked.task(
        "build-multiarch", "--json", "--bake=docker-bake.hcl", "--report=x.xml", "--report=x.md", expect=1
    )
    assert rows(done.document) == {"tool-a": False, "tool-b": True, "web": True}
    assert "linux/" in done.document["images"][0]["error"]
    assert not (baked.folder / "dist" / "tool-a.tar").exists()
    junit = (baked.folder / "x.xml").read_text(encoding="utf-8")
    assert '<testsuite name="web: run" tests="2" failures="0"' in junit
    assert '<testcase classname="buildkit_tasks.tool-a" name="tool-a as a whole"' in junit
    assert "2 of 3 images passed" in (baked.folder / "x.md").read_text(encoding="utf-8")


def test_failed_base_target(baked: Project) -> None:
    text = (baked.folder / "docker-bake.hcl").read_text(encoding="utf-8")
    baked.write({"docker-bake.hcl": text.replace("FROM alpine", "FROM alpine\nRUN false")})
    found = bake(baked, expect=1)
    assert rows(found) == {"tool-a": True, "tool-b": True, "web": False}
    assert "because the build of base, its base, failed" in found["images"][2]["error"]


def test_matrix_sets_up_once(baked: Project) -> None:
    found = baked.json("arch-matrix", "--bake=docker-bake.hcl", "--target=tool-a", "--expect=this is a")
    assert [row["platform"] for row in found["setup"]["platforms"]] == list(TWO)
    assert rows(found) == {"tool-a": True}
    failed = baked.json("arch-matrix", "--bake=docker-bake.hcl", "--target=tool-a", "--expect=b$", expect=1)
    assert failed["images"][0]["run"]["results"][0]["outcome"] == "failed"


def test_compose_file(tiny: Project) -> None:
    service = "services:\n  hello:\n    build:\n      context: .\n      platforms: [linux/arm64]\n"
    tiny.write({"compose.yaml": service})
    found = bake(tiny, file="compose.yaml")
    assert [row["platform"] for row in found["images"][0]["build"]["platforms"]] == ["linux/arm64"]


def test_json_file_uses_settings_platforms(tiny: Project) -> None:
    tiny.write({"bake.json": json.dumps({"target": {"default": {"context": "."}}})})
    found = bake(tiny, file="bake.json")
    assert [row["platform"] for row in found["images"][0]["build"]["platforms"]] == list(TWO)


def test_unsupported_key(tiny: Project, unchanged: Unchanged) -> None:
    tiny.write({"docker-bake.hcl": 'target "default" {\n  network = "host"\n}\n'})
    with unchanged():
        refused = bake(tiny, expect=2)
    assert 'docker-bake.hcl: target default: network = "host" is not supported' in refused["error"]
    assert not (tiny.folder / "dist").exists()


OUTPUTS = """\
target "default" {
  platforms = ["linux/amd64"]
  output = ["type=oci,dest=out/a.tar", "type=local,dest=out/files"]
}
"""


def test_a_files_outputs_are_written(tiny: Project) -> None:
    found = bake(tiny.write({"docker-bake.hcl": OUTPUTS}))
    assert found["images"][0]["build"]["outputs"] == [
        {"type": "oci", "dest": "out/a.tar"},
        {"type": "local", "dest": "out/files"},
    ]
    assert (tiny.folder / "out/files/hello").read_bytes() == program("linux/amd64")


def test_outputs_survive_print_and_failure(tiny: Project) -> None:
    tiny.write({"docker-bake.hcl": OUTPUTS, "out/a.tar": "kept"})
    tiny.task("build-multiarch", "--bake=docker-bake.hcl", "--dry-run")
    assert (tiny.folder / "out/a.tar").read_text(encoding="utf-8") == "kept"
    tiny.write({"Dockerfile": "FROM scratch\nCOPY nowhere /\n"})
    assert not bake(tiny, expect=1)["ok"]
    assert (tiny.folder / "out/a.tar").read_text(encoding="utf-8") == "kept"


def test_bake_dry_run(baked: Project, unchanged: Unchanged) -> None:
    with unchanged():
        done: CompletedCommand = baked.task("build-multiarch", "--bake=docker-bake.hcl", "--dry-run")
    builds = [line for line in done.stdout.splitlines() if " --metadata-file=" in line]
    assert len(builds) == 4
    assert sum("--build-context=base=oci-layout://" in line for line in builds) == 1
    assert not (baked.folder / "dist").exists()


def test_pushed_target_is_tagged_last(tiny: Project, tmp_path: Path) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    with registry.serve(place) as host:
        target = f'context = "."\n  tags = ["{host}/team/tiny:1"]\n  output = ["type=registry"]\n'
        tiny.write({"docker-bake.hcl": f'target "default" {{\n  {target}}}\n'})
        (row,) = bake(tiny)["images"]
        assert [tag["ref"] for tag in row["tags"]] == [f"{host}/team/tiny:1"]
        assert row["verify"]["subject"].startswith(f"docker://{host}/team/tiny@sha256:")
        assert tiny.json("verify-arch", f"docker://{host}/team/tiny:1")["digest"] == row["build"]["digest"]
        tiny.write({"hello-arm64": program("linux/amd64")})
        (row,) = bake(tiny, expect=1)["images"]
        assert (row["ok"], row["tags"]) == (False, [])
        assert tiny.json("verify-arch", f"docker://{host}/team/tiny:1")["ok"]
