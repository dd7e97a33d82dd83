"""What the report draws: facts in, charts out. A table beside each chart holds the same numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from pytest_quantgate.report.facts import figure
from pytest_quantgate.report.model import GateResult, HistoryFacts, LatencyFacts, QuantizerFacts
from pytest_quantgate.report.svg import Chart, Mark, Scale, Shape

#: A floor further than this below all values would press them together: the table has it.
FLOOR_REACH = 12

#: What a point of the amax chart is of, by slot.
OPERANDS = {
    "weight": "weight",
    "input": "layer input",
    "output": "layer output",
}

#: Shape and series of the groups of a chart along the model, in their order.
GROUPS: tuple[tuple[Shape, str], ...] = (
    ("circle", "quantized"),
    ("triangle", "second"),
    ("diamond", "third"),
    ("square", "fp16"),
)

#: Room beside the outermost values, as a share of what lies between them.
ROOM = 0.05


def near_floors(gates: Sequence[GateResult]) -> list[GateResult]:
    """Return the gates whose floor is drawn: a far one would press the values together."""
    values = [figure(gate, name) for gate in gates for name in ("fp16_value", "quantized_value")]
    lowest = min(values) * 100 - FLOOR_REACH
    return [gate for gate in gates if figure(gate, "floor") * 100 > lowest]


def draw_values(gates: Sequence[GateResult]) -> Chart:
    """Return FP16 and quantized side by side, a row a task, with floors that are near.

    The axis spans at least the largest limit: a change far within it must not look large.
    """
    kinds: list[tuple[Shape, str, str, str]] = [
        ("ring", "fp16", "FP16", "fp16_value"),
        ("diamond", "quantized", "quantized", "quantized_value"),
    ]
    near = near_floors(gates)
    floor: tuple[Shape, str, str, str] = ("tick", "limit", "floor", "floor")
    marks = [
        Mark(
            x=(value := figure(gate, key) * 100),
            y=row,
            shape=shape,
            series=series,
            text=f"{gate.key}: {name} {value:.2f} %",
        )
        for row, gate in enumerate(gates)
        for shape, series, name, key in (*kinds, *([floor] if gate in near else []))
    ]
    least = max(_finite(figure(gate, "max_drop_points") for gate in gates), default=0.0)
    low, high = _span((mark.x for mark in marks), least=least)
    return Chart(
        title="FP16 and quantized",
        description="Accuracy of FP16 and the quantized variant for each task, in percent",
        x=Scale(low=max(0.0, low), high=min(100.0, high), title="%"),
        marks=marks,
        rows=[gate.key for gate in gates],
        legend=[kind[:3] for kind in (*kinds, *([floor] if near else []))],
    )


def draw_drops(gates: Sequence[GateResult]) -> Chart:
    """Return the drop of every task with its interval and its limit, a row a task."""
    marks = []
    for row, gate in enumerate(gates):
        drop, low, high, limit = (
            figure(gate, name)
            for name in ("drop_points", "drop_low_points", "drop_high_points", "max_drop_points")
        )
        text = (
            f"{gate.key}, {gate.status.replace('_', ' ')}: drop {drop:.2f} [{low:.2f}, {high:.2f}] "
            f"pp, limit {limit:.2f} pp"
        )
        marks += [
            Mark(x=low, end=high, y=row, shape="interval", series="quantized", text=text),
            Mark(x=drop, y=row, shape="diamond", series="quantized", text=text),
        ]
        if math.isfinite(limit):
            marks.append(Mark(x=limit, y=row, shape="tick", series="limit", text=text))
    ends = [0.0, *(end for mark in marks for end in (mark.x, mark.end) if end is not None)]
    low, high = _span(_finite(ends))
    return Chart(
        title="Drop against FP16",
        description="Drop of every task with its interval and the limit of its gate, in "
        "percentage points",
        x=Scale(low=low, high=high, title="drop against FP16, percentage points"),
        marks=marks,
        rows=[gate.key for gate in gates],
        legend=[("diamond", "quantized", "drop and its interval"), ("tick", "limit", "limit")],
    )


def draw_layers(layers: Sequence[tuple[str, float]], *, towers: Mapping[str, str]) -> Chart:
    """Return the noise of every layer along the model; `layers` are in the model's order."""
    return _along_the_model(
        [
            (place, value, towers.get(name, "other"), f"{name}: SQNR {value:.1f} dB")
            for place, (name, value) in enumerate(layers)
            if math.isfinite(value)
        ],
        count=len(layers),
        names=("vision", "text", "other"),
        title="Noise of layers",
        description="SQNR of every layer by itself, in dB, along the model",
        unit="SQNR, dB (low is noisy)",
    )


