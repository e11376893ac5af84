"""The pytest plugin: ``multiarch_image``, ``platform``, ``run_on_platform`` and two markers.

A test that takes ``platform`` or ``run_on_platform`` runs once for each platform: those of
``--platform``, else of the settings, narrowed by ``@pytest.mark.platforms(...)``. Where the settings
have several images it runs so for each, narrowed by ``@pytest.mark.images(...)``. Nothing heavy is
imported before a fixture is used.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.testing.skip import skip_or_fail, skip_without_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.testing.images import TestedImage
    from buildkit_tasks.testing.session_image import SessionImage

__all__ = [
    "image_under_test",
    "line",
    "multiarch_image",
    "run_on_platform",
]

_SETTINGS_KEY = pytest.StashKey["Settings"]()
_IMAGE_FIXTURE = "image_under_test"
_SESSION_IMAGES_KEY = pytest.StashKey[dict[str, "SessionImage"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group ``multi-platform images``."""
    group = parser.getgroup("multi-platform images")
    group.addoption(
        "--platform", action="append", default=[], metavar="OS/ARCH", help="platform to test on; repeatable"
    )
    group.addoption(
        "--image",
        action="append",
        default=[],
        metavar="IMAGE",
        help="the image to test, instead of building one; with several in the settings NAME, or NAME=IMAGE, "
        "repeatable",
    )
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
    """Declare the markers; refuse an option's bad value before anything is collected."""
    config.addinivalue_line("markers", "platforms(name, ...): run this test only on these platforms")
    config.addinivalue_line(
        "markers", "images(name, ...): run this test only on these images of the settings"
    )
    if any(_read_flag_settings(config).values()) or any(config.getoption("--image")):
        from buildkit_tasks.errors import UsageError

        try:
            for each in _requested_images(config):
                each.platforms  # noqa: B018 - refuses a name that is none
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One case for each platform, with ids such as ``arm-v7``, in the order asked for.

    With several images one for each and each of its platforms, such as ``web-arm-v7``.
    Every worker of pytest-xdist must collect the same tests in the same order, and so it does.
    """
    names = [_IMAGE_FIXTURE] if _IMAGE_FIXTURE in metafunc.fixturenames else []
    if "platform" in metafunc.fixturenames and not _has_own_platform(metafunc):
        names.append("platform")
    if not names:
        return
    from buildkit_tasks.errors import UsageError

    try:
        images = _select_images(metafunc.config, metafunc.definition)
        if [each.name for each in images] == [""]:  # of one there is no choice
            names = [name for name in names if name != _IMAGE_FIXTURE]
        cases = _list_test_cases(images, metafunc.definition, names)
    except UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if names:
        indirect = [name for name in names if name == _IMAGE_FIXTURE]
        metafunc.parametrize(names, [*cases.values()], ids=[*cases], indirect=indirect, scope="session")


def _list_test_cases(
    images: Sequence[TestedImage], item: pytest.Item, names: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    """The values of these arguments of a test, for each of its cases by their ids."""
    cases: dict[str, tuple[Any, ...]] = {}
    for image in images:
        for platform in _select_platforms(image, item) if "platform" in names else [None]:
            labels = {_IMAGE_FIXTURE: image.name, "platform": platform and platform.slug}
            values = {_IMAGE_FIXTURE: image, "platform": platform}
            cases["-".join(str(labels[name]) for name in names)] = tuple(values[name] for name in names)
    return cases


@pytest.fixture(scope="session")
def image_under_test(request: pytest.FixtureRequest) -> TestedImage:
    """The image that is tested, with its name in the settings and the settings that hold for it.

    Where there are several each comes in its turn.
    """
    if hasattr(request, "param"):
        image: TestedImage = request.param
        return image
    from buildkit_tasks.errors import UsageError

    try:
        images = _requested_images(request.config)
    except UsageError as error:
        pytest.fail(str(error), pytrace=False)
    if len(images) > 1:
        pytest.fail("there are several images: take multiarch_image as an argument", pytrace=False)
    return images[0]


@pytest.fixture(scope="session")
def line(image_under_test: TestedImage) -> Pipeline:
    """The services under the image's settings; an engine is asked for when one is needed."""
    from buildkit_tasks.testing.session_image import create_test_pipeline

    return create_test_pipeline(image_under_test.settings)


