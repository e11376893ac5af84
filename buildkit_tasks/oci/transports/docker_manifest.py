"""``manifest.json``: which images a `docker save` archive holds, and which of them is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from buildkit_tasks.errors import MalformedImage, UsageError
from buildkit_tasks.oci.limits import LIMITS
from buildkit_tasks.oci.reference import Reference
from buildkit_tasks.oci.strict_json import load_object, reject_case_variants
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

_NonEmptyStr = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]


class LayerSource(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where a layer came from, as docker notes it in ``LayerSources`` by its diff_id."""

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
    """Read ``manifest.json``: a list of images."""
    # The strict reader takes objects only. An object whose only key is ours held just one value.
    document = load_object(b'{"images":' + data + b"}", MANIFEST_NAME)
    images = document["images"]
    if len(document) != 1 or not isinstance(images, list) or len(images) > LIMITS.manifests:
        raise MalformedImage(f"{MANIFEST_NAME} is no list of at most {LIMITS.manifests} images")
    if not images:
        raise MalformedImage(f"{MANIFEST_NAME} lists no image")
    return tuple(_parse_image(image) for image in images)


def _parse_image(image: Any) -> SavedImage:
    if isinstance(image, dict):
        reject_case_variants(image, _RawImage.__struct_encode_fields__, MANIFEST_NAME)
    try:
        raw = msgspec.convert(image, _RawImage)
    except msgspec.ValidationError as error:
        raise MalformedImage(f"{MANIFEST_NAME} is malformed: {error}") from None
    layers = tuple(normalize_name(layer) for layer in raw.layers or ())
    if len(layers) > LIMITS.layers:
        raise MalformedImage(f"{MANIFEST_NAME} lists {len(layers)} layers; {LIMITS.layers} are allowed")
    return SavedImage(
        config=normalize_name(raw.config),
        names=tuple(raw.repo_tags or ()),
        layers=layers,
        layer_sources=raw.layer_sources or {},
    )


def choose_image(images: Sequence[SavedImage], reference: str | None) -> SavedImage:
    """The one that a reference means, or the only one. Raises :class:`UsageError` with the choices."""
    names = [image.names for image in images]
    if reference is not None:
        return images[choose_number(names, reference)]
    if len({(image.config, image.layers) for image in images}) > 1:
        raise UsageError(f"the archive holds {len(images)} images", hint=describe_choices(names))
    return images[0]


def choose_number(names: Sequence[Sequence[str]], reference: str) -> int:
    """The number of the image that a name or ``@N`` means."""
    match = _IMAGE_NUMBER.fullmatch(reference)
    if match:
        matches = [int(match[1])] if int(match[1]) < len(names) else []
    else:
        full_name = _normalize_reference(reference)
        matches = [
            number
            for number, image_names in enumerate(names)
            if full_name in {_normalize_reference(name) for name in image_names}
        ]
    if len(matches) != 1:
        count = f"{len(matches)} images" if matches else "no image"
        raise UsageError(f"the archive holds {count} named {reference!r}", hint=describe_choices(names))
    return matches[0]


def _normalize_reference(name: str) -> str:
    """``alpine`` and ``docker.io/library/alpine:latest`` are one; what is no reference is itself."""
    try:
        return str(Reference.parse(name))
    except (UsageError, MalformedImage):
        return name


def describe_choices(names: Sequence[Sequence[str]]) -> str:
    """Say how each of several images can be named."""
    lines = [
        f"@{number}" + (f" ({', '.join(image_names)})" if image_names else "")
        for number, image_names in enumerate(names[:20])
    ]
    rest = f" and {len(names) - 20} more" if len(names) > 20 else ""  # noqa: PLR2004 - as many as above
    return f"add a name or a number after a colon: {', '.join(lines)}{rest}"
