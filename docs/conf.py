"""How Sphinx builds the documentation: ``nox -s docs``."""

from __future__ import annotations

project = "buildkit_tasks"
author = "the buildkit_tasks contributors"
project_copyright = author

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "buildkit_tasks"
