"""The buildx builder: make it, find it, compare it with what is asked, remove it."""

from __future__ import annotations

import csv
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.engine.daemon import Engine, docker_config_folder
from buildkit_tasks.errors import BuilderError, UsageError
from buildkit_tasks.locks import only_one
from buildkit_tasks.results import BuilderSummary, NodeSummary
from buildkit_tasks.settings import BUILDER_NAME, cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from buildkit_tasks.commands import Completed, Runner
    from buildkit_tasks.debian import Tell
    from buildkit_tasks.platforms import Platform
    from buildkit_tasks.settings import Settings

__all__ = ["Builders", "require_index"]

_IMAGE = "moby/buildkit:buildx-stable-1"
_INSPECT_SECONDS = 30.0
_BOOTSTRAP_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Builders:
    """The buildx builders of one engine."""

    engine: Engine
    settings: Settings
    run: Runner
    tell: Tell

    def ensure(
        self, platforms: Sequence[Platform], answers: Callable[[], bool], *, recreate: bool = False
    ) -> BuilderSummary:
        """The builder by the settings' name, or the engine's own where no builder image can be had.

        ``answers`` tells whether a registry can be reached. Raises :class:`BuilderError` when a
        builder of that name has another driver (``recreate`` mends it) or cannot be made.
        """
        if self.engine.planned:
            return self._engines_own("the engine is not running yet")
        found = self.find(self.settings.name)
        if found is not None and recreate and found.driver == "docker-container":
            self.remove(found.name)
            found = None
        if found is None:
            return self._new(answers)
        self._compare(found)
        return self._healed(found, platforms)

    def find(self, name: str) -> BuilderSummary | None:
        """The builder of that name as buildx describes it, or None."""
        if not BUILDER_NAME.match(name):
            raise UsageError(f"{name!r} is no builder name", hint="letters, digits, '.', '_' and '-'")
        record = self._record(name)
        # A look into buildx's store saves starting buildx.
        if name not in ("default", self.engine.context) and not record.exists():
            return None
        done = self._buildx("inspect", name, timeout=_INSPECT_SECONDS, mutates=False)
        if not done.ok and "no builder" in done.stderr:
            return None
        if not done.ok:
            raise BuilderError(
                f"buildx cannot read builder {name!r}: {done.reason}", hint=f"look into {record}"
            )
        return _parse(done.stdout)

    def remove(self, name: str, *, keep_state: bool = False) -> bool:
        """Remove the builder of that name and confirm that it is gone; gives whether there was one."""
        found = self.find(name)
        if found is None or found.driver == "docker":
            return False
        options = ["--keep-state"] if keep_state else []
        done = self._buildx("rm", "--force", *options, name)
        if not self.run.dry_run and self.find(name) is not None:
            raise BuilderError(
                f"builder {name!r} could not be removed: {done.reason}", hint=f"docker buildx rm {name}"
            )
        return True

    def _buildx(
        self, *arguments: str, timeout: float = _BOOTSTRAP_SECONDS, mutates: bool = True
    ) -> Completed:
        argv = [*self.engine.tools.buildx, *arguments]
        return self.run.run(argv, self.engine.call(timeout=timeout), mutates=mutates)

    def _record(self, name: str) -> Path:
        """The file in which buildx keeps a builder of that name."""
        folder = self.engine.env.get("BUILDX_CONFIG") or os.environ.get("BUILDX_CONFIG")
        place = Path(folder) if folder else docker_config_folder() / "buildx"
        return place / "instances" / name

    def _compare(self, found: BuilderSummary) -> None:
        if self.settings.driver not in ("auto", found.driver):
            raise BuilderError(
                f"builder {found.name!r} has driver {found.driver}, and {self.settings.driver} is asked for",
                hint="inv setup-builder --recreate",
            )
        held = sorted({option for node in found.nodes for option in node.driver_opt})
        if found.driver == "docker-container" and not set(self._options) <= set(held):
            raise BuilderError(
                f"builder {found.name!r} has the driver options {', '.join(held) or 'none'}, "
                f"and {', '.join(self._options)} are asked for",
                hint="inv setup-builder --recreate",
            )

    def _healed(self, found: BuilderSummary, platforms: Sequence[Platform]) -> BuilderSummary:
        """A running BuildKit learns of new emulators only when it is started again."""
        offered = {name for node in found.nodes for name in node.platforms}
        missing = [str(platform) for platform in platforms if str(platform) not in offered]
        if found.driver != "docker-container" or not missing:
            return found
        self.tell(f"starting builder {found.name} again, so that it sees {', '.join(missing)}")
        self._buildx("stop", found.name)
        self._buildx("inspect", "--bootstrap", found.name)
        return self.find(found.name) or found

    def _new(self, answers: Callable[[], bool]) -> BuilderSummary:
        driver, image = self.settings.driver, self._image
        if driver == "docker-container":
            return self._create("asked for")
        if driver == "docker":
            return self._engines_own("asked for")
        if self._has_image(image):
            return self._create(f"its image {image} is here")
        if answers():
            return self._create(f"its image {image} can be pulled")
        return self._engines_own(f"{image} is not here and Docker Hub does not answer")

    @property
    def _options(self) -> list[str]:
        """The driver's options one by one: buildx takes several in one, as CSV."""
        return [option for row in csv.reader(self.settings.driver_opt) for option in row]

    @property
    def _image(self) -> str:
        options = dict(option.split("=", 1) for option in self._options if "=" in option)
        return options.get("image", _IMAGE)

    def _has_image(self, image: str) -> bool:
        argv = [*self.engine.tools.docker, "image", "inspect", "--format=ok", "--", image]
        return self.run.run(argv, self.engine.call(timeout=_INSPECT_SECONDS)).ok

    def _engines_own(self, reason: str) -> BuilderSummary:
        """The builder inside the engine: buildx names it after the docker context."""
        name = self.engine.context
        node = NodeSummary(name=name, endpoint=self.engine.endpoint)
        return BuilderSummary(name=name, driver="docker", nodes=(node,), reason=reason)

    def _create(self, reason: str) -> BuilderSummary:
        """Make the builder, once: of many at the same time, one makes it and the others find it."""
        name = self.settings.name
        with only_one(cache_folder(self.settings) / f".builder-{name}.lock", dry_run=self.run.dry_run):
            # A dry run shows how it is made, though the one to be made anew is still there.
            found = None if self.run.dry_run else self.find(name)
            if found is None:
                options = [f"--driver-opt={option}" for option in self.settings.driver_opt]
                arguments = [f"--name={name}", "--driver=docker-container", *options, "--bootstrap"]
                done = self._buildx("create", *arguments)
                found = self._made(done)
        return replace(found, reason=reason)

    def _made(self, done: Completed) -> BuilderSummary:
        name = self.settings.name
        if self.run.dry_run:
            return BuilderSummary(name=name, driver="docker-container")
        found = self.find(name)
        if found is None or not done.ok:
            self.remove(name)
            raise BuilderError(
                f"builder {name!r} could not be made: {done.reason}",
                hint="--driver=docker, or name an image that is here: --driver-opt=image=IMAGE",
            )
        return found


def require_index(builder: BuilderSummary, engine: Engine) -> None:
    """Raise :class:`BuilderError` if this builder cannot make one image of several platforms."""
    if builder.driver == "docker" and engine.store != "containerd":
        raise BuilderError(
            "this engine's own builder makes one platform at a time (its image store is not containerd's), "
            f"and no other can be had: {builder.reason}",
            hint='--engine=private, or set "features": {"containerd-snapshotter": true} in daemon.json',
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
        driver_opt=tuple(shlex.split(values.get("Driver Options", ""))),
    )
