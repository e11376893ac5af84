"""The outputs of a build: read ``-o``, check them before building, write files safely.

See the reference of ``docker buildx build --output`` for the six types. A file output is written
beside its place and renamed when the build has succeeded: a failed build would destroy the old one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import read_row, write_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "TYPES",
    "OutputSpec",
    "archive_name",
    "archive_of",
    "as_archive",
    "by_digest",
    "check_outputs",
    "named",
]

TYPES = ("local", "tar", "oci", "docker", "image", "registry")
_FILE_TYPES = ("tar", "oci", "docker")
_TRUE = ("true", "1", "t", "True", "TRUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One ``-o``: its type and its other attributes, in order."""

    type: str
    attributes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> OutputSpec:
        """Read ``type=oci,dest=x.tar`` (CSV), or a bare path, which means a local folder."""
        fields = read_row(text, f"output {text!r}")
        if len(fields) == 1 and "=" not in fields[0]:
            return cls(type="tar" if fields[0] == "-" else "local", attributes=(("dest", fields[0]),))
        pairs = [item.split("=", 1) for item in fields]
        if not all(len(pair) == 2 for pair in pairs):  # noqa: PLR2004 - a name and a value
            raise UsageError(f"output {text!r} is not type=TYPE,name=value,...")
        values = [(name.strip().lower(), value) for name, value in pairs]
        kind = dict(values).get("type", "")
        if kind not in TYPES:
            raise UsageError(f"output {text!r} has no type among {', '.join(TYPES)}")
        return cls(type=kind, attributes=tuple(pair for pair in values if pair[0] != "type"))

    def __str__(self) -> str:
        return write_row([f"type={self.type}", *(f"{name}={value}" for name, value in self.attributes)])

    def get(self, name: str) -> str:
        """The value of an attribute, or an empty string."""
        return dict(self.attributes).get(name, "")

    def with_(self, name: str, value: str) -> OutputSpec:
        """The same output with one attribute set."""
        others = tuple(pair for pair in self.attributes if pair[0] != name)
        return replace(self, attributes=(*others, (name, value)))

    @property
    def dest(self) -> Path | None:
        """The file or folder that it writes; None for standard output and for images."""
        text = self.get("dest")
        return Path(text) if text and text != "-" else None

    @property
    def is_file(self) -> bool:
        """Whether ``dest`` is one file."""
        unpacked = self.get("tar").lower() == "false"
        return self.dest is not None and self.type in _FILE_TYPES and not unpacked

    @property
    def pushes(self) -> bool:
        """Whether it sends to a registry."""
        return self.type == "registry" or (self.type == "image" and self.get("push") in _TRUE)

    @property
    def loads(self) -> bool:
        """Whether it puts the image into the engine's store."""
        return self.type == "docker" and not self.get("dest")

    @property
    def names(self) -> tuple[str, ...]:
        """The image references that it names by itself."""
        return tuple(name for name in self.get("name").split(",") if name)


def named(output: OutputSpec, tags: Sequence[str]) -> OutputSpec:
    """The output with its names in it, for a build that has no ``--tag`` to give them."""
    takes_names = output.type in ("oci", "docker", "image", "registry")
    return output.with_("name", ",".join(tags)) if takes_names and tags and not output.names else output


def by_digest(output: OutputSpec, repositories: Sequence[str]) -> OutputSpec:
    """A push that names nothing: what it sends can be asked for by its digest alone.

    BuildKit's image exporter: ``push-by-digest`` and ``name-canonical``.
    """
    others = (pair for pair in output.attributes if pair[0] not in ("name", "push"))
    pushed = (("name", ",".join(repositories)), ("push", "true"))
    digest = (("push-by-digest", "true"), ("name-canonical", "true"))
    return OutputSpec(type="image", attributes=(*others, *pushed, *digest))


def archive_of(outputs: Sequence[OutputSpec]) -> Path | None:
    """The OCI archive that a push can be made of, if one is made anyway and packed in the same way."""
    archives = [output for output in outputs if output.type == "oci" and output.is_file]
    packings = {_packing(output) for output in outputs if output.pushes}
    fitting = (archive.dest for archive in archives if packings == {_packing(archive)})
    return next(fitting, None)


def _packing(output: OutputSpec) -> tuple[tuple[str, str], ...]:
    """What an output says of how layers and documents are written."""
    return tuple(sorted(pair for pair in output.attributes if pair[0] not in ("dest", "name", "push")))


def as_archive(output: OutputSpec, place: Path, names: Sequence[str]) -> OutputSpec:
    """An OCI archive of what an output would push or load, packed in the same way."""
    return named(OutputSpec(type="oci", attributes=(("dest", str(place)), *_packing(output))), names)


def archive_name(tags: Sequence[str], context: str) -> str:
    """The default file in ``dist/``: after the first tag's last part, else after the folder."""
    source = tags[0].rpartition("/")[2] if tags else Path(context).resolve().name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", source.partition("@")[0]).strip("-.")
    return f"{stem or 'image'}.tar"


def check_outputs(outputs: Iterable[OutputSpec], tags: Sequence[str]) -> None:
    """Raise :class:`UsageError` for an output that would destroy something or go nowhere."""
    for output in outputs:
        if output.pushes and not (tags or output.names):
            raise UsageError(
                f"output {output} pushes, and no image is named", hint="add -t REGISTRY/NAME:TAG"
            )
        if output.get("dest") == "-":
            raise UsageError(f"output {output} goes to standard output, which is kept for reports")
        if output.type in ("local", "tar", "oci") and output.dest is None:
            raise UsageError(f"output {output} names no place", hint=f"-o type={output.type},dest=dist/out")
        if output.dest is not None:
            check_place(f"output {output.dest}", output.dest)
            if output.is_file and output.dest.is_dir():
                raise UsageError(f"output {output.dest} is a folder, and type {output.type} writes a file")


def check_place(what: str, dest: Path) -> None:
    """Refuse a place that somebody would miss: a link, the root folder, the home folder."""
    if dest.is_symlink():
        raise UsageError(f"{what} is a symbolic link; name the place itself")
    place = dest.resolve()
    if place in (Path("/"), Path.home()):
        raise UsageError(f"{what} is {place}; name a folder inside it")
