"""The coverage map: towers x blocks x quantizer kinds, a table a tower that the keyboard walks.

A cell says its state by colour and by a sign, and all its numbers in its label, which the page
shows on hover and focus and a screen reader reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_quantgate.evidence.audit import Slot
from pytest_quantgate.report.markup import Html, join, tag
from pytest_quantgate.report.model import AuditFacts, QuantizerFacts, QuantizerState
from pytest_quantgate.report.numbers import show_value
from pytest_quantgate.text.words import percent

#: (state, sign, what it means), as the legend lists them.
STATES: tuple[tuple[QuantizerState, str, str], ...] = (
    ("on", "\N{BLACK CIRCLE}", "on, and it ran"),
    ("excluded", "\N{EN DASH}", "off by exclusion or waiver"),
    ("missing", "\N{MULTIPLICATION X}", "missing: meant, and not working"),
    ("unexpected", "+", "unexpected: nobody asked for it"),
    ("uncalibrated", "?", "uncalibrated: no usable amax"),
    ("off", "\N{MIDDLE DOT}", "off, nobody asked for it"),
)
_SIGNS = {state: sign for state, sign, _ in STATES}

_SLOT_NAMES: dict[Slot, str] = {
    "input": "in",
    "weight": "w",
    "output": "out",
    "q": "q",
    "k": "k",
    "v": "v",
    "softmax": "p",
    "attention_output": "o",
    "other": "?",
}

Column = tuple[str, Slot]


def render_map(audit: AuditFacts) -> Html:
    """Return the legend and the maps of all towers."""
    counts = Counter(facts.state for facts in audit.quantizers)
    legend = tag(
        "ul",
        [
            tag(
                "li",
                tag("span", sign, class_=f"sign s-{state}", aria_hidden="true"),
                f" {counts[state]} {words}",
            )
            for state, sign, words in STATES
            if counts[state]
        ],
        class_="legend",
    )
    towers = dict.fromkeys((*audit.towers, *(facts.tower for facts in audit.quantizers)))
    return join(
        legend,
        (
            _render_tower(str(tower), [q for q in audit.quantizers if q.tower == tower])
            for tower in towers
        ),
    )


def _render_tower(tower: str, quantizers: Sequence[QuantizerFacts]) -> Html:
    shown = [facts for facts in quantizers if facts.state != "off"]
    if not shown:
        return join(
            tag("h4", f"{tower} tower" if tower != "other" else "elsewhere"),
            tag("p", f"Nothing is quantized or meant to be ({len(quantizers)} quantizers off)."),
        )
    inside = [facts for facts in quantizers if facts.block is not None]
    outside = [facts for facts in quantizers if facts.block is None]
    return join(
        tag("h4", f"{tower} tower" if tower != "other" else "elsewhere"),
        tag(
            "div",
            _render_grid(
                inside,
                caption=f"{tower} tower, by block",
                rows=sorted({facts.block for facts in inside if facts.block is not None}),
                head="block",
            ),
            _render_grid(
                outside,
                caption=f"{tower} tower, outside of blocks",
                rows=list(dict.fromkeys(f.module for f in outside if f.state != "off")),
                head="module",
            ),
            class_="maps",
        ),
    )


def _render_grid(
    quantizers: Sequence[QuantizerFacts],
    *,
    caption: str,
    rows: Sequence[int] | Sequence[str],
    head: str,
) -> Html | None:
    """Return one map; columns in which nobody asked for anything are left out."""
    by_block = head == "block"
    cells = {
        (facts.block if by_block else facts.module, _column(facts, by_block=by_block)): facts
        for facts in quantizers
    }
    columns = [
        column
        for column in dict.fromkeys(_column(facts, by_block=by_block) for facts in quantizers)
        if any(facts.state != "off" for (_, where), facts in cells.items() if where == column)
    ]
    if not columns:
        return None
    first = True
    body = []
    for row in rows:
        line = []
        for column in columns:
            facts = cells.get((row, column))
            line.append(_render_cell(facts, tab_stop=first and facts is not None))
            first = first and facts is None
        body.append(tag("tr", tag("th", str(row), scope="row"), line))
    table = tag(
        "table",
        tag("caption", caption),
        tag("thead", _render_heads(columns, head=head)),
        tag("tbody", body),
        role="grid",
        aria_label=caption,
        class_="map",
    )
    return tag("div", table, class_="scroll")


def _render_heads(columns: Sequence[Column], *, head: str) -> Html:
    """Return one header row for slots, and above it one for the modules where there are some."""
    slots = [
        tag("th", _SLOT_NAMES[slot], scope="col", class_=f"c-{slot.replace('_', '-')}")
        for _, slot in columns
    ]
    if not any(module for module, _ in columns):
        return tag("tr", tag("th", head, scope="col"), slots)
    groups: list[list[Column]] = []
    for column in columns:
        if groups and groups[-1][0][0] == column[0]:
            groups[-1].append(column)
        else:
            groups.append([column])
    return join(
        tag(
            "tr",
            tag("td"),
            (
                tag("th", _short(group[0][0]), scope="colgroup", colspan=len(group), class_="group")
                for group in groups
            ),
        ),
        tag("tr", tag("th", head, scope="col"), slots),
    )


def _short(module: str) -> str:
    return module.rpartition(".")[2].removesuffix("_proj") or "block"


def _column(facts: QuantizerFacts, *, by_block: bool) -> Column:
    if not by_block:
        return "", facts.slot
    _, _, inside = f"{facts.module}.".partition(f".{facts.block}.")
    return inside.strip(".") or "block", facts.slot


def _render_cell(facts: QuantizerFacts | None, *, tab_stop: bool) -> Html:
    if facts is None:
        return tag("td", class_="none")
    return tag(
        "td",
        tag("span", _SIGNS[facts.state], aria_hidden="true"),
        tabindex=0 if tab_stop else -1,
        class_=f"cell s-{facts.state}",
        aria_label=describe_cell(facts),
    )


def describe_cell(facts: QuantizerFacts) -> str:
    """Return the state of a quantizer and its numbers in one line."""
    return ", ".join(_describe(facts))


def _describe(facts: QuantizerFacts) -> Iterator[str]:
    state = "left out" if facts.state == "excluded" else facts.state
    yield f"{facts.name}: {state}{f' ({facts.reason})' if facts.reason else ''}"
    if not facts.enabled:
        return
    yield f"{facts.format} {facts.granularity}"
    if facts.dynamic:
        yield "dynamic"
    elif facts.amax_min is not None and facts.amax_max is not None:
        low, high = show_value(facts.amax_min), show_value(facts.amax_max)
        yield f"amax {high}" if low == high else f"amax {low} to {high}"
    if facts.seen:
        yield f"{percent(facts.clipped / facts.seen, 3)} clipped on held-out data"
    yield "ran once a forward" if facts.calls == 1 else f"ran {facts.calls} times a forward"
    if facts.lost_at:
        yield f"not in the {facts.lost_at} ({facts.lost_because})"
