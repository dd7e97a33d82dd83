"""The calibration gate: every range is finite, was used, and fits data that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_quantgate.gates.words import count, group, listed, percent, shorten
from pytest_quantgate.measurement import Audit, CalibrationRun, Quantizer
from pytest_quantgate.suite import CalibrationGate
from pytest_quantgate.verdict import Status, Verdict, combine

GATE = "calibration"

#: Algorithms that take a weight's range from the weight as it is, and how far rounding may move it.
EXACT_ALGORITHMS = ("max", "smoothquant")
WEIGHT_TOLERANCE = 0.01

#: So many times wider than the largest value costs four bits of a fixed-point format.
TOO_WIDE = 16.0


def judge_calibration(
    audit: Audit,
    run: CalibrationRun,
    *,
    evaluation_hashes: tuple[tuple[str, str], ...],
    gate: CalibrationGate,
) -> Verdict:
    """Return whether the ranges can be trusted.

    In this order: something ran through both towers at all, its data was finite, every enabled
    static quantizer has a finite positive amax, was called in its tower's forward, and clips at
    most `max_clipped` of held-out values; no evaluation sample was calibrated on.
    """
    static = [q for q in audit.quantizers if q.enabled and not q.dynamic]
    parts = (
        _judge_run(run, gate=gate),
        _judge_amax(static, gate=gate),
        _judge_weights(static, algorithm=audit.algorithm, gate=gate),
        _judge_calls(static, gate=gate),
        _judge_clipping(static, held_out_samples=run.held_out_samples, gate=gate),
        _judge_width(static, gate=gate),
        _judge_overlap(run, evaluation_hashes=evaluation_hashes, gate=gate),
    )
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    if not verdict.passed:
        return verdict
    activations = [q for q in static if q.seen]
    worst = max(activations, key=lambda q: q.clipped / q.seen)
    return Verdict(
        gate=GATE,
        status=Status.PASS,
        headline=f"calibration: {count(len(static), 'static quantizer')} with a finite amax, all "
        f"called; {run.samples} pairs in {run.batches} batches through both towers; worst clipping "
        f"{percent(worst.clipped / worst.seen, 3)} of held-out values ({worst.name}), within "
        f"max_clipped {percent(gate.max_clipped, 3)}",
        brief=f"{count(len(static), 'static quantizer')}, worst clipping "
        f"{percent(worst.clipped / worst.seen, 3)} within {percent(gate.max_clipped, 3)}",
        evidence=verdict.evidence,
        figures=verdict.figures,
    )


def judge_ranges(audit: Audit, *, gate: CalibrationGate) -> Verdict:
    """Return whether the ranges of a model can be trusted, without knowing how it got them.

    As `judge_calibration`, but for what only the calibration itself can tell.
    """
    static = [q for q in audit.quantizers if q.enabled and not q.dynamic]
    parts = (
        _judge_amax(static, gate=gate),
        _judge_weights(static, algorithm=audit.algorithm, gate=gate),
        _judge_calls(static, gate=gate),
        _judge_clipping(static, held_out_samples=None, gate=gate),
        _judge_width(static, gate=gate),
    )
    return combine(gate=GATE, parts=tuple(part for part in parts if part is not None))


def _verdict(status: Status, headline: str, **more: object) -> Verdict:
    return Verdict(gate=GATE, status=status, headline=f"calibration: {headline}", **more)  # type: ignore[arg-type]


def _judge_run(run: CalibrationRun, *, gate: CalibrationGate) -> Verdict:
    where = gate.where
    if run.batches == 0 or run.samples == 0:
        return _verdict(
            Status.FAIL,
            f"no batch was ever calibrated on: the ranges are each batch's own ({where})",
            next_step="give calibration.data and calibration.samples that are there",
        )
    if run.nonfinite:
        return _verdict(
            Status.FAIL,
            f"the calibration data holds NaN or Inf in {count(len(run.nonfinite), 'sample')}: "
            f"{listed(run.nonfinite)} ({where})",
            cause="damaged images, or a wrong mean or std in the preprocessing",
            next_step="repair or remove these samples",
        )
    idle = [
        name
        for name, batches in (("vision", run.vision_batches), ("text", run.text_batches))
        if batches == 0
    ]
    if idle:
        return _verdict(
            Status.FAIL,
            f"the {' and '.join(idle)} tower was never calibrated: 0 of {run.batches} batches went "
            f"through it ({where})",
            cause="the forward loop runs one tower only",
            next_step="calibrate with pairs: images and texts",
        )
    return _verdict(
        Status.PASS,
        f"{run.samples} pairs of {run.data} in {run.batches} batches through both towers",
        figures={"calibration_samples": run.samples, "calibration_batches": run.batches},
    )


def _judge_amax(static: Sequence[Quantizer], *, gate: CalibrationGate) -> Verdict:
    if not static:
        return _verdict(
            Status.FAIL, f"no static quantizer is enabled: nothing to calibrate ({gate.where})"
        )
    missing = [q.name for q in static if not _has_amax(q)]
    broken = [q.name for q in static if _has_amax(q) and not q.amax_finite]
    zero = [
        q.name
        for q in static
        if _has_amax(q) and q.amax_finite and q.amax_min is not None and q.amax_min <= 0
    ]
    found = [
        (missing, "no amax: each batch is quantized with its own range, and nothing says so"),
        (broken, "an amax that is NaN or Inf"),
        (zero, "an amax that is not positive"),
    ]
    bad = [(names, words) for names, words in found if names]
    if not bad:
        return _verdict(Status.PASS, f"{len(static)} amax finite and positive")
    total = sum(len(names) for names, _ in bad)
    names, words = bad[0]
    return _verdict(
        Status.FAIL,
        f"{total} of {len(static)} enabled static quantizers cannot be trusted: {len(names)} with "
        f"{words} ({gate.where})",
        evidence=shorten(
            [f"{line}: {words}" for names, words in bad for line in group(names)], noun="groups"
        ),
        cause="enabled after the calibration, or never reached by its forward",
        next_step="calibrate again with batches that reach these modules",
        figures={
            "amax_missing": len(missing),
            "amax_nonfinite": len(broken),
            "amax_zero": len(zero),
        },
    )


def _has_amax(quantizer: Quantizer) -> bool:
    return quantizer.amax_max is not None and quantizer.amax_count > 0


def _judge_weights(
    static: Sequence[Quantizer], *, algorithm: str, gate: CalibrationGate
) -> Verdict | None:
    """A weight's range is the weight's own largest value: where it is not, one of them changed."""
    if algorithm not in EXACT_ALGORITHMS:
        return None
    weights = [q for q in static if q.slot == "weight" and _has_amax(q) and q.largest]
    other = [q for q in weights if abs(_width(q) - 1) > WEIGHT_TOLERANCE]
    if not other:
        return _verdict(Status.PASS, f"{len(weights)} weights have the range of the weight itself")
    worst = max(other, key=lambda q: abs(math.log(_width(q))))
    return _verdict(
        Status.FAIL,
        f"the ranges of {len(other)} of {len(weights)} weights are not those of the weights: "
        f"{worst.name} has amax {worst.amax_max:.4g}, its weight goes to {worst.largest:.4g} "
        f"({gate.where})",
        evidence=shorten(group(q.name for q in other), noun="groups"),
        cause="the weights were changed after the calibration (fine-tuned, swapped, loaded anew), "
        "or the ranges are those of another checkpoint",
        next_step="calibrate the weights that ship: quantize again as the last step",
        figures={"weights_out_of_range": len(other)},
    )


def _width(quantizer: Quantizer) -> float:
    """Return how many times wider a range is than anything that the quantizer was given."""
    assert quantizer.amax_max is not None
    assert quantizer.largest is not None
    return quantizer.amax_max / quantizer.largest if quantizer.amax_max > 0 else 1.0


def _judge_width(static: Sequence[Quantizer], *, gate: CalibrationGate) -> Verdict | None:
    """A range much too wide clips nothing, and rounds all that is small to nothing."""
    found = [
        q for q in static if q.slot != "weight" and _has_amax(q) and q.amax_finite and q.largest
    ]
    wide = sorted((q for q in found if _width(q) > TOO_WIDE), key=lambda q: -_width(q))
    if not wide:
        return None
    return _verdict(
        Status.FAIL,
        f"{len(wide)} ranges are more than {TOO_WIDE:g} times wider than anything seen on "
        f"held-out data; worst {wide[0].name}: amax {wide[0].amax_max:.4g}, values go to "
        f"{wide[0].largest:.4g} ({gate.where})",
        evidence=shorten([f"{q.name}: {_width(q):.3g} times wider than its values" for q in wide]),
        cause="calibration data unlike the real data (other preprocessing, noise), or a range that "
        "was changed afterwards",
        next_step="calibrate on data that the model will see, preprocessed as it will be",
        figures={"widest_range": _width(wide[0])},
    )


def _judge_calls(static: Sequence[Quantizer], *, gate: CalibrationGate) -> Verdict:
    idle = [q for q in static if _calls(q) == 0]
    if not idle:
        return _verdict(Status.PASS, "every enabled quantizer was called in its tower's forward")
    with_amax = sum(q.amax_count > 0 for q in idle)
    return _verdict(
        Status.FAIL,
        f"{len(idle)} of {len(static)} enabled quantizers were never called in a forward "
        f"({with_amax} of them have an amax, which proves nothing) ({gate.where})",
        evidence=shorten(group(q.name for q in idle), noun="groups"),
        cause="the code path goes around them: another attn_implementation than the quantized "
        "attention class intercepts, a fused call, or a module that is not used",
        next_step="set model.attn_implementation: sdpa, or exclude these quantizers",
        figures={"never_called": len(idle)},
    )


def _calls(quantizer: Quantizer) -> int:
    if quantizer.tower == "vision":
        return quantizer.vision_calls
    if quantizer.tower == "text":
        return quantizer.text_calls
    return quantizer.calls


def _judge_clipping(
    static: Sequence[Quantizer], *, held_out_samples: int | None, gate: CalibrationGate
) -> Verdict:
    source = gate.where.of("max_clipped")
    measured = [q for q in static if q.seen > 0 and _has_amax(q)]
    if held_out_samples == 0 or not measured:
        return _verdict(
            Status.NOT_MEASURED,
            f"clipping was not measured: {held_out_samples or 0} held-out samples ({source})",
            next_step="set calibration.held_out_samples",
        )
    over = sorted(
        (q for q in measured if q.clipped > gate.max_clipped * q.seen),
        key=lambda q: -q.clipped / q.seen,
    )
    worst = max(measured, key=lambda q: q.clipped / q.seen)
    figures = {"worst_clipped_share": worst.clipped / worst.seen}
    if not over:
        return _verdict(Status.PASS, "clipping within max_clipped", figures=figures)
    first = over[0]
    return _verdict(
        Status.FAIL,
        f"{len(over)} quantizers clip more than max_clipped {percent(gate.max_clipped, 3)} of "
        f"values that they were not calibrated on; worst {first.name}: {first.clipped} of "
        f"{first.seen}, {percent(first.clipped / first.seen, 3)} ({source})",
        evidence=shorten(
            [
                f"{q.name}: {percent(q.clipped / q.seen, 3)} above amax {q.amax_max:.4g}"
                for q in over
            ]
        ),
        cause="calibration data unlike the real data (other preprocessing, too few samples), or "
        "ranges of another checkpoint",
        next_step="calibrate on more samples of the data that the model will see",
        figures=figures,
    )


def _judge_overlap(
    run: CalibrationRun,
    *,
    evaluation_hashes: tuple[tuple[str, str], ...],
    gate: CalibrationGate,
) -> Verdict:
    used = dict(run.sample_hashes)
    pairs = [(used[content], name) for content, name in evaluation_hashes if content in used]
    inside = [(used[content], name) for content, name in run.held_out_hashes if content in used]
    for found, what in ((pairs, "evaluation"), (inside, "held-out")):
        if found:
            return _verdict(
                Status.FAIL,
                f"{count(len(found), f'{what} sample')} by content also calibrated the quantizers: "
                f"the loss on them is not the loss on new data ({gate.where})",
                evidence=shorten(
                    [f"{name} is calibration sample {used_as}" for used_as, name in found], most=4
                ),
                cause="calibration.data and the task share images",
                next_step="calibrate on another split",
                figures={f"{what.replace('-', '_')}_overlap": len(found)},
            )
    return _verdict(
        Status.PASS,
        f"none of {len(evaluation_hashes)} evaluation samples was calibrated on",
    )
