"""The targets of a bake file as images to build: the file, the settings and the command line joined.

The file describes its images. The command line adds to them and wins over them; of the settings hold
what a file has no word for, and the platforms where it names none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.bake.print import BakePrinter, check_bake_arguments
from buildkit_tasks.build.request import BuildRequest
from buildkit_tasks.config.settings import SettingOrigin
from buildkit_tasks.errors import UsageError
from buildkit_tasks.pipeline.image_job import ImageJob, ImageSelection, add_archive_output
from buildkit_tasks.platforms import Platform, parse_platforms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.build.bake.target import BakeTarget
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline

__all__ = ["read_bake_jobs"]

# Settings that describe one image: of these the file has its own.
_SINGLE_IMAGE_FLAGS = {"context": "--context", "file": "--file", "tags": "--tag"}


def read_bake_jobs(pipeline: Pipeline, selection: ImageSelection, scratch_dir: Path) -> tuple[ImageJob, ...]:
    """The file's images, each after those that it is built on.

    What lies in no file of the user's is written into ``scratch``. Raises :class:`UsageError` for what
    buildx refuses and for what cannot be honoured here.
    """
    for key, flag in _SINGLE_IMAGE_FLAGS.items():
        if _is_set_by_flag(pipeline.settings, key):
            raise UsageError(f"{flag} is for one image, and {selection.bake_file} describes its own")
    check_bake_arguments(selection.bake_file, selection.names)
    factory = _BakeJobFactory(
        pipeline=pipeline, selection=selection, scratch_dir=scratch_dir, default_platforms=pipeline.platforms
    )
    printer = BakePrinter(
        file=selection.bake_file,
        targets=selection.names,
        engine=pipeline.client_engine,
        commands=pipeline.commands,
    )
    plan = printer.print_plan(with_outputs=not selection.options.get("outputs"))
    jobs = tuple(
        factory.make_job(target, reported=target.name in plan.requested) for target in plan.build_order
    )
    _check_linked_platforms({job.name: job for job in jobs})
    return jobs


def _is_set_by_flag(settings: Settings, key: str) -> bool:
    return settings.origins.get(key) is SettingOrigin.FLAG


def _check_linked_platforms(jobs: Mapping[str, ImageJob]) -> None:
    for job in jobs.values():
        for _, dependency in job.linked_contexts:
            available = jobs[dependency].request.platforms
            missing = [str(each) for each in job.request.platforms if each not in available]
            if missing:
                raise UsageError(
                    f"target {job.name} is built on {dependency}, which is not for {', '.join(missing)}",
                    hint="give both the same platforms",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _BakeJobFactory:
    """One invocation; ``given`` are the platforms of the settings or the command line."""

    pipeline: Pipeline
    selection: ImageSelection
    scratch_dir: Path
    default_platforms: tuple[Platform, ...]

    def make_job(self, target: BakeTarget, *, reported: bool) -> ImageJob:
        self._check_ssh_agent(target)
        request = replace(
            target.request,
            platforms=self._resolve_platforms(target),
            file=self._write_dockerfile(target),
            progress=self.pipeline.settings.progress,
        )
        request = _merge_options(request, self._select_options(reported=reported))
        directory = Path("dist") if reported else self.scratch_dir
        archive = str(directory / f"{target.name}.tar")
        request = replace(request, outputs=add_archive_output(request.outputs, archive))
        return ImageJob(
            name=target.name,
            settings=self._target_settings(target),
            request=request,
            linked_contexts=target.linked_contexts,
            reported=reported,
        )

    def _resolve_platforms(self, target: BakeTarget) -> tuple[Platform, ...]:
        if not target.platforms or _is_set_by_flag(self.pipeline.settings, "platforms"):
            return self.default_platforms
        try:
            return parse_platforms(target.platforms)
        except UsageError as error:
            location = f"{self.selection.bake_file}: target {target.name}"
            raise UsageError(f"{location}: {error.message}", hint=error.hint) from error

    def _write_dockerfile(self, target: BakeTarget) -> str:
        if target.inline_dockerfile is None:
            return target.request.file
        path = self.scratch_dir / f"{target.name}.Dockerfile"
        path.write_text(target.inline_dockerfile, encoding="utf-8", errors="backslashreplace")
        return str(path)

    def _select_options(self, *, reported: bool) -> dict[str, Any]:
        """The command line's; where an image goes concerns only those that were asked for."""
        options = dict(self.selection.options)
        if _is_set_by_flag(self.pipeline.settings, "build_args"):
            options["build_args"] = self.pipeline.settings.build_args
        if not reported:
            options |= {"outputs": (), "load": False, "metadata_file": ""}
        return options

    def _target_settings(self, target: BakeTarget) -> Settings:
        """What to run and to expect, if the settings have an image of the target's name."""
        tables = [table for table in self.pipeline.settings.images if table.name == target.name]
        if not tables:
            return self.pipeline.settings
        run_values = {key: value for key, value in tables[0].values.items() if key in ("command", "expect")}
        return self.pipeline.settings.for_image(replace(tables[0], values=run_values))

    def _check_ssh_agent(self, target: BakeTarget) -> None:
        """An agent signs for whoever asks it: a file alone does not get it."""
        allowed_ids = {text.partition("=")[0] for text in self.selection.options.get("ssh", ())}
        for text in target.request.ssh:
            if "=" not in text and text not in allowed_ids:
                raise UsageError(
                    f"{self.selection.bake_file}: target {target.name} asks for the SSH agent",
                    hint=f"--ssh {text} lets it",
                )


def _merge_options(request: BuildRequest, options: Mapping[str, Any]) -> BuildRequest:
    """The request with the command line's options: lists are added to, what is given replaces all else."""
    lists: dict[str, Any] = {
        name: tuple(dict.fromkeys((*getattr(request, name), *value)))
        for name, value in options.items()
        if isinstance(value, tuple) and name != "outputs"
    }
    defaults = {each.name: each.default for each in fields(BuildRequest)}
    scalars = {
        name: value
        for name, value in options.items()
        if not isinstance(value, tuple) and value != defaults[name]
    }
    return replace(request, **lists, **scalars, outputs=options.get("outputs") or request.outputs)
