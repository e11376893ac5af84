"""Build, verify, run and release container images for several platforms.

The names in ``__all__`` are the public API, described in ``docs/api.md``. Each is imported on first use (PEP
562); importing the package imports no other module. ``build``, ``run`` and ``verify`` are also the names of
subpackages: the attribute is the function, and the subpackage is imported by its full name (``from
buildkit_tasks.run.service import ...``).
"""

TYPE_CHECKING = False  # type checkers take it for that of `typing`, which would be imported
if TYPE_CHECKING:
    from buildkit_tasks.cli.declared_task import TaskFailed
    from buildkit_tasks.config.settings import ImageSettings, Settings, SmokeCheck, load_settings
    from buildkit_tasks.errors import (
        BuilderError,
        BuildFailed,
        BuildkitTasksError,
        CacheError,
        CheckFailed,
        DeadlineExceeded,
        EmulatorError,
        EngineError,
        Interrupted,
        LimitExceeded,
        MalformedImage,
        RegistryError,
        SettingsError,
        UsageError,
    )
    from buildkit_tasks.pipeline.api import BuildOptions, build, push, run, verify
    from buildkit_tasks.pipeline.pipeline import Pipeline
    from buildkit_tasks.platforms.platform import Platform
    from buildkit_tasks.report.model import (
        BuilderSummary,
        BuildResult,
        BuiltPlatform,
        Check,
        EmulatorSummary,
        EngineSummary,
        ImageReport,
        ImagesReport,
        MatrixReport,
        NamedTag,
        NodeSummary,
        Outcome,
        Output,
        PlatformSetup,
        PlatformVerdict,
        PushResult,
        Report,
        RunReport,
        RunResult,
        SetupReport,
        VerifyReport,
        to_document,
    )
    from buildkit_tasks.system.notify import Notify
    from buildkit_tasks.tasks import ns

    __version__: str

__all__ = [
    "BuildFailed",
    "BuildOptions",
    "BuildResult",
    "BuilderError",
    "BuilderSummary",
    "BuildkitTasksError",
    "BuiltPlatform",
    "CacheError",
    "Check",
    "CheckFailed",
    "DeadlineExceeded",
    "EmulatorError",
    "EmulatorSummary",
    "EngineError",
    "EngineSummary",
    "ImageReport",
    "ImageSettings",
    "ImagesReport",
    "Interrupted",
    "LimitExceeded",
    "MalformedImage",
    "MatrixReport",
    "NamedTag",
    "NodeSummary",
    "Notify",
    "Outcome",
    "Output",
    "Pipeline",
    "Platform",
    "PlatformSetup",
    "PlatformVerdict",
    "PushResult",
    "RegistryError",
    "Report",
    "RunReport",
    "RunResult",
    "Settings",
    "SettingsError",
    "SetupReport",
    "SmokeCheck",
    "TaskFailed",
    "UsageError",
    "VerifyReport",
    "__version__",
    "build",
    "load_settings",
    "ns",
    "push",
    "run",
    "to_document",
    "verify",
]

if not TYPE_CHECKING:  # a type checker would accept every name
    import sys

    _MODULES = {
        "cli.declared_task": ["TaskFailed"],
        "config.settings": ["ImageSettings", "Settings", "SmokeCheck", "load_settings"],
        "pipeline.api": ["BuildOptions", "build", "push", "run", "verify"],
        "pipeline.pipeline": ["Pipeline"],
        "platforms.platform": ["Platform"],
        "system.notify": ["Notify"],
        "tasks": ["ns"],
    }
    _MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

    def __getattr__(name: str) -> object:
        """Import a name of the public API."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        if name == "__version__":
            value = import_module("importlib.metadata").version("buildkit-tasks")
        else:
            value = getattr(import_module(f"{__name__}.{_find_module(name)}"), name)
        globals()[name] = value
        return value

    def _find_module(name: str) -> str:
        from buildkit_tasks import errors

        return _MODULE_OF.get(name) or ("errors" if name in errors.__all__ else "report.model")

    def __dir__() -> list[str]:
        return __all__

    class _Package(type(sys)):
        """A package in which a subpackage never replaces the function of the same name."""

        def __setattr__(self, name: str, value: object) -> None:
            """Set an attribute, but not when importlib binds ``build``, ``run`` or ``verify``."""
            if not (name in _MODULE_OF and isinstance(value, type(sys))):
                super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Package
