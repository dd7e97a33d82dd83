"""The calibration gate's part on clipping: what ranges cut off of values that made none of them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.deciding import fail, leave_open, let_pass
from pytest_quantgate.gates.ranges import has_amax
from pytest_quantgate.gates.samples import judge_few
from pytest_quantgate.statistics.family import highest_rejected
from pytest_quantgate.statistics.intervals import (
    Interval,
    Share,
    chance_above,
    most_of_clumps,
    share_limits,
)
from pytest_quantgate.statistics.sizes import first_count
from pytest_quantgate.text.words import count, percent, shorten

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from pytest_quantgate.evidence.audit import Quantizer
    from pytest_quantgate.suite.where import Where

GATE = "calibration"
_fail = partial(fail, GATE)
_open = partial(leave_open, GATE)
_pass = partial(let_pass, GATE)

#: Of the interval of a clipped share; FAIL holds with it for all quantizers together.
CONFIDENCE = 0.95

#: More held-out samples than so many times those there are help nobody.
MOST_TIMES = 1000


def judge_clipping(
    static: Sequence[Quantizer],
    *,
    max_clipped: Fraction,
    calibrated_samples: int | None,
    held_out_samples: int | None,
    where: Where,
) -> Verdict:
    """Return whether ranges clip more than allowed of values that made none of them.

    Where that stays open, ranges of fewer samples than are held out are named as the cause.
    """
    found = _judge_shares(
        static, max_clipped=max_clipped, held_out_samples=held_out_samples, where=where
    )
    fed, held_out = calibrated_samples or 0, held_out_samples or 0
    if found.status is not Status.INCONCLUSIVE or not 0 < fed < held_out:
        return found
    return replace(
        found,
        cause=f"too few samples: the ranges are those of {count(fed, 'sample')}, "
        f"fewer than the {held_out} that are held out",
        next_step="calibrate on more samples of the data that the model will see",
    )


def _judge_shares(
    static: Sequence[Quantizer],
    *,
    max_clipped: Fraction,
    held_out_samples: int | None,
    where: Where,
) -> Verdict:
    """Each quantizer's share has an interval; FAIL is corrected for how many there are (Holm).

    A weight is no sample: its share is what it is. What clipped nothing has nothing to settle:
    that it never clips is not shown, only that few samples do.
    """
    source = where.of("max_clipped")
    measured = [q for q in static if q.seen > 0 and has_amax(q)]
    if held_out_samples == 0 or not measured:
        return Verdict(
            gate=GATE,
            status=Status.NOT_MEASURED,
            headline=f"calibration: clipping was not measured: {held_out_samples or 0} held-out "
            f"samples ({source})",
            next_step="set calibration.held_out_samples",
            code="calibration.clipping-unmeasured",
        )
    limit = float(max_clipped)
    strengths = {
        q.name: chance_above(_clipped_share(q), limit) / (1 - CONFIDENCE) for q in measured
    }
    rejected = highest_rejected([strengths[q.name] for q in measured if q.slot != "weight"])
    over, open_ = [], []
    for q in sorted(measured, key=lambda q: -q.clipped / q.seen):
        if q.slot == "weight":
            over += [q] if q.clipped > max_clipped * q.seen else []
        elif strengths[q.name] <= rejected:
            over.append(q)
        elif q.clipped and most_clipped(q) > limit:
            open_.append(q)
    worst = worst_clipped(measured)
    figures = {
        "worst_clipped_share": worst.clipped / worst.seen,
        "worst_clipped_high": most_clipped(worst),
    }
    if over:
        verb = "clips" if len(over) == 1 else "clip"
        return _fail(
            "clipped",
            f"{count(len(over), 'quantizer')} {verb} more than max_clipped "
            f"{percent(max_clipped, 3)} of values that they were not calibrated on; worst "
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
            f"whether {open_[0].name} clips more than max_clipped {percent(max_clipped, 3)} "
            f"is open: {_describe_clipping(open_[0])} ({source})",
            evidence=shorten([f"{q.name}: {_describe_clipping(q)}" for q in open_[1:]]),
            cause=_explain_open(open_[0], limit=limit),
            next_step=_advise_samples(open_, limit=limit, held_out_samples=held_out_samples),
            figures=figures,
        )
    few = judge_few(
        samples=MOST_TIMES if held_out_samples is None else held_out_samples,
        kind=GATE,
        subject="calibration.held_out_samples",
        where=source,
    )
    if few is not None:
        return replace(few, figures=figures)
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


def most_clipped(quantizer: Quantizer) -> float:
    if quantizer.slot == "weight":
        return quantizer.clipped / quantizer.seen
    return _clipped_limits(quantizer).high


def worst_clipped(measured: Sequence[Quantizer]) -> Quantizer:
    return max(measured, key=lambda q: (q.clipped / q.seen, most_clipped(q)))


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
