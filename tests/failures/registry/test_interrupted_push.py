from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.oci import MemoryImage, hello, write_archive
from tests.support.project import TASKS, Project
from tests.support.registry.fake import FakeRegistry, Reply, fake_registry
from tests.support.waiting import wait_until

STEPS = ("/v2/", "POST *", "PUT /upload/*", "PUT */manifests/sha256*", "PUT */manifests/v1")


@pytest.fixture
def server() -> Iterator[FakeRegistry]:
    with fake_registry() as server:
        yield server


def interrupt_push(
    project: Project, server: FakeRegistry, step: str, signal_number: signal.Signals, *options: str
) -> tuple[int, str]:
    """Push an archive to a registry that stops answering at a step, and interrupt the push there.

    Return its exit status and standard error.
    """
    archive = write_archive(hello(["linux/s390x"]), project.folder / "new.tar")
    server.answer_always(step, Reply(silent=True, unread=10 if step.startswith("PUT /upload") else None))
    argv = [*TASKS, "push-multiarch", str(archive), f"--tag={server.host}/team/app:v1", *options]
    with project.start(argv) as child:
        wait_until(lambda: server.requests(step) or child.poll() is not None)
        child.send_signal(signal_number)
        _, stderr = child.communicate()
    assert server.requests(step), stderr
    assert not server.has_closed_silent  # the push ended while it waited for the response
    return child.returncode, stderr


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
    code, stderr = interrupt_push(
        project.with_env(HOME=str(project.folder)), server, step, signal_number, "--no-verify"
    )
    assert code == 130
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    assert server.tag_digest("team/app:v1") == old


def test_interrupted_tag(project: Project, server: FakeRegistry) -> None:
    tag_old_image(server)
    _, stderr = interrupt_push(
        project.with_env(HOME=str(project.folder)),
        server,
        "PUT */manifests/v1",
        signal.SIGINT,
        "--no-verify",
        f"--tag={server.host}/team/app:v2",
    )
    host = server.host
    assert f"not known whether moved: {host}/team/app:v1; not moved: {host}/team/app:v2" in stderr


def test_no_leftovers(project: Project, server: FakeRegistry, tmp_path: Path) -> None:
    interrupt_push(
        project.with_env(HOME=str(project.folder)), server, "PUT /upload/*", signal.SIGINT, "--no-verify"
    )
    assert list((tmp_path / "tmp").iterdir()) == []
