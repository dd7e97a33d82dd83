"""The calibration gate's part on ranges: each is there, is the values' own, and is used."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail, let_pass
from pytest_quantgate.gates.idle import INTERCEPTED, advise_idle
from pytest_quantgate.text.words import count, group, list_groups, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.audit import Audit, Quantizer
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.suite.where import Where

GATE = "calibration"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)

#: Algorithms that take a weight's range from the weight as it is, and how far rounding may move it.
EXACT_ALGORITHMS = ("max", "smoothquant")
WEIGHT_TOLERANCE = 0.01

#: So many times wider than the largest value costs four bits of a fixed-point format.
TOO_WIDE = 16.0


def judge_amax(
    static: Sequence[Quantizer],
    *,
    algorithm: str,
    where: Where,
    attention: str = INTERCEPTED,
) -> Verdict:
    if not static:
        return _fail(
            "nothing-static",
            f"no static quantizer is enabled: nothing to calibrate ({where})",
            cause="the recipe quantizes nothing, or takes each range from the values at hand",
            next_step="choose a recipe with static ranges, or leave the calibration gate out",
        )
    missing = [q.name for q in static if not has_amax(q)]
    broken = [q.name for q in static if has_amax(q) and not q.amax_finite]
    zero = [
        q.name
        for q in static
        if has_amax(q) and q.amax_finite and q.amax_min is not None and q.amax_min <= 0
    ]
    own = "no amax: each batch is quantized with its own range, and nothing says so"
    found = [
        (missing, own, "missing"),
        (broken, "an amax that is NaN or Inf", "nonfinite"),
        (zero, "an amax that is not positive", "zero"),
    ]
    bad = [part for part in found if part[0]]
    if not bad:
        return _pass(f"{len(static)} amax finite and positive")
    total = sum(len(names) for names, *_ in bad)
    names, words, code = bad[0]
    cause = "enabled after the calibration, or never reached by its forward"
    if missing and algorithm == "none":
        cause = "the recipe has algorithm: null, which calibrates nothing"
    next_step = (
        "write algorithm: max into the recipe"
        if missing and algorithm == "none"
        else "calibrate again with batches that reach these modules"
    )
    idle = [q for q in static if q.name in names and q.own_calls == 0]
    if len(idle) == len(names):  # no batch will ever reach them
        cause, next_step = advise_idle(idle, among=static, attention=attention)
    return _fail(
        f"amax-{code}",
        f"{total} of {len(static)} enabled static quantizers cannot be trusted: {len(names)} with "
        f"{words} ({where})",
        evidence=shorten(
            [f"{line}: {words}" for names, words, _ in bad for line in group(names)], noun="groups"
        ),
        cause=cause,
        next_step=next_step,
        figures={
            "amax_missing": len(missing),
            "amax_nonfinite": len(broken),
            "amax_zero": len(zero),
        },
    )


def judge_weights(static: Sequence[Quantizer], *, algorithm: str, where: Where) -> Verdict | None:
    """A weight's range is the weight's own largest value: where it is not, one of them changed."""
    if algorithm not in EXACT_ALGORITHMS:
        return None
    weights = [q for q in static if q.slot == "weight" and has_amax(q)]
    weights = [q for q in weights if q.largest or q.ranges_off]
    # Values are not watched in blocks of two axes: there the ranges are all that is known.
    off = {q.name: abs(math.log(_width(q))) if q.largest else 0.0 for q in weights}
    other = [q for q in weights if q.ranges_off or off[q.name] > math.log1p(WEIGHT_TOLERANCE)]
    if not other:
        return _pass(f"{len(weights)} weights have the range of the weight itself")
    worst = max(other, key=lambda q: off[q.name])
    goes_to = "" if worst.largest is None else f", its weight goes to {worst.largest:.4g}"
    return _fail(
        "weights-changed",
        f"the ranges of {len(other)} of {len(weights)} weights are not those of the weights: "
        f"{worst.name} has amax {worst.amax_max:.4g}{goes_to}{_count_off(worst)} ({where})",
        evidence=list_groups(q.name for q in other),
        cause="the weights were changed after the calibration (fine-tuned, swapped, loaded anew), "
        "or the ranges are those of another checkpoint",
        next_step="calibrate the weights that ship: quantize again as the last step",
        figures={"weights_out_of_range": len(other)},
    )


def _count_off(quantizer: Quantizer) -> str:
    """Return how many of several ranges are not those of their own values, '' for one range."""
    if quantizer.amax_count < 2 or not quantizer.ranges_off:
        return ""
    return f", {quantizer.ranges_off} of {quantizer.amax_count} ranges are others"


def judge_input_scales(audit: Audit, *, where: Where) -> Verdict | None:
    """What SmoothQuant and AWQ multiply inputs by is a number above 0, everywhere, and applied.

    The weights were multiplied by its inverse: without it the layer computes something else.
    """
    scales = audit.input_scales
    if not scales:
        return None
    broken = [s.module for s in scales if not s.finite or s.smallest <= 0]
    idle = [s.module for s in scales if s.applied is False]
    there = {s.module for s in scales}
    classes = {m.class_name for m in audit.modules if m.name in there}
    lost = [
        q.module
        for q in audit.quantizers
        if q.slot == "weight" and q.enabled and q.module not in there and q.module_class in classes
    ]
    if broken:
        return _fail(
            "scale-broken",
            f"{len(broken)} of {count(len(scales), 'input scale')} hold NaN, Inf or a value that "
            f"is not above 0 ({where})",
            evidence=list_groups(broken),
            cause="SmoothQuant or AWQ met channels without values, or the checkpoint is damaged",
            next_step="calibrate on more samples, and quantize again",
            figures={"input_scales_broken": len(broken)},
        )
    if idle:
        return _fail(
            "scale-idle",
            f"{len(idle)} of {count(len(scales), 'input scale')} are not applied: the layer's "
            f"output does not change with them ({where})",
            evidence=list_groups(idle),
            cause="a forward goes around the layer's input quantizer, which applies the scale also "
            "where it is off, and the weight was multiplied by the inverse",
            next_step="let the layer's own quantized forward run",
            figures={"input_scales_idle": len(idle)},
        )
    if lost:
        return _fail(
            "scale-missing",
            f"{count(len(lost), 'layer')} of {len(lost) + len(scales)} "
            f"{'has' if len(lost) == 1 else 'have'} no input scale, which the others have "
            f"({where})",
            evidence=list_groups(lost),
            cause="the scale of SmoothQuant or AWQ was lost, and the weight was multiplied by its "
            "inverse",
            next_step="quantize again, and restore with ModelOpt's state",
            figures={"input_scales_missing": len(lost)},
        )
    return _pass(f"{count(len(scales), 'input scale')} applied")


def judge_width(static: Sequence[Quantizer], *, where: Where) -> Verdict | None:
    """A range much too wide clips nothing, and rounds all that is small to nothing."""
    found = [
        q for q in static if q.slot != "weight" and has_amax(q) and q.amax_finite and q.largest
    ]
    wide = sorted((q for q in found if _width(q) > TOO_WIDE), key=lambda q: -_width(q))
    if not wide:
        return None
    return _fail(
        "range-too-wide",
        f"{len(wide)} ranges are more than {TOO_WIDE:g} times wider than anything seen on "
        f"held-out data; worst {wide[0].name}: amax {wide[0].amax_max:.4g}, values go to "
        f"{wide[0].largest:.4g} ({where})",
        evidence=shorten([f"{q.name}: {_width(q):.3g} times wider than its values" for q in wide]),
        cause="calibration data unlike the real data (other preprocessing, noise), or a range that "
        "was changed afterwards",
        next_step="calibrate on data that the model will see, preprocessed as it will be",
        figures={"widest_range": _width(wide[0])},
    )


def judge_calls(
    static: Sequence[Quantizer], *, where: Where, attention: str = INTERCEPTED
) -> Verdict:
    idle = [q for q in static if q.own_calls == 0]
    if not idle:
        return _pass("every enabled quantizer was called in its tower's forward")
    with_amax = sum(q.amax_count > 0 for q in idle)
    cause, next_step = advise_idle(idle, among=static, attention=attention)
    return _fail(
        "never-called",
        f"{len(idle)} of {len(static)} enabled quantizers were never called in a forward "
        f"({with_amax} of them have an amax, which proves nothing) ({where})",
        evidence=list_groups(q.name for q in idle),
        cause=cause,
        next_step=next_step,
        figures={"never_called": len(idle)},
    )


def _width(quantizer: Quantizer) -> float:
    """Return how many times wider a range is than anything that the quantizer was given."""
    assert quantizer.amax_max is not None
    assert quantizer.largest is not None
    return quantizer.amax_max / quantizer.largest if quantizer.amax_max > 0 else 1.0


def has_amax(quantizer: Quantizer) -> bool:
    return quantizer.amax_max is not None and quantizer.amax_count > 0
