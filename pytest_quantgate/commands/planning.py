"""How many samples each limit of a suite needs, and which limits its data cannot decide.

Nothing is run: flip rates are assumed, or taken from baselines; sizes of data sets are read only
where that takes no decoding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.outcomes import StoredOutcomes, averages_classes
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.looks import plan_looks
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.gates.sections import TaskGate
from pytest_quantgate.gates.slices import Columns, cut, slices_of
from pytest_quantgate.statistics.intervals import MOST_SAMPLES, Flips, Result, Share, mean_over
from pytest_quantgate.statistics.pairing import pair_scores
from pytest_quantgate.statistics.sizes import (
    SETTLING_POWER,
    chance_to_pass,
    first_count,
    is_settled,
    samples_to_settle,
)
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.records import Record
from pytest_quantgate.suite.specs import Suite
from pytest_quantgate.tasks.contents import CLASS
from pytest_quantgate.text.words import count, level

#: The limits that each part of the samples must keep by itself.
CLASSES, SLICES = "max_class_drop", "slices.max_drop"
SLICES_SINCE_FIRST = "slices.max_drop_since_first"

#: Where rates come from that are not measured: named on the command line, or by nobody.
ASSUMED, DEFAULT = "assumed", "default"

Decision = Literal["enough", "too few", "cannot pass", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How outcomes are expected to change: shares of all samples, and where they come from.

    `changed` is the share of answers that change, right or wrong (None: unknown); `accuracy` the
    expected value of the quantized variant (None: nothing is known of it). `worth` and
    `worth_right` are how many independent samples one counts as for what is lost and for what is
    right: captions of one image are found or lost together.
    """

    flips: float
    drop: float
    source: str
    accuracy: float | None = None
    changed: float | None = None
    worth: float = 1.0
    worth_right: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.flips <= 1 or abs(self.drop) > self.flips + 1e-12:
            raise ValueError(f"a drop of {self.drop} cannot come of {self.flips} flips")

    def as_flips(self, samples: float = 1.0) -> Flips:
        """Return the flips that are expected of so many samples."""
        lost = min(1.0, max(0.0, (self.flips + self.drop) / 2))
        won = min(1.0 - lost, max(0.0, (self.flips - self.drop) / 2))
        return Flips(right_to_wrong=lost * samples, wrong_to_right=won * samples, samples=samples)


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a gate is judged on.

    `samples` is None where it takes loading the data. `classes` are the sizes of its classes, empty
    where they are not known or there are none, `slices` those of the slices that it judges, and
    `groups` how many images its captions belong to (None: every sample stands for itself). What a
    task asks is not always `counted` before it was measured.
    """

    samples: int | None = None
    classes: tuple[int, ...] = ()
    slices: tuple[int, ...] = ()
    groups: int | None = None
    counted: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedLook:
    """One look at so many samples; `needed` is how many would decide at its confidence."""

    samples: int
    confidence: float
    needed: int | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one limit of one gate needs.

    `samples` is what the data has (None: not known without loading it), `needed` how many decide
    with 80 % probability, None where no number would; `needed_for_all` how many it takes for every
    limit of the suite to be decided, together, in 80 % of runs. `advice` says what would do.

    Where the suite plans looks (`planned_samples`), `confidence` and these are of the last one, and
    `looks` says of each what it is judged at.
    """

    gate: str
    limit_name: str
    limit: float
    where: str
    confidence: float
    rates: Rates
    samples: int | None
    needed: int | None
    needed_for_all: int | None
    notes: tuple[str, ...] = ()
    advice: str = ""
    looks: tuple[PlannedLook, ...] = ()

    @property
    def decision(self) -> Decision:
        return self._decide(self.needed)

    @property
    def decision_for_all(self) -> Decision:
        return self._decide(self.needed_for_all)

    def _decide(self, needed: int | None) -> Decision:
        if needed is None:
            return "cannot pass"
        if self.samples is None:
            return "unknown"
        return "enough" if self.samples >= needed else "too few"


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """One limit with the rates that it stands under and the data that it is judged on."""

    gate: TaskGate
    name: str
    limit: Fraction
    rates: Rates
    data: Data

    @property
    def where(self) -> str:
        spec, (section, _, key) = slices_of(self.gate), self.name.rpartition(".")
        return (spec.where if section and spec else self.gate.where).of(key)

    @property
    def levels(self) -> tuple[tuple[int, Fraction], ...]:
        """Samples and confidence of the look that is next and of the last; empty without a plan."""
        planned = _planned(self.gate)
        return plan_looks(self.gate.confidence, samples=self.gate.samples, planned=planned)

    @property
    def confidence(self) -> float:
        """The confidence of the last look."""
        return float(self.levels[-1][1] if self.levels else self.gate.confidence)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the parts that are each judged by themselves; empty for a limit on all."""
        if self.name == CLASSES:
            return self.data.classes
        return self.data.slices if self.name in (SLICES, SLICES_SINCE_FIRST) else ()

    def chance_of_parts(self, parts: Mapping[int, int], at: float | None = None) -> float:
        """Return how often all parts of these sizes keep the limit, or one `at` another place."""
        return chance_of_parts(
            self.rates.as_flips(),
            parts,
            confidence=self.confidence,
            limit=float(self.limit) if at is None else at,
        )

    def list_looks(self) -> tuple[PlannedLook, ...]:
        """Return what each look takes that the suite plans; empty for limits on parts."""
        if self.sizes:
            return ()
        return tuple(
            PlannedLook(
                samples=samples,
                confidence=float(level),
                needed=self.count_needed(SETTLING_POWER, confidence=float(level)),
            )
            for samples, level in self.levels
        )

    def count_needed(self, power: float, *, confidence: float | None = None) -> int | None:
        """Return how many samples keep the limit in `power` of all runs; None where none would.

        `confidence` is that of the last look where nothing else is said.
        """
        if self.sizes:
            return _count_for_parts(self, power=power)
        limit, rates = float(self.limit), self.rates
        expected: Flips | Share
        if self.name == "max_flips":
            expected, worth = Share(count=rates.changed or 0.0, samples=1.0), min(1.0, rates.worth)
        elif self.name == "floor":
            expected, worth = Share(count=rates.accuracy or 0.0, samples=1.0), rates.worth_right
        else:
            expected, worth = rates.as_flips(), rates.worth
        if expected.value <= limit if self.name == "floor" else expected.value >= limit:
            return None
        confidence = self.confidence if confidence is None else confidence
        if averages_classes(self.gate.metric) and self.name != "max_flips" and self.data.classes:
            return count_for_mean(
                expected, self.data.classes, confidence=confidence, limit=limit, power=power
            )
        settled = samples_to_settle(expected, confidence=confidence, limit=limit, power=power)
        return None if settled is None else math.ceil(settled / worth)


def plan_suite(
    suite: Suite, *, assumed: Rates, store: Store | None, environ: Mapping[str, str]
) -> tuple[Plan, ...]:
    """Return what every limit of the accuracy and regression gates needs.

    Where `store` is given and holds the baseline of a task, its measured flips take the place of
    the assumed ones. Raises BaselineError for a damaged one.
    """
    gates: tuple[TaskGate, ...]
    gates = suite.gates.all(TaskGate)
    limits = [
        limit
        for gate in gates
        for limit in _list_limits(suite, gate, assumed=assumed, store=store, environ=environ)
    ]
    together = 1 - (1 - SETTLING_POWER) / max(1, len(limits))
    plans = []
    for limit in limits:
        looks = limit.list_looks()
        plans.append(
            Plan(
                gate=limit.gate.name,
                limit_name=limit.name,
                limit=float(limit.limit),
                where=limit.where,
                confidence=limit.confidence,
                rates=limit.rates,
                samples=limit.data.samples,
                needed=limit.count_needed(SETTLING_POWER),
                needed_for_all=limit.count_needed(together),
                notes=limit.data.notes,
                advice=_advise_parts(limit) if limit.sizes else _advise_looks(looks),
                looks=looks,
            )
        )
    return tuple(plans)


def _list_limits(
    suite: Suite,
    gate: TaskGate,
    *,
    assumed: Rates,
    store: Store | None,
    environ: Mapping[str, str],
) -> Iterator[_Limit]:
    """Yield the limits of a gate, with the rates that each stands under.

    `floor` without a measured value, and `max_flips` at a rate that nobody named or measured, have
    nothing to be compared with.
    """
    data = count_samples(suite, gate, environ=environ)
    record = read_record(suite, gate, store=store)
    measured: dict[str, Rates] = {}
    if record is not None:
        measured = _measured(record)
        if not data.counted:
            data = Data(samples=record.accepted.samples)
        if record.class_sizes and data.samples in (None, record.accepted.samples):
            data = replace(data, classes=record.list_class_sizes())
    elif data.groups is not None and data.samples:
        # Nothing says yet how the captions of an image move together: as if they all did.
        assumed = replace(
            assumed,
            worth=data.groups / data.samples,
            worth_right=data.groups / data.samples,
        )
        data = replace(
            data,
            notes=(
                *data.notes,
                f"{gate.task} {gate.metric}: the {data.samples} captions of {data.groups} images "
                f"are counted as {data.groups} samples until a baseline says what they are worth",
            ),
        )
    rates = measured.get("accuracy", assumed)
    listed: list[tuple[str, Fraction | None, Rates]]
    if isinstance(gate, AccuracyGate):
        listed = [
            ("max_drop", gate.max_drop, rates),
            ("floor", gate.floor if rates.accuracy is not None else None, rates),
            ("max_flips", gate.max_flips if rates.changed is not None else None, rates),
            (CLASSES, gate.max_class_drop if data.classes else None, rates),
            (SLICES, gate.slices.max_drop if gate.slices and data.slices else None, rates),
        ]
        if gate.max_class_drop is not None and not data.classes:
            note = (
                f"{gate.where.of('max_class_drop')}: the sizes of the classes are only known after "
                f"the data was loaded once, for a baseline"
            )
            data = replace(data, notes=(*data.notes, note))
    elif isinstance(gate, RegressionGate):
        named = rates.source == ASSUMED
        # The same FP16 on other libraries flips next to nothing; a new variant as many as this.
        still = replace(rates, flips=0.0, drop=0.0, source="no drift")
        again = replace(rates, drop=rates.drop if named else 0.0)
        listed = [
            ("max_fp16_drop", gate.max_fp16_drop, rates if named else still),
            ("max_drop", gate.max_drop, again),
            ("max_drop_since_first", gate.max_drop_since_first, measured.get("first", again)),
        ]
        spec = gate.slices
        if spec is not None and data.slices:
            since_first = measured.get("first", again)
            listed += [
                (SLICES, spec.max_drop, again),
                (SLICES_SINCE_FIRST, spec.max_drop_since_first, since_first),
            ]
    else:
        listed = []
    asked = slices_of(gate)
    if asked is not None and not data.slices:
        note = f"{asked.where.of('by')}: the sizes of these slices are not known here"
        data = replace(data, notes=(*data.notes, note))
    for name, limit, under in listed:
        if limit is not None:
            yield _Limit(gate=gate, name=name, limit=limit, rates=under, data=data)


def count_for_mean(
    expected: Flips | Share,
    classes: Sequence[int],
    *,
    confidence: float,
    limit: float,
    power: float,
) -> int | None:
    """Return how many samples settle a mean over classes of these shares, at the expected rates."""
    total = sum(classes)

    def settles(samples: int) -> bool:
        sizes = Counter(max(1, round(size * samples / total)) for size in classes)
        found = _over_classes(expected, list(sizes.elements()))
        return is_settled(found, confidence=confidence, limit=limit, power=power)

    return first_count(settles, low=1, high=MOST_SAMPLES)


def _over_classes(expected: Flips | Share, classes: Sequence[int]) -> Result:
    """Return what a mean over classes of these sizes rests on, at the expected rates."""
    if isinstance(expected, Flips):
        return mean_over([expected.grow(size) for size in classes])
    return mean_over([expected.grow(size) for size in classes])


def _count_for_parts(limit: _Limit, *, power: float) -> int | None:
    """Return how many samples, in parts of these sizes, keep each of them in `power` of runs."""
    # Parts by two columns have every sample twice.
    parts, total = Counter(limit.sizes), limit.data.samples or sum(limit.sizes)
    if limit.rates.drop >= limit.limit:
        return None

    def passes(samples: int) -> bool:
        grown = Counter[int]()
        for size, times in parts.items():
            grown[max(1, round(size * samples / total))] += times
        return limit.chance_of_parts(grown) >= power

    high = total
    while not passes(high):
        high *= 2
        if high > MOST_SAMPLES:
            return None
    return first_count(passes, low=1, high=high)


def chance_of_parts(
    one: Flips, parts: Mapping[int, int], *, confidence: float, limit: float
) -> float:
    """Return how often all parts of these sizes (size: how many) keep a limit, at the rates of
    `one`."""
    return math.prod(
        chance_to_pass(one.grow(size / one.samples), confidence=confidence, limit=limit) ** times
        for size, times in parts.items()
    )


def _advise_parts(limit: _Limit) -> str:
    """Return how often good variants keep a limit on parts, and which one these data can keep."""
    parts = Counter(limit.sizes)
    chance = limit.chance_of_parts(parts)
    could = first_count(
        lambda points: limit.chance_of_parts(parts, at=points / 100) >= SETTLING_POWER,
        low=1,
        high=100,
    )
    least, most = min(parts), max(parts)
    sizes = f"{least}" if least == most else f"{least} to {most}"
    nouns = ("class", "classes") if limit.name == CLASSES else ("slice", "slices")
    words = (
        f"{count(len(limit.sizes), *nouns)} of {sizes}: all pass in {chance * 100:.0f} % of runs"
    )
    return f"{words}, from {could}pp on in 80 %" if could else words


def _advise_looks(looks: Sequence[PlannedLook]) -> str:
    """Return at which confidence each planned look is judged, and how many samples that takes."""
    said = [
        f"the look at {look.samples} is judged at {level(Fraction(look.confidence))}"
        + (f" and would take {look.needed}" if look.needed else "")
        for look in looks[:-1]
    ]
    return (
        "; ".join((*said, f"the last at {level(Fraction(looks[-1].confidence))}")) if said else ""
    )


def read_record(suite: Suite, gate: TaskGate, *, store: Store | None) -> Record | None:
    """Return the baseline of a task that holds both variants on the same data."""
    if store is None or getattr(gate, "stage", "torch") != "torch":
        return None
    record = store.read(suite.name, f"{gate.task}-{gate.metric}")
    return record if record is not None and _paired(record.fp16, record.accepted) else None


def _measured(record: Record) -> dict[str, Rates]:
    """Return the measured rates: FP16 against the variant, the first against the last."""
    rates = _rates(record.fp16, record.accepted)
    worth = record.accepted.effective_samples
    worth_right = record.fp16.effective_samples
    rates = replace(
        rates,
        worth=1.0 if worth is None else worth / record.accepted.samples,
        worth_right=1.0 if worth_right is None else worth_right / record.fp16.samples,
    )
    found = {"accuracy": rates}
    if _paired(record.first, record.accepted) and record.first != record.accepted:
        again = _rates(record.first, record.accepted)
        found["first"] = replace(again, worth=rates.worth)
    return found


def _paired(before: StoredOutcomes, after: StoredOutcomes) -> bool:
    return (before.ids_digest, before.data_digest) == (after.ids_digest, after.data_digest)


def _rates(before: StoredOutcomes, after: StoredOutcomes) -> Rates:
    pairs = pair_scores(before.correct, after.correct)
    changed = after.answers_changed
    return Rates(
        flips=(pairs.lost + pairs.won) / after.samples,
        drop=pairs.drop,
        source="measured",
        accuracy=after.value,
        changed=None if changed is None else changed / after.samples,
    )


# -- how many samples there are -------------------------------------------------------------------


def count_samples(suite: Suite, gate: TaskGate, *, environ: Mapping[str, str]) -> Data:
    """Return what a gate is judged on, with notes on what is not known or does not fit."""
    try:
        there = _count_data(suite, gate, environ=environ)
    except QuantGateError as error:
        return Data(samples=_planned(gate), notes=(str(error),))
    asked = _planned(gate)
    if not there.counted:
        return there
    if asked is None:
        return replace(there, slices=_judged(gate, there.slices))
    # Of retrieval, `samples` are images; a caption is a query of its own.
    have = there.samples if there.groups is None else there.groups
    if have is None:
        return replace(there, samples=asked)
    if asked > have:
        key = "samples" if asked == gate.samples else "planned_samples"
        note = f"{key}: {asked} is asked for, the data has {have} ({gate.where.of(key)})"
        return replace(there, notes=(*there.notes, note))
    assert there.samples is not None
    return Data(
        samples=round(there.samples * asked / have),
        classes=tuple(max(1, round(size * asked / have)) for size in there.classes),
        slices=_judged(gate, (round(size * asked / have) for size in there.slices)),
        groups=None if there.groups is None else asked,
        notes=there.notes,
    )


def _planned(gate: TaskGate) -> int | None:
    """Return how many samples a gate is judged on at the last look; None for all there are."""
    planned = gate.planned_samples if isinstance(gate, AccuracyGate) else None
    return gate.samples and max(gate.samples, planned or 0)


def _judged(gate: TaskGate, sizes: Iterable[int]) -> tuple[int, ...]:
    """Return the sizes of the slices that a gate judges."""
    spec = slices_of(gate)
    return tuple(size for size in sizes if size >= ((spec and spec.min_samples) or 1))


def _count_slices(gate: TaskGate, columns: Columns, *, classes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sizes of the slices that a gate asks for; none where a column is not known."""
    spec = slices_of(gate)
    if spec is not None and spec.by == ((CLASS,),):
        return classes
    if spec is None or any(name not in columns for by in spec.by for name in by):
        return ()
    return tuple(len(inside) for by in spec.by for inside in cut(columns, by).values())


