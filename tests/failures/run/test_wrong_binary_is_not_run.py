from __future__ import annotations

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.engine.events import record_container_events
from tests.support.oci import write_program_image
from tests.support.project import Project, program


def test_wrong_binary_is_not_started(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    name = write_program_image(project.folder, ("linux/arm64", program("linux/amd64")))
    with unchanged(), record_container_events(engine) as events:
        report = project.json("run-emulated", name, "--runner=docker", expect=1)
    (result,) = report["results"]
    assert result["outcome"] == "wrong-arch"
    assert result["message"].startswith("linux/arm64: /main is made for amd64, not for arm64")
    actions = {event["Action"] for event in events}
    assert "create" in actions  # events were received
    assert "start" not in actions
