"""Values for the services from a task's options: build requests, releases and image selections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.cli.invocation import TaskContext
    from buildkit_tasks.cli.options import Option
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.oci.reference import Reference
    from buildkit_tasks.pipeline.chosen_images import ChosenImage
    from buildkit_tasks.pipeline.image_job import ImageSelection
    from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
    from buildkit_tasks.platforms import Platform

__all__ = [
    "build_options",
    "build_request",
    "call_method",
    "check_release_options",
    "chosen_images",
    "explicit_platforms",
    "image_selection",
    "release_from_options",
    "releases_of_images",
]


def image_selection(ctx: TaskContext) -> ImageSelection:
    """Return the images of ``--image``, or the targets of ``--target`` with a bake file; none means all."""
    from buildkit_tasks.pipeline.image_job import ImageSelection

    bake_files, overrides = tuple(ctx.options["bake"]), tuple(ctx.options["set"])
    if bake_files and ctx.options["image"]:
        raise UsageError(
            "--image selects images of the settings, not of a bake file",
            hint="select bake targets with --target",
        )
    text = ",".join(ctx.options["target" if bake_files else "image"])
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return ImageSelection(
        names=names, bake_files=bake_files, bake_overrides=overrides, options=build_options(ctx)
    )


def chosen_images(ctx: TaskContext, option: str = "image") -> tuple[ChosenImage, ...]:
    """Return the images that the option names, by name or location; those of the last build if none."""
    from buildkit_tasks.pipeline.chosen_images import choose_images

    value = ctx.options[option]
    return choose_images(ctx.pipeline, (value,) if isinstance(value, str) else value)


def explicit_platforms(settings: Settings) -> tuple[Platform, ...]:
    """Return the platforms that the options or the settings name; none means those of the image."""
    from buildkit_tasks.platforms import parse_platforms

    return parse_platforms(settings.platforms) if settings.is_explicit("platforms") else ()


def releases_of_images(
    ctx: TaskContext, images: Iterable[ChosenImage]
) -> dict[ChosenImage, tuple[ReleaseService, ReleaseSpec]]:
    """Return how each image is released, under its own settings.

    Raises :class:`UsageError`, before anything is pushed, for an image without a tag, for two with the same
    one, and for a last build that cannot be pushed.
    """
    releases = {image: _release_of_image(ctx, image) for image in images}
    owners: dict[Reference, ChosenImage] = {}
    for image, (_, spec) in releases.items():
        image.require_manifests()
        for tag in spec.tags:
            owner = owners.setdefault(tag, image)
            if owner is not image:
                raise UsageError(
                    f"{owner.label} and {image.label} would both be tagged {tag}",
                    hint=f"inv push-multiarch {image.label} -t {tag}",
                )
    return releases


def _release_of_image(ctx: TaskContext, image: ChosenImage) -> tuple[ReleaseService, ReleaseSpec]:
    from buildkit_tasks.pipeline.chosen_images import check_known
    from buildkit_tasks.pipeline.image_job import hint_for_one

    try:
        return release_from_options(ctx, image.settings)
    except UsageError as error:
        if not image.name:
            check_known(ctx.pipeline, image.location)
            raise
        has_table = image.name in {table.name for table in ctx.settings.images}
        hint = hint_for_one(image.name, error.hint or "", is_target=False) if has_table else error.hint
        raise UsageError(f"{image.name}: {error.message}", hint=hint) from error


def release_from_options(ctx: TaskContext, settings: Settings) -> tuple[ReleaseService, ReleaseSpec]:
    """Return the release service and what to release, under these settings."""
    from buildkit_tasks.pipeline.release import ReleaseSpec

    spec = ReleaseSpec.from_tags(
        settings.tags, explicit_platforms(settings), verify_first=not ctx.options["no_verify"]
    )
    return ctx.pipeline.with_settings(settings).releases, spec


def check_release_options(
    ctx: TaskContext, request: BuildRequest, verify_options: Iterable[Option] = ()
) -> None:
    """Raise :class:`UsageError` for options that control verification if the build pushes nothing.

    Only a push is verified and run by the build itself. ``verify_options`` are the options that say how.
    """
    from buildkit_tasks.config.settings import SettingOrigin

    if any(output.is_pushed for output in request.outputs) and not request.split:
        return
    origins = ctx.settings.origins
    flags = [each.flag for each in verify_options if origins.get(each.setting) is SettingOrigin.FLAG]
    flags += [] if request.verify_first else ["--no-verify"]
    if flags:
        raise UsageError(
            f"{', '.join(flags)}: applies to a push, and nothing is pushed",
            hint="add --push, or pass it to inv verify-arch or inv run-emulated",
        )


def build_request(ctx: TaskContext) -> BuildRequest:
    """Return the build request of the settings and of the options that are not settings."""
    return ctx.pipeline.create_request(**build_options(ctx))


def build_options(ctx: TaskContext) -> dict[str, Any]:
    """Return the build options that are not settings, by the field names of :class:`BuildRequest`."""
    from buildkit_tasks.build.outputs import OutputSpec

    options = ctx.options
    _check_no_push(options)
    if options["set"] and not options["bake"]:
        raise UsageError("--set changes targets of a bake file", hint="--bake docker-bake.hcl")
    outputs = [OutputSpec.parse(text) for text in options["output"]]
    if options["push"] or options["split"]:
        outputs.append(OutputSpec(type="registry"))
    return {
        "outputs": tuple(outputs),
        "verify_first": not options["no_verify"],
        "call": call_method(ctx),
        **{field: tuple(options[name]) for name, field in _LIST_FIELDS.items()},
        **{name: options[name] for name in _SCALAR_FIELDS},
    }


def _check_no_push(options: Mapping[str, Any]) -> None:
    contradictions = [flag for flag in ("no_verify", "split") if options[flag]]
    if options["no_push"] and contradictions:
        raise UsageError(
            f"--no-push contradicts --{contradictions[0].replace('_', '-')}", hint="omit one of them"
        )


def call_method(ctx: TaskContext) -> str:
    """Return the method of ``--call`` or ``--check`` with its attributes, or "" if an image is to be built.

    Raises :class:`UsageError` for two methods, and for a file that would describe the image.
    """
    called: str = ctx.options.get("call", "").removeprefix("build")
    if ctx.options.get("check"):
        if called and called.partition(",")[0] != "check":
            raise UsageError(f"--check contradicts --call={called}", hint="omit one of them")
        called = called or "check"
    if called:
        files = [flag for flag in ("report", "iidfile", "metadata_file") if ctx.options[flag]]
        if files:
            flag = f"--{files[0].replace('_', '-')}"
            raise UsageError(f"--call={called} makes no image that {flag} describes", hint=f"omit {flag}")
        if ctx.json_output and "format=" not in called:
            called += ",format=json"
    return called


_LIST_FIELDS = {
    "build_context": "build_contexts",
    "cache_from": "cache_from",
    "cache_to": "cache_to",
    "secret": "secrets",
    "ssh": "ssh",
    "label": "labels",
    "annotation": "annotations",
    "attest": "attest",
    "no_cache_filter": "no_cache_filters",
    "resource": "resources",
}
_SCALAR_FIELDS = (
    "cgroup_parent",
    "iidfile",
    "load",
    "metadata_file",
    "no_attest",
    "no_cache",
    "no_push",
    "provenance",
    "pull",
    "reproducible",
    "sbom",
    "split",
)
