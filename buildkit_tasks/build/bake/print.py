"""Run ``docker buildx bake --print`` without truncating the user's files.

``bake --print`` opens the files of each ``output`` as if it were about to build, so that an existing tar file
is empty afterwards (measured with buildx 0.29). Therefore a bake file is printed in two steps:

1. without outputs (``--set=*.output=``), in the current folder;
2. if it contains the word ``output``, once more in an empty folder, only to read the outputs. Before that,
   every ``dest`` in its text must be a relative path inside that folder. A text cannot tell what an
   interpolated or escaped one is, so buildx can write in that folder only, where the kernel has Landlock.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from buildkit_tasks.build.bake.plan import BakePlan, parse_bake_plan
from buildkit_tasks.build.bake.target import TARGET_NAME
from buildkit_tasks.errors import UsageError
from buildkit_tasks.system.landlock import restricted_argv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildkit_tasks.host.engine import Engine
    from buildkit_tasks.system.command import CommandRunner

__all__ = ["BakePrinter", "check_bake_arguments"]

_PRINT_TIMEOUT = 60.0
_NO_OUTPUTS = "--set=*.output="
_OUTPUT_KEY = re.compile(r"\boutput\b")
# `type=oci,dest=x.tar` in a text, `dest = "x.tar"` or `"dest": "x.tar"` in an object, in any case.
_DEST_VALUE = re.compile(r'\bdest\b\\?"?\s*[=:]\s*\\?"?([^",\]}\s]*)', re.IGNORECASE)
_DEST_HINT = "write a relative path, or give the destination by -o type=..."
# A pattern of targets, a key and perhaps a name in it: `web*.args.VERSION=1`, `web.tags+=x:1`, `web.pull`.
_OVERRIDE = re.compile(r"[^.=\s-][^.=\s]*\.(?P<key>[a-z-]+)(?:\.[^=]+)?(?:\+?=.*)?\Z", re.DOTALL)
_OUTPUT_OPTIONS = {
    "output": "-o type=oci,dest=dist/image.tar",
    "outputs": "-o type=oci,dest=dist/image.tar",
    "push": "--push",
    "load": "--load",
}
_RELATIVE_PATH = re.compile(r"[\w.@+-][\w.@+/-]*\Z")


def check_bake_arguments(files: Sequence[str], targets: Sequence[str], overrides: Sequence[str] = ()) -> None:
    """Raise :class:`UsageError` for arguments that buildx would take for a flag or a URL.

    Also for ``overrides`` that change outputs: buildx would truncate the files that they name.
    """
    for file in files:
        if file.startswith("-") or not Path(file).is_file():
            raise UsageError(f"there is no bake file {file!r}", hint="--bake docker-bake.hcl")
    for name in targets:
        # buildx would download definitions from a URL given as a target.
        if not TARGET_NAME.match(name):
            raise UsageError(
                f"{name!r} is not a valid name of a bake target", hint="use letters, digits, '_' and '-'"
            )
    for override in overrides:
        match = _OVERRIDE.match(override)
        if match is None:
            raise UsageError(
                f"--set {override!r} is not of the form TARGET.KEY=VALUE", hint="--set web.args.VERSION=1"
            )
        if match["key"] in _OUTPUT_OPTIONS:
            raise UsageError(
                f"--set {override}: outputs are not set in this way", hint=_OUTPUT_OPTIONS[match["key"]]
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BakePrinter:
    """Prints bake files for some of their targets; without any, for the default ones.

    ``overrides`` are values of ``--set`` that :func:`check_bake_arguments` has accepted.
    """

    files: tuple[str, ...]
    targets: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    engine: Engine
    commands: CommandRunner

    def print_plan(self, *, with_outputs: bool) -> BakePlan:
        """Return the file as buildx parses it; its ``output`` keys only with ``with_outputs``.

        A dry run on a host without buildx shows the command and returns a plan without targets. Raises
        :class:`UsageError` with buildx's message if it refuses the file or a target.
        """
        if self.commands.dry_run and shutil.which(self.engine.tools.buildx[0]) is None:
            # A real run would install buildx first; without it the file cannot be parsed.
            self.commands.run(
                self._print_argv(self.files, self._definition_flags),
                self.engine.command_options(),
                mutates=True,
            )
            return BakePlan(requested=(), targets={})
        plan = parse_bake_plan(self._run_print(self.files, self._definition_flags), self._label)
        if not with_outputs or not _OUTPUT_KEY.search(self._file_text):
            return plan
        return plan.with_outputs_from(parse_bake_plan(self._print_outputs(), self._label, only_outputs=True))

    @property
    def _label(self) -> str:
        return ", ".join(self.files)

    @property
    def _definition_flags(self) -> tuple[str, ...]:
        return (*(f"--set={override}" for override in self.overrides), _NO_OUTPUTS)

    @property
    def _file_text(self) -> str:
        return "\n".join(Path(file).read_text(encoding="utf-8", errors="replace") for file in self.files)

    def _print_outputs(self) -> str:
        """Print the file with its outputs, but without secrets: their files are not in the empty folder."""
        with tempfile.TemporaryDirectory(prefix="buildkit-tasks-") as directory:
            for match in _DEST_VALUE.finditer(self._file_text):
                dest = match[1]
                if not _RELATIVE_PATH.match(dest) or ".." in Path(dest).parts:
                    raise UsageError(
                        f"{self._label}: dest={dest} is not a relative path inside this folder, and buildx "
                        "would truncate that file to print its name",
                        hint=_DEST_HINT,
                    )
                (Path(directory) / dest).parent.mkdir(parents=True, exist_ok=True)
            without_secrets = ("--set=*.secrets=", "--set=*.ssh=")
            files = [str(Path(file).absolute()) for file in self.files]
            return self._run_print(files, without_secrets, folder=Path(directory))

    def _print_argv(self, files: Sequence[str], flags: Sequence[str]) -> list[str]:
        file_flags = (f"--file={file}" for file in files)
        return [*self.engine.tools.buildx, "bake", "--print", *file_flags, *flags, "--", *self.targets]

    def _run_print(self, files: Sequence[str], flags: Sequence[str], folder: Path | None = None) -> str:
        """Run buildx; with ``folder`` there, where alone it can write."""
        argv, options = self._print_argv(files, flags), self.engine.command_options(timeout=_PRINT_TIMEOUT)
        if folder is not None:
            env = {**options.env, "BUILDX_CONFIG": str(folder), "TMPDIR": str(folder)}
            argv, options = restricted_argv(folder, argv), replace(options, env=env, cwd=folder)
        result = self.commands.run(argv, options)
        if not result.ok:
            reason = result.reason
            if folder is not None and reason.endswith("permission denied"):
                raise UsageError(
                    f"{self._label}: an output is outside this folder: {reason}", hint=_DEST_HINT
                )
            # A syntax error names the file itself; buildx can list the targets of no file that has one.
            names_file = any(reason.startswith(f"{file}:") for file in files)
            file_flags = shlex.join(f"--file={file}" for file in self.files)
            hint = f"docker buildx bake {file_flags} --list=targets" if "target" in reason else ""
            raise UsageError(reason if names_file else f"{self._label}: {reason}", hint=hint)
        return result.stdout
