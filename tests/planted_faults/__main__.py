"""Plant every fault and print the page: ``python -m tests.planted_faults > docs/planted-faults.md``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.planted_faults.bases import Samples
from tests.planted_faults.catalogue import ALL
from tests.planted_faults.planting import verify_fault
from tests.planted_faults.table import format_page


def main() -> int:
    """Write the page to standard output, and differences from the declarations to standard error."""
    with tempfile.TemporaryDirectory(prefix="planted-faults-") as directory:
        samples = Samples(directory=Path(directory))
        results = [verify_fault(fault, samples) for fault in ALL]
    sys.stdout.write(format_page(results))
    problems = [f"{result.fault.name}: {problem}\n" for result in results for problem in result.problems]
    sys.stderr.writelines(problems)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
