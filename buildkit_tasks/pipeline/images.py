"""Images by their names under the settings: what was built last here, opened and verified.

Imports little: an image in a file or a registry is verified without a word about engines.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from buildkit_tasks.config.settings import Settings, cache_folder
from buildkit_tasks.errors import EngineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.report.model import BuildResult, Output, VerifyReport
    from buildkit_tasks.system.command import Runner

__all__ = ["Images", "image_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """The images that can be named in this folder; ``opened`` are those that are open already."""

    settings: Settings
    run: Runner
    opened: Mapping[str, Source] = field(default_factory=dict)

    def name(self, image: str) -> str:
        """The name given, or that of what was built last here."""
        return image or self.last

    @contextmanager
    def open(self, name: str) -> Iterator[Source]:
        """Open an image by its name; see :func:`.transports.open_image`."""
        if name in self.opened:
            yield self.opened[name]
            return
        from buildkit_tasks.oci.transports import open_image

        with open_image(name, export=self._export, registry=self._registry) as source:
            yield source

    @contextmanager
    def kept(self, name: str) -> Iterator[Images]:
        """These images with one that is fetched once, however often it is read."""
        from buildkit_tasks.oci.transports.cached import keeping

        folder = cache_folder(self.settings)
        folder.mkdir(parents=True, exist_ok=True)
        with self.open(name) as source, keeping(source, folder) as kept:
            yield replace(self, opened={**self.opened, name: kept})

    def verify(
        self, image: str, expected: Sequence[Platform], hosts: Mapping[Platform, int] | None = None
    ) -> VerifyReport:
        """Prove that the image's platforms are the expected ones, and are what they say.

        With ``hosts``, only that it would start on each of them.
        """
        from buildkit_tasks.oci.transports import local_folder
        from buildkit_tasks.verify import Rules, verify

        name, settings = self.name(image), self.settings
        rules = Rules(allow_foreign=settings.allow_foreign, parity=settings.parity, hosts=hosts or {})
        folder = local_folder(name)
        if folder is not None:
            from buildkit_tasks.verify.local_output import verify_folder

            return verify_folder(folder, expected, name, rules)
        with self.open(name) as source:
            return verify(source, expected, name, rules)

    @property
    def last(self) -> str:
        """What was built last in this folder, as an image name."""
        try:
            return self._record.read_text(encoding="utf-8")
        except OSError:
            raise UsageError(
                "nothing was built here yet", hint="inv build-multiarch, or name an image"
            ) from None

    def remember(self, result: BuildResult) -> None:
        """Make a build's best output the one that is meant when none is named."""
        name = image_of(result)
        if name:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            self._record.write_text(name, encoding="utf-8")

    @property
    def _record(self) -> Path:
        key = hashlib.sha256(str(Path.cwd()).encode()).hexdigest()[:16]
        return cache_folder(self.settings) / "last" / key

    def _export(self, reference: str) -> BinaryIO:
        """The engine's save stream of an image; no engine is started for it."""
        from buildkit_tasks.host.engine import Engine, existing_engine
        from buildkit_tasks.host.engine.export import export_image

        engine = existing_engine(self.settings, self.run)
        if not isinstance(engine, Engine):
            raise EngineError(f"docker-daemon:{reference} cannot be read: {engine}", hint="inv setup-builder")
        return export_image(engine, reference)

    def _registry(self, reference: str) -> AbstractContextManager[Source]:
        from buildkit_tasks.oci.registry import open_registry

        return open_registry(reference, mirrors=self.settings.mirrors)


# An output's type, and the transport of a file or folder that it wrote. The best come first: an
# archive proves most, and a local output has no manifests.
_FILES = {"oci": "oci-archive", "docker": "docker-archive", "local": "dir"}
_REFERENCES = {"docker": "docker-daemon:", "registry": "docker://"}
_ORDER = ("oci", "docker", "registry", "local")


def image_of(result: BuildResult) -> str:
    """A build's best output as the image name by which the next steps find it; empty if it has none."""
    names = (name for name in map(_image_name, sorted(result.outputs, key=_rank)) if name)
    return next(names, "")


def _rank(output: Output) -> int:
    return [*_ORDER, output.type].index(output.type)


def _image_name(output: Output) -> str:
    """An output as the image name by which the next steps find it; empty where they cannot."""
    if output.dest and output.type in _FILES:
        return f"{_FILES[output.type]}:{Path(output.dest).absolute()}"
    return _REFERENCES[output.type] + output.ref if output.ref and output.type in _REFERENCES else ""
