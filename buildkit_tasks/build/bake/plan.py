"""What ``docker buildx bake --print`` says of a bake file: its targets, and which were asked for.

buildx reads the file (HCL, JSON or compose), with its groups, matrices, variables and ``inherits``; what
it prints is judged here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from buildkit_tasks.build.bake.target import BakeTarget, TargetReader
from buildkit_tasks.errors import BuilderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

__all__ = ["BakePlan", "read_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BakePlan:
    """The targets that were asked for, in buildx's order, and all that they are built on."""

    wanted: tuple[str, ...]
    targets: Mapping[str, BakeTarget]

    @property
    def order(self) -> tuple[BakeTarget, ...]:
        """Every target, each after those that it is built on. Raises :class:`UsageError` for a circle."""
        done: dict[str, BakeTarget] = {}
        for name in self.wanted:
            self._visit(name, (), done)
        return tuple(done.values())

    def _visit(self, name: str, path: tuple[str, ...], done: dict[str, BakeTarget]) -> None:
        if name in path:
            raise UsageError(f"bake targets are built on each other: {' -> '.join((*path, name))}")
        if name in done:
            return
        for _, other in self.targets[name].links:
            self._visit(other, (*path, name), done)
        done[name] = self.targets[name]

    def with_outputs_of(self, other: BakePlan) -> BakePlan:
        """The same plan, its targets going where those of another plan go."""
        outputs = {name: target.request.outputs for name, target in other.targets.items()}
        targets = {
            name: replace(target, request=replace(target.request, outputs=outputs.get(name, ())))
            for name, target in self.targets.items()
        }
        return replace(self, targets=targets)


def read_plan(text: str, file: str, *, only_outputs: bool = False) -> BakePlan:
    """The plan that buildx printed for a file; with ``only_outputs`` nothing else is looked at.

    Raises :class:`BuilderError` for what is no plan, and :class:`UsageError` that names file, target
    and key for a value that cannot be honoured here.
    """
    try:
        found = json.loads(text)
        groups = {name: _texts(group["targets"]) for name, group in _object(found, "group").items()}
        targets = _object(found, "target")
        wanted = _members(groups, targets)
        raws = {name: targets[name] for name in (*wanted, *targets)}
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BuilderError(f"buildx printed no bake plan for {file}: {error!r}") from error
    read = {
        name: TargetReader(f"{file}: target {name}").target(
            name, _relevant(raw, wanted=name in wanted, only_outputs=only_outputs)
        )
        for name, raw in raws.items()
    }
    plan = BakePlan(wanted=wanted, targets=read)
    _check_links(plan, file)
    return plan


def _object(found: Any, key: str) -> dict[str, Any]:
    values = found[key]
    if not isinstance(values, dict):
        raise TypeError(key)
    return values


def _texts(raw: Any) -> list[str]:
    if not isinstance(raw, list) or not all(isinstance(item, str) for item in raw):
        raise TypeError(raw)
    return raw


def _members(groups: Mapping[str, Sequence[str]], targets: Container[str]) -> tuple[str, ...]:
    """The targets that were asked for: those of the group ``default``, and of the groups in it."""
    wanted: dict[str, None] = {}
    seen = {"default"}
    left = [*groups["default"]]
    while left:
        name = left.pop(0)
        if name in groups and name not in seen:  # a matrix is a group by its target's name
            seen.add(name)
            left = [*groups[name], *left]
        elif name in targets or name not in groups:
            wanted[name] = None
    return tuple(wanted)


def _relevant(raw: Any, *, wanted: bool, only_outputs: bool) -> Any:
    """A target that nobody asked for goes nowhere and has no name: others are built on it."""
    if not isinstance(raw, dict):
        return raw
    left_out = () if wanted else ("output", "tags")
    kept = ("output",) if only_outputs else tuple(raw)
    return {key: raw[key] for key in raw if key in kept and key not in left_out}


def _check_links(plan: BakePlan, file: str) -> None:
    for target in plan.targets.values():
        for context, other in target.links:
            if other not in plan.targets:
                raise UsageError(f"{file}: target {target.name}: context {context}: no target {other!r}")
    _ = plan.order  # which refuses a circle
