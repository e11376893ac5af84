"""Every exception of the package and the exit code that it ends with.

The codes are part of the interface: 1 a check, build or run failed; 2 usage or settings;
3 environment (engine, emulator, builder); 4 registry; 5 a limit or a full disk; 124 time-out;
130 interrupted. They are turned into a process status once, at the edge (``tasks.py``).
"""

from __future__ import annotations

__all__ = [
    "BuildFailed",
    "BuilderError",
    "BuildkitTasksError",
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
    """What happened, for which platform, and the next command to type."""

    exit_code = 1

    def __init__(self, message: str, *, platform: object = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.platform = platform
        self.hint = hint

    def __str__(self) -> str:
        prefix = f"{self.platform}: " if self.platform is not None else ""
        suffix = f"\n  try: {self.hint}" if self.hint else ""
        return f"{prefix}{self.message}{suffix}"


class CheckFailed(BuildkitTasksError):
    """A verification or a run did not hold."""


class BuildFailed(BuildkitTasksError):
    """``docker buildx build`` failed; its own exit status is passed on."""

    def __init__(
        self, message: str, *, exit_code: int = 1, platform: object = None, hint: str | None = None
    ) -> None:
        super().__init__(message, platform=platform, hint=hint)
        self.exit_code = exit_code


class MalformedImage(BuildkitTasksError):
    """Bytes that claim to be part of an image, or of a binary in it, and are not well-formed."""


class UsageError(BuildkitTasksError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class SettingsError(UsageError):
    """A settings file or an environment variable holds an unknown key or a bad value."""


class EngineError(BuildkitTasksError):
    """No Docker engine answers, or it cannot do what is asked."""

    exit_code = 3


class EmulatorError(BuildkitTasksError):
    """A platform's programs do not run here."""

    exit_code = 3


class BuilderError(BuildkitTasksError):
    """The buildx builder is missing, or is not what was asked for."""

    exit_code = 3


class RegistryError(BuildkitTasksError):
    """A registry could not be reached, or refused."""

    exit_code = 4


class LimitExceeded(BuildkitTasksError):
    """A cap was passed or a disk is full."""

    exit_code = 5


class DeadlineExceeded(BuildkitTasksError):
    """Something took longer than it may; it was ended."""

    exit_code = 124


class Interrupted(BuildkitTasksError):
    """The user pressed Ctrl-C, or the process was asked to end."""

    exit_code = 130
