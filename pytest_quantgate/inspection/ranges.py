"""Ranges and scales: missing, impossible, of other weights, or suspiciously alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median

from pytest_quantgate.artifacts.operands import Operand
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.inspection.findings import Finding, name_all
from pytest_quantgate.quantization.quantizers import block_of
from pytest_quantgate.text.words import count, group, listed

#: A weight's range is that of its largest value; calibration in half precision moves it by less.
_STALE = 0.01

#: A weight of one block that is so many times larger or smaller than its like in the others.
_OUTLIER = 5.0

#: An activation's range that is so many times wider or narrower than its like in other blocks.
_WIDE = 8.0

_AGAIN = "calibrate again with finite data that passes both towers, and save again"


def find_ranges(
    operands: Sequence[Operand], *, pre_scaled: bool, by_max: bool
) -> Iterator[Finding]:
    """Yield what is wrong with ranges; `pre_scaled` weights were scaled after calibration.

    `by_max` says that a weight's range should be that of its largest value.
    """
    quantized = [o for o in operands if o.is_quantized]
    yield from _find_impossible(quantized)
    yield from _find_codes(quantized)
    if not pre_scaled:
        yield from _find_stale(quantized, by_max=by_max)
        yield from _find_split_inputs(quantized)
    yield from _find_equal(quantized)
    yield from _find_merged(quantized)
    yield from _find_outliers(quantized)


def _name(operand: Operand) -> str:
    return f"{operand.layer}.{operand.slot}"


def _find_impossible(operands: Sequence[Operand]) -> Iterator[Finding]:
    missing = [_name(o) for o in operands if o.needs_range and not o.ranges]
    yield from name_all(
        "check.range-missing",
        missing,
        "quantizer",
        "without a range (amax or scale)",
        cause="never calibrated: each batch is then quantized with its own range, without a "
        "word; or its tensor was lost, which ModelOpt fills with uninitialised memory",
        next_step=_AGAIN,
    )
    unfit = [o.layer for o in operands if o.ranges and not o.fits]
    yield from name_all(
        "check.scale-shape",
        unfit,
        "weight",
        "with a number of scales that its shape does not allow",
        cause="a damaged or edited file, or scales of another layer",
        next_step="quantize these layers again, or export again",
    )
    known = [o for o in operands if o.ranges]
    odd = [_name(o) for o in known if any(not math.isfinite(r) for r in o.ranges or ())]
    yield from name_all(
        "check.range-not-finite",
        odd,
        "range",
        "NaN or infinite",
        cause="calibration data that overflowed in half precision, or a damaged file",
        next_step=_AGAIN,
    )
    negative = [_name(o) for o in known if any(r < 0 for r in o.ranges or ())]
    yield from name_all(
        "check.range-negative",
        negative,
        "range",
        "negative",
        cause="a damaged or edited file: a range is a largest magnitude",
        next_step=_AGAIN,
    )
    zero = [_name(o) for o in known if _has_zero(o)]
    yield from name_all(
        "check.range-zero",
        zero,
        "range",
        "zero",
        cause="an input that was all zero in calibration (empty batches, a tower that was "
        "never run), or a scale that underflowed in half precision",
        next_step=_AGAIN,
    )


def _has_zero(operand: Operand) -> bool:
    """Return whether a range is 0 where something has to be represented; a dead row may have it."""
    ranges = operand.ranges or ()
    if 0 not in ranges:
        return False
    summary = operand.summary
    if summary is None or len(summary.largest) != len(ranges):
        return True
    return any(r == 0 and top > 0 for r, top in zip(ranges, summary.largest, strict=True))


def _find_codes(operands: Sequence[Operand]) -> Iterator[Finding]:
    unknown = [o for o in operands if find_format(o.format) is None]
    if unknown:
        stored = listed(sorted({o.stored for o in unknown if o.stored})) or "other operands"
        yield Finding(
            code="check.format-unknown",
            headline=f"{count(len(unknown), 'operand')} with a scale and in no known format "
            f"({stored}): {listed(group(map(_name, unknown)))}",
            cause="weights in full precision beside scales, or a format of another tool",
            next_step="quantize again; nothing can be told of these",
            subjects=tuple(map(_name, unknown)),
        )
    odd = [o for o in operands if o.summary and o.summary.not_finite]
    if odd:
        names = [o.layer for o in odd]
        number = sum(o.summary.not_finite for o in odd if o.summary)
        yield Finding(
            code="check.weight-not-finite",
            headline=f"{count(number, 'value')} NaN or infinite in "
            f"{count(len(odd), 'quantized weight')}: {listed(group(names))}",
            cause="a range of 0 or NaN when the weight was quantized, or a damaged file",
            next_step="quantize again from finite weights",
            subjects=tuple(names),
        )
    empty = [
        o.layer
        for o in operands
        if o.summary and o.values and not (any(o.summary.largest) or o.summary.not_finite)
    ]
    yield from name_all(
        "check.weight-zero",
        empty,
        "quantized weight",
        "all zero",
        cause="a scale far too large when it was quantized, or a tensor that was never filled",
        next_step="quantize again",
    )
    beyond = [o for o in operands if o.summary and o.summary.beyond]
    if beyond:
        names = [o.layer for o in beyond]
        yield Finding(
            code="check.codes-overflow",
            headline=f"{count(len(beyond), 'weight')} with codes that {beyond[0].format} does not "
            f"have, stored as {beyond[0].stored}: {listed(group(names))}",
            cause="a label of fewer bits than the weight was quantized to",
            next_step="correct the label, or quantize again",
            subjects=tuple(names),
        )


def _find_stale(operands: Sequence[Operand], *, by_max: bool) -> Iterator[Finding]:
    """Yield weights in full precision whose range is not that of their largest value.

    Where they were not calibrated by their largest values, one that is far off from all others.
    """
    ratios = [
        (o, _compare_range(o))
        for o in operands
        if o.slot == "weight" and not o.is_packed and o.summary and o.ranges
    ]
    known = [(o, ratio) for o, ratio in ratios if ratio and math.isfinite(ratio)]
    if not known:
        return
    usual = 1.0 if by_max else median(ratio for _, ratio in known)
    off = _STALE if abs(usual - 1) <= _STALE else _OUTLIER - 1
    stale = [(o, r) for o, r in known if max(r / usual, usual / r) > 1 + off]
    if stale:
        first, ratio = stale[0]
        yield Finding(
            code="check.range-stale",
            headline=f"{count(len(stale), 'weight')} with a range that is not theirs: that of "
            f"{first.layer} is {ratio:.3g} times its largest value"
            + (f", of the others {usual:.3g} times" if abs(usual - 1) > _STALE else ""),
            cause="the weights were trained, loaded or scaled after calibration, or the range was "
            "edited",
            next_step="calibrate the weights that are shipped, and save again",
            subjects=tuple(o.layer for o, _ in stale),
        )


def _compare_range(operand: Operand) -> float | None:
    """Return range over largest value of a weight: of the channel where they are furthest apart."""
    ranges, largest = operand.ranges or (), operand.summary.largest if operand.summary else ()
    if len(ranges) != len(largest):
        ranges, largest = (max(ranges, default=0.0),), (max(largest, default=0.0),)
    found = [r / top for r, top in zip(ranges, largest, strict=True) if r > 0 and top > 0]
    return max(
        found, key=lambda ratio: abs(math.log(ratio)) if math.isfinite(ratio) else 0.0, default=None
    )


def _find_split_inputs(operands: Sequence[Operand]) -> Iterator[Finding]:
    """Yield attentions whose q, k and v projections, which read one tensor, have other ranges."""
    by_parent: dict[str, dict[str, float]] = {}
    for o in operands:
        parent, _, child = o.layer.rpartition(".")
        reads_same = child in ("q_proj", "k_proj", "v_proj", "query", "key", "value")
        if block_of(o.layer) is None or "cross" in parent:
            continue  # a pooling head and cross-attention read two tensors
        if o.slot == "input" and reads_same and o.ranges and len(o.ranges) == 1:
            by_parent.setdefault(parent, {})[child] = o.ranges[0]
    split = [
        parent
        for parent, found in by_parent.items()
        if len(found) > 1
        and all(math.isfinite(r) and r > 0 for r in found.values())
        and max(found.values()) > 1.001 * min(found.values())
    ]
    if split:
        yield Finding(
            code="check.inputs-disagree",
            headline=f"q, k and v projections read one tensor and have different input ranges in "
            f"{count(len(split), 'attention')}: {listed(group(split))}",
            cause="a range that was edited, or is of another checkpoint",
            next_step=_AGAIN,
            subjects=tuple(split),
        )


def _find_equal(operands: Sequence[Operand]) -> Iterator[Finding]:
    """Yield weights that have all the same scale: a default that was never replaced."""
    rows = [
        o
        for o in operands
        if o.slot == "weight"
        and o.ranges
        and len(o.ranges) >= 8
        and len(set(o.ranges)) == 1
        and o.granularity.startswith(("per-channel", "block"))
    ]
    single = [o for o in operands if o.slot == "weight" and o.ranges and len(o.ranges) == 1]
    alike = single if len(single) >= 4 and len({o.ranges for o in single}) == 1 else []
    inputs = [o for o in operands if o.slot == "input" and o.ranges and len(o.ranges) == 1]
    if len(inputs) >= 4 and len({o.ranges for o in inputs}) == 1 and not _is_smoothed(inputs[0]):
        alike = [*alike, *inputs]
    found = [*rows, *alike]
    if found:
        names = [_name(o) for o in found]
        yield Finding(
            code="check.scales-equal",
            headline=f"{count(len(found), 'operand')} with scales that are all equal: "
            f"{listed(group(names))}",
            cause="a default that calibration never replaced",
            next_step=_AGAIN,
            subjects=tuple(names),
        )


def _is_smoothed(operand: Operand) -> bool:
    """Return whether an input's range is 1, as ModelOpt's SmoothQuant scales every one of them."""
    return operand.ranges is not None and abs(operand.ranges[0] - 1) < 1e-6


def _find_merged(operands: Sequence[Operand]) -> Iterator[Finding]:
    """Yield attentions whose q, k and v weights, of different size, share one scale."""
    by_parent: dict[str, dict[str, Operand]] = {}
    for o in operands:
        parent, _, child = o.layer.rpartition(".")
        if o.slot == "weight" and child in ("q_proj", "k_proj", "v_proj") and o.ranges:
            by_parent.setdefault(parent, {})[child] = o
    merged = [
        parent
        for parent, found in by_parent.items()
        if len(found) == 3
        and len({o.ranges for o in found.values()}) == 1
        and len({o.summary.largest for o in found.values() if o.summary}) > 1
    ]
    if merged and len(merged) == len(by_parent):
        yield Finding(
            code="check.qkv-merged",
            headline=f"q, k and v weights share one scale in {count(len(merged), 'attention')}, "
            f"and are not equally large: {listed(group(merged))}",
            cause="ModelOpt's unified export merges the scales of layers that a serving engine "
            "fuses, and rounds their codes again",
            next_step="measure this file, not the model it was exported from: its weights are "
            "others; an engine that does not fuse q, k and v is better served per channel",
            subjects=tuple(merged),
        )


def _find_outliers(operands: Sequence[Operand]) -> Iterator[Finding]:
    """Yield packed weights that are, dequantized, far larger or smaller than their like."""
    peers: dict[str, list[Operand]] = {}
    for o in operands:
        number = block_of(o.layer)
        if o.slot == "weight" and o.is_packed and o.summary and number is not None:
            key = o.layer.replace(f".{number}.", ".*.", 1)
            peers.setdefault(key, []).append(o)
    far = []
    for found in peers.values():
        sizes = [o.summary.rms for o in found if o.summary and o.summary.rms > 0]
        middle = median(sizes) if len(sizes) >= 2 else 0.0
        if len(sizes) == 2:
            middle = min(sizes)
        far += [
            o
            for o in found
            if o.summary
            and middle
            and o.summary.rms > 0
            and not 1 / _OUTLIER < o.summary.rms / middle < _OUTLIER
        ]
    if far:
        names = [o.layer for o in far]
        yield Finding(
            code="check.scale-outlier",
            headline=f"{count(len(far), 'weight')} {_OUTLIER:g} times larger or smaller, once "
            f"dequantized, than the same layer in other blocks: {listed(group(names))}",
            cause="a scale that was edited, or is another layer's",
            next_step="compare with the base: quantgate check THIS --base FP16",
            subjects=tuple(names),
        )


def list_wide(operands: Sequence[Operand]) -> list[str]:
    """Return a note on activations whose range is far from that of their like in other blocks."""
    peers: dict[tuple[str, str], list[Operand]] = {}
    for o in operands:
        number = block_of(o.layer)
        if o.slot != "weight" and o.ranges and len(o.ranges) == 1 and number is not None:
            key = (o.slot, o.layer.replace(f".{number}", ".*", 1))
            peers.setdefault(key, []).append(o)
    wide = []
    for found in peers.values():
        ranges = [o.ranges[0] for o in found if o.ranges and o.ranges[0] > 0]
        middle = median(ranges) if len(ranges) >= 3 else 0.0
        wide += [
            f"{_name(o)} ({o.ranges[0]:.3g}, others {middle:.3g})"
            for o in found
            if o.ranges
            and middle
            and math.isfinite(o.ranges[0])
            and not 1 / _WIDE < o.ranges[0] / middle < _WIDE
            and o.ranges[0] > 0
        ]
    if not wide:
        return []
    return [f"ranges far from their like in other blocks: {listed(wide)}: outliers, or edited"]
