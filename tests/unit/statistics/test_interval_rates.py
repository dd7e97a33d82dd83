"""A quick version of benchmarks/intervals.py: the limits hold as often as they say.

Where two counts decide, every outcome is enumerated with its exact probability: no luck, no seeds.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

np = pytest.importorskip("numpy")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "intervals.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("intervals_under_test", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_enumeration_knows_a_binomial(bench: ModuleType) -> None:
    """The chance of more than one of three lost, at one in ten, is 2.8 %; won ones do not count."""
    truth = bench.Truth(3, 0.1, 0.0)

    below, between, above = bench.split(truth, lambda _won: (1, 1))

    assert (below, between, above) == pytest.approx((0.729, 0.243, 0.028))


def test_enumeration_leaves_nothing_out(bench: ModuleType) -> None:
    for truth in (bench.Truth(200, 0.02, 0.01), bench.Truth(50_000, 0.1, 0.4)):
        below, _, above = bench.split(truth, lambda won: (won, won + 10**9))

        assert below + above + bench.split(truth, lambda won: (0, won - 1))[1] >= 0
        total = bench.split(truth, lambda _won: (0, 10**9))
        assert total[1] == pytest.approx(1)
        assert total[0] == total[2] == 0


def test_no_wrong_decision_at_the_limit_is_likelier_than_it_says(bench: ModuleType) -> None:
    """With losses only, at 90 % and at 99 % as well: there 0.3 of a sample let through 13 %."""
    for truth, confidence, passed, failed in bench.measure_levels(quick=True):
        assert passed <= 1 - confidence, (truth, confidence)
        assert failed <= (1 - confidence) * 1.04, (truth, confidence)


def test_no_pass_of_few_samples_is_wrong_more_often_than_it_says(bench: ModuleType) -> None:
    """Under 20 samples, up to all of them flipped: there it was 5.9 to 7.4 % at 95 %."""
    for (confidence, samples), (passed, failed) in bench.measure_few(quick=True).items():
        assert passed <= 1 - confidence, (confidence, samples)
        assert failed <= (1 - confidence) * 1.04, (confidence, samples)


def test_five_samples_that_all_flip_pass_no_limit_too_often(bench: ModuleType) -> None:
    """Lost - won is 5, 3, 1, ...: one lost more than won passed a limit of 60 pp, in 5.8 %."""
    passing, _ = bench.edges_of(5, 0.6, z=bench.Z, wins=range(6))
    chances = {lost: math.comb(5, lost) * 0.8**lost * 0.2 ** (5 - lost) for lost in range(6)}

    wrong = sum(chance for lost, chance in chances.items() if lost < passing[5 - lost])

    assert chances[0] + chances[1] + chances[2] == pytest.approx(0.05792)
    assert wrong == pytest.approx(chances[0] + chances[1])


def test_level_is_lost_with_less_continuity(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: 546 samples without a flip pass 0.5 pp, which happens in 6.5 %."""
    monkeypatch.setattr("pytest_quantgate.statistics.intervals.CONTINUITY", 0.3)

    passed, _, _ = bench.verdicts(bench.Truth(546, 0.005, 0.0), limit=0.005)

    assert passed == pytest.approx(0.995**546)
    assert passed > 0.06


def test_limits_of_a_drop_hold_in_94_to_97_percent(bench: ModuleType) -> None:
    """With ten expected flips and more; the one exception that counts force is in the docs."""
    checked = 0
    for truth in bench.truths(quick=True):
        upper, lower = bench.reach_of(truth, bench.ours)
        assert min(upper, lower) >= 0.94, truth
        if truth.expected_flips >= 10 and truth.samples * truth.won >= 1:
            assert max(upper, lower) <= 0.97, truth
            checked += 1
    assert checked > 150


def test_uncorrected_limits_do_not(bench: ModuleType) -> None:
    """The check can fail: Tango's lower limit and Wald's interval do."""
    truth = bench.Truth(20_000, 4 / 20_000, 1 / 20_000)

    assert bench.reach_of(truth, bench.ours)[1] > 0.945
    assert bench.reach_of(truth, bench.tango)[1] < 0.92
    assert bench.reach_of(truth, bench.wald)[0] < 0.90