@pytest.fixture(scope="session")
def multiarch_image(
    request: pytest.FixtureRequest, image_under_test: TestedImage, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The name of the image under test: ``--image``, else what is built once from the settings.

    "Once" holds for all workers of pytest-xdist together. Where it cannot be built for want of an
    engine the test is skipped with the reason, or fails under ``--require-engine``.
    """
    if image_under_test.image:
        return image_under_test.image
    from buildkit_tasks.testing.session_image import build_session_image

    config, name = request.config, image_under_test.name
    session_images = config.stash.setdefault(_SESSION_IMAGES_KEY, {})
    if name not in session_images:  # several images come in their turns more than once
        session_images[name] = _build_once(
            config, tmp_path_factory, name, lambda: build_session_image(_load_settings(config), name)
        )
    session_image = session_images[name]
    if session_image.skip_reason:
        skip_or_fail(config, session_image.skip_reason)
    if session_image.failure:
        pytest.fail(session_image.failure, pytrace=False)
    return session_image.image


@pytest.fixture
def run_on_platform(
    request: pytest.FixtureRequest, line: Pipeline, multiarch_image: str, platform: Platform
) -> Callable[..., RunResult]:
    """Run the image, or a command in it, on the test's platform; gives a ``RunResult``.

    ``run_on_platform("uname -m", expect="{machine}", cpu="floor")``: one command, one result. Without
    a command the settings' own is run and their expectations hold; a command of the test's is held
    to what the test expects. ``timeout`` is in seconds. Raises ``UsageError`` for a value that cannot
    be, and for ``cpu="both"``: a test that wants both asks twice.
    """
    from buildkit_tasks.testing.images import run_settings

    def run(
        command: str = "",
        *,
        expect: str | None = None,
        expect_exit: int | None = None,
        timeout: float | None = None,
        cpu: str | None = None,
    ) -> RunResult:
        arguments = {"expect": expect, "expect_exit": expect_exit, "timeout": timeout, "cpu": cpu or None}
        values: dict[str, Any] = {name: value for name, value in arguments.items() if value is not None}
        if command:
            values = {"expect": "", "expect_exit": 0, "command": command} | values
        pipeline = replace(line, settings=run_settings(line.settings, values, request.config.rootpath))
        with skip_without_engine(request.config):
            return pipeline.run_image(multiarch_image, (platform,)).results[0]

    return run


def _build_once(
    config: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    build: Callable[[], SessionImage],
) -> SessionImage:
    """What ``make`` gives; among workers of pytest-xdist, what it gave the first of them.

    A lock and a record in the folder that holds the workers' own: pytest-xdist's documentation,
    "Making session-scoped fixtures execute only once". A build that failed is not tried again.
    """
    worker: Mapping[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        return build()
    from buildkit_tasks.system.lock import run_once
    from buildkit_tasks.testing.session_image import SessionImage

    record_path = tmp_path_factory.getbasetemp().parent / f"buildkit-tasks-{name}.json"
    return SessionImage(**run_once(record_path, worker["testrunuid"], lambda: asdict(build())))


def _has_own_platform(metafunc: pytest.Metafunc) -> bool:
    """Whether a test's ``platform`` is a parameter or a fixture of somebody else's: a common name."""
    name_lists = (mark.args[0] for mark in metafunc.definition.iter_markers("parametrize") if mark.args)
    names = {
        name.strip()
        for names_of_mark in name_lists
        for name in (names_of_mark.split(",") if isinstance(names_of_mark, str) else names_of_mark)
    }
    return "platform" in names or bool(metafunc._arg2fixturedefs.get("platform"))  # noqa: SLF001 - no public way


def _select_images(config: pytest.Config, item: pytest.Item) -> list[TestedImage]:
    """The images that a test is about: those asked for, narrowed by its marks."""
    from buildkit_tasks.config.images import check_image_names

    names = _read_marker_names(item, "images")
    check_image_names(_load_settings(config), names)
    return [each for each in _requested_images(config) if not names or each.name in names]


def _select_platforms(image: TestedImage, item: pytest.Item) -> list[Platform]:
    """The platforms that a test of an image runs on: those asked for, narrowed by its marks."""
    from buildkit_tasks.platforms import parse_platforms

    platforms = parse_platforms(_read_marker_names(item, "platforms"))
    return [each for each in image.platforms if not platforms or each in platforms]


def _read_marker_names(item: pytest.Item, mark: str) -> list[str]:
    return [str(name) for each in item.iter_markers(mark) for name in each.args]


def _requested_images(config: pytest.Config) -> tuple[TestedImage, ...]:
    from buildkit_tasks.testing.images import select_tested_images

    return select_tested_images(_load_settings(config), config.getoption("--image"))


def _load_settings(config: pytest.Config) -> Settings:
    """The settings of the repository, with what pytest's options say; read once."""
    if _SETTINGS_KEY not in config.stash:
        from buildkit_tasks.config.settings import load_settings

        config.stash[_SETTINGS_KEY] = load_settings(_read_flag_settings(config), folder=config.rootpath)
    return config.stash[_SETTINGS_KEY]


def _read_flag_settings(config: pytest.Config) -> dict[str, Any]:
    """The settings that are options of pytest's here."""
    option_names = {"platforms": "--platform", "cpu": "--cpu", "runner": "--runner"}
    return {key: config.getoption(option) for key, option in option_names.items()}
