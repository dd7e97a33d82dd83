"""A comparison as terminal text, Markdown, HTML and JSON. Pure: values in, strings out."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from typing import Any

from pytest_quantgate.comparison.changes import Area, Change, Comparison, Table
from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.report.markdown_text import escape
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.tables import align

SCHEMA = 1

#: A list in the terminal and in Markdown shows no more than this; HTML and JSON show all.
MOST_LINES = 12
MOST_ROWS = 20

TITLES: dict[Area, str] = {
    "damage": "Files",
    "gates": "Gates",
    "limits": "Limits",
    "recipe": "Recipe",
    "quantizers": "Quantizers",
    "ranges": "Ranges (amax)",
    "weights": "Weights",
    "accuracy": "Accuracy",
    "engine": "Exported files and engines",
    "model": "Model",
    "data": "Data",
    "versions": "Versions",
    "sizes": "Sizes",
    "other": "Other",
}


def conclude(comparison: Comparison) -> str:
    """Return the result in one sentence."""
    if not comparison.is_different:
        return "no difference"
    counts: dict[Area, int] = {}
    for change in comparison.ordered():
        counts[change.area] = counts.get(change.area, 0) + 1
    parts = [f"{TITLES[area].lower()} {number}" for area, number in counts.items()]
    total = len(comparison.changes)
    return f"{total} {'change' if total == 1 else 'changes'}: {', '.join(parts)}"


def render_text(comparison: Comparison, *, most_rows: int | None = MOST_ROWS) -> str:
    """Return the comparison for a terminal; `most_rows=None` shows every row and line."""
    lines = [f"--- {comparison.before}", f"+++ {comparison.after}"]
    for title, changes in _sections(comparison):
        lines += ["", title]
        for change in changes:
            lines.append(f"  {_sign(change)} {change.text}")
            shown = _shown_lines(change, all_of_them=most_rows is None)
            lines += [f"      {line}" for line in shown]
            if change.table is not None:
                lines += [f"      {row}" for row in _text_table(change.table, most=most_rows)]
    for word, texts in (("same", comparison.same), ("note", comparison.notes)):
        if texts:
            lines += ["", *(f"{word}: {text}" for text in texts)]
    lines += ["", conclude(comparison)]
    return "\n".join(printable(line) for line in lines) + "\n"


def render_markdown(comparison: Comparison) -> str:
    """Return the comparison as GitHub-flavoured Markdown, for a pull request or a job summary."""
    lines = [
        f"### Model change: {escape(conclude(comparison))}",
        "",
        f"`{_code(comparison.before)}` → `{_code(comparison.after)}`",
    ]
    for title, changes in _sections(comparison):
        lines += ["", f"**{title}**", ""]
        for change in changes:
            lines.append(f"- {escape(change.text)}")
            lines += [f"  - {escape(line)}" for line in _shown_lines(change)]
        for table in (change.table for change in changes if change.table is not None):
            lines += ["", *_markdown_table(table)]
    for word, texts in (("Same", comparison.same), ("Note", comparison.notes)):
        if texts:
            lines += ["", *(f"{word}: {escape(text)}  " for text in texts)]
    return "\n".join(lines) + "\n"


def render_json(comparison: Comparison) -> str:
    """Return the comparison as JSON: `schema`, the sides, `same`, and every change whole."""
    plain: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": comparison.kind,
        "before": comparison.before,
        "after": comparison.after,
        "different": comparison.is_different,
        "summary": conclude(comparison),
        "changes": [to_json(change) for change in comparison.ordered()],
        "same": list(comparison.same),
        "notes": list(comparison.notes),
    }
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render_html(comparison: Comparison) -> str:
    """Return the comparison as one HTML page: no script, no network, light and dark."""
    body = [
        "<header><h1>Model change</h1>",
        f"<p class='verdict'>{_h(conclude(comparison))}</p>",
        f"<dl><dt>before</dt><dd><code>{_h(comparison.before)}</code></dd>"
        f"<dt>after</dt><dd><code>{_h(comparison.after)}</code></dd></dl></header><main>",
    ]
    for title, changes in _sections(comparison):
        body.append(f"<section><h2>{_h(title)}</h2><ul>")
        for change in changes:
            body.append(f"<li><p>{_h(change.text)}</p>")
            if change.lines:
                items = "".join(f"<li>{_h(line)}</li>" for line in change.lines)
                body.append(f"<ul class='lines'>{items}</ul>")
            if change.table is not None:
                body.append(_html_table(change.table, caption=change.text))
            body.append("</li>")
        body.append("</ul></section>")
    for title, texts in (("Same on both sides", comparison.same), ("Notes", comparison.notes)):
        if texts:
            items = "".join(f"<li>{_h(text)}</li>" for text in texts)
            body.append(f"<section><h2>{title}</h2><ul>{items}</ul></section>")
    return _PAGE.replace("{body}", "\n".join([*body, "</main>"]))


def _sections(comparison: Comparison) -> Iterator[tuple[str, list[Change]]]:
    by_area: dict[Area, list[Change]] = {}
    for change in comparison.ordered():
        by_area.setdefault(change.area, []).append(change)
    for area, changes in by_area.items():
        yield TITLES[area], changes


def _sign(change: Change) -> str:
    if change.kind in ("added", "switched on", "range added", "runs now"):
        return "+"
    if change.kind in (
        "removed",
        "switched off",
        "tower unquantized",
        "range lost",
        "no longer runs",
        "switches nothing on",
    ):
        return "-"
    alarming = ("damaged", "loosened", "ranges no longer fit", "slots alike")
    return "!" if change.kind in alarming else "~"


def _shown_lines(change: Change, *, all_of_them: bool = False) -> list[str]:
    lines = list(change.lines)
    if all_of_them or len(lines) <= MOST_LINES:
        return lines
    return [*lines[:MOST_LINES], f"... and {len(lines) - MOST_LINES} more"]


def _text_table(table: Table, *, most: int | None) -> Iterator[str]:
    rows = table.rows if most is None else table.rows[:most]
    yield from align([table.columns, *rows], right=range(1, len(table.columns)))
    if len(rows) < len(table.rows):
        yield f"... and {len(table.rows) - len(rows)} more (--all shows them)"


def _markdown_table(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(escape(cell) for cell in table.columns)} |"
    yield f"|{'|'.join(['---', *(['---:'] * (len(table.columns) - 1))])}|"
    for row in table.rows[:MOST_ROWS]:
        yield f"| {' | '.join(escape(cell) for cell in row)} |"
    if len(table.rows) > MOST_ROWS:
        more = f"... and {len(table.rows) - MOST_ROWS} more"
        yield f"| {' | '.join([more, *([''] * (len(table.columns) - 1))])} |"


def _html_table(table: Table, *, caption: str) -> str:
    head = "".join(f"<th scope='col'>{_h(cell)}</th>" for cell in table.columns)
    rows = "".join(
        f"<tr><th scope='row'>{_h(row[0])}</th>"
        + "".join(f"<td>{_h(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    return (
        f"<div class='scroll' tabindex='0' role='region' aria-label='{_h(caption)}'>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _h(text: str) -> str:
    return html.escape(printable(text), quote=True)


def _code(text: str) -> str:
    return printable(text).replace("`", "'")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Model change</title>
<style>
:root { color-scheme: light dark; --line: light-dark(#d0d0d0, #444); }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
.verdict { font-size: 1.2rem; font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.2rem 1rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
section > ul { padding-left: 1.2rem; }
li > p { margin: 0.3rem 0; overflow-wrap: anywhere; }
.lines { font-size: 0.9rem; overflow-wrap: anywhere; }
.scroll { max-height: 28rem; overflow: auto; border: 1px solid var(--line); margin: 0.5rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; width: 100%; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child { text-align: left; font-weight: 500; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; background: Canvas; }
td { font-variant-numeric: tabular-nums; white-space: nowrap; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
