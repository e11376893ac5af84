"""Who can connect with the containers of private engines, and what their networks leave behind."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.users import needs_root

pytestmark = needs_root

OUTWARDS = {f"container-{container} > neighbour-{neighbour}" for container in "ab" for neighbour in "ab"}
ROUTED = {"neighbour-a > neighbour-b", "neighbour-b > neighbour-a"}


@pytest.fixture(scope="module", params=["0", "1"], ids=["no-router", "router"])
def outcome(request: pytest.FixtureRequest, engine: Engine) -> dict[str, Any]:
    """What two private networks do on a host that forwarded packets before, or did not."""
    if engine.kind != "private":
        pytest.skip("the engine is not a private one, so its packages may be missing")
    argv = ["unshare", "--mount", "--net", "--propagation", "private", sys.executable]
    done = subprocess.run(
        [*argv, "-m", "tests.failures.engine.private_networks", request.param],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "is_router": request.param == "1"}


def test_only_replies_reach_containers(outcome: dict[str, Any]) -> None:
    assert set(outcome["both"]) == OUTWARDS | (ROUTED if outcome["is_router"] else set())


def test_networks_are_independent(outcome: dict[str, Any]) -> None:
    assert outcome["one"] == ["container-b > neighbour-a"]


def test_bridges_have_no_ipv6(outcome: dict[str, Any]) -> None:
    assert outcome["disable_ipv6"] == "1"


def test_last_network_restores_host(outcome: dict[str, Any]) -> None:
    assert outcome["left"] == {}
