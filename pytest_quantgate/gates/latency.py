"""The latency gate: quantized against FP16, round by round, with the machine's own noise counted.

The result is the median over rounds of quantized / FP16. Its interval has two parts. The first is
what more rounds would narrow: a bootstrap of whole blocks of rounds, and never narrower than the
exact limits of a median. The second is the A/A floor: FP16 against itself in the same rounds should
give 1, and by as much as the interval of that ratio leaves 1, the result's interval is widened.

A ratio that 8-bit arithmetic cannot give is no good news: then the two did not do the same work
(another batch, half a graph, a timer that does not wait). Multiply-adds are at most
`arithmetic_gain` times as fast; what is not arithmetic gains less by itself, and fusion and caches
are granted a factor of `ROOM` on top. A ratio below 1 / (gain * ROOM) is INCOMPARABLE.

What no run can show: something that slows one variant for as long as its process lives, such as
where its weights came to lie in memory. A verdict near the limit deserves a second process.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from fractions import Fraction

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.gates.accuracy import RELATIONS, decide, relation
from pytest_quantgate.gates.statistics import Interval
from pytest_quantgate.gates.words import count, level, percent
from pytest_quantgate.measure.latency import ContestantTimes, LatencyRun, Machine
from pytest_quantgate.suite import Where
from pytest_quantgate.verdict import Status, Verdict, combine

GATE = "latency"

#: The longest phrase that a table shows.
BRIEF_LENGTH = 70

#: A time outside of these, in ms, is none: a femtosecond, thirty years.
SHORTEST_MS, LONGEST_MS = 1e-12, 1e12

#: How many times the gain of the arithmetic is believed: INT8 weights that fit where FP32 ones do
#: not, or an attention that is fused in one precision alone, gain more than multiply-adds do.
ROOM = 2

#: More rounds than this, times those that were measured, are no advice.
MOST_TIMES_ROUNDS = 100

LABELS = {
    "system": "system",
    "processor": "processor",
    "cores": "number of cores",
    "threads": "number of threads",
    "device": "device",
}


def judge_latency(
    run: LatencyRun,
    *,
    max_ratio: Fraction | None,
    max_latency_ms: float | None,
    confidence: Fraction,
    where: Where,
    min_ratio: Fraction | None = None,
    baseline_machine: Machine | None = None,
    create_command: str = "pytest --quantgate-baselines=create",
    update_command: str = "pytest --quantgate-baselines=update --quantgate-reason='why'",
) -> Verdict:
    """Return whether the quantized variant is fast enough, against FP16 and in ms.

    Each limit is decided on one-sided limits at `confidence`: PASS where the upper one is within,
    FAIL where the lower one is beyond, INCONCLUSIVE between. `max_latency_ms` holds on the machine
    of the baseline, `baseline_machine`; it is INCOMPARABLE elsewhere, and FAIL without a baseline:
    `create_command` and `update_command` make one. No rounds are NOT_MEASURED; times that are none,
    unequal rounds and a gate without limits are FAIL. Where a run gives another number of
    embeddings than the batch has, or the ratio is below `min_ratio` (None: 1 / (ROOM *
    `run.arithmetic_gain`)), the two did not do the same work: INCOMPARABLE.
    """
    if max_ratio is None and max_latency_ms is None:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"latency: the gate sets no limit, so it decides nothing ({where})",
            next_step="set max_ratio or max_latency",
        )
    broken = _check_run(run, where=where)
    if broken is not None:
        return broken
    implausible = _check_plausible(run, min_ratio=min_ratio, where=where)
    if implausible is not None:
        return implausible
    needed = least_rounds(confidence)
    if run.rounds < needed:
        return Verdict(
            gate=GATE,
            status=Status.INCONCLUSIVE,
            headline=f"latency: {_describe(run)}: {count(run.rounds, 'round')} cannot decide at "
            f"{level(confidence)}, that takes {needed} ({where})",
            brief=f"{count(run.rounds, 'round')}, it takes {needed} at {level(confidence)}",
            next_step=f"measure at least {needed} rounds, better {3 * needed}",
        )
    again = divide_rounds(run.fp16_again, run.fp16)
    noise = noise_factor(again, confidence=float(confidence))
    about = _describe_rounds(run, again, noise=noise)
    parts = []
    if max_ratio is not None:
        parts.append(
            _judge_ratio(
                run,
                noise=noise,
                limit=max_ratio,
                confidence=confidence,
                where=where,
                about=about,
            )
        )
    if max_latency_ms is not None:
        parts.append(
            _judge_absolute(
                run,
                noise=noise,
                limit=max_latency_ms,
                confidence=confidence,
                where=where,
                about=() if parts else about,
                baseline_machine=baseline_machine,
                create_command=create_command,
                update_command=update_command,
            )
        )
    return combine(gate=GATE, parts=tuple(parts))


def _check_run(run: LatencyRun, *, where: Where) -> Verdict | None:
    """Return a red verdict for a measurement that is none."""
    lengths = {len(contestant.times_ms) for contestant in run.contestants}
    if lengths == {0}:
        return Verdict(
            gate=GATE,
            status=Status.NOT_MEASURED,
            headline=f"latency: {_describe(run)}: no round was measured ({where})",
            next_step="run without --benchmark-disable, on a machine that has the device",
        )
    if len(lengths) > 1:
        shown = ", ".join(f"{c.name} {len(c.times_ms)}" for c in run.contestants)
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"latency: {_describe(run)}: the rounds are not paired: {shown} ({where})",
            cause="a round was interrupted, or the measurement was changed after it was taken",
            next_step="measure again",
        )
    for contestant in run.contestants:
        wrong = [t for t in contestant.times_ms if not SHORTEST_MS <= t <= LONGEST_MS]
        if wrong:
            return Verdict(
                gate=GATE,
                status=Status.FAIL,
                headline=f"latency: {_describe(run)}: {contestant.name} has no valid time in "
                f"{len(wrong)} of {count(len(contestant.times_ms), 'round')}, the first is "
                f"{wrong[0]} ms ({where})",
                cause="a timer that is broken or too coarse",
                next_step="raise min_round_ms and measure again",
            )
    counted = {c.name: c.samples for c in run.contestants[:2] if c.samples is not None}
    if any(samples != run.batch_size for samples in counted.values()):
        shown = ", ".join(f"{name} {samples}" for name, samples in counted.items())
        return Verdict(
            gate=GATE,
            status=Status.INCOMPARABLE,
            headline=f"latency: {_describe(run)}: not the same work: a run gives other than "
            f"{count(run.batch_size, 'embedding')}: {shown} ({where})",
            brief=_fit("not the same work", f"embeddings of a run: {shown}"),
            cause="a batch size that is fixed in the exported graph, or another input than FP16's",
            next_step="export with a free batch axis, and give both variants the same inputs",
        )
    return None


def _check_plausible(
    run: LatencyRun, *, min_ratio: Fraction | None, where: Where
) -> Verdict | None:
    """Return a red verdict where quantized is faster than its arithmetic allows.

    The median itself decides, not a limit of it: noise is no reason to believe such a ratio.
    """
    ratio = statistics.median(divide_rounds(run.quantized, run.fp16))
    least = min_ratio or Fraction(1, ROOM * run.arithmetic_gain)
    if ratio >= least:
        return None
    if min_ratio is not None:
        source, reason = where.of("min_ratio"), "the suite believes no smaller one"
    elif run.arithmetic_gain > 1:
        source, reason = (
            str(where),
            f"8-bit arithmetic is at most {run.arithmetic_gain} times as fast as FP16's in "
            f"{run.runtime} here, and {ROOM} times that is granted for fusion and caches",
        )
    else:
        source, reason = (
            str(where),
            f"{run.runtime} simulates quantization on top of FP16's own arithmetic, which makes "
            f"nothing {ROOM} times as fast",
        )
    fp16_ms, quantized_ms = show_ms(run.fp16.median_ms), show_ms(run.quantized.median_ms)
    shown, allowed = show_ratio(ratio, limit=least), f"{float(least):.12g}"
    return Verdict(
        gate=GATE,
        status=Status.INCOMPARABLE,
        headline=f"latency: {_describe(run)}: implausible: quantized {quantized_ms} vs FP16 "
        f"{fp16_ms} over {count(run.rounds, 'round')}: ratio {shown}, below {allowed}: not the "
        f"same work ({source})",
        brief=_fit(f"implausible: {shown}x FP16, below {allowed}x", "not the same work"),
        evidence=(reason,),
        cause="quantized was timed on a smaller batch or input, on a part of its graph, or by a "
        "timer that does not wait for the device; or FP16 fell back to something slow",
        next_step="check that both run the same batch and give the same outputs (parity gate), and "
        "where the times come from; if the ratio is right, set min_ratio below it",
        figures={
            "rounds": run.rounds,
            "fp16_ms": run.fp16.median_ms,
            "quantized_ms": run.quantized.median_ms,
            "latency_ratio": ratio,
            "min_latency_ratio": float(least),
        },
    )


def _judge_ratio(
    run: LatencyRun,
    *,
    noise: float,
    limit: Fraction,
    confidence: Fraction,
    where: Where,
    about: tuple[str, ...],
) -> Verdict:
    ratios = divide_rounds(run.quantized, run.fp16)
    ratio = statistics.median(ratios)
    interval = widen(median_limits(ratios, confidence=float(confidence)), by=noise)
    status = decide(interval, limit=float(limit))
    fp16_ms, quantized_ms = show_ms(run.fp16.median_ms), show_ms(run.quantized.median_ms)
    shown, low, high = (
        show_ratio(value, limit=limit) for value in (ratio, interval.low, interval.high)
    )
    allowed = f"{float(limit):.12g}"
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"latency: {_describe(run)}: quantized {quantized_ms} vs FP16 {fp16_ms} over "
        f"{count(run.rounds, 'round')}: ratio {shown}, one-sided {level(confidence)} limits "
        f"[{low}, {high}] with A/A noise {percent(noise - 1, 1)}, "
        f"{relation(status, name='max_ratio', limit=allowed)} ({where.of('max_ratio')})",
        brief=_fit(
            f"{shown}x FP16 [{low}, {high}] {RELATIONS.get(status, 'around')} {allowed}x",
            f"{quantized_ms.removesuffix(' ms')} vs {fp16_ms}",
            f"A/A {percent(noise - 1, 1)}",
        ),
        evidence=(
            *about,
            *_advise(ratio, interval, limit=float(limit), rounds=run.rounds, status=status),
        ),
        cause=_find_cause(ratio, noise=noise, limit=float(limit), status=status),
        next_step=_next_step(status),
        figures={
            "rounds": run.rounds,
            "fp16_ms": run.fp16.median_ms,
            "quantized_ms": run.quantized.median_ms,
            "fp16_samples_per_s": run.batch_size * 1e3 / run.fp16.median_ms,
            "quantized_samples_per_s": run.batch_size * 1e3 / run.quantized.median_ms,
            "latency_ratio": ratio,
            "latency_ratio_low": interval.low,
            "latency_ratio_high": interval.high,
            "max_latency_ratio": float(limit),
            "noise_share": noise - 1,
        },
    )


def _judge_absolute(
    run: LatencyRun,
    *,
    noise: float,
    limit: float,
    confidence: Fraction,
    where: Where,
    about: tuple[str, ...],
    baseline_machine: Machine | None,
    create_command: str,
    update_command: str,
) -> Verdict:
    source, allowed = where.of("max_latency"), f"{limit:.12g} ms"
    median_ms = run.quantized.median_ms
    if baseline_machine is None:
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"latency: {_describe(run)}: max_latency {allowed} holds on the machine of "
            f"the baseline, and there is no baseline: here {show_ms(median_ms)} ({source})",
            brief=f"max_latency {allowed} needs a baseline of its machine",
            next_step=f"on the machine that it is meant for: {create_command}",
        )
    different = machine_differences(baseline_machine, run.machine)
    if different:
        return Verdict(
            gate=GATE,
            status=Status.INCOMPARABLE,
            headline=f"latency: {_describe(run)}: max_latency {allowed} holds on another machine "
            f"({baseline_machine.fingerprint}, here {run.machine.fingerprint}): {different[0]} "
            f"({source})",
            brief=f"max_latency {allowed} holds on another machine",
            evidence=different[1:],
            next_step="run on the machine of the baseline, or set max_ratio, which holds anywhere; "
            f"if the limit is meant for this one: {update_command}",
        )
    interval = widen(median_limits(run.quantized.times_ms, confidence=float(confidence)), by=noise)
    status = decide(interval, limit=limit)
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"latency: {_describe(run)}: quantized {show_ms(median_ms)} over "
        f"{count(run.rounds, 'round')}, one-sided {level(confidence)} limits "
        f"[{show_ms(interval.low)}, {show_ms(interval.high)}] with A/A noise "
        f"{percent(noise - 1, 1)}, {relation(status, name='max_latency', limit=allowed)} "
        f"({source})",
        brief=_fit(
            f"{show_ms(median_ms)} {RELATIONS.get(status, 'around')} {allowed}",
            f"A/A {percent(noise - 1, 1)}",
        ),
        evidence=(
            *about,
            *_advise(median_ms, interval, limit=limit, rounds=run.rounds, status=status),
        ),
        cause=_find_cause(median_ms, noise=noise, limit=limit, status=status),
        next_step=_next_step(status),
        figures={
            "rounds": run.rounds,
            "quantized_ms": median_ms,
            "quantized_low_ms": interval.low,
            "quantized_high_ms": interval.high,
            "max_latency_ms": limit,
            "noise_share": noise - 1,
        },
    )


def machine_differences(stored: Machine, now: Machine) -> tuple[str, ...]:
    """Return a sentence for each property that differs; empty where times may be compared."""
    return tuple(
        f"{LABELS[field.name]} differs: baseline {getattr(stored, field.name)}, "
        f"now {getattr(now, field.name)}"
        for field in dataclasses.fields(Machine)
        if getattr(stored, field.name) != getattr(now, field.name)
    )


# -- statistics ----------------------------------------------------------------------------------


def least_rounds(confidence: Fraction) -> int:
    """Return how many rounds it takes until all of them together bound a median at `confidence`.

    The true median lies above all of n with probability 2^-n.
    """
    rounds, missed = 1, Fraction(1, 2)
    while missed > 1 - confidence:
        rounds, missed = rounds + 1, missed / 2
    return rounds


def divide_rounds(above: ContestantTimes, below: ContestantTimes) -> tuple[float, ...]:
    """Return the ratio of each round; what slowed a whole round cancels."""
    return tuple(a / b for a, b in zip(above.times_ms, below.times_ms, strict=True))


def noise_factor(ratios: Sequence[float], *, confidence: float) -> float:
    """Return by what factor FP16 against itself may leave 1, to either side: 1 or more."""
    interval = median_limits(ratios, confidence=confidence)
    return max(1.0, interval.high, 1 / interval.low)


def widen(interval: Interval, *, by: float) -> Interval:
    """Return an interval of a positive quantity, opened by a factor to both sides."""
    return Interval(low=interval.low / by, high=interval.high * by)


def median_limits(
    values: Sequence[float], *, confidence: float, draws: int = 2000, seed: int = 0
) -> Interval:
    """Return one-sided limits of the median of a series: the wider of two intervals on each side.

    One is a seeded bootstrap of circular blocks (Politis and Romano 1992, in LePage and Billard,
    Exploring the Limits of Bootstrap, 263-270) of sqrt(n) neighbours: noise comes in bursts, and
    rounds that follow one another are not independent. The other are the exact limits by order
    statistics (Thompson, Annals of Mathematical Statistics 7 (1936) 122-128), for few rounds.
    Raises ValueError where there are too few values for this confidence (`least_rounds`),
    MissingPackage without NumPy.
    """
    try:
        import numpy
    except ImportError as error:
        raise MissingPackage("numpy", extra="clip", purpose="the bootstrap") from error
    ordered, size = sorted(values), len(values)
    rank = _order_rank(size, confidence=confidence)
    if rank == 0:
        raise ValueError(f"{size} values are too few for limits of their median at {confidence}")
    series = numpy.array(values)
    block = math.isqrt(size)
    # RandomState, not Generator: NumPy has frozen its stream, so the digits stay the same.
    stream = numpy.random.RandomState(seed)
    medians = numpy.empty(draws)
    step = max(1, 2_000_000 // size)
    for start in range(0, draws, step):
        here = min(step, draws - start)
        begins = stream.randint(size, size=(here, -(-size // block), 1))
        places = ((begins + numpy.arange(block)) % size).reshape(here, -1)[:, :size]
        medians[start : start + step] = numpy.median(series[places], axis=1)
    low, high = numpy.quantile(medians, [1 - confidence, confidence])
    return Interval(low=min(float(low), ordered[rank - 1]), high=max(float(high), ordered[-rank]))


def _order_rank(size: int, *, confidence: float) -> int:
    """Return which value from either end bounds the median: the largest k with P(B < k) small.

    B counts the values below the median: binomial, one half. 0 where even the ends do not.
    """
    allowed = 1 - confidence + 1e-12
    rank, below = 0, 0.0
    while True:
        # Logarithms: 2^-n is no float for thousands of rounds.
        below += math.exp(
            math.lgamma(size + 1)
            - math.lgamma(rank + 1)
            - math.lgamma(size - rank + 1)
            - size * math.log(2)
        )
        if below > allowed:
            return rank
        rank += 1


def rounds_to_settle(value: float, interval: Interval, *, limit: float, rounds: int) -> int | None:
    """Return about how many rounds would bring the interval to one side of `limit`.

    The interval and the A/A floor narrow with the root of the rounds. None where the value is at
    the limit, or it would take more than MOST_TIMES_ROUNDS times the rounds.
    """
    distance = abs(math.log(value / limit))
    width = math.log(interval.high / value if value <= limit else value / interval.low)
    if distance * math.sqrt(MOST_TIMES_ROUNDS) <= width:
        return None
    return max(rounds + 1, math.ceil(rounds * (width / distance) ** 2))


# -- words ---------------------------------------------------------------------------------------


def show_ms(value_ms: float) -> str:
    """Return a time with three digits at least: `0.0123 ms`, `28.0 ms`, `1234 ms`."""
    digits = 2 - math.floor(math.log10(float(f"{value_ms:.3g}")))
    return f"{value_ms:.{max(0, min(9, digits))}f} ms"


def show_ratio(value: float | Fraction, *, limit: Fraction) -> str:
    """Return a ratio with three decimals, or as many more as show on which side of `limit` it is.

    A value of 0.5804 against a limit of 0.58 must not read `0.580 over 0.58`.
    """
    exact = Fraction(value)
    for digits in range(3, 9):
        text = f"{float(exact):.{digits}f}"
        if _side(Fraction(text), limit) == _side(exact, limit):
            break
    return text


def _side(value: Fraction, limit: Fraction) -> int:
    return (value > limit) - (value < limit)


def _describe(run: LatencyRun) -> str:
    return f"{run.tower}, batch {run.batch_size}, {run.runtime} on {run.machine.device}"


def _describe_rounds(run: LatencyRun, again: Sequence[float], *, noise: float) -> tuple[str, ...]:
    lines = [
        f"A/A: FP16 against itself in the same rounds gives {statistics.median(again):.4f}, "
        f"with limits within {percent(noise - 1)} of 1"
    ]
    cold = [c.name for c in (run.fp16, run.quantized) if not c.warm]
    if cold:
        lines.append(f"{' and '.join(cold)} did not settle during the warm-up")
    return tuple(lines)


def _advise(
    value: float,
    interval: Interval,
    *,
    limit: float,
    rounds: int,
    status: Status,
) -> tuple[str, ...]:
    if status is not Status.INCONCLUSIVE:
        return ()
    needed = rounds_to_settle(value, interval, limit=limit, rounds=rounds)
    if needed is None:
        return ("no practical number of rounds would settle it: the result is at the limit",)
    return (f"about {needed} rounds with this noise would settle it, {rounds} were measured",)


def _find_cause(value: float, *, noise: float, limit: float, status: Status) -> str:
    if status is Status.FAIL:
        return (
            "layers that fell back to full precision, or quantizing and dequantizing costs more "
            "than the smaller arithmetic saves"
        )
    if status is Status.INCONCLUSIVE:
        if max(value / limit, limit / value) <= noise:
            return "the machine's own noise (A/A) is larger than the distance to the limit"
        return "too few rounds for the noise of this machine and the distance to the limit"
    return ""


def _next_step(status: Status) -> str:
    if status is Status.FAIL:
        return "look at the kernels that ran (engine and export gates), or try another batch size"
    if status is Status.INCONCLUSIVE:
        return "measure more rounds, or on a quieter machine: nothing else running, fixed clocks"
    return ""


def _fit(first: str, *more: str) -> str:
    """Return the phrases that a table has room for; the first one is cut at need."""
    text = first if len(first) <= BRIEF_LENGTH else f"{first[: BRIEF_LENGTH - 3]}..."
    for phrase in more:
        if len(text) + 2 + len(phrase) <= BRIEF_LENGTH:
            text += f"; {phrase}"
    return text
