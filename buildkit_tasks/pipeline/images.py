"""Open and verify images by name, among them the last one built in this folder.

Imports little: an image in a file or a registry is verified without importing anything of an engine.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.config.settings import Settings, cache_folder, writable_cache_folder
from buildkit_tasks.errors import EngineError, UsageError
from buildkit_tasks.system.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.image import Image
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuildResult, Output, VerifyReport
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["ImageResolver", "best_image_name"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResolver:
    """Opens images by the names that tasks accept (``containers-transports(5)`` prefixes, or a path).

    The empty name is the last image built in the current folder. ``open_sources`` are images that are open
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

        with open_image(
            name, export=self._export_from_engine, registry_opener=self._open_registry_image
        ) as image:
            yield image

    @contextmanager
    def cached(self, name: str) -> Iterator[ImageResolver]:
        """Open an image and yield a resolver that fetches each of its blobs once."""
        from buildkit_tasks.oci.transports.cached import cached_source

        folder = writable_cache_folder(self.settings)
        folder.mkdir(parents=True, exist_ok=True)
        with self.open(name) as source, cached_source(source, folder) as cached_image:
            yield replace(self, open_sources={**self.open_sources, name: cached_image})

    def verify(
        self, image: str, expected: Sequence[Platform], hosts: Mapping[Platform, int] | None = None
    ) -> VerifyReport:
        """Verify that an image has exactly the ``expected`` platforms and that each one is what it claims.

        Empty ``expected`` means the platforms that the image has. With ``hosts`` (the number of machines of
        each platform), verify only that the image would start on each of them.
        """
        from buildkit_tasks.oci.transports import find_local_output
        from buildkit_tasks.verify import VerifyOptions, verify

        name, settings = self.resolve(image), self.settings
        options = VerifyOptions(
            allow_foreign=settings.allow_foreign, parity=settings.parity, hosts=hosts or {}
        )
        folder = find_local_output(name)
        if folder is not None:
            from buildkit_tasks.verify.local_output import verify_local_output

            return verify_local_output(folder, expected, name, options)
        with self.open(name) as source:
            return verify(source, expected, name, options)

    @property
    def last_built(self) -> str:
        """Return the name of the last image built in this folder. Raises :class:`UsageError` if none was."""
        try:
            return self._last_built_file.read_text(encoding="utf-8")
        except OSError:
            raise UsageError(
                "nothing was built here yet", hint="inv build-multiarch, or name an image"
            ) from None

    def record_last_built(self, result: BuildResult) -> None:
        """Record a build's best output as :attr:`last_built`; do nothing if no output can be read back."""
        name = best_image_name(result)
        if name:
            write_atomically(self._last_built_file, name)

    @property
    def _last_built_file(self) -> Path:
        key = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:16]
        return cache_folder(self.settings) / "last" / key

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


_FILE_TRANSPORTS = {"oci": "oci-archive", "docker": "docker-archive", "local": "dir"}  # by an output's type
_REFERENCE_PREFIXES = {"docker": "docker-daemon:", "registry": "docker://"}
# Best first: an archive can be verified most thoroughly, and a local output has no manifests.
_OUTPUT_PREFERENCE = ("oci", "docker", "registry", "local")


def best_image_name(result: BuildResult) -> str:
    """Return a build's best output as an image name, or "" if no output can be read back."""
    names = map(_output_image_name, sorted(result.outputs, key=_preference_rank))
    return next(filter(None, names), "")


def _preference_rank(output: Output) -> int:
    return [*_OUTPUT_PREFERENCE, output.type].index(output.type)


def _output_image_name(output: Output) -> str:
    """Return an output as an image name, or "" if it cannot be read back (a ``tar``, say)."""
    if output.dest and output.type in _FILE_TRANSPORTS:
        return f"{_FILE_TRANSPORTS[output.type]}:{Path(output.dest).absolute()}"
    if output.ref and output.type in _REFERENCE_PREFIXES:
        return _REFERENCE_PREFIXES[output.type] + output.ref
    return ""
