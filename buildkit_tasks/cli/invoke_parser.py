"""Extensions of Invoke's command-line parser, for the tasks of this package only.

Invoke 3.0 has no optional positional argument, knows no underscored aliases, and ends every usage error
with status 1. Its programs offer no hook to replace the parser, so importing this module replaces the class
that :class:`invoke.parser.Parser` instantiates with a subclass. The subclass adds behaviour only where the
current task, or the task that is named, was declared here; everything else goes to Invoke unchanged:

============================ =========================== ==================================
command line                 declared task               any other task
============================ =========================== ==================================
``verify-arch x.tar``        sets its optional IMAGE     "No idea what 'x.tar' is!"
``--dry_run``                is ``--dry-run``            as Invoke reads it
``verify_arch``              is ``verify-arch``          as Invoke reads it
usage error                  status 2                    status 1
``--tag`` without a value    usage error                 Invoke takes an empty list
============================ =========================== ==================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import invoke.parser.parser
from invoke.exceptions import Exit
from invoke.parser.argument import Argument
from invoke.parser.parser import ParseMachine

from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from invoke.parser.context import ParserContext

__all__ = ["DeclaredArgument", "OptionalPositional"]


class DeclaredArgument(Argument):
    """An argument of a task of this package: what tells its command lines from those of other tasks."""


class OptionalPositional(DeclaredArgument):
    """An option that is also set by the first token that is neither an option nor the name of a task."""


class DeclaredTaskParser(ParseMachine):
    """Invoke's parser with the additions that the module describes."""

    def handle(self, token: str) -> None:
        """Read one token of the command line."""
        name = self._replace_underscores(token)
        positional = self._find_positional(name)
        if positional is None:
            super().handle(name)
        else:
            positional.value = name

    def error(self, msg: str) -> None:
        """End with the status of a usage error if the current task is one of this package."""
        if _is_declared(self.context):
            raise Exit(msg, code=UsageError.exit_code)
        super().error(msg)

    def complete_flag(self) -> None:
        """Refuse a repeatable option without a value, which Invoke reads as one that was not given."""
        flag: Any = self.flag  # annotated as None by Invoke
        if isinstance(flag, DeclaredArgument) and flag.kind is list and not self.flag_got_value:
            self.error(f"Flag {flag!r} needed value and was not given one!")
        super().complete_flag()

    def _replace_underscores(self, token: str) -> str:
        """Return the dashed name that an underscored token stands for; any other token unchanged."""
        name = token.replace("_", "-")
        if self._takes_any_token() or token in self.contexts or token in self.context.flags:
            return token
        is_option = _is_declared(self.context) and name in self.context.flags
        is_task = name in self.contexts and _is_declared(self.contexts[name])
        return name if is_option or is_task else token

    def _find_positional(self, token: str) -> Argument | None:
        """Return the optional positional that this token sets, if there is one that is not set yet."""
        if self._takes_any_token() or token.startswith("-") or token in self.contexts:
            return None
        arguments = (each for each in self.context.args.values() if isinstance(each, OptionalPositional))
        return next((each for each in arguments if each.raw_value is None), None)

    def _takes_any_token(self) -> bool:
        """Return True if the next token is a value, whatever it looks like, or is not parsed at all."""
        return bool(
            self.current_state == "unknown"
            or self.waiting_for_flag_value
            or self.context.missing_positional_args
        )


def _is_declared(context: ParserContext | None) -> bool:
    return context is not None and any(isinstance(each, DeclaredArgument) for each in context.args.values())


# The metaclass of Invoke's state machines gives a subclass no states of its parent.
DeclaredTaskParser._class_states = ParseMachine._class_states  # noqa: SLF001
DeclaredTaskParser._class_transitions = ParseMachine._class_transitions  # noqa: SLF001
invoke.parser.parser.ParseMachine = DeclaredTaskParser  # type: ignore[misc]
