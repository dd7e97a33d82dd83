"""What the report draws, as Vega-Lite specifications. Pure: facts in, plain data out.

Colours are the page's own CSS variables, so that a chart follows light, dark and print by itself.
Shape or position always says what colour says. Marks of large charts are hidden from screen
readers: a table beside each chart holds the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quantgate.report.facts import figure
from pytest_quantgate.report.model import GateResult, HistoryFacts, LatencyFacts, QuantizerFacts

Spec = dict[str, Any]

#: A floor further than this below all values would press them together: the table has it.
FLOOR_REACH = 12

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
FP16, QUANTIZED, LIMIT = "var(--fp16)", "var(--quantized)", "var(--limit)"

_FONT = "system-ui, sans-serif"
_AXIS = {
    "labelColor": "var(--muted)",
    "titleColor": "var(--muted)",
    "gridColor": "var(--grid)",
    "domainColor": "var(--line)",
    "tickColor": "var(--line)",
    "labelFont": _FONT,
    "titleFont": _FONT,
    "titleFontWeight": "normal",
    "labelFontSize": 12,
    "titleFontSize": 12,
    "labelLimit": 260,
}
_LEGEND = {
    "labelColor": "var(--ink)",
    "titleColor": "var(--muted)",
    "labelFont": _FONT,
    "titleFont": _FONT,
    "labelFontSize": 12,
    "orient": "bottom",
    "title": None,
    "symbolStrokeWidth": 2,
}
CONFIG: Mapping[str, Any] = {
    "background": "transparent",
    "view": {"stroke": None},
    "axis": _AXIS,
    "legend": _LEGEND,
}

#: What a point of the amax chart is of, by slot.
OPERANDS = {
    "weight": "weight",
    "input": "layer input",
    "output": "layer output",
}


def _chart(*, description: str, height: Any, values: Sequence[Mapping[str, Any]]) -> Spec:
    return {
        "$schema": SCHEMA,
        "description": description,
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "config": CONFIG,
        "data": {"values": list(values)},
    }


def near_floors(gates: Sequence[GateResult]) -> list[GateResult]:
    """Return the gates whose floor is drawn: a far one would press the values together."""
    values = [figure(gate, name) for gate in gates for name in ("fp16_value", "quantized_value")]
    lowest = min(values) * 100 - FLOOR_REACH
    return [gate for gate in gates if figure(gate, "floor") * 100 > lowest]


def draw_values(gates: Sequence[GateResult]) -> Spec:
    """Return FP16 and quantized side by side, a row a task, with floors that are near."""
    rows: list[dict[str, Any]] = [
        {"task": gate.key, "variant": name, "value": figure(gate, key) * 100}
        for gate in gates
        for name, key in (("FP16", "fp16_value"), ("quantized", "quantized_value"))
    ]
    floors = [
        {"task": gate.key, "variant": "floor", "value": figure(gate, "floor") * 100}
        for gate in near_floors(gates)
    ]
    rows += floors
    names = ["FP16", "quantized", *(["floor"] if floors else [])]
    x = {
        "field": "value",
        "type": "quantitative",
        "title": "%",
        "scale": {"zero": False, "nice": True, "padding": 8, "domain": _span(gates, rows)},
    }
    return {
        **_chart(
            description="Accuracy of FP16 and the quantized variant for each task, in percent",
            height=34 * len(gates),
            values=rows,
        ),
        "mark": {"type": "point", "strokeWidth": 2, "opacity": 1},
        "encoding": {
            "y": {"field": "task", "type": "nominal", "sort": None, "title": None},
            "x": x,
            "shape": _scale("variant", names, ["circle", "diamond", "stroke"][: len(names)]),
            "stroke": _scale("variant", names, [FP16, QUANTIZED, LIMIT][: len(names)]),
            "fill": _scale(
                "variant", names, ["transparent", QUANTIZED, "transparent"][: len(names)]
            ),
            "size": {
                "condition": {"test": "datum.variant === 'quantized'", "value": 60},
                "value": 220,
            },
            "tooltip": [
                {"field": "task", "title": "task"},
                {"field": "variant", "title": "variant"},
                {"field": "value", "title": "%", "format": ".2f"},
            ],
        },
    }  # fmt: skip


def _span(gates: Sequence[GateResult], rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the ends of an axis of values in percent: at least the largest limit lies between.

    A change far within its limit must not look large.
    """
    values = [row["value"] for row in rows]
    low, high = min(values), max(values)
    least = max(figure(gate, "max_drop_points") for gate in gates)
    room = max(0.0, least - (high - low)) / 2
    return [max(0.0, low - room), min(100.0, high + room)]


