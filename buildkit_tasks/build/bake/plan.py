"""What ``docker buildx bake --print`` says of a bake file: its targets, and which were asked for.

buildx reads the file (HCL, JSON or compose), with its groups, matrices, variables and ``inherits``; what
it prints is judged here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.bake.target import BakeTarget, BakeTargetReader
from buildkit_tasks.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

__all__ = ["BakePlan", "parse_bake_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BakePlan:
    """The targets that were asked for, in buildx's order, and all that they are built on."""

    requested: tuple[str, ...]
    targets: Mapping[str, BakeTarget]

    @property
    def build_order(self) -> tuple[BakeTarget, ...]:
        """Every target, each after those that it is built on. Raises :class:`UsageError` for a circle."""
        ordered: dict[str, BakeTarget] = {}
        for name in self.requested:
            self._visit(name, (), ordered)
        return tuple(ordered.values())

    def _visit(self, name: str, path: tuple[str, ...], ordered: dict[str, BakeTarget]) -> None:
        if name in path:
            raise UsageError(f"bake targets are built on each other: {' -> '.join((*path, name))}")
        if name in ordered:
            return
        for _, dependency in self.targets[name].linked_contexts:
            self._visit(dependency, (*path, name), ordered)
        ordered[name] = self.targets[name]

    def with_outputs_from(self, other: BakePlan) -> BakePlan:
        """The same plan, its targets going where those of another plan go."""
        outputs = {name: target.request.outputs for name, target in other.targets.items()}
        targets = {
            name: replace(target, request=replace(target.request, outputs=outputs.get(name, ())))
            for name, target in self.targets.items()
        }
        return replace(self, targets=targets)


def parse_bake_plan(text: str, file: str, *, only_outputs: bool = False) -> BakePlan:
    """The plan that buildx printed for a file; with ``only_outputs`` nothing else is looked at.

    Raises :class:`BuilderError` for what is no plan, and :class:`UsageError` that names file, target
    and key for a value that cannot be honoured here.
    """
    try:
        document = json.loads(text)
        groups = {
            name: _require_strings(group["targets"]) for name, group in _get_object(document, "group").items()
        }
        targets = _get_object(document, "target")
        requested = _expand_groups(groups, targets)
        raw_targets = {name: targets[name] for name in (*requested, *targets)}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BuilderError(f"buildx printed no bake plan for {file}: {error!r}") from error
    parsed = {
        name: BakeTargetReader(f"{file}: target {name}").read_target(
            name, _select_keys(raw, is_requested=name in requested, only_outputs=only_outputs)
        )
        for name, raw in raw_targets.items()
    }
    plan = BakePlan(requested=requested, targets=parsed)
    _check_linked_targets(plan, file)
    return plan


def _get_object(document: Any, key: str) -> dict[str, Any]:
    value = document[key]
    if not isinstance(value, dict):
        raise TypeError(key)
    return value


def _require_strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(value)
    return value


def _expand_groups(groups: Mapping[str, Sequence[str]], targets: Container[str]) -> tuple[str, ...]:
    """The targets that were asked for: those of the group ``default``, and of the groups in it."""
    requested: dict[str, None] = {}
    seen = {"default"}
    pending = [*groups["default"]]
    while pending:
        name = pending.pop(0)
        if name in groups and name not in seen:  # a matrix is a group by its target's name
            seen.add(name)
            pending = [*groups[name], *pending]
        elif name in targets or name not in groups:
            requested[name] = None
    return tuple(requested)


def _select_keys(raw: Any, *, is_requested: bool, only_outputs: bool) -> Any:
    """A target that nobody asked for goes nowhere and has no name: others are built on it."""
    if not isinstance(raw, dict):
        return raw
    excluded = () if is_requested else ("output", "tags")
    included = ("output",) if only_outputs else tuple(raw)
    return {key: raw[key] for key in raw if key in included and key not in excluded}


def _check_linked_targets(plan: BakePlan, file: str) -> None:
    for target in plan.targets.values():
        for context, dependency in target.linked_contexts:
            if dependency not in plan.targets:
                raise UsageError(f"{file}: target {target.name}: context {context}: no target {dependency!r}")
    _ = plan.build_order  # which refuses a circle
