"""Record what an engine does with containers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.host.engine.sdk import connect_client


@contextlib.contextmanager
def record_container_events(engine: Engine) -> Iterator[list[dict[str, Any]]]:
    """Yield a list to which the engine's container events are added."""
    client = connect_client(engine)
    events: list[dict[str, Any]] = []
    stream = client.events(decode=True, filters={"type": "container"})
    thread = threading.Thread(target=lambda: events.extend(stream))
    thread.start()
    try:
        yield events
    finally:
        stream.close()
        thread.join(10)
        client.close()
