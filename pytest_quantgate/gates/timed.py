"""What the gates that time both variants have in common: limits, machines, words.

A value is held against its limit with one-sided limits, widened by what FP16 differs from itself
in the same rounds (A/A). A time in ms holds on the machine of the baseline alone.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.deciding import RELATIONS, decide, relation
from pytest_quantgate.gates.proposals import judge_others, note_old_place, propose
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.gates.sections import CONFIDENCE
from pytest_quantgate.statistics.intervals import Interval
from pytest_quantgate.statistics.rounds import (
    Levels,
    least_rounds,
    noise_factor,
    rounds_to_settle,
    widen,
)
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.keys import BadKey, choice_key, count_key
from pytest_quantgate.suite.where import Where
from pytest_quantgate.text.words import code_of, count, level, percent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
    from pytest_quantgate.store.records import TimedRecord

#: What can be timed in. `onnxruntime` is its CPU provider.
TimedRuntime = Literal[
    "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt-rtx", "tensorrt", "torch"
]
#: Those that run on the CPU, with so many threads.
ON_CPU = ("onnxruntime", "torch")


@dataclass(frozen=True, kw_only=True)
class TimedGate(GateSection):
    """A gate that times one tower of the exported variant and of FP16, interleaved in one run.

    `batch` is the size of a batch, `threads` are those of a runtime on the CPU, `rounds` are timed
    rounds of each side.
    """

    tower: Literal["vision", "text"] = field(metadata=choice_key("vision", "text", help="tower"))
    runtime: TimedRuntime = field(
        default="onnxruntime",
        metadata=choice_key(*get_args(TimedRuntime), help="default: onnxruntime"),
    )
    threads: int = field(default=1, metadata=count_key(help="of a runtime on the CPU; default: 1"))
    confidence: Fraction = field(default=Fraction(95, 100), metadata=CONFIDENCE)
    batch: int
    rounds: int

    @property
    def inputs(self) -> int:
        """How many inputs the runners are given."""
        return self.batch

    def refuse_on_gpu(self, *keys: str) -> None:
        """Raise BadKey for keys that mean nothing where the runtime is on a GPU."""
        for key in keys:
            if key in self.where.keys and self.runtime not in ON_CPU:
                raise BadKey(key, f"{self.runtime} runs on the GPU: leave it out")


#: The longest phrase that a table shows.
BRIEF_LENGTH = 70

#: A time outside of these, in ms, is none: a femtosecond, thirty years.
SHORTEST_MS, LONGEST_MS = 1e-12, 1e12

LABELS = {
    "system": "system",
    "processor": "processor",
    "cores": "number of cores",
    "threads": "number of threads",
    "device": "device",
}


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A run as a gate words it; `about` says what was timed: `vision, batch 8, onnxruntime on cpu`.

    `where` and `confidence` are those of the gate.
    """

    gate: str
    about: str
    run: LatencyRun
    confidence: Fraction
    where: Where

    def levels(self, values: Sequence[float]) -> Levels:
        """Return a positive quantity of every round by the processes of the run."""
        return Levels.of(values, processes=self.run.processes, pause_rounds=self.run.pause_rounds)

    @cached_property
    def ratios(self) -> Levels:
        """Quantized / FP16."""
        return self.levels(divide_rounds(self.run.quantized, self.run.fp16))

    @cached_property
    def again(self) -> Levels:
        """FP16 a second time / FP16."""
        return self.levels(divide_rounds(self.run.fp16_again, self.run.fp16))

    @cached_property
    def noise(self) -> float:
        """By what factor FP16 against itself may leave 1."""
        return noise_factor(self.again, confidence=float(self.confidence))

    @property
    def rounds(self) -> str:
        """`30 rounds in 5 processes`, or `18 rounds in 3 of 5 processes`."""
        rounds, run = count(self.run.rounds, "round"), self.run
        if run.processes == 1:
            return rounds
        of = f" of {run.planned}" if run.processes < run.planned else ""
        return f"{rounds} in {run.processes}{of} processes"

    def limits(self, found: Levels) -> Interval:
        """Return one-sided limits of a quantity with the machine's own noise in them."""
        return widen(found.limits(confidence=float(self.confidence)), by=self.noise)


