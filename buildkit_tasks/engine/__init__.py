"""The Docker engine: an existing one where one answers, else a private one."""

from __future__ import annotations

from buildkit_tasks.commands import Runner
from buildkit_tasks.debian import Tell
from buildkit_tasks.engine.daemon import Engine, find_system_engine
from buildkit_tasks.errors import EngineError
from buildkit_tasks.settings import Settings

__all__ = ["Engine", "ensure_engine"]


def ensure_engine(settings: Settings, run: Runner, tell: Tell) -> Engine:
    """The engine to use, started if need be.

    An existing daemon is preferred and never touched; a private one is provisioned when none
    answers, unless ``engine=system`` forbids it. Raises :class:`EngineError` (exit 3) otherwise.
    """
    if settings.engine != "private":
        found = find_system_engine(settings, run, tell)
        if isinstance(found, Engine):
            return found
        if settings.engine == "system":
            raise EngineError(found, hint="start it, or let a private engine be made: --engine=auto")
        tell(f"{found}: using the private engine")
    from buildkit_tasks.engine.private import ensure_private_engine  # noqa: PLC0415 - often not needed

    return ensure_private_engine(settings, run, tell)
