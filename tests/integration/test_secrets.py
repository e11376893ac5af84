"""Secrets of a build: their values are in none of its output, files and layers."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import uuid
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.project import Project
from tests.support.task_server import CompletedCommand

DOCKERFILE = """\
FROM alpine:latest
RUN --mount=type=secret,id=token sha256sum < /run/secrets/token > /sum
CMD ["cat", "/sum"]
"""


@pytest.fixture
def secret() -> str:
    return f"hunter2-{uuid.uuid4().hex}"


@pytest.fixture
def project(engine: Engine, project: Project) -> Project:
    assert engine.version
    return project.write({"Dockerfile": DOCKERFILE}).with_env(
        INVOKE_BUILDKIT_PLATFORMS="linux/amd64,linux/arm64"
    )


def read_all(folder: Path, done: CompletedCommand) -> dict[str, bytes]:
    """Return the output of a command, all files of a directory, and the members of archives, unpacked."""
    contents = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    for path in folder.rglob("*"):
        if path.is_file():
            contents[str(path)] = path.read_bytes()
        if path.suffix == ".tar":
            contents |= _read_members(path)
    return contents


def _read_members(path: Path) -> dict[str, bytes]:
    contents = {}
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            data = stream.read() if stream else b""
            contents[member.name] = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    return contents


def find_text(contents: dict[str, bytes], text: str) -> list[str]:
    return [name for name, data in contents.items() if text.encode() in data]


@pytest.mark.parametrize("source", ["env", "src"])
def test_secret_leaves_no_trace(
    project: Project, builder_options: tuple[str, ...], secret: str, source: str, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text(secret, encoding="utf-8")
    value = "env=THE_TOKEN" if source == "env" else f"src={tmp_path / 'outside'}"
    done = project.with_env(THE_TOKEN=secret).task(
        "build-multiarch",
        f"--secret=id=token,{value}",
        "-o=type=oci,dest=out.tar",
        "--provenance=mode=max",
        "--metadata-file=metadata.json",
        "--report=report.json",
        "--report=report.md",
        "--progress=plain",
        "--no-cache",
        *builder_options,
    )
    (tmp_path / "outside").unlink()
    contents = read_all(tmp_path, done)
    names = {Path(name).name for name in contents}
    assert {"metadata.json", "report.json", "report.md", "out.tar", "index.json"} <= names
    assert find_text(contents, hashlib.sha256(secret.encode()).hexdigest())  # the step had the secret
    assert find_text(contents, secret) == []


def test_secret_not_in_dry_run(project: Project, secret: str) -> None:
    dry_run = project.with_env(THE_TOKEN=secret).task(
        "build-multiarch", "--dry-run", "--secret=id=token,env=THE_TOKEN", "-o=type=oci,dest=out.tar"
    )
    assert "--secret=id=token,env=THE_TOKEN" in dry_run.stdout
    assert secret not in dry_run.stdout + dry_run.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--secret=id=token,env=NOT_SET"], "the variable NOT_SET is not set"),
        (["--secret=id=token,src=nowhere"], "there is no nowhere"),
        (["--secret=src=Dockerfile"], "has no id"),
        (["--ssh=default"], "no agent is running"),
        (["--build-arg=TOKEN=SECRET"], "build argument TOKEN looks like a secret"),
        (["--build-context=src=https://keeper:SECRET@127.0.0.1/x.git"], "https://***@127.0.0.1/x.git"),
        (["--context=https://SECRET@127.0.0.1/x.git"], "https://***@127.0.0.1/x.git"),
        (["--cache-to=keeper:SECRET@127.0.0.1:1/x"], "***@127.0.0.1:1/x"),
        (["--cache-from=type=registry,ref=keeper:SECRET@127.0.0.1:1/x"], "***@127.0.0.1:1/x"),
        (["--tag=keeper:SECRET@127.0.0.1:1/x"], "***@127.0.0.1:1/x"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_bad_secrets_are_refused(
    project: Project, secret: str, options: list[str], message: str, dry_run: list[str]
) -> None:
    args = [option.replace("SECRET", secret) for option in options]
    refused = project.with_env(SSH_AUTH_SOCK="").task(
        "build-multiarch", *args, *dry_run, "-o=type=oci,dest=out.tar", expect=2
    )
    assert message in refused.stderr
    assert secret not in refused.stdout + refused.stderr
    assert not (project.folder / "out.tar").exists()


def test_unused_secret(project: Project, secret: str) -> None:
    user = project.with_env(THE_TOKEN=secret, OTHER=secret)
    options = ("--secret=id=token,env=THE_TOKEN", "--reproducible", "-o=type=oci,dest=out.tar")
    digests = {
        user.json("build-multiarch", *options, *more)["digest"]
        for more in ((), ("--secret=id=other,env=OTHER",))
    }
    assert len(digests) == 1
