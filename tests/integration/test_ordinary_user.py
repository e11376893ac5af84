"""All tasks as an ordinary user, after root has started an engine and registered emulators.

The emulators are in root's cache, where this user cannot look.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from buildkit_tasks.host.engine import Engine
from tests.integration.registry_server import RegistryServer
from tests.support.nobody import Nobody, create_nobody
from tests.support.project import program
from tests.support.users import NOBODY, needs_root

AMD64, ARM64 = PLATFORMS = ("linux/amd64", "linux/arm64")
DOCKERFILE = """\
FROM scratch
ARG TARGETARCH
COPY $TARGETARCH /main
CMD ["/main"]
"""

pytestmark = needs_root


@pytest.fixture(scope="module")
def stranger(engine: Engine) -> Iterator[Nobody]:
    """A user whom the engine refuses."""
    with create_nobody() as user:
        for platform in PLATFORMS:
            path = user.home / platform.partition("/")[2]
            path.write_bytes(program(platform))
            path.chmod(0o755)
        (user.home / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
        yield user.with_engine(urlsplit(engine.endpoint).path)


@pytest.fixture
def nobody(stranger: Nobody) -> Iterator[Nobody]:
    """A user who may use the engine."""
    owner = os.stat(stranger.socket).st_uid  # noqa: PTH116 - a socket's path
    os.chown(stranger.socket, NOBODY, -1)
    yield stranger
    os.chown(stranger.socket, owner, -1)


def test_refused(stranger: Nobody) -> None:
    """A daemon that refuses is told apart from one that is not there, and nothing is fetched."""
    for task in ("setup-builder", "build-multiarch", "arch-matrix", "run-emulated docker-daemon:a:1"):
        done = stranger.task(*task.split(), expect=3)
        output = done.stdout + done.stderr  # arch-matrix has it in its report
        assert f"permission denied: the Docker daemon at {stranger.endpoint}" in output
        assert "fetching" not in output
        assert "try: " in output
    report = json.loads(stranger.task("doctor", "--json", expect=3).stdout)
    assert report["findings"][0]["name"] == "engine"
    assert "permission denied" in report["findings"][0]["message"]
    assert not (stranger.home / ".cache/buildkit-tasks/debian").exists()


def test_setup(nobody: Nobody) -> None:
    report = nobody.task("setup-builder", "--json").document
    assert [(row["platform"], row["runs"]) for row in report["platforms"]] == [(AMD64, True), (ARM64, True)]
    report = nobody.task("doctor", "--json").document
    assert all(finding["ok"] for finding in report["findings"])


def test_build_verify_and_run(nobody: Nobody) -> None:
    nobody.task("build-multiarch")
    nobody.task("verify-arch", f"--platform={','.join(PLATFORMS)}")
    for runner in ("sandbox", "docker"):
        report = nobody.task("run-emulated", "--json", f"--runner={runner}").document
        assert [(row["platform"], row["outcome"], row["runner"]) for row in report["results"]] == [
            (platform, "passed", runner) for platform in PLATFORMS
        ]


def test_matrix(nobody: Nobody) -> None:
    report = nobody.task("arch-matrix", "--json").document
    assert report["ok"]


def test_release(nobody: Nobody, plain_registry: RegistryServer) -> None:
    name = f"{plain_registry.host}/app"
    nobody.task("build-multiarch", "-o", "type=oci,dest=app.tar")
    nobody.task("push-multiarch", "app.tar", "-t", f"{name}:1")
    verified = nobody.task("verify-arch", f"docker://{name}:1", "--json").document
    parts = [f"--part={name}@{row['digest']}" for row in verified["platforms"]]
    nobody.task("merge-multiarch", *parts, "-t", f"{name}:2")
    assert plain_registry.digest("app:2")


def test_removal(nobody: Nobody, engine: Engine) -> None:
    nobody.task("remove-builder")
    nobody.task("stop-engine")
    assert engine.version
    assert nobody.task("setup-builder", "--json").document["ok"]  # the engine and the emulators are root's


@pytest.mark.parametrize(
    ("home", "variable"),
    [("/nonexistent", "BUILDX_CONFIG"), ("/root", "DOCKER_CONFIG")],
    ids=["missing", "closed"],
)
def test_home(nobody: Nobody, home: str, variable: str) -> None:
    """Tasks that need the cache say how to place it; with the hints all of them work."""
    homeless = nobody.with_env(HOME=home)
    archive = nobody.home / "app.tar"
    nobody.task("build-multiarch", "-o", f"type=oci,dest={archive}")
    homeless.task("verify-arch", str(archive))
    for task in ("setup-builder", "build-multiarch", "arch-matrix", f"run-emulated {archive}"):
        done = homeless.task(*shlex.split(task), expect=3)
        output = done.stdout + done.stderr
        assert f"the cache cannot be written: {home}" in output
        assert "XDG_CACHE_HOME, or the key `cache`" in output
        assert 'try: export XDG_CACHE_HOME="$(mktemp -d)"' in output
    names = [each["name"] for each in homeless.task("doctor", "--json", expect=3).document["findings"]]
    assert names[0] == "cache"
    assert {"sandbox", *PLATFORMS} < set(names)

    cached = homeless.with_env(XDG_CACHE_HOME=str(nobody.home / ".cache"))
    done = cached.task("build-multiarch", expect=3)
    assert f'try: export {variable}="$(mktemp -d)"' in done.stderr
    cached.with_env(**{variable: str(nobody.home / "docker")}).task("arch-matrix")


def test_cache_of_root(nobody: Nobody) -> None:
    """After `sudo` with the user's HOME, files in the user's cache are root's."""
    cache = nobody.home / "cache"
    owned = nobody.with_env(XDG_CACHE_HOME=str(cache))
    for name in ("roots", "last"):
        folder: Path = cache / "buildkit-tasks" / name
        folder.mkdir(parents=True)
        folder.chmod(0o700)
    os.chown(cache / "buildkit-tasks", NOBODY, NOBODY)
    for task in ("build-multiarch", f"run-emulated {nobody.home / 'app.tar'}"):
        done = owned.task(*task.split(), expect=3)
        assert f"{cache}/buildkit-tasks/" in done.stderr
        assert "Permission denied" in done.stderr
