"""Command-line options of the pytest plugin: ``--arch-platform`` and others, and their short forms.

The short forms (``--platform``) are never registered: another plugin or a ``conftest.py`` that registers the
same name would fail, even if it is loaded during collection. They are replaced in the arguments once the
initial ``conftest.py`` files are loaded, if pytest's parser does not know them then. (pytest documents
``pytest_load_initial_conftests`` as the place to change the arguments.)
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

__all__ = [
    "add_options",
    "drop_values_from_paths",
    "expand_short_options",
    "get_option",
    "has_values",
    "record_typed_options",
    "typed_option",
]

_DEST_PREFIX = "buildkit_tasks_"  # not the names' own dest: attributes of `config.option` are short names too
_TYPED_DEST = f"{_DEST_PREFIX}typed"
_VALUE_OPTIONS = ("--platform", "--image", "--cpu", "--runner")
_SHORT_OPTIONS = (*_VALUE_OPTIONS, "--require-engine")
_TITLE = "multi-platform images (or without arch-, as in --platform, unless another plugin has that option)"


def add_options(parser: pytest.Parser) -> None:
    """Register the ``--arch-*`` options."""
    group = parser.getgroup("buildkit-tasks", _TITLE)

    def add(name: str, **attributes: Any) -> None:
        dest = f"{_DEST_PREFIX}{name.replace('-', '_')}"
        group.addoption(f"--arch-{name}", dest=dest, **attributes)

    add("platform", action="append", default=[], metavar="OS/ARCH", help="platform to test on; repeatable")
    add(
        "image",
        action="append",
        default=[],
        metavar="IMAGE",
        help="image to test, instead of building one; NAME or NAME=IMAGE, repeatable, if the settings have "
        "several images",
    )
    add(
        "cpu",
        default="",
        metavar="CPU",
        help="max, floor (the oldest CPU of the platform's baseline), or a QEMU CPU model",
    )
    add(
        "runner", default="", metavar="RUNNER", help="auto, docker, or sandbox (which needs no Docker engine)"
    )
    add("require-engine", action="store_true", help="fail instead of skip if no Docker engine is available")


def get_option(config: pytest.Config, name: str) -> Any:
    """Return the value of ``--arch-NAME``; None if the plugin is disabled (``-p no:buildkit_tasks``)."""
    return config.getoption(f"--arch-{name}", default=None)


def has_values(config: pytest.Config) -> bool:
    """Return True if an option has a value, also an empty one, that is to be checked."""
    return any(get_option(config, name.removeprefix("--")) for name in _VALUE_OPTIONS)


def drop_values_from_paths(config: pytest.Config, args: list[str]) -> None:
    """Remove values of short options from the paths where pytest looks for initial ``conftest.py`` files.

    pytest takes the second word of ``--platform linux/arm64`` for a path, and would ignore ``testpaths``. A
    directory or a Python file stays: the option may be a flag of a ``conftest.py`` that is not loaded yet.
    """
    values = {value for name, value in pairwise(args) if name in _VALUE_OPTIONS}
    paths = config.known_args_namespace.file_or_dir
    paths[:] = [
        path
        for path in paths
        if path not in values or ".py" in path or (config.invocation_params.dir / path).is_dir()
    ]


def expand_short_options(parser: pytest.Parser, args: list[str]) -> frozenset[str]:
    """Replace the short options that nobody has registered by ours, in place; return which were there."""
    if not any(arg.partition("=")[0] in _SHORT_OPTIONS for arg in args):
        return frozenset()
    _, unknown = parser.parse_known_and_unknown_args(args)
    short = {arg for arg in unknown if arg.partition("=")[0] in _SHORT_OPTIONS}
    args[:] = [f"--arch-{arg.removeprefix('--')}" if arg in short else arg for arg in args]
    return frozenset(arg.partition("=")[0] for arg in short)


def record_typed_options(config: pytest.Config, short_options: Iterable[str]) -> None:
    """Remember the short options that the user typed, for messages."""
    vars(config.option)[_TYPED_DEST] = frozenset(short_options)


def typed_option(config: pytest.Config, name: str) -> str:
    """Return the option ``NAME`` as the user typed it: ``--arch-NAME`` or ``--NAME``."""
    is_short = f"--{name}" in getattr(config.option, _TYPED_DEST, ())
    return f"--{name}" if is_short else f"--arch-{name}"
