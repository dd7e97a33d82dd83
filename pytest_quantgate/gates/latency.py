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

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from pytest_quantgate.evidence.latency import NARROW_GAIN
from pytest_quantgate.evidence.verdict import Status, Verdict, combine
from pytest_quantgate.gates.given_times import judge_given_times
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
    show_ms,
    show_ratio,
)
from pytest_quantgate.statistics.rounds import confidence_of_look
from pytest_quantgate.store.records import LatencyRecord
from pytest_quantgate.suite.gates import GateKind
from pytest_quantgate.suite.keys import (
    BadKey,
    count_key,
    milliseconds_key,
    named,
    ratio_key,
    spread,
)
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from pytest_quantgate.evidence.latency import GivenTimes, LatencyRun, Machine

GATE = "latency"


@dataclass(frozen=True, kw_only=True)
class LatencyGate(TimedGate):
    """How fast one tower of the exported variant is against FP16, interleaved in one run.

    `max_ratio` is the largest median of quantized / FP16 time. `max_latency_ms` is the largest
    median of the quantized variant's time for one batch; it holds on the machine of the baseline
    alone. `min_ratio` is the smallest ratio that is believed; None: what 8-bit arithmetic can gain
    where it runs.
    """

    kind = GATE

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
    rounds: int = field(default=30, metadata=count_key(help="timed rounds at most; default: 30"))

    @property
    def key(self) -> str:
        """`<runtime>-<tower>-batch<n>`."""
        return f"{self.runtime}-{self.tower}-batch{self.batch}"

    def check(self) -> None:
        if self.max_ratio is None and self.max_latency_ms is None:
            raise BadKey("", "sets no limit, so it decides nothing: set max_ratio, max_latency")
        if self.max_ratio is not None and (self.min_ratio or 0) >= self.max_ratio:
            raise BadKey("min_ratio", "is not below max_ratio, so nothing could pass")
        self.refuse_on_gpu("threads")


#: How many times the gain of the arithmetic is believed: INT8 weights that fit where FP32 ones do
#: not, or an attention that is fused in one precision alone, gain more than multiply-adds do.
ROOM = 2


def judge_latency(
    run: LatencyRun, gate: LatencyGate, *, baseline_machine: Machine | None = None
) -> Verdict:
    """Return whether the quantized variant is fast enough, against FP16 and in ms.

    Each limit is decided on one-sided limits at the confidence that the looks at the run share:
    PASS where the upper one is within, FAIL where the lower one is beyond, INCONCLUSIVE between.
    `max_latency_ms` holds on the machine of the baseline, `baseline_machine`; it is INCOMPARABLE
    elsewhere, and FAIL without a baseline. No rounds are NOT_MEASURED; times that are none and
    unequal rounds are FAIL. Where a run gives another number of embeddings than the batch has, or
    the ratio is below `min_ratio` (None: 1 / (ROOM * `run.arithmetic_gain`)), the two did not do
    the same work: INCOMPARABLE. A gate without limits raises ValueError; its suite is refused.
    """
    confidence = confidence_of_look(gate.confidence, processes=run.processes, planned=run.planned)
    timed = Timed(
        gate=GATE, about=describe_run(run), run=run, confidence=confidence, where=gate.where
    )
    broken = (
        check_rounds(timed)
        or _check_work(timed)
        or _check_plausible(timed, min_ratio=gate.min_ratio)
        or check_number(timed)
    )
    if broken is not None:
        return broken
    about = describe_noise(timed)
    parts = []
    if gate.max_ratio is not None:
        ratio = judge_ratio(timed, limit=gate.max_ratio, about=about)
        rates = {
            f"{name}_samples_per_s": run.batch_size * 1e3 / times.median_ms
            for name, times in (("fp16", run.fp16), ("quantized", run.quantized))
        }
        parts.append(replace(ratio, figures={**ratio.figures, **rates}))
    if gate.max_latency_ms is not None:
        parts.append(
            judge_absolute(
                timed,
                limit_ms=gate.max_latency_ms,
                key="max_latency",
                ratio_key="max_ratio",
                baseline_machine=baseline_machine,
                command=baseline_command(gate),
                about=() if parts else about,
            )
        )
    return combine(gate=GATE, parts=tuple(parts))


