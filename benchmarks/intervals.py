"""How often the limits of the gates hold, what their advice is worth, and what pairing saves.

    .venv/bin/python benchmarks/intervals.py [--quick] [--only classes parts]

Writes the tables and plots of docs/statistics.md. Where two counts decide, every outcome is
enumerated with its exact probability; the rest is simulated with fixed seeds. All limits come from
the gates' own code. About three minutes on one core; `--quick` prints the tables from a tenth of
the work and writes nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from pytest_quantgate.commands.planning import count_for_mean
from pytest_quantgate.gates.clipping import limit_clipping
from pytest_quantgate.measure.rounds import first_look, share_rounds
from pytest_quantgate.statistics.family import ALONE, Alarm, Family
from pytest_quantgate.statistics.intervals import (
    Flips,
    Interval,
    Mean,
    Share,
    chance_above,
    clustered_samples,
    drop_limits,
    mean_over,
)
from pytest_quantgate.statistics.looks import Step, confidences_of_looks, spend_share
from pytest_quantgate.statistics.pairing import pair_scores
from pytest_quantgate.statistics.rounds import (
    Levels,
    confidence_of_look,
    noise_factor,
    widen,
)
from pytest_quantgate.statistics.sizes import SETTLING_POWER, chance_to_pass, samples_to_settle
from pytest_quantgate.store.baselines import read_record

PAGE = Path(__file__).parents[1] / "docs" / "statistics.md"
BASELINES = Path(__file__).parents[1] / "baselines"

CONFIDENCE = 0.95
Z = NormalDist().inv_cdf(CONFIDENCE)

#: Stands for no chance at all where a logarithm is taken.
NEVER = 1e-300

#: What an exact enumeration leaves out on each side.
NEGLIGIBLE = 1e-12


# -- exact probabilities -------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What really happens to a sample: lost with one probability, won with another."""

    samples: int
    lost: float
    won: float

    @property
    def drop(self) -> float:
        return self.lost - self.won

    @property
    def expected_flips(self) -> float:
        return self.samples * (self.lost + self.won)


@functools.cache
def log_factorials(most: int) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])


def binomial(samples: int, share: float, *, table: np.ndarray) -> tuple[int, np.ndarray]:
    """Return where a binomial begins to matter, and its probabilities from there on."""
    if share <= 0:
        return 0, np.ones(1)
    if share >= 1:
        return samples, np.ones(1)
    reach = 8 * math.sqrt(samples * share * (1 - share)) + 30
    low, high = max(0, int(samples * share - reach)), min(samples, int(samples * share + reach))
    k = np.arange(low, high + 1)
    logs = table[samples] - table[k] - table[samples - k]
    logs += k * math.log(share) + (samples - k) * math.log1p(-share)
    return low, np.exp(logs)


def split(truth: Truth, edge: Callable[[int], tuple[int, int]]) -> tuple[float, float, float]:
    """Return the exact chances that, for the number won, what was lost is below, between, above.

    `edge(won)` is (first, last): `lost` is between for first <= lost <= last.
    """
    table = log_factorials(truth.samples)
    start, chances = binomial(truth.samples, truth.won, table=table)
    below = above = 0.0
    for won, chance in enumerate(chances, start):
        if chance < NEGLIGIBLE:
            continue
        left = truth.samples - won
        low, given = binomial(left, truth.lost / (1 - truth.won), table=table)
        first, last = edge(won)
        below += chance * float(given[: max(0, first - low)].sum())
        above += chance * float(given[max(0, last + 1 - low) :].sum())
    return below, max(0.0, 1 - below - above), above


def first_true(holds: Callable[[int], bool], *, low: int, high: int) -> int:
    """Return the least number in low..high for which `holds`; high + 1 where there is none."""
    high += 1
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


Deviate = Callable[[Flips, float], float]


def ours(flips: Flips, drop: float) -> float:
    return flips.score(drop).normal()


def tango(flips: Flips, drop: float) -> float:
    """Tango's score without the corrections."""
    b, c, n = flips.right_to_wrong, flips.wrong_to_right, flips.samples
    linear = -b - c + (2 * n - b + c) * drop
    constant = -c * drop * (1 - drop)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    won = (root - linear) / (4 * n) if linear <= 0 else -2 * constant / (root + linear)
    return _divide(b - c - n * drop, n * (2 * won + drop * (1 - drop)))


def wald(flips: Flips, drop: float) -> float:
    b, c, n = flips.right_to_wrong, flips.wrong_to_right, flips.samples
    return _divide(b - c - n * drop, b + c - (b - c) ** 2 / n)


def _divide(distance: float, variance: float) -> float:
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def reach_of(truth: Truth, deviate: Deviate, *, z: float = Z) -> tuple[float, float]:
    """Return how often the upper and the lower limit hold the true drop, exactly."""

    def edge(won: int) -> tuple[int, int]:
        def at(lost: int) -> float:
            flips = Flips(right_to_wrong=lost, wrong_to_right=won, samples=truth.samples)
            return deviate(flips, truth.drop)

        most = truth.samples - won
        first = first_true(lambda lost: at(lost) > -z, low=0, high=most)
        return first, first_true(lambda lost: at(lost) >= z, low=0, high=most) - 1

    below, _, above = split(truth, edge)
    return 1 - below, 1 - above


def verdicts(truth: Truth, *, limit: float, confidence: float = CONFIDENCE) -> tuple[float, ...]:
    """Return the exact chances of PASS, INCONCLUSIVE and FAIL."""
    z = NormalDist().inv_cdf(confidence)

    def edge(won: int) -> tuple[int, int]:
        def at(lost: int) -> float:
            return ours(
                Flips(right_to_wrong=lost, wrong_to_right=won, samples=truth.samples), limit
            )

        most = truth.samples - won
        first = first_true(lambda lost: at(lost) > -z, low=0, high=most)
        return first, first_true(lambda lost: at(lost) >= z, low=0, high=most) - 1

    return split(truth, edge)


# -- the grids -----------------------------------------------------------------------------------


def truths(*, quick: bool) -> Iterator[Truth]:
    """Yield sizes x base accuracies x drops x correlations, and a sweep of few flips."""
    sizes = (200, 1000, 5000) if quick else (100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)
    accuracies = (0.6, 0.8, 0.95)
    drops = (0.0, 0.002, 0.005, 0.01, 0.02)
    correlations = (0.8, 0.95) if quick else (0.5, 0.8, 0.9, 0.95, 0.98)
    for size, before, drop, phi in itertools.product(sizes, accuracies, drops, correlations):
        after = before - drop
        both = before * after + phi * math.sqrt(before * (1 - before) * after * (1 - after))
        if both <= after:
            yield Truth(size, before - both, after - both)
    few = (0, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30)
    for size, lost, won in itertools.product((200, 20_000), few, few):
        if 0 < lost + won < size / 2 and lost >= won:
            yield Truth(size, lost / size, won / size)


BINS = ((0.0, 5.0), (5.0, 10.0), (10.0, 20.0), (20.0, math.inf))


def show_bin(low: float, high: float) -> str:
    return f"{low:g} and more" if math.isinf(high) else f"{low:g} to {high:g}"


def pct(share: float, digits: int = 1) -> str:
    return f"{share * 100:.{digits}f}"


