"""Docker engines: an existing one if it answers, else a private one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.errors import EngineError
from buildkit_tasks.host.engine.daemon import (
    ClientTools,
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

    An existing daemon is preferred and never changed. Raise :class:`EngineError` (exit 3) if none can be used
    and ``engine=system`` rules out a private one, or it cannot be started.
    """
    from buildkit_tasks.host.engine.private import ensure_private_engine, private_engine_obstacle

    if settings.engine != "private":
        engine = find_system_engine(lambda: ensure_tools(settings, commands, notify), commands)
        if isinstance(engine, Engine):
            return engine
        if settings.engine == "system":
            raise _no_engine_error(engine, settings)
        if obstacle := private_engine_obstacle(settings):
            raise _join_errors(engine, obstacle)
        notify(f"{engine.message}: using the private engine")
    return ensure_private_engine(settings, commands, notify)


def ensure_clients(settings: Settings, commands: CommandRunner, notify: Notify) -> Engine:
    """Return the user's engine, or only client programs: a remote BuildKit needs no daemon here."""
    engine = find_system_engine(lambda: ensure_tools(settings, commands, notify), commands)
    if isinstance(engine, Engine):
        return engine
    return engine_without_daemon(ensure_tools(settings, commands, notify))


def find_clients(settings: Settings, commands: CommandRunner) -> Engine | EngineError:
    """Return what :func:`ensure_clients` would without downloads, or why there is nothing."""
    tools = find_tools(settings)
    if tools is None:
        return EngineError(_NO_TOOLS, hint="inv setup-builder")
    engine = find_system_engine(lambda: tools, commands)
    return engine if isinstance(engine, Engine) else engine_without_daemon(tools)


def find_engine(settings: Settings, commands: CommandRunner) -> Engine | EngineError:
    """Return the engine that is usable without downloading or starting one, or why there is none.

    The hint of the error is the command that makes an engine usable.
    """
    from buildkit_tasks.host.engine.private import find_private_engine

    tools = find_tools(settings)
    error = EngineError("the settings select the private engine")
    if settings.engine != "private":
        engine = find_system_engine(lambda: _require_tools(tools), commands)
        if isinstance(engine, Engine):
            return engine
        error = engine
    if settings.engine != "system" and tools is not None:
        private_engine = find_private_engine(settings, tools, commands)
        if private_engine is not None:
            return private_engine
    return _no_engine_error(error, settings, "no private engine is running" if tools else _NO_TOOLS)


def _require_tools(tools: ClientTools | None) -> ClientTools:
    if tools is None:
        raise EngineError(_NO_TOOLS, hint="inv setup-builder")
    return tools


def _no_engine_error(error: EngineError, settings: Settings, no_private_engine: str = "") -> EngineError:
    """Return the error of the user's engine, with the command that sets up another one if it has no hint."""
    from buildkit_tasks.host.engine.private import private_engine_obstacle

    setup = "inv setup-builder" + (" --engine=auto" if settings.engine == "system" else "")
    obstacle = private_engine_obstacle(settings)
    if settings.engine == "system":
        return EngineError(error.message, hint=error.hint or (obstacle.hint if obstacle else setup))
    return _join_errors(error, obstacle or EngineError(no_private_engine, hint=setup))


def _join_errors(error: EngineError, other: EngineError) -> EngineError:
    """Return the first error if it has a hint, else both with the hint of the second."""
    return error if error.hint else EngineError(f"{error.message}, and {other.message}", hint=other.hint)
