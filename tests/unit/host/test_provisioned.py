"""Packages in the cache that are old: fetched again by setup-builder, told by doctor."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from buildkit_tasks.config.settings import Settings
from buildkit_tasks.errors import EngineError
from buildkit_tasks.host import provisioned
from buildkit_tasks.host.provisioned import find_old_packages, renew_old_packages
from tests.support.scripted import Scripted


@dataclass
class Cache:
    """A cache with packages, and what was fetched and printed."""

    folder: Path
    fetched: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def settings(self) -> Settings:
        return Settings(cache=str(self.folder))

    def add(self, name: str, *, days: float) -> Path:
        prefix = self.folder / "debian" / name
        prefix.mkdir(parents=True)
        (prefix / ".complete").touch()
        seconds = time.time() - days * 86_400
        os.utime(prefix / ".complete", (seconds, seconds))
        return prefix

    def renew(self) -> list[Path]:
        return renew_old_packages(self.settings, Scripted(), self.messages.append)

    def fetch(self, prefix: Path, *_: object) -> None:
        if self.failure:
            raise EngineError(self.failure)
        self.fetched.append(prefix.name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    cache = Cache(tmp_path)
    monkeypatch.setattr(provisioned, "renew_packages", cache.fetch)
    return cache


def test_nothing_is_old(cache: Cache) -> None:
    cache.add("qemu", days=29.5)
    cache.add("other", days=400)
    assert cache.renew() == []
    assert (cache.fetched, cache.messages) == ([], [])


def test_old_packages(cache: Cache) -> None:
    qemu, tools = cache.add("qemu", days=30.5), cache.add("tools", days=99.9)
    assert [(each.names, each.days) for each in find_old_packages(cache.settings)] == [
        ("docker-cli, docker-buildx", 99), ("qemu-user", 30)
    ]  # fmt: skip
    assert cache.renew() == [tools, qemu]
    assert cache.messages == [
        "docker-cli, docker-buildx in the cache are 99 days old: fetching them again",
        "qemu-user in the cache are 30 days old: fetching them again",
    ]


def test_mirror_is_unreachable(cache: Cache) -> None:
    cache.add("qemu", days=31)
    cache.failure = "the Debian mirror cannot be reached"
    assert cache.renew() == []
    assert cache.messages[1:] == ["they stay as they are: the Debian mirror cannot be reached"]


def test_packages_of_running_engine(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = cache.add("engine", days=31)
    monkeypatch.setattr(provisioned, "is_private_engine_running", lambda _: True)
    assert cache.renew() == []
    assert re.search(r"31 days old: `.*buildkit.tasks stop-engine --keep-state`, then `", cache.messages[0])
    monkeypatch.undo()
    monkeypatch.setattr(provisioned, "renew_packages", cache.fetch)
    assert cache.renew() == [prefix]
