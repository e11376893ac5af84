"""What each step of the line gives: frozen values, with the stable keys that programs read.

:func:`document` turns any of them into the JSON document of the interface; tables, JUnit and
Markdown are made from the same values in ``report.py``.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BuildResult",
    "BuilderSummary",
    "BuiltPlatform",
    "Check",
    "EmulatorSummary",
    "EngineSummary",
    "ImageReport",
    "ImagesReport",
    "MatrixReport",
    "NamedTag",
    "NodeSummary",
    "Outcome",
    "Output",
    "PlatformSetup",
    "PlatformVerdict",
    "PushResult",
    "Report",
    "RunReport",
    "RunResult",
    "SetupReport",
    "VerifyReport",
    "to_document",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was compared: what was expected, what was found, and where.

    One that holds may still be a ``warning``: something that is worth a look and proves nothing.
    """

    name: str
    ok: bool
    warning: bool = False
    expected: str = ""
    actual: str = ""
    path: str = ""
    layer: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformVerdict:
    """All checks of one platform of an image; ``digest`` is its manifest's."""

    platform: str
    digest: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check held."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """The checks that hold and are worth a look all the same."""
        return tuple(check for check in self.checks if check.ok and check.warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The verdict on an image: every platform that was expected or found."""

    subject: str
    digest: str
    platforms: tuple[PlatformVerdict, ...]

    @property
    def ok(self) -> bool:
        """Whether every platform held, and there was one."""
        return bool(self.platforms) and all(verdict.ok for verdict in self.platforms)


