"""Plan what buildx is asked to write for each output of a request, and who pushes.

========================= ================================== ====================== ==========================
output                    condition                          buildx writes          afterwards
========================= ================================== ====================== ==========================
file (oci, docker, tar)                                      a temporary file       renamed to ``dest``
folder (local)                                               ``dest``
load (docker)             containerd store, or one platform  the engine's store
load (docker)             graph store, several platforms     nothing                one build per platform
push (image, registry)    an OCI archive is written anyway,  nothing                we push that archive
                          with the same packing
push (image, registry)    else, any driver but ``docker``    the registry
push (image, registry)    else, driver ``docker``            a temporary archive    we push that archive
========================= ================================== ====================== ==========================

- BuildKit packs the image again for each exporter, with other attestations: an image that is written and
  pushed has one digest only if the archive is what is pushed.
- Everything is pushed by digest. The engine's own BuildKit (driver ``docker``) cannot do that.
- A graph store holds one platform per tag: ``app:1`` is loaded as ``app:1-linux-arm64`` and so on.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from buildkit_tasks.build.destinations import parse_repositories
from buildkit_tasks.build.outputs import (
    OutputSpec,
    add_names,
    find_pushable_archive,
    make_archive_output,
    make_digest_output,
)
from buildkit_tasks.errors import BuildFailed
from buildkit_tasks.system.files import replace_file, temporary_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from buildkit_tasks.build.request import BuildRequest

__all__ = ["ExportPlan", "plan_exports", "stage_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """What a build writes: see the table of this module.

    ``outputs`` are those of the request, ``--load`` included unless it ``loads_per_platform``;
    ``buildx_outputs`` what buildx is asked for instead; ``pushed_archive`` what this process pushes.
    """

    outputs: tuple[OutputSpec, ...]
    buildx_outputs: tuple[OutputSpec, ...]
    pushed_archive: Path | None = None
    loads_per_platform: bool = False


def plan_exports(request: BuildRequest, driver: str, store: str, scratch: Path) -> ExportPlan:
    """Return the plan for a builder's driver and an engine's store; ``scratch`` is for temporary archives."""
    loads_per_platform = request.load and len(request.platforms) > 1 and store != "containerd"
    outputs = request.outputs
    if request.load and not loads_per_platform:
        outputs = (*outputs, OutputSpec(type="docker"))
    buildx_outputs, pushed_archive = _plan_pushes(request, outputs, driver, scratch)
    return ExportPlan(
        outputs=outputs,
        buildx_outputs=buildx_outputs,
        pushed_archive=pushed_archive,
        loads_per_platform=loads_per_platform,
    )


def _plan_pushes(
    request: BuildRequest, outputs: tuple[OutputSpec, ...], driver: str, scratch: Path
) -> tuple[tuple[OutputSpec, ...], Path | None]:
    pushes = [output for output in outputs if output.is_pushed]
    if not pushes and not any(output.names for output in outputs):
        return outputs, None
    # A build that pushes by digest may have no --tag, and a tag would replace an output's own names.
    others = [add_names(output, request.tags) for output in outputs if not output.is_pushed]
    if not pushes:
        return tuple(others), None
    archive = find_pushable_archive(outputs)
    if archive is not None:
        return tuple(others), archive
    if driver == "docker":
        archive = scratch / "image.tar"
        return (*others, make_archive_output(pushes[0], archive, request.tags)), archive
    repositories = parse_repositories(request.pushed_names)
    return (*others, *(make_digest_output(output, repositories) for output in pushes)), None


@contextlib.contextmanager
def stage_files(outputs: Sequence[OutputSpec], *, dry_run: bool = False) -> Iterator[tuple[OutputSpec, ...]]:
    """Yield the outputs with a temporary file for each file; rename these to ``dest`` at the end.

    ======================= ============================== =========
    state                   temporary file                 ``dest``
    ======================= ============================== =========
    a process was killed    left; the next build removes   unchanged
    buildx runs             is written                     unchanged
    buildx has succeeded    is renamed                     replaced
    buildx has failed       is removed                     unchanged
    ======================= ============================== =========

    Folders are written in place. Raises :class:`BuildFailed` if a file is missing at the end. A dry run
    touches no file.
    """
    if not dry_run:
        for output in outputs:
            if output.dest is not None:  # one that cannot be created fails before the build, not after it
                output.dest.parent.mkdir(parents=True, exist_ok=True)
    dests = dict.fromkeys(output.dest for output in outputs if output.is_file and output.dest is not None)
    with contextlib.ExitStack() as stack:
        temporary_paths = {
            dest: temporary_path(dest) if dry_run else stack.enter_context(replace_file(dest))
            for dest in dests
        }
        yield tuple(
            output.with_attribute("dest", str(temporary_paths[output.dest]))
            if output.dest in temporary_paths
            else output
            for output in outputs
        )
        for dest, temporary in temporary_paths.items():
            if not dry_run and not temporary.is_file():
                raise BuildFailed(f"buildx reports success but did not write {dest}")
