"""Look up the images of the settings (``[[tool.buildkit-tasks.image]]`` tables) by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection

    from buildkit_tasks.config.settings import Settings

__all__ = ["check_image_names", "settings_for_image"]


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
