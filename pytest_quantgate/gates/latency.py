"""The latency gate: quantized against FP16, round by round, with the machine's own noise counted.

The result is the ratio quantized / FP16: of each process the median over its rounds, of those the
mean (both of logarithms). Its interval comes from how the processes differ, which is what a further
run would differ by. On top of that is the A/A floor: FP16 against itself, in processes of its own,
should give 1, and by as much as the interval of that ratio leaves 1, the result's is widened.

A ratio that 8-bit arithmetic cannot give is no good news: then the two did not do the same work
(another batch, half a graph, a timer that does not wait). Multiply-adds are at most
`arithmetic_gain` times as fast; what is not arithmetic gains less by itself, and fusion and caches
are granted a factor of `ROOM` on top. A ratio below 1 / (gain * ROOM) is INCOMPARABLE.

What no run can show: noise that outlives it, such as a neighbour who is busy for the whole minute.
A verdict near the limit deserves a second run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_quantgate.gates.proposals import judge_others, note_old_place, propose
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.where import Where

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.latency import ContestantTimes, LatencyRun, Machine
    from pytest_quantgate.store.records import LatencyRecord

import dataclasses
import itertools
import math
import statistics
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, get_args

from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates.deciding import RELATIONS, decide, relation
from pytest_quantgate.gates.sections import CONFIDENCE
from pytest_quantgate.statistics.intervals import Interval
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.keys import (
    BadKey,
    choice_key,
    count_key,
    milliseconds_key,
    named,
    ratio_key,
    spread,
)
from pytest_quantgate.text.words import code_of, count, level, percent

GATE = "latency"


#: What a latency gate can time in. `onnxruntime` is its CPU provider.
LatencyRuntime = Literal[
    "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt-rtx", "tensorrt", "torch"
]


@dataclass(frozen=True, kw_only=True)
class LatencyGate(GateSection):
    """How fast one tower of the exported variant is against FP16, interleaved in one run.

    `max_ratio` is the largest median of quantized / FP16 time. `max_latency_ms` is the largest
    median of the quantized variant's time for one batch; it holds on the machine of the baseline
    alone. `min_ratio` is the smallest ratio that is believed; None: what 8-bit arithmetic can gain
    where it runs. `rounds` are timed rounds of each, `threads` those of a runtime on the CPU.
    """

    kind = GATE

    tower: Literal["vision", "text"] = field(metadata=choice_key("vision", "text", help="tower"))
    max_ratio: Fraction | None = field(default=None, metadata=ratio_key(help="time against FP16's"))
    max_latency_ms: float | None = field(
        default=None,
        metadata=named(
            "max_latency",
            milliseconds_key(help="time of one batch, on the machine of the baseline alone"),
        ),
    )
    min_ratio: Fraction | None = field(
        default=None,
        metadata=ratio_key(
            help="a smaller ratio is not believed; default: by what 8-bit arithmetic can gain there"
        ),
    )
    batch: int = field(
        default=1,
        metadata=spread(count_key(help="images or texts in a batch, or several sizes; default: 1")),
    )
    runtime: LatencyRuntime = field(
        default="onnxruntime",
        metadata=choice_key(*get_args(LatencyRuntime), help="default: onnxruntime"),
    )
    threads: int = field(default=1, metadata=count_key(help="of a runtime on the CPU; default: 1"))
    rounds: int = field(default=30, metadata=count_key(help="timed rounds; default: 30"))
    confidence: Fraction = field(default=Fraction(95, 100), metadata=CONFIDENCE)

    @property
    def key(self) -> str:
        """`<runtime>-<tower>-batch<n>`."""
        return f"{self.runtime}-{self.tower}-batch{self.batch}"

    def check(self) -> None:
        if self.max_ratio is None and self.max_latency_ms is None:
            raise BadKey("", "sets no limit, so it decides nothing: set max_ratio, max_latency")
        if self.max_ratio is not None and (self.min_ratio or 0) >= self.max_ratio:
            raise BadKey("min_ratio", "is not below max_ratio, so nothing could pass")
        if "threads" in self.where.keys and self.runtime not in ("onnxruntime", "torch"):
            raise BadKey("threads", f"{self.runtime} runs on the GPU: leave it out")


#: The longest phrase that a table shows.
BRIEF_LENGTH = 70

#: A time outside of these, in ms, is none: a femtosecond, thirty years.
SHORTEST_MS, LONGEST_MS = 1e-12, 1e12

#: How many times the gain of the arithmetic is believed: INT8 weights that fit where FP32 ones do
#: not, or an attention that is fused in one precision alone, gain more than multiply-adds do.
ROOM = 2

#: Into so many parts the rounds of one process are cut.
PARTS = 5

#: No correlation of neighbouring rounds is told from a higher one than this.
MOST_CORRELATION = 0.99

#: No limit is further from its value than this, in natural logarithms: beyond, two of them together
#: with the noise are more than a float holds, and no limit of a suite is there.
MOST_REACH = 250.0

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
            code="latency.without-limits",
            cause="the gate was written without a number",
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
            code="latency.too-few-rounds",
            cause="each round is one pair of times, and a confidence takes its number of pairs",
        )
    again = _levels(divide_rounds(run.fp16_again, run.fp16), run)
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
            code="latency.no-rounds",
        )
    if len(lengths) > 1:
        shown = ", ".join(f"{c.name} {len(c.times_ms)}" for c in run.contestants)
        return Verdict(
            gate=GATE,
            status=Status.FAIL,
            headline=f"latency: {_describe(run)}: the rounds are not paired: {shown} ({where})",
            cause="a round was interrupted, or the measurement was changed after it was taken",
            next_step="measure again",
            code="latency.rounds-unpaired",
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
                code="latency.no-time",
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
            code="latency.other-work",
        )
    return None


def _check_plausible(
    run: LatencyRun, *, min_ratio: Fraction | None, where: Where
) -> Verdict | None:
    """Return a red verdict where quantized is faster than its arithmetic allows.

    The median itself decides, not a limit of it: noise is no reason to believe such a ratio.
    """
    ratio = _levels(divide_rounds(run.quantized, run.fp16), run).typical
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
        f"{fp16_ms} over {_count_rounds(run)}: ratio {shown}, below {allowed}: not the "
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
        code="latency.implausible",
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
    ratios = _levels(divide_rounds(run.quantized, run.fp16), run)
    ratio = ratios.typical
    interval = widen(ratios.limits(confidence=float(confidence)), by=noise)
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
        f"{_count_rounds(run)}: ratio {shown}, one-sided {level(confidence)} limits "
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
            "process_spread_share": ratios.spread_share,
            "max_latency_ratio": float(limit),
            "noise_share": noise - 1,
        },
        code=code_of(GATE, "ratio", status),
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
            code="latency.no-baseline",
            next_step=f"on the machine that it is meant for: {create_command}",
            cause="a time in milliseconds is one of a machine, and none was recorded yet",
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
            code="latency.other-machine",
            evidence=different[1:],
            next_step="run on the machine of the baseline, or set max_ratio, which holds anywhere; "
            f"if the limit is meant for this one: {update_command}",
            cause="a time in milliseconds is one of a machine, and this is not that one",
        )
    times = _levels(run.quantized.times_ms, run)
    median_ms = times.typical
    interval = widen(times.limits(confidence=float(confidence)), by=noise)
    status = decide(interval, limit=limit)
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"latency: {_describe(run)}: quantized {show_ms(median_ms)} over "
        f"{_count_rounds(run)}, one-sided {level(confidence)} limits "
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
        code=code_of(GATE, "absolute", status),
    )


def machine_differences(stored: Machine, now: Machine) -> tuple[str, ...]:
    """Return a sentence for each property that differs; empty where times may be compared."""
    return tuple(
        f"{LABELS[field.name]} differs: baseline {getattr(stored, field.name)}, "
        f"now {getattr(now, field.name)}"
        for field in dataclasses.fields(now)
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


@dataclass(frozen=True, kw_only=True)
class Levels:
    """A positive quantity round by round, as logarithms by process; see `LatencyRun`.

    Rounds of one process alone, or of none that is known, are cut into PARTS in their order, each
    as good as a process: Ibragimov and Müller (t-Statistic based correlation and heterogeneity
    robust inference, Journal of Business and Economic Statistics 28 (2010) 453-468).
    """

    logs: tuple[tuple[float, ...], ...]
    pause_rounds: float

    @classmethod
    def of(cls, values: Sequence[float], *, processes: int, pause_rounds: float) -> Levels:
        """Return the values of a run by its processes; raises ValueError for less than two."""
        parts = processes if processes > 1 else min(PARTS, len(values))
        if parts < 2:
            raise ValueError(f"{len(values)} values are too few for limits")
        cuts = [len(values) * part // parts for part in range(parts + 1)]
        return cls(
            logs=tuple(
                tuple(math.log(value) for value in values[begin:end])
                for begin, end in itertools.pairwise(cuts)
            ),
            pause_rounds=pause_rounds,
        )

    @property
    def values(self) -> tuple[float, ...]:
        """The level of each process: the median over its rounds."""
        return tuple(statistics.median(part) for part in self.logs)

    @property
    def typical(self) -> float:
        """The quantity itself, from the mean over processes."""
        return math.exp(statistics.fmean(self.values))

    @property
    def spread_share(self) -> float:
        """By what share a process typically differs from the others (one standard deviation)."""
        return math.exp(statistics.stdev(self.values)) - 1

    def limits(self, *, confidence: float) -> Interval:
        """Return one-sided limits of the quantity.

        Student's, over the levels of processes (Kalibera and Jones, Rigorous benchmarking in
        reasonable time, ISMM 2013): they ask nothing of how the rounds of one process hang
        together. Noise that outlives a process joins them, though; what the rounds show of that
        widens the limits (`_dependence`).
        """
        levels = self.values
        reach = student_quantile(confidence, degrees=len(levels) - 1) * math.sqrt(
            statistics.variance(levels) / len(levels)
        )
        reach = min(MOST_REACH, reach * self._dependence())
        mean = statistics.fmean(levels)
        return Interval(low=math.exp(mean - reach), high=math.exp(mean + reach))

    def _dependence(self) -> float:
        """Return by what factor the levels' mean is less certain than if they were independent.

        Rounds are taken as autoregressive, with the largest correlation of neighbours that is
        likely: two standard errors above its estimate, corrected for its bias (Marriott and Pope,
        Biometrika 41 (1954) 390-402). Levels are then correlated by its power of the distance
        between processes, in rounds, and their variance is that of correlated values (Bayley and
        Hammersley, Journal of the Royal Statistical Society B 8 (1946) 184-197).
        """
        rounds = sum(map(len, self.logs))
        centre = statistics.fmean(itertools.chain.from_iterable(self.logs))
        squares = sum((log - centre) ** 2 for part in self.logs for log in part)
        pairs = [pair for part in self.logs for pair in itertools.pairwise(part)]
        if not pairs or squares == 0:
            return 1.0
        shared = sum((left - centre) * (right - centre) for left, right in pairs)
        found = (shared / len(pairs)) / (squares / rounds)
        found = max(-1.0, min(1.0, found + (1 + 3 * found) / rounds))
        likely = min(MOST_CORRELATION, found + 2 * math.sqrt((1 - found**2) / rounds))
        count = len(self.logs)
        joined = max(0.0, likely) ** (rounds / count + self.pause_rounds)
        sum_of_shared = sum((1 - lag / count) * joined**lag for lag in range(1, count))
        return math.sqrt((1 + 2 * sum_of_shared) / (1 - 2 * sum_of_shared / (count - 1)))


def _levels(values: Sequence[float], run: LatencyRun) -> Levels:
    return Levels.of(values, processes=run.processes, pause_rounds=run.pause_rounds)


def student_quantile(share: float, *, degrees: int) -> float:
    """Return the value that Student's t exceeds with probability 1 - `share`, for 0.5 <= share < 1.

    By bisection on the distribution in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4).
    """
    if not 0.5 <= share < 1 or degrees < 1:
        raise ValueError(f"no quantile of Student's t: share {share}, {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_share(middle, degrees) < share else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _student_share(angle: float, degrees: int) -> float:
    """Return the probability of values below sqrt(degrees) * tan(angle)."""
    square, odd = math.cos(angle) ** 2, degrees % 2
    term = series = 1.0
    for step in range(2 + odd, degrees, 2):
        term *= square * (step - 1) / step
        series += term
    if not odd:
        return (1 + math.sin(angle) * series) / 2
    if degrees == 1:
        series = 0.0
    return 0.5 + (angle + math.sin(angle) * math.cos(angle) * series) / math.pi


def noise_factor(again: Levels, *, confidence: float) -> float:
    """Return by what factor FP16 against itself may leave 1, to either side: 1 or more."""
    interval = again.limits(confidence=confidence)
    return max(1.0, interval.high, 1 / interval.low)


def widen(interval: Interval, *, by: float) -> Interval:
    """Return an interval of a positive quantity, opened by a factor to both sides."""
    return Interval(low=interval.low / by, high=interval.high * by)


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


def _count_rounds(run: LatencyRun) -> str:
    rounds = count(run.rounds, "round")
    return f"{rounds} in {run.processes} processes" if run.processes > 1 else rounds


def _describe(run: LatencyRun) -> str:
    return f"{run.tower}, batch {run.batch_size}, {run.runtime} on {run.machine.device}"


def _describe_rounds(run: LatencyRun, again: Levels, *, noise: float) -> tuple[str, ...]:
    lines = [
        f"A/A: FP16 against itself in the same rounds gives {again.typical:.4f}, "
        f"with limits within {percent(noise - 1)} of 1"
    ]
    if run.processes > 1:
        lines.append(
            f"from process to process the ratio of FP16 to itself differs by "
            f"{percent(again.spread_share)}, that of quantized to FP16 by "
            f"{percent(_levels(divide_rounds(run.quantized, run.fp16), run).spread_share)}"
        )
    else:
        lines.append(
            "all rounds are of one process: what differs from process to process is not in them"
        )
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


def judge(run: GateRun, gate: LatencyGate) -> Judged:
    """Return whether a tower is as fast as its suite asks for; propose or keep a machine."""
    from pytest_quantgate.store.acceptance import refuse_red
    from pytest_quantgate.store.baselines import next_latency_record

    timed = run.latency(gate)
    run.latency_runs[gate.key] = timed
    command = f"pytest {gate.where.file} --quantgate-baselines="

    def on(machine: Machine | None) -> Verdict:
        return judge_latency(
            timed,
            max_ratio=gate.max_ratio,
            max_latency_ms=gate.max_latency_ms,
            min_ratio=gate.min_ratio,
            confidence=gate.confidence,
            where=gate.where,
            baseline_machine=machine,
            create_command=f"{command}create",
            update_command=f"{command}update --quantgate-reason='why'",
        )

    if gate.max_latency_ms is None:
        return Judged(verdict=on(None))
    record = run.store.read_latency(run.suite.name, gate.key)
    proposed = next_latency_record(
        record,
        suite=run.suite.name,
        key=gate.key,
        run=timed,
        versions=run.versions,
        today=run.today,
        reason=run.settings.reason or "first baseline",
    )
    here = on(timed.machine)
    mode = run.settings.baselines
    if mode is BaselineMode.UPDATE or (mode is BaselineMode.CREATE and record is None):
        return _accept_machine(run, record, proposed=proposed, verdict=here)
    if record is not None:
        refuse_red(record, command=f"pytest {gate.where.file} --quantgate-baselines=update")
    verdict = on(record.machine if record else None)
    notes = note_old_place(run, gate, kind="latency") if record else ()
    if verdict.passed or not here.passed:
        return Judged(verdict=verdict, notes=notes)
    return propose(run, proposed, verdict=verdict, notes=notes)


def _accept_machine(
    run: GateRun, record: LatencyRecord | None, *, proposed: LatencyRecord, verdict: Verdict
) -> Judged:
    """Return the verdict of a writing mode: a machine on which the limits hold is recorded."""
    if not verdict.passed:
        return Judged(verdict=verdict)
    proposed = judge_others(run, proposed)
    same = record is not None and record.same_result(proposed)
    word = "up to date, nothing to write" if same else "updated" if record else "created"
    verdict = dataclasses.replace(
        verdict, evidence=(f"baseline {word}: {proposed.describe()}", *verdict.evidence)
    )
    if same:
        return Judged(verdict=verdict)
    return Judged(verdict=verdict, proposal="baseline", record=proposed)


KIND = GateKind(
    section=LatencyGate,
    help="time against FP16, interleaved",
    judge=judge,
    needs_torch=lambda gate: gate.runtime == "torch",
    several=True,
    keeps_baseline=lambda gate: gate.max_latency_ms is not None,
    timed=True,
)
