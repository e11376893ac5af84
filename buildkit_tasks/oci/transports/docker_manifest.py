"""``manifest.json``: which images a `docker save` archive holds, and which of them is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from buildkit_tasks.errors import MalformedImage, UsageError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.strict_json import load_object, refuse_other_letters
from buildkit_tasks.oci.transports.tar_members import plain_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MANIFEST", "Origin", "Saved", "choices", "chosen_image", "chosen_number", "saved_images"]

MANIFEST = "manifest.json"
_NUMBERED = re.compile(r"@([0-9]{1,6})", re.ASCII)

_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class Origin(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where a layer came from, as docker notes it in ``LayerSources`` by its diff_id."""

    media_type: _Name
    digest: _Name
    size: Annotated[int, msgspec.Meta(ge=0)]


class _Raw(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    config: _Name
    repo_tags: list[_Name] | None = None
    layers: list[_Name] | None = None
    layer_sources: dict[str, Origin] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """An image of ``manifest.json``: the names of its config and of its layers, lowest first."""

    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    sources: Mapping[str, Origin] = field(default_factory=dict, hash=False)


def saved_images(data: bytes) -> tuple[Saved, ...]:
    """Read ``manifest.json``: a list of images."""
    # The strict reader takes objects only. An object whose only key is ours held just one value.
    document = load_object(b'{"images":' + data + b"}", MANIFEST)
    images = document["images"]
    if len(document) != 1 or not isinstance(images, list) or len(images) > LIMITS.manifests:
        raise MalformedImage(f"{MANIFEST} is no list of at most {LIMITS.manifests} images")
    if not images:
        raise MalformedImage(f"{MANIFEST} lists no image")
    return tuple(_saved(image) for image in images)


def _saved(image: Any) -> Saved:
    if isinstance(image, dict):
        refuse_other_letters(image, _Raw.__struct_encode_fields__, MANIFEST)
    try:
        raw = msgspec.convert(image, _Raw)
    except msgspec.ValidationError as error:
        raise MalformedImage(f"{MANIFEST} is malformed: {error}") from None
    layers = tuple(plain_name(layer) for layer in raw.layers or ())
    if len(layers) > LIMITS.layers:
        raise MalformedImage(f"{MANIFEST} lists {len(layers)} layers; {LIMITS.layers} are allowed")
    return Saved(
        config=plain_name(raw.config),
        names=tuple(raw.repo_tags or ()),
        layers=layers,
        sources=raw.layer_sources or {},
    )


def chosen_image(images: Sequence[Saved], reference: str | None) -> Saved:
    """The one that a reference means, or the only one. Raises :class:`UsageError` with the choices."""
    names = [image.names for image in images]
    if reference is not None:
        return images[chosen_number(names, reference)]
    if len({(image.config, image.layers) for image in images}) > 1:
        raise UsageError(f"the archive holds {len(images)} images", hint=choices(names))
    return images[0]


def chosen_number(names: Sequence[Sequence[str]], reference: str) -> int:
    """The number of the image that a name or ``@N`` means."""
    match = _NUMBERED.fullmatch(reference)
    if match:
        found = [int(match[1])] if int(match[1]) < len(names) else []
    else:
        wanted = _whole_name(reference)
        found = [at for at, own in enumerate(names) if wanted in {_whole_name(name) for name in own}]
    if len(found) != 1:
        count = f"{len(found)} images" if found else "no image"
        raise UsageError(f"the archive holds {count} named {reference!r}", hint=choices(names))
    return found[0]


def _whole_name(name: str) -> str:
    """``alpine`` and ``docker.io/library/alpine:latest`` are one; what is no reference is itself."""
    try:
        return str(Reference.parse(name))
    except (UsageError, MalformedImage):
        return name


def choices(names: Sequence[Sequence[str]]) -> str:
    """Say how each of several images can be named."""
    lines = [f"@{at}" + (f" ({', '.join(own)})" if own else "") for at, own in enumerate(names[:20])]
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""  # noqa: PLR2004 - as many as above
    return f"add a name or a number after a colon: {', '.join(lines)}{more}"
