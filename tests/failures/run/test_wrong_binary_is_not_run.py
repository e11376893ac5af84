from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client
from tests.conftest import Unchanged
from tests.integration.test_runs import image
from tests.support.project import Project, program


@contextlib.contextmanager
def _events(engine: Engine) -> Iterator[list[dict[str, Any]]]:
    """What the engine says happens to containers meanwhile."""
    client = connect_client(engine)
    seen: list[dict[str, Any]] = []
    stream = client.events(decode=True, filters={"type": "container"})
    thread = threading.Thread(target=lambda: seen.extend(stream))
    thread.start()
    try:
        yield seen
    finally:
        stream.close()
        thread.join(10)
        client.close()


def test_no_guest_is_started_for_a_program_of_another_architecture(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    name = image(project, ("linux/arm64", program("linux/amd64")))
    with unchanged(), _events(engine) as seen:
        report = project.json("run-emulated", name, "--runner=docker", expect=1)
    (row,) = report["results"]
    assert row["outcome"] == "wrong-arch"
    assert row["message"].startswith("linux/arm64: /main is made for amd64, not for arm64")
    actions = {event["Action"] for event in seen}
    assert "create" in actions  # the events were heard
    assert "start" not in actions
