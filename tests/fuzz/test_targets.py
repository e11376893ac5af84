"""Fuzz each reader with thousands of cases, and check with planted bugs that the harness finds failures."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.fuzz.campaign import Campaign, fuzz_target
from tests.fuzz.targets import TARGETS

RUNS = 50_000
PLANTED = {
    "raises": "KeyError",
    "computes": "CaseTimeout",
    "hangs": "",
    "allocates": "MemoryError",
    "wrong-result": "AssertionError",
    "wrong-error": "AssertionError",
}

_LARGE_CASE = 10_000  # bytes
_FEWER_RUNS = 250  # as many with cases that are larger: they would take a quarter of an hour

Campaigns = dict[str, Future[Campaign]]


def count_runs(target: str) -> int:
    runs = TARGETS[target].runs
    return runs // _FEWER_RUNS if TARGETS[target].max_len > _LARGE_CASE else runs


@pytest.fixture(scope="module")
def campaigns(request: pytest.FixtureRequest) -> Iterator[Campaigns]:
    """Start a campaign for each selected target, one per processor at a time."""
    items = [item for item in request.session.items if "campaigns" in getattr(item, "fixturenames", ())]
    selected = {str(item.callspec.params["target"]) for item in items if isinstance(item, pytest.Function)}
    names = sorted(selected, key=lambda name: (name not in ("image", "elf"), name))  # the longest first
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        yield {name: pool.submit(fuzz_target, name, count_runs(name)) for name in names}


@pytest.mark.parametrize("target", TARGETS)
def test_fuzz_target(target: str, campaigns: Campaigns, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = campaigns[target].result()
    with capsys.disabled():
        sys.stdout.write(f"\n{campaign} ")
    assert campaign.ok, str(campaign)
    runs = count_runs(target)
    assert campaign.runs >= runs, str(campaign)
    # Both results must occur, or the cases did not test the reader.
    assert campaign.accepted >= runs // 100, str(campaign)
    assert campaign.refused >= runs // 100 or not TARGETS[target].allowed_errors, str(campaign)


@pytest.mark.parametrize("driver", ["auto", "mutations"])
@pytest.mark.parametrize("planted", PLANTED)
def test_planted_bug_is_found(planted: str, driver: str) -> None:
    campaign = fuzz_target(planted, 20_000, driver=driver, table="tests.fuzz.planted")
    assert not campaign.ok
    assert PLANTED[planted] in campaign.output
    assert ast.literal_eval(campaign.reproducer)[:1] == b"k"
    assert campaign.reproducer in str(campaign)


@pytest.mark.parametrize("driver", ["auto", "mutations"])
def test_correct_reader_passes(driver: str) -> None:
    campaign = fuzz_target("correct", 3_000, driver=driver, table="tests.fuzz.planted")
    assert campaign.ok, str(campaign)
    assert (campaign.runs, campaign.accepted, campaign.refused) == (3_000, 3_000, 0)


def test_fallback_without_atheris() -> None:
    campaign = fuzz_target("digest", RUNS, driver="mutations")
    assert campaign.ok, str(campaign)
    assert (campaign.runs, campaign.driver) == (RUNS, "mutations")
    assert "atheris is not installed" in campaign.output
    assert campaign.accepted
    assert campaign.refused
