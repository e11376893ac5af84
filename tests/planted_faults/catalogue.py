"""All faults, in the order of the table."""

from __future__ import annotations

from tests.planted_faults import binary_faults, blob_faults, config_faults, index_faults, start_faults
from tests.planted_faults.planting import DECLARED

_MODULES = [
    module.__name__ for module in (index_faults, config_faults, binary_faults, start_faults, blob_faults)
]
ALL = sorted(DECLARED, key=lambda fault: _MODULES.index(fault.plant.__module__))
FAULTS = [fault for fault in ALL if fault.expected]
VALID_IMAGES = [fault for fault in ALL if not fault.expected]
