from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client, inspect_image
from tests.conftest import Unchanged
from tests.failures import private_binfmt
from tests.failures.private_binfmt import ARM64
from tests.support.project import Project, program

INSTALLER = "tonistiigi/binfmt"
SETUP = ("setup-builder", "--json", f"--platform={ARM64}", "--emulators=image")


@pytest.fixture
def installer(engine: Engine, project: Project, request: pytest.FixtureRequest) -> Iterator[int]:
    """Load an image with the installer's name, which exits with a status and registers nothing."""
    client = connect_client(engine)
    if inspect_image(client, INSTALLER):
        client.close()
        pytest.skip(f"{INSTALLER} is in this engine already")
    status: int = request.param
    dockerfile = 'FROM scratch\nCOPY install /\nENTRYPOINT ["/install"]\n'
    project.write({"install": program("linux/amd64", status), "Dockerfile": dockerfile})
    project.task("build-multiarch", "--load", f"--tag={INSTALLER}:latest", "--platform=linux/amd64")
    yield status
    client.api.remove_image(INSTALLER, force=True)
    client.close()


@pytest.mark.usefixtures("binfmt_state")
@pytest.mark.parametrize("installer", [0, 1], indirect=True)
def test_installer_status_is_not_trusted(
    engine: Engine, project: Project, unchanged: Unchanged, installer: int
) -> None:
    assert engine.version
    with unchanged():
        result = private_binfmt.run(project, *SETUP)
    setup = json.loads(result.done.stdout)["platforms"][0]
    assert result.done.code == 3
    assert not setup["runs"]
    assert "no emulator is registered" in setup["message"]
    assert result.handlers == {}
    assert ("tonistiigi/binfmt: " in result.done.stderr) == bool(installer)