def _count_data(suite: Suite, gate: TaskGate, *, environ: Mapping[str, str]) -> Data:
    from pytest_quantgate.tasks.kind import describe_task, split_task
    from pytest_quantgate.tasks.registry import BUILTIN, TEST, find_source

    kind, dataset = describe_task(gate.task), split_task(gate.task)[0]
    name, purpose = f"{dataset}/{TEST}", kind.purpose
    if dataset in BUILTIN and dataset not in suite.datasets:
        there = count_builtin(dataset, purpose=purpose)
        if there.samples is None:
            return there
        queries = kind.count_queries(gate.metric, there.samples, there.samples)
        if queries is None:
            return _unknown_queries(gate)
        slices = _count_slices(gate, {}, classes=there.classes)
        return replace(there, samples=queries.count, groups=queries.groups, slices=slices)
    reader, source = find_source(name, datasets=suite.datasets, environ=environ)
    if reader.count is None:
        what = source.spec.dataset
        return Data(notes=(f"the number of samples of {what} is only known after it was loaded",))
    found = reader.count(source)
    queries = kind.count_queries(gate.metric, found.images, found.captions)
    if queries is None:
        return _unknown_queries(gate)
    classes = found.classes if kind.has_classes else ()
    slices = _count_slices(gate, found.columns, classes=found.classes)
    slices = slices if queries.count == found.images else ()
    return Data(samples=queries.count, classes=classes, slices=slices, groups=queries.groups)


def _unknown_queries(gate: TaskGate) -> Data:
    note = f"how many outcomes {gate.title} has is only known after a baseline was made"
    return Data(counted=False, notes=(note,))


def count_builtin(dataset: str, *, purpose: str) -> Data:
    """Return what a data set that ships has by itself, with a note where that is unknown."""
    from pytest_quantgate.tasks.builtin import RETRIEVAL_SCENES, SCENES

    if dataset == "scenes" and purpose == "retrieval":
        return Data(samples=RETRIEVAL_SCENES)
    samples = SCENES if dataset == "scenes" else None
    try:
        if dataset == "scenes":
            from pytest_quantgate.reference.scenes import CLASS_NAMES

            # They are drawn at random: this is what is expected of each.
            sizes = (SCENES // len(CLASS_NAMES),) * len(CLASS_NAMES)
            return Data(samples=samples, classes=sizes if purpose == "classification" else ())
        from pytest_quantgate.reference.digits import load_digit_images

        labels = load_digit_images(split="test").labels.tolist()
        return Data(samples=len(labels), classes=tuple(Counter(labels).values()))
    except ImportError as error:
        note = f"{dataset} needs the package {error.name}: pip install 'pytest-quantgate[clip]'"
        return Data(samples=samples, notes=(note,))
