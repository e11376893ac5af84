"""What a verification has done so far: the report of one whose time is over is made of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

from buildkit_tasks.hints import translate_commands
from buildkit_tasks.report.model import Check, PlatformVerdict, VerifyReport

__all__ = ["VerifyProgress"]


@dataclass(slots=True, kw_only=True)
class VerifyProgress:
    """The state of the verification of one image, which updates it.

    ``activity`` is what it does at the moment. ``names`` are the platforms that it reports, in order, and
    ``verdicts`` those of them that are finished.
    """

    subject: str
    activity: str
    names: tuple[str, ...] = ()
    digest: str = ""
    verdicts: list[PlatformVerdict] = field(default_factory=list)

    def report_timeout(self, seconds: float) -> VerifyReport:
        """Return the report after ``seconds``: platforms that are not finished fail the check ``timeout``."""
        hint = translate_commands(
            f"inv verify-arch {shlex.quote(self.subject)} --timeout {max(2 * seconds, 1):g}"
        )
        unfinished = self.names[len(self.verdicts) :] or ("unknown",)
        verdicts = [
            PlatformVerdict(platform=name, digest="", checks=(self._failed_check(name, seconds, hint),))
            for name in unfinished
        ]
        return VerifyReport(subject=self.subject, digest=self.digest, platforms=(*self.verdicts, *verdicts))

    def _failed_check(self, name: str, seconds: float, hint: str) -> Check:
        return Check(
            name="timeout", ok=False, expected=f"{seconds:g} s", hint=hint,
            message=f"{name}: not verified within {seconds:g} s, which ended while {self.activity}",
        )  # fmt: skip
