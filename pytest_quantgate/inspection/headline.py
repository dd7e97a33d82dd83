"""One sentence on a file, and the table below it: operands counted by tower and kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pytest_quantgate.artifacts.operands import Artifact, Operand, Slot
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.inspection.findings import OperandFacts, Row
from pytest_quantgate.text.words import count, listed

_KINDS = {"linear": "Linear", "conv": "Conv", "embedding": "Embedding", "norm": "LayerNorm"}

_SLOTS: dict[Slot, str] = {"attention_output": "output", "softmax": "softmax"}

_ORDER = ("vision", "text", "other")


def name_format(format: str) -> str:
    """Return a format as people name it: `FP8 (E4M3)`, `INT8`."""
    family = _family_of(format)
    return f"{family} ({format})" if family != format else format


def _family_of(format: str) -> str:
    kind = find_format(format)
    return format if kind is None else kind.family


def name_recipe(artifact: Artifact) -> str:
    """Return what a file looks as if it was made by: `fp8-attention`, `int8 weight-only`, `mixed`.

    Empty where nothing is quantized.
    """
    operands = [o for o in artifact.operands if o.kind in ("linear", "attention")]
    weights = {o.format for o in operands if o.slot == "weight" and o.is_quantized}
    inputs = {o.format for o in operands if o.slot == "input" and o.is_quantized}
    products = {o.slot for o in operands if o.kind == "attention" and o.is_quantized}
    if not weights:
        return "attention-only" if products else ""
    if len(weights) > 1:
        return "mixed"
    format = next(iter(weights))
    name = _family_of(format).lower()
    if artifact.pre_scaled:
        name += "-smoothquant" if format == "INT8" else "-awq"
    if not inputs:
        return f"{name} weight-only"
    kind = find_format(format)
    is_blocked = kind is not None and kind.scale_bits is not None  # dynamic by its nature
    if not is_blocked and all(o.dynamic for o in operands if o.slot == "input" and o.is_quantized):
        name += "-dynamic"
    return f"{name}-attention" if products else name


def write_headline(artifact: Artifact) -> str:
    """Return the sentence: what it is, who wrote it, and how much of it is quantized."""
    by = f" of {artifact.tool}" if artifact.tool else ""
    recipe = name_recipe(artifact)
    what = f"{recipe} {artifact.what}" if recipe else f"plain {artifact.what}"
    linear = [o for o in artifact.operands if o.kind == "linear" and o.slot == "weight"]
    on = [o for o in linear if o.is_quantized]
    if not recipe:
        types = Counter(o.stored for o in linear)
        stored = f", {listed([name for name, _ in types.most_common()])}" if types else ""
        return f"{what}{by}: nothing is quantized ({count_layers(artifact.operands)}{stored})"
    formats = [name_format(name) for name, _ in Counter(o.format for o in on).most_common()]
    layers = count(len(linear), "Linear layer")
    text = f"{what}{by}: {len(on)} of {layers} {' and '.join(formats)}"
    products = [o for o in artifact.operands if o.kind == "attention" and o.is_quantized]
    if products:
        slots = dict.fromkeys(_SLOTS.get(o.slot, o.slot) for o in products)
        places = Counter(o.tower for o in products if o.slot == products[0].slot)
        blocks = "+".join(str(number) for _, number in _in_order(places))
        text += f", attention {' '.join(slots)} in {blocks} blocks"
    return text


def count_layers(operands: Sequence[Operand]) -> str:
    """Return `28 Linear layers`, of a file without any `64 Conv layers`, or that none are found."""
    weights = Counter(o.kind for o in operands if o.slot == "weight")
    for kind in ("linear", "conv", "embedding"):
        if weights[kind]:
            return count(weights[kind], f"{_KINDS[kind]} layer")
    return "no layer with a stored weight was found"


def _in_order(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: _rank(item[0]))


def make_rows(operands: Sequence[Operand]) -> tuple[Row, ...]:
    """Return the table: a line for operands of one tower, kind and way of being quantized."""
    named = {o.tower for o in operands} - {"other"}
    if len(named) == 1:  # a lone tower, of which the names of some layers tell which it is
        operands = [replace(o, tower=next(iter(named))) for o in operands]
    groups: dict[tuple[str, str, Slot], list[Operand]] = {}
    for o in operands:
        if o.kind == "other" and not o.is_quantized:
            continue
        groups.setdefault((o.tower, o.kind, o.slot), []).append(o)
    weights: Counter[str] = Counter()
    for o in operands:
        weights[o.tower] += o.values
    rows = []
    for (tower, kind, slot), found in groups.items():
        label = _SLOTS.get(slot, slot)
        what = f"{_KINDS.get(kind, kind)} {label}" if kind != "attention" else f"attention {label}"
        on = [o for o in found if o.is_quantized]
        share = None
        if slot == "weight" and weights[tower]:
            share = sum(o.values for o in on) / weights[tower]
        rows.append(
            Row(
                tower=tower,
                what=what,
                quantized=len(on),
                total=len(found),
                format=", ".join(dict.fromkeys(o.format for o in on)),
                scales=_describe_scales(on),
                stored=", ".join(dict.fromkeys(o.stored for o in found if o.stored)),
                share=share,
            )
        )
    return _merge(sorted(rows, key=_place))


def list_facts(operands: Sequence[Operand]) -> tuple[OperandFacts, ...]:
    """Return every operand by itself, in the order of the file."""
    return tuple(
        OperandFacts(
            layer=o.layer,
            tower=o.tower,
            kind=o.kind,
            slot=o.slot,
            format=o.format,
            scales=o.granularity,
            dynamic=o.dynamic,
            symmetric=o.symmetric,
            stored=o.stored,
            is_packed=o.is_quantized and o.is_packed,
            smallest=min(o.ranges) if o.ranges else None,
            largest=max(o.ranges) if o.ranges else None,
        )
        for o in operands
    )


def _describe_scales(operands: Sequence[Operand]) -> str:
    """Return `per-tensor`, `per-token dynamic`: static, symmetric ones are not said to be so."""
    words = ["/".join(dict.fromkeys(o.granularity for o in operands if o.granularity))]
    if any(o.dynamic for o in operands):
        words.append("dynamic")
    if not all(o.symmetric for o in operands):
        words.append("asymmetric")
    return " ".join(filter(None, words))


def _rank(tower: str) -> int:
    return _ORDER.index(tower) if tower in _ORDER else len(_ORDER)


def _place(row: Row) -> tuple[int, int]:
    kinds = ("Linear", "attention", "Conv", "Embedding", "LayerNorm")
    kind = row.what.partition(" ")[0]
    return _rank(row.tower), kinds.index(kind) if kind in kinds else len(kinds)


def _merge(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows with those of one kind joined that say the same: `attention q, k, v`."""
    merged: list[Row] = []
    for row in rows:
        last = merged[-1] if merged else None
        kind, _, slot = row.what.partition(" ")
        if last is not None and last.what.startswith(f"{kind} ") and _says(last) == _says(row):
            text = f"{last.what} {slot}" if kind == "attention" else f"{last.what}, {slot}"
            merged[-1] = replace(last, what=text, share=_either(last, row))
        else:
            merged.append(row)
    return tuple(merged)


def _says(row: Row) -> tuple[object, ...]:
    scales = row.scales if row.what.startswith("attention") or row.quantized == 0 else row.what
    return (row.tower, row.quantized, row.total, row.format, scales)


def _either(one: Row, two: Row) -> float | None:
    return one.share if one.share is not None else two.share