def describe_run(run: LatencyRun) -> str:
    return f"{run.tower}, batch {run.batch_size}, {run.runtime} on {run.machine.device}"


def check_rounds(timed: Timed) -> Verdict | None:
    """Return a red verdict for a measurement that is none."""
    run, about = timed.run, f"{timed.gate}: {timed.about}"
    lengths = {len(runner.times_ms) for runner in run.runners}
    if lengths == {0}:
        return Verdict(
            gate=timed.gate,
            status=Status.NOT_MEASURED,
            headline=f"{about}: no round was measured ({timed.where})",
            next_step="run without --benchmark-disable, on a machine that has the device",
            code=f"{timed.gate}.no-rounds",
        )
    if len(lengths) > 1:
        shown = ", ".join(f"{c.name} {len(c.times_ms)}" for c in run.runners)
        return Verdict(
            gate=timed.gate,
            status=Status.FAIL,
            headline=f"{about}: the rounds are not paired: {shown} ({timed.where})",
            cause="a round was interrupted, or the measurement was changed after it was taken",
            next_step="measure again",
            code=f"{timed.gate}.rounds-unpaired",
        )
    for runner in run.runners:
        wrong = [t for t in runner.times_ms if not SHORTEST_MS <= t <= LONGEST_MS]
        if wrong:
            return Verdict(
                gate=timed.gate,
                status=Status.FAIL,
                headline=f"{about}: {runner.name} has no valid time in "
                f"{len(wrong)} of {count(len(runner.times_ms), 'round')}, the first is "
                f"{wrong[0]} ms ({timed.where})",
                cause="a timer that is broken or too coarse",
                next_step="measure again, on a machine whose clock does not stand still",
                code=f"{timed.gate}.no-time",
            )
    return None


def check_number(timed: Timed) -> Verdict | None:
    """Return a verdict where there are too few rounds to decide anything."""
    needed, rounds = least_rounds(timed.confidence), timed.run.rounds
    if rounds >= needed:
        return None
    return Verdict(
        gate=timed.gate,
        status=Status.INCONCLUSIVE,
        headline=f"{timed.gate}: {timed.about}: {count(rounds, 'round')} cannot decide at "
        f"{level(timed.confidence)}, that takes {needed} ({timed.where})",
        brief=f"{count(rounds, 'round')}, it takes {needed} at {level(timed.confidence)}",
        next_step=f"measure at least {needed} rounds, better {3 * needed}",
        code=f"{timed.gate}.too-few-rounds",
        cause="each round is one pair of times, and a confidence takes its number of pairs",
    )


