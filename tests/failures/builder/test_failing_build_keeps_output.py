from __future__ import annotations

from buildkit_tasks.host.engine import Engine
from tests.conftest import Unchanged
from tests.support.project import Project, program


def test_failing_build_keeps_output(engine: Engine, project: Project, unchanged: Unchanged) -> None:
    assert engine.version
    project.write({"hello-amd64": program("linux/amd64"), "Dockerfile": "FROM scratch\nCOPY hello-amd64 /\n"})
    options = ("--platform=linux/amd64", "-t", "good:1", "-o", "type=oci,dest=dist/good.tar")
    project.task("build-multiarch", *options)
    good = (project.folder / "dist/good.tar").read_bytes()
    project.write({"Dockerfile": 'FROM scratch\nCOPY hello-amd64 /\nRUN ["/no-such-program"]\n'})
    with unchanged():
        done = project.task("build-multiarch", *options, expect=1)
    assert "/no-such-program" in done.stderr
    assert (project.folder / "dist/good.tar").read_bytes() == good
    assert [path.name for path in (project.folder / "dist").iterdir()] == ["good.tar"]
