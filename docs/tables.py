"""Generate the tables of the documentation from the code that they describe.

``python docs/tables.py`` writes them, and :data:`REQUIREMENT` into the pipelines. ``conf.py`` compares them
in every build of the documentation: a table that differs from the code is a warning, and with ``-W`` an
error.
"""

from __future__ import annotations

import ast
import errno
import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.cli.declared_task import DeclaredTask
from buildkit_tasks.config.settings import SETTINGS_KEYS, Settings
from buildkit_tasks.platforms import known_platforms
from buildkit_tasks.run.sandbox.seccomp import DENIED
from buildkit_tasks.tasks import ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from buildkit_tasks.cli.options import Option
    from buildkit_tasks.run.sandbox.seccomp import Rule

__all__ = ["PAGES", "REQUIREMENT", "render_page"]

# Change it to "buildkit-tasks" when the package is on PyPI; then run this file.
REQUIREMENT = "git+https://github.com/buildkit-tasks/buildkit-tasks"
"""What ``pip install`` installs in the pipelines of ``examples/ci``, where there is no clone."""

_FOLDER = Path(__file__).parent
_PACKAGE = _FOLDER.parent / "buildkit_tasks"
_COMMON_HEADING = "Options of every task"
_KINDS = {tuple: "list", str: "text", int: "whole number", float: "number"}


def render_page(name: str) -> str:
    """Return a page with its generated tables brought up to date."""
    return PAGES[name]((_FOLDER / name).read_text(encoding="utf-8"))


def _render_tasks(text: str) -> str:
    tasks = {name: task for name, task in ns.tasks.items() if isinstance(task, DeclaredTask)}
    common = [
        option.name for option in next(iter(tasks.values())).options.values() if _is_common(option, tasks)
    ]
    text = _replace_table(
        text, _COMMON_HEADING, _option_table(tasks["doctor"], lambda option: option.name in common)
    )
    for name, task in tasks.items():
        text = _replace_table(text, name, _option_table(task, lambda option: option.name not in common))
    return text


def _is_common(option: Option, tasks: dict[str, DeclaredTask]) -> bool:
    return all(option.name in task.options for task in tasks.values())


def _option_table(task: DeclaredTask, is_selected: Callable[[Option], bool]) -> Iterator[str]:
    yield "| option | kind | what it is | setting |"
    yield "| --- | --- | --- | --- |"
    for option in filter(is_selected, task.options.values()):
        kind = {(): "list", False: "flag"}.get(option.default, "text")
        text = option.help.removesuffix("; repeatable").replace("|", "\\|")
        setting = f"`{_dash_name(option.setting)}`" if option.setting else ""
        yield f"| {_format_option(option)} | {kind} | {text} | {setting} |"


def _format_option(option: Option) -> str:
    value = "" if option.default is False else "=STRING"
    name = f"`{option.flag}{value}`"
    if option.positional:
        return f"`[{option.name.upper()}]`, {name}"
    return f"`-{option.short}`, {name}" if option.short else name


def _render_settings(text: str) -> str:
    """Take keys, kinds and defaults from the code, and descriptions from the page itself."""
    descriptions = dict(re.findall(r"^\| `([a-z-]+)` \|[^|]*\|[^|]*\| (.*) \|$", text, re.MULTILINE))
    return _replace_table(text, "Keys", _key_table(descriptions))


def _key_table(descriptions: dict[str, str]) -> Iterator[str]:
    yield "| key | kind | default | what it is |"
    yield "| --- | --- | --- | --- |"
    defaults = {each.name: each.default for each in fields(Settings) if each.name in SETTINGS_KEYS}
    for name, default in defaults.items():
        key = _dash_name(name)
        description = descriptions.get(key, "(not described)")
        yield f"| `{key}` | {_KINDS[type(default)]} |{_format_default(default)} | {description} |"


def _render_running(text: str) -> str:
    text = _replace_table(text, "System calls of guests", _system_call_table())
    return _replace_table(text, "The oldest CPU", _cpu_table())


