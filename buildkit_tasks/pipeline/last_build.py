"""The record of what was built last in a folder: which images, where they are, and for which platforms.

Every build is recorded, also one that fails or whose outputs are not images: otherwise a task without an
image would take the build before.

===================== ===========================================================================
state                 record
===================== ===========================================================================
a build has started   its images have no name yet, and ``problem`` says that it has not succeeded
it has succeeded      the name of each image, or in ``problem`` why it cannot be read back
it has failed         as it was when it started
it was refused        as it was before (a usage error: nothing was built)
===================== ===========================================================================
"""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.config.settings import SettingOrigin
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.command import redact
from buildkit_tasks.system.files import write_atomically
from buildkit_tasks.system.lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.report.model import BuildResult, Output

__all__ = ["BuildRecord", "LastBuild", "RecordedImage", "best_image_name", "list_typed_options"]

_MAX_FOLDERS = 100
# The options that say what is built, by their settings (a bake file has its own instead of the first), and by
# their fields of a build request.
_IMAGE_FLAGS = {"context": "--context", "file": "--file", "tags": "--tag", "target": "--target"}
_SETTING_FLAGS = {
    "build_args": "--build-arg", "bases": "--bases", "allow": "--allow", "network": "--network",
    "add_hosts": "--add-host", "shm_size": "--shm-size", "ulimits": "--ulimit", "platforms": "--platform",
}  # fmt: skip
_REQUEST_FLAGS = {
    "build_contexts": "--build-context", "secrets": "--secret", "ssh": "--ssh", "labels": "--label",
    "annotations": "--annotation", "attest": "--attest", "provenance": "--provenance", "sbom": "--sbom",
    "no_attest": "--no-attest", "reproducible": "--reproducible", "resources": "--resource",
    "cgroup_parent": "--cgroup-parent",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedImage:
    """An image as it was built last.

    ``name`` is that of the settings' image or of the bake file's target, or "" for a build of one image;
    ``image`` the name that tasks accept, or "" if ``problem`` says why there is none; ``before`` the name of
    the last one that could be read back. ``bake_files`` are the files of a target; ``platforms`` and ``tags``
    are what the build was asked for, and ``options`` what was typed for it (:func:`list_typed_options`).
    """

    name: str = ""
    image: str = ""
    problem: str = ""
    before: str = ""
    platforms: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    bake_files: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def from_request(
        cls, name: str, request: BuildRequest, options: tuple[str, ...], *, bake_files: tuple[str, ...] = ()
    ) -> RecordedImage:
        """Return the record of an image that is going to be built."""
        return cls(
            name=name,
            platforms=tuple(map(str, request.platforms)),
            tags=request.tags,
            bake_files=bake_files,
            options=options,
        )

    def require_image(self) -> str:
        """Return the name of the image. Raises :class:`UsageError` if it cannot be read back."""
        if self.image:
            return self.image
        label = f"{self.name}: " if self.name else ""
        raise UsageError(f"{label}the last build here {self.problem}", hint=self._rebuild_command())

    def require_manifests(self) -> str:
        """Return the name of an image that can be run and pushed.

        Raises :class:`UsageError` for a local output, which has no manifests.
        """
        image = self.require_image()
        if image.startswith("dir:"):
            message = f"the last build here, {image}, is a local output directory, which has no manifests"
            raise UsageError(message, hint=self._rebuild_command())
        return image

    def _rebuild_command(self) -> str:
        """Return the command that builds the same as an image that can be read back."""
        options = "".join(f" {shlex.quote(option)}" for option in self.options)
        if self.bake_files:
            files = "".join(f" --bake {shlex.quote(file)}" for file in self.bake_files)
            return f"inv build-multiarch{files} --target {self.name}{options}"
        if self.name:
            return f"inv build-multiarch --image {self.name}{options}"
        if not any(option.startswith("--platform=") for option in self.options):
            options += f" --platform {','.join(self.platforms)}"
        return f"inv build-multiarch{options} -o type=oci,dest=dist/image.tar"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRecord:
    """What is recorded of a folder.

    ``last`` are the names of the images of the last build, ``images`` the last build of each image, and
    ``folders`` the platform of each local output of one platform, by its absolute path.
    """

    last: tuple[str, ...] = ()
    images: Mapping[str, RecordedImage] = field(default_factory=dict)
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def last_images(self) -> tuple[RecordedImage, ...]:
        """Return the images of the last build. Raises :class:`UsageError` if nothing was built here yet."""
        if not self.last:
            raise UsageError("nothing was built here yet", hint="inv build-multiarch")
        return tuple(self.images[name] for name in self.last)

    def find_image(self, name: str) -> RecordedImage:
        """Return the last build of an image. Raises :class:`UsageError` if it was not built here yet."""
        if name not in self.images:
            raise UsageError(f"{name} was not built here yet", hint=f"inv build-multiarch --image {name}")
        return self.images[name]

    def with_started(self, images: Sequence[RecordedImage]) -> BuildRecord:
        """Return the record with a build of these images that has not succeeded yet."""
        started = {each.name: self._start(each) for each in images}
        return replace(self, last=tuple(started), images={**self.images, **started})

    def _start(self, image: RecordedImage) -> RecordedImage:
        previous = self.images.get(image.name, RecordedImage())
        before = previous.image or previous.before
        problem = f"has not succeeded; the one before it is {before}" if before else "has not succeeded"
        return replace(image, problem=problem, before=before)

    def with_result(self, name: str, result: BuildResult) -> BuildRecord:
        """Return the record with the result of a build that has started."""
        image = best_image_name(result)
        problem = "" if image else _describe_unreadable(result.outputs)
        built = replace(self.images[name], image=image, problem=problem)
        return replace(self, images={**self.images, name: built}, folders=self._merge_folders(result))

    def _merge_folders(self, result: BuildResult) -> Mapping[str, str]:
        """Return the platforms of local outputs, without folders that are gone and the oldest of many."""
        paths = [_absolute(each.dest) for each in result.outputs if each.type == "local" and each.dest]
        kept = {
            path: platform
            for path, platform in self.folders.items()
            if path not in paths and Path(path).is_dir()
        }
        if len(result.platforms) == 1:  # several are written into a folder for each platform
            kept |= dict.fromkeys(paths, result.platforms[0].platform)
        return dict([*kept.items()][-_MAX_FOLDERS:])


@dataclass(frozen=True, slots=True, kw_only=True)
class LastBuild:
    """The record in the file ``path``."""

    path: Path

    def read(self) -> BuildRecord:
        """Return the record; an empty one if there is none that can be read."""
        try:
            return _parse_record(json.loads(self.path.read_bytes()))
        except (OSError, ValueError, TypeError, KeyError):
            return BuildRecord()

    def start(self, images: Iterable[RecordedImage]) -> Callable[[], None]:
        """Record that a build of these images has started; return what restores the record before it."""
        with file_lock(self._lock_path):
            previous = self.read()
            started = previous.with_started(tuple(images))
            self._write(started)

        def restore() -> None:
            with file_lock(self._lock_path):
                if self.read() == started:  # no other build has started meanwhile
                    self._write(previous)

        return restore

    def finish(self, name: str, result: BuildResult) -> None:
        """Record the result of an image whose build has started."""
        with file_lock(self._lock_path):
            self._write(self.read().with_result(name, result))

    @property
    def _lock_path(self) -> Path:
        return self.path.with_suffix(".lock")

    def _write(self, record: BuildRecord) -> None:
        images = [asdict(image) for image in record.images.values()]
        write_atomically(self.path, json.dumps({**asdict(record), "images": images}))


def _parse_record(document: Mapping[str, Any]) -> BuildRecord:
    images = [RecordedImage(**dict(map(_parse_field, each.items()))) for each in document["images"]]
    by_name = {image.name: image for image in images}
    last = tuple(document["last"])
    if not by_name.keys() >= set(last):
        raise ValueError("the record names an image that it does not have")
    return BuildRecord(last=last, images=by_name, folders=dict(document["folders"]))


def _parse_field(item: tuple[str, Any]) -> tuple[str, Any]:
    name, value = item
    return name, tuple(value) if isinstance(value, list) else value


def list_typed_options(
    settings: Settings, options: Mapping[str, Any], *, is_target: bool = False
) -> tuple[str, ...]:
    """Return the options of a command line that say what is built, not where it goes.

    They are what flags and environment have set in ``settings``, and ``options``, fields of a build request
    that are not settings. A secret is only named in them. ``is_target`` is True for a bake file's target.
    """
    setting_flags = _SETTING_FLAGS if is_target else _IMAGE_FLAGS | _SETTING_FLAGS
    typed: dict[str, Any] = {
        flag: getattr(settings, key)
        for key, flag in setting_flags.items()
        if settings.origins.get(key, SettingOrigin.DEFAULT) >= SettingOrigin.ENVIRONMENT
    }
    if "--platform" in typed:
        typed["--platform"] = ",".join(settings.platforms)
    typed |= {flag: options.get(key) for key, flag in _REQUEST_FLAGS.items()}
    return tuple(argument for flag, value in typed.items() for argument in _format_option(flag, value))


def _format_option(flag: str, value: Any) -> Iterator[str]:
    """Yield an option as it is typed: a flag that is set, or one option for each value."""
    if isinstance(value, tuple):
        yield from (f"{flag}={redact(each)}" for each in value)
    elif value:
        yield flag if value is True else f"{flag}={redact(value)}"


# Best first: an archive can be verified most thoroughly, and a local output has no manifests.
_OUTPUT_PREFERENCE = ("oci", "docker", "registry", "local")


def best_image_name(result: BuildResult) -> str:
    """Return a build's best output as an image name, or "" if no output can be read back.

    A local output is ``dir:DIR``, which only ``verify-arch`` accepts. An image of one of several platforms,
    as an engine with a classic store has it, does not stand for the build.
    """
    whole = [output for output in result.outputs if not output.only_platform or len(result.platforms) == 1]
    names = map(_absolute_image_name, sorted(whole, key=_preference_rank))
    return next(filter(None, names), "")


def _preference_rank(output: Output) -> int:
    return [*_OUTPUT_PREFERENCE, output.type].index(output.type)


def _absolute_image_name(output: Output) -> str:
    if output.dest is None:
        return output.image_name
    output = replace(output, dest=_absolute(output.dest))
    return f"dir:{output.dest}" if output.type == "local" else output.image_name


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _describe_unreadable(outputs: Sequence[Output]) -> str:
    """Return what a build without an image that can be read back has done."""
    loaded = [output.image_name for output in outputs if output.only_platform]
    if loaded:
        return f"loaded a separate image for each platform: {', '.join(loaded)}"
    archives = [_absolute(output.dest) for output in outputs if output.type == "tar" and output.dest]
    if archives:
        return f"wrote {', '.join(archives)}, a tar archive of files and not an image"
    names = [output.ref for output in outputs if output.ref]
    return f"left {', '.join(names) or 'the image'} in the store of the builder, which cannot be read"
