"""Releases: an image's bytes put into a registry, and names for what is there.

Nothing is named before everything that it reaches is stored: blobs first, then manifests by digest,
then the index by digest, and only then the tags, by whoever has proved that digest.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from buildkit_tasks.errors import BuildkitTasksError, Interrupted, RegistryError, UsageError
from buildkit_tasks.report.model import NamedTag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buildkit_tasks.oci.model import Descriptor, Digest
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.oci.registry.options import Access
    from buildkit_tasks.oci.registry.push import Uploads
    from buildkit_tasks.oci.source import Source
    from buildkit_tasks.platforms import Platform

__all__ = ["JOBS", "Joined", "NamedTag", "join", "merge", "name", "send"]

JOBS = 4  # uploads at once: as many as a registry gladly takes from one


def send(
    source: Source,
    destination: Reference,
    *,
    origin: Reference | None = None,
    access: Access | None = None,
    jobs: int = JOBS,
) -> Descriptor:
    """Put everything that the source's root reaches into the destination's repository; gives the root.

    The very bytes, attestations included; of foreign layers the descriptors alone. What is there is
    not sent again, nor what the registry has in the repository of ``origin``. The root goes last, by
    its digest: no tag is touched, and ``destination``'s own is not looked at. At most ``jobs`` blobs
    are sent at once. Raises :class:`RegistryError` for a registry that cannot be reached or refuses,
    :class:`MalformedImage` for a source that is not sound.
    """
    from buildkit_tasks.oci.copy.graph import everything
    from buildkit_tasks.oci.registry.push import open_uploads

    root = source.root()
    blobs, *documents = everything(source)
    with open_uploads(destination, access=access, origin=origin) as uploads:
        # A registry takes a document after what it lists, and keeps that as long (its collector too).
        if uploads.digest_of(str(root.digest)) == root.digest:
            return root
        _at_once(jobs, uploads, [partial(uploads.put_blob, source, blob) for blob in blobs])
        for level in documents:  # an index after what it lists
            _at_once(jobs, uploads, [partial(uploads.put_document, source, each) for each in level])
    return root


def name(
    at: Reference, tags: Sequence[Reference], *, access: Access | None = None, jobs: int = JOBS
) -> tuple[NamedTag, ...]:
    """Let tags name what the registry has under the digest of ``at``, in their order.

    A tag of another repository gets the whole image first, before any tag is moved. A tag that names
    the digest already is left as it is. Each is looked at again afterwards. Raises
    :class:`RegistryError` that says which tags moved and which did not.
    """
    from buildkit_tasks.oci.limits import LIMITS
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.source import read_blob

    _check(at, tags)
    plain = replace(at, tag="")
    naming = _Naming(access=access, tags=tuple(tags))
    try:
        with open_registry(str(plain), access=access) as source:
            naming.root = source.root()
            naming.data = read_blob(source, naming.root, LIMITS.document)
            for other in {(tag.host, tag.repository): tag for tag in tags if tag.name != at.name}.values():
                send(source, other, origin=at, access=access, jobs=jobs)
        return tuple(naming.name(tag) for tag in tags)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {naming.account()}") from None
    except UsageError:  # nothing was asked of a registry yet
        raise
    except BuildkitTasksError as error:
        raise RegistryError(f"{error.message}; {naming.account()}", hint=error.hint) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """An index that was made of parts: its descriptor, its bytes, and whose manifests it lists."""

    root: Descriptor
    data: bytes = field(repr=False)
    platforms: tuple[tuple[Platform, Digest], ...]


def join(
    parts: Sequence[Reference], expected: Sequence[Platform] = (), *, access: Access | None = None
) -> Joined:
    """Make one index of parts, each an image of one platform by its digest; nothing is put anywhere.

    A part is a manifest, or an index with the attestations of its one image. Raises
    :class:`CheckFailed` that names a platform that is there twice, is missing or is not expected.
    """
    from buildkit_tasks.oci.copy.index import merged, read_part
    from buildkit_tasks.oci.model import OCI_INDEX, Descriptor, Digest
    from buildkit_tasks.oci.registry import open_registry

    found = []
    for part in parts:
        _check_part(part)
        with open_registry(str(replace(part, tag="")), access=access) as source:
            found.append(read_part(source, str(part)))
    data = merged(found, expected)
    digests = {part.platform: Digest(part.image["digest"]) for part in found}
    return Joined(
        root=Descriptor(media_type=OCI_INDEX, digest=Digest.of(data), size=len(data)),
        data=data,
        platforms=tuple((platform, digests[platform]) for platform in expected or digests),
    )


def merge(
    parts: Sequence[Reference],
    into: Reference,
    expected: Sequence[Platform] = (),
    *,
    access: Access | None = None,
    jobs: int = JOBS,
) -> Joined:
    """Put the index that :func:`join` makes of the parts into a repository, by its digest; never a tag.

    Parts of other repositories are sent there first. ``into``'s own tag is not looked at.
    """
    from buildkit_tasks.oci.registry import open_registry
    from buildkit_tasks.oci.registry.push import open_uploads

    joined = join(parts, expected, access=access)
    for part in parts:
        if part.name != into.name:
            with open_registry(str(replace(part, tag="")), access=access) as source:
                send(source, into, origin=part, access=access, jobs=jobs)
    with open_uploads(into, access=access) as uploads:
        uploads.put_manifest(joined.data, joined.root, str(joined.root.digest))
    return joined


def _check_part(part: Reference) -> None:
    if part.digest is None:
        raise UsageError(
            f"the part {part} has no digest: what it names may change", hint="write it as REPO@sha256:..."
        )


def _check(at: Reference, tags: Sequence[Reference]) -> None:
    if at.digest is None:
        raise UsageError(f"{at} has no digest to be named", hint="write it as REPOSITORY@sha256:...")
    for tag in tags:
        if tag.digest is not None or not tag.tag:
            raise UsageError(f"{tag} is no tag", hint="write it as REGISTRY/NAME:TAG")


@dataclass(kw_only=True)
class _Naming:
    """How far the naming of several tags has come."""

    access: Access | None
    tags: tuple[Reference, ...]
    root: Descriptor | None = None
    data: bytes = field(default=b"", repr=False)
    moved: set[Reference] = field(default_factory=set)
    unsure: set[Reference] = field(default_factory=set)

    def name(self, tag: Reference) -> NamedTag:
        """Move one tag, and look whether it has stayed where it was put."""
        from buildkit_tasks.oci.registry.push import open_uploads

        root = self.root
        if root is None:
            raise RuntimeError("nothing is there to be named")
        with open_uploads(tag, access=self.access) as uploads:
            before = uploads.digest_of(tag.tag)
            if before != root.digest:
                self._move(uploads, tag, root)
        return NamedTag(
            ref=str(tag), digest=str(root.digest), previous=str(before or ""), moved=before != root.digest
        )

    def _move(self, uploads: Uploads, tag: Reference, root: Descriptor) -> None:
        from buildkit_tasks.oci.registry.errors import Refused

        self.unsure.add(tag)  # should we not hear the end of it
        try:
            uploads.put_manifest(self.data, root, tag.tag)
        except Refused:
            self.unsure.discard(tag)
            raise
        after = uploads.digest_of(tag.tag)
        if after == root.digest:
            self.moved.add(tag)
        self.unsure.discard(tag)
        if after != root.digest:
            to = f"to {after}" if after else "away"
            raise RegistryError(
                f"a rival push moved {tag} {to}, after it was put at {root.digest}",
                hint="find out who else pushes that tag, then push again",
            )

    def account(self) -> str:
        """Which tags moved, and which did not."""
        rest = [tag for tag in self.tags if tag not in self.moved | self.unsure]
        parts = {
            "moved": [tag for tag in self.tags if tag in self.moved],
            "not known whether moved": [tag for tag in self.tags if tag in self.unsure],
            "not moved": rest,
        }
        told = [f"{words}: {', '.join(map(str, tags))}" for words, tags in parts.items() if tags]
        return "; ".join(told)


def _at_once(jobs: int, uploads: Uploads, tasks: Sequence[Callable[[], object]]) -> None:
    """Do them all, several at a time; the first failure, or Ctrl-C, ends the others at once."""
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        futures: list[Future[object]] = []
        try:
            futures.extend(pool.submit(task) for task in tasks)
            for future in as_completed(futures):
                future.result()
        except BaseException:
            for future in futures:
                future.cancel()
            uploads.abort()
            raise
