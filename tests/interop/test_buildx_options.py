"""The documented options of buildx are those of its newest version."""

from __future__ import annotations

import pytest

from tests.interop.conftest import require_tool
from tests.support.buildx_options import buildx_options, documented_options
from tests.support.go_tools import buildx_tool

pytestmark = pytest.mark.timeout(1800)  # buildx may have to be compiled first


@pytest.mark.parametrize("command", ["build", "bake"])
def test_options_of_newest_buildx(command: str) -> None:
    program = require_tool(buildx_tool("latest"))
    assert buildx_options([str(program)], command) == documented_options(command).keys()
