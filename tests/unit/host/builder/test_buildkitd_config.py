from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from buildkit_tasks.config.settings import Settings, load_settings
from buildkit_tasks.errors import SettingsError
from buildkit_tasks.host.builder.buildkitd_config import render_buildkitd_toml


def render(**settings: Any) -> dict[str, Any]:
    return tomllib.loads(render_buildkitd_toml(Settings(**settings)))


def test_empty_without_settings() -> None:
    assert render_buildkitd_toml(Settings()) == ""


def test_parallelism_and_cache() -> None:
    assert render(parallelism=4, builder_cache=2000) == {
        "worker": {"oci": {"max-parallelism": 4, "gc": True, "maxUsedSpace": "2000MB"}}
    }
    assert render(parallelism=4) == {"worker": {"oci": {"max-parallelism": 4}}}


def test_mirrors_and_plain_http() -> None:
    config = render(
        mirrors=("https://mirror.example.org/hub/", "http://127.0.0.1:5001", "cache.example.org"),
        plain_http=("[::1]:5000", "registry.example.org"),
    )
    assert config["registry"] == {
        "docker.io": {"mirrors": ["mirror.example.org/hub", "127.0.0.1:5001", "cache.example.org"]},
        "127.0.0.1:5001": {"http": True},
        "[::1]:5000": {"http": True},
        "registry.example.org": {"http": True},
    }


def test_file_is_unchanged(tmp_path: Path) -> None:
    text = "# mine\n[worker.oci]\nmax-parallelism = 1\n"
    (tmp_path / "x.toml").write_text(text, encoding="utf-8")
    assert render_buildkitd_toml(Settings(buildkitd_config=str(tmp_path / "x.toml"))) == text


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"[worker", b"a = 1\na = 2\n"])
def test_invalid_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=str(path)):
        render_buildkitd_toml(Settings(buildkitd_config=str(path)))


def test_settings_conflict_with_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").touch()
    flags = {"buildkitd_config": str(tmp_path / "x.toml"), "parallelism": 2}
    with pytest.raises(SettingsError, match="parallelism cannot be combined with buildkitd-config"):
        render_buildkitd_toml(load_settings(flags, environ={}, folder=tmp_path))


@pytest.mark.parametrize("text", ["", "http://h", "h/p", 'a"]\n[x', "h:port", "h h", "h\n"])
def test_invalid_registry(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid registry"):
        render_buildkitd_toml(Settings(plain_http=(text,)))


@pytest.mark.parametrize("text", ["ftp://h", 'h"]\n[x', "h h", "https://", "https://user:pw@h"])
def test_invalid_mirror(text: str) -> None:
    with pytest.raises(SettingsError, match="is not a valid mirror"):
        render_buildkitd_toml(Settings(mirrors=(text,)))
