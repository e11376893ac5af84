"""Every command and option that a hint in the source names exists: each is parsed as its program does."""

from __future__ import annotations

import re
import shlex

import pytest
from invoke.exceptions import ParseError
from invoke.parser.parser import Parser

from buildkit_tasks.cli.program import create_program
from buildkit_tasks.hints import DockerClient, set_docker_client, translate_commands
from buildkit_tasks.tasks import ns
from tests.support.hint_texts import docker_commands, hint_options, task_commands, texts_of_source

TEXTS = [*texts_of_source()]
TASK_COMMANDS = sorted({(place, command) for place, text in TEXTS for command in task_commands(text)})
DOCKER_COMMANDS = sorted({(place, command) for place, text in TEXTS for command in docker_commands(text)})


def parse(command: str) -> None:
    program = create_program(ns)
    parser = Parser(initial=program.initial_context, contexts=ns.to_contexts())
    parser.parse_argv(shlex.split(re.sub(r"^x ", "build-multiarch ", command)))


@pytest.mark.parametrize(
    "command", ["nonsense", "verify-arch --nonsense", "build-multiarch --tag", "doctor x"]
)
def test_bad_command_is_found(command: str) -> None:
    with pytest.raises(ParseError):
        parse(command)


def test_commands_are_collected() -> None:
    commands = {command.partition(" ")[0] for _, command in TASK_COMMANDS}
    assert {"setup-builder", "build-multiarch", "push-multiarch", "run-emulated", "doctor"} <= commands
    assert {command.split()[0] for _, command in DOCKER_COMMANDS} >= {"buildx", "login", "pull", "context"}


@pytest.mark.parametrize(("place", "command"), TASK_COMMANDS)
def test_task_command(place: str, command: str) -> None:
    try:
        parse(command)
    except ParseError as error:
        pytest.fail(f"{place}: inv {command}: {error}")


@pytest.mark.parametrize(("place", "command"), DOCKER_COMMANDS)
def test_docker_command_names_client(place: str, command: str) -> None:
    set_docker_client(DockerClient(docker=("/x/docker",), buildx=("/x/docker-buildx",)))
    assert translate_commands(f"docker {command}").startswith("/x/docker"), place


def test_options_exist() -> None:
    options = {flag for context in ns.to_contexts() for flag in context.flag_names()}
    options |= {"--arch-image", "--arch-cpu", "--arch-platform"}
    assert [(place, option) for place, option in hint_options() if option not in options] == []