def _check_work(timed: Timed) -> Verdict | None:
    """Return a red verdict where a run gave another number of embeddings than the batch has."""
    run = timed.run
    counted = {c.name: c.samples for c in run.runners[:2] if c.samples is not None}
    if all(samples == run.batch_size for samples in counted.values()):
        return None
    shown = ", ".join(f"{name} {samples}" for name, samples in counted.items())
    return Verdict(
        gate=GATE,
        status=Status.INCOMPARABLE,
        headline=f"latency: {timed.about}: not the same work: a run gives other than "
        f"{count(run.batch_size, 'embedding')}: {shown} ({timed.where})",
        brief=fit("not the same work", f"embeddings of a run: {shown}"),
        cause="a batch size that is fixed in the exported graph, or another input than FP16's",
        next_step="export with a free batch axis, and give both variants the same inputs",
        code="latency.other-work",
    )


def _check_plausible(timed: Timed, *, min_ratio: Fraction | None) -> Verdict | None:
    """Return a red verdict where quantized is faster than its arithmetic allows.

    The median itself decides, not a limit of it: noise is no reason to believe such a ratio.
    """
    run, where, ratio = timed.run, timed.where, timed.ratios.typical
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
        headline=f"latency: {timed.about}: implausible: quantized {quantized_ms} vs FP16 "
        f"{fp16_ms} over {timed.rounds}: ratio {shown}, below {allowed}: not the "
        f"same work ({source})",
        brief=fit(f"implausible: {shown}x FP16, below {allowed}x", "not the same work"),
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


def judge(run: GateRun, gate: LatencyGate) -> Judged:
    """Return whether a tower is as fast as its suite asks for; propose or keep a machine."""
    given = run.stages.given_times(gate)
    if given is not None:
        return Judged(verdict=_judge_given(*given, gate=gate))

    def is_decided(timed: LatencyRun) -> bool:
        found = judge_latency(timed, gate, baseline_machine=timed.machine)
        return found.status is not Status.INCONCLUSIVE

    timed = run.latency_runs[gate.name] = run.latency(gate, is_decided=is_decided)

    def on(machine: Machine | None) -> Verdict:
        return judge_latency(timed, gate, baseline_machine=machine)

    if gate.max_latency_ms is None:
        return Judged(verdict=on(None))
    return judge_on_machine(run, gate, kind=LatencyRecord, timed=timed, on=on)


def _judge_given(quantized: GivenTimes, fp16: GivenTimes | None, *, gate: LatencyGate) -> Verdict:
    """Return whether engines that were timed elsewhere hold the limits that hold anywhere."""
    parts = []
    if gate.max_latency_ms is not None:
        parts.append(
            Verdict(
                gate=GATE,
                status=Status.NOT_MEASURED,
                headline=f"latency: max_latency holds on the machine of a baseline, and the times "
                f"of {quantized.name} are of another run ({gate.where.of('max_latency')})",
                next_step="set max_ratio, or run the gate where the engine runs",
            )
        )
    if gate.max_ratio is not None:
        least = gate.min_ratio or Fraction(1, ROOM * NARROW_GAIN)
        parts.append(
            judge_given_times(quantized, fp16, gate=gate, max_ratio=gate.max_ratio, min_ratio=least)
        )
    return combine(gate=GATE, parts=tuple(parts))


KIND = GateKind(
    section=LatencyGate,
    help="time against FP16, interleaved",
    judge=judge,
    needs_torch=lambda gate: gate.runtime == "torch",
    several=True,
    keeps_baseline=lambda gate: gate.max_latency_ms is not None,
    timed=True,
)
