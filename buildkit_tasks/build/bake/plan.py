"""Parse the output of ``docker buildx bake --print``: all targets, and the requested ones.

buildx itself parses the file (HCL, JSON or compose), with groups, matrices, variables and ``inherits``.
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
    """The requested targets, in buildx's order, and all targets by name, linked ones included."""

    requested: tuple[str, ...]
    targets: Mapping[str, BakeTarget]

    @property
    def build_order(self) -> tuple[BakeTarget, ...]:
        """Return every target after those that it is built on. Raises :class:`UsageError` for a cycle."""
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
        """Return this plan with the outputs of another plan's targets."""
        outputs = {name: target.request.outputs for name, target in other.targets.items()}
        targets = {
            name: replace(target, request=replace(target.request, outputs=outputs.get(name, ())))
            for name, target in self.targets.items()
        }
        return replace(self, targets=targets)


def parse_bake_plan(text: str, file: str, *, only_outputs: bool = False) -> BakePlan:
    """Parse the plan that buildx printed for ``file``; with ``only_outputs`` all other keys are ignored.

    Raises :class:`BuilderError` if ``text`` is not a plan, and :class:`UsageError` with file, target and key
    for a value that is not supported here.
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
        raise BuilderError(f"buildx did not print a valid bake plan for {file}: {error!r}") from error
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
    """Return the requested targets: buildx prints them as the group ``default``, which may nest groups."""
    requested: dict[str, None] = {}
    seen = {"default"}
    pending = [*groups["default"]]
    while pending:
        name = pending.pop(0)
        if name in groups and name not in seen:  # a matrix is a group with its target's name
            seen.add(name)
            pending = [*groups[name], *pending]
        elif name in targets or name not in groups:
            requested[name] = None
    return tuple(requested)


def _select_keys(raw: Any, *, is_requested: bool, only_outputs: bool) -> Any:
    """Return the keys to parse. A target that is only a dependency is built but not tagged or exported."""
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
    _ = plan.build_order  # raises for a cycle
