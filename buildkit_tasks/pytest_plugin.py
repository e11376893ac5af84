"""The pytest plugin: ``multiarch_image``, ``platform``, ``run_on_platform`` and two markers.

A test that takes ``platform`` or ``run_on_platform`` runs once per platform: those that
``@pytest.mark.platforms(...)`` names, otherwise those of the settings. If the settings have several images it
runs so for each image, or for those that ``@pytest.mark.images(...)`` names. ``--arch-platform`` and
``--arch-image`` select among them; what they leave out of a marker is skipped.

Every repository where this package is installed loads the plugin. So it imports nothing but pytest before a
fixture is used, and its fixtures depend on no fixture that has a common word as its name: ``platform`` and
``line`` may be someone else's.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from buildkit_tasks.testing.pytest_options import (
    add_options,
    drop_values_from_paths,
    expand_short_options,
    get_option,
    has_values,
    record_typed_options,
    typed_option,
)
from buildkit_tasks.testing.skip import skip_or_fail, skip_without_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from _pytest.mark.structures import ParameterSet

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import RunResult
    from buildkit_tasks.testing.cases import Case, CaseSelection
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

_BUILT_IN_TESTS = Path(__file__).parent / "testing" / "default_checks.py"
_BUILT_IN_TESTS_ID = "buildkit_tasks/testing/default_checks.py"
_IMAGE = "buildkit_image_under_test"
_PLATFORM = "buildkit_platform"
_OWN_PLATFORM = "platform"  # ours, or that of another plugin, a conftest.py or a parameter
_SETTING_OPTIONS = {"platforms": "platform", "cpu": "cpu", "runner": "runner"}  # by the settings' keys
_SETTINGS_KEY = pytest.StashKey["Settings"]()
_SESSION_IMAGES_KEY = pytest.StashKey[dict[str, "SessionImage"]]()
_FIXTURES_OF_MARKER = {"platforms": (_PLATFORM,), "images": (_IMAGE, _PLATFORM)}
_COLLECTED_ERRORS_KEY = pytest.StashKey[list[str]]()  # also of tests that are not selected
_WORKER_ERRORS = "buildkit_tasks_errors"  # what a worker of pytest-xdist sends to its controller
_WORKER_ERRORS_KEY = pytest.StashKey[list[str]]()


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
    record_typed_options(early_config, expand_short_options(parser, args))
    return result


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers. Refuse an option's value that is not valid before tests are collected."""
    config.addinivalue_line(
        "markers", "platforms(*names): run this test on these platforms, whatever the settings have"
    )
    config.addinivalue_line("markers", "images(*names): run this test only on these images of the settings")
    is_worker = hasattr(config, "workerinput")  # of pytest-xdist, whose controller has checked the options
    if not is_worker and has_values(config):
        from buildkit_tasks.errors import MalformedImage, UsageError
        from buildkit_tasks.testing.option_values import check_values

        try:
            check_values(config, _load_settings(config))
        except (UsageError, MalformedImage) as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Add the fixture ``platform`` unless a plugin has one: among plugins, the last one would win."""
    if not session._fixturemanager.getfixturedefs(_OWN_PLATFORM, session):  # noqa: SLF001 - no public way
        session.config.pluginmanager.register(_make_platform_plugin(), "buildkit_tasks_platform")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """End pytest if a selected test has a marker, or needs a setting, that is not valid.

    What a test needs that is not selected does not matter, unless that is why no test is selected.
    """
    config = session.config
    collected_errors = config.stash.setdefault(_COLLECTED_ERRORS_KEY, [])
    try:
        result = yield
    except pytest.UsageError:  # such as "not found: test_it.py::test_one[arm64]"
        _end_with_errors(config, collected_errors)
        raise
    own_items = [item for item in session.items if _uses_plugin(item)]
    _end_with_errors(config, _list_errors(config, own_items) if session.items else collected_errors)
    return result


def _uses_plugin(item: pytest.Item) -> bool:
    if item.get_closest_marker("skip"):
        return False
    return _takes_image(item) or any(item.get_closest_marker(marker) for marker in _FIXTURES_OF_MARKER)


def _takes_image(item: pytest.Item) -> bool:
    return not {_IMAGE, _PLATFORM}.isdisjoint(getattr(item, "fixturenames", ()))


def _list_errors(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """Return why the tests, which use the plugin, cannot run as they say."""
    if not items:
        return []
    from buildkit_tasks.errors import UsageError

    errors: list[str] = []
    for item in items:
        try:
            _check_markers(item)
        except UsageError as error:
            errors.append(str(error))
    try:
        _check_settings(config, [item for item in items if _takes_image(item)])
    except UsageError as error:
        errors.append(str(error))
    return errors


def _check_markers(item: pytest.Item) -> None:
    """Raise :class:`UsageError` for a marker without an effect, and for what left the test without cases."""
    from buildkit_tasks.errors import UsageError
    from buildkit_tasks.testing.markers import check_has_effect, locate_errors

    with locate_errors(item):
        for marker, fixtures in _FIXTURES_OF_MARKER.items():
            check_has_effect(item, marker, fixtures)
    for value in _read_parameters(item).values():
        if isinstance(value, UsageError):
            raise value


def _check_settings(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Raise :class:`UsageError` for a setting that is not valid, of an image that the tests take."""
    from buildkit_tasks.testing.option_values import check_image_settings

    for image in _requested_images(config) if items else ():
        users = [item for item in items if _image_name(item) in (None, image.name)]
        cases = [_read_parameters(item) for item in users if _may_run_image(item)]
        if users:
            check_image_settings(image, [case[_PLATFORM] for case in cases if _PLATFORM in case])


