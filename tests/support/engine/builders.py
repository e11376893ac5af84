"""Builders of real BuildKits, made for a test and removed after it, and what one says of its steps."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import CommandResult, SubprocessRunner

_SECONDS = 300.0
_STEP = re.compile(r"^#(\d+) (\[.*\] (?:COPY|RUN|ADD|WORKDIR) .*)$", re.MULTILINE)
# A cached step whose layers are fetched at once shows those, and not always the word.
_CACHED = re.compile(r"^#(\d+) (?:CACHED$|sha256:[0-9a-f]{64} )", re.MULTILINE)


@contextlib.contextmanager
def container_builder(engine: Engine, image: str, nodes: Sequence[str] = ("",)) -> Iterator[str]:
    """A new builder of the driver docker-container; gives its name.

    ``nodes`` are the platforms of each node, none for those that BuildKit finds. The builder sees the
    loopback interface of this machine, and the registries there.
    """
    name = f"tests-{uuid.uuid4().hex[:12]}"
    try:
        for number, platforms in enumerate(nodes):
            more = ["--append"] if number else []
            fixed = [f"--platform={platforms}"] if platforms else []
            options = [f"--driver-opt=image={image}", "--driver-opt=network=host"]
            arguments = ["--driver=docker-container", f"--node={name}-{number}", *more, *fixed, *options]
            # buildx takes no endpoint twice, so each node spells it in its own way.
            endpoint = engine.endpoint.replace("///", "///" + "/" * number)
            done = _buildx(engine, "create", f"--name={name}", *arguments, endpoint)
            assert done.ok, done.stderr
        done = _buildx(engine, "inspect", "--bootstrap", name)
        assert done.ok, done.stderr
        yield name
    finally:
        done = _buildx(engine, "rm", "--force", name)
        assert done.ok, done.stderr


def steps(progress: str) -> dict[str, bool]:
    """Every step that plain progress shows, by its number, and whether it came from a cache."""
    cached = set(_CACHED.findall(progress))
    return {f"#{number} {step}": number in cached for number, step in _STEP.findall(progress)}


def _buildx(engine: Engine, *arguments: str) -> CommandResult:
    return SubprocessRunner().run(
        [*engine.tools.buildx, *arguments], engine.command_options(timeout=_SECONDS)
    )
