"""The tables of ``docs/build-options.md``, and the options that a buildx shows in its help."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

_PAGE = Path(__file__).parents[2] / "docs/build-options.md"
_ROW = re.compile(r"^\| `(--[a-z-]+)` \| (yes|no) \|", re.MULTILINE)
_HELP_LINE = re.compile(r"^ {2,}(?:-\w, )?(--[a-z-]+)", re.MULTILINE)


def documented_options(command: str) -> dict[str, bool]:
    """Return the options of ``docker buildx build`` or ``bake`` in the page, and whether they are taken."""
    section = _PAGE.read_text(encoding="utf-8").partition(f"\n## docker buildx {command}\n")[2]
    rows = _ROW.findall(section.partition("\n## ")[0])
    assert len({name for name, _ in rows}) == len(rows)
    return {name: taken == "yes" for name, taken in rows}


def buildx_options(buildx: Sequence[str], command: str) -> set[str]:
    """Return the options that the help of a buildx names."""
    result = subprocess.run(
        [*buildx, command, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    return set(_HELP_LINE.findall(result.stdout))
