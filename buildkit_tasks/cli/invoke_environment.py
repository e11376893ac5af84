"""Let Invoke read the variables of the settings, or say why it cannot.

Invoke ends with a traceback if two keys of its configuration have the same variable, as ``buildkit.name`` and
``Buildkit.name`` have, and if a variable replaces a list, or a number with text. That happens before a task
begins, and its programs offer no hook, so importing this module replaces the class that
:class:`invoke.config.Config` instantiates with a subclass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import invoke.config
from invoke.env import Environment
from invoke.exceptions import AmbiguousEnvVar, UncastableEnvVar

from buildkit_tasks.cli.invoke_parser import CommandLineError
from buildkit_tasks.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["SettingsEnvironment"]


class SettingsEnvironment(Environment):
    """Invoke's reader of the environment, whose error names the misspelt section or key."""

    def load(self) -> dict[str, Any]:
        """Return the values of the variables.

        Raises :class:`CommandLineError` for settings that nothing reads.
        A configuration without settings of this package, and other conflicts, are left to Invoke.
        """
        try:
            return super().load()
        except AmbiguousEnvVar:
            _check_settings(dict(self._config.items()))
            raise

    def _path_set(self, key_path: Sequence[str], value: str) -> None:
        """Set a value; a setting that Invoke cannot convert stays text, which the settings read and judge."""
        try:
            super()._path_set(key_path, value)
        except (UncastableEnvVar, ValueError):
            section, key = key_path[0], key_path[-1]
            if section != "buildkit":
                raise
            self.data[section][key] = value


def _check_settings(sections: Mapping[str, Any]) -> None:
    from buildkit_tasks.config.settings import check_section_keys

    if "buildkit" not in sections:
        return
    try:
        check_section_keys(sections)
    except SettingsError as error:
        raise CommandLineError(error) from error


invoke.config.Environment = SettingsEnvironment  # type: ignore[attr-defined]