def table_of(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


METHODS: dict[str, Deviate] = {"this project": ours, "Tango": tango, "Wald": wald}


def measure_drop(*, quick: bool) -> list[tuple[Truth, dict[str, tuple[float, float]]]]:
    return [
        (truth, {name: reach_of(truth, deviate) for name, deviate in METHODS.items()})
        for truth in truths(quick=quick)
    ]


def tabulate_drop(found: Sequence[tuple[Truth, dict[str, tuple[float, float]]]]) -> str:
    rows = []
    for low, high in BINS:
        cells = [reach for truth, reach in found if low <= truth.expected_flips < high]
        for name in METHODS:
            row = [show_bin(low, high), len(cells), name]
            for side in (0, 1):
                values = [cell[name][side] for cell in cells]
                inside = sum(0.94 <= value <= 0.97 for value in values) / len(values)
                row.append(f"{pct(min(values))} to {pct(max(values))}")
                row.append(f"{pct(inside, 0)} %")
            rows.append(row)
    head = ("expected flips", "cells", "method")
    sides = ("upper holds in %", "within 94 to 97", "lower holds in %", "within 94 to 97")
    return table_of((*head, *sides), rows)


def tabulate_outside(found: Sequence[tuple[Truth, dict[str, tuple[float, float]]]]) -> str:
    """The cells with five and more expected flips that leave 94 to 97 %, with their numbers."""
    rows = []
    for truth, reach in found:
        upper, lower = reach["this project"]
        if truth.expected_flips >= 5 and not (
            0.94 <= min(upper, lower) <= max(upper, lower) <= 0.97
        ):
            rows.append(
                (
                    truth.samples,
                    f"{truth.samples * truth.lost:.3g}",
                    f"{truth.samples * truth.won:.3g}",
                    pct(upper, 2),
                    pct(lower, 2),
                )
            )
    return table_of(("samples", "lost", "won", "upper holds in %", "lower holds in %"), rows)


def measure_share(*, quick: bool) -> list[tuple[int, float, float, float]]:
    """Return samples, share, and how often its upper and lower limit hold, exactly."""
    rows = []
    sizes = (200, 1000) if quick else (100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)
    shares = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
    for size, share in itertools.product(sizes, shares):
        table = log_factorials(size)
        start, chances = binomial(size, share, table=table)

        def at(count: int, size: int = size, share: float = share) -> float:
            return Share(count=count, samples=size).score(share).normal()

        first = first_true(lambda count: at(count) > -Z, low=0, high=size)
        last = first_true(lambda count: at(count) >= Z, low=0, high=size) - 1
        upper = float(chances[max(0, first - start) :].sum())
        lower = float(chances[: max(0, last + 1 - start)].sum())
        rows.append((size, share, upper, lower))
    return rows


def tabulate_share(found: Sequence[tuple[int, float, float, float]]) -> str:
    rows = []
    for low, high in BINS:
        cells = [row for row in found if low <= row[0] * min(row[1], 1 - row[1]) < high]
        if cells:
            rows.append(
                (
                    show_bin(low, high),
                    len(cells),
                    *(
                        f"{pct(min(c[side] for c in cells))} to {pct(max(c[side] for c in cells))}"
                        for side in (2, 3)
                    ),
                )
            )
    return table_of(
        ("expected of the rarer", "cells", "upper holds in %", "lower holds in %"), rows
    )


# -- wrong decisions at the limit ----------------------------------------------------------------

CONFIDENCES = (0.90, 0.95, 0.99)


def measure_levels(*, quick: bool) -> list[tuple[Truth, float, float, float]]:
    """Return truth, confidence, and the exact chances of PASS and of FAIL if the drop is the limit.

    Dense where counts are small: there a step of one count is a step in the chances.
    """
    if quick:
        sizes: tuple[int, ...] = (20, 100, 20_000)
        wins: tuple[float, ...] = (0, 0.6, 3)
        expected = np.concatenate([np.arange(0.2, 9, 0.2), np.arange(9, 25, 2)])
    else:
        sizes = (20, 30, 50, 100, 200, 1000, 20_000)
        wins = (0, 0.1, 0.3, 0.6, 0.8, 1, 1.5, 3, 8, 30)
        expected = np.concatenate(
            [np.arange(0.1, 8, 0.1), np.arange(8, 16, 0.25), np.arange(16, 64, 2)]
        )
    rows = []
    for size, won, net in itertools.product(sizes, wins, expected.tolist()):
        truth = Truth(size, (won + net) / size, won / size)
        if truth.drop <= 0.6 and truth.lost + truth.won <= 0.95:
            for confidence in CONFIDENCES:
                passed, _, failed = verdicts(truth, limit=truth.drop, confidence=confidence)
                rows.append((truth, confidence, passed, failed))
    return rows


def edges_of(
    samples: int, limit: float, *, z: float, wins: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each number won how many lost end a PASS, and how many begin a FAIL."""

    def edge(won: int, reached: Callable[[float], bool]) -> int:
        def holds(lost: int) -> bool:
            flips = Flips(right_to_wrong=lost, wrong_to_right=won, samples=samples)
            return reached(ours(flips, limit))

        return first_true(holds, low=0, high=samples - won)

    pairs = [(edge(won, lambda d: d > -z), edge(won, lambda d: d >= z)) for won in wins]
    passing, failing = np.array(pairs).T
    return passing, failing


#: From a single sample on; of each all limits, and all shares won that there can be.
FEW_SAMPLES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 17, 19, 25, 40, 100)
FEW_LIMITS = (0.001, 0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, *np.arange(0.1, 1, 0.025).tolist())


def measure_few(*, quick: bool) -> dict[tuple[float, int], tuple[float, float]]:
    """Return how often PASS and FAIL are wrong at most with few samples, by confidence and samples.

    Exact, over all that can be won beside a drop that is the limit: up to every sample flipped.
    """
    found = {}
    step = 5 if quick else 1
    for samples in FEW_SAMPLES[1 :: 3 if quick else 1]:
        lost, won = np.indices((samples + 1, samples + 1))
        still = samples - lost - won
        table = log_factorials(samples)
        ways = table[samples] - table[lost] - table[won] - table[np.maximum(0, still)]
        shares = np.concatenate([[0.0, 0.001, 0.005], np.arange(0.01, 0.5, 0.01), [1.0]])[::step]
        for confidence in CONFIDENCES:
            worst = np.zeros(2)
            for limit in FEW_LIMITS[::step]:
                z = NormalDist().inv_cdf(confidence)
                passing, failing = edges_of(samples, limit, z=z, wins=range(samples + 1))
                for share in np.minimum(shares, (1 - limit) / 2):
                    same = max(NEVER, 1 - limit - 2 * share)
                    logs = ways + lost * math.log(limit + share)
                    logs += won * math.log(max(NEVER, share)) + still * math.log(same)
                    chances = np.where(still >= 0, np.exp(np.minimum(0, logs)), 0)
                    wrong = chances[lost < passing[won]].sum(), chances[lost >= failing[won]].sum()
                    worst = np.maximum(worst, wrong)
            found[confidence, samples] = (float(worst[0]), float(worst[1]))
    return found


def tabulate_few(found: dict[tuple[float, int], tuple[float, float]]) -> str:
    rows = []
    for confidence, (low, high) in itertools.product(CONFIDENCES, ((1, 4), (5, 19), (20, 100))):
        cells = [worst for (c, n), worst in found.items() if c == confidence and low <= n <= high]
        passed, failed = (max(cell[side] for cell in cells) for side in (0, 1))
        rows.append((f"{confidence * 100:g} %", f"{low} to {high}", pct(passed, 2), pct(failed, 2)))
    head = ("confidence", "samples", "wrong PASS in % at most", "wrong FAIL in % at most")
    return table_of(head, rows)


def tabulate_levels(found: Sequence[tuple[Truth, float, float, float]]) -> str:
    """The worst cells: how often a decision is wrong at most, and where."""
    rows = []
    for confidence, losses_only in itertools.product(CONFIDENCES, (True, False)):
        cells = [row for row in found if row[1] == confidence and (not row[0].won) == losses_only]
        row = [f"{confidence * 100:g} %", "none" if losses_only else "some", len(cells)]
        for chances in ([cell[2] for cell in cells], [cell[3] for cell in cells]):
            worst = max(chances)
            truth = cells[chances.index(worst)][0]
            where = f"{truth.samples} samples, {truth.samples * truth.lost:.3g} lost"
            row += [
                pct(worst, 2),
                where + (f", {truth.samples * truth.won:.3g} won" if truth.won else ""),
            ]
        rows.append(row)
    head = ("confidence", "won", "cells", "wrong PASS in % at most", "expected there")
    return table_of((*head, "wrong FAIL in % at most", "expected there"), rows)


# -- samples that are not alike ------------------------------------------------------------------


def holds(found: Flips | Mean[Flips], drop: float) -> tuple[bool, bool]:
    limits = drop_limits(found, confidence=CONFIDENCE)
    return limits.high >= drop, limits.low <= drop


def draw_captions(
    stream: np.random.RandomState, *, images: int, captions: int, truth: Truth, together: float
) -> tuple[Flips, Flips]:
    """Return the flips of one run in independent samples, and as if all were independent.

    With probability `together` the captions of an image share one fate.
    """
    draws = stream.rand(images, captions)
    shared = stream.rand(images) < together
    draws[shared] = draws[shared][:, :1]
    lost, won = draws < truth.lost, draws > 1 - truth.won
    b, c, n = int(lost.sum()), int(won.sum()), images * captions
    totals = (lost.sum(axis=1) - won.sum(axis=1)).tolist()
    worth = clustered_samples(sizes=[captions] * images, totals=totals, moved=b + c)
    plain = Flips(right_to_wrong=b, wrong_to_right=c, samples=n)
    return plain.grow(worth / n), plain


def simulate_captions(
    *, images: int, captions: int, truth: Truth, together: float, runs: int
) -> tuple[float, ...]:
    """Return how often upper and lower limit hold, cluster by cluster and as if independent."""
    stream = np.random.RandomState(images + captions)
    counts = np.zeros(4)
    for _ in range(runs):
        found = draw_captions(
            stream, images=images, captions=captions, truth=truth, together=together
        )
        for place, flips in zip((0, 2), found, strict=True):
            counts[place : place + 2] += holds(flips, truth.drop)
    return tuple(counts / runs)


def tabulate_captions(*, quick: bool) -> str:
    rows = []
    runs = 300 if quick else 3000
    for images, captions in ((200, 5), (1000, 5), (1000, 2)):
        for lost, won in ((0.01, 0.005), (0.04, 0.03)):
            for together in (0.0, 0.3, 1.0):
                truth = Truth(images * captions, lost, won)
                found = simulate_captions(
                    images=images, captions=captions, truth=truth, together=together, runs=runs
                )
                rows.append(
                    (
                        f"{images} x {captions}",
                        f"{pct(lost)} / {pct(won)}",
                        f"{together:g}",
                        *(pct(value) for value in found),
                    )
                )
    head = ("images x captions", "lost / won in %", "share that moves together")
    sides = ("upper", "lower", "upper if taken as independent", "lower if taken as independent")
    return table_of((*head, *sides), rows)


@functools.cache
def list_grades() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return what 20,000 queries score before and after a change, which are all that there are.

    Ten pictures of each of 200 products, found by noisy embeddings, which the change makes noisier;
    and queries of which one in 200 loses all, behind losses and gains of a few hundredths.
    """
    stream = np.random.RandomState(17)
    products = stream.randn(200, 24)
    shelf, asked = np.repeat(np.arange(200), 10), stream.randint(0, 200, 20_000)
    stored = products[shelf] + 1.1 * stream.randn(2_000, 24)
    queries = products[asked] + 1.1 * stream.randn(20_000, 24)
    gains = 1 / np.log2(np.arange(2, 12))
    found: dict[str, list[np.ndarray]] = {"mrr": [], "ndcg@10": [], "recall@10": []}
    for noise in (0.0, 0.15):
        items = stored + noise * stream.randn(*stored.shape)
        items /= np.linalg.norm(items, axis=1, keepdims=True)
        cosines = (queries + noise * stream.randn(*queries.shape)) @ items.T
        right = shelf == asked[:, None]
        best = np.where(right, cosines, -np.inf).max(axis=1)
        found["mrr"].append(1 / ((cosines > best[:, None]).sum(axis=1) + 1))
        top = np.argpartition(-cosines, 10, axis=1)[:, :10]
        order = np.argsort(-np.take_along_axis(cosines, top, axis=1), axis=1)
        hits = np.take_along_axis(right, np.take_along_axis(top, order, axis=1), axis=1)
        found["ndcg@10"].append(hits @ gains / gains.sum())
        found["recall@10"].append(hits.sum(axis=1) / 10)
    before = np.full(20_000, 0.7)
    after = before + 0.05 * stream.randn(20_000) * (stream.rand(20_000) < 0.4)
    whole = stream.rand(20_000) < 1 / 200
    found["one in 200 loses all"] = [np.where(whole, 1.0, before), np.where(whole, 0.0, after)]
    return {name: (both[0], both[1]) for name, both in found.items()}


def simulate_grades(name: str, *, queries: int, runs: int) -> tuple[float, ...]:
    """Return how often upper and lower limit hold, those of a t-test too, and the median worth."""
    before, after = list_grades()[name]
    truth = float((before - after).mean())
    stream = np.random.RandomState(queries)
    counts, worth = np.zeros(4), []
    for _ in range(runs):
        drawn = stream.randint(0, len(before), queries)
        flips = pair_scores(before[drawn].tolist(), after[drawn].tolist()).flips
        losses = before[drawn] - after[drawn]
        reach = Z * losses.std(ddof=1) / math.sqrt(queries)
        counts[:2] += holds(flips, truth)
        counts[2:] += (losses.mean() + reach >= truth, losses.mean() - reach <= truth)
        worth.append(flips.samples / queries)
    return (*(counts / runs), float(np.median(worth)))


def tabulate_grades(*, quick: bool) -> str:
    rows = []
    for name, (before, after) in list_grades().items():
        drop = f"{pct(float((before - after).mean()), 2)}"
        for queries in (100, 300, 1000, 3000):
            found = simulate_grades(name, queries=queries, runs=100 if quick else 2000)
            sides = (pct(value) for value in found[:4])
            rows.append((name, drop, queries, f"{found[4]:.1f}", *sides))
    head = ("metric", "true drop in pp", "queries", "a query is worth", "upper", "lower")
    return table_of((*head, "upper of a t-test", "lower of a t-test"), rows)


CLASS_SIZES = {
    "10 of 50": [50] * 10,
    "100 of 10": [10] * 100,
    "100, 3 to 2000 each": [max(3, 2000 // (i + 1)) for i in range(100)],
    "37, 88 to 100 each": [88 + i % 13 for i in range(37)],
    "8, 10 to 1000 each": [1000, 300, 100, 50, 20, 20, 10, 10],
    "9 of 1000, 1 of 10": [1000] * 9 + [10],
    "90 of 500, 10 of 1": [500] * 90 + [1] * 10,
}


def tabulate_classes(*, quick: bool) -> str:
    stream = np.random.RandomState(7)
    runs = 100 if quick else 3000
    rows = []
    for name, sizes in CLASS_SIZES.items():
        places = np.linspace(0, 1, len(sizes))
        last = np.where(places == 1, 0.3, 0.001)
        rates = {
            "one loses 30 %": (last, np.full(len(sizes), 0.001)),
            "alike": (np.full(len(sizes), 0.03), np.full(len(sizes), 0.02)),
            "small ones worse": (0.01 + 0.07 * places, 0.01 + 0.02 * places),
            "large ones worse": (0.08 - 0.07 * places, 0.03 - 0.02 * places),
        }
        for what, (lost, won) in rates.items():
            truth, counts = float(np.mean(lost - won)), np.zeros(2)
            for _ in range(runs):
                b = stream.binomial(sizes, lost)
                c = stream.binomial(np.array(sizes) - b, won / (1 - lost))
                found = mean_over(
                    [
                        Flips(right_to_wrong=int(x), wrong_to_right=int(y), samples=n)
                        for n, x, y in zip(sizes, b, c, strict=True)
                    ]
                )
                counts += holds(found, truth)
            rows.append((name, what, *(pct(value) for value in counts / runs)))
    return table_of(("classes", "flips", "upper holds in %", "lower holds in %"), rows)


@functools.cache
def limits_of_lost(lost: int, *, samples: int) -> tuple[float, float]:
    flips = Flips(right_to_wrong=lost, wrong_to_right=0, samples=samples)
    limits = drop_limits(flips, confidence=CONFIDENCE)
    return limits.low, limits.high


def levels_of_two(
    parts: Sequence[tuple[float, int, float]], *, limit: float | None = None
) -> tuple[float, float]:
    """Return the exact chances of PASS and FAIL of a mean of two parts that only lose.

    A part is its weight, its samples, and what it really loses; `limit` None: the true drop.
    """
    if limit is None:
        limit = sum(weight * lost for weight, _, lost in parts)
    value, below, above = (np.zeros((1, 1)) for _ in range(3))
    chance = np.ones((1, 1))
    for axis, (weight, samples, lost) in enumerate(parts):
        low, chances = binomial(samples, lost, table=log_factorials(samples))
        counts = np.arange(low, low + len(chances))
        limits = np.array([limits_of_lost(k, samples=samples) for k in counts.tolist()])
        shape = (-1, 1) if axis == 0 else (1, -1)
        share = counts / samples
        value = value + (weight * share).reshape(shape)
        below = below + ((weight * (share - limits[:, 0])) ** 2).reshape(shape)
        above = above + ((weight * (limits[:, 1] - share)) ** 2).reshape(shape)
        chance = chance * chances.reshape(shape)
    passed = chance[value + np.sqrt(above) <= limit].sum()
    return float(passed), float(chance[value - np.sqrt(below) > limit].sum())


#: Weight and samples of all classes of one size together.
TWO_SIZES = {
    "9 of 1000, 1 of 1": ((0.9, 9000), (0.1, 1)),
    "90 of 500, 10 of 1": ((0.9, 45_000), (0.1, 10)),
    "9 of 1000, 1 of 10": ((0.9, 9000), (0.1, 10)),
    "1 of 1000, 1 of 20": ((0.5, 1000), (0.5, 20)),
    "4 of 100, 4 of 30": ((0.5, 400), (0.5, 120)),
}


def measure_parts(*, quick: bool) -> dict[str, tuple[float, float]]:
    """Return how often PASS and FAIL are wrong at most, over what both parts may really lose."""
    large = (0.001, 0.01) if quick else (0.0005, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    small = np.arange(0.02, 0.98, 0.12 if quick else 0.03).tolist()
    found = {}
    for name, (many, few) in TWO_SIZES.items():
        cells = [levels_of_two(((*many, a), (*few, b))) for a, b in itertools.product(large, small)]
        found[name] = (max(cell[0] for cell in cells), max(cell[1] for cell in cells))
    return found


def tabulate_parts(found: dict[str, tuple[float, float]]) -> str:
    rows = [(name, *(pct(value) for value in worst)) for name, worst in found.items()]
    return table_of(("classes", "wrong PASS in % at most", "wrong FAIL in % at most"), rows)


# -- clipping ------------------------------------------------------------------------------------

#: How much samples clip that clip at all, relative to their mean.
AMOUNTS: dict[str, Callable[[np.random.RandomState, int], np.ndarray]] = {
    "alike": lambda _, n: np.ones(n),
    "exponential": lambda stream, n: stream.exponential(size=n),
    "lognormal, 1.5": lambda stream, n: np.exp(stream.normal(-1.125, 1.5, size=n)),
}


def simulate_clipping(
    amounts: str, *, samples: int, clipping: float, runs: int
) -> tuple[float, float, float]:
    """Return how often nothing clips, and how often something does and passes wrongly: by the
    bunches alone, as it was, and as the gate judges.

    A share `clipping` of samples has clipped values, 0.1 % of all, which is the limit.
    """
    stream, values, limit = np.random.RandomState(samples), 50_000, 0.001
    counts = np.zeros(3)
    for _ in range(runs):
        number = int(stream.binomial(samples, clipping))
        sizes = AMOUNTS[amounts](stream, number) * values * limit / clipping
        sizes = np.minimum(values, np.rint(sizes)).astype(int)
        total, squares, seen = int(sizes.sum()), int((sizes**2).sum()), samples * values
        if not total:
            counts[0] += 1
            continue
        shared = functools.partial(limit_clipping, clipped=total, seen=seen, squares=squares)
        counts[1] += shared(samples=0).high <= limit
        counts[2] += shared(samples=int((sizes > 0).sum())).high <= limit
    nothing, before, now = counts / runs
    return float(nothing), float(before), float(now)


def tabulate_clipping(*, quick: bool) -> str:
    rows = [
        (samples, f"{clipping:.0%}", amounts, *(pct(share) for share in found))
        for samples, clipping in itertools.product((64, 512), (0.01, 0.1, 1.0))
        for amounts in AMOUNTS
        for found in [
            simulate_clipping(
                amounts, samples=samples, clipping=clipping, runs=100 if quick else 3000
            )
        ]
    ]
    head = ("samples", "that clip", "amounts", "nothing seen in %", "wrong PASS in %, by bunches")
    return table_of((*head, "as judged"), rows)


# -- latency -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What a machine adds to the logarithm of a time, besides 0.3 % of its own in each round.

    `of` says who has it: `each` runner its own, or `sides`: FP16 one that is the same in both
    of its processes, and quantized another. `kind` is how it hangs together from round to round
    (`rounds`: not at all; `AR 0.95`; `clock`: 10 % slower in a third of the time, and a state stays
    with probability 0.95), or `process` where it stays as long as a process lives. `goes_on` is
    noise that outlives processes; `pause` is how many rounds pass from one to the next.
    """

    of: Literal["each", "sides"]
    kind: Literal["rounds", "AR 0.8", "AR 0.95", "clock", "process", "process clock"]
    goes_on: bool = False
    pause: int = 0

    def draw(self, stream: np.random.RandomState, *, processes: int, rounds: int) -> Any:
        """Return [3, processes, rounds] of FP16, quantized and FP16 again."""
        sides = 3 if self.of == "each" else 2
        if self.goes_on:
            line = self._draw_line(stream, (sides, 1, processes * (rounds + self.pause)))
            found = line.reshape(sides, processes, rounds + self.pause)[..., :rounds]
        else:
            found = self._draw_line(stream, (sides, processes, rounds))
        if sides == 2:
            found = found[[0, 1, 0]]
        return found + 0.003 * stream.standard_normal(found.shape)

    def _draw_line(self, stream: np.random.RandomState, shape: tuple[int, int, int]) -> Any:
        if self.kind == "process":
            return np.broadcast_to(0.03 * stream.standard_normal((*shape[:2], 1)), shape)
        if self.kind == "process clock":
            return np.broadcast_to(0.1 * (stream.random_sample((*shape[:2], 1)) < 1 / 3), shape)
        if self.kind == "clock":
            return 0.1 * self._draw_clock(stream, shape)
        found = 0.03 * stream.standard_normal(shape)
        alike = {"rounds": 0.0, "AR 0.8": 0.8, "AR 0.95": 0.95}[self.kind]
        for i in range(1, shape[-1]):
            found[..., i] = alike * found[..., i - 1] + math.sqrt(1 - alike**2) * found[..., i]
        return found

    def _draw_clock(self, stream: np.random.RandomState, shape: tuple[int, int, int]) -> Any:
        slow = stream.random_sample(shape) < 1 / 3
        stays = stream.random_sample(shape) < 0.95
        for i in range(1, shape[-1]):
            slow[..., i] = np.where(stays[..., i], slow[..., i - 1], slow[..., i])
        return slow

    def __str__(self) -> str:
        kind = {"process": "a level", "process clock": "a clock", "rounds": "no correlation"}
        words = [kind.get(self.kind, self.kind)]
        words.append("of each runner" if self.of == "each" else "of FP16, another of quantized")
        if self.goes_on:
            words.append(f"goes on, {self.pause} rounds between processes")
        elif self.kind != "rounds":
            words.append("of each process")
        return ", ".join(words)


NOISES = (
    Noise(of="each", kind="rounds"),
    Noise(of="each", kind="AR 0.95"),
    Noise(of="each", kind="process"),
    Noise(of="each", kind="process clock"),
    Noise(of="each", kind="clock"),
    Noise(of="sides", kind="AR 0.95"),
    Noise(of="sides", kind="clock"),
    Noise(of="each", kind="AR 0.95", goes_on=True, pause=20),
    Noise(of="sides", kind="AR 0.8", goes_on=True, pause=20),
    Noise(of="sides", kind="AR 0.95", goes_on=True, pause=20),
    Noise(of="sides", kind="clock", goes_on=True, pause=20),
    Noise(of="sides", kind="AR 0.8", goes_on=True),
    Noise(of="sides", kind="AR 0.95", goes_on=True),
    Noise(of="sides", kind="clock", goes_on=True),
)


def simulate_latency(noise: Noise, *, rounds: int, runs: int) -> tuple[float, ...]:
    """Return how often the limits of a ratio of 1 hold, and how often sides that are the same FAIL
    a limit of 1.0: limits of all processes alone, and the gate's, with the A/A floor at both looks.
    """
    stream = np.random.RandomState(rounds)
    processes, each = share_rounds(rounds)
    counts = np.zeros(5)
    for _ in range(runs):
        fp16, quantized, again = noise.draw(stream, processes=processes, rounds=each)

        def limits_of(
            done: int, *, confidence: float, sides: tuple[Any, Any, Any] = (fp16, quantized, again)
        ) -> tuple[Interval, Interval]:
            ratios, noises = (
                Levels.of(
                    np.exp(side[:done] - sides[0][:done]).ravel().tolist(),
                    processes=done,
                    pause_rounds=noise.pause,
                )
                for side in sides[1:]
            )
            plain = ratios.limits(confidence=confidence)
            return plain, widen(plain, by=noise_factor(noises, confidence=confidence))

        plain, _ = limits_of(processes, confidence=CONFIDENCE)
        # As `measure_latency` looks, or does not.
        planned = processes if noise.pause >= each else 0
        looks = []
        for done in (first_look(processes), processes) if planned else (processes,):
            confidence = confidence_of_look(Fraction(19, 20), processes=done, planned=planned)
            looks.append(limits_of(done, confidence=float(confidence))[1])
        counts += (
            plain.high >= 1,
            plain.low <= 1,
            all(wide.high >= 1 for wide in looks),
            all(wide.low <= 1 for wide in looks),
            any(wide.low > 1 for wide in looks),
        )
    return tuple(float(count) for count in counts / runs)


def tabulate_latency(*, quick: bool) -> str:
    rows = [
        (str(noise), rounds, *(pct(value) for value in found))
        for noise in NOISES
        for rounds in (30, 90)
        for found in [simulate_latency(noise, rounds=rounds, runs=60 if quick else 2000)]
    ]
    head = ("noise", "rounds", "processes' upper", "processes' lower")
    return table_of((*head, "gate's upper", "gate's lower", "same sides FAIL"), rows)


# -- verdicts and advice -------------------------------------------------------------------------


def tabulate_verdicts() -> str:
    rows = []
    limit = 0.01
    for samples, drop in itertools.product((1000, 5000, 20_000), (0.0, 0.005, 0.01, 0.015, 0.02)):
        rate = 0.03
        truth = Truth(samples, (rate + drop) / 2, (rate - drop) / 2)
        found = verdicts(truth, limit=limit)
        rows.append((samples, f"{drop * 100:.2f}", *(pct(value) for value in found)))
    return table_of(("samples", "true drop in pp", "PASS %", "INCONCLUSIVE %", "FAIL %"), rows)


def needed_exactly(lost: float, won: float, *, limit: float, power: float) -> int:
    """Return the size from which at least `power` of all runs decide, by exact enumeration.

    The power of a discrete test is a saw: the size after which it no longer falls below is where a
    line through its teeth crosses, found here as the mean of the first and the last crossing.
    """

    def decided(samples: int) -> bool:
        passed, _, failed = verdicts(Truth(samples, lost, won), limit=limit)
        return (passed if lost - won < limit else failed) >= power

    high = 64
    while not decided(high):
        high *= 2
    size = first_true(decided, low=high // 2, high=high)
    step = max(1, size // 40)
    window = [size + step * i for i in range(-8, 9) if size + step * i > 1]
    flags = [decided(n) for n in window]
    last_false = max((n for n, flag in zip(window, flags, strict=True) if not flag), default=size)
    first_flag = min((n for n, flag in zip(window, flags, strict=True) if flag), default=size)
    return (last_false + first_flag) // 2


ADVICE = tuple(
    (limit, rate, share)
    for limit in (0.005, 0.01, 0.02)
    for rate in (0.01, 0.03, 0.08)
    for share in (0.0, 0.5, 1.5, 2.0)
    if limit * share <= rate
)


def measure_advice(cases: Sequence[tuple[float, float, float]]) -> list[tuple[float, ...]]:
    """Return limit, flip rate, true drop, advised and needed size, and what decides there."""
    rows: list[tuple[float, ...]] = []
    for limit, rate, share in cases:
        drop = limit * share
        lost, won = (rate + drop) / 2, (rate - drop) / 2
        flips = Flips(right_to_wrong=1000 * lost, wrong_to_right=1000 * won, samples=1000)
        advised = samples_to_settle(flips, confidence=CONFIDENCE, limit=limit)
        assert advised is not None
        needed = needed_exactly(lost, won, limit=limit, power=SETTLING_POWER)
        passed, _, failed = verdicts(Truth(advised, lost, won), limit=limit)
        rows.append((limit, rate, drop, advised, needed, passed if drop < limit else failed))
    return rows


def tabulate_advice(rows: Sequence[tuple[float, ...]]) -> str:
    return table_of(
        (
            "limit in pp",
            "flips in %",
            "true drop in pp",
            "advised",
            "needed",
            "off by",
            "decided there",
        ),
        [
            (
                f"{limit * 100:g}",
                f"{rate * 100:g}",
                f"{drop * 100:.2f}",
                f"{advised:,.0f}",
                f"{needed:,.0f}",
                f"{(advised / needed - 1) * 100:+.0f} %",
                f"{decided * 100:.0f} %",
            )
            for limit, rate, drop, advised, needed, decided in rows
        ],
    )


# -- looking again -------------------------------------------------------------------------------


def simulate_looks(sizes: Sequence[int], *, runs: int) -> tuple[float, float, float]:
    """Return how often raising the samples until green passes a drop that is at its limit.

    With every look for itself, as the gates judge looks that nobody planned, and as they judge
    those of a plan to the last size. Limit 1 pp, 3 % flips.
    """
    stream, limit = np.random.RandomState(len(sizes)), 0.01
    quantiles = np.array(
        [
            np.full(len(sizes), Z),
            *(list_quantiles(sizes, planned=planned) for planned in (None, sizes[-1])),
        ]
    )
    deviate_of = functools.cache(
        lambda b, c, n: ours(Flips(right_to_wrong=b, wrong_to_right=c, samples=n), limit)
    )
    passed = np.zeros(len(quantiles))
    for _ in range(runs):
        lost = won = 0
        found = []
        for before, size in itertools.pairwise((0, *sizes)):
            more = int(stream.binomial(size - before, 0.02))
            lost += more
            won += int(stream.binomial(size - before - more, 0.01 / 0.98))
            found.append(deviate_of(lost, won, size))
        passed += (np.array(found) <= -quantiles).any(axis=1)
    alone, unplanned, planned = passed / runs
    return float(alone), float(unplanned), float(planned)


def list_quantiles(sizes: Sequence[int], *, planned: int | None) -> list[float]:
    """Return the normal quantiles of looks at these sizes, without a plan or with one."""
    asked, steps, spent = Fraction(95, 100), [], 0.0
    for size in sizes:
        spent = spend_share(size / planned if planned else 1.0, spent=spent, confidence=asked)
        steps.append(Step(samples=size, spent=spent))
    found = confidences_of_looks(asked, steps)
    return [NormalDist().inv_cdf(float(confidence)) for confidence in found]


def pass_in_two_looks(truth: Truth, *, first: int, quantiles: Sequence[float]) -> float:
    """Return the exact chance that one of two looks, at `first` and at all samples, is a PASS.

    The limit is the true drop.
    """
    table, limit = log_factorials(truth.samples), truth.drop
    rest = truth.samples - first
    early, early_won = binomial(first, truth.won, table=table)
    late, late_won = binomial(rest, truth.won, table=table)
    share = truth.lost / (1 - truth.won)
    wins = range(early, early + len(early_won))
    ends, _ = edges_of(first, limit, z=quantiles[0], wins=wins)
    wins = range(early + late, early + late + len(early_won) + len(late_won) - 1)
    ends_late, _ = edges_of(truth.samples, limit, z=quantiles[1], wins=wins)
    total = 0.0
    for i, chance in enumerate(early_won):
        low, lost = binomial(first - early - i, share, table=table)
        counts = np.arange(low, low + len(lost))
        total += chance * lost[counts < ends[i]].sum()
        left = np.where(counts < ends[i], 0, lost)
        for j, other in enumerate(late_won):
            if chance * other < NEGLIGIBLE:
                continue
            least, more = binomial(rest - late - j, share, table=table)
            reached = np.concatenate([[0.0], np.cumsum(more)])
            inside = np.clip(ends_late[i + j] - counts - least, 0, len(more))
            total += chance * other * (left * reached[inside]).sum()
    return float(total)


#: What is lost and won where two looks are enumerated, and their sizes.
TWO_LOOKS = ((0.01, 0.0), (0.02, 0.01), (0.02, 0.015))
TWO_LOOK_SIZES = ((300, 600), (500, 1000), (900, 1000), (1000, 4000), (2500, 5000))


def measure_two_looks(*, quick: bool) -> dict[tuple[float, float], tuple[float, float]]:
    """Return how often PASS is wrong at most in two looks, without a plan and with one."""
    found = {}
    for lost, won in TWO_LOOKS:
        worst = [0.0, 0.0]
        for first, last in TWO_LOOK_SIZES[: 2 if quick else None]:
            for place, planned in enumerate((None, last)):
                quantiles = list_quantiles((first, last), planned=planned)
                wrong = pass_in_two_looks(Truth(last, lost, won), first=first, quantiles=quantiles)
                worst[place] = max(worst[place], wrong)
        found[lost, won] = (worst[0], worst[1])
    return found


def tabulate_two_looks(found: dict[tuple[float, float], tuple[float, float]]) -> str:
    rows = [
        (pct(lost), pct(won), *(pct(value, 2) for value in worst))
        for (lost, won), worst in found.items()
    ]
    head = ("lost in %", "won in %", "wrong PASS in % at most, without a plan", "with a plan")
    return table_of(head, rows)


def power_of_plan(sizes: Sequence[int], *, planned: int | None, runs: int) -> tuple[float, float]:
    """Return how often a variant that loses nothing passes in the end, and the samples it takes.

    Limit 1 pp, 3 % flips. The samples are those of the mean over all runs.
    """
    stream, limit = np.random.RandomState(len(sizes)), 0.01
    quantiles = list_quantiles(sizes, planned=planned)
    passed = used = 0
    for _ in range(runs):
        lost = won = before = 0
        for size, quantile in zip(sizes, quantiles, strict=True):
            lost += int(stream.binomial(size - before, 0.015))
            won += int(stream.binomial(size - before, 0.015))
            before = size
            flips = Flips(right_to_wrong=lost, wrong_to_right=won, samples=size)
            if ours(flips, limit) <= -quantile:
                passed += 1
                break
        used += before
    return passed / runs, used / runs


LOOKS = {
    "one look": (5000,),
    "2 looks": (2500, 5000),
    "7 doublings": tuple(200 << i for i in range(7)),
    "50 looks": tuple(range(200, 10_200, 200)),
}


def tabulate_looks(*, quick: bool) -> str:
    rows = [
        (name, *(pct(share) for share in simulate_looks(sizes, runs=300 if quick else 20_000)))
        for name, sizes in LOOKS.items()
    ]
    head = ("until green", "wrong PASS in %, each look alone", "without a plan", "with a plan")
    return table_of(head, rows)


#: Looks until a variant without a loss passes, and the plan that they keep to.
PLANS = {
    "2,069 at once": ((2069,), None),
    "a plan to 2,069, at a half and all": ((1035, 2069), 2069),
    "a plan to 2,069, at each quarter": ((518, 1035, 1552, 2069), 2069),
    "no plan, 1,035, then 2,069": ((1035, 2069), None),
    "no plan, 1,035, then 5,000": ((1035, 5000), None),
}


def tabulate_plans(*, quick: bool) -> str:
    rows = []
    for name, (sizes, planned) in PLANS.items():
        share, used = power_of_plan(sizes, planned=planned, runs=300 if quick else 4000)
        rows.append((name, pct(share), f"{used:,.0f}"))
    return table_of(("looks", "passes in %", "samples on average"), rows)


# -- what `quantgate plan` promises ----------------------------------------------------------------


def measure_planned(*, quick: bool) -> list[tuple[str, float, int, float]]:
    """Return what is planned, its limit in pp, the samples needed, and how often those decide.

    Every limit is planned at the true rates, or at those of one run that stands for a baseline.
    """
    runs, stream = (200 if quick else 2000), np.random.RandomState(11)
    truth = Truth(1, 0.02, 0.018)
    one = Flips(right_to_wrong=truth.lost, wrong_to_right=truth.won, samples=1)
    settle = functools.partial(samples_to_settle, confidence=CONFIDENCE)
    rows = []

    def power_alone(samples: int) -> float:
        return verdicts(Truth(samples, truth.lost, truth.won), limit=0.01)[0]

    alone = settle(one, limit=0.01)
    assert alone is not None
    rows.append(("one limit", 1.0, alone, power_alone(alone)))
    rows.append(("six limits, each as if alone", 1.0, alone, power_alone(alone) ** 6))
    for_all = settle(one, limit=0.01, power=1 - (1 - SETTLING_POWER) / 6)
    assert for_all is not None
    rows.append(("six limits, all together", 1.0, for_all, power_alone(for_all) ** 6))
    for together in (0.3, 1.0):
        draw = functools.partial(draw_captions, stream, captions=5, truth=truth, together=together)
        baseline, _ = draw(images=1000)
        images = math.ceil(alone / baseline.samples * 1000)
        passed = sum(draw(images=images)[0].deviate(0.01) <= -Z for _ in range(runs)) / runs
        rows.append((f"5 captions an image, {together:g} together", 1.0, images * 5, passed))
    for sizes, limit in ((CLASS_SIZES["8, 10 to 1000 each"], 0.05), ([1000] * 9 + [10], 0.03)):
        needed = count_for_mean(
            one, sizes, confidence=CONFIDENCE, limit=limit, power=SETTLING_POWER
        )
        assert needed is not None
        grown = np.maximum(1, np.rint(np.array(sizes) * needed / sum(sizes))).astype(int)
        passed = 0.0
        for _ in range(runs):
            lost = stream.binomial(grown, truth.lost)
            won = stream.binomial(grown - lost, truth.won / (1 - truth.lost))
            found = mean_over(
                [
                    Flips(right_to_wrong=int(b), wrong_to_right=int(c), samples=int(n))
                    for b, c, n in zip(lost, won, grown, strict=True)
                ]
            )
            passed += found.limit(-Z) <= limit
        name = f"{len(sizes)} classes, {min(sizes)} to {max(sizes)} each"
        rows.append((name, limit * 100, needed, passed / runs))
    size = first_true(
        lambda n: (
            chance_to_pass(one.grow(n), confidence=CONFIDENCE, limit=0.2) ** 100 >= SETTLING_POWER
        ),
        low=1,
        high=200,
    )
    each = verdicts(Truth(size, truth.lost, truth.won), limit=0.2)[0]
    rows.append(("max_class_drop of 100 classes", 20.0, size * 100, each**100))
    return rows


def tabulate_planned(rows: Sequence[tuple[str, float, int, float]]) -> str:
    return table_of(
        ("planned", "limit in pp", "needed", "green in % of runs"),
        [(what, f"{limit:g}", f"{n:,}", pct(share)) for what, limit, n, share in rows],
    )


# -- power: paired and unpaired ------------------------------------------------------------------


def samples_unpaired(
    before: float, after: float, *, limit: float, power: float, fixed_reference: bool
) -> int:
    """Return the size of an unpaired test of "the drop is under `limit`" (normal, both arms equal).

    `fixed_reference`: the reference is a stored number that is taken as the truth.
    """
    quantile = NormalDist().inv_cdf
    variance = after * (1 - after) + (0 if fixed_reference else before * (1 - before))
    factor = quantile(CONFIDENCE) + quantile(power)
    return math.ceil((factor * math.sqrt(variance) / (limit - (before - after))) ** 2)


def simulate_unpaired(before: float, after: float, *, samples: int, limit: float) -> float:
    """Return how often an unpaired interval of this size says that the drop is under the limit."""
    stream = np.random.RandomState(3)
    a = stream.binomial(samples, before, size=20_000) / samples
    b = stream.binomial(samples, after, size=20_000) / samples
    error = np.sqrt((a * (1 - a) + b * (1 - b)) / samples)
    return float(np.mean(a - b + Z * error <= limit))


def reference_pairs() -> Iterator[tuple[str, float, Flips]]:
    """Yield name, FP16 value and flips of every stored baseline of the reference."""
    for path in sorted(BASELINES.rglob("*.json")):
        record = read_record(path, root=BASELINES)
        assert record is not None
        both = list(zip(record.fp16.correct, record.accepted.correct, strict=True))
        yield (
            f"{record.suite}: {record.key}",
            record.fp16.value,
            Flips(
                right_to_wrong=sum(a and not b for a, b in both),
                wrong_to_right=sum(b and not a for a, b in both),
                samples=len(both),
            ),
        )


POWER = 0.95
DISTANCE = 0.005

#: Flip rates in %, lost and won together, of README's table of the reference CLIP.
RATES = (1.0, 2.0, 2.7, 5.0, 10.0)


def tabulate_power() -> str:
    """Samples to show that a variant without loss is under 0.5 pp, in 95 % of runs."""
    rows = []
    cases = [(f"{rate:g} % flips", 0.8, rate / 100) for rate in RATES]
    cases += [(name, value, flips.rate) for name, value, flips in reference_pairs()]
    for name, value, rate in cases:
        flips = Flips(right_to_wrong=500 * rate, wrong_to_right=500 * rate, samples=1000)
        paired = samples_to_settle(flips, confidence=CONFIDENCE, limit=DISTANCE, power=POWER)
        assert paired is not None
        passed, _, _ = verdicts(Truth(paired, rate / 2, rate / 2), limit=DISTANCE)
        two = samples_unpaired(value, value, limit=DISTANCE, power=POWER, fixed_reference=False)
        one = samples_unpaired(value, value, limit=DISTANCE, power=POWER, fixed_reference=True)
        rows.append(
            (
                name,
                f"{value * 100:.1f}",
                f"{paired:,}",
                pct(passed),
                f"{two:,}",
                pct(simulate_unpaired(value, value, samples=two, limit=DISTANCE)),
                f"{one:,}",
                f"{two / paired:.0f}x",
            )
        )
    head = ("flips", "accuracy in %", "paired", "passes in %", "unpaired", "passes in %")
    return table_of((*head, "unpaired, reference taken as exact", "ratio"), rows)


# -- the family ----------------------------------------------------------------------------------


def simulate_family(
    *, limits: int, kept: float, runs: int, worse: int = 0
) -> tuple[float, float, float, float]:
    """Return how often a suite says FAIL wrongly, alone and with Holm, and finds the bad limits.

    Every limit is 1 pp on 5,000 samples with 3 % flips; the drop is `kept` of it, but 1.7 times
    for `worse` of them.
    """
    stream = np.random.RandomState(limits)
    rate, limit, samples = 0.03, 0.01, 5000
    false, found = np.zeros(2), np.zeros(2)
    strength_of = functools.cache(
        lambda b, c: (
            chance_above(Flips(right_to_wrong=b, wrong_to_right=c, samples=samples), limit)
            / (1 - CONFIDENCE)
        )
    )
    drops = [1.7 * limit] * worse + [kept * limit] * (limits - worse)
    for _ in range(runs):
        strengths = []
        for drop in drops:
            b = int(stream.binomial(samples, (rate + drop) / 2))
            c = int(stream.binomial(samples - b, (rate - drop) / 2 / (1 - (rate + drop) / 2)))
            strengths.append(strength_of(b, c))
        family = Family(size=limits, strengths=functools.partial(tuple, strengths))
        for place, control in enumerate((ALONE, family)):
            raised = [
                strength <= 1
                and control.raises(
                    Alarm(chance=strength * (1 - CONFIDENCE), confidence=Fraction(95, 100))
                )
                for strength in strengths
            ]
            false[place] += any(raised[worse:])
            found[place] += sum(raised[:worse]) / max(1, worse)
    false, found = false / runs, found / runs
    return float(false[0]), float(false[1]), float(found[0]), float(found[1])


def tabulate_family(*, quick: bool) -> str:
    rows = []
    runs = 200 if quick else 4000
    for limits, kept, worse in (
        (1, 1.0, 0),
        (5, 1.0, 0),
        (13, 1.0, 0),
        (20, 1.0, 0),
        (13, 0.5, 0),
        (13, 1.0, 3),
    ):
        found = simulate_family(limits=limits, kept=kept, runs=runs, worse=worse)
        rows.append(
            (
                limits,
                f"{kept:g} of the limit" + (f", {worse} at 1.7" if worse else ""),
                pct(found[0]),
                pct(found[1]),
                *((pct(found[2]), pct(found[3])) if worse else ("", "")),
            )
        )
    head = ("limits", "true drops", "false FAIL in % of runs", "with Holm")
    return table_of((*head, "bad limits found in %", "with Holm"), rows)


# -- plots ---------------------------------------------------------------------------------------

#: Mid tones that can be read on white and on black; text takes the reader's own colour scheme.
COLOURS = {"this project": "#2f81f7", "Tango": "#c98a1b", "Wald": "#8b949e"}
STYLE = (
    "<style>text{font:12px sans-serif;fill:#6e7781}.axis{stroke:#8b949e;stroke-width:1}"
    ".band{fill:#2f81f7;opacity:.12}.dots{stroke-width:4;stroke-linecap:round;opacity:.75}"
    "@media(prefers-color-scheme:dark){text{fill:#9ea7b3}}</style>"
)


def draw_reach(
    found: Sequence[tuple[Truth, dict[str, tuple[float, float]]]], *, side: int, title: str
) -> str:
    """Return an SVG: how often a limit holds, against the expected number of flips."""
    width, height, left, top, bottom = 640, 300, 52, 34, 40
    low, high = 0.88, 1.0

    def x(flips: float) -> float:
        return left + (width - left - 14) * math.log10(max(flips, 1)) / math.log10(5000)

    def y(share: float) -> float:
        share = min(high, max(low, share))
        return top + (height - top - bottom) * (high - share) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{title}">',
        STYLE,
        f'<text x="{left}" y="16">{title}</text>',
        f'<rect class="band" x="{left}" width="{width - left - 14}" y="{y(0.97):.1f}" '
        f'height="{y(0.94) - y(0.97):.1f}"/>',
    ]
    for share in (0.88, 0.9, 0.92, 0.94, 0.95, 0.97, 1.0):
        parts.append(f'<text x="{left - 34}" y="{y(share) + 4:.1f}">{share * 100:.0f} %</text>')
    for flips in (1, 10, 100, 1000):
        parts.append(f'<text x="{x(flips) - 8:.1f}" y="{height - 22}">{flips}</text>')
    parts.append(f'<text x="{width / 2 - 60:.0f}" y="{height - 4}">expected flips</text>')
    axis = y(low)
    parts.append(
        f'<path class="axis" d="M{left} {axis:.1f}H{width - 14}M{left} {top}V{axis:.1f}"/>'
    )
    for place, name in enumerate(("Wald", "Tango", "this project")):
        # A dot is a line of no length with a round end; cells at one place are one dot.
        dots = dict.fromkeys(
            f"M{x(truth.expected_flips):.0f} {y(reach[name][side]):.1f}h0" for truth, reach in found
        )
        parts.append(f'<path class="dots" stroke="{COLOURS[name]}" d="{"".join(dots)}"/>')
        spot = width - 330 + 100 * place
        parts.append(f'<circle cx="{spot}" cy="12" r="4" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{spot + 8}" y="16">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


# -- the page ------------------------------------------------------------------------------------


def replace_tables(text: str, tables: dict[str, str]) -> str:
    """Return the page with each table between its markers replaced."""
    for name, table in tables.items():
        start = f"<!-- table: {name} -->\n"
        if text.count(start) != 1:
            raise SystemExit(f"{PAGE}: marker of table {name!r} stands {text.count(start)} times")
        before, _, rest = text.partition(start)
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{start}{table}\n{end}{after}"
    return text


def list_tables(*, quick: bool) -> dict[str, Callable[[], str]]:
    """Return what writes each table of the page."""
    drop = functools.cache(lambda: measure_drop(quick=quick))
    return {
        "levels": lambda: tabulate_levels(measure_levels(quick=quick)),
        "few": lambda: tabulate_few(measure_few(quick=quick)),
        "drop": lambda: tabulate_drop(drop()),
        "outside": lambda: tabulate_outside(drop()),
        "share": lambda: tabulate_share(measure_share(quick=quick)),
        "captions": lambda: tabulate_captions(quick=quick),
        "grades": lambda: tabulate_grades(quick=quick),
        "classes": lambda: tabulate_classes(quick=quick),
        "parts": lambda: tabulate_parts(measure_parts(quick=quick)),
        "clipping": lambda: tabulate_clipping(quick=quick),
        "latency": lambda: tabulate_latency(quick=quick),
        "verdicts": tabulate_verdicts,
        "advice": lambda: tabulate_advice(measure_advice(ADVICE[:4] if quick else ADVICE)),
        "looks": lambda: tabulate_looks(quick=quick),
        "two looks": lambda: tabulate_two_looks(measure_two_looks(quick=quick)),
        "plans": lambda: tabulate_plans(quick=quick),
        "planned": lambda: tabulate_planned(measure_planned(quick=quick)),
        "power": tabulate_power,
        "family": lambda: tabulate_family(quick=quick),
    }


def draw_plots() -> None:
    found = measure_drop(quick=False)
    for side, name in ((0, "upper"), (1, "lower")):
        title = f"how often the {name} 95 % limit of a drop holds"
        path = PAGE.parent / f"statistics-{name}.svg"
        path.write_text(draw_reach(found, side=side, title=title), encoding="utf-8")


def main(*, quick: bool, only: Sequence[str]) -> None:
    tables = list_tables(quick=quick)
    for name in only or tables:
        table = tables[name]()
        print(f"\n{name}\n{table}", flush=True)
        if not quick:
            text = PAGE.read_text(encoding="utf-8")
            PAGE.write_text(replace_tables(text, {name: table}), encoding="utf-8")
    if not quick and not only:
        draw_plots()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, nothing written")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TABLE",
        choices=list(list_tables(quick=True)),
        help="these tables alone",
    )
    arguments = parser.parse_args()
    main(quick=arguments.quick, only=arguments.only)
