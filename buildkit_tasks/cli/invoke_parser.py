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

__all__ = ["OptionalPositional", "OwnArgument"]


class OwnArgument(Argument):
    """An option of one of these tasks, by which its usage errors are told from other tasks'."""


class OptionalPositional(OwnArgument):
    """An option that also takes the first word that is neither an option nor a task."""


_stock_handle = ParseMachine.handle


def _handle(self: ParseMachine, token: str) -> None:
    """Invoke's own, with underscored names and with the first plain word as the positional."""
    flags = self.context.flags if self.context else {}
    dashed = token if self.waiting_for_flag_value else _dashed(token, (*flags, *self.contexts))
    argument = _open_positional(self, dashed)
    if argument is not None:
        argument.value = dashed
    else:
        _stock_handle(self, dashed)


def _dashed(token: str, known: Iterable[str]) -> str:
    candidate = token.replace("_", "-")
    return candidate if candidate != token and token not in known and candidate in known else token


def _open_positional(machine: ParseMachine, token: str) -> Argument | None:
    """The positional that this word would be, if it is neither a flag, nor a value, nor a task."""
    context = machine.context
    if (
        context is None
        or machine.waiting_for_flag_value
        or token.startswith("-")
        or token in machine.contexts
    ):
        return None
    arguments = (each for each in context.args.values() if isinstance(each, OptionalPositional))
    return next((each for each in arguments if each.raw_value is None), None)


_stock_error = ParseMachine.error


def _error(self: ParseMachine, msg: str) -> None:
    """Invoke's own, but a usage error in one of these tasks ends with 2."""
    if self.context is not None and any(isinstance(each, OwnArgument) for each in self.context.args.values()):
        raise Exit(msg, code=UsageError.exit_code)
    _stock_error(self, msg)


_stock_complete_flag = ParseMachine.complete_flag


def _complete_flag(self: ParseMachine) -> None:
    """Invoke's own, which takes an option that may repeat and has no value for one that is not given."""
    flag: Any = self.flag  # which Invoke itself declares to be None
    if isinstance(flag, OwnArgument) and flag.kind is list and not self.flag_got_value:
        self.error(f"Flag {flag!r} needed value and was not given one!")
    _stock_complete_flag(self)


ParseMachine.complete_flag = _complete_flag  # type: ignore[method-assign]
ParseMachine.handle = _handle  # type: ignore[method-assign]
ParseMachine.error = _error  # type: ignore[method-assign]
