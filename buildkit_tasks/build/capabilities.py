"""Check a request against the engine and the builder, before anything is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.build.cache import check_exporters
from buildkit_tasks.build.outputs import OutputSpec
from buildkit_tasks.build.reproducible import check_rewrite_timestamps
from buildkit_tasks.errors import UsageError
from buildkit_tasks.host.builder import require_index

if TYPE_CHECKING:
    from buildkit_tasks.build.request import BuildRequest
    from buildkit_tasks.host.engine.daemon import Engine
    from buildkit_tasks.report.model import BuilderSummary

__all__ = ["check_capabilities"]


def check_capabilities(request: BuildRequest, engine: Engine, builder: BuilderSummary) -> None:
    """Raise for what this engine and builder cannot do.

    buildx would report it after the build, or without saying what to do. Raises :class:`UsageError`, and
    :class:`BuilderError` for a builder that cannot make an index of several platforms.
    """
    check_exporters(request.cache_to, request.cache_from, builder.driver, engine.store)
    if request.reproducible:
        load_outputs = (OutputSpec(type="docker"),) if request.load else ()
        check_rewrite_timestamps((*request.outputs, *load_outputs), builder.driver)
    _check_load(request, engine)
    _check_metadata(request, engine)
    _check_image_output(request, builder)
    if len(request.platforms) > 1 and request.outputs:
        _check_docker_output(request, engine)
        require_index(builder, engine)


def _check_load(request: BuildRequest, engine: Engine) -> None:
    """Check that there is an engine to load into; a builder on another machine does not need one."""
    loads_image = request.load or any(output.is_loaded for output in request.outputs)
    if loads_image and engine.kind == "none":
        raise UsageError(
            "there is no Docker engine to load the image into: the builder runs on another machine, and "
            "DOCKER_HOST names none",
            hint="-o type=oci,dest=dist/image.tar",
        )


def _check_metadata(request: BuildRequest, engine: Engine) -> None:
    """Refuse to describe one image in a file if only images of one platform each are loaded."""
    options = {"--metadata-file": request.metadata_file, "--iidfile": request.iidfile}
    used = [name for name, value in options.items() if value]
    loads_only = request.load and not request.outputs and len(request.platforms) > 1
    if used and loads_only and engine.store != "containerd":
        raise UsageError(
            f"{', '.join(used)}: this engine has the graph store, where --load makes an image of each "
            "platform, not one image",
            hint="-o type=oci,dest=dist/image.tar",
        )


def _check_image_output(request: BuildRequest, builder: BuilderSummary) -> None:
    """Refuse an image that would stay in the builder's own store, where nothing can use it."""
    for output in request.outputs:
        if output.type == "image" and not output.is_pushed and builder.driver != "docker":
            raise UsageError(
                f"output {output}: the image would stay in a builder of driver {builder.driver}, "
                "where nothing can use it",
                hint="-o type=oci,dest=dist/image.tar",
            )


def _check_docker_output(request: BuildRequest, engine: Engine) -> None:
    """Refuse ``type=docker`` of several platforms where format or store hold one platform only."""
    for output in request.outputs:
        if output.type == "docker" and output.dest is not None:
            raise UsageError(
                "the docker archive format holds one platform only",
                hint="-o type=oci,dest=dist/image.tar",
            )
        if output.type == "docker" and engine.store != "containerd":
            raise UsageError(
                "type=docker with several platforms needs the containerd image store, which a private engine "
                "has; this engine has the graph store, into which --load loads one tag for each platform",
                hint="--engine=private",
            )
