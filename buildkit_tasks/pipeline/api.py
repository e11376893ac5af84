"""The functions of ``import buildkit_tasks as bt``: build, verify, run and push an image.

Each is the Invoke task of the same purpose without its output. ``docs/api.md`` says what they have in common.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from buildkit_tasks.config.settings import SETTINGS_KEYS, Settings, load_settings, override_settings
from buildkit_tasks.errors import UsageError
from buildkit_tasks.pipeline.pipeline import Pipeline
from buildkit_tasks.platforms import Platform, parse_platforms
from buildkit_tasks.system.command import SubprocessRunner, redact
from buildkit_tasks.system.notify import Notify, NotifyStream, log_progress

if TYPE_CHECKING:
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.pipeline.chosen_images import ChosenImage
    from buildkit_tasks.report.model import BuildResult, PushResult, RunReport, RunResult, VerifyReport

__all__ = ["BuildOptions", "Names", "PlatformNames", "StrPath", "build", "push", "run", "verify"]

StrPath = str | os.PathLike[str]
Names = str | Iterable[str]
PlatformNames = str | Platform | Iterable[str | Platform]


_ATTESTATIONS = ("provenance", "sbom")


class BuildOptions(TypedDict, total=False):
    """More options of a build, with the values that ``docker buildx build`` takes.

    ``file``, ``target``, ``build_args``, ``network``, ``add_hosts``, ``shm_size``, ``ulimits``, ``allow``,
    ``progress``, ``bases``, ``name`` (the builder) and ``fallback`` override settings.
    ``verify_first=False`` tags what is pushed without verifying and running it; ``split`` leaves it untagged,
    as a part for ``merge-multiarch``.
    """

    file: str
    target: str
    build_args: Names
    network: str
    add_hosts: Names
    shm_size: str
    ulimits: Names
    allow: Names
    progress: str
    bases: str
    name: str
    fallback: str
    build_contexts: Names
    cache_from: Names
    cache_to: Names
    secrets: Names
    ssh: Names
    labels: Names
    annotations: Names
    attest: Names
    provenance: str | bool
    sbom: str | bool
    no_attest: bool
    reproducible: bool
    no_cache: bool
    no_cache_filters: Names
    resources: Names
    cgroup_parent: str
    pull: bool
    load: bool
    metadata_file: str
    iidfile: str
    split: bool
    verify_first: bool


def build(  # noqa: PLR0913 - options are keywords with defaults
    context: StrPath | None = None,
    *,
    image: str = "",
    platforms: PlatformNames = (),
    tags: Names = (),
    outputs: Names = (),
    push: bool = False,
    settings: Settings | None = None,
    notify: Notify | None = None,
    on_result: Callable[[RunResult], None] | None = None,
    **options: Unpack[BuildOptions],
) -> BuildResult:
    """Build an image for several platforms and return where it went, as ``build-multiarch`` does.

    ``context`` is a directory or a URL. ``image`` is the name of an image of the settings if they have
    several. ``outputs`` are values of buildx's ``--output``; without outputs, ``push`` or ``load`` the image
    is written to an OCI archive in ``dist/``. With ``push`` it is pushed to the registry of the tags,
    verified and run there, and then tagged; if that fails, the result's ``ok`` is False and no tag has moved.
    The result's ``seconds`` is the duration in seconds. ``options`` are those of :class:`BuildOptions`.

    Raises :class:`UsageError` for an option that is not valid, :class:`EngineError`, :class:`BuilderError` or
    :class:`EmulatorError` if this machine lacks something, :class:`BuildFailed` if buildx fails,
    :class:`RegistryError`, and :class:`LimitExceeded` for a full disk.
    """
    values = {key: value for key, value in options.items() if key in SETTINGS_KEYS}
    values |= {"platforms": _platform_names(platforms), "tags": _strings(tags), "context": _path(context)}
    pipeline, request = _select_image(
        _create_pipeline("build", settings, values, notify),
        image,
        _request_options(outputs, options, push=push),
    )
    result = pipeline.build(request)
    return pipeline.release_build(request, result, _observer(on_result))


def _request_options(outputs: Names, options: BuildOptions, *, push: bool) -> dict[str, Any]:
    """Return the options that are not settings, as fields of :class:`BuildRequest`."""
    from buildkit_tasks.build.outputs import OutputSpec
    from buildkit_tasks.build.request import BuildRequest

    unknown = options.keys() - BuildOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"build() got an unexpected keyword argument {min(unknown)!r}")
    lists = {field.name for field in fields(BuildRequest) if field.default == ()}
    values: dict[str, Any] = {name: value for name, value in options.items() if name not in SETTINGS_KEYS}
    specs = [OutputSpec.parse(text) for text in _strings(outputs)]
    if push or options.get("split"):
        specs.append(OutputSpec(type="registry"))
    values |= {
        name: str(values[name]).lower() for name in _ATTESTATIONS if isinstance(values.get(name), bool)
    }
    return {
        **{name: _strings(value) if name in lists else value for name, value in values.items()},
        "outputs": tuple(specs),
    }


def _select_image(pipeline: Pipeline, image: str, options: dict[str, Any]) -> tuple[Pipeline, BuildRequest]:
    """Return the pipeline and the request of the named image, or of the only one of the settings."""
    if not image and not pipeline.settings.images:
        return pipeline, pipeline.create_request(**options)
    from buildkit_tasks.pipeline.multi_image import ImageSelection, open_images

    selection = ImageSelection(names=(image,) if image else (), options=options)
    with open_images(pipeline, selection) as images:
        names = ", ".join(job.name for job in images.image_jobs)
        if len(images.image_jobs) != 1:
            raise UsageError(f"build: the settings have several images: {names}", hint='pass image="NAME"')
        job = images.image_jobs[0]
    return pipeline.with_settings(job.settings, job.name), job.request


def verify(  # noqa: PLR0913 - options are keywords with defaults
    image: StrPath = "",
    *,
    platforms: PlatformNames = (),
    hosts: PlatformNames = (),
    parity: str | None = None,
    allow_foreign: Names = (),
    timeout: float | None = None,
    settings: Settings | None = None,
) -> VerifyReport:
    """Check that each platform of an image is what it says, and return the report, as ``verify-arch`` does.

    ``image`` is the name of an image of the settings, a name such as ``docker://REF`` or
    ``oci-archive:FILE``, or a path; by default the last image built in this directory. ``platforms`` are the
    exact platforms that it must have; by default those of the settings if they have any, otherwise those that
    it has. With ``hosts``, check only that it would start on hosts of these platforms. ``parity`` (``warn``,
    ``fail`` or ``ignore``), ``allow_foreign`` and ``timeout`` (seconds; 0: no limit) override the settings. A
    time limit works in the main thread only.

    A check that fails is in the report, whose ``ok`` is then False. Raises :class:`UsageError`, and
    :class:`RegistryError` or :class:`EngineError` if the image cannot be read from there.
    """
    host_platforms = parse_platforms(_platform_names(hosts))
    values = {
        "platforms": _platform_names(platforms),
        "parity": parity,
        "allow_foreign": _strings(allow_foreign),
        "verify_timeout": timeout,
    }
    pipeline, chosen = _choose_image(_create_pipeline("verify", settings, values), image)
    expected = () if host_platforms else _explicit_platforms(pipeline)
    return pipeline.verify_image(chosen.require_location(), expected, dict.fromkeys(host_platforms, 0))


def run(  # noqa: PLR0913 - options are keywords with defaults
    image: StrPath = "",
    *,
    platforms: PlatformNames = (),
    command: str | None = None,
    expect: str | None = None,
    expect_exit: int | None = None,
    cpu: str | None = None,
    timeout: float | None = None,
    runner: str | None = None,
    jobs: int | None = None,
    settings: Settings | None = None,
    notify: Notify | None = None,
    on_result: Callable[[RunResult], None] | None = None,
) -> RunReport:
    """Run an image on each of its platforms and return the report, as ``run-emulated`` does.

    ``image`` and ``platforms`` are as for :func:`verify`. ``command`` replaces the image's own; ``expect`` is
    a regular expression for its standard output, ``expect_exit`` its exit status. ``cpu`` is ``max``,
    ``floor``, ``both`` or a CPU model of QEMU. ``timeout`` limits each run, in seconds; ``jobs`` run in
    parallel. ``runner`` is ``auto``, ``docker`` or ``sandbox``. None means the value of the settings.

    A run that fails is in the report, whose ``ok`` is then False; ``seconds`` of a result is its duration in
    seconds. Raises :class:`UsageError`, :class:`EngineError` or :class:`EmulatorError` if nothing here can
    run the image, :class:`RegistryError`, and :class:`MalformedImage`.
    """
    values = {
        "platforms": _platform_names(platforms),
        "command": command,
        "expect": expect,
        "expect_exit": expect_exit,
        "cpu": cpu,
        "timeout": timeout,
        "runner": runner,
        "jobs": jobs,
    }
    pipeline, chosen = _choose_image(_create_pipeline("run", settings, values, notify), image)
    return pipeline.run_image(chosen.require_manifests(), _explicit_platforms(pipeline), _observer(on_result))


def push(  # noqa: PLR0913 - options are keywords with defaults
    archive: StrPath = "",
    *,
    tags: Names = (),
    platforms: PlatformNames = (),
    verify_first: bool = True,
    settings: Settings | None = None,
    notify: Notify | None = None,
    on_result: Callable[[RunResult], None] | None = None,
) -> PushResult:
    """Push a built image to a registry and return its digest and tags, as ``push-multiarch`` does.

    ``archive`` is an image's name or path; by default the last image built in this directory. It is pushed by
    digest, verified and run in the registry, and then tagged; without ``verify_first``, tagged at once.
    ``platforms`` are the exact platforms that it must have. If a check or a run fails, the result's ``ok`` is
    False and no tag has moved. ``result.seconds`` is the duration in seconds.

    Raises :class:`UsageError`, for example without a tag, :class:`RegistryError`, :class:`MalformedImage`,
    and :class:`EngineError` or :class:`EmulatorError` if nothing here can run the image.
    """
    from buildkit_tasks.pipeline.release import ReleaseSpec

    values = {"platforms": _platform_names(platforms), "tags": _strings(tags)}
    pipeline, chosen = _choose_image(_create_pipeline("push", settings, values, notify), archive)
    spec = ReleaseSpec.from_tags(
        pipeline.settings.tags, _explicit_platforms(pipeline), verify_first=verify_first
    )
    return pipeline.releases.push(chosen.require_manifests(), spec, _observer(on_result))


def _create_pipeline(
    caller: str, settings: Settings | None, values: dict[str, Any], notify: Notify | None = None
) -> Pipeline:
    """Return a pipeline under the settings with these values. What it reports is redacted."""
    merged = override_settings(load_settings() if settings is None else settings, values, caller)
    report = notify or log_progress
    stream = NotifyStream(report)
    return Pipeline(
        settings=merged,
        commands=SubprocessRunner(stream_output=stream, dry_run_output=stream),
        notify=lambda message: report(redact(message)),
    )


def _choose_image(pipeline: Pipeline, image: StrPath) -> tuple[Pipeline, ChosenImage]:
    """Return an image, and the pipeline with its settings.

    ``image`` may be the name of an image of the settings. Raises :class:`UsageError` if there are several.
    """
    from buildkit_tasks.pipeline.chosen_images import choose_images

    images = choose_images(pipeline, [os.fspath(image)])
    if len(images) > 1:
        names = ", ".join(each.name for each in images)
        raise UsageError(f"there are several images: {names}", hint=f'pass image="{images[0].name}"')
    return pipeline.with_settings(images[0].settings), images[0]


def _explicit_platforms(pipeline: Pipeline) -> tuple[Platform, ...]:
    """Return the platforms that a caller or the settings name; none means those of the image."""
    return pipeline.platforms if pipeline.settings.is_explicit("platforms") else ()


def _platform_names(platforms: PlatformNames) -> tuple[str, ...]:
    values = (platforms,) if isinstance(platforms, str | Platform) else platforms
    return tuple(map(str, values))


def _strings(values: Names) -> tuple[str, ...]:
    texts = (values,) if isinstance(values, str) else tuple(values)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"expected a string or strings, not {text!r}")
    return texts


def _path(path: StrPath | None) -> str | None:
    return None if path is None else os.fspath(path)


@dataclass(frozen=True, slots=True)
class _Observer:
    """Calls ``on_result`` for each run that has ended."""

    on_result: Callable[[RunResult], None]

    def expect_runs(self, runs: Iterable[tuple[str, str, str]]) -> None:
        """Ignore the announcement of runs."""

    def __call__(self, result: RunResult) -> None:
        self.on_result(result)


def _observer(on_result: Callable[[RunResult], None] | None) -> _Observer | None:
    return None if on_result is None else _Observer(on_result)
