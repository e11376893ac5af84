from __future__ import annotations

from collections.abc import Iterator

import pytest

from buildkit_tasks.config.settings import cache_folder, load_settings
from tests.failures.private_binfmt import need_own_table


@pytest.fixture
def own_table() -> Iterator[None]:
    """What the product notes of handlers in a table of its own is forgotten with that table."""
    need_own_table()
    ledger = cache_folder(load_settings()) / "binfmt.json"
    noted = ledger.read_bytes() if ledger.exists() else None
    yield
    if noted is None:
        ledger.unlink(missing_ok=True)
    else:
        ledger.write_bytes(noted)
