from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.project import Project

NODE = "--node=name=a,endpoint=tcp://127.0.0.1:1,platform=linux/amd64"
RECORDS = ("", '{"Name": "mine", "Driver": "remote", "Nodes": [', "[]", '{"Name": "mine"}', "\0" * 100)


@pytest.mark.parametrize("record", RECORDS, ids=["empty", "truncated", "list", "no nodes", "zeros"])
@pytest.mark.parametrize("task", ["setup-builder", "build-multiarch"])
def test_damaged_record(project: Project, task: str, record: str) -> None:
    store = project.folder.parent / "buildx"
    path = store / "instances/mine"
    path.parent.mkdir(parents=True)
    path.write_text(record, encoding="utf-8")
    settings = f'[tool.buildkit-tasks]\ndriver = "remote"\nname = "mine"\nnodes = ["{NODE[7:]}"]\n'
    project.write({"pyproject.toml": settings, "Dockerfile": "FROM scratch\n"})
    done = project.with_env(BUILDX_CONFIG=str(store)).task(task, expect=3)
    assert str(path) in done.stderr
    assert "try: " in done.stderr
    assert path.read_text(encoding="utf-8") == record
    assert list(Path(store, "instances").iterdir()) == [path]
