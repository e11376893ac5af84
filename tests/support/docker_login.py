"""The config.json that ``docker login`` writes."""

from __future__ import annotations

import base64
import json
from pathlib import Path

AUTH = base64.b64encode(b"me:secret").decode()


def write_login(folder: Path, host: str, **entry: str) -> None:
    """Write credentials for a host: the user ``me`` with a password, or the given keys."""
    document = {"auths": {host: entry or {"auth": AUTH}}}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
