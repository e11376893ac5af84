from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.oci import MemoryImage, hello, write_archive
from tests.support.project import TASKS, CompletedCommand, Project
from tests.support.registry.fake import FakeRegistry, Reply, fake_registry

STEPS = ("/v2/", "POST *", "PUT /upload/*", "PUT */manifests/sha256*", "PUT */manifests/v1")


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with fake_registry() as server:
        yield server


def interrupt_push(
    project: Project, server: FakeRegistry, step: str, signal_number: signal.Signals, *options: str
) -> CompletedCommand:
    """Push an archive to a registry that stops answering at a step; interrupt the push there."""
    archive = write_archive(hello(["linux/s390x"]), project.folder / "new.tar")
    server.answer_always(step, Reply(silent=True, unread=10 if step.startswith("PUT /upload") else None))
    argv = [*TASKS, "push-multiarch", str(archive), f"--tag={server.host}/team/app:v1", *options]
    with project.start(argv) as child:
        deadline = time.monotonic() + 60
        while not server.requests(step):
            assert child.poll() is None, child.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        started = time.monotonic()
        child.send_signal(signal_number)
        stdout, stderr = child.communicate(timeout=60)
    return CompletedCommand(
        code=child.returncode, stdout=stdout, stderr=stderr, seconds=time.monotonic() - started
    )


def tag_old_image(server: FakeRegistry) -> str:
    """Point the tag to an older image; return its digest."""
    old: MemoryImage = hello(["linux/amd64"])
    root = old.root_descriptor()
    server.repository("team/app").content["manifests"]["v1"] = (root.media_type, old.blobs[str(root.digest)])
    return str(root.digest)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", STEPS)
def test_interrupted_push(
    project: Project, server: FakeRegistry, step: str, signal_number: signal.Signals
) -> None:
    old = tag_old_image(server)
    done = interrupt_push(
        project.with_env(HOME=str(project.folder)), server, step, signal_number, "--no-verify"
    )
    assert done.code == 130
    assert done.seconds < 10  # less than the read timeout of a minute
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr
    assert server.tag_digest("team/app:v1") == old


def test_interrupted_tag(project: Project, server: FakeRegistry) -> None:
    tag_old_image(server)
    done = interrupt_push(
        project.with_env(HOME=str(project.folder)),
        server,
        "PUT */manifests/v1",
        signal.SIGINT,
        "--no-verify",
        f"--tag={server.host}/team/app:v2",
    )
    host = server.host
    assert f"not known whether moved: {host}/team/app:v1; not moved: {host}/team/app:v2" in done.stderr


def test_no_leftovers(project: Project, server: FakeRegistry, tmp_path: Path) -> None:
    interrupt_push(
        project.with_env(HOME=str(project.folder)), server, "PUT /upload/*", signal.SIGINT, "--no-verify"
    )
    assert list((tmp_path / "tmp").iterdir()) == []
