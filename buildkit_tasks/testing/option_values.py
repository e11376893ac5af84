"""Check the values of the pytest plugin's options before tests are collected."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

from buildkit_tasks.errors import BuildkitTasksError, UsageError
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.transports import find_local_output, open_image
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.testing.images import select_tested_images
from buildkit_tasks.testing.pytest_options import get_option, typed_option

if TYPE_CHECKING:
    from collections.abc import Iterable

    import pytest

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.testing.images import TestedImage

__all__ = ["check_image_settings", "check_values"]


def check_values(config: pytest.Config, settings: Settings) -> None:
    """Check the values that were given; ``settings`` are those that the options override.

    Neither a registry nor an engine is asked, but QEMU is. Raises :class:`UsageError`, and
    :class:`MalformedImage` for a file that is not an image.
    """
    if get_option(config, "cpu") == "both":
        option = typed_option(config, "cpu")
        raise UsageError(
            f"{option}=both would be two runs of each test",
            hint=f"pytest {option}=max && pytest {option}=floor",
        )
    requests = get_option(config, "image")
    for request in requests:
        if not request or request.endswith("="):
            option = typed_option(config, "image")
            raise UsageError(f"{option}={request} names no image", hint=f"pytest {option}=dist/app.tar")
    for image in select_tested_images(settings, requests):
        if not image.platforms:
            option = typed_option(config, "platform")
            raise UsageError(f"{option}= names no platform", hint=f"pytest {option}=linux/arm64")
        if image.image:
            _check_image(image.image)
        if get_option(config, "cpu"):
            _check_cpu(image)


def _check_cpu(image: TestedImage) -> None:
    """Ask QEMU whether it has the CPU model. If it cannot be asked, the first run says why."""
    from buildkit_tasks.testing.session_image import create_test_pipeline

    try:
        create_test_pipeline(image.settings).check_cpu(image.platforms)
    except UsageError:
        raise
    except BuildkitTasksError:
        pass


def check_image_settings(image: TestedImage, run_platforms: Iterable[Platform]) -> None:
    """Check the settings that tests of an image need, some of which may run it on these platforms.

    Raises :class:`UsageError` for an unknown platform, and if QEMU has the CPU model for none of the
    platforms. Where it has the model for some, a test on another one may name a model itself.
    """
    from buildkit_tasks.run.cpu_models import CPU_CHOICES

    parse_platforms(image.settings.platforms)
    if image.settings.cpu in CPU_CHOICES:
        return
    from buildkit_tasks.testing.session_image import create_test_pipeline

    pipeline = create_test_pipeline(image.settings)
    refusals: list[UsageError] = []
    for platform in dict.fromkeys(run_platforms):
        try:
            pipeline.check_cpu((platform,))
        except UsageError as error:
            refusals.append(error)
        except BuildkitTasksError:  # QEMU cannot be asked: the first run says why
            return
        else:
            return
    if refusals:
        raise refusals[0]


class _Elsewhere(Exception):
    """The image is in a registry or an engine."""


def _check_image(name: str) -> None:
    """Find an image in a file or a directory; check the name of another one."""
    if find_local_output(name) is None:
        with (
            contextlib.suppress(_Elsewhere),
            open_image(name, export=_stop_at_engine, registry_opener=_check_reference) as image,
        ):
            image.root_descriptor()


def _stop_at_engine(_: str) -> NoReturn:
    raise _Elsewhere


def _check_reference(reference: str) -> NoReturn:
    Reference.parse(reference)
    raise _Elsewhere
