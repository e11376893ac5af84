from __future__ import annotations

from typing import TYPE_CHECKING

import buildkit_tasks as bt

if TYPE_CHECKING:
    import pytest

    from tests.sandbox.conftest import BusyboxImage


def test_verify_and_run(
    busybox_image: BusyboxImage, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "buildkit_tasks")
    image = busybox_image("linux/amd64", "linux/arm64")
    capfd.readouterr()
    settings = bt.load_settings({"runner": "sandbox"})
    platforms: list[str | bt.Platform] = [bt.Platform.parse("amd64"), "linux/arm64"]
    assert bt.verify(image, platforms=platforms, settings=settings).ok
    results: list[bt.RunResult] = []
    report = bt.run(
        image,
        platforms=platforms,
        command="uname -m",
        expect="{machine}",
        settings=settings,
        on_result=results.append,
    )
    assert report.ok, report
    assert [result.stdout for result in report.results] == ["x86_64\n", "aarch64\n"]
    assert sorted(results, key=report.results.index) == list(report.results)
    assert bt.run(image, platforms="linux/386", settings=settings).ok is False
    assert capfd.readouterr() == ("", "")
