"""Look up the images of the settings (``[[tool.buildkit-tasks.image]]`` tables) by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.config.schema import IMAGE_NAME_PATTERN
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from buildkit_tasks.config.settings import Settings

__all__ = ["check_image_names", "settings_for_image", "settings_for_target", "split_image_request"]

_RUN_KEYS = ("command", "expect")


def check_image_names(settings: Settings, names: Collection[str]) -> None:
    """Raise :class:`UsageError` for a name that is not an image of the settings."""
    known_names = [table.name for table in settings.images]
    unknown_names = [name for name in names if name not in known_names]
    if unknown_names:
        hint = (
            f"choose one of {', '.join(known_names)}"
            if known_names
            else "add [[tool.buildkit-tasks.image]] to pyproject.toml"
        )
        raise UsageError(f"there is no image {unknown_names[0]!r} in the settings", hint=hint)


def settings_for_image(settings: Settings, name: str) -> Settings:
    """Return the settings of the named image; unchanged if no image is named or no image has a table.

    Raises :class:`UsageError` for a name that is not an image of the settings.
    """
    if not name or not settings.images:
        return settings
    check_image_names(settings, [name])
    return settings.for_image(next(table for table in settings.images if table.name == name))


def settings_for_target(settings: Settings, name: str) -> Settings:
    """Return the settings of a bake file's target: ``command`` and ``expect`` of the image of that name.

    Everything else that an image's table can set is in the bake file.
    """
    table = next((each for each in settings.images if each.name == name), None)
    if table is None:
        return settings
    values = {key: value for key, value in table.values.items() if key in _RUN_KEYS}
    return settings.for_image(replace(table, values=values))


def split_image_request(settings: Settings, value: str) -> list[tuple[str, str]]:
    """Return the name in the settings, or "", and the location, or "", of each image of ``--image``.

    ``web`` and ``web,tool`` are names of the settings, ``web=oci-archive:FILE`` is a location with a name,
    and everything else is a location. Raises :class:`UsageError` for a location with an unknown name.
    """
    known_names = {table.name for table in settings.images}
    names = [name.strip() for name in value.split(",")]
    if known_names.issuperset(names):
        return [(name, "") for name in names]
    name, _, location = value.partition("=")
    if not location or not IMAGE_NAME_PATTERN.match(name):
        return [("", value)]
    if name not in known_names and Path(value).exists():  # a file's name may have "="
        return [("", value)]
    check_image_names(settings, [name])
    return [(name, location)]
