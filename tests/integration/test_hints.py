"""Every docker command that a hint in the source names is one of the real client, options included."""

from __future__ import annotations

import re
import subprocess

import pytest

from buildkit_tasks.host.engine import Engine
from tests.support.hint_texts import docker_commands, texts_of_source

COMMANDS = sorted({command for _, text in texts_of_source() for command in docker_commands(text)})


@pytest.mark.parametrize("command", COMMANDS)
def test_docker_command(engine: Engine, command: str) -> None:
    tools = engine.tools
    name, *arguments = command.split()
    subcommand = [each for each in arguments[:1] if name in ("buildx", "context") and each.isalpha()]
    program = tools.buildx if name == "buildx" else (*tools.docker, name)
    done = subprocess.run([*program, *subcommand, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [
        each
        for each in subcommand
        if f" {each}" not in done.stdout.partition("Usage:")[2].partition("\n\n")[0]
    ]
    for option in re.findall(r"--[a-z][a-z-]*", command):
        assert f"{option} " in done.stdout, option
