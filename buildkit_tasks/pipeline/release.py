"""Releases that cannot lie: what is pushed is proved where it lies, by its digest, and named after that.

Put, verify, run, name. A proof that fails leaves every tag as it was.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import LimitExceeded, UsageError
from buildkit_tasks.oci.copy import push as publish
from buildkit_tasks.report.model import BuiltPlatform, PushResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from buildkit_tasks.oci.model import Digest
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.options import Access
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.pipeline.runs import Runs
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.run.service import Watch

__all__ = [
    "Plan",
    "Release",
    "Releases",
    "read_parts",
]

_MAX_PARTS_FILE = 64 << 20  # bytes; a report of 50 images of one platform has some 220,000
_SENDABLE = ("oci-archive:", "oci:", "docker-archive:")
_FORWARD_ONLY = ("docker-daemon:", "docker-archive:")  # several streams at once would be read anew


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What is to be named how: the tags, the exact platforms, and whether it is proved before.

    No ``expected`` platforms means those that are there.
    """

    tags: tuple[Reference, ...]
    expected: tuple[Platform, ...] = ()
    proved: bool = True

    @classmethod
    def of(cls, tags: Iterable[str], expected: tuple[Platform, ...], *, proved: bool) -> Release:
        """Read the tags. Raises :class:`UsageError` without any, and for what is none."""
        from buildkit_tasks.oci.reference import Reference

        found = tuple(dict.fromkeys(Reference.parse(tag) for tag in tags))
        if not found:
            raise UsageError("no tag says where it goes", hint="name one: -t REGISTRY/NAME:TAG")
        for tag in found:
            if tag.digest is not None:
                raise UsageError(f"{tag} is no tag", hint="write it as REGISTRY/NAME:TAG")
        return cls(tags=found, expected=expected, proved=proved)

    @property
    def place(self) -> Reference:
        """The repository where it is put and proved: that of the first tag."""
        return replace(self.tags[0], tag="")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a push would do."""

    release: Release
    digest: Digest
    platforms: tuple[BuiltPlatform, ...]
    sent: str

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "ok": True,
            "dry_run": True,
            "digest": str(self.digest),
            "tags": [str(tag) for tag in self.release.tags],
            "platforms": [{"platform": each.platform, "digest": each.digest} for each in self.platforms],
        }

    def text(self) -> str:
        """The same for people, a line for each step."""
        at = f"{self.release.place.name}@{self.digest}"
        names = ", ".join(each.platform for each in self.platforms)
        proof = [f"would verify and run docker://{at} ({names})"] if self.release.proved else []
        named = [f"would name it {tag}" for tag in self.release.tags]
        return "\n".join([f"would put {self.sent} as {at}", *proof, *named])


@dataclass(frozen=True, kw_only=True)
class Releases:
    """Puts images into registries and names them there."""

    images: Images
    runs: Runs
    access: Access | None = None

    def push(self, archive: str, release: Release, watch: Watch | None = None) -> PushResult:
        """Send an image that was built before, byte for byte; prove it there; name it."""
        started = time.monotonic()
        name = self._archive(archive)
        with self.images.open(name) as source:
            jobs = 1 if name.startswith(_FORWARD_ONLY) else publish.JOBS
            root = publish.send(source, release.place, access=self.access, jobs=jobs)
            platforms = _platforms(source)
        return self.name(root.digest, platforms, release, started, watch)

    def merge(self, parts: Sequence[Reference], release: Release, watch: Watch | None = None) -> PushResult:
        """Make one index of parts that were pushed by digest; prove it; name it."""
        started = time.monotonic()
        joined = publish.merge(parts, release.place, release.expected, access=self.access)
        return self.name(joined.root.digest, _built(joined.platforms), release, started, watch)

    def name(
        self,
        digest: Digest,
        platforms: tuple[BuiltPlatform, ...],
        release: Release,
        started: float,
        watch: Watch | None = None,
    ) -> PushResult:
        """Prove what lies in the release's repository under a digest, and name it if it holds.

        ``started`` is when the work began, by the monotonic clock.
        """
        at = replace(release.place, digest=digest)
        result = PushResult(digest=str(digest), tags=(), platforms=platforms)
        if release.proved:
            result = self._prove(result, f"docker://{at}", release, watch)
        if not release.proved or result.proved:
            result = replace(result, tags=publish.name(at, release.tags, access=self.access))
        return replace(result, seconds=round(time.monotonic() - started, 3))

    def _prove(self, result: PushResult, image: str, release: Release, watch: Watch | None) -> PushResult:
        """Verify and run what lies there, fetched once for both."""
        with self.images.kept(image) as images:
            verify = images.verify(image, release.expected)
            if not verify.ok:
                return replace(result, verify=verify)
            runs = replace(self.runs, images=images)
            return replace(result, verify=verify, run=runs.emulate(image, release.expected, watch))

    def plan_push(self, archive: str, release: Release) -> Plan:
        """What :meth:`push` would do; only the archive is read."""
        from buildkit_tasks.oci.copy.graph import everything

        with self.images.open(self._archive(archive)) as source:
            blobs, *documents = everything(source)
            sent = f"{len(blobs)} blobs ({sum(blob.size for blob in blobs)} bytes) and "
            sent += f"{sum(map(len, documents))} manifests"
            return Plan(release=release, digest=source.root().digest, platforms=_platforms(source), sent=sent)

    def plan_merge(self, parts: Sequence[Reference], release: Release) -> Plan:
        """What :meth:`merge` would do; the parts' manifests are read where they lie."""
        joined = publish.join(parts, release.expected, access=self.access)
        sent = f"an index of {len(parts)} parts"
        return Plan(release=release, digest=joined.root.digest, platforms=_built(joined.platforms), sent=sent)

    def _archive(self, archive: str) -> str:
        """The image named, or what was built last here where that can be sent as it is."""
        if archive:
            return archive
        last = self.images.last
        if not last.startswith(_SENDABLE):
            raise UsageError(
                f"what was built last here is {last}, no archive", hint="inv push-multiarch ARCHIVE -t REF"
            )
        return last


