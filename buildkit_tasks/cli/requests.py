"""What a task asks of the services, from its options: build requests, releases and selections of images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.cli.invocation import Edge, Option
    from buildkit_tasks.pipeline.image_job import Choice
    from buildkit_tasks.pipeline.release import Release, Releases

__all__ = [
    "build_options",
    "build_request",
    "check_release_options",
    "image_selection",
    "release_from_options",
]


def image_selection(edge: Edge) -> Choice:
    """Return the images that are named by ``--image``, or by ``--target`` of a bake file; none means all."""
    from buildkit_tasks.pipeline.image_job import Choice

    bake = edge.options["bake"]
    if bake and edge.options["image"]:
        raise UsageError(
            "--image is for the images of the settings", hint="--target names those of a bake file"
        )
    words = ",".join(edge.options["target" if bake else "image"])
    names = tuple(word.strip() for word in words.split(",") if word.strip())
    return Choice(names=names, bake=bake, options=build_options(edge))


def release_from_options(edge: Edge, image: str = "") -> tuple[Releases, Release]:
    """What releases, and the release that the settings and options describe: those of one image, if named."""
    from buildkit_tasks.config.images import settings_for_image
    from buildkit_tasks.pipeline.images import Images
    from buildkit_tasks.pipeline.release import Release, Releases
    from buildkit_tasks.pipeline.runs import Runs
    from buildkit_tasks.platforms import parse_platforms

    settings = settings_for_image(edge.settings, image)
    images = Images(settings=settings, run=edge.run)
    line = (lambda: edge.line.under(settings)) if image else (lambda: edge.line)
    runs = Runs(settings=settings, run=edge.run, tell=edge.tell, images=images, line=line)
    expected = parse_platforms(settings.platforms) if settings.given("platforms") else ()
    release = Release.of(settings.tags, expected, proved=not edge.options["no_verify"])
    return Releases(images=images, runs=runs), release


def check_release_options(edge: Edge, request: BuildRequest, proving: Iterable[Option] = ()) -> None:
    """Refuse ``--no-verify``, and what says how to prove, for a build of which nothing is proved."""
    from buildkit_tasks.config.settings import Origin

    if any(output.pushes for output in request.outputs) and not request.split:
        return
    origins = edge.settings.origins
    given = [each.name for each in proving if origins.get(each.setting) is Origin.FLAG]
    given += [] if request.proved else ["no_verify"]
    if given:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            f"{words}: nothing is pushed, so that there is no release to be proved",
            hint="add --push, or say it to inv verify-arch and inv run-emulated",
        )


def build_request(edge: Edge) -> BuildRequest:
    """The build request: options that are no settings, joined with those that are."""
    return edge.line.request(**build_options(edge))


def build_options(edge: Edge) -> dict[str, Any]:
    """The options of a build that are no settings, by the names of the request."""
    from buildkit_tasks.build.outputs import OutputSpec

    given = edge.options
    outputs = [OutputSpec.parse(text) for text in given["output"]]
    if given["push"] or given["split"]:
        outputs.append(OutputSpec(type="registry"))
    lists: dict[str, Any] = {
        field: tuple(given[name])
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
    plain: dict[str, Any] = {
        name: given[name]
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
    plain |= {"split": given["split"], "proved": not given["no_verify"]}
    return {"outputs": tuple(outputs), **lists, **plain}
