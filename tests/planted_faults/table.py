"""The table of ``docs/planted-faults.md``, made from a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tests.conftest import ROOT
from tests.planted_faults.catalogue import FAULTS, SOUND_IMAGES
from tests.planted_faults.planting import Caught, Fault, Verdict, shortened

PAGE = ROOT / "docs/planted-faults.md"
_HEAD = """\
# Planted faults

Each row is a sound image, made by real builds, with one planted fault. The check that caught it was recorded
by a run of `verify` on that image (`python -m tests.planted_faults > docs/planted-faults.md`); the same image
without the fault passed, and no other check reported anything. A check in brackets passes with a warning.
`tests/planted_faults` plants the faults; its tests compare each verdict with what was declared.
"""
_SOUND_IMAGES_HEAD = """
## Sound images that look wrong

Nothing may be said about these images:
"""


def page(verdicts: Iterable[Verdict]) -> str:
    """The whole page."""
    found = {verdict.fault.name: verdict for verdict in verdicts}
    return "\n".join([_HEAD, *_rows(found), _SOUND_IMAGES_HEAD, *_held(found), ""])


def numbered() -> list[tuple[int, Fault]]:
    """Return the faults with their numbers in the table."""
    return list(enumerate(FAULTS, 1))


def declared_cells(number: int, one: Fault) -> tuple[str, str, str, str]:
    """What a row says that does not depend on the run."""
    names = dict.fromkeys(f"({each.check})" if each.warning else each.check for each in one.catches)
    platforms = dict.fromkeys(each.platform for each in one.catches)
    return str(number), _cell(one.text), ", ".join(names), ", ".join(platforms)


def stable_cells(text: str) -> list[tuple[str, ...]]:
    """The same of a page that was written."""
    rows = (line.split(" | ") for line in text.splitlines() if line.startswith("| ") and line[2].isdigit())
    return [(cells[0].removeprefix("| "), *cells[1:4]) for cells in rows]


def _rows(found: dict[str, Verdict]) -> Iterator[str]:
    yield "| # | fault | caught by | platform | where | message |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for number, one in numbered():
        verdict = found[one.name]
        known = {(each.catch, each.message) for each in verdict.control}
        new = [each for each in verdict.caught if (each.catch, each.message) not in known]
        names = dict.fromkeys(
            f"({each.catch.check})" if each.catch.warning else each.catch.check for each in new
        )
        platforms = dict.fromkeys(each.catch.platform for each in new)
        where = next((text for each in new if (text := _where(each))), "")
        says = _cell(shortened(new[0].message)) if new else "**nothing**"
        cells = (str(number), _cell(one.text), ", ".join(names), ", ".join(platforms), where, says)
        yield f"| {' | '.join(cells)} |"


def _held(found: dict[str, Verdict]) -> Iterator[str]:
    for one in SOUND_IMAGES:
        said = found[one.name].surprises
        yield f"- {one.text}{f': **{shortened(said[0])}**' if said else ''}"


def _where(caught: Caught) -> str:
    layer = f"layer {caught.layer + 1} of {caught.layers}" if caught.layer is not None else ""
    path = f"`{caught.catch.path!r}`".replace("'", "") if caught.catch.path else ""
    return ", ".join(part for part in (path, layer) if part)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