def draw_drops(gates: Sequence[GateResult]) -> Spec:
    """Return the drop of every task with its interval and its limit, a row a task."""
    rows = [
        {
            "task": gate.key,
            "drop": figure(gate, "drop_points"),
            "low": figure(gate, "drop_low_points"),
            "high": figure(gate, "drop_high_points"),
            "limit": figure(gate, "max_drop_points"),
            "verdict": gate.status.replace("_", " "),
        }
        for gate in gates
    ]
    tooltip = [{"field": name, "title": name} for name in ("task", "verdict")] + [
        {"field": name, "title": f"{name}, pp", "format": ".2f"}
        for name in ("drop", "low", "high", "limit")
    ]
    x = {"type": "quantitative", "title": "drop against FP16, percentage points"}
    return {
        **_chart(
            description="Drop of every task with its interval and the limit of its gate, in "
            "percentage points",
            height=34 * len(gates),
            values=rows,
        ),
        "encoding": {
            "y": {"field": "task", "type": "nominal", "sort": None, "title": None},
            "tooltip": tooltip,
        },
        "layer": [
            {
                "mark": {"type": "rule", "color": "var(--line)"},
                "encoding": {"x": {"datum": 0}, "y": {"value": 0}, "y2": {"value": "height"}},
            },
            {
                "mark": {"type": "rule", "color": QUANTIZED, "strokeWidth": 3},
                "encoding": {"x": {"field": "low", **x}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 90,
                         "opacity": 1, "color": QUANTIZED},
                "encoding": {"x": {"field": "drop", **x}},
            },
            {
                "mark": {"type": "tick", "thickness": 3, "size": 24, "color": LIMIT},
                "encoding": {"x": {"field": "limit", **x}},
            },
        ],
    }  # fmt: skip


def draw_layers(layers: Sequence[tuple[str, float]], *, towers: Mapping[str, str]) -> Spec:
    """Return the noise of every layer along the model; `layers` are in the model's order."""
    rows = [
        {"place": place, "layer": name, "SQNR": round(value, 2), "tower": towers.get(name, "other")}
        for place, (name, value) in enumerate(layers)
        if math.isfinite(value)
    ]
    return _along_the_model(
        rows,
        description="SQNR of every layer by itself, in dB, along the model",
        y={"field": "SQNR", "type": "quantitative", "title": "SQNR, dB (low is noisy)",
           "scale": {"zero": False, "nice": True}},
        by="tower",
        names=("vision", "text", "other"),
        tooltip=[{"field": "layer", "title": "layer"},
                 {"field": "SQNR", "title": "SQNR, dB", "format": ".1f"}],
    )  # fmt: skip


def draw_amax(quantizers: Sequence[QuantizerFacts]) -> Spec:
    """Return the calibrated range of every quantizer along the model, on a log scale."""
    rows: list[dict[str, Any]] = [
        {
            "place": place,
            "quantizer": facts.name,
            "amax": facts.amax_max,
            "of": OPERANDS.get(facts.slot, "attention"),
        }
        for place, facts in enumerate(quantizers)
        if facts.enabled and facts.amax_max and math.isfinite(facts.amax_max) and facts.amax_max > 0
    ]
    exponents = [math.floor(math.log10(row["amax"])) for row in rows] or [0]
    ticks = [10.0**power for power in range(min(exponents), max(exponents) + 2)]
    return _along_the_model(
        rows,
        description="Largest calibrated value (amax) of every quantizer along the model, log scale",
        y={"field": "amax", "type": "quantitative", "title": "amax (log)",
           "scale": {"type": "log", "nice": True}, "axis": {"values": ticks, "format": "~g"}},
        by="of",
        names=("weight", "layer input", "attention", "layer output"),
        tooltip=[{"field": "quantizer", "title": "quantizer"},
                 {"field": "amax", "title": "amax", "format": ".4~g"}],
    )  # fmt: skip


