"""Every lie, in the order of the table."""

from __future__ import annotations

from tests.lies import of_the_binaries, of_the_blobs, of_the_config, of_the_index, of_the_start
from tests.lies.planting import ENTERED

_ROOMS = [
    each.__name__ for each in (of_the_index, of_the_config, of_the_binaries, of_the_start, of_the_blobs)
]
ALL = sorted(ENTERED, key=lambda one: _ROOMS.index(one.plant.__module__))
LIES = [one for one in ALL if one.catches]
TRUTHS = [one for one in ALL if not one.catches]
