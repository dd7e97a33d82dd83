"""The load gate: throughput and tail latency of a server, quantized against FP16.

Requests arrive in a Poisson process at a fixed rate (MLPerf LoadGen's Server scenario), the same
ones at the same moments for FP16, the quantized variant and FP16 again. Of every round the
percentiles are held against FP16's of that round, as the latency gate does with its times.

How many requests a percentile takes is what LoadGen's early stopping asks for: with n answers, none
of them over a bound, the p-th percentile is within it at confidence c from 1 - p^n >= c on
(https://github.com/mlcommons/inference/blob/master/loadgen/early_stopping.cc).

An answer under load has to be the one that the input gets alone: servers join requests, and what
mixes them up is no question of time.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.load import Load, Timing
from pytest_quantgate.evidence.outcomes import group_places
from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates.calibration import SAME_EMBEDDING, batch_limit
from pytest_quantgate.gates.deciding import decide, fail, leave_open, let_pass, relation
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.timed import (
    Timed,
    TimedGate,
    baseline_command,
    check_number,
    check_rounds,
    describe_noise,
    describe_run,
    fit,
    judge_absolute,
    judge_on_machine,
    judge_ratio,
)
from pytest_quantgate.statistics.intervals import Interval
from pytest_quantgate.store.records import LoadRecord
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.keys import (
    BadKey,
    count_key,
    flag_key,
    list_key,
    milliseconds_key,
    named,
    points_key,
    ratio_key,
)
from pytest_quantgate.text.words import code_of, count, level, percent, points

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.audit import BatchInvariance
    from pytest_quantgate.evidence.latency import Machine
    from pytest_quantgate.evidence.load import Answer, LoadRun, Served

GATE = "load"
_open = partial(leave_open, GATE)
_pass = partial(let_pass, GATE)
_fail = partial(fail, GATE)

#: The share of requests that a percentile is of, by the field of its limit.
PERCENTILES = {
    "p50_ratio": Fraction(50, 100),
    "p90_ratio": Fraction(90, 100),
    "p99_ratio": Fraction(99, 100),
    "max_p99_ms": Fraction(99, 100),
}
#: What is timed, by the key of its limit against FP16.
RATIOS: dict[str, Timing] = {
    "p50_ratio": "p50",
    "p90_ratio": "p90",
    "p99_ratio": "p99",
    "offline_ratio": "offline",
}

#: That of LoadGen's early stopping.
ENOUGH = Fraction(99, 100)

#: A server that answers less than this share of what arrives has a queue that grows all the time.
KEEPS_UP = 0.9

#: How many requests are answered where no percentile has a limit.
QUERIES = 100

#: Of an answer that is further off than this share nothing is left; rounding takes no such step.
LOST = 0.5


@dataclass(frozen=True, kw_only=True)
class LoadGate(TimedGate):
    """How one tower of the exported variant answers requests under load, against FP16.

    `rate` requests a second arrive, `queries` in a round (None: as many as the strictest limit
    takes). See `Load` for the server: `sizes`, `batch`, `window_ms`, `concurrency`, `queue`.

    `p50_ratio`, `p90_ratio` and `p99_ratio` are the largest ratios of quantized / FP16 of these
    percentiles, `offline_ratio` that of the time of a request when all are there at once.
    `max_late` is how many more of the requests than FP16's may be late (longer than `bound_ms`) or
    dropped. `max_p99_ms` holds on the machine of the baseline alone. With `search` the highest rate
    of either variant with its 99th percentile within `bound_ms` is reported, and decides nothing.
    """

    kind = GATE

    rate: int = field(metadata=count_key(help="requests in a second"))
    p50_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="50th percentile against FP16's")
    )
    p90_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="90th percentile against FP16's")
    )
    p99_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="99th percentile against FP16's")
    )
    offline_ratio: Fraction | None = field(
        default=None,
        metadata=ratio_key(help="time of a request when all are there at once, against FP16's"),
    )
    max_late: Fraction | None = field(
        default=None, metadata=points_key(help="more late or dropped requests than FP16's")
    )
    bound_ms: float | None = field(
        default=None,
        metadata=named("bound", milliseconds_key(help="a request that takes longer is late")),
    )
    max_p99_ms: float | None = field(
        default=None,
        metadata=named(
            "max_p99",
            milliseconds_key(help="99th percentile, on the machine of the baseline alone"),
        ),
    )
    sizes: tuple[int, ...] = field(
        default=(1,),
        metadata=list_key(
            count_key(help="inputs"), help="inputs of a request, in turn; default: 1", single=True
        ),
    )
    batch: int = field(
        default=1, metadata=count_key(help="inputs that the server joins at most; default: 1")
    )
    window_ms: float = field(
        default=0.0,
        metadata=named(
            "window",
            milliseconds_key(help="how long a batch waits for more; default: for nothing"),
        ),
    )
    concurrency: int = field(
        default=1, metadata=count_key(help="batches that run at a time; default: 1")
    )
    queue: int | None = field(
        default=None,
        metadata=count_key(help="requests that may wait, others are dropped; default: all"),
    )
    queries: int | None = field(
        default=None,
        metadata=count_key(help="requests in a round; default: what the strictest limit takes"),
    )
    search: bool = field(
        default=False,
        metadata=flag_key(help="report the highest rate with the p99 within bound; default: false"),
    )
    rounds: int = field(default=20, metadata=count_key(help="rounds of requests; default: 20"))

    @property
    def key(self) -> str:
        """`<runtime>-<tower>-<rate>-per-s`, and the batch above 1."""
        batch = "" if self.batch == 1 else f"-batch{self.batch}"
        return f"{self.runtime}-{self.tower}-{self.rate}-per-s{batch}"

    @property
    def inputs(self) -> int:
        return sum(self.load.lengths)

    @property
    def load(self) -> Load:
        """What the server is asked for."""
        return Load(
            rate=self.rate,
            queries=self.queries or max(_needed(self).values(), default=QUERIES),
            sizes=self.sizes,
            batch=self.batch,
            window_ms=self.window_ms,
            concurrency=self.concurrency,
            queue=self.queue,
            bound_ms=self.bound_ms,
            offline=self.offline_ratio is not None,
        )

    def check(self) -> None:
        limits = (*RATIOS, "max_late", "max_p99_ms")
        if all(getattr(self, name) is None for name in limits):
            raise BadKey(
                "", f"sets no limit, so it decides nothing: set {', '.join(RATIOS)}, max_late"
            )
        if not self.sizes:
            raise BadKey("sizes", "is empty: name at least one number of inputs")
        if max(self.sizes) > self.batch:
            raise BadKey("sizes", f"a request of {max(self.sizes)} is larger than batch")
        if self.queue is not None and None in (self.max_late, self.bound_ms):
            raise BadKey(
                "queue",
                "drops requests, which no percentile shows: set bound and max_late, so that they "
                "count as late",
            )
        if self.max_late is not None and self.bound_ms is None:
            raise BadKey("max_late", "nothing is late without a bound: set bound")
        if self.max_late is not None and not 0 < self.max_late < 1:
            raise BadKey("max_late", "no number of requests shows it: set above 0pp, below 100pp")
        if self.bound_ms is not None and self.max_late is None and not self.search:
            raise BadKey("bound", "is about max_late and search: set one of them")
        if self.search and self.bound_ms is None:
            raise BadKey("search", "looks for the rate that keeps a bound: set bound")
        if self.window_ms and self.batch == 1:
            raise BadKey("window", "is what a batch waits: set batch above 1")
        self.refuse_on_gpu("threads", "concurrency")


def least_queries(percentile: Fraction, *, confidence: Fraction = ENOUGH) -> int:
    """Return how many answers within a bound show that the percentile is: 459 for the 99th."""
    return math.ceil(math.log(1 - confidence) / math.log(percentile))


def _needed(gate: LoadGate) -> dict[str, int]:
    """Return by the field of each limit how many requests of a round it takes."""
    needed = {
        name: least_queries(share)
        for name, share in PERCENTILES.items()
        if getattr(gate, name) is not None
    }
    if gate.max_late is not None:
        # Over all rounds; each takes its part.
        needed["max_late"] = -(-least_queries(1 - gate.max_late) // gate.rounds)
    return needed


def judge_load(
    run: LoadRun,
    gate: LoadGate,
    *,
    invariance: BatchInvariance | None = None,
    baseline_machine: Machine | None = None,
) -> Verdict:
    """Return whether the quantized variant serves as fast as it has to, and the same answers.

    Limits are decided as `judge_latency` does. `invariance` is how far embeddings move with their
    batch outside of a server (None: unknown). Wrong answers are FAIL. Too few requests or rounds,
    and a rate that FP16 itself does not keep up with, are INCONCLUSIVE.
    """
    about = f"{run.load.rate} requests a second, {describe_run(run.timed)}"
    whole = Timed(
        gate=GATE, about=about, run=run.times("p99"), confidence=gate.confidence, where=gate.where
    )
    broken = check_rounds(whole)
    if broken is not None:
        return broken
    answers = _judge_answers(run, gate, about=about, invariance=invariance)
    stopped = _check_rate(run, gate, about=about) or check_number(whole)
    if stopped is not None:
        return combine(gate=GATE, parts=(stopped, answers))
    needed = _needed(gate)
    noise = describe_noise(whole)
    parts: list[Verdict] = []
    for key, timing in RATIOS.items():
        limit: Fraction | None = getattr(gate, key)
        if limit is None:
            continue
        name = "a request when all are there" if timing == "offline" else timing
        timed = replace(whole, about=f"{name} at {about}", run=run.times(timing))
        verdict = (
            check_rounds(timed)
            or _check_queries(timed, run, key=key, needed=needed.get(key, 0))
            or judge_ratio(timed, limit=limit, key=key, about=noise)
        )
        parts.append(_name_figures(verdict, timing))
        noise = ()
    if gate.max_late is not None:
        parts.append(
            _check_queries(whole, run, key="max_late", needed=needed["max_late"])
            or _judge_late(whole, run, limit=gate.max_late)
        )
    if gate.max_p99_ms is not None:
        timed = replace(whole, about=f"p99 at {about}")
        verdict = _check_queries(
            timed, run, key="max_p99", needed=needed["max_p99_ms"]
        ) or judge_absolute(
            timed,
            limit_ms=gate.max_p99_ms,
            key="max_p99",
            ratio_key="p99_ratio",
            baseline_machine=baseline_machine,
            command=baseline_command(gate),
            about=noise,
        )
        parts.append(_name_figures(verdict, "p99"))
    return combine(gate=GATE, parts=(*parts, answers))


def _name_figures(verdict: Verdict, timing: Timing) -> Verdict:
    """Return a verdict whose figures say of which time they are."""
    figures = {f"{timing}_{name}": value for name, value in verdict.figures.items()}
    return replace(verdict, figures=figures)


def _check_rate(run: LoadRun, gate: LoadGate, *, about: str) -> Verdict | None:
    """Return a verdict where FP16 does not keep up: then times are those of a queue that grows.

    What it drops is not answered, though LoadGen is told so at the end of a round.
    """
    answered = [s.completed_per_s * (s.queries - s.dropped) / max(1, s.queries) for s in run.fp16]
    share = statistics.median(
        done / s.scheduled_per_s for done, s in zip(answered, run.fp16, strict=True)
    )
    if share >= KEEPS_UP:
        return None
    done = statistics.median(answered)
    drops = any(s.dropped for s in run.fp16)
    return _open(
        "rate-too-high",
        f"{about}: FP16 answers {done:.0f} a second, so "
        f"{'it drops the others' if drops else 'what waits grows all the time'} "
        f"({gate.where.of('rate')})",
        brief=f"FP16 keeps up with {done:.0f} of {run.load.rate} requests a second",
        cause="the rate is more than this machine can serve, or something else was running",
        next_step=f"set a rate of at most {max(1, int(done * KEEPS_UP))}, or a larger batch",
        figures={"fp16_completed_per_s": done},
    )


def _check_queries(timed: Timed, run: LoadRun, *, key: str, needed: int) -> Verdict | None:
    """Return a verdict where a round has fewer requests than a limit takes."""
    served = min(s.queries for s in (*run.fp16, *run.quantized, *run.fp16_again))
    if served >= needed:
        return None
    return _open(
        "too-few-queries",
        f"{timed.about}: {count(served, 'request')} in a round cannot decide "
        f"{key}, that takes {needed} by LoadGen's early stopping at {level(ENOUGH)} "
        f"({timed.where.of('queries' if 'queries' in timed.where.keys else key)})",
        brief=f"{key}: {served} requests in a round, it takes {needed}",
        cause="a percentile of few requests is the time of one or two of them",
        next_step=f"set queries: {needed}, or leave it out",
    )


def _judge_late(timed: Timed, run: LoadRun, *, limit: Fraction) -> Verdict:
    """Return whether late and dropped requests are no more than FP16's, or by so much."""

    def differ(above: tuple[Served, ...], below: tuple[Served, ...]) -> list[float]:
        return [
            math.exp(a.late / a.queries - b.late / b.queries)
            for a, b in zip(above, below, strict=True)
        ]

    # The statistics are those of ratios: a difference is the logarithm of one.
    found = timed.levels(differ(run.quantized, run.fp16))
    again = timed.levels(differ(run.fp16_again, run.fp16)).limits(
        confidence=float(timed.confidence)
    )
    noise = max(0.0, math.log(again.high), -math.log(again.low))
    reach = found.limits(confidence=float(timed.confidence))
    interval = Interval(low=math.log(reach.low) - noise, high=math.log(reach.high) + noise)
    sides = {
        name: sum(s.late for s in rounds) / sum(s.queries for s in rounds)
        for name, rounds in (("fp16", run.fp16), ("quantized", run.quantized))
    }
    status = decide(interval, limit=float(limit))
    cause = "the tail of the quantized variant is longer"
    next_step = "look at p99_ratio, or measure more rounds"
    if sides["fp16"] + limit >= 1:  # whatever the quantized variant does is within
        status = Status.INCONCLUSIVE
        cause = f"FP16 is late so often that {points(limit)} more cannot be: nothing is decided"
        next_step = "set a larger bound, or a lower rate"
    dropped = sum(s.dropped for s in run.quantized)
    return Verdict(
        gate=GATE,
        status=status,
        headline=f"load: {timed.about}: {percent(sides['quantized'])} late or dropped vs FP16 "
        f"{percent(sides['fp16'])}: {points(math.log(found.typical))} more, one-sided "
        f"{level(timed.confidence)} limits [{points(interval.low)}, {points(interval.high)}], "
        f"{relation(status, name='max_late', limit=points(float(limit)))} "
        f"({timed.where.of('max_late')})",
        brief=fit(
            f"{percent(sides['quantized'])} late or dropped, FP16 {percent(sides['fp16'])}",
            f"{dropped} dropped",
        ),
        cause="" if status is Status.PASS else cause,
        next_step="" if status is Status.PASS else next_step,
        figures={
            "fp16_late_share": sides["fp16"],
            "quantized_late_share": sides["quantized"],
            "quantized_dropped": dropped,
            "late_points_low": interval.low * 100,
            "late_points_high": interval.high * 100,
            "max_late_points": float(limit) * 100,
        },
        code=code_of(GATE, "late", status),
    )


