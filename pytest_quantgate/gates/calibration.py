"""The calibration gate: every range is finite, was used, and fits data that it has not seen."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.formats.table import find_format, keeps_amax
from pytest_quantgate.gates.coverage import NOT_QUANTIZED
from pytest_quantgate.gates.deciding import fail, leave_open, let_pass
from pytest_quantgate.gates.idle import INTERCEPTED, advise_idle
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.samples import judge_copies
from pytest_quantgate.statistics.family import highest_rejected
from pytest_quantgate.statistics.intervals import (
    Interval,
    Share,
    chance_above,
    first_count,
    most_of_clumps,
    share_limits,
)
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import percent_key
from pytest_quantgate.text.words import count, group, list_groups, listed, percent, shorten, towers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.audit import (
        Audit,
        BatchInvariance,
        CalibrationRun,
        NearCopy,
        Quantizer,
    )

GATE = "calibration"
_fail = partial(fail, GATE)
_open = partial(leave_open, GATE)
_pass = partial(let_pass, GATE)


@dataclass(frozen=True, kw_only=True)
class CalibrationGate(GateSection):
    """`max_clipped` is the largest share of held-out values that a quantizer may clip.

    `max_batch_change` is how far an embedding may move with the rest of its batch, as a share of
    its length; None: no quantizer may take its range from the batch.
    """

    kind = GATE

    max_clipped: Fraction = field(
        default=Fraction(1, 1000),
        metadata=percent_key(help="share of held-out values that a quantizer may clip"),
    )
    max_batch_change: Fraction | None = field(
        default=None,
        metadata=percent_key(
            help="of an embedding, with other samples in its batch; default: what rounding explains"
        ),
    )


#: Algorithms that take a weight's range from the weight as it is, and how far rounding may move it.
EXACT_ALGORITHMS = ("max", "smoothquant")
WEIGHT_TOLERANCE = 0.01

#: Of the interval of a clipped share; FAIL holds with it for all quantizers together.
CONFIDENCE = 0.95

#: More held-out samples than so many times those there are help nobody.
MOST_TIMES = 1000

#: How far an embedding may move with its batch by rounding alone; more where the model itself does.
#: That floor comes of a dozen nudges, and a range of the batch is found at its quantizer anyway.
SAME_EMBEDDING = 1e-3
FLOOR_FACTOR = 4.0

#: So many times wider than the largest value costs four bits of a fixed-point format.
TOO_WIDE = 16.0


def judge_calibration(
    audit: Audit,
    run: CalibrationRun,
    *,
    evaluation_hashes: tuple[tuple[str, str], ...],
    gate: CalibrationGate,
    near_copies: Sequence[NearCopy] = (),
    attention: str = INTERCEPTED,
) -> Verdict:
    """Return whether the ranges can be trusted.

    In this order: something ran through both towers at all, its data was finite, every enabled
    static quantizer has a finite positive amax, every enabled one was called in its tower's
    forward, and clips at most `max_clipped` of held-out values; no embedding depends on the other
    samples in its batch; no evaluation sample was calibrated on. Near copies of
    what was calibrated on are evidence, and no more: different pictures can look alike.
    A model whose formats take all scales from the values at hand (MXFP8) has no range to trust:
    there calls and the batch are judged.
    `attention` is the model's attention implementation, for advice.
    """
    static = [q for q in audit.quantizers if q.enabled and _keeps_amax(q)]
    dynamic = [q for q in audit.quantizers if q.enabled and not _keeps_amax(q)]
    if not static and dynamic and all(map(_has_no_range, dynamic)):
        return _judge_rangeless(audit, dynamic, gate=gate, attention=attention)
    parts = (
        _judge_run(run, expected=audit.towers, algorithm=audit.algorithm, gate=gate),
        _judge_amax(static, algorithm=audit.algorithm, gate=gate, attention=attention),
        _judge_weights(static, algorithm=audit.algorithm, gate=gate),
        _judge_input_scales(audit, gate=gate),
        _judge_calls([*static, *dynamic], gate=gate, attention=attention),
        _judge_clipping(static, held_out_samples=run.held_out_samples, gate=gate),
        _judge_width(static, gate=gate),
        _judge_batch(audit, gate=gate),
        _judge_overlap(
            run, evaluation_hashes=evaluation_hashes, near_copies=near_copies, gate=gate
        ),
    )
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    if not verdict.passed:
        return verdict
    worst = _worst_clipped([q for q in static if q.seen])
    share = f"{percent(worst.clipped / worst.seen, 3)}"
    more = f"; {_describe_dynamic(dynamic)}" if dynamic else ""
    return _pass(
        f"{count(len(static), 'static quantizer')} with a finite amax, all "
        f"called{more}; {_describe_run(run)}; worst clipping {share} of {worst.seen} held-out "
        f"values, at most {percent(_most_clipped(worst), 3)} ({worst.name}), within max_clipped "
        f"{percent(gate.max_clipped, 3)}",
        brief=f"{count(len(static), 'static quantizer')}"
        f"{f' and {len(dynamic)} dynamic' if dynamic else ''}, worst clipping {share} within "
        f"{percent(gate.max_clipped, 3)}",
        evidence=verdict.evidence,
        figures=verdict.figures,
    )


def _describe_run(run: CalibrationRun) -> str:
    if run.given:
        return f"handed over, calibrated on {run.data} as the suite says"
    return f"{run.samples} pairs in {run.batches} batches through {towers(run.tower_batches)}"


def _judge_rangeless(
    audit: Audit, quantizers: Sequence[Quantizer], *, gate: CalibrationGate, attention: str
) -> Verdict:
    """Return whether all of them ran, and no embedding depends on its batch."""
    parts = (
        _judge_calls(quantizers, gate=gate, attention=attention),
        _judge_batch(audit, gate=gate),
    )
    verdict = combine(gate=GATE, parts=tuple(part for part in parts if part is not None))
    if not verdict.passed:
        return verdict
    formats = listed(tuple(dict.fromkeys(q.format for q in quantizers)))
    return _pass(
        f"no range to calibrate: {formats} takes every scale from the values "
        f"at hand; {count(len(quantizers), 'quantizer')}, all called",
        brief=f"{count(len(quantizers), 'quantizer')} without a range ({formats})",
        figures=verdict.figures,
    )


def _has_no_range(quantizer: Quantizer) -> bool:
    found = find_format(quantizer.format)
    return found is not None and found.amax == "none"


def judge_ranges(audit: Audit, *, gate: CalibrationGate) -> Verdict:
    """Return whether the ranges of a model can be trusted, without knowing how it got them.

    As `judge_calibration`, but for what only the calibration itself can tell.
    """
    static = [q for q in audit.quantizers if q.enabled and _keeps_amax(q)]
    dynamic = [q for q in audit.quantizers if q.enabled and not _keeps_amax(q)]
    if not static and dynamic and all(map(_has_no_range, dynamic)):
        return _judge_rangeless(audit, dynamic, gate=gate, attention=INTERCEPTED)
    parts = (
        _judge_amax(static, algorithm=audit.algorithm, gate=gate),
        _judge_weights(static, algorithm=audit.algorithm, gate=gate),
        _judge_input_scales(audit, gate=gate),
        _judge_calls([q for q in audit.quantizers if q.enabled], gate=gate),
        _judge_clipping(static, held_out_samples=None, gate=gate),
        _judge_width(static, gate=gate),
        _judge_batch(audit, gate=gate),
    )
    return combine(gate=GATE, parts=tuple(part for part in parts if part is not None))


def _judge_run(
    run: CalibrationRun, *, expected: Sequence[str], algorithm: str, gate: CalibrationGate
) -> Verdict:
    where = gate.where
    if run.given:
        return _pass(
            f"handed over: how it was calibrated is not in a checkpoint; as calibration.data says, "
            f"it was on {run.data}, of which the held-out pairs are, too",
        )
    if algorithm == "none":
        return _pass(
            "the recipe calibrates nothing",
        )
    if run.batches == 0 or run.samples == 0:
        return _fail(
            "no-batch",
            f"no batch was ever calibrated on: the ranges are each batch's own ({where})",
            cause="the data is empty, or calibration.samples is 0",
            next_step="give calibration.data and calibration.samples that are there",
        )
    if run.nonfinite:
        return _fail(
            "data-nonfinite",
            f"the calibration data holds NaN or Inf in {count(len(run.nonfinite), 'sample')}: "
            f"{listed(run.nonfinite)} ({where})",
            cause="damaged images, or a wrong mean or std in the preprocessing",
            next_step="repair or remove these samples",
        )
    idle = [tower for tower in expected if not run.tower_batches.get(tower)]
    if idle:
        return _fail(
            "tower-idle",
            f"the {' and '.join(idle)} tower was never calibrated: 0 of {run.batches} batches went "
            f"through it ({where})",
            cause="the forward loop runs one tower only",
            next_step="calibrate with pairs: images and texts",
        )
    copies = judge_copies(
        samples=run.samples,
        copies=run.copies,
        kind=GATE,
        subject=run.data,
        where=str(where),
    )
    if copies is not None:
        return copies
    return _pass(
        f"{run.samples} pairs of {run.data} in {run.batches} batches through "
        f"{towers(run.tower_batches)}",
        figures={
            "calibration_samples": run.samples,
            "calibration_copies": run.copies,
            "calibration_batches": run.batches,
        },
    )


def _judge_amax(
    static: Sequence[Quantizer],
    *,
    algorithm: str,
    gate: CalibrationGate,
    attention: str = INTERCEPTED,
) -> Verdict:
    if not static:
        return _fail(
            "nothing-static",
            f"no static quantizer is enabled: nothing to calibrate ({gate.where})",
            cause="the recipe quantizes nothing, or takes each range from the values at hand",
            next_step="choose a recipe with static ranges, or leave the calibration gate out",
        )
    missing = [q.name for q in static if not _has_amax(q)]
    broken = [q.name for q in static if _has_amax(q) and not q.amax_finite]
    zero = [
        q.name
        for q in static
        if _has_amax(q) and q.amax_finite and q.amax_min is not None and q.amax_min <= 0
    ]
    own = "no amax: each batch is quantized with its own range, and nothing says so"
    found = [
        (missing, own, "missing"),
        (broken, "an amax that is NaN or Inf", "nonfinite"),
        (zero, "an amax that is not positive", "zero"),
    ]
    bad = [part for part in found if part[0]]
    if not bad:
        return _pass(
            f"{len(static)} amax finite and positive",
        )
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
        f"{words} ({gate.where})",
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


def _keeps_amax(quantizer: Quantizer) -> bool:
    return keeps_amax(quantizer.format, dynamic=quantizer.dynamic)


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
        return _pass(
            f"{len(weights)} weights have the range of the weight itself",
        )
    worst = max(other, key=lambda q: abs(math.log(_width(q))))
    return _fail(
        "weights-changed",
        f"the ranges of {len(other)} of {len(weights)} weights are not those of the weights: "
        f"{worst.name} has amax {worst.amax_max:.4g}, its weight goes to {worst.largest:.4g} "
        f"({gate.where})",
        evidence=list_groups(q.name for q in other),
        cause="the weights were changed after the calibration (fine-tuned, swapped, loaded anew), "
        "or the ranges are those of another checkpoint",
        next_step="calibrate the weights that ship: quantize again as the last step",
        figures={"weights_out_of_range": len(other)},
    )


def _judge_input_scales(audit: Audit, *, gate: CalibrationGate) -> Verdict | None:
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
            f"is not above 0 ({gate.where})",
            evidence=list_groups(broken),
            cause="SmoothQuant or AWQ met channels without values, or the checkpoint is damaged",
            next_step="calibrate on more samples, and quantize again",
            figures={"input_scales_broken": len(broken)},
        )
    if idle:
        return _fail(
            "scale-idle",
            f"{len(idle)} of {count(len(scales), 'input scale')} are not applied: the layer's "
            f"output does not change with them ({gate.where})",
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
            f"({gate.where})",
            evidence=list_groups(lost),
            cause="the scale of SmoothQuant or AWQ was lost, and the weight was multiplied by its "
            "inverse",
            next_step="quantize again, and restore with ModelOpt's state",
            figures={"input_scales_missing": len(lost)},
        )
    return _pass(
        f"{count(len(scales), 'input scale')} applied",
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
    return _fail(
        "range-too-wide",
        f"{len(wide)} ranges are more than {TOO_WIDE:g} times wider than anything seen on "
        f"held-out data; worst {wide[0].name}: amax {wide[0].amax_max:.4g}, values go to "
        f"{wide[0].largest:.4g} ({gate.where})",
        evidence=shorten([f"{q.name}: {_width(q):.3g} times wider than its values" for q in wide]),
        cause="calibration data unlike the real data (other preprocessing, noise), or a range that "
        "was changed afterwards",
        next_step="calibrate on data that the model will see, preprocessed as it will be",
        figures={"widest_range": _width(wide[0])},
    )


def _judge_calls(
    static: Sequence[Quantizer], *, gate: CalibrationGate, attention: str = INTERCEPTED
) -> Verdict:
    idle = [q for q in static if q.own_calls == 0]
    if not idle:
        return _pass(
            "every enabled quantizer was called in its tower's forward",
        )
    with_amax = sum(q.amax_count > 0 for q in idle)
    cause, next_step = advise_idle(idle, among=static, attention=attention)
    return _fail(
        "never-called",
        f"{len(idle)} of {len(static)} enabled quantizers were never called in a forward "
        f"({with_amax} of them have an amax, which proves nothing) ({gate.where})",
        evidence=list_groups(q.name for q in idle),
        cause=cause,
        next_step=next_step,
        figures={"never_called": len(idle)},
    )


def _judge_clipping(
    static: Sequence[Quantizer], *, held_out_samples: int | None, gate: CalibrationGate
) -> Verdict:
    """Each quantizer's share has an interval; FAIL is corrected for how many there are (Holm).

    A weight is no sample: its share is what it is. What clipped nothing has nothing to settle:
    that it never clips is not shown, only that few samples do.
    """
    source = gate.where.of("max_clipped")
    measured = [q for q in static if q.seen > 0 and _has_amax(q)]
    if held_out_samples == 0 or not measured:
        return Verdict(
            gate=GATE,
            status=Status.NOT_MEASURED,
            headline=f"calibration: clipping was not measured: {held_out_samples or 0} held-out "
            f"samples ({source})",
            next_step="set calibration.held_out_samples",
            code="calibration.clipping-unmeasured",
        )
    limit = float(gate.max_clipped)
    strengths = {
        q.name: chance_above(_clipped_share(q), limit) / (1 - CONFIDENCE) for q in measured
    }
    rejected = highest_rejected([strengths[q.name] for q in measured if q.slot != "weight"])
    over, open_ = [], []
    for q in sorted(measured, key=lambda q: -q.clipped / q.seen):
        if q.slot == "weight":
            over += [q] if q.clipped > gate.max_clipped * q.seen else []
        elif strengths[q.name] <= rejected:
            over.append(q)
        elif q.clipped and _most_clipped(q) > limit:
            open_.append(q)
    worst = _worst_clipped(measured)
    figures = {
        "worst_clipped_share": worst.clipped / worst.seen,
        "worst_clipped_high": _most_clipped(worst),
    }
    if over:
        verb = "clips" if len(over) == 1 else "clip"
        return _fail(
            "clipped",
            f"{count(len(over), 'quantizer')} {verb} more than max_clipped "
            f"{percent(gate.max_clipped, 3)} of values that they were not calibrated on; worst "
            f"{over[0].name}: {_describe_clipping(over[0])} ({source})",
            evidence=shorten([f"{q.name}: {_describe_clipping(q)}" for q in (*over, *open_)]),
            cause="calibration data unlike the real data (other preprocessing, too few samples), "
            "or ranges of another checkpoint",
            next_step="calibrate on more samples of the data that the model will see",
            figures=figures,
        )
    if open_:
        return _open(
            "clipping-open",
            f"whether {open_[0].name} clips more than max_clipped {percent(gate.max_clipped, 3)} "
            f"is open: {_describe_clipping(open_[0])} ({source})",
            evidence=shorten([f"{q.name}: {_describe_clipping(q)}" for q in open_[1:]]),
            cause=_explain_open(open_[0], limit=limit),
            next_step=_advise_samples(open_, limit=limit, held_out_samples=held_out_samples),
            figures=figures,
        )
    return _pass(
        "clipping within max_clipped",
        figures=figures,
    )


def _clipped_share(quantizer: Quantizer) -> Share:
    return _weigh(quantizer.clipped, seen=quantizer.seen, squares=quantizer.clipped_squares)


def _weigh(clipped: int, *, seen: int, squares: int) -> Share:
    """Return the clipped values as the independent ones that they are worth.

    Values of one sample are clipped together: what counts are bunches, of squares / clipped values
    each on average. The sum of weighted events that Fay and Feuer (Statistics in Medicine 16 (1997)
    791-801) give limits for, with a sample's clipped values as its weight; every sample may clip.
    """
    bunch = max(1.0, squares / clipped) if clipped else 1.0
    return Share(count=clipped / bunch, samples=seen / bunch)


def _explain_open(quantizer: Quantizer, *, limit: float) -> str:
    """Return why a share is not decided: it is near to its limit, or comes from few samples."""
    if share_limits(_clipped_share(quantizer), confidence=CONFIDENCE).high > limit:
        return "too few held-out samples for a share so near to its limit"
    samples = count(quantizer.clipped_samples, "sample")
    return f"all of it is in {samples}: how much the next one clips is not known from so few"


def limit_clipping(*, clipped: int, seen: int, samples: int, squares: int) -> Interval:
    """Return the limits of a share of clipped values, of which `samples` have some.

    `squares` is the sum over samples of the square of their clipped values. The upper limit is at
    least that of clumps: the next sample may clip more than those that did.
    """
    found = share_limits(_weigh(clipped, seen=seen, squares=squares), confidence=CONFIDENCE)
    if not samples:
        return found
    most = most_of_clumps(clumps=samples, total=clipped, squares=squares, confidence=CONFIDENCE)
    return replace(found, high=min(1.0, max(found.high, most / seen)))


def _clipped_limits(quantizer: Quantizer, *, times: int = 1) -> Interval:
    """Return the limits of a quantizer's share, of so many times the samples."""
    return limit_clipping(
        clipped=quantizer.clipped * times,
        seen=quantizer.seen * times,
        samples=quantizer.clipped_samples * times,
        squares=quantizer.clipped_squares * times,
    )


