"""Let buildx print a bake file without losing a file of the user's.

``bake --print`` opens what an ``output`` names as if it were about to build: a tar file that was there is
empty afterwards (measured with buildx 0.29). So a file is printed without its outputs. Where it has any,
it is printed once more for those alone, in an empty folder, in which nothing can be lost as long as
every ``dest`` is seen to be a place in it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.bake.plan import BakePlan, read_plan
from buildkit_tasks.build.bake.target import TARGET_NAME
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine import Engine
    from buildkit_tasks.system.command import Runner

__all__ = ["Printer", "check_bake"]

_SECONDS = 60.0
_NOWHERE = "--set=*.output="
_OUTPUT = re.compile(r"\boutput\b")
# `type=oci,dest=x.tar` in a text, `dest = "x.tar"` or `"dest": "x.tar"` in an object.
_DEST = re.compile(r'\bdest\b\\?"?\s*[=:]\s*\\?"?([^",\]}\s]*)')
_PLAIN_PLACE = re.compile(r"[\w.@+-][\w.@+/-]*\Z")


def check_bake(file: str, targets: Sequence[str]) -> None:
    """Refuse, before any program is started, what buildx could take for something else."""
    if file.startswith("-") or not Path(file).is_file():
        raise UsageError(f"there is no bake file {file!r}", hint="--bake docker-bake.hcl")
    for name in targets:
        # Of a URL in a target's place buildx would fetch the definitions.
        if not TARGET_NAME.match(name):
            raise UsageError(
                f"{name!r} is no name of a bake target", hint="letters, digits, '_' and '-', as in the file"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Printer:
    """One file, the targets of it that are wanted (none: its default), and what reads it."""

    file: str
    targets: tuple[str, ...]
    engine: Engine
    run: Runner

    def plan(self, *, outputs: bool) -> BakePlan:
        """The file as buildx reads it, with its ``output`` keys only if they are asked for.

        A dry run without buildx shows the command, and gives a plan without targets. Raises
        :class:`UsageError` with buildx's words if it refuses the file or a target.
        """
        if self.run.dry_run and shutil.which(self.engine.tools.buildx[0]) is None:
            # It would be fetched first; what the file says is known after that.
            self.run.run(self._argv(self.file, _NOWHERE), self.engine.call(), mutates=True)
            return BakePlan(wanted=(), targets={})
        plan = read_plan(self._printed(self.file, _NOWHERE), self.file)
        if not outputs or not _OUTPUT.search(self._text):
            return plan
        return plan.with_outputs_of(read_plan(self._printed_aside(), self.file, only_outputs=True))

    @property
    def _text(self) -> str:
        return Path(self.file).read_text(encoding="utf-8", errors="replace")

    def _printed_aside(self) -> str:
        """The file with its outputs; without what buildx would look for in the folder."""
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as folder:
            for match in _DEST.finditer(self._text):
                place = match[1]
                if not _PLAIN_PLACE.match(place) or ".." in Path(place).parts:
                    raise UsageError(
                        f"{self.file}: it cannot be seen that dest={place} is in this folder, and buildx "
                        "would empty that file to print its name",
                        hint="-o type=... says where it goes, or write a relative path",
                    )
                (Path(folder) / place).parent.mkdir(parents=True, exist_ok=True)
            alone = ("--set=*.secrets=", "--set=*.ssh=")
            return self._printed(str(Path(self.file).absolute()), *alone, cwd=Path(folder))

    def _argv(self, file: str, *overrides: str) -> list[str]:
        words = [*self.engine.tools.buildx, "bake", "--print", f"--file={file}", *overrides]
        return [*words, "--", *self.targets]

    def _printed(self, file: str, *overrides: str, cwd: Path | None = None) -> str:
        argv = self._argv(file, *overrides)
        done = self.run.run(argv, self.engine.call(timeout=_SECONDS, cwd=cwd))
        if not done.ok:
            words = done.reason.removeprefix("ERROR: ")
            raise UsageError(
                f"{self.file}: {words}", hint=f"docker buildx bake --file={self.file} --list=targets"
            )
        return done.stdout
