"""The buildx builder: make it, find it, compare it with what is asked, remove it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.engine.daemon import Engine, docker_config_folder
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.results import BuilderSummary, NodeSummary
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildkit_tasks.settings import Settings
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.debian import Tell
    from buildkit_tasks.commands import Completed, Runner
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ensure_builder", "find_builder", "remove_builder"]

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*\Z")  # buildx's own grammar for builder names
_IMAGE = "moby/buildkit:buildx-stable-1"
_INSPECT_SECONDS = 30.0
_BOOTSTRAP_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A driver and why it was chosen."""

    driver: str
    reason: str


def ensure_builder(
    engine: Engine,
    platforms: Sequence[Platform],
    settings: Settings,
    run: Runner,
    tell: Tell,
    *,
    reachable: Callable[[], bool],
    recreate: bool = False,
) -> BuilderSummary:
    """The builder by the settings' name, or the engine's own where no builder image can be had.

    Raises :class:`BuilderError` when one of that name has another driver (``recreate`` mends it),
    or when neither driver can build for several platforms here.
    """
    if engine.planned:
        return BuilderSummary(name=engine.context, driver="docker", reason="the engine is not running yet")
    found = find_builder(settings.name, engine, run)
    if found is not None and recreate and found.driver == "docker-container":
        _remove(found.name, engine, run)
        found = None
    if found is not None:
        _compare(found, settings)
        return _healed(found, platforms, engine, run, tell)
    choice = _choose(engine, settings, run, reachable)
    if choice.driver == "docker":
        return _engines_own(engine, choice.reason)
    return _create(engine, settings, run, choice.reason)


def find_builder(name: str, engine: Engine, run: Runner) -> BuilderSummary | None:
    """The builder of that name as buildx describes it, or None."""
    if not _NAME.match(name):
        raise UsageError(f"{name!r} is no builder name", hint="letters, digits, '.', '_' and '-'")
    if name not in ("default", engine.context) and not _is_stored(name, engine):
        return None
    argv = [*engine.tools.buildx, "inspect", name]
    done = run.run(argv, engine.call(timeout=_INSPECT_SECONDS))
    if not done.ok and "no builder" in done.stderr:
        return None
    if not done.ok:
        raise BuilderError(f"buildx cannot read builder {name!r}: {done.reason}", hint="docker buildx ls")
    return _parse(done.stdout)


def _is_stored(name: str, engine: Engine) -> bool:
    """Whether buildx's store has a builder of that name: a look that saves starting buildx."""
    folder = engine.env.get("BUILDX_CONFIG") or os.environ.get("BUILDX_CONFIG")
    place = Path(folder) if folder else docker_config_folder() / "buildx"
    return (place / "instances" / name).exists()


def remove_builder(name: str, engine: Engine, run: Runner, *, keep_state: bool = False) -> bool:
    """Remove the builder of that name and confirm that it is gone; gives whether there was one."""
    found = find_builder(name, engine, run)
    if found is None or found.driver == "docker":
        return False
    _remove(name, engine, run, keep_state=keep_state)
    return True


def _remove(name: str, engine: Engine, run: Runner, *, keep_state: bool = False) -> None:
    options = ["--keep-state"] if keep_state else []
    argv = [*engine.tools.buildx, "rm", "--force", *options, name]
    done = run.run(argv, engine.call(timeout=_BOOTSTRAP_SECONDS), mutates=True)
    if not run.dry_run and find_builder(name, engine, run) is not None:
        raise BuilderError(
            f"builder {name!r} could not be removed: {done.reason}", hint=f"docker buildx rm {name}"
        )


def _parse(text: str) -> BuilderSummary:
    """Read `buildx inspect`: a block for the builder, then one for each node."""
    head, _, tail = text.partition("\nNodes:")
    values = _fields(head)
    nodes = [_fields(block) for block in re.split(r"\n(?=Name:)", tail) if block.strip()]
    return BuilderSummary(
        name=values.get("Name", ""), driver=values.get("Driver", ""), nodes=tuple(map(_node, nodes))
    )


