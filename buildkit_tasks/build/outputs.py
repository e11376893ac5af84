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
from buildkit_tasks.system.csv_fields import format_csv_row, parse_csv_row

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "OUTPUT_TYPES",
    "OutputSpec",
    "add_names",
    "check_outputs",
    "find_pushable_archive",
    "make_archive_name",
    "make_archive_output",
    "make_digest_output",
]

OUTPUT_TYPES = ("local", "tar", "oci", "docker", "image", "registry")
_FILE_TYPES = ("tar", "oci", "docker")
_TRUE_VALUES = ("true", "1", "t", "True", "TRUE")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """One ``-o``: its type and its other attributes, in order."""

    type: str
    attributes: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> OutputSpec:
        """Read ``type=oci,dest=x.tar`` (CSV), or a bare path, which means a local folder."""
        fields = parse_csv_row(text, f"output {text!r}")
        if len(fields) == 1 and "=" not in fields[0]:
            return cls(type="tar" if fields[0] == "-" else "local", attributes=(("dest", fields[0]),))
        pairs = [item.split("=", 1) for item in fields]
        if not all(len(pair) == 2 for pair in pairs):  # noqa: PLR2004 - a name and a value
            raise UsageError(f"output {text!r} is not type=TYPE,name=value,...")
        attributes = [(name.strip().lower(), value) for name, value in pairs]
        output_type = dict(attributes).get("type", "")
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output {text!r} has no type among {', '.join(OUTPUT_TYPES)}")
        return cls(type=output_type, attributes=tuple(pair for pair in attributes if pair[0] != "type"))

    def __str__(self) -> str:
        return format_csv_row([f"type={self.type}", *(f"{name}={value}" for name, value in self.attributes)])

    def get(self, name: str) -> str:
        """The value of an attribute, or an empty string."""
        return dict(self.attributes).get(name, "")

    def with_attribute(self, name: str, value: str) -> OutputSpec:
        """The same output with one attribute set."""
        other_attributes = tuple(pair for pair in self.attributes if pair[0] != name)
        return replace(self, attributes=(*other_attributes, (name, value)))

    @property
    def dest(self) -> Path | None:
        """The file or folder that it writes; None for standard output and for images."""
        text = self.get("dest")
        return Path(text) if text and text != "-" else None

    @property
    def is_file(self) -> bool:
        """Whether ``dest`` is one file."""
        is_unpacked = self.get("tar").lower() == "false"
        return self.dest is not None and self.type in _FILE_TYPES and not is_unpacked

    @property
    def is_pushed(self) -> bool:
        """Whether it sends to a registry."""
        return self.type == "registry" or (self.type == "image" and self.get("push") in _TRUE_VALUES)

    @property
    def is_loaded(self) -> bool:
        """Whether it puts the image into the engine's store."""
        return self.type == "docker" and not self.get("dest")

    @property
    def names(self) -> tuple[str, ...]:
        """The image references that it names by itself."""
        return tuple(name for name in self.get("name").split(",") if name)


def add_names(output: OutputSpec, tags: Sequence[str]) -> OutputSpec:
    """The output with its names in it, for a build that has no ``--tag`` to give them."""
    can_have_names = output.type in ("oci", "docker", "image", "registry")
    return (
        output.with_attribute("name", ",".join(tags))
        if can_have_names and tags and not output.names
        else output
    )


def make_digest_output(output: OutputSpec, repositories: Sequence[str]) -> OutputSpec:
    """A push that names nothing: what it sends can be asked for by its digest alone.

    BuildKit's image exporter: ``push-by-digest`` and ``name-canonical``.
    """
    other_attributes = (pair for pair in output.attributes if pair[0] not in ("name", "push"))
    push_attributes = (("name", ",".join(repositories)), ("push", "true"))
    digest_attributes = (("push-by-digest", "true"), ("name-canonical", "true"))
    return OutputSpec(type="image", attributes=(*other_attributes, *push_attributes, *digest_attributes))


def find_pushable_archive(outputs: Sequence[OutputSpec]) -> Path | None:
    """The OCI archive that a push can be made of, if one is made anyway and packed in the same way."""
    archives = [output for output in outputs if output.type == "oci" and output.is_file]
    push_attributes = {_select_packing_attributes(output) for output in outputs if output.is_pushed}
    matching = (
        archive.dest for archive in archives if push_attributes == {_select_packing_attributes(archive)}
    )
    return next(matching, None)


def _select_packing_attributes(output: OutputSpec) -> tuple[tuple[str, str], ...]:
    """What an output says of how layers and documents are written."""
    return tuple(sorted(pair for pair in output.attributes if pair[0] not in ("dest", "name", "push")))


def make_archive_output(output: OutputSpec, path: Path, names: Sequence[str]) -> OutputSpec:
    """An OCI archive of what an output would push or load, packed in the same way."""
    return add_names(
        OutputSpec(type="oci", attributes=(("dest", str(path)), *_select_packing_attributes(output))), names
    )


def make_archive_name(tags: Sequence[str], context: str) -> str:
    """The default file in ``dist/``: after the first tag's last part, else after the folder."""
    image_name = tags[0].rpartition("/")[2] if tags else Path(context).resolve().name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", image_name.partition("@")[0]).strip("-.")
    return f"{stem or 'image'}.tar"


def check_outputs(outputs: Iterable[OutputSpec], tags: Sequence[str]) -> None:
    """Raise :class:`UsageError` for an output that would destroy something or go nowhere."""
    for output in outputs:
        if output.is_pushed and not (tags or output.names):
            raise UsageError(
                f"output {output} pushes, and no image is named", hint="add -t REGISTRY/NAME:TAG"
            )
        if output.get("dest") == "-":
            raise UsageError(f"output {output} goes to standard output, which is kept for reports")
        if output.type in ("local", "tar", "oci") and output.dest is None:
            raise UsageError(f"output {output} names no place", hint=f"-o type={output.type},dest=dist/out")
        if output.dest is not None:
            check_destination(f"output {output.dest}", output.dest)
            if output.is_file and output.dest.is_dir():
                raise UsageError(f"output {output.dest} is a folder, and type {output.type} writes a file")


def check_destination(label: str, dest: Path) -> None:
    """Refuse a place that somebody would miss: a link, the root folder, the home folder."""
    if dest.is_symlink():
        raise UsageError(f"{label} is a symbolic link; name the place itself")
    resolved = dest.resolve()
    if resolved in (Path("/"), Path.home()):
        raise UsageError(f"{label} is {resolved}; name a folder inside it")