# -- answers --------------------------------------------------------------------------------------


def _judge_answers(
    run: LoadRun, gate: LoadGate, *, about: str, invariance: BatchInvariance | None
) -> Verdict:
    """Return whether the answers under load are those of the inputs alone."""
    known = invariance is not None and invariance.samples
    limit = batch_limit(invariance) if invariance is not None and known else SAME_EMBEDDING
    moved = {}
    for name, rounds in (("FP16", run.fp16), ("quantized", run.quantized)):
        worst = _join_answers(rounds)
        moved[name] = statistics.median(answer.distance for answer in worst) if worst else math.inf
        wrong = _find_wrong(worst, gate, about=about, name=name, limit=limit, moved=moved[name])
        if wrong is not None:
            return replace(wrong, figures={"answers_limit": limit})
    highest = _describe_highest(run)
    batches = sum(s.batches for s in run.quantized)
    requests = sum(s.queries - s.dropped for s in run.quantized)
    said = ", ".join(f"{name} {percent(share)}" for name, share in moved.items())
    return _pass(
        f"{about}: answers under load are those alone: {said} (limit "
        f"{percent(limit)}), {requests / max(1, batches):.2f} requests a batch ({gate.where})",
        evidence=highest,
        figures={
            "answers_limit": limit,
            **{f"{name.lower()}_answers_change": share for name, share in moved.items()},
            **{f"{name}_highest_per_s": rate for name, rate in run.highest_rates.items()},
        },
    )