def _most_clipped(quantizer: Quantizer) -> float:
    if quantizer.slot == "weight":
        return quantizer.clipped / quantizer.seen
    return _clipped_limits(quantizer).high


def _worst_clipped(measured: Sequence[Quantizer]) -> Quantizer:
    return max(measured, key=lambda q: (q.clipped / q.seen, _most_clipped(q)))


def _describe_clipping(quantizer: Quantizer) -> str:
    """Return `12 of 262144 values in 3 samples, 0.005 % [0.002, 0.011], above amax 3.1`."""
    where = f" in {count(quantizer.clipped_samples, 'sample')}" if quantizer.clipped_samples else ""
    text = (
        f"{quantizer.clipped} of {quantizer.seen} values{where}, "
        f"{percent(quantizer.clipped / quantizer.seen, 3)}"
    )
    if quantizer.slot != "weight":
        found = _clipped_limits(quantizer)
        text += f" [{found.low * 100:.3f}, {found.high * 100:.3f}]"
    return f"{text}, above amax {quantizer.amax_max:.4g}"


def _advise_samples(
    quantizers: Sequence[Quantizer], *, limit: float, held_out_samples: int | None
) -> str:
    """Return how many held-out samples would settle each share, if it is what was found."""

    def settles(times: int) -> bool:
        for quantizer in quantizers:
            found = _clipped_limits(quantizer, times=times)
            if found.low <= limit < found.high:
                return False
        return True

    times = first_count(settles, low=2, high=MOST_TIMES)
    if times is None:
        return "the share is the limit: set max_clipped to what may be lost"
    if held_out_samples is None:
        return f"run {times} times as many samples through the towers"
    return f"set calibration.held_out_samples: {times * held_out_samples}"


