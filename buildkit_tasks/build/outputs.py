"""The outputs of a build: parse ``--output`` and check it before the build.

See the reference of ``docker buildx build --output`` for the six types. Which output makes buildx write
what is planned in :mod:`buildkit_tasks.build.exports`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.typed_option import TypedOption, parse_attributes
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.csv_fields import parse_csv_row
from buildkit_tasks.system.files import check_writable, expand_home

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "OUTPUT_TYPES",
    "OutputSpec",
    "add_archive_output",
    "add_names",
    "check_destination",
    "check_outputs",
    "find_pushable_archive",
    "list_names",
    "make_archive_name",
    "make_archive_output",
    "make_digest_output",
]

OUTPUT_TYPES = ("local", "tar", "oci", "docker", "image", "registry")
_FILE_TYPES = ("tar", "oci", "docker")
# What Go's strconv.ParseBool takes.
_TRUE_VALUES = ("true", "1", "t", "T", "True", "TRUE")
_FALSE_VALUES = ("false", "0", "f", "F", "False", "FALSE")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec(TypedOption):
    """One ``--output``."""

    @classmethod
    def parse(cls, text: str) -> OutputSpec:
        """Parse ``type=oci,dest=x.tar`` (CSV), or a bare path, which means a local folder."""
        fields = parse_csv_row(text, f"output {text!r}")
        if len(fields) == 1 and "=" not in fields[0]:
            return cls(type="tar" if fields[0] == "-" else "local", attributes=(("dest", fields[0]),))
        parsed = parse_attributes(fields)
        if parsed is None:
            raise UsageError(f"output {text!r} is not of the form type=TYPE,name=value,...")
        output_type, attributes = parsed
        if output_type not in OUTPUT_TYPES:
            raise UsageError(f"output {text!r} has no type among {', '.join(OUTPUT_TYPES)}")
        return cls(type=output_type, attributes=attributes)

    @property
    def dest(self) -> Path | None:
        """Return the file or folder that is written; None for standard output and for images."""
        text = self.get("dest")
        return Path(text) if text and text != "-" else None

    @property
    def is_file(self) -> bool:
        """Return True if ``dest`` is one file."""
        return self.dest is not None and self.type in _FILE_TYPES and not self.is_unpacked

    @property
    def is_unpacked(self) -> bool:
        """Return True if ``dest`` is an image layout in a folder, instead of an archive (``tar=false``)."""
        return self.type in ("oci", "docker") and self.get("tar") in _FALSE_VALUES

    @property
    def is_oci_archive(self) -> bool:
        """Return True if ``dest`` is an OCI archive: an image layout in a tar file."""
        return self.type == "oci" and self.is_file

    @property
    def is_pushed(self) -> bool:
        """Return True if the image goes to a registry."""
        return self.type == "registry" or (self.type == "image" and self.get("push") in _TRUE_VALUES)

    @property
    def is_loaded(self) -> bool:
        """Return True if the image goes to the engine's store."""
        return self.type == "docker" and not self.get("dest")

    @property
    def names(self) -> tuple[str, ...]:
        """Return the image references of the attribute ``name``."""
        return tuple(name for name in self.get("name").split(",") if name)


def add_archive_output(outputs: Sequence[OutputSpec], dest: str) -> tuple[OutputSpec, ...]:
    """Return the outputs with an OCI archive at ``dest``, unless there is an OCI archive already."""
    if any(output.is_oci_archive for output in outputs):
        return tuple(outputs)
    return (OutputSpec(type="oci", attributes=(("dest", dest),)), *outputs)


def add_names(output: OutputSpec, tags: Sequence[str]) -> OutputSpec:
    """Return an output that is not pushed with ``tags`` added to its names, for a build without ``--tag``."""
    can_have_names = output.type in ("oci", "docker", "image", "registry")
    names = list_names(output, tags)
    return output.with_attribute("name", ",".join(names)) if can_have_names and names else output


