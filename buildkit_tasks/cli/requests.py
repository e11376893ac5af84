"""What a task asks of the services, from its options: build requests, releases and selections of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.cli.invocation import Option, TaskContext
    from buildkit_tasks.pipeline.image_job import ImageSelection
    from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec

__all__ = [
    "build_options",
    "build_request",
    "check_release_options",
    "image_selection",
    "release_from_options",
]


def image_selection(edge: TaskContext) -> ImageSelection:
    """Return the images that are named by ``--image``, or by ``--target`` of a bake file; none means all."""
    from buildkit_tasks.pipeline.image_job import ImageSelection

    bake_file = edge.options["bake"]
    if bake_file and edge.options["image"]:
        raise UsageError(
            "--image is for the images of the settings", hint="--target names those of a bake file"
        )
    text = ",".join(edge.options["target" if bake_file else "image"])
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return ImageSelection(names=names, bake_file=bake_file, options=build_options(edge))


def release_from_options(edge: TaskContext, image: str = "") -> tuple[ReleaseService, ReleaseSpec]:
    """What releases, and the release that the settings and options describe: those of one image, if named."""
    from buildkit_tasks.config.images import settings_for_image
    from buildkit_tasks.pipeline.release import ReleaseService, ReleaseSpec
    from buildkit_tasks.platforms import parse_platforms

    settings = settings_for_image(edge.settings, image)
    image_runner = edge.image_runner(settings)
    expected_platforms = parse_platforms(settings.platforms) if settings.is_explicit("platforms") else ()
    spec = ReleaseSpec.from_tags(
        settings.tags, expected_platforms, verify_first=not edge.options["no_verify"]
    )
    return ReleaseService(resolver=image_runner.resolver, image_runner=image_runner), spec


def check_release_options(edge: TaskContext, request: BuildRequest, proving: Iterable[Option] = ()) -> None:
    """Refuse ``--no-verify``, and what says how to prove, for a build of which nothing is proved."""
    from buildkit_tasks.config.settings import SettingOrigin

    if any(output.is_pushed for output in request.outputs) and not request.split:
        return
    origins = edge.settings.origins
    option_names = [each.name for each in proving if origins.get(each.setting) is SettingOrigin.FLAG]
    option_names += [] if request.verify_first else ["no_verify"]
    if option_names:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in option_names)
        raise UsageError(
            f"{flags}: nothing is pushed, so that there is no release to be proved",
            hint="add --push, or say it to inv verify-arch and inv run-emulated",
        )


def build_request(edge: TaskContext) -> BuildRequest:
    """The build request: options that are no settings, joined with those that are."""
    return edge.pipeline.create_request(**build_options(edge))


def build_options(edge: TaskContext) -> dict[str, Any]:
    """The options of a build that are no settings, by the names of the request."""
    from buildkit_tasks.build.outputs import OutputSpec

    options = edge.options
    outputs = [OutputSpec.parse(text) for text in options["output"]]
    if options["push"] or options["split"]:
        outputs.append(OutputSpec(type="registry"))
    list_fields: dict[str, Any] = {
        field: tuple(options[name])
        for name, field in (
            ("build_context", "build_contexts"),
            ("cache_from", "cache_from"),
            ("cache_to", "cache_to"),
            ("secret", "secrets"),
            ("ssh", "ssh"),
            ("label", "labels"),
            ("annotation", "annotations"),
            ("attest", "attest"),
        )
    }
    scalar_fields: dict[str, Any] = {
        name: options[name]
        for name in (
            "load",
            "provenance",
            "sbom",
            "no_attest",
            "reproducible",
            "no_cache",
            "pull",
            "metadata_file",
        )
    }
    scalar_fields |= {"split": options["split"], "verify_first": not options["no_verify"]}
    return {"outputs": tuple(outputs), **list_fields, **scalar_fields}
