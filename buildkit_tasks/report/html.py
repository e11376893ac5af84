"""A report as one HTML file without scripts, which fetches nothing, for light and dark.

The document is well-formed XML too, so that a test can prove that no text in it adds an element. Its
Content-Security-Policy forbids scripts and requests in case a text ever did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildkit_tasks.report.rows import Cell, Problem, Row, Severity
from buildkit_tasks.report.summary import Summary, summarize
from buildkit_tasks.report.text import escape_markup

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from buildkit_tasks.report.model import Report

__all__ = ["to_html"]

_CSS = """
:root { color-scheme: light dark; --page: #f6f8fa; --card: #ffffff; --line: #d1d9e0; --text: #1f2328;
  --quiet: #59636e; --good: #1a7f37; --warning: #9a6700; --bad: #cf222e; --code: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --page: #010409; --card: #0d1117; --line: #3d444d;
  --text: #f0f6fc; --quiet: #9198a1; --good: #3fb950; --warning: #d29922; --bad: #f85149; --code: #151b23; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header { display: flex; align-items: center; gap: .75rem; }
h1 { font-size: 1.6rem; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.25rem 0 .75rem; }
h3 { font-size: .95rem; margin: 0; }
.badge { border: 1px solid currentColor; border-radius: 2rem; padding: .05rem .75rem; font-weight: 600; }
.good { color: var(--good); } .warning { color: var(--warning); } .bad { color: var(--bad); }
.closing { font-weight: 600; margin: .5rem 0 1.5rem; overflow-wrap: anywhere; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .5rem .9rem; }
th, .number { white-space: nowrap; } td { overflow-wrap: anywhere; min-width: 5rem; }
thead th { color: var(--quiet); font-size: .85rem; font-weight: 600; }
tbody tr { border-top: 1px solid var(--line); }
tbody th, td, .text, dd { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  monospace; font-size: .85rem; }
tbody th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.good::before { content: "\\2713\\00a0"; } td.warning::before { content: "!\\00a0"; }
td.bad::before { content: "\\2717\\00a0"; } td.bad { font-weight: 600; min-width: 12rem; }
.notes { color: var(--quiet); list-style: none; margin: 1rem 0 0; padding: 0; overflow-wrap: anywhere;
  font-size: .9rem; }
details { margin: .75rem 0; }
.card.fail { border-left: .3rem solid var(--bad); }
.card.warn { border-left: .3rem solid var(--warning); }
summary { cursor: pointer; padding: .7rem 1rem; font-weight: 600; }
summary span { color: var(--quiet); font-weight: 400; margin-left: .5rem; }
article { border-top: 1px solid var(--line); padding: .8rem 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.output { background: var(--code); border-radius: .4rem; padding: .6rem .8rem; max-height: 40rem;
  overflow: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .5rem 0 0; }
dt { color: var(--quiet); font-size: .85rem; }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
@media print { details { break-inside: avoid; } .output { max-height: none; } }
"""

_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def to_html(report: Report) -> str:
    """Return a page with the table, its notes, and every failure and warning in full."""
    summary = summarize(report)
    failures = [
        _render_section("fail", step, row, row.problems, _render_outputs(row))
        for step, row in summary.failures
    ]
    warnings = [_render_section("warn", step, row, row.warnings) for step, row in summary.warnings]
    lines = [
        *_render_head(summary),
        *_render_summary(summary),
        *_add_heading("What failed", failures),
        *_add_heading("Warnings", warnings),
    ]
    return "\n".join([*lines, "</main>", "</body>", "</html>", ""])


def _render_head(summary: Summary) -> Iterator[str]:
    yield "<!DOCTYPE html>"
    yield '<html lang="en">'
    yield "<head>"
    yield '<meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT_SECURITY_POLICY}"/>'
    yield f"<title>{escape_markup(summary.title)}</title>"
    yield f"<style>{_CSS}</style>"
    yield "</head>"


def _render_summary(summary: Summary) -> Iterator[str]:
    yield "<body>"
    yield "<main>"
    badge = f'<span class="badge {summary.severity}">{escape_markup(summary.verdict)}</span>'
    yield f"<header><h1>{escape_markup(summary.name)}</h1>{badge}</header>"
    yield f'<p class="closing {summary.severity}">{escape_markup(summary.summary_line)}</p>'
    yield '<div class="card scroll"><table>'
    header_cells = (
        f'<th scope="col"{_number_class(name)}>{escape_markup(name)}</th>' for name in summary.columns
    )
    yield f"<thead><tr>{''.join(header_cells)}</tr></thead>"
    yield "<tbody>"
    yield from (_render_line(summary.columns, line) for line in summary.lines)
    yield "</tbody>"
    yield "</table></div>"
    note_items = (f"<li>{escape_markup(note)}</li>" for note in summary.notes)
    yield f'<ul class="notes">{"".join(note_items)}</ul>'


def _render_line(columns: tuple[str, ...], line: tuple[Cell, ...]) -> str:
    first_cell, *other_cells = line
    cells = map(_render_cell, columns[1:], other_cells)
    return f'<tr><th scope="row">{escape_markup(first_cell.text)}</th>{"".join(cells)}</tr>'


def _render_cell(column: str, cell: Cell) -> str:
    is_plain = cell.severity is Severity.PLAIN
    class_attribute = _number_class(column) if is_plain else f' class="{cell.severity}"'
    return f"<td{class_attribute}>{escape_markup(cell.text)}</td>"


def _number_class(column: str) -> str:
    return ' class="number"' if column == "Seconds" else ""


def _add_heading(title: str, sections: list[str]) -> list[str]:
    return [f"<h2>{title}</h2>", *sections] if sections else []


def _render_section(
    css_class: str, step: str, row: Row, problems: tuple[Problem, ...], outputs: Iterable[str] = ()
) -> str:
    """Return a row's problems, unfolded: what is folded is easily overlooked."""
    heading = escape_markup(f"{step} {row.name}".strip())
    badge = f"<span>{len(problems)}</span>" if len(problems) > 1 else ""
    opening = f'<details class="card {css_class}" open="open"><summary>{heading}{badge}</summary>'
    return "\n".join([opening, *map(_render_problem, problems), *outputs, "</details>"])


def _render_problem(problem: Problem) -> str:
    facts = "".join(
        f"<dt>{escape_markup(name)}</dt><dd>{escape_markup(value)}</dd>"
        for name, value in problem.facts
        if value
    )
    body = f'<h3>{escape_markup(problem.kind)}</h3><div class="text">{escape_markup(problem.message)}</div>'
    return f"<article>{body}{facts and f'<dl>{facts}</dl>'}</article>"


def _render_outputs(row: Row) -> Iterator[str]:
    for name, text in row.outputs.items():
        yield f'<article><h3>{name}</h3><div class="text output">{escape_markup(text)}</div></article>'
