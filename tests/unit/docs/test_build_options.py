"""The tables of buildx's options name the options of the tasks."""

from __future__ import annotations

import pytest

from buildkit_tasks.cli.options import BUILD_OPTIONS, CALL_OPTIONS, COMMON_OPTIONS
from buildkit_tasks.tasks import build_multiarch
from tests.support.buildx_options import documented_options

# Options of builds that buildx does not have, or has for bake only.
OWN_OPTIONS = {"--context", "--fallback", "--bases", "--no-attest", "--reproducible"}
NAMES_IN_BAKE = {"--file": "--bake"}
OF_INVOKE = {"--help"}


def test_build_options_are_those_of_the_task() -> None:
    taken = {name for name, is_taken in documented_options("build").items() if is_taken}
    declared = {option.flag for option in (*BUILD_OPTIONS, *CALL_OPTIONS)} | {"--platform"}
    assert taken - OF_INVOKE == declared - OWN_OPTIONS


def test_bake_options_are_those_of_the_task() -> None:
    taken = {name for name, is_taken in documented_options("bake").items() if is_taken}
    task_options = {option.flag for option in build_multiarch.options.values()}
    assert {NAMES_IN_BAKE.get(name, name) for name in taken - OF_INVOKE} <= task_options


@pytest.mark.parametrize("command", ["build", "bake"])
def test_refused_options_are_not_options(command: str) -> None:
    refused = {name for name, is_taken in documented_options(command).items() if not is_taken}
    own_meaning = {option.flag for option in COMMON_OPTIONS} | {"--jobs"}
    assert not (refused - own_meaning) & {option.flag for option in build_multiarch.options.values()}
