"""What `quantgate check` found, as terminal text, Markdown and JSON. Pure: values in, text out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.inspection.findings import (
    Against,
    Finding,
    Inspection,
    OperandFacts,
    Report,
    Row,
)
from pytest_quantgate.report.markdown_text import escape
from pytest_quantgate.report.numbers import show_percent, show_value
from pytest_quantgate.text.printable import printable
from pytest_quantgate.text.tables import align
from pytest_quantgate.text.words import count
from pytest_quantgate.text.wrapping import wrap

SCHEMA = 1

#: Narrower than this nothing is wrapped, wider no line is made.
NARROWEST, WIDEST = 60, 120

#: Layers of the comparison with a base that are shown, the noisiest first.
MOST_LAYERS = 8


def conclude(report: Report) -> str:
    """Return the result in one sentence."""
    parts = []
    found = report.findings
    if found:
        codes = dict.fromkeys(f.code for f in found)
        parts.append(f"{count(len(found), 'finding')}: {', '.join(codes)}")
    elif report.inspections:
        parts.append("no finding")
    if report.refusals:
        parts.append(f"{count(len(report.refusals), 'file')} not read")
    if report.ignored:
        parts.append(f"ignored: {', '.join(report.ignored)}")
    return "; ".join(parts) or "nothing was read"


# -- terminal --------------------------------------------------------------------------------------


def render_text(report: Report, *, columns: int = 80, most_layers: int | None = MOST_LAYERS) -> str:
    """Return the report for a terminal of some columns; `most_layers=None` shows every operand."""
    width = max(NARROWEST, min(columns, WIDEST))
    lines: list[str] = []
    for inspection in report.inspections:
        lines += [*_inspection_lines(inspection, width=width, most_layers=most_layers), ""]
    for refusal in report.refusals:
        lines += [*_wrap(f"not read: {refusal.reason}", width=width, indent="  "), ""]
    for note in report.notes:
        lines += _wrap(f"note: {note}", width=width, indent="  ")
    lines += _wrap(conclude(report), width=width, indent="  ")
    return "\n".join(lines) + "\n"


def _inspection_lines(
    inspection: Inspection, *, width: int, most_layers: int | None
) -> Iterator[str]:
    yield printable(inspection.path)
    yield from _wrap(inspection.headline, width=width, indent="  ", first="  ")
    table = list(_table(inspection.rows, width=width))
    if table:
        yield ""
        yield from (f"  {line}" for line in table)
    if most_layers is None and inspection.operands:
        yield ""
        yield from (f"  {line}" for line in align(_operand_cells(inspection.operands)))
    if inspection.rows and inspection.bytes_by_type:
        yield ""
        yield from _wrap(_say_size(inspection.bytes_by_type), width=width, first="  ", indent="  ")
    if inspection.against is not None:
        yield ""
        yield from _against_lines(inspection.against, width=width, most_layers=most_layers)
    for finding in inspection.findings:
        yield ""
        yield from _finding_lines(finding, width=width)
    for number, note in enumerate(inspection.notes):
        if not number:
            yield ""
        yield from _wrap(f"note: {note}", width=width, first="  ", indent="        ")
    for number, step in enumerate(inspection.next_steps):
        if not number:
            yield ""
        yield from _wrap(f"next: {step}", width=width, first="  ", indent="        ")


def _finding_lines(finding: Finding, *, width: int) -> Iterator[str]:
    yield f"  ! {finding.code}"
    for label, text in (
        ("", finding.headline),
        ("likely cause: ", finding.cause),
        ("next step: ", finding.next_step),
    ):
        if text:
            yield from _wrap(f"{label}{text}", width=width, first="    ", indent="      ")


def _wrap(text: str, *, width: int, indent: str, first: str = "") -> list[str]:
    """Return a text on lines of a width; names and commands are never cut."""
    return wrap(f"{first}{printable(text)}", width=width, hang=len(indent) - len(first))


def _table(rows: Sequence[Row], *, width: int) -> Iterator[str]:
    if not rows:
        return
    cells = [_cells(row, before=before) for row, before in zip(rows, [None, *rows], strict=False)]
    heads = ("tower", "what", "quantized", "format", "scale per", "stored", "weights")
    columns = [
        [head, *column] for head, column in zip(heads, zip(*cells, strict=True), strict=True)
    ]
    columns = [column for column in columns if any(column[1:])]
    total = sum(max(map(len, column)) + 2 for column in columns)
    for least in ("stored", "weights"):
        if total > width:
            columns = [column for column in columns if column[0] != least]
        total = sum(max(map(len, column)) + 2 for column in columns)
    numbers = [n for n, column in enumerate(columns) if column[0] in ("quantized", "weights")]
    yield from align(list(zip(*columns, strict=True)), right=numbers)


def _operand_cells(operands: Sequence[OperandFacts]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [("layer", "operand", "format", "scale per", "stored", "range")]
    for o in operands:
        words = [o.scales.replace("per-", "")]
        words += ["dynamic"] * o.dynamic + ["asymmetric"] * (not o.symmetric)
        ends = dict.fromkeys(show_value(end) for end in (o.smallest, o.largest) if end is not None)
        found = (o.layer, o.slot, o.format or "-", " ".join(words), o.stored, " to ".join(ends))
        cells.append(tuple(printable(cell.strip()) for cell in found))
    return cells


def _cells(row: Row, *, before: Row | None) -> tuple[str, ...]:
    tower = "" if before is not None and before.tower == row.tower else row.tower
    return (
        printable("model" if tower == "other" else tower),
        printable(row.what),
        f"{row.quantized} of {row.total}",
        printable(row.format) or "-",
        printable(row.scales).replace("per-", ""),
        printable(row.stored),
        show_percent(row.share, 1) if row.share else "",
    )


def _against_lines(against: Against, *, width: int, most_layers: int | None) -> Iterator[str]:
    yield from _wrap(_say_against(against), width=width, first="  ", indent="    ")
    shown = against.layers if most_layers is None else against.layers[:most_layers]
    if not shown:
        return
    cells = [("layer, the noisiest first", "format", "SQNR dB")]
    cells += [(printable(e.layer), e.format, _decibels(e.sqnr_db)) for e in shown]
    yield from (f"    {line}" for line in align(cells, right=(2,)))
    if len(shown) < len(against.layers):
        yield f"    ... and {len(against.layers) - len(shown)} more (--all shows them)"


def _say_size(bytes_by_type: Mapping[str, int]) -> str:
    """Return `0.97 MB of tensors: 0.66 in F8_E4M3, 0.31 in F32`, the largest first."""
    sizes = sorted(bytes_by_type.items(), key=lambda item: -item[1])
    parts = [f"{_megabytes(size)} in {name}" for name, size in sizes if size]
    return f"{_megabytes(sum(bytes_by_type.values()))} MB of tensors: {', '.join(parts)}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}" if size < 1e7 else f"{size / 1e6:.0f}"


def _say_against(against: Against) -> str:
    ratio = f", {against.bytes / against.base_bytes:.2f}x" if against.base_bytes else ""
    found = f"{against.found} of {count(against.sought, 'layer')} found in it"
    if against.by_values:
        found += f", {against.by_values} by their values: the names differ"
    rest = f"{against.same} of {against.compared} unquantized tensors are the base's own; "
    return (
        f"against {against.base}: {found}; {rest if against.compared else ''}"
        f"{_megabytes(against.bytes)} of {_megabytes(against.base_bytes)} MB{ratio}"
    )


def _decibels(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "equal" if value > 0 else "broken"


# -- Markdown and JSON -----------------------------------------------------------------------------


def render_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown, for a pull request or a job summary."""
    lines = [f"### Quantized files: {escape(conclude(report))}"]
    for inspection in report.inspections:
        lines += ["", f"**{escape(inspection.path)}**: {escape(inspection.headline)}"]
        lines += _markdown_table(inspection.rows)
        if inspection.against is not None:
            lines += ["", escape(_say_against(inspection.against))]
            worst = inspection.against.layers[:MOST_LAYERS]
            if worst:
                lines += ["", "| layer | format | SQNR dB |", "|---|---|---:|"]
            lines += [
                f"| {escape(e.layer)} | {escape(e.format)} | {_decibels(e.sqnr_db)} |"
                for e in worst
            ]
        if inspection.findings:
            lines.append("")
        for finding in inspection.findings:
            lines.append(f"- `{finding.code}` {escape(finding.headline)}")
            if finding.cause:
                lines.append(f"  - likely cause: {escape(finding.cause)}")
            lines.append(f"  - next step: {escape(finding.next_step)}")
        if inspection.notes:
            lines += ["", *(f"Note: {escape(note)}  " for note in inspection.notes)]
    if report.refusals:
        lines += ["", *(f"Not read: {escape(refusal.reason)}  " for refusal in report.refusals)]
    return "\n".join(lines) + "\n"


def _markdown_table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    heads = ("tower", "what", "quantized", "format", "scale per", "stored", "weights")
    lines = ["", f"| {' | '.join(heads)} |", "|---|---|---:|---|---|---|---:|"]
    return [
        *lines,
        *(f"| {' | '.join(escape(cell) for cell in _cells(row, before=None))} |" for row in rows),
    ]


def render_json(report: Report) -> str:
    """Return the report as JSON: `schema`, `check` in words, `files` with findings, `refused`."""
    plain: dict[str, Any] = {
        "schema": SCHEMA,
        "check": conclude(report),
        "findings": len(report.findings),
        "files": [to_json(inspection) for inspection in report.inspections],
        "refused": [to_json(refusal) for refusal in report.refusals],
        "ignored": list(report.ignored),
        "notes": list(report.notes),
    }
    return json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