def _along_the_model(
    rows: Sequence[Mapping[str, Any]],
    *,
    description: str,
    y: Mapping[str, Any],
    by: str,
    names: Sequence[str],
    tooltip: Sequence[Mapping[str, str]],
) -> Spec:
    present = [name for name in names if any(row[by] == name for row in rows)]
    shapes = dict(zip(names, ("circle", "triangle-up", "diamond", "square"), strict=False))
    colours = dict(
        zip(names, (QUANTIZED, "var(--second)", "var(--third)", "var(--fp16)"), strict=False)
    )
    return {
        **_chart(description=description, height=230, values=rows),
        "mark": {"type": "point", "filled": True, "size": 45, "opacity": 0.85, "aria": False},
        "encoding": {
            "x": {
                "field": "place",
                "type": "quantitative",
                "title": "along the model: input to output, tower by tower",
                "axis": {"labels": False, "ticks": False, "grid": False},
                "scale": {"nice": False, "padding": 6},
            },
            "y": y,
            "shape": _scale(by, present, [shapes[name] for name in present]),
            "color": _scale(by, present, [colours[name] for name in present]),
            "tooltip": list(tooltip),
        },
    }


def draw_latency(facts: LatencyFacts) -> Spec:
    """Return every round's time of FP16, the quantized variant, and FP16 again."""
    contestants = {
        "FP16": facts.fp16_ms,
        "quantized": facts.quantized_ms,
        "FP16 again": facts.fp16_again_ms,
    }
    rows = [
        {"variant": name, "ms": time, "round": number}
        for name, times in contestants.items()
        for number, time in enumerate(times, start=1)
    ]
    y = {"field": "variant", "type": "nominal", "sort": None, "title": None}
    x = {"type": "quantitative", "title": "ms", "scale": {"zero": False, "nice": True}}
    return {
        **_chart(
            description="Time of every round in ms: FP16, quantized, and FP16 a second time",
            height=34 * len(contestants),
            values=rows,
        ),
        "encoding": {"y": y},
        "layer": [
            {
                "mark": {"type": "point", "size": 40, "opacity": 0.6, "aria": False},
                "encoding": {
                    "x": {"field": "ms", **x},
                    "color": {
                        **_scale("variant", list(contestants), [FP16, QUANTIZED, FP16]),
                        "legend": None,
                    },
                    "tooltip": [
                        {"field": "variant", "title": "variant"},
                        {"field": "round", "title": "round"},
                        {"field": "ms", "title": "ms", "format": ".3~f"},
                    ],
                },
            },
            {
                "mark": {"type": "tick", "thickness": 3, "size": 26, "color": "var(--ink)"},
                "encoding": {"x": {"aggregate": "median", "field": "ms", **x}},
            },
        ],
    }


def draw_history(facts: HistoryFacts) -> Spec:
    """Return a figure over the runs, each at its place in time, with its revision."""
    scale = 100 if facts.unit == "%" else 1
    rows = [
        {
            "run": number,
            "day": point.time[:10],
            "revision": point.commit[:12] or "unknown",
            "value": point.value * scale,
        }
        for number, point in enumerate(facts.points, start=1)
    ]
    title = f"{facts.figure.replace('_', ' ')}{f', {facts.unit}' if facts.unit else ''}"
    return {
        **_chart(description=f"{facts.gate} {facts.figure} of every run", height=120, values=rows),
        "mark": {"type": "line", "point": {"size": 45}, "color": QUANTIZED, "aria": False},
        "encoding": {
            "x": {
                "field": "run",
                "type": "quantitative",
                "title": "runs, the oldest first",
                "axis": {"tickMinStep": 1, "format": "d", "grid": False},
                "scale": {"nice": False, "padding": 6},
            },
            "y": {
                "field": "value",
                "type": "quantitative",
                "title": title,
                "scale": {"zero": False, "nice": True},
            },
            "tooltip": [
                {"field": "day", "title": "day"},
                {"field": "revision", "title": "revision"},
                {"field": "value", "title": title, "format": ".5~g"},
            ],
        },
    }


def _scale(field: str, domain: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    return {
        "field": field,
        "type": "nominal",
        "scale": {"domain": list(domain), "range": list(values)},
    }
