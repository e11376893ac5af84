"""Let mutmut change a module in every way it knows, and print the changes that no test catches.

Some of these do not matter, such as another wording of a message: a survivor is a hint, not a failure.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

_SETTINGS = """\
[mutmut]
source_paths=buildkit_tasks
only_mutate={module}
pytest_add_cli_args_test_selection=
    {tests}
also_copy=
    buildkit_tasks
    tests
    pyproject.toml
"""


def survivors(checkout: Path, module: str, tests: Sequence[str], jobs: int) -> Iterator[str]:
    """Yield how many mutants of ``module`` these tests caught, then the difference of each survivor.

    ``checkout`` is a copy of the repository, to which mutmut adds its files.
    """
    settings = _SETTINGS.format(module=module, tests="\n    ".join(tests))
    (checkout / "setup.cfg").write_text(settings, encoding="utf-8")
    progress = _mutmut(checkout, "run", "--max-children", str(jobs))
    states = dict(line.strip().rsplit(": ", 1) for line in _mutmut(checkout, "results", "--all", "true"))
    if not states or "not checked" in states.values():
        raise RuntimeError("mutmut ended early:\n" + "\n".join(progress)[-2000:])
    survived = [name for name, state in states.items() if state != "killed"]
    yield f"{len(states) - len(survived)} of {len(states)} mutants of {module} were caught"
    for name in survived:
        changes = [line for line in _mutmut(checkout, "show", name) if line.startswith(("+", "-"))]
        yield "\n".join([f"\n{name}: {states[name]}", *changes[2:]])


def _mutmut(checkout: Path, *arguments: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-m", "mutmut", *arguments]
    result = subprocess.run(command, cwd=checkout, check=False, capture_output=True, text=True)
    return result.stdout.splitlines()
