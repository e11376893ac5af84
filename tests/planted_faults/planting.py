"""Planted faults: how one is declared, planted and compared with what caught it.

A fault is a function that takes a sound image and returns one in which one thing is wrong. Where it
should be caught is declared beside it; the verdict comes from a run of ``verify`` on both.
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
from tests.planted_faults.bases import Parts
from tests.support.oci import MemoryImage

SUBJECT = "image.tar"
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Catch:
    """A check that does not hold, or one that holds and warns, at a platform and perhaps a path."""

    check: str
    platform: str
    path: str = ""
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of an image: the words of ``verify-arch``."""

    platforms: Sequence[str] = ()
    hosts: Sequence[str] = ()
    nodes: str = ""
    parity: str = "warn"
    allow_foreign: Sequence[str] = ()

    def options(self, folder: Path) -> list[str]:
        """The task's options; a file of nodes is written into the folder."""
        lists = [
            f"--platform={','.join(self.platforms)}" if self.platforms else "",
            f"--for={','.join(self.hosts)}" if self.hosts else "",
            f"--for-nodes={self._nodes(folder)}" if self.nodes else "",
            f"--parity={self.parity}" if self.parity != "warn" else "",
            *(f"--allow-foreign={pattern}" for pattern in self.allow_foreign),
        ]
        return [option for option in lists if option]

    def ask(self, image: MemoryImage) -> VerifyReport:
        """The verdict on an image in memory."""
        hosts = dict.fromkeys(parse_platforms(self.hosts), 0)
        if self.nodes:
            with tempfile.TemporaryDirectory() as folder:
                hosts |= read_cluster_nodes(self._nodes(Path(folder)))
        rules = VerifyOptions(allow_foreign=tuple(self.allow_foreign), parity=self.parity, hosts=hosts)
        return verify(image, parse_platforms(self.platforms), SUBJECT, rules)

    def _nodes(self, folder: Path) -> Path:
        path = folder / "nodes.json"
        path.write_text(self.nodes)
        return path


@dataclass(frozen=True, kw_only=True)
class Planted:
    """An image with a fault, and its control: the same image without it."""

    image: MemoryImage
    control: MemoryImage
    question: Question = Question()
    of_control: Question | None = None


Planter = Callable[[Parts], Planted]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A planter, what it plants in words, and where it has to be caught, with which words.

    A fault without catches is a sound image that only looks wrong. ``task`` is the exit status of
    verify-arch where the task is run on it as well.
    """

    name: str
    text: str
    plant: Planter
    catches: tuple[Catch, ...]
    says: tuple[str, ...] = ()
    layer: int | None = None
    task: int | None = None


DECLARED: list[Fault] = []


def fault(
    text: str,
    *catches: Catch,
    says: str | Sequence[str] = (),
    layer: int | None = None,
    task: int | None = None,
) -> Callable[[Planter], Planter]:
    """Enter a planter into the table. ``layer`` is the number of the layer that is named, from 0."""

    def enter(plant: Planter) -> Planter:
        words = (says,) if isinstance(says, str) else tuple(says)
        name = plant.__name__
        assert name not in {each.name for each in DECLARED}, name
        DECLARED.append(
            Fault(name=name, text=text, plant=plant, catches=catches, says=words, layer=layer, task=task)
        )
        return plant

    return enter


def sound_image(text: str) -> Callable[[Planter], Planter]:
    """Declare a sound image that only looks wrong: nothing may catch it."""
    return fault(text)


@dataclass(frozen=True, kw_only=True)
class Caught:
    """One failed or warning check of an image with a fault; ``layer`` by its number."""

    catch: Catch
    message: str
    layer: int | None = None
    layers: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What ``verify`` reported about a fault and about its control."""

    fault: Fault
    caught: tuple[Caught, ...]
    control: tuple[Caught, ...]

    @property
    def surprises(self) -> list[str]:
        """In words, everything that is not as it was declared; nothing if all is."""
        return list(self._surprises())

    def _surprises(self) -> Iterator[str]:
        failed = [each for each in self.control if not each.catch.warning]
        yield from (f"the control fails: {each.message}" for each in failed)
        known = {(each.catch, each.message) for each in self.control}
        new = [each for each in self.caught if (each.catch, each.message) not in known]
        found, declared = {each.catch for each in new}, set(self.fault.catches)
        said = "\n".join(each.message for each in new)
        yield from (f"not caught: {each}" for each in sorted(declared - found))
        yield from (f"caught as well: {each}\n{said}" for each in sorted(found - declared))
        yield from (f"not said: {words!r} in\n{said}" for words in self.fault.says if words not in said)
        if self.fault.layer is not None and self.fault.layer not in {each.layer for each in new}:
            yield f"not layer {self.fault.layer} but {[each.layer for each in new]}"


def judge(one: Fault, parts: Parts) -> Verdict:
    """Plant a fault and verify both images."""
    planted = one.plant(parts)
    question = planted.of_control or planted.question
    return Verdict(
        fault=one,
        caught=tuple(_caught(planted.image, planted.question)),
        control=tuple(_caught(planted.control, question)),
    )


def _caught(image: MemoryImage, question: Question) -> Iterator[Caught]:
    report = question.ask(image)
    for verdict in report.platforms:
        for check in verdict.checks:
            if check.warning or not check.ok:
                layers = _layers(image, verdict.digest) if check.layer else []
                yield Caught(
                    catch=_catch(check, verdict.platform),
                    message=check.message,
                    layer=layers.index(check.layer) if check.layer in layers else None,
                    layers=len(layers),
                )


def _catch(check: Check, platform: str) -> Catch:
    return Catch(check.name, platform, check.path, check.warning)


def _layers(image: MemoryImage, digest: str) -> list[str]:
    """The digests of a platform's layers."""
    found = [entry for _, entry in Image(image).platform_manifests if str(entry.digest) == digest]
    return [str(layer.digest) for layer in Image(image).manifest(found[0]).layers] if found else []


def shortened(message: str, most: int = 240) -> str:
    """A message for a table: digests without their digits, one line, not too long."""
    text = " ".join(_DIGEST.sub("…", message).split())
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"