def _describe_dynamic(quantizers: Sequence[Quantizer]) -> str:
    """Return what a reader must know of ranges that nobody calibrated."""
    kinds = Counter(f"{q.granularity} {q.slot}" for q in quantizers)
    listing = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
    return f"{count(len(quantizers), 'dynamic quantizer')} with ranges of their own ({listing})"


def _judge_batch(audit: Audit, *, gate: CalibrationGate) -> Verdict | None:
    """No embedding depends on what else is in its batch, or only as far as the suite allows."""
    source = gate.where.of("max_batch_change")
    enabled = [q for q in audit.quantizers if q.enabled]
    dependent = [q for q in enabled if q.batch_dependent]
    compared = [found for found in audit.invariance if found.samples]
    limits = {found.tower: batch_limit(found, allowed=gate.max_batch_change) for found in compared}
    moved = [found for found in compared if not found.change <= limits[found.tower]]
    figures = {f"{found.tower}_batch_change": found.change for found in compared}
    said = ", ".join(
        f"{found.tower} {percent(found.change)} (limit {percent(limits[found.tower])})"
        for found in compared
    )
    said = f": embeddings move by {said} with other samples beside them" if said else ""
    if moved or (dependent and (gate.max_batch_change is None or not compared)):
        what = (
            f"{count(len(dependent), 'quantizer')} take the range from the whole batch"
            if dependent
            else "an embedding depends on what else is in its batch"
        )
        return _fail(
            "batch-dependent",
            f"{what}{said} ({source})",
            brief=f"{len(dependent)} ranges depend on the batch" if dependent else "",
            evidence=list_groups(q.name for q in dependent),
            cause="a dynamic range over all samples of a batch: in production other batch mates, "
            "or a batch of one, give other embeddings"
            if dependent
            else "a part of the model mixes the samples of a batch",
            next_step="calibrate these ranges (type: static), or take them for each token "
            "(axis: [0, 1])"
            if dependent
            else "embed each sample alone, and look for what differs from the batch",
            figures=figures,
        )
    if not compared:
        return None
    return _pass(
        f"no embedding depends on its batch{said} ({source})",
        figures=figures,
    )


