"""The release pipelines of ``examples/ci``: each job runs in its own checkout and home directory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from tests.conftest import ROOT
from tests.integration.hello_image import TWO
from tests.integration.registry_server import RegistryServer
from tests.support.project import Project
from tests.support.registry import real as registry
from tests.support.task_server import CompletedCommand
from tests.support.workflows import code_blocks, fill_expressions, parse_yaml

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


pytestmark = pytest.mark.interop  # each test runs all jobs of a pipeline, which takes minutes together

SUCCESS = CompletedCommand(code=0, stdout="", stderr="")


@dataclass(kw_only=True)
class CiSystem(ABC):
    """Runs a pipeline's jobs: each gets a new checkout, a new home and the pipeline's variables."""

    server: RegistryServer
    folder: Path
    engine: Engine

    def check_out(self, name: str, env: Mapping[str, str]) -> Project:
        """Return a new checkout for a job; only the engine is shared with other jobs."""
        home = self.folder / name
        (home / "repo").mkdir(parents=True)
        machine_env = {
            "HOME": str(home),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "CI": "true",
            "INVOKE_BUILDKIT_CACHE": str(cache_folder(load_settings())),  # the private engine's directory
            "INVOKE_BUILDKIT_BASES": "standin",
        }
        return Project(folder=home / "repo", env={**env, **machine_env}).write(CHECKOUT)

    def run_script(self, project: Project, script: str) -> CompletedCommand:
        """Run one script of a job, except those that install software."""
        if "apt-get" in script or "/opt/venv" in script or script.startswith("pip install"):
            return SUCCESS
        if LOGIN in script:
            docker = Path(self.engine.tools.docker[0]).parent
            path = f"{docker}{os.pathsep}{project.env['PATH']}"
            project = project.with_env(DOCKER_HOST=self.engine.endpoint, PATH=path)
        return project.command("bash", "-e", "-o", "pipefail", "-c", script)

    @property
    @abstractmethod
    def platforms(self) -> list[str]:
        """The platforms that the pipeline has a job for."""

    @abstractmethod
    def run_part(self, platform: str) -> CompletedCommand:
        """Run the job of one platform."""

    @abstractmethod
    def run_merge(self) -> CompletedCommand:
        """Run the last job, which gets the artifacts of the others."""


@dataclass(kw_only=True)
class GitHub(CiSystem):
    """The parts of GitHub Actions that the workflow uses."""

    def run_job(self, name: str, values: Mapping[str, str], label: str) -> CompletedCommand:
        """Run a job's steps until one fails, and return the result of the last script."""
        job = GITHUB["jobs"][name]
        values = {
            "github.repository": "team/app",
            "github.actor": registry.USER,
            "secrets.GITHUB_TOKEN": registry.PASSWORD,
            **values,
        }
        # The image with emulators cannot be pulled in these tests.
        env = {**GITHUB["env"], "INVOKE_BUILDKIT_EMULATORS": "auto"} | job.get("env", {})
        outputs = {"GITHUB_REF_NAME": TAG, "GITHUB_OUTPUT": str(self.folder / f"{label}.output")}
        project = self.check_out(label, {**self._fill_env(env, values), **outputs})
        done = SUCCESS
        for step in job["steps"]:
            self._transfer_artifacts(project, step, values)
            if "run" in step:
                env = self._fill_env(step.get("env", {}), values)
                done = self.run_script(project.with_env(**env), fill_expressions(step["run"], values))
                if done.code:
                    break
        return done

    def _fill_env(self, env: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
        filled: dict[str, str] = fill_expressions(dict(env), values)
        return {name: value.replace("ghcr.io", self.server.host) for name, value in filled.items()}

    def _transfer_artifacts(
        self, project: Project, step: Mapping[str, Any], values: Mapping[str, str]
    ) -> None:
        action = step.get("uses", "")
        if action.startswith("actions/download-artifact"):
            for path in self.folder.glob("artifacts/*/*"):
                shutil.copy(path, project.folder)
        if action.startswith("actions/upload-artifact"):
            inputs = fill_expressions(step["with"], values)
            artifact = self.folder / "artifacts" / inputs["name"]
            artifact.mkdir(parents=True)
            files = list(project.folder.glob(inputs["path"]))
            assert files, f"no file matches {inputs['path']}"
            for path in files:
                shutil.copy(path, artifact)

    def sessions(self) -> list[dict[str, Any]]:
        """Run the job that lists the matrix, and return the matrix."""
        label = f"list-{len(list(self.folder.glob('list-*.output')))}"
        done = self.run_job("list", {}, label)
        assert done.code == 0, done.stderr
        job = GITHUB["jobs"]["list"]
        assert job["outputs"] == {"sessions": "${{ steps.list.outputs.sessions }}"}
        include = GITHUB["jobs"]["part"]["strategy"]["matrix"]["include"]
        assert include == "${{ fromJSON(needs.list.outputs.sessions) }}"
        key, _, value = (self.folder / f"{label}.output").read_text(encoding="utf-8").strip().partition("=")
        assert key == "sessions"
        sessions: list[dict[str, Any]] = json.loads(value)
        return sessions

    @property
    def platforms(self) -> list[str]:
        return [row["call_spec"]["platform"] for row in self.sessions()]

    def run_part(self, platform: str) -> CompletedCommand:
        sessions = self.sessions()
        index = [row["call_spec"]["platform"] for row in sessions].index(platform)
        values = {
            "matrix.call_spec.platform": platform,
            "matrix.session": sessions[index]["session"],
            "strategy.job-index": str(index),
        }
        return self.run_job("part", values, f"part-{index}")

    def run_merge(self) -> CompletedCommand:
        return self.run_job("merge", {}, "merge")


@dataclass(kw_only=True)
class GitLab(CiSystem):
    """The parts of GitLab CI that the pipeline uses."""

    def run_job(self, name: str, env: Mapping[str, str], label: str) -> CompletedCommand:
        """Run a job's scripts until one fails, and return the result of the last."""
        predefined = {
            "CI_REGISTRY": self.server.host,
            "CI_REGISTRY_IMAGE": f"{self.server.host}/team/app",
            "CI_REGISTRY_USER": registry.USER,
            "CI_REGISTRY_PASSWORD": registry.PASSWORD,
            "CI_COMMIT_TAG": TAG,
        }
        project = self.check_out(label, {**GITLAB["variables"], **predefined, **env})
        for path in self.folder.glob("artifacts/*"):  # GitLab downloads those of earlier stages
            shutil.copy(path, project.folder)
        done = SUCCESS
        for script in [*GITLAB["default"]["before_script"], *GITLAB[name]["script"]]:
            done = self.run_script(project, script)
            if done.code:
                return done
        self._upload(project, GITLAB[name].get("artifacts", {}).get("paths", []))
        return done

    def _upload(self, project: Project, patterns: list[str]) -> None:
        artifacts = self.folder / "artifacts"
        artifacts.mkdir(exist_ok=True)
        for pattern in patterns:
            for path in project.folder.glob(pattern):
                shutil.copy(path, artifacts)

    @property
    def platforms(self) -> list[str]:
        return [row["PLATFORM"] for row in GITLAB["part"]["parallel"]["matrix"]]

    def run_part(self, platform: str) -> CompletedCommand:
        index = self.platforms.index(platform)
        row = GITLAB["part"]["parallel"]["matrix"][index]
        return self.run_job("part", {**row, "CI_NODE_INDEX": str(index + 1)}, f"part-{index}")

    def run_merge(self) -> CompletedCommand:
        return self.run_job("merge", {}, "merge")


@pytest.fixture(params=[GitHub, GitLab])
def ci_system(
    request: pytest.FixtureRequest, engine: Engine, login_registry: RegistryServer, tmp_path: Path
) -> CiSystem:
    (tmp_path / "ci").mkdir()
    system: CiSystem = request.param(server=login_registry, folder=tmp_path / "ci", engine=engine)
    return system


def image_tags(server: RegistryServer) -> list[str]:
    """Return the tags of the repository, except those of caches."""
    tags = server.fetch("team/app/tags/list").json().get("tags") or []
    return [tag for tag in tags if not tag.startswith("cache")]


def test_jobs_make_one_image(ci_system: CiSystem) -> None:
    assert ci_system.platforms == list(TWO)
    for platform in TWO:
        done = ci_system.run_part(platform)
        assert done.code == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout  # the image tests, on that platform
        assert image_tags(ci_system.server) == []
    done = ci_system.run_merge()
    assert done.code == 0, done.stdout + done.stderr
    assert "2 of 2 platforms pushed: verified, run and tagged." in done.stdout
    assert image_tags(ci_system.server) == [TAG]
    index = ci_system.server.fetch(f"team/app/manifests/{TAG}").json()
    rows = [entry["platform"] for entry in index["manifests"]]
    assert [f"{row['os']}/{row['architecture']}" for row in rows if row["os"] != "unknown"] == list(TWO)
    tags = ci_system.server.fetch("team/app/tags/list").json()["tags"]
    assert {f"cache-{name.replace('/', '-')}" for name in TWO} < set(tags)


def test_missing_job_leaves_tag(ci_system: CiSystem) -> None:
    built, missing = TWO
    assert ci_system.run_part(built).code == 0
    done = ci_system.run_merge()
    assert done.code == 1, done.stdout + done.stderr
    assert f"no part is for {missing}" in done.stderr
    assert image_tags(ci_system.server) == []


def test_failed_image_test_leaves_no_part(ci_system: CiSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHECKOUT, "Dockerfile", DOCKERFILE.replace("[$TARGETARCH]", "[another]"))
    done = ci_system.run_part(TWO[0])
    assert done.code == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert [path for path in ci_system.folder.glob("artifacts/**/*") if path.is_file()] == []
    assert image_tags(ci_system.server) == []


SETTINGS = """\
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


def test_jobs_with_several_images(engine: Engine, project: Project, plain_registry: RegistryServer) -> None:
    assert engine.version
    project.write({"pyproject.toml": SETTINGS.replace("HOST", plain_registry.host), "Dockerfile": STAGES})
    for name in TWO:
        done = project.task("build-multiarch", "--split", "--json", f"--platform={name}")
        (project.folder / f"part-{name[6:]}.json").write_text(done.stdout, encoding="utf-8")
    parts = "--parts-file=part-amd64.json,part-arm64.json"
    refused = project.task("merge-multiarch", parts, expect=2)
    assert "a push needs a tag" in refused.stderr
    refused = project.task("merge-multiarch", parts, f"-t{plain_registry.host}/team/app:v1", expect=2)
    assert "the parts are of several images: web, tool\n  try: select one by --image" in refused.stderr
    for image, name in (("web", "team/app:v1"), ("tool", "team/tool:v1")):
        assert plain_registry.digest(name) == ""
        merged = project.json("merge-multiarch", parts, f"--image={image}")
        assert plain_registry.digest(name) == merged["digest"]
        assert {row["stdout"] for row in merged["run"]["results"]} == {f"this is {image}\n"}


def test_password_is_not_an_argument() -> None:
    lines = [line for path in PIPELINES for line in path.read_text().splitlines() if LOGIN in line]
    assert len(lines) == 3
    for line in lines:
        assert "printf %s " in line  # a shell builtin, so no process has the password as an argument
        options = line.partition(LOGIN)[2].split()
        assert "--password-stdin" in options
        assert not {"-p", "--password"} & set(options)
