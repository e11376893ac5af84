"""Check names in the package: ``python tools/naming.py`` (part of ``nox -s lint``).

At most a quarter of the module-level functions may have a name of one word, and no class name may be used
twice. The name of a module may be used twice only where its package tells them apart.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent / "buildkit_tasks"
_MAX_ONE_WORD = 0.25


def main() -> int:
    """Print the share of one-word functions and every class name used twice; return the exit status."""
    functions: list[str] = []
    classes: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef):
                functions.append(node.name.strip("_"))
            elif isinstance(node, ast.ClassDef):
                classes[node.name].append(str(path.relative_to(_PACKAGE)))
    share = sum("_" not in name for name in functions) / len(functions)
    print(f"{len(functions)} module-level functions, {share:.1%} with a name of one word (at most 25 %)")
    twice = {name: paths for name, paths in classes.items() if len(paths) > 1}
    for name, paths in twice.items():
        print(f"class {name} is defined more than once: {', '.join(paths)}")
    return int(share > _MAX_ONE_WORD or bool(twice))


if __name__ == "__main__":
    sys.exit(main())