def list_names(output: OutputSpec, tags: Sequence[str]) -> tuple[str, ...]:
    """Return the names of an output's image: those of a push are its own, else the tags; others have both."""
    if output.is_pushed:
        return output.names or tuple(tags)
    return tuple(dict.fromkeys((*tags, *output.names)))


def make_digest_output(output: OutputSpec, repositories: Sequence[str]) -> OutputSpec:
    """Return a push without a tag: the image can be pulled by its digest only.

    See ``push-by-digest`` and ``name-canonical`` of BuildKit's image exporter.
    """
    other_attributes = (pair for pair in output.attributes if pair[0] not in ("name", "push"))
    push_attributes = (("name", ",".join(repositories)), ("push", "true"))
    digest_attributes = (("push-by-digest", "true"), ("name-canonical", "true"))
    return OutputSpec(type="image", attributes=(*other_attributes, *push_attributes, *digest_attributes))


def find_pushable_archive(outputs: Sequence[OutputSpec]) -> Path | None:
    """Return the OCI archive among the outputs with the same packing as every push, or None."""
    push_packings = {_packing_attributes(output) for output in outputs if output.is_pushed}
    archives = (output for output in outputs if output.is_oci_archive)
    return next((each.dest for each in archives if push_packings == {_packing_attributes(each)}), None)


def _packing_attributes(output: OutputSpec) -> tuple[tuple[str, str], ...]:
    """Return the attributes that change the bytes of layers and manifests, such as ``compression``."""
    return tuple(sorted(pair for pair in output.attributes if pair[0] not in ("dest", "name", "push")))


def make_archive_output(output: OutputSpec, path: Path, names: Sequence[str]) -> OutputSpec:
    """Return an OCI archive at ``path``, packed as another output would be."""
    attributes = (("dest", str(path)), *_packing_attributes(output))
    return add_names(OutputSpec(type="oci", attributes=attributes), names)


def make_archive_name(tags: Sequence[str], context: str) -> str:
    """Return the default file name in ``dist/``: after the first tag's last component, else the context."""
    image_name = tags[0].rpartition("/")[2] if tags else Path(context).resolve().name
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", image_name.partition("@")[0]).strip("-.")
    return f"{stem or 'image'}.tar"


def check_outputs(outputs: Iterable[OutputSpec], tags: Sequence[str], *, is_split: bool = False) -> None:
    """Raise :class:`UsageError` for an output without a destination, or one that would destroy data.

    ``is_split`` is True if the pushed image is a part (``--split``).
    """
    for output in outputs:
        if output.is_pushed and not list_names(output, tags):
            raise UsageError(
                f"{_describe_push(output, is_split=is_split)} needs a tag", hint="-t REGISTRY/NAME:TAG"
            )
        if output.is_loaded and not list_names(output, tags):
            raise UsageError(f"--output={output} needs a tag", hint="-t NAME:TAG")
        if output.get("dest") == "-":
            raise UsageError(f"output {output}: standard output is reserved for reports")
        if output.type in ("local", "tar", "oci") and output.dest is None:
            complete = output.with_attribute("dest", "dist/out")
            raise UsageError(f"output {output} has no dest", hint=f"-o {shlex.quote(str(complete))}")
        if output.dest is not None:
            check_writable(output.dest, f"--output=type={output.type},dest=")
            check_destination(f"output {output.dest}", output.dest)
            if output.is_file and output.dest.is_dir():
                raise UsageError(f"output {output.dest} is a folder, but type {output.type} writes a file")


def _describe_push(output: OutputSpec, *, is_split: bool) -> str:
    """Return what asks for a push: ``--push`` and ``--split`` are short for ``--output=type=registry``."""
    if output.attributes or output.type != "registry":
        return f"--output={output}"
    return "--split" if is_split else "a push"


def check_destination(label: str, dest: Path) -> None:
    """Raise :class:`UsageError` for a symbolic link, the root folder and the home folder."""
    if dest.is_symlink():
        raise UsageError(f"{label} is a symbolic link; name its target")
    resolved = dest.resolve()
    if resolved in (Path("/"), expand_home("~")):
        raise UsageError(f"{label} is {resolved}; name a folder inside it")
