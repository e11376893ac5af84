from __future__ import annotations

import pytest

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.oci import write_program_image
from tests.support.project import ILLEGAL_INSTRUCTION, Project, program


@pytest.mark.parametrize("runner", ["docker", "sandbox"])
@pytest.mark.parametrize("platform", ["linux/arm64", "linux/riscv64"])
def test_illegal_instruction(
    engine: Engine, project: Project, unchanged: Unchanged, platform: str, runner: str
) -> None:
    assert engine.version
    name = write_program_image(project.folder, (platform, program(platform, code=ILLEGAL_INSTRUCTION)))
    with unchanged():
        done = project.task("run-emulated", "--json", name, f"--runner={runner}", expect=1)
    (result,) = done.document["results"]
    assert (result["outcome"], result["exit_code"], result["emulated"]) == ("illegal-instruction", 132, True)


@pytest.mark.parametrize("runner", ["docker", "sandbox"])
def test_segmentation_fault(engine: Engine, project: Project, unchanged: Unchanged, runner: str) -> None:
    assert engine.version
    # mov x0, #0; ldr x0, [x0]
    name = write_program_image(
        project.folder, ("linux/arm64", program("linux/arm64", code="00 00 80 d2  00 00 40 f9"))
    )
    with unchanged():
        done = project.task("run-emulated", "--json", name, f"--runner={runner}", expect=1)
    (result,) = done.document["results"]
    assert (result["outcome"], result["exit_code"]) == ("failed", 139)