def read_parts(words: Iterable[str], files: Iterable[str], image: str = "") -> tuple[Reference, ...]:
    """The parts that are named on the command line, several with commas, and in files.

    A file holds one ``REPOSITORY@sha256:...`` a line (``#`` begins a remark), or what
    ``build-multiarch --json`` printed, be it several such documents one after the other. Where those
    are of several images, ``image`` says of which. Raises :class:`UsageError` for anything else.
    """
    from buildkit_tasks.oci.reference import Reference

    named = [each.strip() for word in words for each in word.split(",") if each.strip()]
    paths = [Path(name) for file in files for name in file.split(",") if name]
    listed = _chosen([part for path in paths for part in _in_file(path, image)], image)
    found = tuple(dict.fromkeys(Reference.parse(text) for text in (*named, *listed)))
    if not found:
        raise UsageError("no part is named", hint="name each with --part REPO@sha256:..., or --parts-file")
    return found


def _chosen(parts: Iterable[tuple[str, str]], image: str) -> list[str]:
    """The parts of one image; of those that say of which image they are no two may differ."""
    parts = list(parts)
    names = list(dict.fromkeys(name for name, _ in parts if name))
    if len(names) > 1 and not image:
        raise UsageError(f"the parts are of several images: {', '.join(names)}", hint="--image says which")
    if names and image and image not in names:
        raise UsageError(f"no part is of {image!r}: they are of {', '.join(names)}")
    return [part for name, part in parts if _is(name, image)]


def _is(name: str, image: str) -> bool:
    """Whether a part may be of the image that is meant: it is, or says of none, or none is meant."""
    return not name or not image or name == image


def _in_file(path: Path, image: str) -> list[tuple[str, str]]:
    """Each part with the name of its image, or without any. Of other images than the one named: no part."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_PARTS_FILE + 1)
        if len(data) > _MAX_PARTS_FILE:
            raise LimitExceeded(f"{path} is larger than {_MAX_PARTS_FILE >> 20} MiB: it holds no parts")
        text = data.decode()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise UsageError(f"{path} is no text") from None
    if text.lstrip().startswith("{"):
        reports = [each for document in _documents(path, text) for each in _reports(document)]
        return [(name, _pushed(path, name, report) if _is(name, image) else "") for name, report in reports]
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [("", line) for line in lines if line]


def _documents(path: Path, text: str) -> Iterator[dict[str, Any]]:
    """JSON documents, one after the other, as `cat` puts them together."""
    at, decoder = 0, json.JSONDecoder()
    while rest := text[at:].lstrip():
        try:
            document, length = decoder.raw_decode(rest)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{path} is no report of build-multiarch: {error}") from None
        if not isinstance(document, dict):
            raise UsageError(f"{path} is no report of build-multiarch: it holds no object")
        yield document
        at = len(text) - len(rest) + length


def _reports(document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """A build's report, or those of several images with their names."""
    rows = document.get("images")
    if not isinstance(rows, list):
        return [("", document)]
    found = ((str(row.get("name", "")), row.get("build")) for row in rows if isinstance(row, dict))
    return [(name, build if isinstance(build, dict) else {}) for name, build in found]


def _pushed(path: Path, name: str, document: dict[str, Any]) -> str:
    """What a build's report says that it pushed: a reference with its digest, or the report's."""
    outputs = document.get("outputs")
    references = (
        [each.get("ref") for each in outputs if isinstance(each, dict)] if isinstance(outputs, list) else []
    )
    digest = document.get("digest") or ""
    found = [
        text if "@" in text else f"{text}@{digest}"
        for text in references
        if isinstance(text, str) and ("@" in text or digest)
    ]
    if not found:
        where = f"{path}: {name}" if name else str(path)
        raise UsageError(f"{where} names no image in a registry", hint="build the part with --split --json")
    return found[0]  # one image, however many names it has


def _platforms(source: Any) -> tuple[BuiltPlatform, ...]:
    from buildkit_tasks.oci.image import platform_manifests

    return _built((platform, entry.digest) for platform, entry in platform_manifests(source))


def _built(platforms: Iterable[tuple[Platform, Digest]]) -> tuple[BuiltPlatform, ...]:
    return tuple(BuiltPlatform(platform=str(platform), digest=str(digest)) for platform, digest in platforms)
