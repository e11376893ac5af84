"""The results of each step, as frozen values, and the JSON documents that are made of them.

The fields are the keys of the documents, which programs read: a key is never removed or renamed without
a new :data:`SCHEMA_VERSION`.
"""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "HIDDEN_FIELDS",
    "OPTIONAL_KEYS",
    "REPORT_NAMES",
    "SCHEMA_VERSION",
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
    "add_schema_version",
    "report_name",
    "to_document",
    "to_json_value",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison: what was expected, what was found, and in which file and layer.

    A check that is ok may be a ``warning``. ``hint`` is what to do about one that is not, if that is known.
    """

    name: str
    ok: bool
    warning: bool = False
    expected: str = ""
    actual: str = ""
    path: str = ""
    layer: str = ""
    message: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformVerdict:
    """All checks of one platform of an image; ``digest`` is that of its manifest."""

    platform: str
    digest: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Return True if every check is ok, and there is one."""
        return bool(self.checks) and all(check.ok for check in self.checks)

    @property
    def warnings(self) -> tuple[Check, ...]:
        """Return the checks that are ok and warnings."""
        return tuple(check for check in self.checks if check.ok and check.warning)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The checks of an image, for each platform that was expected or found."""

    subject: str
    digest: str
    platforms: tuple[PlatformVerdict, ...]

    @property
    def ok(self) -> bool:
        """Return True if every platform is ok, and there is one."""
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
    """The emulator of a run: path of the interpreter, version, CPU model."""

    path: str
    version: str = ""
    cpu: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run of one platform of an image; ``seconds`` is wall time from start to exit.

    ``command`` is what was run, as it was written, and empty for the image's own command. ``cpu`` is the
    CPU model that was requested, empty for the default. ``limited`` means that a limit on processes, memory
    or output ended the run.
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
    cpu: str = ""
    limited: bool = False
    message: str = ""

    @property
    def ok(self) -> bool:
        """Return True if the run passed."""
        return self.outcome is Outcome.PASSED

    @property
    def has_started(self) -> bool:
        """Return True if the kernel started the program, natively or under an emulator."""
        return self.exit_code is not None and self.outcome is not Outcome.NOT_REGISTERED


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """The runs of an image on every requested platform."""

    subject: str
    results: tuple[RunResult, ...]

    @property
    def ok(self) -> bool:
        """Return True if every run passed, and there is one."""
        return bool(self.results) and all(result.ok for result in self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSummary:
    """The Docker engine in use: ``kind`` is system or private, the image ``store`` containerd or graph."""

    kind: str
    endpoint: str
    version: str
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSummary:
    """One node of a builder: the platforms that it builds, and its driver's options.

    ``native`` is the platform of its machine, if known; ``fixed`` the platforms that only this node
    builds; ``status`` and ``error`` are quoted from buildx.
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
    """The buildx builder in use; ``reason`` is why its driver was chosen."""

    name: str
    driver: str
    nodes: tuple[NodeSummary, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformSetup:
    """How programs of one platform run here: natively or through a binfmt_misc handler."""

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
    """The engine, the builder, and how programs of each platform run."""

    engine: EngineSummary
    builder: BuilderSummary
    platforms: tuple[PlatformSetup, ...]

    @property
    def ok(self) -> bool:
        """Return True if every platform runs, and there is one."""
        return bool(self.platforms) and all(row.runs for row in self.platforms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where a build was exported to: a file or directory (``dest``), or an image reference (``ref``).

    ``unpacked`` means that ``dest`` is a directory although the type is one of archives. ``only_platform`` is
    set if the image of the reference has no other platform of the build.
    """

    type: str
    dest: str | None = None
    ref: str | None = None
    unpacked: bool = False
    only_platform: str = ""

    @property
    def image_name(self) -> str:
        """Return the name by which every task opens the image; "" if this is not an image that can be read.

        A ``tar`` and a ``local`` output are files, and ``image`` without a push is in the builder's store.
        """
        if self.dest and self.type in _ARCHIVE_TRANSPORTS:
            return f"{'oci' if self.unpacked else _ARCHIVE_TRANSPORTS[self.type]}:{self.dest}"
        if self.ref and self.type in _REFERENCE_PREFIXES:
            return _REFERENCE_PREFIXES[self.type] + self.ref
        return ""


# By an output's type: buildx writes both types unpacked as an OCI layout.
_ARCHIVE_TRANSPORTS = {"oci": "oci-archive", "docker": "docker-archive"}
_REFERENCE_PREFIXES = {"docker": "docker-daemon:", "registry": "docker://"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlatform:
    """One platform of a build, the digest of its manifest if the output has one, and the node that built it.

    ``native`` means that the node's machine is of this platform, and did not emulate it.
    """

    platform: str
    digest: str = ""
    node: str = ""
    native: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTag:
    """A tag, the digest that it has now, and its previous digest, empty for a new tag."""

    ref: str
    digest: str
    previous: str = ""
    moved: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """A push by digest, and the tags that were set once the digest was verified and run.

    ``verify`` and ``run`` are None if they were not requested; if one fails, no tag is set. ``seconds``
    is wall time.
    """

    digest: str
    tags: tuple[NamedTag, ...]
    platforms: tuple[BuiltPlatform, ...]
    verify: VerifyReport | None = None
    run: RunReport | None = None
    seconds: float = 0.0

    @property
    def is_verified(self) -> bool:
        """Return True if each platform of this digest was verified and run, and passed."""
        if self.verify is None or self.run is None or self.verify.digest != self.digest:
            return False
        verified = {row.platform for row in self.verify.platforms}
        verified_and_run = verified & {row.platform for row in self.run.results}
        return self.verify.ok and self.run.ok and verified_and_run >= {row.platform for row in self.platforms}

    @property
    def ok(self) -> bool:
        """Return True if the tags are set, and the digest was verified and run if that was requested."""
        return bool(self.tags) and (self.is_verified or (self.verify is None and self.run is None))


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildResult:
    """A build; ``bases`` is registry or standin, ``seconds`` wall time.

    ``pushed`` is None unless the build pushed a whole image: a part of one is not tagged.
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
    """The whole pipeline; a step that was not reached is None, and ``error`` says why."""

    setup: SetupReport | None = None
    build: BuildResult | None = None
    verify: VerifyReport | None = None
    run: RunReport | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """Return True if all four steps are ok, each for the same platforms."""
        steps = (self.setup, self.build, self.verify)
        if self.error or self.run is None or not all(step is not None and step.ok for step in steps):
            return False
        platform_sets = {
            frozenset(row.platform for row in step.platforms) for step in steps if step is not None
        }
        return self.run.ok and platform_sets == {frozenset(row.platform for row in self.run.results)}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReport:
    """One of several images; a step that was not reached is None, and ``error`` says why.

    ``steps`` are those that the task has: ``verify-arch`` of several images only verifies. ``tags`` were set
    in registries after the image was verified and run. ``push`` is the result of ``push-multiarch``.
    """

    name: str
    build: BuildResult | None = None
    verify: VerifyReport | None = None
    run: RunReport | None = None
    tags: tuple[NamedTag, ...] = ()
    error: str = ""
    push: PushResult | None = None
    steps: tuple[str, ...] = ("build", "verify", "run")

    @property
    def ok(self) -> bool:
        """Return True if each of the steps is ok, all for the same platforms."""
        reports = [getattr(self, step) for step in self.steps]
        if self.error or not all(report is not None and report.ok for report in reports):
            return False
        return len({_platform_set(report) for report in reports}) <= 1


def _platform_set(report: BuildResult | VerifyReport | RunReport | PushResult) -> frozenset[str]:
    rows = report.results if isinstance(report, RunReport) else report.platforms
    return frozenset(row.platform for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesReport:
    """Several images; ``setup`` is None unless requested, ``error`` is what failed before the first image."""

    setup: SetupReport | None = None
    images: tuple[ImageReport, ...] = ()
    error: str = ""

    @property
    def ok(self) -> bool:
        """Return True if every image is ok, and there is one."""
        setup_ok = self.setup is None or self.setup.ok
        return setup_ok and not self.error and bool(self.images) and all(image.ok for image in self.images)


def has_rows(report: Report) -> bool:
    """Return False for the report of a pipeline that stopped before any platform or image was reached."""
    match report:
        case MatrixReport():
            return report.setup is not None
        case ImagesReport():
            return report.setup is not None or bool(report.images)
        case _:
            return True


Report = SetupReport | BuildResult | VerifyReport | RunReport | MatrixReport | ImagesReport | PushResult

SCHEMA_VERSION = 1  # of every JSON document; it changes if a key is removed or changes its meaning

REPORT_NAMES: dict[type, str] = {
    SetupReport: "setup",
    BuildResult: "build",
    VerifyReport: "verify",
    RunReport: "run",
    MatrixReport: "arch-matrix",
    ImagesReport: "images",
    PushResult: "push",
}

# Fields that are not keys: the message of a check or run says the same, or other keys do.
HIDDEN_FIELDS = ("warning", "limited", "unpacked", "only_platform", "push", "steps")

# Keys that a document does not always have, each with the field that must have a value.
OPTIONAL_KEYS: dict[type, dict[str, str]] = {
    BuildResult: {"pushed": "pushed"},
    BuiltPlatform: {"node": "node", "native": "node"},
    Check: {"hint": "hint"},
    Output: {"dest": "dest", "ref": "ref"},
    RunResult: {"cpu": "cpu"},
}


def report_name(report: Report) -> str:
    """Return the name of the task or step that a report is of."""
    return REPORT_NAMES[type(report)]


def to_document(report: Report) -> dict[str, Any]:
    """Return the JSON document of a report: the version of its schema, ``ok``, then its fields."""
    return add_schema_version(to_json_value(report))


def add_schema_version(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with ``schema_version`` as its first key."""
    return {"schema_version": SCHEMA_VERSION, **document}


def to_json_value(value: Any) -> Any:
    """Return a report, or a part of one, in the types of JSON."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_json_value(item) for item in value]
    return dict(_iter_items(value)) if dataclasses.is_dataclass(value) else value


def _iter_items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(getattr(type(value), "ok", None), property):
        yield "ok", value.ok
    optional_keys = OPTIONAL_KEYS.get(type(value), {})
    for field in dataclasses.fields(value):
        required_field = optional_keys.get(field.name)
        if field.name in HIDDEN_FIELDS or (required_field and not getattr(value, required_field)):
            continue
        item = to_json_value(getattr(value, field.name))
        is_warning = field.name == "message" and isinstance(value, Check) and value.warning
        yield field.name, f"warning: {item}" if is_warning else item