def _may_run_image(item: pytest.Item) -> bool:
    is_run = not item.config.getoption("collectonly")  # which does not download QEMU
    return is_run and "buildkit_pipeline" in getattr(item, "fixturenames", ())


def _image_name(item: pytest.Item) -> str | None:
    """Return the name of the image of a case; None if the test has no case of an image."""
    return getattr(_read_parameters(item).get(_IMAGE), "name", None)


def _end_with_errors(config: pytest.Config, errors: Iterable[str]) -> None:
    """Raise pytest's usage error if there are errors. A worker of pytest-xdist also tells its controller."""
    messages = list(dict.fromkeys(errors))
    if not messages:
        return
    if hasattr(config, "workeroutput"):
        config.workeroutput[_WORKER_ERRORS] = messages
    raise pytest.UsageError(*messages)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Keep the errors with which a worker of pytest-xdist has ended."""
    errors = getattr(node, "workeroutput", {}).get(_WORKER_ERRORS, [])
    node.config.stash.setdefault(_WORKER_ERRORS_KEY, []).extend(errors)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Generator[None, object, object]:
    """End pytest with the errors of the workers of pytest-xdist, which cannot do so themselves."""
    try:
        return (yield)
    finally:
        errors = session.config.stash.get(_WORKER_ERRORS_KEY, [])
        _end_with_errors(session.config, errors)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Name the built-in tests by their module: JUnit's class name is not the path of site-packages."""
    if module_path != _BUILT_IN_TESTS:
        return None
    module: pytest.Module = pytest.Module.from_parent(parent, path=module_path, nodeid=_BUILT_IN_TESTS_ID)
    return module


