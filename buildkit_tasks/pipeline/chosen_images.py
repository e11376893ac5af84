"""Choose the images of a task by what ``--image`` says: one meaning for every task.

============== ======================================================================= ==================
value          image                                                                   settings
============== ======================================================================= ==================
``NAME``       the last build of that image of the settings, if they have one          of that image
``TARGET``     the last build of that target of a bake file, unless a file is so named of that target
``NAME=IMAGE`` the image with that name, as an image of the settings                   of that image
``IMAGE``      any other: a transport's name, a path or a registry reference           the general ones
nothing        every image of the last build here                                      of each image
============== ======================================================================= ==================
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.images import settings_for_image, settings_for_target, split_image_request
from buildkit_tasks.config.schema import IMAGE_NAME_PATTERN
from buildkit_tasks.config.settings import SettingOrigin
from buildkit_tasks.errors import BuildkitTasksError, Interrupted, UsageError
from buildkit_tasks.report.model import ImageReport, ImagesReport, PushResult, RunReport, VerifyReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.last_build import BuildRecord, RecordedImage
    from buildkit_tasks.pipeline.pipeline import Pipeline

__all__ = ["ChosenImage", "check_known", "choose_images", "report_each"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenImage:
    """An image and its settings. ``name`` is that of the settings' image or of a bake file's target, or "".

    ``location`` is the name that tasks accept, or "" for the last build, ``recorded`` if there is one.
    """

    settings: Settings
    name: str = ""
    location: str = ""
    recorded: RecordedImage | None = None

    @property
    def label(self) -> str:
        """Return what the image is called in a report of several."""
        return self.name or self.location

    def require_location(self) -> str:
        """Return the image as tasks accept it. Raises :class:`UsageError` if it cannot be read back."""
        return self.location if self.recorded is None else self.recorded.require_image()

    def require_manifests(self) -> str:
        """Return the image as a run and a push accept it: of the last build, no local output."""
        return self.location if self.recorded is None else self.recorded.require_manifests()


def choose_images(pipeline: Pipeline, requests: Iterable[str]) -> tuple[ChosenImage, ...]:
    """Return the images that are requested, in that order; without a request, those of the last build here.

    If nothing was built here yet, that is an image without a location. Raises :class:`UsageError` for an
    image of the settings that was not built yet.
    """
    settings, record = pipeline.settings, pipeline.resolver.last_build.read()
    values = [value for value in requests if value]
    if not values:
        recorded = tuple(_from_record(settings, record.images[name]) for name in record.last)
        return recorded or (ChosenImage(settings=settings),)
    chosen = [each for value in values for each in _parse_request(settings, record, value)]
    return tuple({(each.name, each.location): each for each in chosen}.values())


def check_known(pipeline: Pipeline, location: str) -> None:
    """Raise :class:`UsageError` for a bare name that is neither a path nor a known image.

    Known are those of the settings and of builds here. The name may be that of an image in a registry: this
    is for a task that cannot use one.
    """
    if not IMAGE_NAME_PATTERN.match(location) or Path(location).exists():
        return
    record = pipeline.resolver.last_build.read()
    names = dict.fromkeys([*(table.name for table in pipeline.settings.images), *filter(None, record.images)])
    nearest = next(iter(difflib.get_close_matches(location, names, n=1)), "")
    if names:
        suggestion = f", did you mean {nearest}?" if nearest else ""
        raise UsageError(
            f"there is no image or file {location!r} here{suggestion}",
            hint=f"choose one of {', '.join(names)}",
        )


def _parse_request(settings: Settings, record: BuildRecord, value: str) -> Iterator[ChosenImage]:
    targets = [name.strip() for name in value.split(",")]
    if not Path(value).exists() and all(_is_target(record, name) for name in targets):
        yield from (_from_record(settings, record.images[name]) for name in targets)
        return
    for name, location in split_image_request(settings, value):
        if not name:
            yield ChosenImage(settings=settings, location=location)
        elif location:
            yield ChosenImage(name=name, settings=settings_for_image(settings, name), location=location)
        else:
            yield _from_record(settings, record.find_image(name))


def _is_target(record: BuildRecord, name: str) -> bool:
    """Return True for a target of a bake file that was built here."""
    return name in record.images and bool(record.images[name].bake_files)


def _from_record(settings: Settings, image: RecordedImage) -> ChosenImage:
    if not image.name:
        return ChosenImage(settings=settings, recorded=image)
    if not image.bake_files:
        return ChosenImage(name=image.name, settings=settings_for_image(settings, image.name), recorded=image)
    return ChosenImage(name=image.name, settings=_target_settings(settings, image), recorded=image)


def _target_settings(settings: Settings, image: RecordedImage) -> Settings:
    """Return the settings of a bake file's target, whose platforms and tags are those of its build."""
    target_settings = settings_for_target(settings, image.name)
    built: dict[str, Any] = {"platforms": image.platforms, "tags": image.tags}
    flags = {key for key, origin in settings.origins.items() if origin is SettingOrigin.FLAG}
    values = {key: value for key, value in built.items() if key not in flags}
    origins = {**target_settings.origins, **dict.fromkeys(values, SettingOrigin.PYPROJECT)}
    return replace(target_settings, **values, origins=origins)


def report_each(
    pipeline: Pipeline,
    images: Iterable[ChosenImage],
    step: str,
    make_report: Callable[[Pipeline, ChosenImage], VerifyReport | RunReport | PushResult],
) -> tuple[ImagesReport, tuple[BuildkitTasksError, ...]]:
    """Return the report of several images, and the error of each that failed with one.

    ``make_report`` gets a pipeline with the settings of the image; ``step`` is verify, run or push. One image
    that fails does not stop the others; after an interruption none is started.
    """
    report = ImagesReport()
    errors: list[BuildkitTasksError] = []
    for image in images:
        image_report = ImageReport(name=image.label, steps=(step,))
        try:
            image_report = _with_report(
                image_report, make_report(pipeline.with_settings(image.settings), image)
            )
        except BuildkitTasksError as error:
            message = str(error).removeprefix(f"{image.label}: ")  # as require_location names the image
            pipeline.notify(f"{image.label}: {message}")
            image_report = replace(image_report, error=message)
            errors.append(error)
        report = replace(report, images=(*report.images, image_report))
        if errors and isinstance(errors[-1], Interrupted):
            break
    return report, tuple(errors)


def _with_report(image_report: ImageReport, report: VerifyReport | RunReport | PushResult) -> ImageReport:
    match report:
        case VerifyReport():
            return replace(image_report, verify=report)
        case RunReport():
            return replace(image_report, run=report)
        case PushResult():
            return replace(image_report, push=report, verify=report.verify, run=report.run, tags=report.tags)