def judge_ratio(
    timed: Timed, *, limit: Fraction, key: str = "max_ratio", about: tuple[str, ...] = ()
) -> Verdict:
    """Return whether quantized / FP16 is within a limit, the key `key` of the suite.

    `about` is evidence that goes with it.
    """
    run, ratio = timed.run, timed.ratios.typical
    interval = timed.limits(timed.ratios)
    status = decide(interval, limit=float(limit))
    fp16_ms, quantized_ms = show_ms(run.fp16.median_ms), show_ms(run.quantized.median_ms)
    shown, low, high = (
        show_ratio(value, limit=limit) for value in (ratio, interval.low, interval.high)
    )
    allowed, noise = f"{float(limit):.12g}", percent(timed.noise - 1, 1)
    return Verdict(
        gate=timed.gate,
        status=status,
        headline=f"{timed.gate}: {timed.about}: quantized {quantized_ms} vs FP16 {fp16_ms} over "
        f"{timed.rounds}: ratio {shown}, one-sided {level(timed.confidence)} limits "
        f"[{low}, {high}] with A/A noise {noise}, "
        f"{relation(status, name=key, limit=allowed)} ({timed.where.of(key)})",
        brief=fit(
            f"{shown}x FP16 [{low}, {high}] {RELATIONS.get(status, 'around')} {allowed}x",
            f"{quantized_ms.removesuffix(' ms')} vs {fp16_ms}",
            f"A/A {noise}",
        ),
        evidence=(*about, *_advise(ratio, interval, limit=float(limit), run=run, status=status)),
        cause=_find_cause(ratio, noise=timed.noise, limit=float(limit), status=status),
        next_step=_next_step(status),
        figures={
            "rounds": run.rounds,
            "fp16_ms": run.fp16.median_ms,
            "quantized_ms": run.quantized.median_ms,
            "latency_ratio": ratio,
            "latency_ratio_low": interval.low,
            "latency_ratio_high": interval.high,
            "process_spread_share": timed.ratios.spread_share,
            "max_latency_ratio": float(limit),
            "noise_share": timed.noise - 1,
        },
        code=code_of(timed.gate, "ratio", status),
    )


def judge_absolute(
    timed: Timed,
    *,
    limit_ms: float,
    key: str,
    ratio_key: str,
    baseline_machine: Machine | None,
    command: str,
    about: tuple[str, ...] = (),
) -> Verdict:
    """Return whether quantized takes no longer than a limit that holds on `baseline_machine`.

    `key` is that of the limit in the suite, `ratio_key` that of one which holds anywhere. `command`
    is what makes a baseline, up to its `create` or `update`.
    """
    run, source, allowed = timed.run, timed.where.of(key), f"{limit_ms:.12g} ms"
    if baseline_machine is None:
        return Verdict(
            gate=timed.gate,
            status=Status.FAIL,
            headline=f"{timed.gate}: {timed.about}: {key} {allowed} holds on the machine of the "
            f"baseline, and there is no baseline: here {show_ms(run.quantized.median_ms)} "
            f"({source})",
            brief=f"{key} {allowed} needs a baseline of its machine",
            code=f"{timed.gate}.no-baseline",
            next_step=f"on the machine that it is meant for: {command}create",
            cause="a time in milliseconds is one of a machine, and none was recorded yet",
        )
    different = machine_differences(baseline_machine, run.machine)
    if different:
        return Verdict(
            gate=timed.gate,
            status=Status.INCOMPARABLE,
            headline=f"{timed.gate}: {timed.about}: {key} {allowed} holds on another machine "
            f"({baseline_machine.fingerprint}, here {run.machine.fingerprint}): {different[0]} "
            f"({source})",
            brief=f"{key} {allowed} holds on another machine",
            code=f"{timed.gate}.other-machine",
            evidence=different[1:],
            next_step=f"run on the machine of the baseline, or set {ratio_key}, which holds "
            f"anywhere; if the limit is meant for this one: {command}update "
            f"--quantgate-reason='why'",
            cause="a time in milliseconds is one of a machine, and this is not that one",
        )
    times = timed.levels(run.quantized.times_ms)
    median_ms, interval = times.typical, timed.limits(times)
    status, noise = decide(interval, limit=limit_ms), percent(timed.noise - 1, 1)
    return Verdict(
        gate=timed.gate,
        status=status,
        headline=f"{timed.gate}: {timed.about}: quantized {show_ms(median_ms)} over "
        f"{timed.rounds}, one-sided {level(timed.confidence)} limits "
        f"[{show_ms(interval.low)}, {show_ms(interval.high)}] with A/A noise "
        f"{noise}, {relation(status, name=key, limit=allowed)} ({source})",
        brief=fit(
            f"{show_ms(median_ms)} {RELATIONS.get(status, 'around')} {allowed}", f"A/A {noise}"
        ),
        evidence=(*about, *_advise(median_ms, interval, limit=limit_ms, run=run, status=status)),
        cause=_find_cause(median_ms, noise=timed.noise, limit=limit_ms, status=status),
        next_step=_next_step(status),
        figures={
            "rounds": run.rounds,
            "quantized_ms": median_ms,
            "quantized_low_ms": interval.low,
            "quantized_high_ms": interval.high,
            f"{key}_ms": limit_ms,
            "noise_share": timed.noise - 1,
        },
        code=code_of(timed.gate, "absolute", status),
    )


