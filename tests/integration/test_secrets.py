"""A secret that a step reads is in nothing that a build leaves behind or says."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import uuid
from pathlib import Path

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.project import CompletedCommand, Project

DOCKERFILE = """\
FROM alpine:latest
RUN --mount=type=secret,id=token sha256sum < /run/secrets/token > /sum
CMD ["cat", "/sum"]
"""


@pytest.fixture
def secret() -> str:
    return f"hunter2-{uuid.uuid4().hex}"


@pytest.fixture
def project_with_secret(engine: Engine, project: Project) -> Project:
    assert engine.version
    return project.write({"Dockerfile": DOCKERFILE}).with_env(
        INVOKE_BUILDKIT_PLATFORMS="linux/amd64,linux/arm64"
    )


def everything(folder: Path, done: CompletedCommand) -> dict[str, bytes]:
    """All that was said and written: output, files, the blobs of archives, the contents of layers."""
    found = {"stdout": done.stdout.encode(), "stderr": done.stderr.encode()}
    for path in folder.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
        if path.suffix == ".tar":
            found |= _blobs(path)
    return found


def _blobs(path: Path) -> dict[str, bytes]:
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member)
            data = stream.read() if stream else b""
            found[member.name] = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    return found


def holding(found: dict[str, bytes], text: str) -> list[str]:
    return [name for name, data in found.items() if text.encode() in data]


@pytest.mark.parametrize("how", ["env", "src"])
def test_secret_leaves_no_trace(
    project_with_secret: Project, builders: tuple[str, ...], secret: str, how: str, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text(secret, encoding="utf-8")
    place = "env=THE_TOKEN" if how == "env" else f"src={tmp_path / 'outside'}"
    done = project_with_secret.with_env(THE_TOKEN=secret).task(
        "build-multiarch",
        f"--secret=id=token,{place}",
        "-o=type=oci,dest=out.tar",
        "--provenance=mode=max",
        "--metadata-file=metadata.json",
        "--report=report.json",
        "--report=report.md",
        "--progress=plain",
        "--no-cache",
        *builders,
    )
    (tmp_path / "outside").unlink()
    found = everything(tmp_path, done)
    names = {Path(name).name for name in found}
    assert {"metadata.json", "report.json", "report.md", "out.tar", "index.json"} <= names
    assert holding(found, hashlib.sha256(secret.encode()).hexdigest())  # it was there while the step ran
    assert holding(found, secret) == []


def test_secret_not_in_dry_run(project_with_secret: Project, secret: str) -> None:
    shown = project_with_secret.with_env(THE_TOKEN=secret).task(
        "build-multiarch", "--dry-run", "--secret=id=token,env=THE_TOKEN", "-o=type=oci,dest=out.tar"
    )
    assert "--secret=id=token,env=THE_TOKEN" in shown.stdout
    assert secret not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    ("options", "said"),
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
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_bad_secrets_are_refused(
    project_with_secret: Project, secret: str, options: list[str], said: str, more: list[str]
) -> None:
    given = [option.replace("SECRET", secret) for option in options]
    refused = project_with_secret.with_env(SSH_AUTH_SOCK="").task(
        "build-multiarch", *given, *more, "-o=type=oci,dest=out.tar", expect=2
    )
    assert said in refused.stderr
    assert secret not in refused.stdout + refused.stderr
    assert not (project_with_secret.folder / "out.tar").exists()


def test_unused_secret(project_with_secret: Project, secret: str) -> None:
    options = ("--reproducible", "-o=type=oci,dest=out.tar")
    digests = {
        project_with_secret.with_env(OTHER=secret).json("build-multiarch", *options, *more)["digest"]
        for more in ((), ("--secret=id=other,env=OTHER",))
    }
    assert len(digests) == 1