def batch_limit(found: BatchInvariance, *, allowed: Fraction | None = None) -> float:
    """Return how far an embedding may move with its batch, as a share of its length.

    By `allowed` (None: by rounding alone), and as far as the model moves by itself.
    """
    floor = FLOOR_FACTOR * found.floor if math.isfinite(found.floor) else 0.0
    return max(float(allowed or SAME_EMBEDDING), floor)


def _judge_overlap(
    run: CalibrationRun,
    *,
    evaluation_hashes: tuple[tuple[str, str], ...],
    near_copies: Sequence[NearCopy],
    gate: CalibrationGate,
) -> Verdict:
    used = dict(run.sample_hashes)
    pairs = [(used[content], name) for content, name in evaluation_hashes if content in used]
    inside = [(used[content], name) for content, name in run.held_out_hashes if content in used]
    for found, what in ((pairs, "evaluation"), (inside, "held-out")):
        if found:
            return _fail(
                "overlap",
                f"{count(len(found), f'{what} sample')} by content also calibrated the quantizers: "
                f"the loss on them is not the loss on new data ({gate.where})",
                evidence=shorten(
                    [f"{name} is calibration sample {used_as}" for used_as, name in found], most=4
                ),
                cause="calibration.data and the task share images",
                next_step="calibrate on another split",
                figures={f"{what.replace('-', '_')}_overlap": len(found)},
            )
    return _pass(
        f"none of {len(evaluation_hashes)} evaluation samples was calibrated on",
        evidence=warn_of_near_copies(near_copies),
        figures={"near_copies": len(near_copies)},
    )


