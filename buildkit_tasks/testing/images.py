"""The images that a test session tests: those of the settings, or those that are requested by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.images import settings_for_image, split_image_request
from buildkit_tasks.config.settings import override_settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import parse_platforms

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.platforms import Platform

__all__ = ["TestedImage", "run_settings", "select_tested_images"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TestedImage:
    """An image under test and its settings.

    ``name`` is the name of its table in the settings, or empty. ``image`` is an image name as the tasks take
    it (``oci-archive:FILE``), or empty if the image is still to be built.
    """

    settings: Settings
    name: str = ""
    image: str = ""

    @property
    def platforms(self) -> tuple[Platform, ...]:
        """Return the platforms to test on. Raises :class:`UsageError` for an unknown platform."""
        return parse_platforms(self.settings.platforms)


def select_tested_images(settings: Settings, requests: Iterable[str] = ()) -> tuple[TestedImage, ...]:
    """Return the requested images; without a request, all images of the settings.

    ``NAME`` requests an image of the settings, to be built; ``NAME=IMAGE`` one that is built already; any
    other value is an image without a table in the settings, of which there can be one. A later request
    replaces an earlier one for the same table. Raises :class:`UsageError` for a mix of both kinds.
    """
    values = [value for value in requests if value]
    selected = _parse_image_requests(settings, values) if values else _images_from_settings(settings)
    images = {image.name: image for image in selected}
    if "" in images and len(images) > 1:
        raise UsageError(
            f"{images[''].image} is not an image of the settings, but {', '.join(filter(None, images))} is",
            hint="--arch-image NAME=IMAGE, with NAME as in [[tool.buildkit-tasks.image]]",
        )
    return tuple(images.values())


def run_settings(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings for ``run_on_platform``: the values override, and only one command is run.

    Raises :class:`UsageError` for a value that is not valid.
    """
    merged = replace(override_settings(settings, values, "run_on_platform"), checks=())
    if merged.cpu == "both":
        raise UsageError(
            "run_on_platform: cpu = 'both' would be two runs",
            hint='call run_on_platform(cpu="max"), and then run_on_platform(cpu="floor")',
        )
    return merged


def _images_from_settings(settings: Settings) -> Iterator[TestedImage]:
    if not settings.images:
        yield TestedImage(settings=settings)
    for table in settings.images:
        yield TestedImage(name=table.name, settings=settings.for_image(table))


def _parse_image_requests(settings: Settings, values: Iterable[str]) -> Iterator[TestedImage]:
    for value in values:
        for name, image in split_image_request(settings, value):
            if name:
                yield TestedImage(name=name, image=image, settings=settings_for_image(settings, name))
            else:
                yield TestedImage(image=value, settings=replace(settings, images=()))
