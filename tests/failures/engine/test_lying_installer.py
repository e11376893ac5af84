from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client, inspect_image
from tests.conftest import Unchanged
from tests.failures import private_binfmt as own_table
from tests.failures.private_binfmt import ARM64
from tests.support.project import Project, program

INSTALLER = "tonistiigi/binfmt"
SETUP = ("setup-builder", "--json", f"--platform={ARM64}", "--emulators=image")


@pytest.fixture
def installer(engine: Engine, project: Project, request: pytest.FixtureRequest) -> Iterator[int]:
    """An image under the installer's name that ends with a status and registers nothing."""
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


@pytest.mark.usefixtures("own_table")
@pytest.mark.parametrize("installer", [0, 1], indirect=True)
def test_row_9_the_probe_decides_and_not_the_installers_status(
    engine: Engine, project: Project, unchanged: Unchanged, installer: int
) -> None:
    assert engine.version
    with unchanged():
        ended = own_table.run(project, *SETUP)
    row = json.loads(ended.done.stdout)["platforms"][0]
    assert ended.done.code == 3
    assert not row["runs"]
    assert "no emulator is registered" in row["message"]
    assert ended.table == {}
    assert ("tonistiigi/binfmt: " in ended.done.stderr) == bool(installer)
