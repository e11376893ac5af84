"""Every fault, in the order of the table."""

from __future__ import annotations

from tests.planted_faults import binary_faults as of_the_binaries
from tests.planted_faults import blob_faults as of_the_blobs
from tests.planted_faults import config_faults as of_the_config
from tests.planted_faults import index_faults as of_the_index
from tests.planted_faults import start_faults as of_the_start
from tests.planted_faults.planting import DECLARED

_ROOMS = [
    each.__name__ for each in (of_the_index, of_the_config, of_the_binaries, of_the_start, of_the_blobs)
]
ALL = sorted(DECLARED, key=lambda one: _ROOMS.index(one.plant.__module__))
FAULTS = [one for one in ALL if one.catches]
SOUND_IMAGES = [one for one in ALL if not one.catches]
