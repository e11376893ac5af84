from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.engine.nodes import TemporaryBuilder, temporary_builder


@pytest.fixture
def builder(engine: Engine, buildkit_image: str) -> Iterator[TemporaryBuilder]:
    """A builder that a test may break."""
    with temporary_builder(engine, buildkit_image) as builder:
        yield builder
