"""The Docker engine: an existing one where one answers, else a private one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.daemon import (
    Engine,
    engine_without_daemon,
    ensure_tools,
    find_system_engine,
    find_tools,
)

if TYPE_CHECKING:
    from buildkit_tasks.config.settings import Settings
    from buildkit_tasks.system.command import CommandRunner
    from buildkit_tasks.system.notify import Notify

__all__ = ["Engine", "ensure_clients", "ensure_engine", "find_clients", "find_engine"]


def ensure_engine(settings: Settings, commands: CommandRunner, notify: Notify) -> Engine:
    """The engine to use, started if need be.

    An existing daemon is preferred and never touched; a private one is provisioned when none
    answers, unless ``engine=system`` forbids it. Raises :class:`EngineError` (exit 3) otherwise.
    """
    if settings.engine != "private":
        engine_or_reason = find_system_engine(lambda: ensure_tools(settings, commands, notify), commands)
        if isinstance(engine_or_reason, Engine):
            return engine_or_reason
        if settings.engine == "system":
            raise EngineError(
                engine_or_reason, hint="start it, or let a private engine be made: --engine=auto"
            )
        notify(f"{engine_or_reason}: using the private engine")
    from buildkit_tasks.host.engine.private import ensure_private_engine

    return ensure_private_engine(settings, commands, notify)


def ensure_clients(settings: Settings, commands: CommandRunner, notify: Notify) -> Engine:
    """The user's engine, or its client programs alone: no daemon is started for a BuildKit elsewhere."""
    engine_or_reason = find_system_engine(lambda: ensure_tools(settings, commands, notify), commands)
    return (
        engine_or_reason
        if isinstance(engine_or_reason, Engine)
        else engine_without_daemon(ensure_tools(settings, commands, notify))
    )


def find_clients(settings: Settings, commands: CommandRunner) -> Engine | str:
    """What :func:`ensure_clients` gives if nothing may be fetched, or why there is nothing."""
    tools = find_tools(settings)
    if tools is None:
        return "there is no docker with buildx here"
    engine_or_reason = find_system_engine(lambda: tools, commands)
    return engine_or_reason if isinstance(engine_or_reason, Engine) else engine_without_daemon(tools)


def find_engine(settings: Settings, commands: CommandRunner) -> Engine | str:
    """The engine that would be used if nothing may be fetched or started, or why there is none."""
    from buildkit_tasks.host.engine.private import find_private_engine

    tools = find_tools(settings)
    if tools is None:
        return "there is no docker with buildx here"
    engine_or_reason: Engine | str = "no Docker daemon is asked for"
    if settings.engine != "private":
        engine_or_reason = find_system_engine(lambda: tools, commands)
    if isinstance(engine_or_reason, Engine) or settings.engine == "system":
        return engine_or_reason
    return find_private_engine(settings, tools, commands) or f"{engine_or_reason}, and no private engine runs"