def test_limits_of_a_share_hold(bench: ModuleType) -> None:
    for samples, share, upper, lower in bench.measure_share(quick=True):
        assert min(upper, lower) >= 0.94, (samples, share)
        if samples * min(share, 1 - share) >= 20:
            assert max(upper, lower) <= 0.97, (samples, share)


def test_verdicts_are_inconclusive_just_where_neither_limit_decides(bench: ModuleType) -> None:
    """At the limit itself each side errs in 5 %; far from it, in none."""
    for samples in (1_000, 10_000):
        at = bench.verdicts(bench.Truth(samples, 0.02, 0.01), limit=0.01)
        far = bench.verdicts(bench.Truth(samples * 10, 0.02, 0.02), limit=0.01)

        assert at[0] == pytest.approx(0.05, abs=0.01)
        assert at[2] == pytest.approx(0.05, abs=0.01)
        assert at[1] == pytest.approx(0.90, abs=0.02)
        assert far[0] > 0.999


def test_advice_is_right_within_a_fifth(bench: ModuleType) -> None:
    """The advised size against the least that decides in four of five runs, and what it decides."""
    cases = [(0.01, 0.03, 0.0), (0.01, 0.03, 0.5), (0.01, 0.03, 2.0), (0.02, 0.08, 1.5)]

    for *_, advised, needed, decided in bench.measure_advice(cases):
        assert advised == pytest.approx(needed, rel=0.2)
        assert 0.72 < decided < 0.9


@pytest.mark.parametrize(
    ("samples", "lost", "won", "limit", "close"),
    [
        (50, 0.03, 0.02, 0.2, 1e-9),
        (400, 0.03, 0.02, 0.03, 1e-9),
        (1000, 0.005, 0.0, 0.01, 1e-9),
        (30, 0.0, 0.0, 0.1, 1e-9),
        (5000, 0.02, 0.015, 0.01, 0.01),
    ],
)
def test_chance_to_pass_is_the_exact_one(
    bench: ModuleType, samples: int, lost: float, won: float, limit: float, close: float
) -> None:
    """Without NumPy against with it; beyond 1,000 samples by the normal approximation."""
    flips = bench.Flips(
        right_to_wrong=samples * lost, wrong_to_right=samples * won, samples=samples
    )

    found = bench.chance_to_pass(flips, confidence=0.95, limit=limit)

    exact, _, _ = bench.verdicts(bench.Truth(samples, lost, won), limit=limit)
    assert found == pytest.approx(exact, abs=close)


def test_a_mean_of_unequal_classes_keeps_its_level(bench: ModuleType) -> None:
    """With one or a few small classes its limits held in 29 to 81 %."""
    for name, (passed, failed) in bench.measure_parts(quick=True).items():
        assert passed <= 0.05, name
        assert failed <= 0.05, name


def test_a_class_of_one_sample_cannot_hide_a_drop(bench: ModuleType) -> None:
    """Nine classes of 1000 lose nothing, one of a single sample 32.5 %: 3.25 pp of the mean.

    Two of three times its sample stays right; that passed a limit of 3 pp.
    """
    passed, _ = bench.levels_of_two(((0.9, 9000, 0.0), (0.1, 1, 0.325)), limit=0.03)

    assert passed == 0


def test_raising_the_samples_until_green_does_not_pay(bench: ModuleType) -> None:
    """Seven looks, each for itself, pass a drop at its limit in one of five runs."""
    alone, unplanned, planned = bench.simulate_looks(bench.LOOKS["7 doublings"], runs=1000)

    assert alone > 0.14
    assert max(unplanned, planned) < 0.05 + 0.0207  # three standard deviations of 1000 throws


def test_two_looks_together_are_wrong_in_at_most_five_percent(bench: ModuleType) -> None:
    """Exact: whoever raises the samples once, with a plan or without one."""
    for rates, worst in bench.measure_two_looks(quick=True).items():
        assert 0 < max(worst) <= 0.05, rates


