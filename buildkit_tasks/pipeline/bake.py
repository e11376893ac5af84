"""Make build jobs of a bake file's targets, the settings and the command line.

==================== ================================================================================
value                from
==================== ================================================================================
platforms            ``--platform``, else the target, else the settings
lists (labels, ...)  the target, then the command line
other build options  the command line, else the target
outputs              ``--output``, else the target, else an OCI archive in ``dist/``
progress             the settings; a bake file has no key for it
command, expect      the settings' image of the target's name, else the settings
==================== ================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.bake.print import BakePrinter, check_bake_arguments
from buildkit_tasks.build.outputs import add_archive_output
from buildkit_tasks.build.request import BuildRequest, drop_outputs
from buildkit_tasks.config.images import settings_for_target
from buildkit_tasks.config.settings import SettingOrigin
from buildkit_tasks.errors import UsageError
from buildkit_tasks.pipeline.image_job import ImageJob, ImageSelection
from buildkit_tasks.platforms import Platform, parse_platforms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildkit_tasks.build.bake.target import BakeTarget
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.pipeline.pipeline import Pipeline

__all__ = ["read_bake_jobs"]

# Settings that describe one image; a bake file has its own for each target.
_SINGLE_IMAGE_FLAGS = {"context": "--context", "file": "--file", "tags": "--tag"}
# Settings that the command line adds to every target, or sets for every one.
_BUILD_SETTINGS = ("build_args", "network", "add_hosts", "shm_size", "ulimits")


def read_bake_jobs(pipeline: Pipeline, selection: ImageSelection, scratch_dir: Path) -> tuple[ImageJob, ...]:
    """Return a job for each target, after the jobs of its linked contexts.

    Inline Dockerfiles, and archives of targets that are not reported, go to ``scratch_dir``. Raises
    :class:`UsageError` for what buildx refuses and for what is not supported here.
    """
    for key, flag in _SINGLE_IMAGE_FLAGS.items():
        if _is_set_by_flag(pipeline.settings, key):
            raise UsageError(f"{flag} applies to one image; {selection.bake_file} sets it for each target")
    check_bake_arguments(selection.bake_files, selection.names, selection.bake_overrides)
    factory = _BakeJobFactory(
        pipeline=pipeline, selection=selection, scratch_dir=scratch_dir, default_platforms=pipeline.platforms
    )
    printer = BakePrinter(
        files=selection.bake_files,
        targets=selection.names,
        overrides=selection.bake_overrides,
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
            missing = ", ".join(str(each) for each in job.request.platforms if each not in available)
            if missing:
                raise UsageError(
                    f"target {job.name} is built on {dependency}, which is not built for {missing}",
                    hint="give both targets the same platforms",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class _BakeJobFactory:
    """Makes the jobs; ``default_platforms`` are those of the command line, else of the settings."""

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
            allow=self._allowed_entitlements(target),
        )
        request = drop_outputs(_merge_options(request, self._select_options(reported=reported)))
        if not request.call:
            directory = Path("dist") if reported else self.scratch_dir
            archive = str(directory / f"{target.name}.tar")
            request = replace(request, outputs=add_archive_output(request.outputs, archive))
        return ImageJob(
            name=target.name,
            settings=settings_for_target(self.pipeline.settings, target.name),
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
        """Return the command line's options; destinations apply to the requested targets only."""
        settings = self.pipeline.settings
        options = dict(self.selection.options)
        options |= {key: getattr(settings, key) for key in _BUILD_SETTINGS if _is_set_by_flag(settings, key)}
        if not reported:
            options |= {"outputs": (), "load": False, "metadata_file": "", "iidfile": ""}
        return options

    def _allowed_entitlements(self, target: BakeTarget) -> tuple[str, ...]:
        """Return the entitlements of ``--allow``; as buildx, refuse a target that asks for another one."""
        allowed = self.pipeline.settings.allow
        refused = [name for name in target.entitlements if name not in allowed]
        if refused:
            raise UsageError(
                f"{self.selection.bake_file}: target {target.name} asks for the entitlement {refused[0]}",
                hint=f"allow it by --allow {refused[0]}",
            )
        return allowed

    def _check_ssh_agent(self, target: BakeTarget) -> None:
        """Refuse the SSH agent to a target unless ``--ssh`` allows it: it signs for the user."""
        allowed_ids = {text.partition("=")[0] for text in self.selection.options.get("ssh", ())}
        for text in target.request.ssh:
            if "=" not in text and text not in allowed_ids:
                raise UsageError(
                    f"{self.selection.bake_file}: target {target.name} asks for the SSH agent",
                    hint=f"allow it by --ssh {text}",
                )


def _merge_options(request: BuildRequest, options: Mapping[str, Any]) -> BuildRequest:
    """Return the request with the command line's options: lists are extended, other values replaced."""
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
