from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.errors import BuilderError
from buildkit_tasks.host.builder.store import BuilderRecord, NodeRecord, read_record

# As buildx 0.29 writes it.
NODE: dict[str, Any] = {
    "Name": "a",
    "Endpoint": "tcp://127.0.0.1:1234",
    "Platforms": [
        {"architecture": "arm64", "os": "linux"},
        {"architecture": "arm", "os": "linux", "variant": "v7"},
    ],
    "DriverOpts": {"cacert": "/ca.pem"},
    "Flags": ["--allow-insecure-entitlement=network.host"],
    "Files": {"buildkitd.toml": base64.b64encode(b"debug = true\n").decode()},
}
BARE = {"Name": "b", "Endpoint": "x", "Platforms": None, "DriverOpts": None, "Flags": None, "Files": None}


def write(path: Path, *nodes: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"Name": "m", "Driver": "remote", "Nodes": nodes}), encoding="utf-8")
    return path


def test_read_record(tmp_path: Path) -> None:
    record = read_record(write(tmp_path / "m", NODE, BARE))
    assert record == BuilderRecord(
        driver="remote",
        nodes=(
            NodeRecord(
                name="a",
                endpoint="tcp://127.0.0.1:1234",
                platforms=("linux/arm64", "linux/arm/v7"),
                driver_opts={"cacert": "/ca.pem"},
                buildkitd_toml="debug = true\n",
                buildkitd_flags=("--allow-insecure-entitlement=network.host",),
            ),
            NodeRecord(name="b", endpoint="x"),
        ),
    )
    assert record.find_node("b") == NodeRecord(name="b", endpoint="x")
    assert record.find_node("c") is None


def test_missing_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "m") is None


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"Driver": "x", "Nodes": [{}]}', '{"Driver": "x", "Nodes": 3}', "\0\0"]
)
def test_damaged_record(tmp_path: Path, text: str) -> None:
    (tmp_path / "m").write_text(text, encoding="utf-8")
    with pytest.raises(BuilderError, match=str(tmp_path / "m")) as excinfo:
        read_record(tmp_path / "m")
    assert excinfo.value.hint


def test_record_is_directory(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with pytest.raises(BuilderError, match=str(tmp_path / "m")):
        read_record(tmp_path / "m")
