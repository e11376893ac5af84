"""Create temporary builders with real BuildKits, and parse their plain progress."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator, Sequence

from buildkit_tasks.host.engine import Engine
from buildkit_tasks.system.command import SubprocessRunner

_SECONDS = 300.0
_STEP = re.compile(r"^#(\d+) (\[.*\] (?:COPY|RUN|ADD|WORKDIR) .*)$", re.MULTILINE)
# For a cached step whose layers are fetched at once, BuildKit shows these, sometimes without CACHED.
_CACHED = re.compile(r"^#(\d+) (?:CACHED$|sha256:[0-9a-f]{64} )", re.MULTILINE)


@contextlib.contextmanager
def container_builder(engine: Engine, image: str, nodes: Sequence[str] = ("",)) -> Iterator[str]:
    """Create a builder with the driver docker-container on the host's network, and yield its name.

    ``nodes`` has the platforms of each node; an empty string means those that BuildKit detects.
    """
    name = f"tests-{uuid.uuid4().hex[:12]}"
    try:
        for number, platforms in enumerate(nodes):
            arguments = [f"--name={name}", "--driver=docker-container", f"--node={name}-{number}"]
            arguments += ["--append"] if number else []
            arguments += [f"--platform={platforms}"] if platforms else []
            arguments += [f"--driver-opt=image={image}", "--driver-opt=network=host"]
            # buildx refuses an endpoint that another node has, so each has more slashes.
            endpoint = engine.endpoint.replace("///", "///" + "/" * number)
            _buildx(engine, "create", *arguments, endpoint)
        _buildx(engine, "inspect", "--bootstrap", name)
        yield name
    finally:
        _buildx(engine, "rm", "--force", name)


def steps(progress: str) -> dict[str, bool]:
    """Return the steps that plain progress shows, and whether each was cached."""
    cached = set(_CACHED.findall(progress))
    return {f"#{number} {step}": number in cached for number, step in _STEP.findall(progress)}


def _buildx(engine: Engine, *arguments: str) -> None:
    options = engine.command_options(timeout=_SECONDS)
    result = SubprocessRunner().run([*engine.tools.buildx, *arguments], options)
    assert result.ok, result.stderr
