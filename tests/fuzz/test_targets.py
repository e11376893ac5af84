"""Every reader of foreign bytes meets 50,000 hostile cases; and the meter is proved to measure."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.fuzz.campaign import Campaign, fuzz
from tests.fuzz.targets import TARGETS

RUNS = 50_000
PLANTED = {
    "raises": "KeyError",
    "sleeps": "TooSlow",
    "hangs": "",
    "allocates": "MemoryError",
    "lies": "AssertionError",
    "refuses": "AssertionError",
}

Campaigns = dict[str, Future[Campaign]]


@pytest.fixture(scope="module")
def campaigns(request: pytest.FixtureRequest) -> Iterator[Campaigns]:
    """A campaign for each target that was asked for, as many at once as there are processors."""
    items = [item for item in request.session.items if "campaigns" in getattr(item, "fixturenames", ())]
    asked = {str(item.callspec.params["target"]) for item in items if isinstance(item, pytest.Function)}
    names = sorted(asked, key=lambda name: (name not in ("image", "elf"), name))  # the longest first
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield {name: pool.submit(fuzz, name, RUNS) for name in names}


@pytest.mark.parametrize("target", TARGETS)
def test_target_survives(target: str, campaigns: Campaigns, capsys: pytest.CaptureFixture[str]) -> None:
    done = campaigns[target].result()
    with capsys.disabled():
        sys.stdout.write(f"\n{done} ")
    assert done.ok, str(done)
    assert done.runs >= RUNS, str(done)
    # A campaign that reads nothing, or that refuses nothing, has not tried both ways.
    assert done.accepted >= RUNS // 100, str(done)
    assert done.refused >= RUNS // 100 or target == "image", str(done)


@pytest.mark.parametrize("driver", ["auto", "mutations"])
@pytest.mark.parametrize("planted", PLANTED)
def test_planted_bug_is_caught(planted: str, driver: str) -> None:
    done = fuzz(planted, 20_000, driver=driver, table="tests.fuzz.planted")
    assert not done.ok
    assert PLANTED[planted] in done.output
    assert ast.literal_eval(done.reproducer)[:1] == b"k"
    assert done.reproducer in str(done)


@pytest.mark.parametrize("driver", ["auto", "mutations"])
def test_sound_reader_passes(driver: str) -> None:
    done = fuzz("sound", 3_000, driver=driver, table="tests.fuzz.planted")
    assert done.ok, str(done)
    assert (done.runs, done.accepted, done.refused) == (3_000, 3_000, 0)


def test_fallback_without_atheris() -> None:
    done = fuzz("digest", RUNS, driver="mutations")
    assert done.ok, str(done)
    assert (done.runs, done.driver) == (RUNS, "mutations")
    assert "atheris is not here" in done.output
    assert done.accepted
    assert done.refused
