"""The release pipelines of ``examples/ci``: each job runs in a checkout and a home folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from tests.conftest import ROOT
from tests.integration.test_push import TWO, Place, plain
from tests.support.project import CompletedCommand, Project
from tests.support.registry import real as registry
from tests.support.workflows import code_blocks, fill_expressions, parse_yaml

__all__ = ["plain"]  # a fixture

PAGE = ROOT / "docs/ci-matrix.md"
PIPELINES = [ROOT / f"examples/ci/{system}-release.yml" for system in ("github", "gitlab")]
TAG = "v1"
DOCKERFILE = """\
FROM alpine:latest
ARG TARGETARCH
RUN echo "[$TARGETARCH]" > /arch
CMD ["cat", "/arch"]
"""
CHECKOUT = {
    "Dockerfile": DOCKERFILE,
    "pyproject.toml": next(text for text in code_blocks(PAGE, "toml") if "platforms" in text),
    "noxfile.py": next(text for text in code_blocks(PAGE, "python") if "arch_matrix" in text),
}
LOGIN = "docker login"
GITHUB, GITLAB = (parse_yaml(path.read_text(encoding="utf-8")) for path in PIPELINES)


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[Place]:
    """A registry that lets in who has logged in."""
    folder = tmp_path / "registry"
    folder.mkdir()
    with registry.serve(folder, login=True) as host:
        yield Place(host=host, folder=folder, login=True)


@dataclass(kw_only=True)
class Fleet(ABC):
    """A CI system: a new folder, a new home and the pipeline's variables for each job."""

    place: Place
    folder: Path
    engine: Engine

    def job(self, name: str, env: Mapping[str, str]) -> Project:
        """A new checkout on a machine that knows the engine and nothing else."""
        home = self.folder / name
        (home / "repo").mkdir(parents=True)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {
            "HOME": str(home),
            "PATH": programs,
            "CI": "true",
            "INVOKE_BUILDKIT_CACHE": str(cache_folder(load_settings())),  # where the engine is
            "INVOKE_BUILDKIT_BASES": "standin",
        }
        return Project(folder=home / "repo", env={**env, **own}).write(CHECKOUT)

    def script(self, job: Project, text: str) -> CompletedCommand:
        """A step, unless it is one that prepares the machine."""
        if "apt-get" in text or "/opt/venv" in text or text.startswith("pip install"):
            return CompletedCommand(code=0, stdout="", stderr="", seconds=0)
        if LOGIN in text:
            docker = Path(self.engine.tools.docker[0]).parent
            path = f"{docker}{os.pathsep}{job.env['PATH']}"
            job = job.with_env(DOCKER_HOST=self.engine.endpoint, PATH=path)
        return job.command("bash", "-e", "-o", "pipefail", "-c", text)

    def scripts(self, job: Project, texts: list[str]) -> CompletedCommand:
        """Steps, one after the other, until one fails; gives the last."""
        done = None
        for text in texts:
            done = self.script(job, text)
            if done.code:
                break
        assert done is not None
        return done

    @property
    @abstractmethod
    def platforms(self) -> list[str]:
        """Those that the pipeline has a job for."""

    @abstractmethod
    def part(self, platform: str) -> CompletedCommand:
        """The job of one platform."""

    @abstractmethod
    def merge(self) -> CompletedCommand:
        """The last job, which gets what the others have left."""


