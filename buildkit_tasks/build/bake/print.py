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

from buildkit_tasks.build.bake.plan import BakePlan, parse_bake_plan
from buildkit_tasks.build.bake.target import TARGET_NAME
from buildkit_tasks.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine import Engine
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["BakePrinter", "check_bake_arguments"]

_PRINT_TIMEOUT = 60.0
_NO_OUTPUTS = "--set=*.output="
_OUTPUT_KEY = re.compile(r"\boutput\b")
# `type=oci,dest=x.tar` in a text, `dest = "x.tar"` or `"dest": "x.tar"` in an object.
_DEST_VALUE = re.compile(r'\bdest\b\\?"?\s*[=:]\s*\\?"?([^",\]}\s]*)')
_RELATIVE_PATH = re.compile(r"[\w.@+-][\w.@+/-]*\Z")


def check_bake_arguments(file: str, targets: Sequence[str]) -> None:
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
class BakePrinter:
    """One file, the targets of it that are wanted (none: its default), and what reads it."""

    file: str
    targets: tuple[str, ...]
    engine: Engine
    commands: CommandRunner

    def print_plan(self, *, with_outputs: bool) -> BakePlan:
        """The file as buildx reads it, with its ``output`` keys only if they are asked for.

        A dry run without buildx shows the command, and gives a plan without targets. Raises
        :class:`UsageError` with buildx's words if it refuses the file or a target.
        """
        if self.commands.dry_run and shutil.which(self.engine.tools.buildx[0]) is None:
            # It would be fetched first; what the file says is known after that.
            self.commands.run(
                self._print_argv(self.file, _NO_OUTPUTS), self.engine.command_options(), mutates=True
            )
            return BakePlan(requested=(), targets={})
        plan = parse_bake_plan(self._run_print(self.file, _NO_OUTPUTS), self.file)
        if not with_outputs or not _OUTPUT_KEY.search(self._file_text):
            return plan
        return plan.with_outputs_from(parse_bake_plan(self._print_outputs(), self.file, only_outputs=True))

    @property
    def _file_text(self) -> str:
        return Path(self.file).read_text(encoding="utf-8", errors="replace")

    def _print_outputs(self) -> str:
        """The file with its outputs; without what buildx would look for in the folder."""
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as directory:
            for match in _DEST_VALUE.finditer(self._file_text):
                dest = match[1]
                if not _RELATIVE_PATH.match(dest) or ".." in Path(dest).parts:
                    raise UsageError(
                        f"{self.file}: it cannot be seen that dest={dest} is in this folder, and buildx "
                        "would empty that file to print its name",
                        hint="-o type=... says where it goes, or write a relative path",
                    )
                (Path(directory) / dest).parent.mkdir(parents=True, exist_ok=True)
            without_secrets = ("--set=*.secrets=", "--set=*.ssh=")
            return self._run_print(str(Path(self.file).absolute()), *without_secrets, cwd=Path(directory))

    def _print_argv(self, file: str, *overrides: str) -> list[str]:
        argv = [*self.engine.tools.buildx, "bake", "--print", f"--file={file}", *overrides]
        return [*argv, "--", *self.targets]

    def _run_print(self, file: str, *overrides: str, cwd: Path | None = None) -> str:
        argv = self._print_argv(file, *overrides)
        result = self.commands.run(argv, self.engine.command_options(timeout=_PRINT_TIMEOUT, cwd=cwd))
        if not result.ok:
            reason = result.reason.removeprefix("ERROR: ")
            raise UsageError(
                f"{self.file}: {reason}", hint=f"docker buildx bake --file={self.file} --list=targets"
            )
        return result.stdout
