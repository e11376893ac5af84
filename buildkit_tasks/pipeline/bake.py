"""The targets of a bake file as images to build: the file, the settings and the command line joined.

The file describes its images. The command line adds to them and wins over them; of the settings hold
what a file has no word for, and the platforms where it names none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.bake.print import Printer, check_bake
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.config.settings import Origin
from buildkit_tasks.errors import UsageError
from buildkit_tasks.pipeline.image_job import Choice, Wanted, with_archive
from buildkit_tasks.platforms import Platform, parse_platforms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.build.bake.target import BakeTarget
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Line

__all__ = ["bake_images"]

# Settings that describe one image: of these the file has its own.
_OF_ONE = {"context": "--context", "file": "--file", "tags": "--tag"}


def bake_images(line: Line, choice: Choice, scratch: Path) -> tuple[Wanted, ...]:
    """The file's images, each after those that it is built on.

    What lies in no file of the user's is written into ``scratch``. Raises :class:`UsageError` for what
    buildx refuses and for what cannot be honoured here.
    """
    for key, flag in _OF_ONE.items():
        if _flagged(line.settings, key):
            raise UsageError(f"{flag} is for one image, and {choice.bake} describes its own")
    check_bake(choice.bake, choice.names)
    baking = _Baking(line=line, choice=choice, scratch=scratch, given=line.platforms)
    printer = Printer(file=choice.bake, targets=choice.names, engine=line.clients, run=line.run)
    plan = printer.plan(outputs=not choice.options.get("outputs"))
    images = tuple(baking.image(target, told=target.name in plan.wanted) for target in plan.order)
    _check_links({image.name: image for image in images})
    return images


def _flagged(settings: Settings, key: str) -> bool:
    return settings.origins.get(key) is Origin.FLAG


def _check_links(images: Mapping[str, Wanted]) -> None:
    for image in images.values():
        for _, other in image.links:
            held = images[other].request.platforms
            missing = [str(each) for each in image.request.platforms if each not in held]
            if missing:
                raise UsageError(
                    f"target {image.name} is built on {other}, which is not for {', '.join(missing)}",
                    hint="give both the same platforms",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Baking:
    """One invocation; ``given`` are the platforms of the settings or the command line."""

    line: Line
    choice: Choice
    scratch: Path
    given: tuple[Platform, ...]

    def image(self, target: BakeTarget, *, told: bool) -> Wanted:
        self._check_agent(target)
        request = replace(
            target.request,
            platforms=self._platforms(target),
            file=self._dockerfile(target),
            progress=self.line.settings.progress,
        )
        request = _joined(request, self._options(told=told))
        place = Path("dist") if told else self.scratch
        archive = str(place / f"{target.name}.tar")
        request = replace(request, outputs=with_archive(request.outputs, archive))
        return Wanted(
            name=target.name,
            settings=self._settings(target),
            request=request,
            links=target.links,
            told=told,
        )

    def _platforms(self, target: BakeTarget) -> tuple[Platform, ...]:
        if not target.platforms or _flagged(self.line.settings, "platforms"):
            return self.given
        try:
            return parse_platforms(target.platforms)
        except UsageError as error:
            where = f"{self.choice.bake}: target {target.name}"
            raise UsageError(f"{where}: {error.message}", hint=error.hint) from error

    def _dockerfile(self, target: BakeTarget) -> str:
        if target.inline is None:
            return target.request.file
        path = self.scratch / f"{target.name}.Dockerfile"
        path.write_text(target.inline, encoding="utf-8", errors="backslashreplace")
        return str(path)

    def _options(self, *, told: bool) -> dict[str, Any]:
        """The command line's; where an image goes concerns only those that were asked for."""
        options = dict(self.choice.options)
        if _flagged(self.line.settings, "build_args"):
            options["build_args"] = self.line.settings.build_args
        if not told:
            options |= {"outputs": (), "load": False, "metadata_file": ""}
        return options

    def _settings(self, target: BakeTarget) -> Settings:
        """What to run and to expect, if the settings have an image of the target's name."""
        tables = [table for table in self.line.settings.images if table.name == target.name]
        if not tables:
            return self.line.settings
        words = {key: value for key, value in tables[0].values.items() if key in ("command", "expect")}
        return self.line.settings.of(replace(tables[0], values=words))

    def _check_agent(self, target: BakeTarget) -> None:
        """An agent signs for whoever asks it: a file alone does not get it."""
        named = {text.partition("=")[0] for text in self.choice.options.get("ssh", ())}
        for text in target.request.ssh:
            if "=" not in text and text not in named:
                raise UsageError(
                    f"{self.choice.bake}: target {target.name} asks for the SSH agent",
                    hint=f"--ssh {text} lets it",
                )


def _joined(request: BuildRequest, options: Mapping[str, Any]) -> BuildRequest:
    """The request with the command line's options: lists are added to, what is given replaces all else."""
    lists: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(request, name), *value)))
        for name, value in options.items()
        if isinstance(value, tuple) and name != "outputs"
    }
    standard = {each.name: each.default for each in fields(BuildRequest)}
    plain = {
        name: value
        for name, value in options.items()
        if not isinstance(value, tuple) and value != standard[name]
    }
    return replace(request, **lists, **plain, outputs=options.get("outputs") or request.outputs)
