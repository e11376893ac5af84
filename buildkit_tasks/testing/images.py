"""Which images a test run is about: the repository's one, those of its settings, or any that is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.settings import load
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import parse_platforms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.platforms import Platform

__all__ = ["Tested", "for_one_run", "images_under"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """An image under test, with the settings that hold for it.

    ``name`` is that of its table in the settings, or empty; ``image`` is where it lies, in the words
    of the tasks, or empty for one that is still to be built.
    """

    settings: Settings
    name: str = ""
    image: str = ""

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """The platforms that it is tested on. Raises :class:`UsageError` for a name that is none."""
        return parse_platforms(self.settings.platforms)


def images_under(settings: Settings, asked: Iterable[str] = ()) -> tuple[Tested, ...]:
    """The images that are asked for, or all of the settings.

    ``NAME`` is an image of the settings, to be built; ``NAME=IMAGE`` is one that was built already;
    anything else is an image without a table, of which there can be one. What is asked later replaces
    what was asked before, as with any option.
    """
    words = [word for word in asked if word]
    found = {each.name: each for each in (_asked(settings, words) if words else _all(settings))}
    if "" in found and len(found) > 1:
        raise UsageError(
            f"{found[''].image} is no image of the settings, and others are",
            hint="--image NAME=IMAGE, with NAME as in [[tool.buildkit-tasks.image]]",
        )
    return tuple(found.values())


def for_one_run(settings: Settings, given: Mapping[str, Any], folder: Path) -> Settings:
    """The settings of a run that gives one result, with the values that a test gave.

    Raises :class:`UsageError` for a value that cannot be.
    """
    try:
        load(given, folder=folder)  # by the rules of the command line
    except UsageError as error:
        words = error.message.removeprefix("command line: ")
        raise UsageError(f"run_on_platform: {words}", hint=error.hint) from None
    changed = replace(settings, checks=(), **given)
    if changed.cpu == "both":
        raise UsageError(
            "run_on_platform: one run is on one CPU, not on both",
            hint='run_on_platform(cpu="max"), and then run_on_platform(cpu="floor")',
        )
    return changed


def _all(settings: Settings) -> Iterator[Tested]:
    if not settings.images:
        yield Tested(settings=settings)
    for table in settings.images:
        yield Tested(name=table.name, settings=settings.of(table))


def _asked(settings: Settings, words: Iterable[str]) -> Iterator[Tested]:
    tables = {table.name: table for table in settings.images}
    for word in words:
        name, _, image = word.partition("=")
        if name in tables:
            yield Tested(name=name, image=image, settings=settings.of(tables[name]))
        else:
            yield Tested(image=word, settings=replace(settings, images=()))
