"""Command lines of declared tasks, and that those of other tasks are read as by Invoke alone."""

from __future__ import annotations

from typing import Any

import invoke.parser.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from invoke.exceptions import Exit, ParseError
from invoke.parser.argument import Argument
from invoke.parser.context import ParserContext
from invoke.parser.parser import ParseMachine, Parser

from buildkit_tasks.cli.invoke_parser import DeclaredArgument, DeclaredTaskParser, OptionalPositional

INITIAL = ParserContext(args=[Argument(names=("help", "h"), optional=True), Argument(name="dry", kind=bool)])


def other_tasks() -> list[ParserContext]:
    return [
        ParserContext(
            name="their-task",
            args=[
                Argument(name="to-name", attr_name="to_name"),
                Argument(name="many", kind=list, default=[]),
                Argument(name="loud", kind=bool, default=False),
            ],
        ),
        ParserContext(
            name="copy", args=[Argument(name="path", positional=True), Argument(names=("mode", "m"))]
        ),
        ParserContext(name="under_scored"),
    ]


def declared_task() -> ParserContext:
    return ParserContext(
        name="verify-arch",
        args=[
            OptionalPositional(name="image"),
            DeclaredArgument(name="for-nodes"),
            DeclaredArgument(name="dry-run", kind=bool, default=False),
            DeclaredArgument(names=("tag", "t"), kind=list),
        ],
    )


def parse(
    *argv: str, contexts: list[ParserContext], machine: type[ParseMachine] = DeclaredTaskParser
) -> list[tuple[str | None, dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invoke.parser.parser, "ParseMachine", machine)
        result = Parser(initial=INITIAL, contexts=contexts).parse_argv([*argv])
    return [(context.name, context.as_kwargs) for context in result]


def outcome(*argv: str, machine: type[ParseMachine], contexts: list[ParserContext]) -> object:
    try:
        return parse(*argv, contexts=contexts, machine=machine)
    except (ParseError, Exit) as error:
        return type(error), str(error)


TOKENS = st.sampled_from(
    [
        "their-task",
        "their_task",
        "copy",
        "under_scored",
        "under-scored",
        "--to-name",
        "--to_name",
        "--to_name=a",
        "--many",
        "--loud",
        "--no_loud",
        "--path",
        "-m",
        "--mode=x",
        "x.tar",
        "a_b",
        "-",
        "--",
        "--help",
        "--dry",
    ]
)


@given(st.lists(TOKENS, max_size=6))
def test_other_tasks_parse_as_with_invoke(argv: list[str]) -> None:
    alone = outcome(*argv, machine=ParseMachine, contexts=other_tasks())
    assert outcome(*argv, machine=DeclaredTaskParser, contexts=other_tasks()) == alone
    assert outcome(*argv, machine=DeclaredTaskParser, contexts=[*other_tasks(), declared_task()]) == alone


@given(st.lists(TOKENS, max_size=4))
def test_other_tasks_after_a_declared_one(argv: list[str]) -> None:
    contexts = [*other_tasks(), declared_task()]
    mixed = outcome(
        "verify-arch", "x.tar", "copy", "to", *argv, machine=DeclaredTaskParser, contexts=contexts
    )
    alone = outcome("copy", "to", *argv, machine=ParseMachine, contexts=other_tasks())
    if isinstance(alone, list):
        assert isinstance(mixed, list)
        assert mixed[2:] == alone[1:]
    else:
        assert mixed == alone


def declared(*argv: str) -> dict[str, Any]:
    (_, (name, options)) = parse(*argv, contexts=[declared_task(), *other_tasks()])
    assert name == "verify-arch"
    return options


def test_positional_may_be_left_out() -> None:
    assert declared("verify-arch")["image"] is None


@pytest.mark.parametrize("argv", [("x.tar", "--for-nodes", "n"), ("--for-nodes", "n", "x.tar")])
def test_positional_before_or_after_options(argv: tuple[str, ...]) -> None:
    assert declared("verify-arch", *argv)["image"] == "x.tar"


def test_underscored_task_and_option() -> None:
    options = declared("verify_arch", "--for_nodes=a_b", "--dry_run", "c_d")
    assert (options["for-nodes"], options["dry-run"], options["image"]) == ("a_b", True, "c_d")


def test_underscored_value_stays() -> None:
    assert declared("verify-arch", "--for-nodes", "verify_arch")["for-nodes"] == "verify_arch"


def test_positional_of_another_task_may_be_a_declared_name() -> None:
    (_, (name, options)) = parse("copy", "verify_arch", contexts=[declared_task(), *other_tasks()])
    assert (name, options["path"]) == ("copy", "verify_arch")


@pytest.mark.parametrize("argv", [("--nonsense",), ("x.tar", "y.tar"), ("--tag",), ("--for-nodes",)])
def test_usage_error_ends_with_2(argv: tuple[str, ...]) -> None:
    with pytest.raises(Exit) as excinfo:
        declared("verify-arch", *argv)
    assert excinfo.value.code == 2