class Outcome(enum.StrEnum):
    """How one platform's run ended."""

    PASSED = "passed"
    FAILED = "failed"
    WRONG_ARCH = "wrong-arch"
    NOT_REGISTERED = "not-registered"
    EMULATOR_CRASH = "emulator-crash"
    ILLEGAL_INSTRUCTION = "illegal-instruction"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorSummary:
    """The emulator that ran a guest: interpreter path, version, CPU model."""

    path: str
    version: str = ""
    cpu: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What one platform's image did; ``seconds`` is wall time from start to exit.

    ``command`` is what was run, as it was written, and empty for what the image says. ``limited``
    tells that a cap on processes, memory or output ended it.
    """

    platform: str
    outcome: Outcome
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    runner: str = "docker"
    emulated: bool = False
    emulator: EmulatorSummary | None = None
    digest: str = ""
    command: str = ""
    limited: bool = False
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did what was expected."""
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The runs of an image on every platform asked for."""

    subject: str
    results: tuple[RunResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every run passed, and there was one."""
        return bool(self.results) and all(result.ok for result in self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSummary:
    """The Docker engine in use; ``kind`` is system or private, ``store`` containerd or graph."""

    kind: str
    endpoint: str
    version: str
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """One node of a builder: the platforms that it builds, and its driver's options.

    ``native`` is the platform of its machine, where that is known; ``fixed`` the platforms that are
    built there and nowhere else; ``status`` and ``error`` are buildx's words.
    """

    name: str
    endpoint: str
    status: str = ""
    version: str = ""
    native: str = ""
    platforms: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    driver_opt: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderSummary:
    """The buildx builder in use, and in ``reason`` why its driver was chosen."""

    name: str
    driver: str
    nodes: tuple[NodeSummary, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSetup:
    """How one platform's programs run here: natively or through a binfmt_misc handler."""

    platform: str
    native: bool
    node: str = ""
    handler: str = ""
    interpreter: str = ""
    flags: str = ""
    version: str = ""
    runs: bool = False
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupReport:
    """Engine, builder and emulators, ready or not."""

    engine: EngineSummary
    builder: BuilderSummary
    platforms: tuple[PlatformSetup, ...]

    @property
    def ok(self) -> bool:
        """Whether every platform runs, and there was one."""
        return bool(self.platforms) and all(row.runs for row in self.platforms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where a build went: a file or folder (``dest``) or an image reference (``ref``)."""

    type: str
    dest: str | None = None
    ref: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlatform:
    """One platform of a build, the digest of its manifest where the output has one, and who built it.

    ``native`` tells that it was the machine of that node's own platform, and not emulated.
    """

    platform: str
    digest: str = ""
    node: str = ""
    native: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTag:
    """A tag, the digest that it names now, and what it named before: "" for nothing."""

    ref: str
    digest: str
    previous: str = ""
    moved: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What a push named, once its digest was proved; a proof that was not asked for is None.

    ``seconds`` is wall time. Where a proof failed, no tag was named.
    """

    digest: str
    tags: tuple[NamedTag, ...]
    platforms: tuple[BuiltPlatform, ...]
    verify: VerifyReport | None = None
    run: RunReport | None = None
    seconds: float = 0.0

    @property
    def is_verified(self) -> bool:
        """Whether both proofs were made, of this digest and of each of its platforms, and held."""
        if self.verify is None or self.run is None or self.verify.digest != self.digest:
            return False
        verified = {row.platform for row in self.verify.platforms}
        verified_and_run = verified & {row.platform for row in self.run.results}
        return self.verify.ok and self.run.ok and verified_and_run >= {row.platform for row in self.platforms}

    @property
    def ok(self) -> bool:
        """Whether the digest has its names, and was proved if it was to be."""
        return bool(self.tags) and (self.is_verified or (self.verify is None and self.run is None))


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """What a build made; ``bases`` is registry or standin, ``seconds`` wall time.

    ``pushed`` is the proof and the naming of what it pushed, and None where it pushed nothing or a part.
    """

    digest: str
    outputs: tuple[Output, ...]
    platforms: tuple[BuiltPlatform, ...]
    builder: str
    bases: str
    seconds: float
    ok: bool = True
    pushed: PushResult | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixReport:
    """The whole line, as far as it got; a step that was not reached is None."""

    setup: SetupReport | None = None
    build: BuildResult | None = None
    verify: VerifyReport | None = None
    run: RunReport | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether all four steps held, each for the same platforms."""
        steps = (self.setup, self.build, self.verify)
        if self.error or self.run is None or not all(step is not None and step.ok for step in steps):
            return False
        platform_sets = {
            frozenset(row.platform for row in step.platforms) for step in steps if step is not None
        }
        return self.run.ok and platform_sets == {frozenset(row.platform for row in self.run.results)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """One of several images, as far as it got; a step that was not reached is None.

    ``tags`` are the names that it was given in registries, once it held and ran there.
    """

    name: str
    build: BuildResult | None = None
    verify: VerifyReport | None = None
    run: RunReport | None = None
    tags: tuple[NamedTag, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was built, held and ran, each for the same platforms."""
        if self.error or self.build is None or self.verify is None or self.run is None:
            return False
        platform_sets = {
            frozenset(row.platform for row in step.platforms) for step in (self.build, self.verify)
        }
        run_platforms = frozenset(row.platform for row in self.run.results)
        return self.build.ok and self.verify.ok and self.run.ok and platform_sets == {run_platforms}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesReport:
    """Several images, each by itself; ``setup`` is None where it was not asked for.

    With an ``error`` there was none to begin with.
    """

    setup: SetupReport | None = None
    images: tuple[ImageReport, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether every image holds, and there was one."""
        setup_ok = self.setup is None or self.setup.ok
        return setup_ok and not self.error and bool(self.images) and all(image.ok for image in self.images)


Report = SetupReport | BuildResult | VerifyReport | RunReport | MatrixReport | ImagesReport | PushResult


_OMITTED_FIELDS = ("warning", "limited")  # fields that are no keys: the message says the same in words


def to_document(report: Any) -> Any:
    """The JSON-ready form of a report: its fields, ``ok``, and no key that holds nothing new.

    Keys are the interface's; an output has either ``dest`` or ``ref``, never an empty one, and the
    message of a warning says that it is one, as that of a run says which limit ended it.
    """
    if isinstance(report, enum.Enum):
        return report.value
    if isinstance(report, tuple):
        return [to_document(item) for item in report]
    if not dataclasses.is_dataclass(report):
        return report
    return dict(_iter_items(report))


def _iter_items(report: Any) -> Iterator[tuple[str, Any]]:
    if hasattr(type(report), "ok") and isinstance(type(report).ok, property):
        yield "ok", report.ok
    for field in dataclasses.fields(report):
        value = getattr(report, field.name)
        if field.name in _OMITTED_FIELDS or (value is None and field.name in ("dest", "ref", "pushed")):
            continue
        if field.name in ("node", "native") and isinstance(report, BuiltPlatform) and not report.node:
            continue
        is_warning = field.name == "message" and isinstance(report, Check) and report.warning
        yield field.name, f"warning: {value}" if is_warning else to_document(value)