def _make_platform_plugin() -> ModuleType:
    """Return a plugin with the fixture ``platform``, which this module does not have itself."""

    @pytest.fixture(scope="session")
    def platform(buildkit_platform: Platform) -> Platform:
        """Return the platform under test: ``str(platform)`` is ``linux/arm/v7``, ``platform.goarch`` ``arm``.

        A test that takes it runs once per platform.
        """
        return buildkit_platform

    plugin = ModuleType("buildkit_tasks_platform")
    vars(plugin)["platform"] = platform
    return plugin


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one case per platform, with ids such as ``arm-v7``, in the order of the options or settings.

    With several images: one case per image and platform, such as ``web-arm-v7``. All workers of pytest-xdist
    must collect the same tests in the same order.
    """
    if {_PLATFORM, _OWN_PLATFORM} <= set(metafunc.fixturenames):
        # Another plugin may have parametrized `platform`, so that the test needs nothing of ours for it.
        metafunc.definition._fixtureinfo.prune_dependency_tree()  # noqa: SLF001 - pytest does so after this hook
    names = [name for name in (_IMAGE, _PLATFORM) if name in metafunc.fixturenames]
    if not names:
        return
    from buildkit_tasks.errors import UsageError

    try:
        _parametrize(metafunc, names)
    except UsageError as error:
        metafunc.config.stash.setdefault(_COLLECTED_ERRORS_KEY, []).append(str(error))
        metafunc.parametrize(names[0], [pytest.param(error, id="error")], indirect=True, scope="session")


def _parametrize(metafunc: pytest.Metafunc, names: list[str]) -> None:
    own_platforms = _own_platforms(metafunc)
    selection = replace(_select_cases(metafunc.config, metafunc.definition), own_platforms=own_platforms)
    if [case.image.name for case in selection.list_images()] == [""]:
        names = [name for name in names if name != _IMAGE]  # a single image is not part of the ids
    if not names:
        return
    cases: dict[str, Case] = {}
    for case in selection.list_platforms() if _PLATFORM in names else selection.list_images():
        labels = [case.image.name if _IMAGE in names else "", case.platform.slug if case.platform else ""]
        label = "-".join(filter(None, labels))
        if label not in cases or cases[label].skip_reason:  # without the image several are the same case
            cases[label] = case
    parameters = [_make_parameter(label, case, names) for label, case in cases.items()]
    metafunc.parametrize(names, parameters, indirect=True, scope="session")
    if own_platforms:
        _drop_other_platforms(metafunc)


def _make_parameter(label: str, case: Case, names: list[str]) -> ParameterSet:
    values = {_IMAGE: case.image, _PLATFORM: case.platform}
    marks = [pytest.mark.skip(reason=case.skip_reason)] if case.skip_reason else []
    return pytest.param(*(values[name] for name in names), id=label, marks=marks)


def _own_platforms(metafunc: pytest.Metafunc) -> list[Platform]:
    """Return the values of a parameter ``platform`` that is not ours; none unless all are platforms."""
    if _PLATFORM not in metafunc.fixturenames:
        return []
    from buildkit_tasks.testing.cases import parse_platform_value

    calls = metafunc._calls  # noqa: SLF001 - no public way
    values = [parse_platform_value(call.params.get(_OWN_PLATFORM)) for call in calls]
    platforms = [platform for platform in values if platform]
    return platforms if len(platforms) == len(values) else []


def _drop_other_platforms(metafunc: pytest.Metafunc) -> None:
    """Drop the cases that would run on another platform than their own parameter ``platform`` says."""
    from buildkit_tasks.testing.cases import parse_platform_value

    metafunc._calls = [  # noqa: SLF001 - no public way
        call
        for call in metafunc._calls  # noqa: SLF001
        if parse_platform_value(call.params[_OWN_PLATFORM]) == call.params[_PLATFORM]
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report an error of this package at the line of the test, without the frames of this package.

    What the report of a failure quotes of an image is made printable.
    Ctrl-C in a build or another program ends pytest, as anywhere else in a test.
    """
    if call.excinfo is None or _IMAGE not in getattr(item, "fixturenames", ()):
        return (yield)
    from buildkit_tasks.errors import Interrupted
    from buildkit_tasks.testing.printable_report import escape_report
    from buildkit_tasks.testing.short_traceback import shorten_traceback

    if isinstance(call.excinfo.value, Interrupted):
        raise KeyboardInterrupt from call.excinfo.value

    with shorten_traceback(item.config, call):
        return escape_report((yield))


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
        _fail_without_case(request, "there are several images: take multiarch_image as an argument", "image")
    return images[0]


@pytest.fixture(scope="session")
def buildkit_platform(request: pytest.FixtureRequest) -> Platform:
    """Return the platform under test, as ``platform`` does; for suites with a ``platform`` of their own."""
    if not hasattr(request, "param"):
        _fail_without_case(request, "the test has no platform: take platform as an argument", "platform")
    platform: Platform = request.param
    return platform


