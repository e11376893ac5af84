"""The pytest plugin: ``multiarch_image``, ``platform``, ``run_on_platform`` and a marker.

A test that takes ``platform`` or ``run_on_platform`` runs once for each platform: those of
``--platform``, else of the settings, narrowed by ``@pytest.mark.platforms(...)``. Nothing heavy is
imported before a fixture is used.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildkit_tasks.line import Line
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.results import RunResult

__all__ = ["line", "multiarch_image", "run_on_platform"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group ``multi-platform images``."""
    group = parser.getgroup("multi-platform images")
    group.addoption(
        "--platform", action="append", default=[], metavar="OS/ARCH", help="platform to test on; repeatable"
    )
    group.addoption("--image", default="", help="the image to test, instead of building one")
    group.addoption(
        "--require-engine", action="store_true", help="fail, not skip, where no Docker engine can be had"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "platforms(name, ...): run this test only on these platforms")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for each platform, with ids such as ``arm-v7``."""
    if "platform" in metafunc.fixturenames and not _has_its_own(metafunc):
        found = _platforms(metafunc.config, _marked(metafunc.definition))
        metafunc.parametrize("platform", found, ids=[each.slug for each in found], scope="session")


@pytest.fixture(scope="session")
def line(request: pytest.FixtureRequest) -> Line:
    """The services under this repository's settings, with an engine that answers.

    Without one the test is skipped with the reason, or fails under ``--require-engine``.
    """
    from buildkit_tasks.commands import Commands  # noqa: PLC0415 - not for tests that use no fixture of ours
    from buildkit_tasks.errors import EngineError  # noqa: PLC0415
    from buildkit_tasks.line import Line  # noqa: PLC0415
    from buildkit_tasks.settings import load  # noqa: PLC0415

    asked = {"platforms": request.config.getoption("--platform")}
    settings = load(asked, folder=request.config.rootpath)
    services = Line(settings=settings, run=Commands(echo=sys.stderr), tell=_tell)
    try:
        services.engine  # noqa: B018 - connects
    except EngineError as error:
        if request.config.getoption("--require-engine"):
            pytest.fail(f"no engine: {error}", pytrace=False)
        pytest.skip(f"no engine: {error}")
    return services


@pytest.fixture(scope="session")
def multiarch_image(request: pytest.FixtureRequest, line: Line) -> str:
    """The name of the image under test: ``--image``, else what is built once from the settings."""
    given = str(request.config.getoption("--image"))
    if given:
        return given
    line.build(line.request())
    return line.images.last


@pytest.fixture
def run_on_platform(line: Line, multiarch_image: str, platform: Platform) -> Callable[..., RunResult]:
    """Run the image, or a command in it, on the test's platform; gives a ``RunResult``.

    ``run_on_platform("uname -m", expect="{machine}")``: without arguments the image's own command
    and the settings' expectations hold.
    """
    from dataclasses import replace  # noqa: PLC0415

    from buildkit_tasks.line import Line  # noqa: PLC0415

    def run(command: str = "", *, expect: str | None = None, timeout: float | None = None) -> RunResult:
        settings = line.settings
        changed = replace(
            settings,
            command=command or settings.command,
            expect=settings.expect if expect is None else expect,
            timeout=timeout or settings.timeout,
        )
        services = Line(settings=changed, run=line.run, tell=line.tell)
        return services.emulate(multiarch_image, (platform,)).results[0]

    return run


def _has_its_own(metafunc: pytest.Metafunc) -> bool:
    """Whether a test's ``platform`` is a parameter or a fixture of somebody else's: a common name."""
    marks = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize") if mark.args)
    names = {name.strip() for each in marks for name in (each.split(",") if isinstance(each, str) else each)}
    return "platform" in names or bool(metafunc._arg2fixturedefs.get("platform"))  # noqa: SLF001 - no public way


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - pytest shows it with a failing test


def _marked(item: pytest.Item) -> frozenset[str]:
    marks = [name for mark in item.iter_markers("platforms") for name in mark.args]
    return frozenset(marks)


def _platforms(config: pytest.Config, marked: frozenset[str]) -> list[Platform]:
    from buildkit_tasks.platforms import parse_platforms  # noqa: PLC0415

    asked = _asked(tuple(config.getoption("--platform")), config.rootpath)
    wanted = parse_platforms(sorted(marked))
    return [each for each in asked if not wanted or each in wanted]


@functools.cache
def _asked(given: tuple[str, ...], folder: object) -> tuple[Platform, ...]:
    from pathlib import Path  # noqa: PLC0415

    from buildkit_tasks.platforms import parse_platforms  # noqa: PLC0415
    from buildkit_tasks.settings import load  # noqa: PLC0415

    return parse_platforms(given or load(folder=Path(str(folder))).platforms)
