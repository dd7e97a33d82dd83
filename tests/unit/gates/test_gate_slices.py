"""Slices: an average hides what a part lost; chance alone never accuses one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from hashlib import sha256
from itertools import product
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import judge_accuracy, list_strengths
from pytest_quantgate.gates.slice_search import (
    FEWEST_SEARCHED,
    SEARCH_ALPHA,
    SEED,
    search_worst,
)
from pytest_quantgate.gates.slices import MOST_VALUES, SlicesSpec, align_columns, cut
from pytest_quantgate.statistics.family import SILENT
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.contents import Contents
from tests.unit.gates.gate_builders import (
    SAME_EXAMPLES,
    WHERE,
    accuracy_gate,
    all_text,
    make_outcomes,
)

CLASSES = ("cat", "dog", "fox", "owl", "rat")
LIGHTS = ("dawn", "day", "dusk", "lamp", "night")
AT = Where(file=WHERE.file, line=30, keys={"by": 31, "max_drop": 32, "min_samples": 33})
Columns = Mapping[str, Sequence[str]]


def slices(*by: str | tuple[str, ...], **changes: Any) -> SlicesSpec:
    names = tuple((one,) if isinstance(one, str) else one for one in by)
    values: dict[str, Any] = {"where": AT, "max_drop": Fraction(5, 100), **changes}
    return SlicesSpec(by=names, **values)


def draw_variant(
    seed: int, *, samples: int = 10_000, planted: float = 0.0, drop: float = 0.002
) -> tuple[Outcomes, Outcomes, Columns]:
    """Return FP16 at 80 %, a variant that flips 4 % and loses `drop`, and the light of each sample.

    `planted` is what one class in one light, 4 % of the samples, loses besides.
    """
    chance = random.Random(f"variant {seed}")
    kinds = list(product(range(len(CLASSES)), LIGHTS))
    cases = [kinds[i % len(kinds)] for i in range(samples)]
    before, after = [], []
    for case in cases:
        right = chance.random() < 0.8
        lost = 0.02 + drop + (planted if case == (2, "night") else 0.0)
        flips = chance.random() < (lost / 0.8 if right else 0.02 / 0.2)
        before.append(right)
        after.append(right is not flips)
    labels = tuple(label for label, _ in cases)
    fp16, quantized = (
        make_outcomes(correct, variant=name, labels=labels, class_names=CLASSES)
        for correct, name in ((before, "fp16"), (after, "fp8-attention"))
    )
    return fp16, quantized, {"light": [light for _, light in cases]}


def judge(seen: tuple[Outcomes, Outcomes, Columns], **limits: Any) -> Verdict:
    fp16, quantized, columns = seen
    gate = accuracy_gate(**{"max_drop": Fraction(2, 100), **limits})
    return judge_accuracy(fp16=fp16, quantized=quantized, gate=gate, columns=columns)


# -- what must hold -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_planted_slice_is_named_in_nineteen_of_twenty() -> None:
    """One class in one light loses 15 pp: 0.6 pp on average, which its limit allows."""
    named = searched = 0
    for seed in range(20):
        seen = draw_variant(seed, planted=0.15)
        alone = judge(seen)
        asked = judge(seen, slices=slices(("class", "light"), max_drop=Fraction(5, 100)))
        assert alone.passed, alone.headline
        named += (
            asked.code == "accuracy.slice-drop"
            and asked.figures["worst_slice"] == "class=fox, light=night"
        )
        searched += (
            alone.figures["suspect_slice"] == "class=fox, light=night"
            and alone.figures["suspect_confirmed"] is True
        )

    assert named >= 19
    assert searched >= 19


@pytest.mark.slow
def test_no_slice_of_twenty_good_variants_is_called_worse() -> None:
    for seed in range(100, 120):
        seen = draw_variant(seed)
        asked = judge(seen, slices=slices("class", "light", ("class", "light")))
        alone = judge(seen)

        assert asked.status is not Status.FAIL, asked.headline
        assert alone.figures["suspect_confirmed"] is False, alone.evidence
        assert alone.passed


# -- what a suite asks for ------------------------------------------------------------------------


def make_seen(
    *groups: tuple[str, int, int], samples_wrong: int = 0
) -> tuple[Outcomes, Outcomes, Columns]:
    """Return outcomes of (camera, samples, lost) a group."""
    before, after, cameras = [], [], []
    for camera, samples, lost in groups:
        before += [True] * samples
        after += [False] * lost + [True] * (samples - lost)
        cameras += [camera] * samples
    before[:samples_wrong] = [False] * samples_wrong
    return make_outcomes(before, variant="fp16"), make_outcomes(after), {"camera": cameras}


def test_the_slice_that_is_least_likely_within_leads() -> None:
    """One of one is all of it, and shows less than 60 of 400."""
    seen = make_seen(("left", 400, 60), ("new", 1, 1), ("right", 4_000, 0))

    verdict = judge(seen, max_drop=Fraction(5, 100), slices=slices("camera"))

    assert (verdict.status, verdict.code) == (Status.FAIL, "accuracy.slice-drop")
    assert verdict.headline == (
        "accuracy: scenes/classification: worst slice 'camera=left' drops 15.00 pp on 400 samples, "
        f"2 of 3 slices over slices.max_drop 5.00 pp ({AT.file}:32)"
    )
    assert verdict.evidence[:2] == (
        "slice 'camera=new': drop 100.00 pp, upper limit 100.00 pp (1 lost, 0 won of 1)",
        "slice 'camera=left': drop 15.00 pp, upper limit 18.26 pp (60 lost, 0 won of 400)",
    )
    assert verdict.evidence[3] == (
        "camera=left 100.00 -> 85.00 %, camera=new 100.00 -> 0.00 %, "
        "camera=right 100.00 -> 100.00 %"
    )
    assert "an average over all slices hides the loss of some" in verdict.cause
    assert verdict.brief == "2 of 3 slices over slices.max_drop 5.00 pp"
    assert verdict.next_step.startswith("exclude the worst layers")
    assert verdict.figures["slices_not_decided"] == 0


def test_a_slice_too_small_for_its_limit_is_named_and_open() -> None:
    seen = make_seen(("left", 400, 0), ("rare", 12, 0))

    verdict = judge(seen, slices=slices("camera"))

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "accuracy.slice-drop-open")
    assert any(
        "1 slice with fewer than 61 samples cannot show 5.00 pp, even without a loss: camera=rare "
        "(12); slices: min_samples: 61 names them and does not judge them" in line
        for line in verdict.evidence
    ), verdict.evidence


def test_a_slice_under_min_samples_is_named_and_not_judged() -> None:
    seen = make_seen(("left", 400, 0), ("rare", 12, 12))

    verdict = judge(seen, max_drop=Fraction(10, 100), slices=slices("camera", min_samples=61))

    assert verdict.passed
    assert f"not judged: 1 slice of fewer than 61 samples ({AT.file}:33): camera=rare (12)" in (
        verdict.evidence
    )


@pytest.mark.parametrize(
    ("seen", "asked", "status", "code", "words"),
    [
        (
            make_seen(("left", 100, 0), ("right", 100, 0)),
            slices("camera", "ligth"),
            Status.FAIL,
            "slices-unknown-column",
            ("slices by 'ligth', which no sample has (", "'class', 'camera'", "{keep: [ligth]}"),
        ),
        (
            make_seen(("left", 100, 0), ("right", 100, 0)),
            slices("camara"),
            Status.FAIL,
            "slices-unknown-column",
            ("did you mean 'camera'?",),
        ),
        (
            make_seen(("left", 400, 0)),
            slices("camera"),
            Status.INCONCLUSIVE,
            "slices-of-one-value",
            ("all 400 samples have 'camera=left'", "there is nothing to cut by 'camera' ("),
        ),
        (
            make_seen(*((f"{n}", 10, 0) for n in range(40))),
            slices("camera"),
            Status.INCONCLUSIVE,
            "slices-too-many",
            ("cuts 400 samples into 40 slices: 61 in each are the fewest that can show 5.00 pp",),
        ),
        (
            make_seen(("left", 100, 0), ("right", 100, 0)),
            slices("camera", min_samples=101),
            Status.INCONCLUSIVE,
            "slices-too-many",
            ("none has the 101 of min_samples",),
        ),
    ],
)
def test_what_cannot_be_judged_is_red_with_what_mends_it(
    seen: tuple[Outcomes, Outcomes, Columns],
    asked: SlicesSpec,
    status: Status,
    code: str,
    words: tuple[str, ...],
) -> None:
    verdict = judge(seen, max_drop=Fraction(5, 100), slices=asked)

    assert (verdict.status, verdict.code) == (status, f"accuracy.{code}"), verdict.headline
    for each in words:
        assert each in all_text(verdict)
    assert f"({AT.file}:31)" in verdict.headline
    assert verdict.cause
    assert verdict.next_step
    assert 0 < len(verdict.brief) <= 70
    gate = accuracy_gate(slices=asked)
    strengths = list_strengths(fp16=seen[0], quantized=seen[1], gate=gate, columns=seen[2])
    assert len(strengths) == 2


def test_a_cut_that_cannot_be_judged_hides_no_other() -> None:
    fp16, quantized, columns = make_seen(("left", 400, 60), ("right", 400, 0))
    seen = fp16, quantized, {**columns, "one": ["value"] * 800}

    for broken in ("unknown", "one"):
        verdict = judge(seen, max_drop=Fraction(1, 10), slices=slices(broken, "camera"))
        assert "accuracy.slice-drop" in (verdict.code, *verdict.other_codes)


def test_samples_without_columns_are_said_to_have_none() -> None:
    fp16, quantized, _ = make_seen(("left", 400, 0))
    alone: tuple[Outcomes, Outcomes, Columns] = (
        replace(fp16, class_names=()),
        replace(quantized, class_names=()),
        {},
    )
    verdict = judge(alone, slices=slices("camera"))
    assert "columns of these samples: none" in verdict.evidence
    assert "which no sample has (" in verdict.headline


@pytest.mark.parametrize(("samples", "status"), [(61, Status.PASS), (60, Status.INCONCLUSIVE)])
@pytest.mark.parametrize("least", [None, 61])
def test_as_many_samples_as_the_limit_takes_are_enough(
    samples: int, status: Status, least: int | None
) -> None:
    seen = make_seen(("left", samples, 0), ("right", samples, 0))
    verdict = judge(seen, max_drop=Fraction(10, 100), slices=slices("camera", min_samples=least))

    assert verdict.status is status
    assert verdict.code == ("" if status is Status.PASS else "accuracy.slices-too-many")
    assert ("worst_slice" in verdict.figures) is (status is Status.PASS)


def test_one_large_slice_is_judged_among_small_ones() -> None:
    """They are named; without any that can be judged, or among thousands, the cut is wrong."""
    for large, code in ((61, "accuracy.slice-drop-open"), (60, "accuracy.slices-too-many")):
        seen = make_seen(("left", large, 0), *((f"{n}", 2, 0) for n in range(9)))
        assert judge(seen, max_drop=Fraction(10, 100), slices=slices("camera")).code == code
    for count, code in ((999, "accuracy.slice-drop-open"), (1000, "accuracy.slices-too-many")):
        seen = make_seen(("left", 61, 0), *((f"{n}", 1, 0) for n in range(count)))
        assert judge(seen, max_drop=Fraction(10, 100), slices=slices("camera")).code == code


def test_the_worst_of_good_slices_is_named_by_its_loss() -> None:
    slices("class", ("class", "camera")).check()
    seen = make_seen(("left", 1_000, 3), ("right", 1_000, 1))
    verdict = judge(seen, slices=slices("camera"))

    assert verdict.passed
    assert verdict.figures["worst_slice"] == "camera=left"


def test_classes_are_called_so_and_stand_in_a_table() -> None:
    fp16, quantized, _ = make_seen(("left", 40, 0))
    verdict = judge((fp16, quantized, {}), max_class_drop=Fraction(5, 100))

    assert verdict.other_codes == ("accuracy.class-drop-open",)
    assert any("4 classes with fewer than 61 samples" in line for line in verdict.evidence)
    assert not any("->" in line for line in verdict.evidence)


@pytest.mark.parametrize("values", [1, 40])
def test_a_brief_of_a_long_column_fits_its_table(values: int) -> None:
    fp16, quantized, _ = make_seen(("left", 400, 0))
    name = "a column " * 9
    seen = fp16, quantized, {name: [str(n % values) for n in range(400)]}
    assert len(judge(seen, max_drop=Fraction(5, 100), slices=slices(name)).brief) == 70


def test_a_limit_that_no_number_shows_is_open() -> None:
    seen = make_seen(("left", 400, 0), ("right", 400, 0))
    verdict = judge(seen, slices=slices("camera", max_drop=Fraction(0)))

    assert (verdict.status, verdict.code) == (Status.INCONCLUSIVE, "accuracy.slices-too-many")
    assert "1000000000 in each are the fewest" in verdict.headline


def test_open_slices_are_ordered_by_loss_and_by_what_is_possible() -> None:
    """Two that lost the same share: the one that may have lost more leads; over is over."""
    seen = make_seen(("wide", 40, 2), ("narrow", 80, 4), ("edge", 100, 5), ("good", 400, 0))
    verdict = judge(seen, max_drop=Fraction(10, 100), slices=slices("camera"))

    named = [line.partition(":")[0] for line in verdict.evidence if line.startswith("slice ")]
    assert named == ["slice 'camera=wide'", "slice 'camera=narrow'", "slice 'camera=edge'"]
    assert verdict.figures["slices_over"] == 0
    assert verdict.figures["slices_not_decided"] == 3
    assert verdict.brief == "0 of 4 slices over slices.max_drop 5.00 pp, 3 not decided"
    assert verdict.cause == "too few samples in some slices for this limit and this rate of flips"
    assert verdict.next_step.endswith("accept a larger slices.max_drop on purpose")


def test_what_was_won_counts_against_what_was_lost() -> None:
    before = [True] * 50 + [False] * 50 + [True] * 400
    after = [False] * 50 + [True] * 50 + [True] * 400
    columns = {"camera": ["left"] * 100 + ["right"] * 400}
    seen = make_outcomes(before, variant="fp16"), make_outcomes(after), columns
    verdict = judge(seen, max_drop=Fraction(10, 100), slices=slices("camera"))

    assert (verdict.status, verdict.figures["slices_over"]) == (Status.INCONCLUSIVE, 0)


def test_a_label_without_a_name_is_called_by_its_number() -> None:
    fp16, quantized, _ = make_seen(("left", 1_000, 0))
    labels = tuple((0, 1, 2, 3, 7)[n % 5] for n in range(1_000))
    seen: tuple[Outcomes, Outcomes, Columns] = (
        replace(fp16, labels=labels),
        replace(quantized, labels=labels),
        {},
    )
    verdict = judge(seen, max_drop=Fraction(10, 100), slices=slices("class"))
    assert any("class=7 100.00 -> 100.00 %" in line for line in verdict.evidence)


def test_slices_of_two_cuts_with_one_name_are_both_judged() -> None:
    fp16, quantized, _ = make_seen(("left", 400, 60), ("right", 400, 0))
    columns = {
        "a": ["1, b=2"] * 400 + ["1"] * 400,
        "b": ["3"] * 400 + ["2"] * 200 + ["3"] * 200,
    }

    verdict = judge(
        (fp16, quantized, columns), max_drop=Fraction(1, 10), slices=slices("a", ("a", "b"))
    )

    assert (verdict.status, verdict.code) == (Status.FAIL, "accuracy.slice-drop")
    assert "2 of 5 slices over" in verdict.headline
    assert any("a=1, b=2 (by a, b) 100.00" in line for line in verdict.evidence)


def test_no_samples_at_all_are_not_compared() -> None:
    nothing = make_outcomes([])
    verdict = judge((nothing, nothing, {"camera": []}), slices=slices("camera", min_samples=30))
    assert (verdict.status, verdict.code) == (Status.INCOMPARABLE, "accuracy.unpaired")


def test_slices_that_cannot_be_cut_raise_no_alarm() -> None:
    seen = make_seen(("left", 400, 400))
    gate = accuracy_gate(slices=slices("camera"))

    found = list_strengths(fp16=seen[0], quantized=seen[1], gate=gate, columns=seen[2])

    assert found[1] == SILENT


def test_a_limit_on_classes_is_one_on_slices_by_class() -> None:
    fp16, quantized, columns = draw_variant(1, samples=1_000, planted=0.9)
    limit = Fraction(5, 100)

    by_class = judge((fp16, quantized, columns), max_drop=limit, max_class_drop=limit)
    by_slice = judge(
        (fp16, quantized, columns), max_drop=limit, slices=slices("class", max_drop=limit)
    )

    assert (
        by_class.figures["worst_class_drop_points"] == by_slice.figures["worst_slice_drop_points"]
    )
    assert by_slice.figures["worst_slice"] == f"class={by_class.figures['worst_class']}"
    assert (by_class.status, by_slice.status) == (Status.FAIL, Status.FAIL)


# -- the search -----------------------------------------------------------------------------------


def test_the_search_accuses_none_by_itself() -> None:
    """What it finds is in the evidence of a verdict that stays as it was."""
    verdict = judge(draw_variant(3, planted=0.15))

    assert verdict.passed
    assert verdict.code == ""
    assert verdict.evidence[-1] == "to judge it: slices: {by: [[class, light]], max_drop: ...}"
    assert (
        "searched 35 slices: the worst on one half is 'class=fox, light=night'"
        in (verdict.evidence[-2])
    )


def test_samples_of_one_cluster_are_in_one_half() -> None:
    """A loss that is the same picture a hundred times is on one side alone: it is not confirmed."""
    clusters = tuple(0 if i < 200 else i for i in range(4_000))
    fp16 = make_outcomes([True] * 4_000, variant="fp16", clusters=clusters)
    quantized = make_outcomes([i >= 200 for i in range(4_000)], clusters=clusters)
    columns = {"camera": ["left" if i < 600 else "right" for i in range(4_000)]}

    found = search_worst(fp16, quantized, columns=columns, limit=Fraction(1, 100))

    assert found is not None
    assert min(found.found.right_to_wrong, found.again.right_to_wrong) == 0
    assert not found.is_confirmed


def test_of_classes_alone_only_what_is_confirmed_is_said() -> None:
    good, bad = draw_variant(5), draw_variant(5, planted=0.9)

    assert "suspect_slice" not in judge((*good[:2], {})).figures
    assert judge((*bad[:2], {}), max_drop=Fraction(5, 100)).figures["suspect_slice"] == "class=fox"


@pytest.mark.parametrize("samples", [1, 59])
def test_few_samples_are_not_searched(samples: int) -> None:
    seen = make_seen(("left", samples, 0), ("right", 5, 0))

    assert search_worst(seen[0], seen[1], columns=seen[2], limit=Fraction(1, 100)) is None


def test_half_the_samples_are_searched_and_the_other_half_tested() -> None:
    """By the SHA-256 of seed and name, so that every run looks at the same."""
    seen = make_seen(("left", 300, 90), ("right", 300, 0))
    found = search_worst(seen[0], seen[1], columns=seen[2], limit=Fraction(1, 100))

    assert found is not None
    assert (found.name, found.searched, found.found.samples) == ("camera=left", 2, 151)
    assert found.found.samples + found.again.samples == 300
    assert found.is_confirmed
    assert found.describe(Fraction(1, 100)).endswith(
        f"of {found.again.samples}, over max_drop 1.00 pp there too (chance {found.chance:.2g})"
    )
    open_ = replace(found, chance=SEARCH_ALPHA * 1.001)
    assert replace(found, chance=SEARCH_ALPHA).is_confirmed
    assert open_.describe(Fraction(1, 100)).endswith("not shown to be over max_drop 1.00 pp")


def test_slices_that_are_all_samples_or_too_small_in_a_half_are_not_searched() -> None:
    fp16, quantized, _ = make_seen(("left", 400, 0))
    one = {"camera": ["left"] * 400, "day": ["mon"] * 400}
    assert search_worst(fp16, quantized, columns=one, limit=Fraction(1, 100)) is None
    values = [str(n) for n in range(MOST_VALUES)]
    column = [*values, *["rest"] * 400]
    samples = len(column)
    many = make_outcomes([True] * samples, variant="fp16"), make_outcomes([True] * samples)
    found = search_worst(*many, columns={"n": column}, limit=Fraction(1, 100))
    assert found is None  # one value more than are looked at
    fewer = [*values[1:], *["rest"] * 401]
    found = search_worst(*many, columns={"n": fewer}, limit=Fraction(1, 100))
    assert found is not None
    assert found.searched == 1


def test_as_many_samples_in_a_half_as_are_searched_are_enough() -> None:
    outcomes = make_outcomes([True] * 400, variant="fp16"), make_outcomes([True] * 400)
    halves = search_worst(*outcomes, columns={"all": ["a"] * 399 + ["b"]}, limit=Fraction(1, 100))
    assert halves is not None
    first = halves.found.samples  # of the 399
    ids = outcomes[0].ids
    inside = [sha256(f"{SEED}: {name}".encode()).digest()[0] % 2 == 0 for name in ids]
    assert first == sum(inside[:399])
    chosen = [n for n, is_first in enumerate(inside) if is_first][:FEWEST_SEARCHED]
    chosen += [n for n, is_first in enumerate(inside) if not is_first][:FEWEST_SEARCHED]
    for left_out, searched in ((0, 2), (1, 1)):
        few = set(chosen[left_out:])
        column = ["few" if n in few else "rest" for n in range(400)]
        found = search_worst(*outcomes, columns={"c": column}, limit=Fraction(1, 100))
        assert found is not None
        assert found.searched == searched


@pytest.mark.parametrize(("samples", "together"), [(540, True), (539, False)])
def test_columns_are_searched_together_where_their_slices_are_large_enough(
    samples: int, together: bool
) -> None:
    """Nine slices of 60 samples would be: 540. One of them is nearly all."""
    columns = {"a": ["1", "2", *["0"] * (samples - 2)], "b": [*["0"] * (samples - 2), "1", "2"]}
    outcomes = make_outcomes([True] * samples, variant="fp16"), make_outcomes([True] * samples)
    found = search_worst(*outcomes, columns=columns, limit=Fraction(1, 100))
    assert found is not None
    assert found.searched == (3 if together else 2)


def test_evidence_names_four_slices_and_lists_a_dozen() -> None:
    for count, lines in ((12, 1), (13, 0)):
        seen = make_seen(*((f"{n:02d}", 100, 30) for n in range(count)))
        verdict = judge(seen, max_drop=Fraction(1, 2), slices=slices("camera"))
        assert sum(line.startswith("slice 'camera=") for line in verdict.evidence) == 4
        assert sum(line.startswith("camera=00 100.00 -> 70.00 %") for line in verdict.evidence) == (
            lines
        )


@given(
    values=st.lists(
        st.tuples(*[st.text(alphabet="x, b=", max_size=6)] * 2), min_size=1, max_size=30
    )
)
@example(values=[("x, b=x", "x"), ("x", "x, b=x")])
@SAME_EXAMPLES
def test_every_sample_is_in_one_slice_of_a_cut(values: list[tuple[str, str]]) -> None:
    columns = {"a": [a for a, _ in values], "b": [b for _, b in values]}

    for by in (("a",), ("a", "b")):
        places = [place for inside in cut(columns, by).values() for place in inside]
        assert sorted(places) == [*range(len(values))]


# -- what the data says ---------------------------------------------------------------------------


def shown(*ids: str, **columns: tuple[str, ...]) -> Contents:
    return Contents(ids=ids, pixels=ids, looks=ids, columns=columns)


def test_outcomes_of_one_sample_have_what_the_data_says_of_it() -> None:
    """Captions of an image are called by its id and a number; an id may hold a # itself."""
    contents = shown("a", "b#1", light=("day", "night"))

    found = align_columns(contents, ("b#1", "a#0", "a#1", "b#1#0"))

    assert found == {"light": ("night", "day", "day", "night")}


def test_outcomes_of_no_sample_have_no_columns() -> None:
    assert align_columns(shown("a", light=("day",)), ("a", "query-1")) == {}


@pytest.mark.parametrize("metric", ["acc1", "mean_per_class_recall"])
def test_graded_outcomes_are_cut_as_others_are(metric: str) -> None:
    fp16, quantized, columns = make_seen(("left", 400, 0), ("right", 400, 0))
    half = tuple(0.5 if i < 400 else right for i, right in enumerate(quantized.correct))
    graded = replace(quantized, correct=half, value=0.75, metric=metric)

    verdict = judge((replace(fp16, metric=metric), graded, columns), slices=slices("camera"))

    assert verdict.figures["worst_slice"] == "camera=left"
    assert "(400 graded samples)" in all_text(verdict)
    assert verdict.figures["worst_slice_drop_points"] == pytest.approx(50)