def _fields(block: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in block.splitlines() if re.match(r"[A-Z][\w ]*:", line))
    return {key: value.strip() for key, _, value in pairs}


def _node(values: Mapping[str, str]) -> NodeSummary:
    names = [name.strip(" *") for name in values.get("Platforms", "").split(",")]
    return NodeSummary(
        name=values.get("Name", ""),
        endpoint=values.get("Endpoint", ""),
        platforms=tuple(name for name in names if name),
    )


def _compare(found: BuilderSummary, settings: Settings) -> None:
    if settings.driver in ("auto", found.driver):
        return
    raise BuilderError(
        f"builder {found.name!r} has driver {found.driver}, and {settings.driver} is asked for",
        hint="inv setup-builder --recreate",
    )


def _choose(engine: Engine, settings: Settings, run: Runner, reachable: Callable[[], bool]) -> _Choice:
    image = _image(settings)
    if settings.driver == "docker-container":
        return _Choice(driver="docker-container", reason="asked for")
    if settings.driver == "auto" and (_has_image(image, engine, run) or reachable()):
        return _Choice(driver="docker-container", reason=f"its image {image} can be had")
    if engine.store != "containerd":
        raise BuilderError(
            f"the builder image {image} cannot be had, and this engine's image store cannot build for several platforms",
            hint='--engine=private, or set "features": {"containerd-snapshotter": true} in daemon.json',
        )
    why = (
        "asked for" if settings.driver == "docker" else f"{image} is not here and Docker Hub does not answer"
    )
    return _Choice(driver="docker", reason=why)


def _image(settings: Settings) -> str:
    options = dict(option.split("=", 1) for option in settings.driver_opt if "=" in option)
    return options.get("image", _IMAGE)


def _has_image(image: str, engine: Engine, run: Runner) -> bool:
    argv = [*engine.tools.docker, "image", "inspect", "--format=ok", "--", image]
    return run.run(argv, engine.call(timeout=_INSPECT_SECONDS)).ok


def _engines_own(engine: Engine, reason: str) -> BuilderSummary:
    """The builder inside the engine: buildx names it after the docker context."""
    return BuilderSummary(
        name=engine.context,
        driver="docker",
        nodes=(NodeSummary(name=engine.context, endpoint=engine.endpoint),),
        reason=reason,
    )


def _create(engine: Engine, settings: Settings, run: Runner, reason: str) -> BuilderSummary:
    options = [f"--driver-opt={option}" for option in settings.driver_opt]
    argv = [*engine.tools.buildx, "create", f"--name={settings.name}", "--driver=docker-container", *options]
    done = run.run([*argv, "--bootstrap"], engine.call(timeout=_BOOTSTRAP_SECONDS), mutates=True)
    if run.dry_run:
        return BuilderSummary(name=settings.name, driver="docker-container", reason=reason)
    found = find_builder(settings.name, engine, run)
    if found is None or not done.ok:
        raise _not_made(settings.name, done)
    return BuilderSummary(name=found.name, driver=found.driver, nodes=found.nodes, reason=reason)


def _not_made(name: str, done: Completed) -> BuilderError:
    return BuilderError(
        f"builder {name!r} could not be made: {done.reason}",
        hint="--driver=docker, or name an image that is here: --driver-opt=image=IMAGE",
    )


def _healed(
    found: BuilderSummary, platforms: Sequence[Platform], engine: Engine, run: Runner, tell: Tell
) -> BuilderSummary:
    """A running BuildKit learns of new emulators only when it is started again."""
    offered = {name for node in found.nodes for name in node.platforms}
    missing = [str(platform) for platform in platforms if str(platform) not in offered]
    if found.driver != "docker-container" or not missing:
        return found
    tell(f"starting builder {found.name} again, so that it sees {', '.join(missing)}")
    for arguments in (["stop", found.name], ["inspect", "--bootstrap", found.name]):
        run.run([*engine.tools.buildx, *arguments], engine.call(timeout=_BOOTSTRAP_SECONDS), mutates=True)
    return find_builder(found.name, engine, run) or found
