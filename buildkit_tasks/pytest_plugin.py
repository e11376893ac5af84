"""The pytest plugin: ``multiarch_image``, ``platform``, ``run_on_platform`` and two markers.

A test that takes ``platform`` or ``run_on_platform`` runs once per platform: those of ``--arch-platform``,
otherwise of the settings, restricted by ``@pytest.mark.platforms(...)``. If the settings have several images
it runs so for each image, restricted by ``@pytest.mark.images(...)``.

Every repository where this package is installed loads the plugin. So it imports nothing but pytest before a
fixture is used, and its fixtures depend on no fixture that has a common word as its name: ``platform`` and
``line`` may be someone else's.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from buildkit_tasks.testing.pytest_options import (
    add_options,
    drop_values_from_paths,
    expand_short_options,
    get_option,
)
from buildkit_tasks.testing.skip import skip_or_fail, skip_without_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.testing.images import TestedImage
    from buildkit_tasks.testing.session_image import SessionImage

__all__ = [
    "buildkit_image_under_test",
    "buildkit_pipeline",
    "buildkit_platform",
    "image_under_test",
    "line",
    "multiarch_image",
    "run_on_platform",
]

_IMAGE = "buildkit_image_under_test"
_PLATFORM = "buildkit_platform"
_SETTINGS_KEY = pytest.StashKey["Settings"]()
_SESSION_IMAGES_KEY = pytest.StashKey[dict[str, "SessionImage"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the ``--arch-*`` options."""
    add_options(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    """Accept the short options, such as ``--platform``, that no plugin and no ``conftest.py`` has."""
    drop_values_from_paths(early_config, args)
    result = yield
    expand_short_options(parser, args)
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers. Refuse an option's value that is not valid before tests are collected."""
    config.addinivalue_line("markers", "platforms(name, ...): run this test only on these platforms")
    config.addinivalue_line(
        "markers", "images(name, ...): run this test only on these images of the settings"
    )
    if any(_read_setting_options(config).values()) or any(get_option(config, "image")):
        from buildkit_tasks.errors import UsageError

        try:
            for image in _requested_images(config):
                image.platforms  # noqa: B018 - raises for an unknown platform
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one case per platform, with ids such as ``arm-v7``, in the order of the options or settings.

    With several images: one case per image and platform, such as ``web-arm-v7``. All workers of pytest-xdist
    must collect the same tests in the same order.
    """
    names = [name for name in (_IMAGE, _PLATFORM) if name in metafunc.fixturenames]
    if "platform" in metafunc.fixturenames and not _has_own_platform(metafunc):
        names.append("platform")
    if not names:
        return
    from buildkit_tasks.errors import UsageError

    try:
        images = _select_images(metafunc.config, metafunc.definition)
        if [image.name for image in images] == [""]:  # a single image is not part of the ids
            names = [name for name in names if name != _IMAGE]
        cases = _list_test_cases(images, metafunc.definition, names)
    except UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from None
    if names:
        indirect = [name for name in names if name != "platform"]
        metafunc.parametrize(names, [*cases.values()], ids=[*cases], indirect=indirect, scope="session")


def _has_own_platform(metafunc: pytest.Metafunc) -> bool:
    """Return True if ``platform`` is someone else's fixture, or a parameter that has its values already.

    So ``platform`` is not a fixture here: it would override that of a plugin that is loaded before.
    """
    return bool(metafunc._arg2fixturedefs.get("platform"))  # noqa: SLF001 - pytest has no public way


def _list_test_cases(
    images: Sequence[TestedImage], item: pytest.Item, names: Sequence[str]
) -> dict[str, tuple[Any, ...]]:
    """Return the values of the names for each case of a test, by the case's id."""
    cases: dict[str, tuple[Any, ...]] = {}
    has_platform = any(name != _IMAGE for name in names)
    for image in images:
        for platform in _select_platforms(image, item) if has_platform else [None]:
            labels = [image.name] if _IMAGE in names else []
            labels += [platform.slug] if platform else []
            cases["-".join(labels)] = tuple(image if name == _IMAGE else platform for name in names)
    return cases


@pytest.fixture(scope="session")
def buildkit_image_under_test(request: pytest.FixtureRequest) -> TestedImage:
    """Return the image under test: its ``name`` in the settings, or ``""``, and its ``settings``."""
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
def buildkit_platform(request: pytest.FixtureRequest) -> Platform:
    """Return the platform under test, as ``platform`` does; for suites with a ``platform`` of their own."""
    if not hasattr(request, "param"):
        pytest.fail("the test has no platform: take platform as an argument", pytrace=False)
    platform: Platform = request.param
    return platform


@pytest.fixture(scope="session")
def buildkit_pipeline(buildkit_image_under_test: TestedImage) -> Pipeline:
    """Return the pipeline with the image's settings. It looks for an engine when a step needs one."""
    from buildkit_tasks.testing.session_image import create_test_pipeline

    return create_test_pipeline(buildkit_image_under_test.settings)


@pytest.fixture(scope="session")
def image_under_test(buildkit_image_under_test: TestedImage) -> TestedImage:
    """Return ``buildkit_image_under_test``. Deprecated: use that name."""
    _warn_renamed("image_under_test", "buildkit_image_under_test")
    return buildkit_image_under_test


@pytest.fixture(scope="session")
def line(buildkit_pipeline: Pipeline) -> Pipeline:
    """Return ``buildkit_pipeline``. Deprecated: use that name."""
    _warn_renamed("line", "buildkit_pipeline")
    return buildkit_pipeline


def _warn_renamed(name: str, new_name: str) -> None:
    message = (
        f"fixture {name!r} of buildkit_tasks is renamed to {new_name!r}; the next release removes {name!r}"
    )
    warnings.warn(message, DeprecationWarning, stacklevel=2)


@pytest.fixture(scope="session")
def multiarch_image(
    request: pytest.FixtureRequest,
    buildkit_image_under_test: TestedImage,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """Return the name of the image under test: ``--arch-image``, or one built from the settings.

    It is built once for all workers of pytest-xdist. If it cannot be built because there is no engine, the
    test is skipped with the reason, or fails under ``--arch-require-engine``.
    """
    if buildkit_image_under_test.image:
        return buildkit_image_under_test.image
    from buildkit_tasks.testing.session_image import build_session_image

    config, name = request.config, buildkit_image_under_test.name
    session_images = config.stash.setdefault(_SESSION_IMAGES_KEY, {})
    if name not in session_images:  # pytest sets this fixture up again whenever the image changes
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
    request: pytest.FixtureRequest,
    buildkit_pipeline: Pipeline,
    multiarch_image: str,
    buildkit_platform: Platform,
) -> Callable[..., RunResult]:
    """Run the image, or a command in it, on the test's platform, and return a ``RunResult``.

    ``run_on_platform("uname -m", expect="{machine}", cpu="floor")`` runs one command. Without a command, the
    command and the expectations of the settings apply. With a command, only the expectations that are passed
    apply; by default, exit status 0. ``timeout`` is in seconds. Raises ``UsageError`` for a value that is not
    valid, and for ``cpu="both"``, which would be two runs.
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
        pipeline = buildkit_pipeline.with_settings(run_settings(buildkit_pipeline.settings, values))
        with skip_without_engine(request.config):
            return pipeline.run_image(multiarch_image, (buildkit_platform,)).results[0]

    return run


def _build_once(
    config: pytest.Config,
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    build: Callable[[], SessionImage],
) -> SessionImage:
    """Return the result of ``build``; among workers of pytest-xdist, the result of the first one.

    The result and a lock are in the parent of the workers' temporary directories (pytest-xdist's
    documentation, "Making session-scoped fixtures execute only once"). A failed build is not repeated.
    """
    worker: Mapping[str, str] | None = getattr(config, "workerinput", None)
    if worker is None:
        return build()
    from buildkit_tasks.system.lock import run_once
    from buildkit_tasks.testing.session_image import SessionImage

    record_path = tmp_path_factory.getbasetemp().parent / f"buildkit-tasks-{name}.json"
    return SessionImage(**run_once(record_path, worker["testrunuid"], lambda: asdict(build())))


def _select_images(config: pytest.Config, item: pytest.Item) -> list[TestedImage]:
    """Return the requested images that the ``images`` marks of a test allow."""
    from buildkit_tasks.config.images import check_image_names

    names = _read_marker_names(item, "images")
    check_image_names(_load_settings(config), names)
    return [image for image in _requested_images(config) if not names or image.name in names]


def _select_platforms(image: TestedImage, item: pytest.Item) -> list[Platform]:
    """Return the platforms of an image that the ``platforms`` marks of a test allow."""
    from buildkit_tasks.platforms import parse_platforms

    platforms = parse_platforms(_read_marker_names(item, "platforms"))
    return [platform for platform in image.platforms if not platforms or platform in platforms]


def _read_marker_names(item: pytest.Item, mark: str) -> list[str]:
    return [str(name) for each in item.iter_markers(mark) for name in each.args]


def _requested_images(config: pytest.Config) -> tuple[TestedImage, ...]:
    from buildkit_tasks.testing.images import select_tested_images

    return select_tested_images(_load_settings(config), get_option(config, "image"))


def _load_settings(config: pytest.Config) -> Settings:
    """Return the settings of the repository, overridden by pytest's options. They are read once."""
    if _SETTINGS_KEY not in config.stash:
        from buildkit_tasks.config.settings import load_settings

        config.stash[_SETTINGS_KEY] = load_settings(_read_setting_options(config), folder=config.rootpath)
    return config.stash[_SETTINGS_KEY]


def _read_setting_options(config: pytest.Config) -> dict[str, Any]:
    """Return the options that are settings, by the settings' keys."""
    options = {"platforms": "platform", "cpu": "cpu", "runner": "runner"}
    return {key: get_option(config, name) for key, name in options.items()}
