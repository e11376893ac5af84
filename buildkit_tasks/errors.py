"""All exceptions of the package, each with the exit status of a task that fails with it.

The exit codes are part of the public interface: 1 a check, build or run failed; 2 usage or settings;
3 environment (engine, emulator, builder); 4 registry; 5 a limit or a full disk; 124 timeout;
130 interrupted. :mod:`buildkit_tasks.cli` turns them into the process status.
"""

from __future__ import annotations

from buildkit_tasks.hints import format_hint
from buildkit_tasks.printable import escape_message

__all__ = [
    "BuildFailed",
    "BuilderError",
    "BuildkitTasksError",
    "CacheError",
    "CheckFailed",
    "DeadlineExceeded",
    "EmulatorError",
    "EngineError",
    "Interrupted",
    "LimitExceeded",
    "MalformedImage",
    "RegistryError",
    "SettingsError",
    "UsageError",
]


class BuildkitTasksError(Exception):
    """Base class: a message, the platform that it is about, and a hint, which is printed after ``try:``.

    ``str(error)`` is printable, wherever it is shown; ``message`` has the text as it is.
    """

    exit_code = 1

    def __init__(self, message: str, *, platform: object = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.platform = platform
        self.hint = hint

    def __str__(self) -> str:
        prefix = f"{self.platform}: " if self.platform is not None else ""
        return escape_message(f"{prefix}{self.message}{format_hint(self.hint)}")


class CheckFailed(BuildkitTasksError):
    """A verification or a run failed."""


class BuildFailed(BuildkitTasksError):
    """``docker buildx build`` failed; ``exit_code`` is its exit status."""

    def __init__(
        self, message: str, *, exit_code: int = 1, platform: object = None, hint: str | None = None
    ) -> None:
        super().__init__(message, platform=platform, hint=hint)
        self.exit_code = exit_code


class MalformedImage(BuildkitTasksError):
    """Part of an image, or a binary in it, is not well-formed."""


class UsageError(BuildkitTasksError):
    """The command line is invalid."""

    exit_code = 2


class SettingsError(UsageError):
    """A settings file or an environment variable has an unknown key or an invalid value."""


class EngineError(BuildkitTasksError):
    """No Docker engine answers, or it lacks a required feature."""

    exit_code = 3


class EmulatorError(BuildkitTasksError):
    """Programs of a platform cannot be run on this machine."""

    exit_code = 3


class CacheError(BuildkitTasksError):
    """The user cannot write to the cache directory, as without a home directory."""

    exit_code = 3


class BuilderError(BuildkitTasksError):
    """The buildx builder is missing, or does not match the settings."""

    exit_code = 3


class RegistryError(BuildkitTasksError):
    """A registry cannot be reached, or rejected a request."""

    exit_code = 4


class LimitExceeded(BuildkitTasksError):
    """A limit was exceeded, or a disk is full."""

    exit_code = 5


class DeadlineExceeded(BuildkitTasksError):
    """An operation exceeded its timeout and was stopped."""

    exit_code = 124


class Interrupted(BuildkitTasksError):
    """The process received SIGINT (Ctrl-C) or SIGTERM."""

    exit_code = 130
