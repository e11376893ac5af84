"""Extensions of Invoke's command-line parser, for the tasks of this package only.

Invoke 3.0 has no optional positional argument, knows no underscored aliases, and ends every usage error
with status 1. Its programs offer no hook to replace the parser, so importing this module replaces the class
that :class:`invoke.parser.Parser` instantiates, and the contexts that :class:`invoke.collection.Collection`
makes of tasks, with subclasses. They add behaviour only where the current task, or the task that is named,
was declared here; everything else goes to Invoke unchanged:

============================= =================================== ==================================
command line                  declared task                       any other task
============================= =================================== ==================================
``verify-arch x.tar``         sets its optional IMAGE             "No idea what 'x.tar' is!"
``--dry_run``                 is ``--dry-run``                    as Invoke reads it
``verify_arch``               is ``verify-arch``                  as Invoke reads it
``--timeout 3 --timeout 4``   the last value                      "No idea what '4' is!"
``--json=false``              turns the flag off                  "No idea what 'false' is!"
``--tag`` without a value     usage error with an example         Invoke takes an empty list
``--tag ''``                  the same                            an empty value
usage error                   status 2, names the nearest option  status 1
unknown task                  status 2 if one of these is near    status 1
``--help``                    ``[IMAGE]``, ``--tag=STRING``       lists look like flags
============================= =================================== ==================================
"""

from __future__ import annotations

import difflib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invoke.collection
import invoke.parser.parser
from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext, to_flag
from invoke.parser.parser import ParseMachine

from buildkit_tasks.cli.typed_program import record_typed_program
from buildkit_tasks.errors import BuildkitTasksError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["CommandLineError", "DeclaredArgument", "OptionalPositional", "unknown_task_error"]

_SWITCH_VALUES = {"true": True, "false": False}  # as of a flag in Docker's command line: --push=false


class CommandLineError(Exit, ParseError):
    """A usage error, with the status of one. Completion catches Invoke's own kind of error.

    With ``--json`` on the command line its document is printed at once: no task begins that could do so.
    """

    def __init__(self, error: BuildkitTasksError, context: ParserContext | None = None) -> None:
        Exit.__init__(self, code=error.exit_code)  # without a message: ParseError's is printed
        ParseError.__init__(self, f"error: {error}", context)
        if _asks_for_json(sys.argv[1:]):
            from buildkit_tasks.cli.invocation import print_error_document

            print_error_document(error)


