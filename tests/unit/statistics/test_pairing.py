"""Pairing: every sample of one variant meets itself in the other, or nothing is compared."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_quantgate.evidence.outcomes import Outcomes, round_score
from pytest_quantgate.statistics.intervals import (
    ClassCounts,
    Flips,
    Share,
    clustered_samples,
    drop_limits,
)
from pytest_quantgate.statistics.pairing import Unpaired, Worth, pair_outcomes, pair_stored
from pytest_quantgate.store.baselines import store_outcomes
from tests.unit.gates.gate_builders import (
    CLASSES,
    SAME_EXAMPLES,
    make_class_pair,
    make_hits,
    make_outcomes,
    make_pair,
)


def shuffled(outcomes: Outcomes, *, seed: int = 3) -> Outcomes:
    order = list(range(len(outcomes.ids)))
    random.Random(seed).shuffle(order)
    mixed: dict[str, Any] = {
        name: tuple(getattr(outcomes, name)[i] for i in order)
        for name in ("ids", "correct", "answers", "labels", "clusters")
        if getattr(outcomes, name)
    }
    return replace(outcomes, **mixed)


def test_flips_are_counted_in_both_directions() -> None:
    fp16, quantized = make_pair(100, lost=7, won=3, other_answers=5, both_wrong=20)

    found = pair_outcomes(before=fp16, after=quantized)

    assert (found.samples, found.before_right, found.after_right) == (100, 77, 73)
    assert (found.right_to_wrong, found.wrong_to_right) == (7, 3)
    assert found.changed == 15
    assert found.drop == pytest.approx(0.04)


def test_order_of_samples_does_not_matter() -> None:
    fp16, quantized = make_pair(100, lost=7, won=3, other_answers=5)

    assert pair_outcomes(before=fp16, after=shuffled(quantized)) == pair_outcomes(
        before=fp16, after=quantized
    )


def test_classes_are_counted_by_themselves() -> None:
    fp16, quantized = make_class_pair(("cat", 10, 3, 0), ("dog", 20, 1, 2))

    assert pair_outcomes(before=fp16, after=quantized).classes == (
        ("cat", ClassCounts(samples=10, right=7, right_to_wrong=3, wrong_to_right=0)),
        ("dog", ClassCounts(samples=20, right=19, right_to_wrong=1, wrong_to_right=2)),
    )


def test_class_without_a_name_is_called_by_its_number() -> None:
    fp16 = make_outcomes([True, True], labels=(0, len(CLASSES)))

    names = [name for name, _ in pair_outcomes(before=fp16, after=fp16).classes]

    assert names == ["cat", "4"]


def test_in_retrieval_only_hits_and_misses_count_as_changed() -> None:
    """Another first match among several that are right is no change."""
    fp16 = make_hits([True, True, False, True, False])
    quantized = make_hits([True, False, True, True, False], answers=(9, 8, 7, 6, 5))

    found = pair_outcomes(before=fp16, after=quantized)

    assert (found.right_to_wrong, found.wrong_to_right, found.changed) == (1, 1, 2)
    assert found.classes == ()


FOUR = make_outcomes([True, True, False, True])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ids": ("image-00000", "image-00001", "image-00002", "image-00009")},
            "the sample ids differ: 1 only in fp16, 1 only in fp8-attention, first 'image-00003'",
        ),
        (
            {"ids": ("image-00000", "image-00001", "image-00002", "image-00002")},
            "fp8-attention has the sample 'image-00002' more than once",
        ),
        (
            {"ids": (), "correct": (), "answers": (), "labels": ()},
            "fp8-attention has no samples",
        ),
        (
            {"data_digest": "e" * 64},
            "^the data differs: fp16 d{12}, fp8-attention e{12}$",
        ),
        ({"labels": (0, 1, 2, 0)}, "labels or class names differ"),
        ({"class_names": tuple(reversed(CLASSES))}, "labels or class names differ"),
    ],
)
def test_what_is_not_the_same_is_not_paired(changes: dict[str, Any], message: str) -> None:
    fp16 = replace(FOUR, variant="fp16")

    with pytest.raises(Unpaired, match=message):
        pair_outcomes(before=fp16, after=replace(FOUR, **changes))


def test_doubled_sample_of_fp16_is_found_too() -> None:
    fp16 = replace(FOUR, variant="fp16", ids=("a", "a", "b", "c"))

    with pytest.raises(Unpaired, match="fp16 has the sample 'a' more than once"):
        pair_outcomes(before=fp16, after=FOUR)


def test_stored_outcomes_pair_like_the_fresh_ones() -> None:
    before, now = make_pair(100, lost=7, won=3, both_wrong=10)

    found = pair_stored(stored=store_outcomes(shuffled(before)), now=shuffled(now, seed=4))

    assert (found.samples, found.right_to_wrong, found.wrong_to_right) == (100, 7, 3)
    assert (found.before_right, found.after_right, found.changed) == (87, 83, 10)
    assert found.classes == pair_outcomes(before=before, after=now).classes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"ids_digest": "0" * 64},
            r"^the sample ids differ: 4 in the baseline \(0{12}\), 4 now \([0-9a-f]{12}\)$",
        ),
        ({"samples": 5}, "the sample ids differ: 5 in the baseline"),
        ({"data_digest": "e" * 64}, "^the data differs: baseline e{12}, now d{12}$"),
        ({"correct_bits": ""}, "^the baseline is damaged: 0 bytes cannot hold 4 outcomes$"),
        ({"value": float("nan")}, "^the baseline is damaged: its value is nan$"),
    ],
)
def test_stored_outcomes_of_something_else_are_not_paired(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Unpaired, match=message):
        pair_stored(stored=replace(store_outcomes(FOUR), **changes), now=FOUR)


def test_stored_outcomes_are_not_paired_with_doubled_samples() -> None:
    now = replace(FOUR, ids=("a", "a", "b", "c"))

    with pytest.raises(Unpaired, match=r"^fp8-attention has the sample 'a' more than once$"):
        pair_stored(stored=store_outcomes(FOUR), now=now)


def test_samples_that_stand_for_themselves_are_worth_their_number() -> None:
    before, now = make_pair(100, lost=7, won=3, other_answers=5)

    found = pair_outcomes(before=before, after=now)

    assert found.worth is None
    assert found.flips == Flips(right_to_wrong=7, wrong_to_right=3, samples=100)
    assert found.right_share == Share(count=found.after_right, samples=100)
    assert found.changed_share == Share(count=15, samples=100)


# -- captions of one image ------------------------------------------------------------------------


def make_captions(
    lost_images: int, *, images: int = 200, each: int = 5, together: bool = True
) -> tuple[Outcomes, Outcomes]:
    """Return hits of captions; `lost_images` lose all captions, or as many are lost one each."""
    clusters = tuple(i for i in range(images) for _ in range(each))
    lost = (
        set(range(lost_images * each))
        if together
        else {i * each for i in range(lost_images * each)}
    )
    before = make_hits([True] * len(clusters), variant="fp16", clusters=clusters)
    after = make_hits([i not in lost for i in range(len(clusters))], clusters=clusters)
    return before, after


def test_captions_that_are_lost_together_are_worth_their_images() -> None:
    before, after = make_captions(10)

    pairs = pair_outcomes(before=before, after=after)

    assert pairs.worth is not None
    assert pairs.worth.clusters == 200
    assert pairs.flips.samples == pytest.approx(200, rel=0.05)
    assert pairs.flips.value == pytest.approx(pairs.drop)
    assert pairs.changed_share.samples == pytest.approx(pairs.flips.samples)
    assert pairs.right_share.samples == pytest.approx(pairs.flips.samples)


def test_a_cluster_is_weighed_by_what_its_samples_lost_less_what_they_won() -> None:
    """Exact: the first image loses both captions, the second wins one of two, the third none."""
    clusters = (0, 0, 1, 1, 2)
    before = make_hits([True, True, True, False, True], variant="fp16", clusters=clusters)
    after = make_hits([False, False, True, True, True], clusters=clusters)

    found = pair_outcomes(before=before, after=after).worth

    sizes = [2, 2, 1]
    assert found == Worth(
        clusters=3,
        drop=clustered_samples(sizes=sizes, totals=[2, -1, 0], moved=3),
        right=clustered_samples(sizes=sizes, totals=[0, 2, 1], moved=3),
        changed=clustered_samples(sizes=sizes, totals=[2, 1, 0], moved=3),
    )


#: Of each sample: its class, the image that it is a copy of, and whether it was and is right.
COPIES = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 2), st.booleans(), st.booleans()),
    min_size=1,
    max_size=24,
)


@SAME_EXAMPLES
@given(rows=COPIES)
@example(rows=[(0, 0, True, False), (0, 0, True, False), (0, 1, True, True), (0, 2, True, True)])
@example(rows=[(0, 0, True, True), (0, 0, True, True), (0, 1, False, False), (0, 2, True, True)])
def test_each_class_is_worth_what_its_own_images_are(
    rows: list[tuple[int, int, bool, bool]],
) -> None:
    """The less of what its drop and its share are worth; copies are never of two classes."""
    labels = tuple(label for label, *_ in rows)
    clusters = tuple(3 * label + image for label, image, *_ in rows)
    common: dict[str, Any] = {"labels": labels, "clusters": clusters}
    before = make_outcomes([was for *_, was, _ in rows], variant="fp16", **common)
    after = make_outcomes([now for *_, now in rows], **common)

    found = pair_outcomes(before=before, after=after)
    again = pair_stored(stored=store_outcomes(before), now=shuffled(after))

    for label in set(labels):
        mine = [(image, was, now) for other, image, was, now in rows if other == label]
        images = sorted({image for image, *_ in mine})
        worth = []
        for values in ([was - now for _, was, now in mine], [int(now) for *_, now in mine]):
            inside = dict.fromkeys(images, 0)
            for (image, *_), value in zip(mine, values, strict=True):
                inside[image] += value
            worth.append(
                clustered_samples(
                    sizes=[sum(image == other for other, *_ in mine) for image in images],
                    totals=list(inside.values()),
                    moved=sum(abs(value) for value in values),
                )
            )
        expected = min(worth) if len(images) < len(mine) else len(mine)
        for counts in (dict(found.classes)[CLASSES[label]], dict(again.classes)[CLASSES[label]]):
            assert counts.independent == pytest.approx(expected)


def test_captions_that_are_lost_apart_are_worth_more() -> None:
    before, after = make_captions(10, together=False)

    pairs = pair_outcomes(before=before, after=after)

    assert pairs.flips.samples > 600
    assert pairs.flips.value == pytest.approx(0.05)


def test_a_baseline_takes_the_clusters_of_today_in_its_own_order() -> None:
    before, after = make_captions(10)
    mixed = shuffled(after)

    expected = pair_outcomes(before=before, after=after)

    assert pair_outcomes(before=before, after=mixed) == expected
    assert pair_stored(stored=store_outcomes(before), now=mixed).flips == expected.flips


def make_grades(*moves: tuple[float, float], **changes: Any) -> tuple[Outcomes, Outcomes]:
    """Return queries that scored the one before and the other after."""
    before, after = zip(*moves, strict=True)
    return make_hits(before, variant="fp16", **changes), make_hits(after, **changes)


def test_what_grades_lost_and_won_is_summed_and_counted() -> None:
    """Exact: (1/4 + 1/16 + 1 + 9/16)^2 / (1/8 + 1/64 + 1 + 27/64) = 9/4 moved, as much each way."""
    before, after = make_grades((True, 0.5), (0.25, 0.5), (0.5, 0.5), (False, True), (0.75, False))

    found = pair_outcomes(before=before, after=shuffled(after))

    assert (found.right_to_wrong, found.wrong_to_right, found.changed) == (2, 2, 4)
    assert (found.lost, found.won) == (1.125, 1.125)
    assert (found.before_right, found.after_right) == (2.5, 2.5)
    assert found.graded
    assert found == pair_stored(stored=store_outcomes(before), now=shuffled(after))


def test_grades_are_worth_what_their_variance_says() -> None:
    """Exact: 1/2 is lost once in four; whole ones of that mean would vary by 1/8 - 1/64."""
    moves = ((True, 0.5), (True, True), (True, True), (True, True))
    found = pair_outcomes(before=make_grades(*moves)[0], after=make_grades(*moves)[1]).worth

    whole, real = 1 / 8 - 1 / 64, 4 / 3 * (1 / 16 - 1 / 64)
    assert found is not None
    assert found.clusters is None
    assert found.drop == pytest.approx((whole + 1 / 4) / (real / 4 + 1 / 16))
    assert found.changed == 4


def test_grades_that_move_little_know_the_drop_better() -> None:
    """Half as much of twice as many: as good as about twice as many samples that are whole."""
    halves = [(1.0, 0.5)] * 200 + [(0.5, 0.5)] * 1800
    before, after = make_grades(*halves)
    flips = pair_outcomes(before=before, after=after).flips

    assert flips.value == pytest.approx(0.05)
    assert flips.variance == pytest.approx((0.05 / 2 - 0.05**2) / 2000, rel=0.02)
    assert 4000 < flips.samples < 4200


def test_few_large_losses_are_not_hidden_by_many_small_moves() -> None:
    """Ten whole losses of 2,000, behind 800 moves of 0.03: about as if they stood alone."""
    small = [(0.5, 0.53), (0.5, 0.47)] * 400
    before, after = make_grades(*[(True, False)] * 10, *small, *[(0.5, 0.5)] * 1190)
    alone = Flips(right_to_wrong=10, wrong_to_right=0, samples=2000)

    flips = pair_outcomes(before=before, after=after).flips

    assert flips.value == pytest.approx(0.005)
    assert flips.rate * 2000 < 12
    for confidence in (0.9, 0.95, 0.99):
        found, whole = (drop_limits(of, confidence=confidence) for of in (flips, alone))
        assert found.high == pytest.approx(whole.high, rel=0.02)


def test_a_grade_that_did_not_move_shows_no_more_than_one_that_is_whole() -> None:
    """Nothing was lost yet: what is lost next may be a whole query."""
    before, after = make_grades(*[(0.5, 0.5)] * 300)

    assert pair_outcomes(before=before, after=after).flips.samples == pytest.approx(300, rel=0.01)


def test_grades_in_clusters_are_worth_no_more_than_apart() -> None:
    moves = [(1.0, 0.5)] * 20 + [(0.5, 0.5)] * 180
    alone = pair_outcomes(before=make_grades(*moves)[0], after=make_grades(*moves)[1])
    clusters = tuple(i // 5 for i in range(200))
    before, after = make_grades(*moves, clusters=clusters)
    together = pair_outcomes(before=before, after=after)

    assert alone.worth is not None
    assert together.worth is not None
    assert together.worth.clusters == 40
    assert together.worth.drop < alone.worth.drop / 3
    assert together.worth.changed == pytest.approx(40, rel=0.1)


def test_of_graded_classes_another_score_counts_as_changed() -> None:
    before = make_outcomes([0.5, 0.5, True, True], variant="fp16")
    after = make_outcomes([0.5, 0.25, True, True], answers=(1, *before.answers[1:]))

    found = pair_outcomes(before=before, after=after)

    assert found.changed == 1
    assert dict(found.classes)["dog"].right_to_wrong == 0.25
    assert dict(found.classes)["fox"].worth == 1


@SAME_EXAMPLES
@given(moves=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
@example(moves=[(0.1, 0.0), (0.3, 0.2), (0.7, 0.6)])
def test_a_graded_drop_is_the_mean_of_the_differences(moves: list[tuple[float, float]]) -> None:
    kept = [(round_score(was), round_score(now)) for was, now in moves]
    before, after = make_grades(*kept)

    found = pair_outcomes(before=before, after=after)
    turned = pair_outcomes(before=after, after=before)

    assert found.drop == pytest.approx(sum(a - b for a, b in kept) / len(kept), abs=1e-12)
    assert found.flips.value == pytest.approx(found.drop, abs=1e-12)
    assert turned.drop == pytest.approx(-found.drop, abs=1e-12)
    assert turned.flips.samples == pytest.approx(found.flips.samples)
    limits = drop_limits(found.flips, confidence=0.95)
    assert -1 <= limits.low <= found.drop + 1e-9
    assert found.drop - 1e-9 <= limits.high <= 1


def test_a_caption_for_each_image_stands_for_itself() -> None:
    before, after = make_captions(3, each=1)

    pairs = pair_outcomes(before=before, after=after)

    assert pairs.worth is None
    assert pairs.flips.samples == 200


def test_other_clusters_cannot_be_compared() -> None:
    before, after = make_captions(3)

    with pytest.raises(Unpaired, match="clusters of the samples differ"):
        pair_outcomes(before=before, after=replace(after, clusters=()))


def test_a_slice_is_counted_wherever_its_samples_stand() -> None:
    """Places are those of one side; the other side, and a baseline, have them in another order."""
    before = make_outcomes((True, True, False, True, False))
    after = make_outcomes((False, True, True, True, False))
    turned = shuffled(after)
    place = {name: index for index, name in enumerate(turned.ids)}
    slices = {"night": [0, 2, 3], "day": [1, 4]}

    found = dict(pair_outcomes(before=before, after=turned, slices=slices).slices)
    night = {"night": [place[before.ids[i]] for i in slices["night"]]}
    stored = dict(pair_stored(stored=store_outcomes(before), now=turned, slices=night).slices)

    assert (found["night"].right_to_wrong, found["night"].wrong_to_right) == (1, 1)
    assert (found["day"].samples, found["day"].right, found["day"].drop) == (2, 1, 0)
    assert stored["night"] == found["night"]