def _find_wrong(
    worst: Sequence[Answer], gate: LoadGate, *, about: str, name: str, limit: float, moved: float
) -> Verdict | None:
    """Return what is wrong with the worst answers of a variant, `moved` by so much typically."""
    for answer in worst:
        swapped = answer.nearest != answer.input
        if answer.distance <= (limit if swapped else max(limit, LOST)):
            continue
        asked, batch = f"{about}: {name} answered input {answer.input}", _name_batch(answer)
        next_step = "try concurrency: 1, then batch: 1, to see which of the two does it"
        if swapped:
            return _fail(
                "answers-swapped",
                f"{asked} with the embedding of input {answer.nearest}, in {batch} ({gate.where})",
                brief=f"{name} gave input {answer.input} the answer of {answer.nearest}",
                cause="the runtime mixes up the inputs of a batch, or calls that run at once share "
                "a buffer",
                next_step=next_step,
            )
        return _fail(
            "answers-lost",
            f"{asked} with an embedding that is {percent(answer.distance)} from that alone, in "
            f"{batch} ({gate.where})",
            brief=f"{name} lost the answer to input {answer.input}",
            cause="calls that run at once share a buffer, or the runtime overflows on a batch",
            next_step=next_step,
        )
    if moved <= limit:
        return None
    first = max(worst, key=lambda answer: answer.distance, default=None)
    batch = f", most in {_name_batch(first)}" if first else ""
    return _fail(
        "batch-dependent",
        f"{about}: embeddings of {name} under load differ by {percent(moved)} from those alone "
        f"(limit {percent(limit)}){batch} ({gate.where})",
        brief=f"{name} under load is {percent(moved)} from alone",
        cause="an embedding depends on the inputs that a server joins it with, or calls that run "
        "at once share a buffer",
        next_step="look at calibration (batch-dependent ranges), then try concurrency: 1",
    )


