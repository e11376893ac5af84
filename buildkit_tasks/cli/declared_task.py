"""Invoke tasks made from declared options: their arguments, and how a call of one ends."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from invoke.collection import Collection
from invoke.exceptions import Exit
from invoke.tasks import Task

import buildkit_tasks.cli.invoke_environment  # noqa: F401 - replaces a class of Invoke
from buildkit_tasks.cli.invocation import TaskContext
from buildkit_tasks.cli.invoke_parser import DeclaredArgument, OptionalPositional
from buildkit_tasks.cli.options import COMMON_OPTIONS
from buildkit_tasks.errors import BuildkitTasksError, Interrupted, LimitExceeded
from buildkit_tasks.system.output import open_missing_output
from buildkit_tasks.system.sigterm import interrupted_by_sigterm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from invoke.context import Context
    from invoke.parser.argument import Argument

    from buildkit_tasks.cli.options import Option

__all__ = ["DeclaredTask", "TaskFailed", "create_namespace", "task"]

Body = Callable[[TaskContext], None]


class TaskFailed(Exit):
    """A task did not succeed. ``code`` is its exit status, ``result`` its report if there is one.

    The message was printed already: Invoke's programs only exit with the status.
    """

    def __init__(self, code: int, result: object = None) -> None:
        super().__init__(code=code)
        self.result = result


def task(*options: Option) -> Callable[[Body], DeclaredTask]:
    """Make an Invoke task of a function that takes a :class:`TaskContext`.

    The task has these options and :data:`COMMON_OPTIONS`.
    """
    return lambda body: DeclaredTask(body, (*options, *COMMON_OPTIONS))


class DeclaredTask(Task[Any]):
    """An Invoke task whose arguments are declared options.

    A call from Python takes the options as keywords, ``verify_arch(c, image="oci:dist")``, and an image also
    without its name. It returns the report and raises :class:`TaskFailed` where the command line ends with
    another status than 0.
    """

    def __init__(self, body: Body, options: tuple[Option, ...]) -> None:
        self.options = {option.name: option for option in options}
        super().__init__(_invoke_body(body, self.options), positional=[])

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[Argument]:  # noqa: ARG002
        """Return the arguments for Invoke's parser."""
        task_name = self.body.__name__.replace("_", "-")
        return [_argument(option, task_name) for option in self.options.values()]


def create_namespace(*tasks: DeclaredTask) -> Collection:
    """Return a collection of the tasks that declares their settings to Invoke.

    Invoke merges only what is declared. The values are None and not the defaults: Invoke cannot read a list
    from the environment (``INVOKE_BUILDKIT_PLATFORMS``), and None means that nothing was set.
    """
    from buildkit_tasks.config.settings import SETTINGS_KEYS

    namespace = Collection(*tasks)
    namespace.configure({"buildkit": dict.fromkeys(SETTINGS_KEYS)})
    return namespace


def _argument(option: Option, task_name: str) -> Argument:
    """Return an option as Invoke's parser has it."""
    name = option.flag_name
    kind: type = list if option.default == () else type(option.default)
    return (OptionalPositional if option.positional else DeclaredArgument)(
        names=(name, option.short) if option.short else (name,),
        kind=kind,
        default=None if kind is list else option.default,
        help=option.help,
        attr_name=option.name if option.name != name else None,
        task=task_name,
        example=option.example,
    )


def _invoke_body(body: Body, options: dict[str, Option]) -> Callable[..., object]:
    """Return the function that Invoke calls: it fills in defaults, runs the body, and ends as it ended."""

    def call(c: Context, *args: object, **arguments: object) -> object:
        values = _read_arguments(body.__name__, options, args, arguments)
        setting_options = [option for option in options.values() if option.setting]
        ctx = TaskContext(
            invoke_context=c,
            options=values,
            setting_flags={option.setting: values[option.name] for option in setting_options},
            flag_names={option.setting: option.flag for option in setting_options},
        )
        exit_code = _run_body(ctx, body)
        if exit_code:
            raise TaskFailed(exit_code, ctx.result)
        return ctx.result

    call.__name__, call.__doc__, call.__module__ = body.__name__, body.__doc__, body.__module__
    return call


def _read_arguments(
    task_name: str, options: Mapping[str, Option], args: Sequence[object], arguments: Mapping[str, object]
) -> dict[str, Any]:
    """Return the value of each option, as the command line has it. Raises TypeError as a function does."""
    positional = [name for name, option in options.items() if option.positional]
    if len(args) > len(positional):
        raise TypeError(f"{task_name}() takes {len(positional)} arguments without a name, not {len(args)}")
    given = dict(zip(positional, args, strict=False))
    repeated = given.keys() & arguments.keys()
    if repeated:
        raise TypeError(f"{task_name}() got several values for {min(repeated)!r}")
    unknown = arguments.keys() - options.keys()
    if unknown:
        similar = difflib.get_close_matches(min(unknown), options, n=1)
        suggestion = f", did you mean {similar[0]!r}?" if similar else ""
        raise TypeError(f"{task_name}() has no option {min(unknown)!r}{suggestion}")
    given |= arguments
    return {name: _read_argument(option, given.get(name)) for name, option in options.items()}


def _read_argument(option: Option, value: object) -> str | bool | Sequence[str]:
    """Return a value as the command line has it: paths, platforms and numbers as text, one for a list."""
    if value is None or value == "":
        return option.default
    if isinstance(option.default, bool):
        return bool(value)
    if isinstance(option.default, str):
        return _to_text(value)
    items = value if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    return [_to_text(each) for each in items] or option.default


def _to_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _run_body(ctx: TaskContext, body: Body) -> int:
    open_missing_output()
    try:
        with interrupted_by_sigterm():
            ctx.check_report_paths()
            body(ctx)
    except KeyboardInterrupt:
        return ctx.show_error(Interrupted("interrupted"))
    except BuildkitTasksError as error:
        return ctx.show_error(error)
    except OSError as error:
        return ctx.show_error(ctx.explain_cache_error(error) or _from_os_error(error))
    return ctx.exit_code


def _from_os_error(error: OSError) -> BuildkitTasksError:
    """Return an error with the file and the reason; a full disk is a limit."""
    kind = LimitExceeded if error.errno in (errno.ENOSPC, errno.EDQUOT) else BuildkitTasksError
    where = f"{error.filename}: " if error.filename is not None else ""
    translated = kind(f"{where}{error.strerror or error}")
    translated.__cause__ = error
    return translated
