"""The Docker engine: an existing one where one answers, else a private one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.daemon import (
    Engine,
    docker_tools,
    find_system_engine,
    installed_tools,
    tools_alone,
)

if TYPE_CHECKING:
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.system.command import Runner
    from buildkit_tasks.system.notify import Tell

__all__ = ["Engine", "ensure_clients", "ensure_engine", "existing_clients", "existing_engine"]


def ensure_engine(settings: Settings, run: Runner, tell: Tell) -> Engine:
    """The engine to use, started if need be.

    An existing daemon is preferred and never touched; a private one is provisioned when none
    answers, unless ``engine=system`` forbids it. Raises :class:`EngineError` (exit 3) otherwise.
    """
    if settings.engine != "private":
        found = find_system_engine(lambda: docker_tools(settings, run, tell), run)
        if isinstance(found, Engine):
            return found
        if settings.engine == "system":
            raise EngineError(found, hint="start it, or let a private engine be made: --engine=auto")
        tell(f"{found}: using the private engine")
    from buildkit_tasks.host.engine.private import ensure_private_engine

    return ensure_private_engine(settings, run, tell)


def ensure_clients(settings: Settings, run: Runner, tell: Tell) -> Engine:
    """The user's engine, or its client programs alone: no daemon is started for a BuildKit elsewhere."""
    found = find_system_engine(lambda: docker_tools(settings, run, tell), run)
    return found if isinstance(found, Engine) else tools_alone(docker_tools(settings, run, tell))


def existing_clients(settings: Settings, run: Runner) -> Engine | str:
    """What :func:`ensure_clients` gives if nothing may be fetched, or why there is nothing."""
    tools = installed_tools(settings)
    if tools is None:
        return "there is no docker with buildx here"
    found = find_system_engine(lambda: tools, run)
    return found if isinstance(found, Engine) else tools_alone(tools)


def existing_engine(settings: Settings, run: Runner) -> Engine | str:
    """The engine that would be used if nothing may be fetched or started, or why there is none."""
    from buildkit_tasks.host.engine.private import running_private_engine

    tools = installed_tools(settings)
    if tools is None:
        return "there is no docker with buildx here"
    found: Engine | str = "no Docker daemon is asked for"
    if settings.engine != "private":
        found = find_system_engine(lambda: tools, run)
    if isinstance(found, Engine) or settings.engine == "system":
        return found
    return running_private_engine(settings, tools, run) or f"{found}, and no private engine runs"
