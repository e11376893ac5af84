"""Find out which program the user typed, and what it calls the tasks of this package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.hints import TypedProgram, find_typed_command, set_typed_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["record_typed_program"]

# Invoke's core options that decide which tasks there are, and their settings.
_CORE_OPTIONS = {"collection": "-c", "search-root": "-r", "config": "-f"}


def record_typed_program(task_names: Mapping[str, Sequence[str]], typed_name: str) -> None:
    """Let hints name this program. ``task_names`` are its names of each task, ``typed_name`` is a task's.

    Of several names the one in the collection of the typed task is used.
    """
    collection = typed_name.rpartition(".")[0]
    names = {
        task: next((name for name in names if name.rpartition(".")[0] == collection), names[0])
        for task, names in task_names.items()
    }
    set_typed_program(TypedProgram(argv=(*find_typed_command(), *_core_arguments()), task_names=names))


def _core_arguments() -> Iterator[str]:
    """Yield the core options of ``inv`` without which it would not find the same tasks."""
    main_module = getattr(sys.modules["__main__"], "__spec__", None)
    if (
        Path(sys.argv[0]).name not in ("inv", "invoke")
        and getattr(main_module, "name", "") != "invoke.__main__"
    ):
        return
    from invoke.main import program
    from invoke.parser.parser import Parser

    core = Parser(initial=program.initial_context, ignore_unknown=True).parse_argv(sys.argv[1:])[0]
    for name, flag in _CORE_OPTIONS.items():
        if core.args[name].value:
            yield from (flag, core.args[name].value)
