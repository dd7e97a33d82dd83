"""Limits for the gates of a suite, out of measured pairs: what these data can decide.

A limit is proposed where the worst calibration that was measured keeps it in 80 % of runs on as
many samples: the statistics of `quantgate plan`, at measured rates.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from pytest_quantgate.commands.planning import chance_of_parts
from pytest_quantgate.commands.suite_text import DROPS_POINTS, is_decided, quote
from pytest_quantgate.comparison.suite_files import show_value
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.deciding import decide
from pytest_quantgate.gates.drops import drop_flips, right_share
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.gates.slice_search import search_worst
from pytest_quantgate.gates.slices import count_needed, cut, find_worst
from pytest_quantgate.statistics.intervals import Flips, Result, drop_limits
from pytest_quantgate.statistics.pairing import Pairs, pair_outcomes
from pytest_quantgate.statistics.sizes import SETTLING_POWER, samples_to_settle
from pytest_quantgate.suite.keys import keys_of
from pytest_quantgate.tasks.kind import find_task
from pytest_quantgate.text.words import count, listed, percent, points, signed

if TYPE_CHECKING:
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.gates.slices import Columns
    from pytest_quantgate.statistics.intervals import ClassCounts
    from pytest_quantgate.store.records import Record

#: Limits, in points and percent, of which the strictest that the data decides is proposed.
DROPS = (0.1, 0.2, 0.3, *DROPS_POINTS, 15.0, 20.0)
SLICE_DROPS = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0, 20.0)
FLIPS = (0.5, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 50.0)

#: So much of the samples must lie in slices that are large enough for a column to be proposed.
COVERED = 0.9


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one task gave: FP16, and the variant as it was calibrated on some pairs or others.

    `columns` are what the data says of each of FP16's outcomes, `record` the baseline.
    """

    gate: TaskGate
    fp16: Outcomes
    variants: tuple[Outcomes, ...]
    columns: Columns
    record: Record | None = None

    def pair(self, slices: Mapping[str, Sequence[int]] | None = None) -> list[Pairs]:
        """Return FP16 paired with each calibration."""
        return [
            pair_outcomes(before=self.fp16, after=one, slices=slices or {}) for one in self.variants
        ]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Limits of one gate as a suite writes them, and why, in lines."""

    gate: TaskGate
    limits: Mapping[str, str]
    reasons: tuple[str, ...]

    def write(self) -> str:
        """Return the gate in one line: what it is on as the suite says it, and these limits."""
        limits = dict(self.limits)
        parts = []
        for name, (field, _) in keys_of(type(self.gate)).items():
            value = getattr(self.gate, field.name)
            if name in limits:
                parts.append(f"{name}: {limits[name]}")
            elif value != field.default and name not in ("slices", "max_class_drop"):
                parts.append(f"{name}: {_write(name, value)}")
        return f"- {{{', '.join(parts)}}}"


def propose(found: Measured) -> Proposal:
    """Return limits for a task out of what was measured."""
    limits, reasons = {}, [*_describe(found)]
    chosen = (
        _propose_regression(found)
        if isinstance(found.gate, RegressionGate)
        else _propose_accuracy(found)
    )
    for name, value, reason in chosen:
        reasons.append(reason)
        if value:
            limits[name] = value
    if found.record is not None:
        reasons.append(f"accepted on {found.record.updated}: {found.record.describe()}")
        reasons += (f"accepted before: {chain.describe()}" for chain in found.record.chains)
    return Proposal(gate=found.gate, limits=limits, reasons=tuple(reasons))


def _describe(found: Measured) -> Iterator[str]:
    values = ", ".join(percent(one.value) for one in found.variants)
    pairs = found.pair()
    first = pairs[0]
    yield (
        f"{found.gate.title}: FP16 {percent(found.fp16.value)}, quantized {values} on "
        f"{count(first.samples, 'sample')}; {percent(first.flips.rate)} of "
        f"outcomes flip, {percent(first.changed / first.samples)} of answers change"
    )
    if len(pairs) > 1:
        drops = [drop_flips(one, metric=found.gate.metric).value for one in pairs]
        yield (
            f"drop over {len(pairs)} calibrations: "
            f"{', '.join(signed(drop * 100) for drop in drops)} pp, a spread of "
            f"{points(max(drops) - min(drops))}"
        )


Chosen = tuple[str, str, str]


def _propose_accuracy(found: Measured) -> Iterator[Chosen]:
    gate, pairs = found.gate, found.pair()
    drops = [_without_gain(drop_flips(one, metric=gate.metric)) for one in pairs]
    yield _choose("max_drop", drops, DROPS, "pp", of=found)
    yield _choose("max_flips", [one.changed_share for one in pairs], FLIPS, "%", of=found)
    if not find_task(gate.task).needs_fp16:
        yield _choose_floor([right_share(one, metric=gate.metric) for one in pairs], gate=gate)
    yield from _choose_slices(found)


def _propose_regression(found: Measured) -> Iterator[Chosen]:
    gate, pairs = found.gate, found.pair()
    samples = drop_flips(pairs[0], metric=gate.metric).samples
    still = Flips(right_to_wrong=0, wrong_to_right=0, samples=samples)
    yield _choose("max_fp16_drop", [still], DROPS, "pp", of=found, why="if FP16 does not change")
    first, *others = found.variants
    again = [pair_outcomes(before=first, after=one) for one in others]
    if again:
        moved = [drop_flips(one, metric=gate.metric) for one in again]
        why = "between calibrations"
    else:
        moved = [drop_flips(one, metric=gate.metric) for one in pairs]
        why = "if another variant flips as much against this one"
    moves = [_without_gain(one, drop=0.0) for one in moved]
    yield _choose("max_drop", moves, DROPS, "pp", of=found, why=why)
    drops = [_without_gain(drop_flips(one, metric=gate.metric)) for one in pairs]
    yield _choose("max_drop_since_first", drops, DROPS, "pp", of=found, why="as against FP16")
    seen = replace(found, fp16=first, variants=tuple(others)) if others else found
    yield from _choose_slices(seen, searches=False)


def _without_gain(found: Result, *, drop: float | None = None) -> Result:
    """Return flips at the same rate with no gain on balance, or with this drop: a gain is luck."""
    if not isinstance(found, Flips):
        return found
    lost = found.value if drop is None else drop
    if drop is None and lost >= 0:
        return found
    each = found.rate * found.samples / 2
    return Flips(right_to_wrong=each, wrong_to_right=each, samples=found.samples)


def _choose(
    name: str,
    found: Sequence[Result],
    grid: Sequence[float],
    unit: str,
    *,
    of: Measured,
    why: str = "",
) -> Chosen:
    """Return the strictest limit that all results keep in 80 % of runs of their size, and why."""
    confidence, samples = float(of.gate.confidence), len(of.fp16.ids)

    def is_kept(limit: float) -> bool:
        return all(
            one.value < limit / 100
            and is_decided(one, samples=one.samples, confidence=confidence, limit=limit / 100)
            for one in found
        )

    chosen = next((limit for limit in grid if is_kept(limit)), None)
    stricter = [limit for limit in grid if chosen is None or limit < chosen]
    needed = [
        f"{limit:g}{unit} takes {most} samples"
        for limit in reversed(stricter)
        if (most := _count_needed(found, samples, limit=limit / 100, confidence=confidence))
        is not None
    ][:2]
    told = f"; {', '.join(needed)}" if needed else ""
    about = f" {why}" if why else ""
    if chosen is None:
        return (
            name,
            f"{grid[-1]:g}{unit}",
            f"{name}: no limit up to {grid[-1]:g}{unit} is decided{about}{told}",
        )
    return (
        name,
        f"{chosen:g}{unit}",
        f"{name} {chosen:g}{unit}: the strictest that is decided{about}{told}",
    )


def _count_needed(
    found: Sequence[Result], samples: int, *, limit: float, confidence: float
) -> int | None:
    """Return how many samples, each worth what these are, decide a limit; None where none would."""
    needed = []
    for one in found:
        settled = samples_to_settle(one, confidence=confidence, limit=limit)
        if one.value >= limit or settled is None:
            return None
        needed.append(math.ceil(settled * samples / one.samples))
    return max(needed)


def _choose_floor(found: Sequence[Result], *, gate: TaskGate) -> Chosen:
    least = min(one.value for one in found)
    for floor in range(math.floor(least * 100), 0, -1):
        if floor / 100 < least and all(
            is_decided(
                one, samples=one.samples, confidence=float(gate.confidence), limit=floor / 100
            )
            for one in found
        ):
            return "floor", f"{floor}%", f"floor {floor}%: the highest that is decided"
    return "floor", "", "floor: none is decided"


def _choose_slices(found: Measured, *, searches: bool = True) -> Iterator[Chosen]:
    """Yield a limit on slices by every column that has few enough values; if it `searches`, a
    suspect too."""
    gate, samples = found.gate, len(found.fp16.ids)
    cuts, many = {}, []
    for name in found.columns:
        parts = cut(found.columns, (name,))
        if _covers(parts, samples=samples, limit=SLICE_DROPS[-1], gate=gate):
            cuts[name] = parts
        elif len(parts) > 1:
            many.append(f"{name!r} ({len(parts)} values)")
    if many:
        yield "slices", "", f"slices: too few samples to a value of {listed(many)}"
    if cuts:
        yield _choose_slice_drop(found, cuts=cuts)
    if not searches:
        return
    suspect = search_worst(
        found.fp16, found.variants[0], columns=found.columns, limit=_limit_of(gate)
    )
    if suspect is not None and suspect.is_confirmed:
        yield "slices", "", f"look at {suspect.name!r}: {suspect.describe(_limit_of(gate))}"


def _limit_of(gate: TaskGate) -> Fraction:
    return gate.max_drop if isinstance(gate, AccuracyGate) else Fraction(1, 100)


def _covers(
    parts: Mapping[str, Sequence[int]], *, samples: int, limit: float, gate: TaskGate
) -> bool:
    """Return whether slices that can show a limit hold most of the samples, and are several."""
    needed = _needed_for(limit, gate=gate)
    sizes = [len(inside) for inside in parts.values() if len(inside) >= needed]
    return len(sizes) > 1 and sum(sizes) >= COVERED * samples


def _needed_for(limit: float, *, gate: TaskGate) -> int:
    return count_needed(Fraction(limit) / 100, confidence=gate.confidence)


def _choose_slice_drop(
    found: Measured, *, cuts: Mapping[str, Mapping[str, Sequence[int]]]
) -> Chosen:
    """Return the strictest limit that good variants keep in 80 % of runs, and that all calibrations
    kept here."""
    gate, samples = found.gate, len(found.fp16.ids)
    confidence = float(gate.confidence)
    every = {name: inside for parts in cuts.values() for name, inside in parts.items()}
    pairs = found.pair(every)
    rates = max((one.flips for one in pairs), key=lambda flips: flips.rate)
    rates = Flips(
        right_to_wrong=rates.rate * rates.samples / 2,
        wrong_to_right=rates.rate * rates.samples / 2,
        samples=rates.samples,
    )
    by = ", ".join(map(quote, cuts))
    for limit in SLICE_DROPS:
        needed = _needed_for(limit, gate=gate)
        judged = [_keep_large(one.slices, needed) for one in pairs]
        # In clusters they are worth fewer: the gate counts samples, chance what they are worth.
        worth = Counter(max(1, round(counts.independent)) for _, counts in judged[0])
        if (
            all(_covers(parts, samples=samples, limit=limit, gate=gate) for parts in cuts.values())
            and chance_of_parts(rates, worth, confidence=confidence, limit=limit / 100)
            >= SETTLING_POWER
            and all(
                decide(drop_limits(counts.flips, confidence=confidence), limit=limit / 100)
                is Status.PASS
                for parts in judged
                for _, counts in parts
            )
        ):
            small = len(every) - len(judged[0])
            name, worst = find_worst(
                [part for parts in judged for part in parts], limit=limit / 100
            )
            sizes = [counts.samples for _, counts in judged[0]]
            reason = (
                f"slices {limit:g}pp: {count(len(judged[0]), 'slice')} of {min(sizes)} to "
                f"{max(sizes)} samples, the nearest to it {name!r} with {points(worst.drop)}"
            )
            extra = f", min_samples: {needed}" if small else ""
            if small:
                reason += f"; left out: {count(small, 'smaller one')}"
            return "slices", f"{{by: [{by}], max_drop: {limit:g}pp{extra}}}", reason
    return "slices", "", f"slices: no limit up to {SLICE_DROPS[-1]:g}pp by {by} is decided"


def _keep_large(
    parts: Sequence[tuple[str, ClassCounts]], needed: int
) -> list[tuple[str, ClassCounts]]:
    return [(name, counts) for name, counts in parts if counts.samples >= needed]


def _write(name: str, value: object) -> str:
    """Return a value of a key as a suite writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return quote(value) if isinstance(value, str) else show_value(name, value)
