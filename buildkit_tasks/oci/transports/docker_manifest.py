"""Parse ``manifest.json``, the list of images of a `docker save` archive, and select one of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from buildkit_tasks.errors import MalformedImage, UsageError
from buildkit_tasks.oci.document_keys import DOCKER_MANIFEST, check_keys
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.strict_json import load_object
from buildkit_tasks.oci.transports.tar_members import normalize_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "MANIFEST_NAME",
    "LayerSource",
    "SavedImage",
    "choose_image",
    "choose_number",
    "describe_choices",
    "parse_docker_manifest",
]

MANIFEST_NAME = "manifest.json"
_IMAGE_NUMBER = re.compile(r"@([0-9]{1,6})", re.ASCII)
_MAX_LISTED = 20

_NonEmptyStr = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class LayerSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The original descriptor of a layer, which Docker records by diff_id in ``LayerSources``."""

    media_type: _NonEmptyStr
    digest: _NonEmptyStr
    size: Annotated[int, msgspec.Meta(ge=0)]


class _RawImage(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    config: _NonEmptyStr
    repo_tags: list[_NonEmptyStr] | None = None
    layers: list[_NonEmptyStr] | None = None
    layer_sources: dict[str, LayerSource] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """An image of ``manifest.json``: the names of its config and of its layers, lowest first."""

    config: str
    names: tuple[str, ...]
    layers: tuple[str, ...]
    layer_sources: Mapping[str, LayerSource] = field(default_factory=dict, hash=False)


def parse_docker_manifest(data: bytes) -> tuple[SavedImage, ...]:
    """Parse the images of a ``manifest.json``."""
    # load_object accepts objects only. If the wrapping object has one key, the data was a single value.
    document = load_object(b'{"images":' + data + b"}", MANIFEST_NAME)
    images = document["images"]
    if len(document) != 1 or not isinstance(images, list) or len(images) > LIMITS.manifests:
        raise MalformedImage(f"{MANIFEST_NAME} is not a list of at most {LIMITS.manifests} images")
    if not images:
        raise MalformedImage(f"{MANIFEST_NAME} lists no image")
    return tuple(_parse_image(image) for image in images)


def _parse_image(image: Any) -> SavedImage:
    check_keys(image, DOCKER_MANIFEST, MANIFEST_NAME)
    try:
        raw = msgspec.convert(image, _RawImage)
    except msgspec.ValidationError as error:
        raise MalformedImage(f"{MANIFEST_NAME} is malformed: {error}") from None
    layers = tuple(normalize_name(layer) for layer in raw.layers or ())
    if len(layers) > LIMITS.layers:
        raise MalformedImage(
            f"{MANIFEST_NAME} lists {len(layers)} layers; at most {LIMITS.layers} are allowed"
        )
    return SavedImage(
        config=normalize_name(raw.config),
        names=tuple(raw.repo_tags or ()),
        layers=layers,
        layer_sources=raw.layer_sources or {},
    )


def choose_image(images: Sequence[SavedImage], reference: str | None) -> SavedImage:
    """Return the image that a reference selects, or the only one.

    Raises :class:`UsageError`, with the choices, for none and for several.
    """
    names = [image.names for image in images]
    if reference is not None:
        return images[choose_number(names, reference)]
    if len({(image.config, image.layers) for image in images}) > 1:
        raise UsageError(f"the archive has {len(images)} images", hint=describe_choices(names))
    return images[0]


def choose_number(names: Sequence[Sequence[str]], reference: str) -> int:
    """Return the index of the image that ``reference``, a name or ``@N``, selects.

    Raises :class:`UsageError`, with the choices, if it matches none or several. ``names`` has the names
    of each image.
    """
    match = _IMAGE_NUMBER.fullmatch(reference)
    if match:
        matches = [int(match[1])] if int(match[1]) < len(names) else []
    else:
        full_name = _normalize_reference(reference)
        matches = [
            number
            for number, image_names in enumerate(names)
            if full_name in map(_normalize_reference, image_names)
        ]
    if len(matches) != 1:
        count = f"{len(matches)} images" if matches else "no image"
        raise UsageError(f"the archive has {count} named {reference!r}", hint=describe_choices(names))
    return matches[0]


def _normalize_reference(name: str) -> str:
    """Expand short forms such as ``alpine``; return a name that is not a reference unchanged."""
    try:
        return str(Reference.parse(name))
    except (UsageError, MalformedImage):
        return name


def describe_choices(names: Sequence[Sequence[str]]) -> str:
    """Return a hint that lists how each image can be selected."""
    choices = [
        f"@{number} ({', '.join(image_names)})" if image_names else f"@{number}"
        for number, image_names in enumerate(names[:_MAX_LISTED])
    ]
    rest = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"add a name or a number after a colon: {', '.join(choices)}{rest}"