def _fail_without_case(request: pytest.FixtureRequest, message: str, subject: str) -> NoReturn:
    """Fail a test that runs only once, not once per image or platform."""
    from buildkit_tasks.testing.markers import has_unittest_class

    if has_unittest_class(request._pyfuncitem):  # noqa: SLF001 - the node of the fixture is the session
        message = (
            f"pytest cannot run a unittest.TestCase once per {subject}: "
            "write a plain class, whose methods take fixtures as arguments"
        )
    pytest.fail(message, pytrace=False)


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

        def build() -> SessionImage:
            added = _added_platforms(request.session, buildkit_image_under_test)
            platforms = [*buildkit_image_under_test.platforms, *added] if added else []
            return build_session_image(_load_settings(config), name, platforms)

        session_images[name] = _build_once(config, tmp_path_factory, name, build)
    session_image = session_images[name]
    if session_image.skip_reason:
        skip_or_fail(config, session_image.skip_reason)
    if session_image.failure:
        pytest.fail(session_image.failure, pytrace=False)
    return session_image.image


def _added_platforms(session: pytest.Session, image: TestedImage) -> list[Platform]:
    """Return the platforms that selected tests of the image name and the settings do not have."""
    added: dict[Platform, None] = {}
    for item in session.items:
        case = _read_parameters(item)
        if _PLATFORM in case and case.get(_IMAGE, image).name == image.name and _needs_image(item):
            added[case[_PLATFORM]] = None
    return [platform for platform in added if platform not in image.platforms]


def _read_parameters(item: pytest.Item) -> Mapping[str, Any]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def _needs_image(item: pytest.Item) -> bool:
    return "multiarch_image" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("skip")


@pytest.fixture
def run_on_platform(
    request: pytest.FixtureRequest,
    buildkit_image_under_test: TestedImage,
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

    platform = _choose_platform(request, buildkit_image_under_test, buildkit_platform)

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
            return pipeline.run_image(multiarch_image, (platform,)).results[0]

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


def _choose_platform(request: pytest.FixtureRequest, image: TestedImage, platform: Platform) -> Platform:
    """Return the platform of a case, or that of the test's own fixture ``platform`` if no case has that one.

    Skip a case that the test's own fixture contradicts.
    """
    from buildkit_tasks.testing.cases import parse_platform_value

    value = request.getfixturevalue(_OWN_PLATFORM) if _OWN_PLATFORM in request.fixturenames else None
    own_platform = parse_platform_value(value)
    less_exact_names = (platform.architecture, f"{platform.os}/{platform.architecture}", platform.slug)
    if own_platform in (None, platform) or value in less_exact_names:
        return platform
    cases = _select_cases(request.config, request.node).list_platforms()
    if own_platform in [case.platform for case in cases if case.image.name == image.name]:
        pytest.skip(f"the test's own fixture platform is {own_platform}")
    return own_platform


def _select_cases(config: pytest.Config, item: pytest.Item) -> CaseSelection:
    """Return what selects the cases of a test. Raise :class:`UsageError` for a setting or a marker."""
    from buildkit_tasks.config.images import check_image_names
    from buildkit_tasks.platforms import parse_platforms
    from buildkit_tasks.testing.cases import CaseSelection
    from buildkit_tasks.testing.markers import locate_errors, read_marker_names

    settings = _load_settings(config)
    with locate_errors(item):
        image_names = read_marker_names(item, "images")
        check_image_names(settings, image_names)
        platforms = parse_platforms(read_marker_names(item, "platforms"))
    return CaseSelection(
        settings=settings,
        image_requests=get_option(config, "image"),
        is_restricted=bool(get_option(config, "platform")),
        image_names=image_names,
        marked_platforms=platforms,
    )


def _requested_images(config: pytest.Config) -> tuple[TestedImage, ...]:
    from buildkit_tasks.testing.images import select_tested_images

    return select_tested_images(_load_settings(config), get_option(config, "image"))


def _load_settings(config: pytest.Config) -> Settings:
    """Return the settings of the repository, overridden by pytest's options. They are read once."""
    if _SETTINGS_KEY not in config.stash:
        from buildkit_tasks.config.settings import load_settings

        flags = {key: get_option(config, name) for key, name in _SETTING_OPTIONS.items()}
        flag_names = {key: typed_option(config, name) for key, name in _SETTING_OPTIONS.items()}
        config.stash[_SETTINGS_KEY] = load_settings(flags, folder=config.rootpath, flag_names=flag_names)
    return config.stash[_SETTINGS_KEY]
