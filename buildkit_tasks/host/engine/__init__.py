"""Docker engines: an existing one if it answers, else a private one."""

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

_NO_TOOLS = "docker with buildx is not installed"


def ensure_engine(settings: Settings, commands: CommandRunner, notify: Notify) -> Engine:
    """Return the engine to use, and start a private one if no daemon answers.

    An existing daemon is preferred and never changed. Raise :class:`EngineError` (exit 3) if none answers
    and ``engine=system`` rules out a private one, or it cannot be started.
    """
    if settings.engine != "private":
        engine_or_reason = find_system_engine(lambda: ensure_tools(settings, commands, notify), commands)
        if isinstance(engine_or_reason, Engine):
            return engine_or_reason
        if settings.engine == "system":
            raise EngineError(engine_or_reason, hint="start it, or use a private engine: --engine=auto")
        notify(f"{engine_or_reason}: using the private engine")
    from buildkit_tasks.host.engine.private import ensure_private_engine

    return ensure_private_engine(settings, commands, notify)


def ensure_clients(settings: Settings, commands: CommandRunner, notify: Notify) -> Engine:
    """Return the user's engine, or only client programs: a remote BuildKit needs no daemon here."""
    engine_or_reason = find_system_engine(lambda: ensure_tools(settings, commands, notify), commands)
    if isinstance(engine_or_reason, Engine):
        return engine_or_reason
    return engine_without_daemon(ensure_tools(settings, commands, notify))


def find_clients(settings: Settings, commands: CommandRunner) -> Engine | str:
    """Return what :func:`ensure_clients` would without downloads, or why there is nothing."""
    tools = find_tools(settings)
    if tools is None:
        return _NO_TOOLS
    engine_or_reason = find_system_engine(lambda: tools, commands)
    return engine_or_reason if isinstance(engine_or_reason, Engine) else engine_without_daemon(tools)


def find_engine(settings: Settings, commands: CommandRunner) -> Engine | str:
    """Return the engine that is usable without downloading or starting one, or why there is none."""
    from buildkit_tasks.host.engine.private import find_private_engine

    tools = find_tools(settings)
    if tools is None:
        return _NO_TOOLS
    engine_or_reason: Engine | str = "the settings select the private engine"
    if settings.engine != "private":
        engine_or_reason = find_system_engine(lambda: tools, commands)
    if isinstance(engine_or_reason, Engine) or settings.engine == "system":
        return engine_or_reason
    private_engine = find_private_engine(settings, tools, commands)
    return private_engine or f"{engine_or_reason}, and no private engine is running"
