from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.host.builder.native_platforms import NativePlatformStore


def test_what_was_noted_is_known_and_what_is_new_is_added(tmp_path: Path) -> None:
    natives = NativePlatformStore(folder=tmp_path / "deep/er")
    assert natives.read("m") == {}
    natives.save("m", {"a": "linux/amd64", "b": ""})
    natives.save("m", {"b": "linux/arm64"})
    assert natives.read("m") == {"a": "linux/amd64", "b": "linux/arm64"}
    assert natives.read("other") == {}


def test_a_machine_of_which_nothing_is_seen_keeps_its_note(tmp_path: Path) -> None:
    natives = NativePlatformStore(folder=tmp_path)
    natives.save("m", {"a": "linux/arm64"})
    natives.save("m", {"a": ""})
    assert natives.read("m") == {"a": "linux/arm64"}


def test_what_is_forgotten_is_gone_and_may_be_forgotten_twice(tmp_path: Path) -> None:
    natives = NativePlatformStore(folder=tmp_path)
    natives.save("m", {"a": "linux/arm64"})
    natives.remove("m")
    natives.remove("m")
    assert natives.read("m") == {}
    assert not tmp_path.exists()


def test_two_stores_of_buildx_have_notes_of_their_own(tmp_path: Path) -> None:
    one, two = (NativePlatformStore.for_store(tmp_path / name, tmp_path / "cache") for name in ("one", "two"))
    one.save("m", {"a": "linux/arm64"})
    assert two.read("m") == {}
    assert NativePlatformStore.for_store(tmp_path / "one", tmp_path / "cache").read("m") == {
        "a": "linux/arm64"
    }


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{"])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text, encoding="utf-8")
    assert NativePlatformStore(folder=tmp_path).read("m") == {}