def draw_amax(quantizers: Sequence[QuantizerFacts]) -> Chart:
    """Return the calibrated range of every quantizer along the model, on a log scale."""
    return _along_the_model(
        [
            (
                place,
                facts.amax_max,
                OPERANDS.get(facts.slot, "attention"),
                f"{facts.name}: amax {facts.amax_max:.4g}",
            )
            for place, facts in enumerate(quantizers)
            if facts.enabled and facts.amax_max and 0 < facts.amax_max < math.inf
        ],
        count=len(quantizers),
        names=("weight", "layer input", "attention", "layer output"),
        title="Calibrated ranges",
        description="Largest calibrated value (amax) of every quantizer along the model, log scale",
        unit="amax (log)",
        log=True,
    )


def _along_the_model(
    found: Sequence[tuple[int, float, str, str]],
    *,
    count: int,
    names: Sequence[str],
    title: str,
    description: str,
    unit: str,
    log: bool = False,
) -> Chart:
    """Return values along the model: the place of each, the value, its group of `names`, a text."""
    groups = dict(zip(names, GROUPS, strict=False))
    values = [value for _, value, _, _ in found]
    if log and values:
        low, high = (
            10.0 ** math.floor(math.log10(min(values))),
            10.0 ** math.ceil(math.log10(max(values)) + 1e-9),
        )
    else:
        low, high = _span(values)
    return Chart(
        title=title,
        description=description,
        x=Scale(
            low=0,
            high=max(1, count - 1),
            title="along the model: input to output, tower by tower",
            labelled=False,
        ),
        y=Scale(low=low, high=high, title=unit, log=log),
        marks=[
            Mark(x=place, y=value, shape=groups[name][0], series=groups[name][1], text=text)
            for place, value, name, text in found
        ],
        legend=[
            (*groups[name], name) for name in names if any(name == group for *_, group, _ in found)
        ],
    )


def draw_latency(facts: LatencyFacts) -> Chart:
    """Return every round's time of FP16, the quantized variant, and FP16 again."""
    runners = {
        "FP16": ("fp16", facts.fp16_ms),
        "quantized": ("quantized", facts.quantized_ms),
        "FP16 again": ("fp16", facts.fp16_again_ms),
    }
    marks = [
        Mark(
            x=time, y=row, shape="dot", series=series, text=f"{name}, round {number}: {time:.4g} ms"
        )
        for row, (name, (series, times)) in enumerate(runners.items())
        for number, time in enumerate(times, start=1)
    ]
    low, high = _span(mark.x for mark in marks)
    marks += [
        Mark(
            x=(median := statistics.median(times)),
            y=row,
            shape="tick",
            series="ink",
            text=f"{name}: median {median:.4g} ms",
        )
        for row, (name, (_, times)) in enumerate(runners.items())
        if times
    ]
    return Chart(
        title="Time of every round",
        description="Time of every round in ms: FP16, quantized, and FP16 a second time",
        x=Scale(low=low, high=high, title="ms"),
        marks=marks,
        rows=list(runners),
    )


def draw_history(facts: HistoryFacts) -> Chart:
    """Return a figure over the runs, each at its place in time, with its revision."""
    scale = 100 if facts.unit == "%" else 1
    title = f"{facts.figure.replace('_', ' ')}{f', {facts.unit}' if facts.unit else ''}"
    marks = [
        Mark(
            x=number,
            y=point.value * scale,
            shape="circle",
            series="quantized",
            text=f"{point.time[:10]}, revision {point.commit[:12] or 'unknown'}: "
            f"{point.value * scale:.5g}",
        )
        for number, point in enumerate(facts.points, start=1)
    ]
    low, high = _span(mark.y for mark in marks)
    return Chart(
        title=title,
        description=f"{facts.gate} {facts.figure} of every run",
        x=Scale(low=1, high=max(2, len(marks)), title="runs, the oldest first", whole=True),
        y=Scale(low=low, high=high, title=title),
        marks=marks,
        joined=True,
    )


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _span(values: Iterable[float], *, least: float = 0.0) -> tuple[float, float]:
    """Return the ends of an axis with some room around the values, at least `least` apart."""
    known = list(values) or [0.0]
    low, high = min(known), max(known)
    room = max(0.0, least - (high - low)) / 2 or ROOM * (high - low) or ROOM * abs(high) or 1.0
    return low - room, high + room
