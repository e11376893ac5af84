"""Values for the services from a task's options: build requests, releases and image selections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.cli.invocation import TaskContext
    from buildkit_tasks.cli.options import Option
    from buildkit_tasks.pipeline.image_job import ImageSelection
    from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec

__all__ = [
    "build_options",
    "build_request",
    "check_release_options",
    "image_selection",
    "release_from_options",
]


def image_selection(ctx: TaskContext) -> ImageSelection:
    """Return the images of ``--image``, or the targets of ``--target`` with a bake file; none means all."""
    from buildkit_tasks.pipeline.image_job import ImageSelection

    bake_file = ctx.options["bake"]
    if bake_file and ctx.options["image"]:
        raise UsageError(
            "--image selects images of the settings, not of a bake file",
            hint="select bake targets with --target",
        )
    text = ",".join(ctx.options["target" if bake_file else "image"])
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return ImageSelection(names=names, bake_file=bake_file, options=build_options(ctx))


def release_from_options(ctx: TaskContext, image: str = "") -> tuple[ReleaseService, ReleaseSpec]:
    """Return the release service and what to release, under the settings of ``image`` if it is named."""
    from buildkit_tasks.config.images import settings_for_image
    from buildkit_tasks.pipeline.release import ReleaseSpec
    from buildkit_tasks.platforms import parse_platforms

    settings = settings_for_image(ctx.settings, image)
    expected_platforms = parse_platforms(settings.platforms) if settings.is_explicit("platforms") else ()
    spec = ReleaseSpec.from_tags(settings.tags, expected_platforms, verify_first=not ctx.options["no_verify"])
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
    option_names = [each.name for each in verify_options if origins.get(each.setting) is SettingOrigin.FLAG]
    option_names += [] if request.verify_first else ["no_verify"]
    if option_names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in option_names)
        raise UsageError(
            f"{flags}: applies to a push, and nothing is pushed",
            hint="add --push, or pass it to inv verify-arch or inv run-emulated",
        )


def build_request(ctx: TaskContext) -> BuildRequest:
    """Return the build request of the settings and of the options that are not settings."""
    return ctx.pipeline.create_request(**build_options(ctx))


def build_options(ctx: TaskContext) -> dict[str, Any]:
    """Return the build options that are not settings, by the field names of :class:`BuildRequest`."""
    from buildkit_tasks.build.outputs import OutputSpec

    options = ctx.options
    outputs = [OutputSpec.parse(text) for text in options["output"]]
    if options["push"] or options["split"]:
        outputs.append(OutputSpec(type="registry"))
    return {
        "outputs": tuple(outputs),
        "verify_first": not options["no_verify"],
        **{field: tuple(options[name]) for name, field in _LIST_FIELDS.items()},
        **{name: options[name] for name in _SCALAR_FIELDS},
    }


_LIST_FIELDS = {
    "build_context": "build_contexts",
    "cache_from": "cache_from",
    "cache_to": "cache_to",
    "secret": "secrets",
    "ssh": "ssh",
    "label": "labels",
    "annotation": "annotations",
    "attest": "attest",
}
_SCALAR_FIELDS = (
    "load",
    "metadata_file",
    "no_attest",
    "no_cache",
    "provenance",
    "pull",
    "reproducible",
    "sbom",
    "split",
)
