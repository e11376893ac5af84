"""Declare faults, plant them, and compare the findings of ``verify`` with the declared ones.

A fault is a function that returns an image with one thing wrong, and its control: the same image
without the fault. ``verify`` checks both.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from buildkit_tasks.oci.image import Image
from buildkit_tasks.platforms import parse_platforms
from buildkit_tasks.report.model import Check, VerifyReport
from buildkit_tasks.verify import VerifyOptions, verify
from buildkit_tasks.verify.host_match import read_cluster_nodes
from tests.planted_faults.bases import Samples
from tests.support.oci import MemoryImage

SUBJECT = "image.tar"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A check that fails, or passes with a warning, for a platform and maybe a path."""

    check: str
    platform: str
    path: str = ""
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class VerifyRequest:
    """The options of ``verify-arch`` for an image."""

    platforms: Sequence[str] = ()
    hosts: Sequence[str] = ()
    nodes: str = ""
    parity: str = "warn"
    allow_foreign: Sequence[str] = ()

    def to_arguments(self, directory: Path) -> list[str]:
        """Return the command-line options; a file of nodes is written to the directory."""
        arguments = [
            f"--platform={','.join(self.platforms)}" if self.platforms else "",
            f"--for={','.join(self.hosts)}" if self.hosts else "",
            f"--for-nodes={self._write_nodes(directory)}" if self.nodes else "",
            f"--parity={self.parity}" if self.parity != "warn" else "",
            *(f"--allow-foreign={pattern}" for pattern in self.allow_foreign),
        ]
        return [argument for argument in arguments if argument]

    def verify(self, image: MemoryImage) -> VerifyReport:
        """Verify an image in memory."""
        hosts = dict.fromkeys(parse_platforms(self.hosts), 0)
        if self.nodes:
            with tempfile.TemporaryDirectory() as directory:
                hosts |= read_cluster_nodes(self._write_nodes(Path(directory)))
        options = VerifyOptions(allow_foreign=tuple(self.allow_foreign), parity=self.parity, hosts=hosts)
        return verify(image, parse_platforms(self.platforms), SUBJECT, options)

    def _write_nodes(self, directory: Path) -> Path:
        path = directory / "nodes.json"
        path.write_text(self.nodes)
        return path


@dataclass(frozen=True)
class PlantedImage:
    """An image with a fault, and its control: the same image without it."""

    image: MemoryImage
    control: MemoryImage
    request: VerifyRequest = VerifyRequest()


Planter = Callable[[Samples], PlantedImage]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and the findings and parts of messages that ``verify`` must report.

    A fault without expected findings is a valid image. ``layer`` is the index of a layer that must be
    reported. With an ``exit_status``, a test also runs the task ``verify-arch`` and compares its status.
    """

    name: str
    text: str
    plant: Planter
    expected: tuple[Finding, ...]
    messages: tuple[str, ...] = ()
    layer: int | None = None
    exit_status: int | None = None


DECLARED: list[Fault] = []


def declare_fault(
    text: str,
    *expected: Finding,
    message: str | Sequence[str] = (),
    layer: int | None = None,
    exit_status: int | None = None,
) -> Callable[[Planter], Planter]:
    """Declare the decorated function as a fault, see :class:`Fault`."""

    def declare(plant: Planter) -> Planter:
        assert plant.__name__ not in {fault.name for fault in DECLARED}, plant.__name__
        DECLARED.append(
            Fault(
                name=plant.__name__,
                text=text,
                plant=plant,
                expected=expected,
                messages=(message,) if isinstance(message, str) else tuple(message),
                layer=layer,
                exit_status=exit_status,
            )
        )
        return plant

    return declare


def declare_valid_image(text: str) -> Callable[[Planter], Planter]:
    """Declare a valid image that looks wrong: ``verify`` must report nothing."""
    return declare_fault(text)


@dataclass(frozen=True, kw_only=True)
class ReportedFinding:
    """A finding with its message and hint, the index of its layer, and the number of layers."""

    finding: Finding
    message: str
    hint: str = ""
    layer: int | None = None
    layer_count: int = 0


@dataclass(frozen=True, kw_only=True)
class FaultResult:
    """What ``verify`` reported about an image with a fault, and about its control."""

    fault: Fault
    reported: tuple[ReportedFinding, ...]
    control: tuple[ReportedFinding, ...]

    @property
    def new_findings(self) -> list[ReportedFinding]:
        """The findings that were not reported about the control."""
        known = {(each.finding, each.message) for each in self.control}
        return [each for each in self.reported if (each.finding, each.message) not in known]

    @property
    def problems(self) -> list[str]:
        """The differences from the declaration of the fault."""
        return list(self._iter_problems())

    def _iter_problems(self) -> Iterator[str]:
        failed = [each for each in self.control if not each.finding.warning]
        yield from (f"the control fails: {each.message}" for each in failed)
        new = self.new_findings
        reported, expected = {each.finding for each in new}, set(self.fault.expected)
        messages = "\n".join(f"{each.message}\n{each.hint}" for each in new)
        yield from (f"not reported: {each}" for each in sorted(expected - reported))
        yield from (f"not expected: {each}\n{messages}" for each in sorted(reported - expected))
        missing = [part for part in self.fault.messages if part not in messages]
        yield from (f"no message with {part!r} in\n{messages}" for part in missing)
        if self.fault.layer is not None and self.fault.layer not in {each.layer for each in new}:
            yield f"layer {self.fault.layer} is not in {[each.layer for each in new]}"


def verify_fault(fault: Fault, samples: Samples) -> FaultResult:
    """Plant a fault and verify both images."""
    planted = fault.plant(samples)
    return FaultResult(
        fault=fault,
        reported=tuple(_iter_findings(planted.image, planted.request)),
        control=tuple(_iter_findings(planted.control, planted.request)),
    )


def _iter_findings(image: MemoryImage, request: VerifyRequest) -> Iterator[ReportedFinding]:
    for result in request.verify(image).platforms:
        for check in result.checks:
            if check.warning or not check.ok:
                layers = _layer_digests(image, result.digest) if check.layer else []
                yield ReportedFinding(
                    finding=_to_finding(check, result.platform),
                    message=check.message,
                    hint=check.hint,
                    layer=layers.index(check.layer) if check.layer in layers else None,
                    layer_count=len(layers),
                )


def _to_finding(check: Check, platform: str) -> Finding:
    return Finding(check.name, platform, check.path, check.warning)


def _layer_digests(image: MemoryImage, manifest_digest: str) -> list[str]:
    manifests = [
        entry for _, entry in Image(image).platform_manifests if str(entry.digest) == manifest_digest
    ]
    return [str(layer.digest) for layer in Image(image).manifest(manifests[0]).layers] if manifests else []


def shorten(message: str, max_length: int = 240) -> str:
    """Return a message on one line, without the digits of digests, truncated to ``max_length``."""
    text = " ".join(_DIGEST.sub("…", message).split())
    return text if len(text) <= max_length else f"{text[: max_length - 1].rstrip()}…"