def warn_of_near_copies(near: Sequence[NearCopy]) -> tuple[str, ...]:
    """Return the warning of evaluation samples that look like calibrated ones; empty for none."""
    if not near:
        return ()
    pairs = shorten([f"{copy.sample} ~ {copy.like} ({copy.bits} of 256 bits)" for copy in near])
    return (
        f"{count(len(near), 'evaluation sample')} may be near copies of calibration samples, "
        f"resized or compressed again: {', '.join(pairs)}: look at them; where they are, "
        "calibrate on another split [calibration.near-copies]",
    )


def judge(run: GateRun, gate: CalibrationGate) -> Judged:
    """Return whether the ranges are there, and fit data that did not make them."""
    near_copies = run.near_copies()
    verdict = judge_calibration(
        run.audit,
        run.calibration_run,
        evaluation_hashes=run.evaluation_hashes(),
        near_copies=near_copies,
        gate=gate,
        attention=run.suite.model.attn_implementation,
    )
    return Judged(verdict=verdict, notes=warn_of_near_copies(near_copies))


#: Findings that say: a range is none, so what is computed with it means nothing.
NO_RANGE = ("calibration.amax-*", "calibration.no-batch", "calibration.weights-changed")

KIND = GateKind(
    section=CalibrationGate,
    help="ranges, calls, clipping, overlap",
    judge=judge,
    needs_torch=lambda _: True,
    follows={
        "calibration.never-called": ("coverage.attention-bypassed", "coverage.never-ran"),
        "calibration.nothing-static": NOT_QUANTIZED,
    },
)
