"""Bake files: targets, groups, base targets and outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.oci.transports import open_image
from buildkit_tasks.system.command import SubprocessRunner
from tests.conftest import ROOT, Unchanged
from tests.integration.hello_image import DOCKERFILE, TWO, hello_programs
from tests.integration.registry_server import RegistryServer
from tests.support.project import Project, program

FIXTURES = ROOT / "tests/fixtures/bake"
WEB = """\
FROM base
ARG GREETING
RUN test -f /based && echo "$GREETING" > /greeting
CMD ["/bin/sh", "-c", "cat /greeting; echo $BASED"]
"""
TOOLS = """\
FROM alpine AS a
CMD ["echo", "this is a"]
FROM alpine AS b
CMD ["echo", "this is b"]
"""


@pytest.fixture
def group_project(engine: Engine, project: Project) -> Project:
    """The fixture group.hcl and the Dockerfiles of its targets."""
    assert engine.version
    shutil.copy(FIXTURES / "group.hcl", project.folder / "docker-bake.hcl")
    return project.write({"web/Dockerfile": WEB, "worker/Dockerfile": TOOLS})


@pytest.fixture
def hello_project(engine: Engine, project: Project) -> Project:
    """A Dockerfile without a base, to which a test adds a bake file."""
    assert engine.version
    return project.write({"Dockerfile": DOCKERFILE, **hello_programs()}).with_env(
        INVOKE_BUILDKIT_PLATFORMS=",".join(TWO)
    )


def bake(project: Project, *options: str, expect: int = 0, file: str = "docker-bake.hcl") -> Any:
    return project.json("build-multiarch", "--bake", file, *options, expect=expect)


def image_status(report: Any) -> dict[str, bool]:
    """Return whether each image of a report passed."""
    return {row["name"]: row["ok"] for row in report["images"]}


@pytest.mark.parametrize("name", ["group.hcl", "every.json", "compose.yaml"])
def test_fixtures_match_buildx(name: str, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "secret").touch()
    shutil.copy(FIXTURES / name, tmp_path)
    argv = [*engine.tools.buildx, "bake", "--print", f"--file={name}", "--set=*.output=", "--"]
    done = SubprocessRunner().run(argv, engine.command_options(cwd=tmp_path, env={"TOKEN": "x"}))
    expected = FIXTURES / f"{name.partition('.')[0]}.printed.json"
    assert json.loads(done.stdout) == json.loads(expected.read_bytes())


def test_targets_are_verified_and_run(group_project: Project, unchanged: Unchanged) -> None:
    with unchanged():
        report = bake(group_project)
    assert image_status(report) == {"tool-a": True, "tool-b": True, "web": True}
    for row in report["images"]:
        assert row["build"]["outputs"] == [{"type": "oci", "dest": f"dist/{row['name']}.tar"}]
        for step, key in (("build", "platforms"), ("verify", "platforms"), ("run", "results")):
            assert [each["platform"] for each in row[step][key]] == list(TWO)
    stdout = {row["name"]: {each["stdout"] for each in row["run"]["results"]} for row in report["images"]}
    assert stdout == {
        "tool-a": {"this is a\n"},
        "tool-b": {"this is b\n"},
        "web": {"hi ${USER}\nyes\n"},
    }
    # base is only a dependency of web, so it is not exported.
    names = sorted(path.name for path in (group_project.folder / "dist").iterdir())
    assert names == ["tool-a.tar", "tool-b.tar", "web.tar"]


def test_target_attributes_in_image(group_project: Project) -> None:
    bake(group_project, "--target=web")
    with open_image(f"oci-archive:{group_project.folder}/dist/web.tar") as source:
        for _, entry in source.platform_manifests:
            with source.open(source.manifest(entry).config) as stream:
                config = json.load(stream)["config"]
            assert config["Labels"]["org.example.a"] == 'b,c="d"'
            assert "BASED=yes" in config["Env"]


def test_group_and_repeated_targets(group_project: Project) -> None:
    assert list(image_status(bake(group_project, "--target=matrix", "--platform=linux/amd64"))) == [
        "tool-a",
        "tool-b",
    ]
    report = bake(group_project, "--target=tool-a", "--target=base", "--platform=linux/amd64")
    assert image_status(report) == {"tool-a": True, "base": True}


def test_unknown_target(group_project: Project, unchanged: Unchanged) -> None:
    with unchanged():
        refused = bake(group_project, "--target=nope", expect=2)
    message, hint = refused["error"].split("\n  try: ")
    assert message == "docker-bake.hcl: failed to find target nope"
    assert hint.endswith(" bake --file=docker-bake.hcl --list=targets")


def test_not_a_bake_file(hello_project: Project) -> None:
    hello_project.write({"docker-bake.hcl": 'target "x" {\n'})
    error = bake(hello_project, expect=2)["error"]
    assert error.startswith("docker-bake.hcl:1,")
    assert error.count("docker-bake.hcl") == 1


def test_one_failing_target(group_project: Project) -> None:
    group_project.write({"worker/Dockerfile": "FROM alpine AS a\nRUN false\nFROM alpine AS b\n"})
    report = bake(group_project, "--report=x.xml", "--report=x.md", expect=1)
    assert image_status(report) == {"tool-a": False, "tool-b": True, "web": True}
    assert "linux/" in report["images"][0]["error"]
    assert not (group_project.folder / "dist" / "tool-a.tar").exists()
    junit = (group_project.folder / "x.xml").read_text(encoding="utf-8")
    assert '<testsuite name="web: run" tests="2" failures="0"' in junit
    assert '<testcase classname="buildkit_tasks.tool-a" name="tool-a as a whole"' in junit
    assert "2 of 3 images passed" in (group_project.folder / "x.md").read_text(encoding="utf-8")


def test_failed_base_target(group_project: Project) -> None:
    text = (group_project.folder / "docker-bake.hcl").read_text(encoding="utf-8")
    group_project.write({"docker-bake.hcl": text.replace("FROM alpine", "FROM alpine\nRUN false")})
    report = bake(group_project, expect=1)
    assert image_status(report) == {"tool-a": True, "tool-b": True, "web": False}
    assert "because the build of base, its base, failed" in report["images"][2]["error"]


def test_matrix_sets_up_once(group_project: Project) -> None:
    report = group_project.json(
        "arch-matrix", "--bake=docker-bake.hcl", "--target=tool-a", "--expect=this is a"
    )
    assert [row["platform"] for row in report["setup"]["platforms"]] == list(TWO)
    assert image_status(report) == {"tool-a": True}
    failed = group_project.json(
        "arch-matrix", "--bake=docker-bake.hcl", "--target=tool-a", "--expect=b$", expect=1
    )
    assert failed["images"][0]["run"]["results"][0]["outcome"] == "failed"


def test_compose_file(hello_project: Project) -> None:
    service = "services:\n  hello:\n    build:\n      context: .\n      platforms: [linux/arm64]\n"
    hello_project.write({"compose.yaml": service})
    report = bake(hello_project, file="compose.yaml")
    assert [row["platform"] for row in report["images"][0]["build"]["platforms"]] == ["linux/arm64"]


def test_json_file_uses_settings_platforms(hello_project: Project) -> None:
    hello_project.write({"bake.json": json.dumps({"target": {"default": {"context": "."}}})})
    report = bake(hello_project, file="bake.json")
    assert [row["platform"] for row in report["images"][0]["build"]["platforms"]] == list(TWO)


def test_unsupported_key(hello_project: Project, unchanged: Unchanged) -> None:
    hello_project.write({"docker-bake.hcl": 'target "default" {\n  call = "check"\n}\n'})
    with unchanged():
        refused = bake(hello_project, expect=2)
    assert 'docker-bake.hcl: target default: call = "check" is not supported' in refused["error"]
    assert not (hello_project.folder / "dist").exists()


OUTPUTS = """\
target "default" {
  platforms = ["linux/amd64"]
  output = ["type=oci,dest=out/a.tar", "type=local,dest=out/files"]
}
"""


def test_outputs_of_bake_file(hello_project: Project) -> None:
    report = bake(hello_project.write({"docker-bake.hcl": OUTPUTS}))
    assert report["images"][0]["build"]["outputs"] == [
        {"type": "oci", "dest": "out/a.tar"},
        {"type": "local", "dest": "out/files"},
    ]
    assert (hello_project.folder / "out/files/hello").read_bytes() == program("linux/amd64")


@pytest.mark.parametrize("options", [["--dry-run"], []])
@pytest.mark.parametrize(
    "output", ["type=oci,\\u0064est={0}", "type=oci,${{WHERE}}", 'type=tar,DE${{\\"ST\\"}}={0}']
)
def test_output_elsewhere_is_refused(
    hello_project: Project, tmp_path: Path, output: str, options: list[str]
) -> None:
    """Only buildx knows what these are, and it opens the files in order to print their names."""
    kept = tmp_path / "kept.tar"
    kept.write_bytes(b"kept")
    target = f'{{"default": {{"output": ["{output.format(kept)}"]}}}}'
    variable = f'{{"WHERE": {{"default": "\\u0064est={kept}"}}}}'
    hello_project.write({"bake.json": f'{{"variable": {variable}, "target": {target}}}'})
    done = hello_project.task("build-multiarch", "--bake=bake.json", *options, expect=2)
    assert "is outside this folder" in done.stderr
    assert kept.read_bytes() == b"kept"


def test_outputs_survive_failed_build(hello_project: Project) -> None:
    hello_project.write({"docker-bake.hcl": OUTPUTS, "out/a.tar": "kept"})
    hello_project.task("build-multiarch", "--bake=docker-bake.hcl", "--dry-run")
    assert (hello_project.folder / "out/a.tar").read_text(encoding="utf-8") == "kept"
    hello_project.write({"Dockerfile": "FROM scratch\nCOPY missing /\n"})
    assert not bake(hello_project, expect=1)["ok"]
    assert (hello_project.folder / "out/a.tar").read_text(encoding="utf-8") == "kept"


def test_bake_dry_run(group_project: Project, unchanged: Unchanged) -> None:
    with unchanged():
        done = group_project.task("build-multiarch", "--bake=docker-bake.hcl", "--dry-run")
    builds = [line for line in done.stdout.splitlines() if " --metadata-file=" in line]
    assert len(builds) == 4
    assert sum("--build-context=base=oci-layout://" in line for line in builds) == 1
    assert not (group_project.folder / "dist").exists()


def test_pushed_target_is_tagged_last(hello_project: Project, plain_registry: RegistryServer) -> None:
    repository = f"{plain_registry.host}/team/hello"
    target = f'context = "."\n  tags = ["{repository}:1"]\n  output = ["type=registry"]\n'
    hello_project.write({"docker-bake.hcl": f'target "default" {{\n  {target}}}\n'})
    (row,) = bake(hello_project)["images"]
    assert [tag["ref"] for tag in row["tags"]] == [f"{repository}:1"]
    assert row["verify"]["subject"].startswith(f"docker://{repository}@sha256:")
    assert hello_project.json("verify-arch", f"docker://{repository}:1")["digest"] == row["build"]["digest"]
    hello_project.write({"hello-arm64": program("linux/amd64")})
    (row,) = bake(hello_project, expect=1)["images"]
    assert (row["ok"], row["tags"]) == (False, [])
    assert hello_project.json("verify-arch", f"docker://{repository}:1")["ok"]
