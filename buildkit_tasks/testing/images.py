"""Which images a test run is about: the repository's one, those of its settings, or any that is named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.settings import load_settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import parse_platforms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.platforms import Platform

__all__ = ["TestedImage", "run_settings", "select_tested_images"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedImage:
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


def select_tested_images(settings: Settings, requests: Iterable[str] = ()) -> tuple[TestedImage, ...]:
    """The images that are asked for, or all of the settings.

    ``NAME`` is an image of the settings, to be built; ``NAME=IMAGE`` is one that was built already;
    anything else is an image without a table, of which there can be one. What is asked later replaces
    what was asked before, as with any option.
    """
    values = [value for value in requests if value]
    images = {
        each.name: each
        for each in (_parse_image_requests(settings, values) if values else _images_from_settings(settings))
    }
    if "" in images and len(images) > 1:
        raise UsageError(
            f"{images[''].image} is no image of the settings, and others are",
            hint="--image NAME=IMAGE, with NAME as in [[tool.buildkit-tasks.image]]",
        )
    return tuple(images.values())


def run_settings(settings: Settings, values: Mapping[str, Any], folder: Path) -> Settings:
    """The settings of a run that gives one result, with the values that a test gave.

    Raises :class:`UsageError` for a value that cannot be.
    """
    try:
        load_settings(values, folder=folder)  # by the rules of the command line
    except UsageError as error:
        reason = error.message.removeprefix("command line: ")
        raise UsageError(f"run_on_platform: {reason}", hint=error.hint) from None
    merged = replace(settings, checks=(), **values)
    if merged.cpu == "both":
        raise UsageError(
            "run_on_platform: one run is on one CPU, not on both",
            hint='run_on_platform(cpu="max"), and then run_on_platform(cpu="floor")',
        )
    return merged


def _images_from_settings(settings: Settings) -> Iterator[TestedImage]:
    if not settings.images:
        yield TestedImage(settings=settings)
    for table in settings.images:
        yield TestedImage(name=table.name, settings=settings.for_image(table))


def _parse_image_requests(settings: Settings, values: Iterable[str]) -> Iterator[TestedImage]:
    tables = {table.name: table for table in settings.images}
    for value in values:
        name, _, image = value.partition("=")
        if name in tables:
            yield TestedImage(name=name, image=image, settings=settings.for_image(tables[name]))
        else:
            yield TestedImage(image=value, settings=replace(settings, images=()))