@dataclass(kw_only=True)
class GitHub(Fleet):
    """GitHub Actions, as far as this page's workflow uses it."""

    def steps(self, name: str, values: Mapping[str, str], label: str) -> CompletedCommand:
        job = GITHUB["jobs"][name]
        # There is no registry here that an emulators' image could be pulled from.
        known = {**GITHUB["env"], "INVOKE_BUILDKIT_EMULATORS": "auto"} | job.get("env", {})
        values = {
            "github.repository": "team/app",
            "github.actor": registry.USER,
            "secrets.GITHUB_TOKEN": registry.PASSWORD,
            **values,
        }
        env = {key: self._here(text, values) for key, text in known.items()}
        output = self.folder / f"{label}.output"
        project = self.job(label, {**env, "GITHUB_REF_NAME": TAG, "GITHUB_OUTPUT": str(output)})
        done = CompletedCommand(code=0, stdout="", stderr="", seconds=0)
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/download-artifact"):
                for path in self.folder.glob("artifacts/*/*"):
                    shutil.copy(path, project.folder)
            if step.get("uses", "").startswith("actions/upload-artifact"):
                inputs = fill_expressions(step["with"], values)
                self._keep(project, inputs["name"], inputs["path"])
            if "run" in step:
                own = {key: self._here(text, values) for key, text in step.get("env", {}).items()}
                done = self.script(project.with_env(**own), fill_expressions(step["run"], values))
                if done.code:
                    break
        return done

    def _here(self, text: str, values: Mapping[str, str]) -> str:
        found: str = fill_expressions(text, values)
        return found.replace("ghcr.io", self.place.host)

    def _keep(self, project: Project, name: str, pattern: str) -> None:
        kept = self.folder / "artifacts" / name
        kept.mkdir(parents=True)
        files = list(project.folder.glob(pattern))
        assert files, f"there is no {pattern} to keep"
        for path in files:
            shutil.copy(path, kept)

    def sessions(self) -> list[dict[str, Any]]:
        """The matrix, from the job that lists it."""
        label = f"list-{len(list(self.folder.glob('list-*.output')))}"
        done = self.steps("list", {}, label)
        assert done.code == 0, done.stderr
        job = GITHUB["jobs"]["list"]
        assert job["outputs"] == {"sessions": "${{ steps.list.outputs.sessions }}"}
        include = GITHUB["jobs"]["part"]["strategy"]["matrix"]["include"]
        assert include == "${{ fromJSON(needs.list.outputs.sessions) }}"
        key, _, value = (self.folder / f"{label}.output").read_text(encoding="utf-8").strip().partition("=")
        assert key == "sessions"
        found: list[dict[str, Any]] = json.loads(value)
        return found

    @property
    def platforms(self) -> list[str]:
        return [row["call_spec"]["platform"] for row in self.sessions()]

    def part(self, platform: str) -> CompletedCommand:
        sessions = self.sessions()
        index = [row["call_spec"]["platform"] for row in sessions].index(platform)
        values = {
            "matrix.call_spec.platform": platform,
            "matrix.session": sessions[index]["session"],
            "strategy.job-index": str(index),
        }
        return self.steps("part", values, f"part-{index}")

    def merge(self) -> CompletedCommand:
        return self.steps("merge", {}, "merge")


@dataclass(kw_only=True)
class GitLab(Fleet):
    """GitLab's pipelines, as far as this page's uses them."""

    def steps(self, name: str, env: Mapping[str, str], label: str) -> CompletedCommand:
        known = {
            "CI_REGISTRY": self.place.host,
            "CI_REGISTRY_IMAGE": f"{self.place.host}/team/app",
            "CI_REGISTRY_USER": registry.USER,
            "CI_REGISTRY_PASSWORD": registry.PASSWORD,
            "CI_COMMIT_TAG": TAG,
        }
        project = self.job(label, {**GITLAB["variables"], **known, **env})
        for path in self.folder.glob("artifacts/*"):  # those of earlier stages come by themselves
            shutil.copy(path, project.folder)
        done = self.scripts(project, [*GITLAB["default"]["before_script"], *GITLAB[name]["script"]])
        kept = self.folder / "artifacts"
        kept.mkdir(exist_ok=True)
        for pattern in GITLAB[name].get("artifacts", {}).get("paths", []) if done.code == 0 else []:
            for path in project.folder.glob(pattern):
                shutil.copy(path, kept)
        return done

    @property
    def platforms(self) -> list[str]:
        return [row["PLATFORM"] for row in GITLAB["part"]["parallel"]["matrix"]]

    def part(self, platform: str) -> CompletedCommand:
        index = self.platforms.index(platform)
        row = GITLAB["part"]["parallel"]["matrix"][index]
        # Artifacts of jobs in the same stage are not there yet.
        return self.steps("part", {**row, "CI_NODE_INDEX": str(index + 1)}, f"part-{index}")

    def merge(self) -> CompletedCommand:
        return self.steps("merge", {}, "merge")


