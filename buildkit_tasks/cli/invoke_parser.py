"""What the tasks need of Invoke's parser beyond what it does.

Invoke has no optional positional argument, takes no underscored names and ends every usage error with 1.
Importing this changes its parser: nothing that it took before is taken otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.parser.parser import ParseMachine

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DeclaredArgument", "OptionalPositionalArgument"]


class DeclaredArgument(Argument):
    """An option of one of these tasks, by which its usage errors are told from other tasks'."""


class OptionalPositionalArgument(DeclaredArgument):
    """An option that also takes the first word that is neither an option nor a task."""


_original_handle = ParseMachine.handle


def _handle_token(machine: ParseMachine, token: str) -> None:
    """Invoke's own, with underscored names and with the first plain word as the positional."""
    flags = machine.context.flags if machine.context else {}
    normalized = (
        token if machine.waiting_for_flag_value else _replace_underscores(token, (*flags, *machine.contexts))
    )
    argument = _find_open_positional(machine, normalized)
    if argument is not None:
        argument.value = normalized
    else:
        _original_handle(machine, normalized)


def _replace_underscores(token: str, known_names: Iterable[str]) -> str:
    candidate = token.replace("_", "-")
    return (
        candidate if candidate != token and token not in known_names and candidate in known_names else token
    )


def _find_open_positional(machine: ParseMachine, token: str) -> Argument | None:
    """The positional that this word would be, if it is neither a flag, nor a value, nor a task."""
    context = machine.context
    if (
        context is None
        or machine.waiting_for_flag_value
        or token.startswith("-")
        or token in machine.contexts
    ):
        return None
    arguments = (each for each in context.args.values() if isinstance(each, OptionalPositionalArgument))
    return next((each for each in arguments if each.raw_value is None), None)


_original_error = ParseMachine.error


def _raise_usage_error(machine: ParseMachine, msg: str) -> None:
    """Invoke's own, but a usage error in one of these tasks ends with 2."""
    if machine.context is not None and any(
        isinstance(each, DeclaredArgument) for each in machine.context.args.values()
    ):
        raise Exit(msg, code=UsageError.exit_code)
    _original_error(machine, msg)


_original_complete_flag = ParseMachine.complete_flag


def _complete_flag(machine: ParseMachine) -> None:
    """Invoke's own, which takes an option that may repeat and has no value for one that is not given."""
    flag: Any = machine.flag  # which Invoke itself declares to be None
    if isinstance(flag, DeclaredArgument) and flag.kind is list and not machine.flag_got_value:
        machine.error(f"Flag {flag!r} needed value and was not given one!")
    _original_complete_flag(machine)


ParseMachine.complete_flag = _complete_flag  # type: ignore[assignment,method-assign]
ParseMachine.handle = _handle_token  # type: ignore[assignment,method-assign]
ParseMachine.error = _raise_usage_error  # type: ignore[assignment,method-assign]
