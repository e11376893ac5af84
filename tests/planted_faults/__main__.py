"""Plant every fault and print the page: ``python -m tests.planted_faults > docs/planted-faults.md``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.planted_faults.bases import Parts
from tests.planted_faults.catalogue import ALL
from tests.planted_faults.planting import judge
from tests.planted_faults.table import page


def main() -> int:
    """Write the page to standard output and what is not as declared to standard error."""
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as folder:
        parts = Parts(folder=Path(folder))
        verdicts = [judge(one, parts) for one in ALL]
    sys.stdout.write(page(verdicts))
    wrong = [(verdict.fault.name, each) for verdict in verdicts for each in verdict.surprises]
    sys.stderr.writelines(f"{name}: {each}\n" for name, each in wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