class DeclaredArgument(Argument):
    """An argument of a task of this package: what tells its command lines from those of other tasks.

    ``task`` is the task's name in this package, ``example`` a value.
    """

    def __init__(self, *args: Any, task: str = "", example: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task = task
        self.example = example


class OptionalPositional(DeclaredArgument):
    """An option that is also set by the first token that is neither an option nor the name of a task."""


class DeclaredTaskContext(ParserContext):
    """The arguments of a task; the help of a declared one shows which options take a value."""

    def help_for(self, flag: str) -> tuple[str, str]:
        """Return an option as it is typed, and its help."""
        argument = self.flags.get(flag)
        if not isinstance(argument, DeclaredArgument) or not argument.takes_value:
            return super().help_for(flag)
        names = sorted(self.names_for(flag), key=len)
        forms = [f"{name}=STRING" if name.startswith("--") else f"{name} STRING" for name in names]
        if isinstance(argument, OptionalPositional):
            forms.insert(0, f"[{argument.names[0].upper()}]")
        return ", ".join(forms), argument.help or ""

    def help_tuples(self) -> list[tuple[str, str | None]]:
        """Return the help of all options; the one that needs no name comes first."""
        return sorted(super().help_tuples(), key=lambda each: not each[0].startswith("["))


class DeclaredTaskParser(ParseMachine):
    """Invoke's parser with the additions that the module describes."""

    _last_token = ""

    @property
    def waiting_for_flag_value(self) -> bool:
        """Return True if the next token is the value of the last option, which may have had one before."""
        flag: Any = self.flag  # annotated as None by Invoke
        if isinstance(flag, DeclaredArgument):
            return flag.takes_value and not self.flag_got_value
        return super().waiting_for_flag_value

    def handle(self, token: str) -> None:
        """Read one token of the command line."""
        name = self._replace_underscores(token)
        positional = self._find_positional(name)
        if self._is_switch_value(name):
            flag: Any = self.flag
            flag.value = _SWITCH_VALUES[name.lower()]
        elif positional is not None:
            self._set_positional(positional, name)
        elif self._is_unknown(name):
            self._refuse_token(name)
        else:
            super().handle(name)
        self._last_token = name

    def switch_to_context(self, name: str) -> None:
        """Begin a task, whose hints name the program and the tasks as they are typed."""
        super().switch_to_context(name)
        record_typed_program(_list_declared_names(self.contexts), name)

    def see_value(self, value: Any) -> None:
        """Set an option; an empty value is most likely a variable that is not set."""
        flag: Any = self.flag
        if isinstance(flag, DeclaredArgument) and not value.strip(" ,"):
            self._refuse(_missing_value_error(flag))
        super().see_value(value)

    def complete_flag(self) -> None:
        """Refuse an option without a value: Invoke reads a list without one as not given."""
        flag: Any = self.flag
        if isinstance(flag, DeclaredArgument) and self.waiting_for_flag_value:
            self._refuse(_missing_value_error(flag))
        super().complete_flag()

    def error(self, msg: str) -> None:
        """End with the status of a usage error if the current task is one of this package."""
        if _is_declared(self.context):
            self._refuse(UsageError(msg))
        super().error(msg)

    def _refuse(self, error: UsageError) -> None:
        record_typed_program(_list_declared_names(self.contexts), self.context.name or "")
        raise CommandLineError(error, self.context)

    def _refuse_token(self, token: str) -> None:
        """End with an error that names the nearest option or task."""
        if _is_declared(self.context):
            self._refuse(_unknown_token_error(token, self.context, self.contexts))
        if self.context.name is None and self._is_ours(token):
            self._refuse(_unknown_start_error(token, self.context, self.contexts))
        super().handle(token)

    def _is_ours(self, token: str) -> bool:
        """Return True if this package answers for an unknown token before any task: Invoke ends with 1."""
        nearest = "" if token.startswith("-") else _find_nearest(token, self.contexts)
        tasks = [self.contexts[nearest]] if nearest else list(self.contexts.values())
        return bool(tasks) and all(map(_is_declared, tasks))

    def _replace_underscores(self, token: str) -> str:
        """Return the dashed name that an underscored token stands for; any other token unchanged."""
        name = token.replace("_", "-")
        if self._takes_any_token() or token in self.contexts or token in self.context.flags:
            return token
        is_option = _is_declared(self.context) and name in self.context.flags
        is_task = name in self.contexts and _is_declared(self.contexts[name])
        return name if is_option or is_task else token

    def _find_positional(self, token: str) -> OptionalPositional | None:
        """Return the optional positional that this token sets, if there is one that is not set yet."""
        if self._takes_any_token() or token.startswith("-") or token in self.contexts:
            return None
        arguments = (each for each in self.context.args.values() if isinstance(each, OptionalPositional))
        return next((each for each in arguments if not each.got_value), None)

    def _set_positional(self, positional: OptionalPositional, value: str) -> None:
        if not value.strip():
            self._refuse(
                UsageError(f"{positional.names[0].upper()} is empty", hint=_show_example(positional))
            )
        positional.value = value

    def _is_switch_value(self, token: str) -> bool:
        """Return True for the value of ``--json=false``, which Invoke's parser hands over as a token."""
        flag: Any = self.flag
        is_switch = isinstance(flag, DeclaredArgument) and not flag.takes_value
        return is_switch and token.lower() in _SWITCH_VALUES and self._last_token.startswith("--")

    def _is_unknown(self, token: str) -> bool:
        """Return True for a token that Invoke has "no idea" of."""
        known = (self.context.flags, self.context.inverse_flags, self.contexts, self.initial.flags)
        return not (self.ignore_unknown or self._takes_any_token() or any(token in each for each in known))

    def _takes_any_token(self) -> bool:
        """Return True if the next token is a value, whatever it looks like, or is not parsed at all."""
        return bool(
            self.current_state == "unknown"
            or self.waiting_for_flag_value
            or self.context.missing_positional_args
        )


def _asks_for_json(argv: list[str]) -> bool:
    """Return True if standard output is for one JSON document, and not for the words of a completion."""
    flags = [argument.lower() for argument in argv if argument.partition("=")[0] == "--json"]
    return bool(flags) and flags[-1] != "--json=false" and "--complete" not in argv


def _is_declared(context: ParserContext | None) -> bool:
    return context is not None and any(isinstance(each, DeclaredArgument) for each in context.args.values())


def _list_declared_names(contexts: Mapping[str, ParserContext]) -> dict[str, list[str]]:
    """Return the names that each task of this package has in the parser."""
    names: dict[str, list[str]] = {}
    for typed_name, context in contexts.items():
        for task in {each.task for each in context.args.values() if isinstance(each, DeclaredArgument)}:
            names.setdefault(task, []).append(typed_name)
    return names


def _missing_value_error(argument: DeclaredArgument) -> UsageError:
    flag = f"--{argument.names[0]}"
    example = f", e.g. {_show_example(argument)}" if argument.example else ""
    return UsageError(f"{flag} needs a value{example}")


def _show_example(argument: DeclaredArgument) -> str:
    return f"{to_flag(argument.names[-1])} {argument.example}"


def _unknown_token_error(
    token: str, context: ParserContext, contexts: Mapping[str, ParserContext]
) -> UsageError:
    """Return the error for a token that a declared task does not take."""
    if token.startswith("-"):
        others = [name for name, other in contexts.items() if _is_declared(other) and token in other.flags]
        reason = (
            f"; it is an option of {', '.join(others)}" if others else _did_you_mean(token, context.flags)
        )
        return UsageError(f"{context.name} has no option {token!r}{reason}")
    if _find_nearest(token, contexts):
        return UsageError(f"unknown task {token!r}{_did_you_mean(token, contexts)}")
    positional = next((each for each in context.args.values() if isinstance(each, OptionalPositional)), None)
    if positional is not None:
        name = positional.names[0].upper()
        hint = f"{to_flag(positional.names[0])} {shlex.quote(token)}" if positional.kind is list else None
        return UsageError(f"{context.name} takes one {name} without an option, and not {token!r}", hint=hint)
    is_folder = "--context" in context.flags and Path(token).is_dir()
    hint = f"inv {context.name} --context {shlex.quote(token)}" if is_folder else None
    return UsageError(f"{context.name} takes options only, and not {token!r}", hint=hint)


def _unknown_start_error(
    token: str, core: ParserContext, contexts: Mapping[str, ParserContext]
) -> UsageError:
    """Return the error for a token that stands before any task and is neither a core option nor a task."""
    if not token.startswith("-"):
        return unknown_task_error(token, contexts)
    if any(token in context.flags for context in contexts.values()):
        return UsageError(f"{token} is an option of a task: it comes after the name of the task")
    return UsageError(f"unknown option {token!r}{_did_you_mean(token, core.flags)}")


def unknown_task_error(name: str, tasks: Iterable[str]) -> UsageError:
    """Return the error for a name that is not one of the tasks."""
    return UsageError(f"unknown task {name!r}{_did_you_mean(name, tasks)}", hint="inv --list")


def _did_you_mean(token: str, names: Iterable[str]) -> str:
    nearest = _find_nearest(token, names)
    return f", did you mean {nearest}?" if nearest else ""


def _find_nearest(token: str, names: Iterable[str]) -> str:
    return next(iter(difflib.get_close_matches(token.replace("_", "-"), list(names), n=1)), "")


# The metaclass of Invoke's state machines gives a subclass no states of its parent.
DeclaredTaskParser._class_states = ParseMachine._class_states  # noqa: SLF001
DeclaredTaskParser._class_transitions = ParseMachine._class_transitions  # noqa: SLF001
invoke.parser.parser.ParseMachine = DeclaredTaskParser  # type: ignore[misc]
invoke.collection.ParserContext = DeclaredTaskContext  # type: ignore[attr-defined]