def _describe_highest(run: LoadRun) -> tuple[str, ...]:
    """Return the rates that were found in a search, which decide nothing."""
    if not run.highest_rates or run.load.bound_ms is None:
        return ()
    rates = ", ".join(f"{name} {rate}" for name, rate in run.highest_rates.items())
    return (
        f"highest rates with a p99 within {run.load.bound_ms:g} ms, in requests a second: {rates}; "
        f"from one search each, so they decide nothing",
    )


def _join_answers(rounds: tuple[Served, ...]) -> list[Answer]:
    """Return of each input the answer that is furthest off, over all rounds."""
    answers = [answer for served in rounds for answer in served.answers]
    places = group_places(answer.input for answer in answers)
    return [
        # NaN is further off than any number.
        max(
            (answers[place] for place in places[at]),
            key=lambda answer: (math.isnan(answer.distance), answer.distance),
        )
        for at in sorted(places)
    ]


def _name_batch(answer: Answer) -> str:
    """Return the batch of an answer by its inputs: `the batch of inputs 3, 17, 4`."""
    shown = ", ".join(map(str, answer.batch[:8]))
    more = f" and {len(answer.batch) - 8} more" if len(answer.batch) > 8 else ""
    return f"the batch of inputs {shown}{more}"


def judge(run: GateRun, gate: LoadGate) -> Judged:
    """Return whether a tower serves as its suite asks for; propose or keep a machine."""
    measured = run.load_runs[gate.name] = run.load(gate)
    timed = measured.times("p99")
    run.latency_runs[gate.name] = timed
    # ONNX files that were handed over alone have no model that was audited.
    known = () if run.suite.is_onnx_alone else run.audit.invariance
    invariance = next((found for found in known if found.tower == gate.tower), None)

    def on(machine: Machine | None) -> Verdict:
        return judge_load(measured, gate, invariance=invariance, baseline_machine=machine)

    if gate.max_p99_ms is None:
        return Judged(verdict=on(None))
    return judge_on_machine(run, gate, kind=LoadRecord, timed=timed, on=on)


KIND = GateKind(
    section=LoadGate,
    help="tail latency and throughput of a server, and its answers",
    judge=judge,
    several=True,
    needs_torch=lambda gate: gate.runtime == "torch",
    keeps_baseline=lambda gate: gate.max_p99_ms is not None,
    timed=True,
    needs=("load",),
)
