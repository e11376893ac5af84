from __future__ import annotations

from pathlib import Path

import pytest

from buildkit_tasks.host.engine import forwarding

SETTINGS = {
    "conf/default/forwarding": "0",
    "conf/eth0/forwarding": "1",
    "conf/all/accept_redirects": "0",
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the settings of a host with the interface eth0 and forwarding off."""
    monkeypatch.setattr(forwarding, "_SETTINGS", tmp_path)
    monkeypatch.setattr(forwarding, "_INTERFACES", tmp_path / "interfaces")
    for path, value in {**SETTINGS, "conf/all/forwarding": "0", "ip_forward": "0"}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"{value}\n")
    return tmp_path


@pytest.mark.usefixtures("host")
def test_forwarding_is_enabled() -> None:
    assert not forwarding.is_forwarding()
    forwarding.enable_forwarding()
    assert forwarding.is_forwarding()


def test_settings_are_restored(host: Path) -> None:
    assert forwarding.read_settings() == SETTINGS
    for path in (*SETTINGS, "ip_forward"):
        (host / path).write_text("1")
    forwarding.restore_forwarding(SETTINGS)
    assert not forwarding.is_forwarding()
    assert forwarding.read_settings() == SETTINGS


@pytest.mark.parametrize(("bridge", "remains"), [("docker0", True), ("eth0", False)])
def test_new_bridge_keeps_forwarding(host: Path, bridge: str, *, remains: bool) -> None:
    (host / "interfaces" / bridge / "bridge").mkdir(parents=True)
    forwarding.enable_forwarding()
    forwarding.restore_forwarding(SETTINGS)
    assert forwarding.is_forwarding() is remains


def test_forwarding_that_is_off_stays(host: Path) -> None:
    (host / "conf/eth0/forwarding").write_text("0")
    forwarding.restore_forwarding(SETTINGS)
    assert (host / "conf/eth0/forwarding").read_text() == "0"
