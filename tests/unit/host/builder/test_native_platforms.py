from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.host.builder.native_platforms import NativePlatformStore


def test_save_adds_nodes(tmp_path: Path) -> None:
    natives = NativePlatformStore(folder=tmp_path / "deep/er")
    assert natives.read("m") == {}
    natives.save("m", {"a": "linux/amd64", "b": ""})
    natives.save("m", {"b": "linux/arm64"})
    assert natives.read("m") == {"a": "linux/amd64", "b": "linux/arm64"}
    assert natives.read("other") == {}


def test_unknown_platform_keeps_saved_one(tmp_path: Path) -> None:
    natives = NativePlatformStore(folder=tmp_path)
    natives.save("m", {"a": "linux/arm64"})
    natives.save("m", {"a": ""})
    assert natives.read("m") == {"a": "linux/arm64"}


def test_remove(tmp_path: Path) -> None:
    natives = NativePlatformStore(folder=tmp_path)
    natives.save("m", {"a": "linux/arm64"})
    natives.remove("m")
    natives.remove("m")
    assert natives.read("m") == {}
    assert not tmp_path.exists()


def test_stores_are_separate(tmp_path: Path) -> None:
    one, two = (NativePlatformStore.for_store(tmp_path / name, tmp_path / "cache") for name in ("one", "two"))
    one.save("m", {"a": "linux/arm64"})
    assert two.read("m") == {}
    assert NativePlatformStore.for_store(tmp_path / "one", tmp_path / "cache").read("m") == {
        "a": "linux/arm64"
    }


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{"])
def test_damaged_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    assert NativePlatformStore(folder=tmp_path).read("m") == {}
