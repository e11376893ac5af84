"""Open and verify images by name, among them the last one built in this folder.

Imports little: an image in a file or a registry is verified without importing anything of an engine.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.config.settings import Settings, cache_folder, create_cache_folder
from buildkit_tasks.errors import EngineError, RegistryError, UsageError
from buildkit_tasks.pipeline.last_build import LastBuild, RecordedImage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuildResult, VerifyReport
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.verify import VerifyOptions
    from buildkit_tasks.verify.progress import VerifyProgress

__all__ = ["ImageResolver"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResolver:
    """Opens images by the names that tasks accept (``containers-transports(5)`` prefixes, or a path).

    The empty name is the last image built in the current folder; :mod:`buildkit_tasks.pipeline.chosen_images`
    also knows the names of the settings' images. ``open_sources`` are images that are open
    already, by name.
    """

    settings: Settings
    commands: CommandRunner
    open_sources: Mapping[str, Image] = field(default_factory=dict)

    def resolve(self, image: str) -> str:
        """Return the name, or that of the last image built if it is empty.

        Raises :class:`UsageError` if nothing was built here yet.
        """
        return image or self.last_built

    @contextmanager
    def open(self, name: str) -> Iterator[Image]:
        """Open an image; see :func:`buildkit_tasks.oci.transports.open_image`."""
        if name in self.open_sources:
            yield self.open_sources[name]
            return
        from buildkit_tasks.oci.transports import open_image

        opened = open_image(name, export=self._export_from_engine, registry_opener=self._open_registry_image)
        with ExitStack() as stack:
            try:
                image = stack.enter_context(opened)
            except RegistryError as error:
                similar_name = self._find_similar_name(name)
                if not similar_name:
                    raise
                raise RegistryError(f"{error.message}; did you mean {similar_name}?") from error
            yield image

    def _find_similar_name(self, name: str) -> str:
        """Return what may be meant by a name that no registry has, or "".

        That is an image that a build here has loaded into the engine, one of the settings, or a bake target.
        """
        recorded = self.last_build.read().images
        loaded_name = f"docker-daemon:{name}"
        if loaded_name in {each.image for each in recorded.values()}:
            return loaded_name
        names = [*(table.name for table in self.settings.images), *filter(None, recorded)]
        return next(iter(difflib.get_close_matches(name, names, n=1)), "")

    @contextmanager
    def cached(self, name: str) -> Iterator[ImageResolver]:
        """Open an image and yield a resolver that fetches each of its blobs once."""
        from buildkit_tasks.oci.transports.cached import cached_source

        folder = create_cache_folder(self.settings)
        with self.open(name) as source, cached_source(source, folder) as cached_image:
            yield replace(self, open_sources={**self.open_sources, name: cached_image})

    def verify(
        self, image: str, expected: Sequence[Platform], hosts: Mapping[Platform, int] | None = None
    ) -> VerifyReport:
        """Verify that an image has exactly the ``expected`` platforms and that each one is what it claims.

        Empty ``expected`` means the platforms that the image has. With ``hosts`` (the number of machines of
        each platform), verify only that the image would start on each of them.

        After the seconds of ``verify_timeout`` in the settings, the platforms that are not finished fail the
        check ``timeout``. Raises :class:`UsageError` if they are set and this is not the main thread.
        """
        from buildkit_tasks.system.time_limit import TimeOver, time_limit
        from buildkit_tasks.verify import VerifyOptions
        from buildkit_tasks.verify.progress import VerifyProgress

        name, settings = self.resolve(image), self.settings
        options = VerifyOptions(
            allow_foreign=settings.allow_foreign, parity=settings.parity, hosts=hosts or {}
        )
        names = tuple(map(str, options.hosts or expected))
        progress = VerifyProgress(subject=name, activity=f"opening {name}", names=names)
        try:
            with time_limit(settings.verify_timeout):
                return self._verify(name, expected, options, progress)
        except TimeOver:
            return progress.report_timeout(settings.verify_timeout)

    def _verify(
        self, name: str, expected: Sequence[Platform], options: VerifyOptions, progress: VerifyProgress
    ) -> VerifyReport:
        from buildkit_tasks.oci.transports import find_local_output
        from buildkit_tasks.verify import verify

        folder = find_local_output(name)
        if folder is not None:
            from buildkit_tasks.verify.local_output import verify_local_output

            built_for = self._built_for(folder)
            return verify_local_output(
                folder, expected, name, options, built_for=built_for, progress=progress
            )
        with self.open(name) as source:
            return verify(source, expected, name, options, progress)

    def _built_for(self, folder: Path) -> Platform | None:
        """Return the platform of a local output of one platform, if it was built here."""
        from buildkit_tasks.platforms import Platform

        platform = self.last_build.read().folders.get(str(folder.absolute()))
        return Platform.parse(platform) if platform else None

    @property
    def last_built(self) -> str:
        """Return the name of the last image built in this folder.

        Raises :class:`UsageError` if none was, if it cannot be read back, and if the last build made several.
        """
        return self.last_image.require_image()

    @property
    def last_image(self) -> RecordedImage:
        """Return the only image of the last build; :attr:`last_built` is its name."""
        images = self.last_build.read().last_images
        if len(images) > 1:
            names = ", ".join(image.name for image in images)
            raise UsageError(
                f"the last build here made several images: {names}", hint=f'pass image="{images[0].name}"'
            )
        return images[0]

    @property
    def last_build(self) -> LastBuild:
        """Return the record of the builds in the current folder."""
        key = hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]
        return LastBuild(path=cache_folder(self.settings) / "last" / f"{key}.json")

    def record_last_built(self, result: BuildResult) -> None:
        """Record a build of one image as :attr:`last_built`."""
        platforms = tuple(built.platform for built in result.platforms)
        self.last_build.start([RecordedImage(platforms=platforms)])
        self.last_build.finish("", result)

    def _export_from_engine(self, reference: str) -> BinaryIO:
        """Return the engine's ``docker save`` stream of an image; no engine is started for it."""
        from buildkit_tasks.host.engine import Engine, find_engine
        from buildkit_tasks.host.engine.export import export_image

        engine = find_engine(self.settings, self.commands)
        if not isinstance(engine, Engine):
            raise EngineError(f"docker-daemon:{reference} cannot be read: {engine.message}", hint=engine.hint)
        return export_image(engine, reference)

    def _open_registry_image(self, reference: str) -> AbstractContextManager[Source]:
        from buildkit_tasks.oci.registry import open_registry

        return open_registry(reference, mirrors=self.settings.mirrors)
