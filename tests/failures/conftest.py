from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from tests.failures.private_binfmt import require_private_binfmt


@pytest.fixture
def binfmt_state() -> Iterator[None]:
    """Restore the file of registered handlers, because those in a private binfmt_misc are gone."""
    require_private_binfmt()
    path = cache_folder(load_settings()) / "binfmt.json"
    state = path.read_bytes() if path.exists() else None
    yield
    if state is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(state)
