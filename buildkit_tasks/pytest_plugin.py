"""The pytest plugin: ``multiarch_image``, ``platform``, ``run_on_platform`` and a marker.

A test that takes ``platform`` or ``run_on_platform`` runs once for each platform: those of
``--platform``, else of the settings, narrowed by ``@pytest.mark.platforms(...)``. Nothing heavy is
imported before a fixture is used.
"""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path
    from typing import NoReturn

    from buildkit_tasks.line import Line
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.results import RunResult
    from buildkit_tasks.settings import Settings

__all__ = ["line", "multiarch_image", "run_on_platform", "skipped_without_engine"]

_SETTINGS = pytest.StashKey["Settings"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group ``multi-platform images``."""
    group = parser.getgroup("multi-platform images")
    group.addoption(
        "--platform", action="append", default=[], metavar="OS/ARCH", help="platform to test on; repeatable"
    )
    group.addoption("--image", default="", help="the image to test, instead of building one")
    # A dest of their own: an attribute of `config.option` is a short name that others may want.
    group.addoption(
        "--cpu",
        default="",
        dest="buildkit_tasks_cpu",
        metavar="CPU",
        help="max, floor (the oldest CPU that the platform's name promises), both, or a model of QEMU's",
    )
    group.addoption(
        "--runner",
        default="",
        dest="buildkit_tasks_runner",
        metavar="RUNNER",
        help="auto, docker, or sandbox (without an engine)",
    )
    group.addoption(
        "--require-engine", action="store_true", help="fail, not skip, where no Docker engine can be had"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; refuse an option's bad value before anything is collected."""
    config.addinivalue_line("markers", "platforms(name, ...): run this test only on these platforms")
    if any(_flags(config).values()):
        from buildkit_tasks.errors import UsageError  # noqa: PLC0415 - not for suites that use nothing of ours

        try:
            _asked(config)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for each platform, with ids such as ``arm-v7``, in the order asked for.

    Every worker of pytest-xdist must collect the same tests in the same order, and so it does.
    """
    if "platform" in metafunc.fixturenames and not _has_its_own(metafunc):
        from buildkit_tasks.errors import UsageError  # noqa: PLC0415 - as above

        try:
            found = _platforms(metafunc.config, metafunc.definition)
        except UsageError as error:
            raise pytest.Collector.CollectError(str(error)) from None
        metafunc.parametrize("platform", found, ids=[each.slug for each in found], scope="session")


@contextlib.contextmanager
def skipped_without_engine(config: pytest.Config) -> Iterator[None]:
    """Skip the test with the reason if no engine or emulator can be had for what is done here.

    Under ``--require-engine`` it fails instead.
    """
    from buildkit_tasks.errors import EmulatorError, EngineError  # noqa: PLC0415 - as above

    try:
        yield
    except (EngineError, EmulatorError) as error:
        _missing(config, _reason(error))


@pytest.fixture(scope="session")
def line(request: pytest.FixtureRequest) -> Line:
    """The services under this repository's settings; an engine is asked for when one is needed."""
    from buildkit_tasks.commands import Commands  # noqa: PLC0415 - as above
    from buildkit_tasks.errors import UsageError  # noqa: PLC0415
    from buildkit_tasks.line import Line  # noqa: PLC0415

    try:
        settings = _settings(request.config)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    return Line(settings=settings, run=Commands(echo=sys.stderr), tell=_tell)


@pytest.fixture(scope="session")
def multiarch_image(
    request: pytest.FixtureRequest, line: Line, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The name of the image under test: ``--image``, else what is built once from the settings.

    "Once" holds for all workers of pytest-xdist together. Where it cannot be built for want of an
    engine the test is skipped with the reason, or fails under ``--require-engine``.
    """
    given = str(request.config.getoption("--image"))
    if given:
        return given
    built = _once(request.config, tmp_path_factory, lambda: _build(line))
    if built.missing:
        _missing(request.config, built.missing)
    if built.problem:
        pytest.fail(built.problem, pytrace=False)
    return built.image


@pytest.fixture
def run_on_platform(
    request: pytest.FixtureRequest, line: Line, multiarch_image: str, platform: Platform
) -> Callable[..., RunResult]:
    """Run the image, or a command in it, on the test's platform; gives a ``RunResult``.

    ``run_on_platform("uname -m", expect="{machine}", cpu="floor")``: one command, one result. Without
    a command the settings' own is run and their expectations hold; a command of the test's is held
    to what the test expects. ``timeout`` is in seconds. Raises ``UsageError`` for a value that cannot
    be, and for ``cpu="both"``: a test that wants both asks twice.
    """

    def run(
        command: str = "",
        *,
        expect: str | None = None,
        expect_exit: int | None = None,
        timeout: float | None = None,
        cpu: str | None = None,
    ) -> RunResult:
        asked = {"expect": expect, "expect_exit": expect_exit, "timeout": timeout, "cpu": cpu or None}
        given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
        if command:
            given = {"expect": "", "expect_exit": 0, "command": command} | given
        services = replace(line, settings=_for_one_run(line.settings, given, request.config.rootpath))
        with skipped_without_engine(request.config):
            return services.emulate(multiarch_image, (platform,)).results[0]

    return run


def _for_one_run(settings: Settings, given: Mapping[str, Any], folder: Path) -> Settings:
    """The settings of a run that gives one result, with the values that the test gave."""
    from buildkit_tasks.errors import UsageError  # noqa: PLC0415 - as above
    from buildkit_tasks.settings import load  # noqa: PLC0415

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """The image that was built, or what the build was missing, or what went wrong with it."""

    image: str = ""
    missing: str = ""
    problem: str = ""


def _build(line: Line) -> _Built:
    from buildkit_tasks.errors import BuildkitTasksError, EmulatorError, EngineError  # noqa: PLC0415 - as above

    try:
        line.build(line.request())
        return _Built(image=line.images.last)
    except (EngineError, EmulatorError) as error:
        return _Built(missing=_reason(error))
    except BuildkitTasksError as error:
        return _Built(problem=f"the image could not be built: {error}")


def _once(config: pytest.Config, folders: pytest.TempPathFactory, make: Callable[[], _Built]) -> _Built:
    """What ``make`` gives; among workers of pytest-xdist, what it gave the first of them.

    A lock and a record in the folder that holds the workers' own: pytest-xdist's documentation,
    "Making session-scoped fixtures execute only once". A build that failed is not tried again.
    """
    worker: Mapping[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        return make()
    from buildkit_tasks.locks import only_one  # noqa: PLC0415 - as above

    record = folders.getbasetemp().parent / f"buildkit-tasks-{worker['testrunuid']}.json"
    with only_one(record.with_suffix(".lock")):
        if record.exists():
            return _Built(**json.loads(record.read_bytes()))
        built = make()
        beside = record.with_suffix(".new")  # a worker may be killed at any time
        beside.write_text(json.dumps(asdict(built)), encoding="utf-8")
        beside.replace(record)
        return built


def _reason(error: Exception) -> str:
    """Why a test cannot run here, in the words in which pytest tells it."""
    from buildkit_tasks.errors import EngineError  # noqa: PLC0415 - as above

    return f"no {'engine' if isinstance(error, EngineError) else 'emulator'}: {error}"


def _missing(config: pytest.Config, reason: str) -> NoReturn:
    if config.getoption("--require-engine"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - pytest shows it with a failing test


def _has_its_own(metafunc: pytest.Metafunc) -> bool:
    """Whether a test's ``platform`` is a parameter or a fixture of somebody else's: a common name."""
    marks = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize") if mark.args)
    names = {name.strip() for each in marks for name in (each.split(",") if isinstance(each, str) else each)}
    return "platform" in names or bool(metafunc._arg2fixturedefs.get("platform"))  # noqa: SLF001 - no public way


def _platforms(config: pytest.Config, item: pytest.Item) -> list[Platform]:
    """The platforms that a test runs on: those asked for, narrowed by its marks."""
    from buildkit_tasks.platforms import parse_platforms  # noqa: PLC0415 - as above

    wanted = parse_platforms(str(name) for mark in item.iter_markers("platforms") for name in mark.args)
    return [each for each in _asked(config) if not wanted or each in wanted]


def _asked(config: pytest.Config) -> tuple[Platform, ...]:
    from buildkit_tasks.platforms import parse_platforms  # noqa: PLC0415 - as above

    return parse_platforms(_settings(config).platforms)


def _settings(config: pytest.Config) -> Settings:
    """The settings of the repository, with what pytest's options say; read once."""
    if _SETTINGS not in config.stash:
        from buildkit_tasks.settings import load  # noqa: PLC0415 - as above

        config.stash[_SETTINGS] = load(_flags(config), folder=config.rootpath)
    return config.stash[_SETTINGS]


def _flags(config: pytest.Config) -> dict[str, Any]:
    """The settings that are options of pytest's here."""
    names = {"platforms": "--platform", "cpu": "--cpu", "runner": "--runner"}
    return {key: config.getoption(option) for key, option in names.items()}
