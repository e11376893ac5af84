"""Find keys in the documents of an image that readers take for different fields.

Engines are written in Go, whose encoding/json (https://pkg.go.dev/encoding/json#Unmarshal) takes a key for a
field if both are equal under simple case folding (Unicode, CaseFolding.txt, status C and S), and the last of
several such keys counts. Other readers, this package among them, compare keys exactly. So these documents
are malformed here::

    {"digest": A, "Digest": B}      two keys that Go takes for one
    {"Entrypoint": A, "entrypoint": B}
    {"layer\u017f": B}              a long s: Go reads "layers", and others read nothing

Keys of maps, such as labels and annotations, are data: Go compares them exactly too.

The tables have every field that Docker and the specifications define, since a field that is not read here
may be read by the engine. A table's value is the table of the objects in that field; None for anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import MalformedImage

if TYPE_CHECKING:
    from collections.abc import Mapping

    KeyTable = Mapping[str, "KeyTable | None"]

__all__ = ["CONFIG", "DOCKER_MANIFEST", "INDEX", "LAYOUT", "MANIFEST", "STATEMENT", "check_keys", "fold_key"]

_ANY_KEY = "*"  # of a map: its keys are not fields


def _table(names: str, **tables: KeyTable) -> KeyTable:
    return {**dict.fromkeys(names.split()), **tables}


# OCI image specification: descriptor.md, image-index.md, manifest.md, image-layout.md
_PLATFORM = _table("architecture os os.version os.features variant features")
_DESCRIPTOR = _table("mediaType digest size urls annotations data artifactType", platform=_PLATFORM)
_DOCUMENT = _table("schemaVersion mediaType artifactType annotations", subject=_DESCRIPTOR)
INDEX = {**_DOCUMENT, "manifests": _DESCRIPTOR}
MANIFEST = {**_DOCUMENT, "config": _DESCRIPTOR, "layers": _DESCRIPTOR}
LAYOUT = _table("imageLayoutVersion")

# config.md, and the fields that Docker adds: image/spec/specs-go and api/types/container of moby
_HEALTHCHECK = _table("Test Interval Timeout StartPeriod StartInterval Retries")
_EXECUTION = _table(
    "ArgsEscaped AttachStderr AttachStdin AttachStdout Cmd CpuShares Domainname Entrypoint Env ExposedPorts "
    "Hostname Image Labels MacAddress Memory MemorySwap NetworkDisabled OnBuild OpenStdin Shell StdinOnce "
    "StopSignal StopTimeout Tty User Volumes WorkingDir",
    Healthcheck=_HEALTHCHECK,
)
CONFIG = _table(
    "architecture author comment container created docker_version id os os.features os.version parent "
    "variant",
    config=_EXECUTION,
    container_config=_EXECUTION,
    history=_table("author comment created created_by empty_layer"),
    rootfs=_table("diff_ids type"),
)

# manifest.json of `docker save`
DOCKER_MANIFEST = _table("Config Layers Parent RepoTags", LayerSources={_ANY_KEY: _DESCRIPTOR})

# in-toto attestation framework: spec/v1/statement.md, resource_descriptor.md
STATEMENT = _table(
    "_type predicate predicateType",
    subject=_table("annotations content digest downloadLocation mediaType name uri"),
)


def check_keys(document: Any, table: KeyTable, description: str) -> None:
    """Check the keys of a document, or of each one in a list, and of the objects in it.

    Raises :class:`MalformedImage` for a key that folds to a field of ``table`` without being it, and for two
    keys that fold to one; ``description`` names the document in the message.
    """
    pending: list[tuple[Any, KeyTable]] = [(document, table)]
    while pending:
        value, known = pending.pop()
        if isinstance(value, list):
            pending += [(item, known) for item in value]
        elif isinstance(value, dict) and _ANY_KEY in known:
            pending += [(item, known[_ANY_KEY] or {}) for item in value.values()]
        elif isinstance(value, dict):
            _check_object(value, known, description)
            pending += [(value[name], inner) for name, inner in known.items() if inner and name in value]


def _check_object(value: dict[str, Any], known: KeyTable, description: str) -> None:
    fields = {fold_key(name): name for name in known}
    for key in value:
        field = fields.setdefault(fold_key(key), key)
        if field != key:
            raise MalformedImage(
                f"{description} has the key {key!r}, which differs from {field!r} only in case"
            )


def fold_key(key: str) -> str:
    """Return ``key`` under simple case folding: keys that Go takes for one have the same result."""
    return key.lower() if key.isascii() else "".join(map(_fold_character, key))


def _fold_character(character: str) -> str:
    # Full folding is the simple one unless it has several characters; then lower() is, where there is one.
    candidates = (character.casefold(), character.lower())
    return next((folded for folded in candidates if len(folded) == 1), character)
