from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.unpacking import IS_ROOT, NOBODY, open_fds, remove_path


@pytest.fixture(autouse=True)
def _no_leaked_fds() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() <= before


@pytest.fixture
def nobody_dir() -> Iterator[Path]:
    """Yield a directory that every user can access, owned by ``nobody`` if the tests run as root."""
    directory = Path(tempfile.mkdtemp(prefix="unpack-"))
    if IS_ROOT:
        os.chown(directory, NOBODY, NOBODY)
    yield directory
    remove_path(directory)
