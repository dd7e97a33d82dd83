"""How many samples each limit of a suite needs, and which limits its data cannot decide.

Nothing is run: flip rates are assumed, or taken from baselines; sizes of data sets are read only
where that takes no decoding.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Literal

from pytest_quantgate.baselines import Store
from pytest_quantgate.comparison.outcomes import count_flips
from pytest_quantgate.errors import DataError, QuantGateError
from pytest_quantgate.gates.statistics import (
    MOST_SAMPLES,
    SETTLING_POWER,
    Flips,
    Share,
    first_count,
    samples_to_settle,
    share_limits,
)
from pytest_quantgate.measurement import StoredOutcomes
from pytest_quantgate.store.owners import is_below_root
from pytest_quantgate.suite import AccuracyGate, RegressionGate, Suite, expand_path

#: Where rates come from that are not measured: named on the command line, or by nobody.
ASSUMED, DEFAULT = "assumed", "default"

Decision = Literal["enough", "too few", "cannot pass", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How outcomes are expected to change: shares of all samples, and where they come from.

    `accuracy` is the expected value of the quantized variant, None where nothing is known of it.
    """

    flips: float
    drop: float
    source: str
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.flips <= 1 or abs(self.drop) > self.flips + 1e-12:
            raise ValueError(f"a drop of {self.drop} cannot come of {self.flips} flips")

    def as_flips(self) -> Flips:
        """Return the rates as the flips of one sample: `samples_to_settle` only asks the rates."""
        lost = min(1.0, max(0.0, (self.flips + self.drop) / 2))
        won = min(1.0 - lost, max(0.0, (self.flips - self.drop) / 2))
        return Flips(right_to_wrong=lost, wrong_to_right=won, samples=1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one limit of one gate needs.

    `samples` is what the data has (None: not known without loading it), `needed` how many decide
    with 80 % probability, None where no number would.
    """

    gate: str
    limit_name: str
    limit: float
    where: str
    confidence: float
    rates: Rates
    samples: int | None
    needed: int | None
    notes: tuple[str, ...] = ()

    @property
    def decision(self) -> Decision:
        if self.needed is None:
            return "cannot pass"
        if self.samples is None:
            return "unknown"
        return "enough" if self.samples >= self.needed else "too few"


def plan_suite(
    suite: Suite, *, assumed: Rates, store: Store | None, environ: Mapping[str, str]
) -> tuple[Plan, ...]:
    """Return what every limit of the accuracy and regression gates needs.

    Where `store` is given and holds the baseline of a task, its measured flips take the place of
    the assumed ones. Raises BaselineError for a damaged one.
    """
    plans: list[Plan] = []
    gates: tuple[AccuracyGate | RegressionGate, ...]
    gates = (*suite.gates.accuracy, *suite.gates.regression)
    for gate in gates:
        measured = _measured(suite, gate, store=store)
        samples, notes = count_samples(suite, gate, environ=environ)
        kind = "accuracy" if isinstance(gate, AccuracyGate) else "regression"
        for name, limit, rates in _list_limits(gate, measured=measured, assumed=assumed):
            plans.append(
                Plan(
                    gate=f"{kind}[{gate.key}]",
                    limit_name=name,
                    limit=float(limit),
                    where=gate.where.of(name),
                    confidence=float(gate.confidence),
                    rates=rates,
                    samples=samples,
                    needed=_needed(name, limit, rates=rates, confidence=float(gate.confidence)),
                    notes=notes,
                )
            )
    return tuple(plans)


def _list_limits(
    gate: AccuracyGate | RegressionGate, *, measured: Mapping[str, Rates], assumed: Rates
) -> Iterator[tuple[str, Fraction, Rates]]:
    """Yield the limits that more samples decide better, with the rates that each stands under.

    `max_class_drop` is a screen on the counts as they are; `floor` without a measured value, and
    `max_flips` at a rate that nobody named, have nothing to be compared with.
    """
    rates = measured.get("accuracy", assumed)
    if isinstance(gate, AccuracyGate):
        yield "max_drop", gate.max_drop, rates
        if gate.floor is not None and rates.accuracy is not None:
            yield "floor", gate.floor, rates
        if gate.max_flips is not None and rates.source != DEFAULT:
            yield "max_flips", gate.max_flips, rates
        return
    named = rates.source == ASSUMED
    # The same FP16 on other libraries flips next to nothing; a new variant about as many as this.
    still = Rates(flips=0.0, drop=0.0, source="no drift")
    again = replace(rates, drop=rates.drop if named else 0.0)
    yield "max_fp16_drop", gate.max_fp16_drop, rates if named else still
    yield "max_drop", gate.max_drop, again
    yield "max_drop_since_first", gate.max_drop_since_first, measured.get("first", again)


def _needed(name: str, limit: Fraction, *, rates: Rates, confidence: float) -> int | None:
    """Return how many samples decide that a limit is kept; None where it is not, or none would."""
    if name == "max_flips":
        return _needed_share(rates.flips, limit=float(limit), confidence=confidence, below=True)
    if name == "floor":
        assert rates.accuracy is not None
        return _needed_share(rates.accuracy, limit=float(limit), confidence=confidence, below=False)
    if rates.drop >= limit:
        return None
    return samples_to_settle(rates.as_flips(), confidence=confidence, limit=float(limit))


def _needed_share(share: float, *, limit: float, confidence: float, below: bool) -> int | None:
    """Return the least number of samples whose interval lies on the right side of a limit.

    The count is taken where 80 % of runs are no worse (normal approximation of the binomial).
    """
    if share >= limit if below else share <= limit:
        return None
    z = NormalDist().inv_cdf(SETTLING_POWER)

    def decides(samples: int) -> bool:
        spread = z * (samples * share * (1 - share)) ** 0.5
        count = samples * share + (spread if below else -spread)
        found = share_limits(
            Share(count=min(max(count, 0.0), samples), samples=samples), confidence=confidence
        )
        return found.high <= limit if below else found.low >= limit

    return first_count(decides, low=1, high=MOST_SAMPLES)


def _measured(
    suite: Suite, gate: AccuracyGate | RegressionGate, *, store: Store | None
) -> dict[str, Rates]:
    """Return the measured rates of a task: FP16 against the variant, the first against the last."""
    if store is None or getattr(gate, "stage", "torch") != "torch":
        return {}
    if not is_below_root(suite.name):
        return {}
    key = f"{gate.task}-{gate.metric}"
    record = store.read(suite.name, key)
    if record is None or not _paired(record.fp16, record.accepted):
        return {}
    source = "measured"
    found = {"accuracy": _rates(record.fp16, record.accepted, source=source)}
    if _paired(record.first, record.accepted) and record.first != record.accepted:
        found["first"] = _rates(record.first, record.accepted, source=source)
    return found


def _paired(before: StoredOutcomes, after: StoredOutcomes) -> bool:
    return (before.ids_digest, before.data_digest) == (after.ids_digest, after.data_digest)


def _rates(before: StoredOutcomes, after: StoredOutcomes, *, source: str) -> Rates:
    lost, won = count_flips(before.correct, after.correct)
    return Rates(
        flips=(lost + won) / after.samples,
        drop=(lost - won) / after.samples,
        source=source,
        accuracy=after.value,
    )


# -- how many samples there are -------------------------------------------------------------------


def count_samples(
    suite: Suite, gate: AccuracyGate | RegressionGate, *, environ: Mapping[str, str]
) -> tuple[int | None, tuple[str, ...]]:
    """Return how many samples a gate is judged on, and what is to be said of that number.

    None where it takes loading the data, or where the data is not here: the note says which.
    """
    try:
        there, note = _count_data(suite, gate, environ=environ)
    except QuantGateError as error:
        return gate.samples, (str(error),)
    notes = (note,) if note else ()
    if there is None or gate.samples is None:
        return gate.samples if there is None else there, notes
    if gate.samples > there:
        return there, (
            *notes,
            f"samples: {gate.samples} is asked for, the data has {there} "
            f"({gate.where.of('samples')})",
        )
    return gate.samples, notes


def _count_data(
    suite: Suite, gate: AccuracyGate | RegressionGate, *, environ: Mapping[str, str]
) -> tuple[int | None, str]:
    from pytest_quantgate.tasks.registry import BUILTIN, evaluation_data, split_name

    name, purpose = evaluation_data(gate.task)
    dataset, split = split_name(name)
    spec = suite.datasets.get(dataset)
    if spec is None:
        if dataset not in BUILTIN:
            raise DataError(f"unknown data set {dataset!r}: name it under `datasets:`")
        return count_builtin(dataset, purpose=purpose)
    if spec.root is None:
        raise DataError(f"{spec.where}: data set {dataset!r} needs a root: the folder it is in")
    root = expand_path(spec.root, where=spec.where.of("root"), environ=environ)
    if spec.dataset == "wds" or spec.dataset.startswith("wds/"):
        return count_webdataset(root, split=split, texts=gate.metric.startswith("text_")), ""
    return None, f"the number of samples of {spec.dataset} is only known after it was loaded"


def count_builtin(dataset: str, *, purpose: str) -> tuple[int | None, str]:
    """Return how many samples a data set that ships has by itself, and a note where unknown."""
    from pytest_quantgate.tasks.builtin import RETRIEVAL_SCENES, SCENES

    if dataset == "scenes":
        return (RETRIEVAL_SCENES if purpose == "retrieval" else SCENES), ""
    try:
        from pytest_quantgate.reference.digits import load_digit_images

        return len(load_digit_images(split="test").ids), ""
    except ImportError as error:
        return (
            None,
            f"{dataset} needs the package {error.name}: pip install 'pytest-quantgate[clip]'",
        )


def count_webdataset(root: Path, *, split: str, texts: bool) -> int:
    """Return how many images, or captions, a local split has: archive headers are enough."""
    from pytest_quantgate.tasks.webdataset import IMAGE_SUFFIXES, list_shards

    total = 0
    for shard in list_shards(root, split=split):
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    suffix = member.name.rpartition("/")[2].partition(".")[2]
                    if not member.isreg():
                        continue
                    if texts and suffix == "txt" and member.size <= 1 << 20:
                        stream = archive.extractfile(member)
                        assert stream is not None
                        total += sum(bool(line.strip()) for line in stream.read().splitlines())
                    elif not texts and suffix in IMAGE_SUFFIXES:
                        total += 1
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard} is damaged: {error}: copy or build it again") from error
    return total
