from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.private import _private_network
from buildkit_tasks.host.engine.private_paths import PrivateEnginePaths
from buildkit_tasks.system.command import SubprocessRunner

BRIDGES = 4


def test_concurrent_engines_have_own_subnets(engine: Engine) -> None:
    if engine.kind != "private":
        pytest.skip("the engine is not a private one")
    cache, commands = cache_folder(load_settings()), SubprocessRunner()
    paths = [PrivateEnginePaths(cache, f"bridge-{number}") for number in range(BRIDGES)]
    networks = [_private_network(each, commands) for each in paths]
    try:
        with ThreadPoolExecutor(max_workers=BRIDGES) as pool:
            list(pool.map(lambda network: network.create(), networks))
        assert len({network._read_subnet() for network in networks}) == BRIDGES
    finally:
        for network in networks:
            network.remove()