def judge_on_machine(
    run: GateRun,
    gate: TimedGate,
    *,
    kind: type[TimedRecord],
    timed: LatencyRun,
    on: Callable[[Machine | None], Verdict],
) -> Judged:
    """Return the verdict of a gate with a limit in ms; propose or keep the machine of it.

    `on` judges the gate as if a machine were that of the baseline, `kind` is that of its records.
    """
    from pytest_quantgate.store.acceptance import refuse_red
    from pytest_quantgate.store.baselines import next_timed_record

    record = run.store.read_timed(run.suite.name, gate.key, kind=kind)
    proposed = next_timed_record(
        record,
        kind=kind,
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
        refuse_red(record, command=f"{baseline_command(gate)}update")
    verdict = on(record.machine if record else None)
    notes = note_old_place(run, gate, kind=kind.kind) if record else ()
    if verdict.passed or not here.passed:
        return Judged(verdict=verdict, notes=notes)
    return propose(run, proposed, verdict=verdict, notes=notes)


def baseline_command(gate: GateSection) -> str:
    """Return the command that makes a gate's baseline, up to its `create` or `update`."""
    return f"pytest {gate.where.file} --quantgate-baselines="


def _accept_machine(
    run: GateRun, record: TimedRecord | None, *, proposed: TimedRecord, verdict: Verdict
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


def machine_differences(stored: Machine, now: Machine) -> tuple[str, ...]:
    """Return a sentence for each property that differs; empty where times may be compared."""
    return tuple(
        f"{LABELS[field.name]} differs: baseline {getattr(stored, field.name)}, "
        f"now {getattr(now, field.name)}"
        for field in dataclasses.fields(now)
        if getattr(stored, field.name) != getattr(now, field.name)
    )


def divide_rounds(above: RunnerTimes, below: RunnerTimes) -> tuple[float, ...]:
    """Return the ratio of each round; what slowed a whole round cancels."""
    return tuple(a / b for a, b in zip(above.times_ms, below.times_ms, strict=True))


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


def describe_noise(timed: Timed) -> tuple[str, ...]:
    """Return what the rounds say of the machine they were taken on."""
    run, again = timed.run, timed.again
    lines = [
        f"A/A: FP16 against itself in the same rounds gives {again.typical:.4f}, "
        f"with limits within {percent(timed.noise - 1)} of 1"
    ]
    if run.processes > 1:
        lines.append(
            f"from process to process the ratio of FP16 to itself differs by "
            f"{percent(again.spread_share)}, that of quantized to FP16 by "
            f"{percent(timed.ratios.spread_share)}"
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
    run: LatencyRun,
    status: Status,
) -> tuple[str, ...]:
    if status is not Status.INCONCLUSIVE:
        return ()
    needed = rounds_to_settle(value, interval, limit=limit, rounds=run.rounds)
    if needed is None:
        return ("no practical number of rounds would settle it: the result is at the limit",)
    return (f"about {needed} rounds with this noise would settle it, {run.rounds} were measured",)


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


def fit(first: str, *more: str) -> str:
    """Return the phrases that a table has room for; the first one is cut at need."""
    text = first if len(first) <= BRIEF_LENGTH else f"{first[: BRIEF_LENGTH - 3]}..."
    for phrase in more:
        if len(text) + 2 + len(phrase) <= BRIEF_LENGTH:
            text += f"; {phrase}"
    return text
