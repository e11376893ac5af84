"""Sphinx configuration; ``nox -s docs`` builds the documentation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sphinx.util import logging

sys.path.insert(0, str(Path(__file__).parent))

import tables

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "buildkit_tasks"
author = "the buildkit_tasks contributors"
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# docs/api.md: short names, and one line per parameter where there are many.
add_module_names = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "buildkit_tasks"


def setup(app: Sphinx) -> None:
    """Register the comparison of the generated tables with the code."""
    app.connect("builder-inited", _compare)


def _compare(app: Sphinx) -> None:
    for page in tables.PAGES:
        path = Path(app.srcdir) / page
        if tables.render_page(page) != path.read_text(encoding="utf-8"):
            warning = "its tables differ from the code; run python docs/tables.py"
            logging.getLogger(__name__).warning(warning, location=path.stem)
