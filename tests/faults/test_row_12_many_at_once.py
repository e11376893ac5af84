from __future__ import annotations

import json

from buildkit_tasks.engine import Engine
from tests.conftest import Unchanged
from tests.project import TASKS, Project

MANY = 16


def test_sixteen_setups_at_once_all_succeed_with_one_builder(
    engine: Engine, project: Project, unchanged: Unchanged
) -> None:
    assert engine.version
    project.json("setup-builder", "--platform=linux/arm64")  # so that the census has its builder
    with unchanged():
        argv = [*TASKS, "setup-builder", "--json", "--platform=linux/arm64"]
        children = [project.start(argv) for _ in range(MANY)]
        ended = [(child.communicate(timeout=180), child.returncode) for child in children]
    assert [code for _, code in ended] == [0] * MANY, ended
    documents = [json.loads(stdout) for (stdout, _), _ in ended]
    assert {document["builder"]["name"] for document in documents} == {documents[0]["builder"]["name"]}
    assert all(document["ok"] for document in documents)