# What Docker's default profile does otherwise.
_IN_DOCKER = {
    "socket": "all but `AF_VSOCK` are allowed",
    **dict.fromkeys(("ioprio_set", "prlimit64", "setpriority", "socketcall"), "allowed"),
    **dict.fromkeys(
        ("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"), "allowed"
    ),
}


def _system_call_table() -> Iterator[str]:
    yield "| system calls | denied | error | Docker's default profile |"
    yield "| --- | --- | --- | --- |"
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name, rules in DENIED.items():
        conditions = " or ".join(_describe_rule(rule) for rule in rules if rule.error)
        conditions += "" if all(rule.error for rule in rules) else "; otherwise it has no effect"
        key = (conditions, errno.errorcode[rules[0].error], _IN_DOCKER.get(name, "the same"))
        rows.setdefault(key, []).append(f"`{name}`")
    for (conditions, error, docker), names in rows.items():
        yield f"| {', '.join(names)} | {conditions} | `{error}` | {docker} |"


def _describe_rule(rule: Rule) -> str:
    argument = f"argument {rule.argument + 1}"
    if rule.allowed:
        return f"{argument} is none of {', '.join(map(hex, rule.allowed))}"
    if rule.denied:
        return f"{argument} is {', '.join(map(hex, rule.denied))}"
    return f"{argument} has a bit of {rule.mask:#x}" if rule.mask else "always"


def _cpu_table() -> Iterator[str]:
    yield "| platform | baseline | CPU |"
    yield "| --- | --- | --- |"
    for platform in known_platforms():
        baseline = platform.baseline.title if platform.baseline else ""
        yield f"| `{platform}` | {baseline} | `{platform.baseline_cpu}` |"


def _format_default(default: object) -> str:
    items = default if isinstance(default, tuple) else (default,)
    texts = (f"{item:g}" if isinstance(item, float) else str(item) for item in items)
    formatted = ", ".join(f"`{text}`" for text in texts if text)
    return formatted and f" {formatted}"


def _dash_name(name: str) -> str:
    return name.replace("_", "-")


def _replace_table(text: str, heading: str, rows: Iterable[str]) -> str:
    """Return a page with the first table under a heading replaced. Raises :class:`LookupError`."""
    pattern = rf"(^## {re.escape(heading)}\n(?:(?!## |\|).*\n)*)(?:\|.*\n)+"
    table = "".join(f"{row}\n" for row in rows)
    page, count = re.subn(pattern, lambda match: match[1] + table, text, count=1, flags=re.MULTILINE)
    if not count:
        raise LookupError(f"no table under '## {heading}'")
    return page


def _render_architecture(text: str) -> str:
    text = _replace_table(text, "Entry points", _module_table(sorted(_PACKAGE.glob("*.py"))))
    for package in sorted(_PACKAGE.glob("*/__init__.py")):
        text = _replace_table(text, package.parent.name, _module_table(sorted(package.parent.rglob("*.py"))))
    return text


def _module_table(paths: Iterable[Path]) -> Iterator[str]:
    """Yield a row for each module with the first sentence of its docstring."""
    yield "| module | what it is |"
    yield "| --- | --- |"
    for path in paths:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        summary = docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")
        if summary:
            yield f"| `{path.relative_to(_PACKAGE)}` | {summary} |"


def _render_pipeline(text: str) -> str:
    return re.sub(
        r"(?<=pip install )(?:git\+https:\S+|buildkit-tasks\S*)$", REQUIREMENT, text, flags=re.MULTILINE
    )


PAGES: dict[str, Callable[[str], str]] = {
    "tasks.md": _render_tasks,
    "settings.md": _render_settings,
    "running.md": _render_running,
    "architecture.md": _render_architecture,
    **{
        f"../examples/ci/{path.name}": _render_pipeline
        for path in sorted((_FOLDER.parent / "examples/ci").glob("*.yml"))
    },
}
"""The function that renders each page again, by the page's path from this folder."""


if __name__ == "__main__":
    for page in PAGES:
        (_FOLDER / page).write_text(render_page(page), encoding="utf-8")
