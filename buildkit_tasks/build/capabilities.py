"""What an engine and a builder cannot make of a request, found before anything is built."""

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
    """What buildx would find out after the build, or say in words that do not help."""
    check_exporters(request.cache_to, request.cache_from, builder.driver, engine.store)
    if request.reproducible:
        load_outputs = (OutputSpec(type="docker"),) if request.load else ()
        check_rewrite_timestamps((*request.outputs, *load_outputs), builder.driver)
    _check_load(request, engine)
    _check_image_output(request, builder)
    if len(request.platforms) == 1:
        return
    alternatives = "-o type=oci,dest=dist/image.tar, or --load"
    for output in request.outputs:
        if output.type != "docker":
            continue
        if output.dest is not None:
            raise UsageError("the docker archive format holds one platform only", hint=alternatives)
        if engine.store != "containerd":
            raise UsageError(
                "type=docker with several platforms needs the containerd image store; "
                "this engine has the graph store",
                hint="--load (one tag for each platform), or --engine=private (containerd image store)",
            )
    if request.outputs:
        require_index(builder, engine)


def _check_image_output(request: BuildRequest, builder: BuilderSummary) -> None:
    """An image that a BuildKit of its own keeps is seen by nobody: its build would vanish."""
    for output in request.outputs:
        if output.type == "image" and not output.is_pushed and builder.driver != "docker":
            raise UsageError(
                f"output {output}: an image stays inside a builder of driver {builder.driver}, "
                "where nothing can use it",
                hint="--load, --push, or -o type=oci,dest=dist/image.tar",
            )


def _check_load(request: BuildRequest, engine: Engine) -> None:
    """A builder elsewhere needs no engine; an image that is loaded does."""
    loads_image = request.load or any(output.is_loaded for output in request.outputs)
    if loads_image and engine.kind == "none":
        raise UsageError(
            "there is no Docker engine here to load the image into: its builder runs elsewhere",
            hint="-o type=oci,dest=dist/image.tar, or DOCKER_HOST=ENDPOINT of the engine that is meant",
        )