def test_enumeration_of_two_looks_knows_one(bench: ModuleType) -> None:
    """Where one of the two cannot pass, what is left is the other's own chance."""
    truth, never = bench.Truth(600, 0.04, 0.02), 30.0
    alone = bench.verdicts(truth, limit=0.02)[0]
    half = bench.verdicts(bench.Truth(300, 0.04, 0.02), limit=0.02)[0]

    last = bench.pass_in_two_looks(truth, first=300, quantiles=(never, bench.Z))
    first = bench.pass_in_two_looks(truth, first=300, quantiles=(bench.Z, never))
    both = bench.pass_in_two_looks(truth, first=300, quantiles=(bench.Z, bench.Z))

    assert (last, first) == (pytest.approx(alone), pytest.approx(half))
    assert max(alone, half) + 0.01 < both < alone + half


def test_a_plan_keeps_most_of_the_power(bench: ModuleType) -> None:
    """Who did not plan is punished: look 2 at as many samples decides less often."""
    once, planned, unplanned = (
        bench.power_of_plan(sizes, planned=plan, runs=400)[0]
        for sizes, plan in (((2069,), None), ((1035, 2069), 2069), ((1035, 2069), None))
    )

    assert planned > once - 0.05
    assert unplanned < planned - 0.05


def test_what_is_planned_decides_as_often_as_promised(bench: ModuleType) -> None:
    """Captions at the number that independent samples need decide in 29 to 64 %; six limits that
    are each planned alone are green together in 27 %."""
    found = {what: share for what, _, _, share in bench.measure_planned(quick=True)}

    assert found.pop("six limits, each as if alone") < 0.3
    assert len(found) == 7
    for what, share in found.items():
        assert 0.75 < share < 0.9, what


def test_captions_are_judged_by_their_images(bench: ModuleType) -> None:
    truth = bench.Truth(2_000, 0.04, 0.03)

    upper, lower, naive_upper, naive_lower = bench.simulate_captions(
        images=400, captions=5, truth=truth, together=1.0, runs=400
    )

    # 95 % plus or minus three standard deviations of 400 throws.
    assert 0.917 < upper < 0.983
    assert 0.917 < lower < 0.983
    assert max(naive_upper, naive_lower) < 0.85


def test_limits_of_grades_hold(bench: ModuleType) -> None:
    """A t-test's upper limit does not where whole losses are rare: the check can fail."""
    for name in ("mrr", "one in 200 loses all"):
        upper, lower, t_upper, _, worth = bench.simulate_grades(name, queries=300, runs=300)

        # 95 % less three standard deviations of 300 throws.
        assert min(upper, lower) > 0.912, name
        assert 1 < worth < 4
    assert t_upper < 0.85


@pytest.mark.parametrize("samples", [64, 512])
def test_what_few_samples_clip_passes_a_limit_in_few_runs(bench: ModuleType, samples: int) -> None:
    """By the bunches that were seen alone a share at its limit passed in up to 29 %."""
    _, before, now = bench.simulate_clipping(
        "exponential", samples=samples, clipping=6.4 / samples, runs=300
    )

    assert before > 0.09
    assert now < 0.05 + 0.02  # under the level, with two standard deviations of 300 throws


def test_a_family_keeps_the_level_of_one(bench: ModuleType) -> None:
    alone, together, _, _ = bench.simulate_family(limits=10, kept=1.0, runs=500)

    assert alone > 0.3
    assert together < 0.08


def test_paired_samples_are_an_order_less_than_unpaired_ones(bench: ModuleType) -> None:
    flips = bench.Flips(right_to_wrong=13.5, wrong_to_right=13.5, samples=1000)
    paired = bench.samples_to_settle(flips, confidence=0.95, limit=0.005, power=0.95)
    unpaired = bench.samples_unpaired(0.79, 0.79, limit=0.005, power=0.95, fixed_reference=False)

    passed, _, _ = bench.verdicts(bench.Truth(paired, 0.0135, 0.0135), limit=0.005)

    assert passed == pytest.approx(0.95, abs=0.01)
    assert unpaired / paired > 10


def test_the_page_holds_every_table_once(bench: ModuleType) -> None:
    text = bench.PAGE.read_text(encoding="utf-8")
    names = list(bench.list_tables(quick=True))

    replaced = bench.replace_tables(text, dict.fromkeys(names, "| new |"))

    assert replaced.count("| new |") == len(names) == text.count("<!-- table: ")


def test_a_page_without_its_marker_is_refused(bench: ModuleType) -> None:
    with pytest.raises(SystemExit, match="marker of table 'drop' stands 0 times"):
        bench.replace_tables("nothing", {"drop": ""})