@pytest.fixture(params=[GitHub, GitLab])
def fleet(request: pytest.FixtureRequest, engine: Engine, locked: Place, tmp_path: Path) -> Fleet:
    (tmp_path / "fleet").mkdir()
    found: Fleet = request.param(place=locked, folder=tmp_path / "fleet", engine=engine)
    return found


def names(place: Place) -> list[str]:
    """The tags of the repository that are no caches."""
    tags = place.fetch("team/app/tags/list").json().get("tags") or []
    return [tag for tag in tags if not tag.startswith("cache")]


def test_jobs_make_one_image(fleet: Fleet) -> None:
    assert fleet.platforms == list(TWO)
    for platform in TWO:
        done = fleet.part(platform)
        assert done.code == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout  # the image tests, on that platform
        assert names(fleet.place) == []
    done = fleet.merge()
    assert done.code == 0, done.stdout + done.stderr
    assert "2 of 2 platforms pushed: verified, run and tagged." in done.stdout
    assert names(fleet.place) == [TAG]
    index = fleet.place.fetch(f"team/app/manifests/{TAG}").json()
    rows = [entry["platform"] for entry in index["manifests"]]
    assert [f"{row['os']}/{row['architecture']}" for row in rows if row["os"] != "unknown"] == list(TWO)
    tags = fleet.place.fetch("team/app/tags/list").json()["tags"]
    assert {f"cache-{name.replace('/', '-')}" for name in TWO} < set(tags)


def test_missing_job_leaves_tag(fleet: Fleet) -> None:
    there, missing = TWO
    assert fleet.part(there).code == 0
    done = fleet.merge()
    assert done.code == 1, done.stdout + done.stderr
    assert f"no part is for {missing}" in done.stderr
    assert names(fleet.place) == []


def test_failed_image_test_leaves_no_part(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKOUT, "Dockerfile", DOCKERFILE.replace("[$TARGETARCH]", "[another]"))
    done = fleet.part(TWO[0])
    assert done.code == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert [path for path in fleet.folder.glob("artifacts/**/*") if path.is_file()] == []
    assert names(fleet.place) == []


SEVERAL = """\
[tool.buildkit-tasks]
platforms = ["linux/amd64", "linux/arm64"]

[[tool.buildkit-tasks.image]]
name = "web"
tags = ["HOST/team/app:v1"]
expect = "this is web"

[[tool.buildkit-tasks.image]]
name = "tool"
tags = ["HOST/team/tool:v1"]
target = "tool"
expect = "this is tool"
"""
STAGES = """\
FROM alpine:latest AS tool
CMD ["echo", "this is tool"]
FROM alpine:latest
CMD ["echo", "this is web"]
"""


def test_jobs_with_several_images(engine: Engine, project: Project, plain: Place) -> None:
    assert engine.version
    project.write({"pyproject.toml": SEVERAL.replace("HOST", plain.host), "Dockerfile": STAGES})
    for name in TWO:
        done = project.task("build-multiarch", "--split", "--json", f"--platform={name}")
        (project.folder / f"part-{name[6:]}.json").write_text(done.stdout, encoding="utf-8")
    parts = "--parts-file=part-amd64.json,part-arm64.json"
    refused = project.task("merge-multiarch", parts, expect=2)
    assert "no tag is given" in refused.stderr
    refused = project.task("merge-multiarch", parts, f"-t{plain.host}/team/app:v1", expect=2)
    assert "the parts are of several images: web, tool\n  try: select one by --image" in refused.stderr
    for image, place in (("web", "team/app:v1"), ("tool", "team/tool:v1")):
        assert plain.digest(place) == ""
        merged = project.json("merge-multiarch", parts, f"--image={image}")
        assert plain.digest(place) == merged["digest"]
        assert {row["stdout"] for row in merged["run"]["results"]} == {f"this is {image}\n"}


# What the page says, without an engine


def test_password_is_not_an_argument() -> None:
    lines = [line for path in PIPELINES for line in path.read_text().splitlines() if LOGIN in line]
    assert len(lines) == 3
    for line in lines:
        assert "printf %s " in line  # a word of the shell's own, and no program
        words = line.partition(LOGIN)[2].split()
        assert "--password-stdin" in words
        assert not {"-p", "--password"} & set(words)
