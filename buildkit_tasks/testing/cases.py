"""The cases of a test: on which images and platforms it runs, and which of them are left out, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.platforms import Platform
from buildkit_tasks.testing.images import select_tested_images

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.testing.images import TestedImage

__all__ = ["Case", "CaseSelection", "parse_platform_value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An image, and the platform if the test has one; with a ``skip_reason`` the test does not run there."""

    image: TestedImage
    platform: Platform | None = None
    skip_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSelection:
    """What selects the cases of a test.

    ``image_requests`` are the values of ``--arch-image``. ``is_restricted`` says that ``--arch-platform`` has
    set the platforms of the settings. ``image_names`` and ``marked_platforms`` are those of the test's
    markers, ``own_platforms`` the values of a parameter ``platform`` that is not the plugin's.
    """

    settings: Settings
    image_requests: Sequence[str] = ()
    is_restricted: bool = False
    image_names: Sequence[str] = ()
    marked_platforms: Sequence[Platform] = ()
    own_platforms: Sequence[Platform] = ()

    def list_images(self) -> list[Case]:
        """Return one case per image: those that are requested, or those that a marker names."""
        requested = select_tested_images(self.settings, self.image_requests)
        if not self.image_names:
            return [Case(image=image) for image in requested]
        named = [image for image in select_tested_images(self.settings) if image.name in self.image_names]
        by_name = {image.name: image for image in requested}
        return [
            Case(image=by_name[image.name])
            if image.name in by_name
            else Case(image=image, skip_reason=f"--arch-image leaves out {image.name}")
            for image in named
        ]

    def list_platforms(self) -> list[Case]:
        """Return one case per image and platform, with the platforms of :meth:`_iter_platforms`.

        Raises :class:`UsageError` for an unknown platform in the settings.
        """
        images = self.list_images()
        return [
            replace(case, platform=platform, skip_reason=case.skip_reason or reason)
            for case in images
            for platform, reason in self._iter_platforms(case.image, [each.image for each in images])
        ]

    def _iter_platforms(
        self, image: TestedImage, images: Collection[TestedImage]
    ) -> Iterator[tuple[Platform, str]]:
        """Yield the platforms of a test on an image, each with the reason to skip it or ``""``.

        They are the values of the test's own parameter, otherwise what a marker names, otherwise the image's.
        The order of the image's platforms does not depend on the marker.
        """
        named = self.marked_platforms
        wanted = [*(each for each in image.platforms if each in named), *named] or image.platforms
        for platform in dict.fromkeys(self.own_platforms or wanted):
            if named and platform not in named:
                yield platform, f"the marker platforms(...) leaves out {platform}"
            elif platform in image.platforms:
                yield platform, ""
            elif self.is_restricted:
                yield platform, f"--arch-platform leaves out {platform}"
            elif any(platform in other.platforms for other in images):
                yield platform, f"{platform} is not a platform of {image.name} in the settings"
            else:  # no image of the settings has it, so that they are built for it, too
                yield platform, ""


def parse_platform_value(value: object) -> Platform | None:
    """Return the platform that a value of ``platform`` names; None if it is not the name of one."""
    if isinstance(value, Platform):
        return value
    try:
        return Platform.parse(value) if isinstance(value, str) else None
    except UsageError:
        return None
