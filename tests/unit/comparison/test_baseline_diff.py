"""Two baselines: results paired sample by sample, digests, versions, reasons."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.comparison.baseline_files import (
    compare_record,
    compare_records,
    read_records,
)
from pytest_quantgate.comparison.changes import DiffError
from pytest_quantgate.comparison.paths import compare_paths
from pytest_quantgate.errors import BaselineError
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.latency import Machine
from pytest_quantgate.evidence.outcomes import StoredOutcomes, pack_scores
from pytest_quantgate.statistics.intervals import Flips, drop_limits
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.records import Chain, LatencyRecord, Record
from tests.unit.comparison.mirrored import mirror

NAME = "clip scenes/classification-acc1"
LABELS = ("old", "new")


def outcomes(correct: list[bool], *, ids: str = "ids", data: str = "data") -> StoredOutcomes:
    return StoredOutcomes(
        samples=len(correct),
        ids_digest=hashlib.sha256(ids.encode()).hexdigest(),
        correct_bits=pack_scores(correct),
        value=sum(correct) / len(correct),
        data_digest=hashlib.sha256(data.encode()).hexdigest(),
    )


def record(
    correct: list[bool], *, suite: str = "clip", key: str = "scenes/classification-acc1"
) -> Record:
    return Record(
        suite=suite,
        key=key,
        task="scenes/classification",
        metric="acc1",
        fp16=outcomes([True] * len(correct)),
        accepted=outcomes(correct),
        first=outcomes(correct),
        first_fp16=outcomes([True] * len(correct)),
        fingerprint=Fingerprint(
            model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64
        ),
        versions={"torch": "2.15.0"},
        created="2026-11-01",
        updated="2026-11-01",
        reason="measured",
        first_accepted="2026-11-01",
        first_reason="measured",
    )


RIGHT = [True] * 95 + [False] * 5


def test_record_is_the_same_as_itself() -> None:
    assert compare_record(record(RIGHT), record(list(RIGHT)), name=NAME) == []


def test_change_of_the_variant_is_paired_with_its_interval() -> None:
    worse = [False] * 8 + [True] * 87 + [True] * 2 + [False] * 3

    (change,) = compare_record(record(RIGHT), record(worse), name=NAME)

    limits = drop_limits(Flips(right_to_wrong=8, wrong_to_right=2, samples=100), confidence=0.95)
    assert change.figures["right_to_wrong"] == 8
    assert change.figures["wrong_to_right"] == 2
    assert change.figures["change_points"] == pytest.approx(-6)
    assert change.figures["change_low_points"] == pytest.approx(-limits.high * 100)
    assert change.figures["change_high_points"] == pytest.approx(-limits.low * 100)
    assert change.text == (
        f"{NAME}: quantized 95.00 % -> 89.00 %, change -6.00 "
        f"[{-limits.high * 100:.2f}, {-limits.low * 100:.2f}] pp: a loss"
    )
    assert change.lines == (
        "10 flips on 100 samples: 8 right to wrong, 2 wrong to right "
        "(paired, one-sided 95% limits)",
    )


@pytest.mark.parametrize("moved", ["FP16", "quantized"])
def test_slot_that_comes_to_hold_the_other_ones_outcomes_is_named(moved: str) -> None:
    before = record([False] * 12 + [True] * 88)
    after = (
        replace(before, fp16=before.accepted)
        if moved == "FP16"
        else replace(before, accepted=before.fp16, first=before.fp16)
    )
    other = "quantized" if moved == "FP16" else "FP16"

    there, back = (
        [c for c in compare_record(one, two, name=NAME) if c.kind.startswith("slots")]
        for one, two in ((before, after), (after, before))
    )

    assert [c.text for c in there] == [
        f"{NAME}: the {moved} slot now holds what the {other} slot holds, sample by sample"
    ]
    assert [c.kind for c in back] == ["slots apart"]


def test_few_samples_that_come_to_agree_are_no_exchanged_slot() -> None:
    found = compare_record(record([False] * 9 + [True] * 91), record([True] * 100), name=NAME)

    assert [change.kind for change in found] == ["accuracy"]


def latency_record(**changes: object) -> LatencyRecord:
    made = LatencyRecord(
        suite="clip",
        key="onnxruntime-vision-batch8",
        runtime="onnxruntime",
        machine=Machine(system="Linux", processor="a", cores=8, threads=1, device="cpu"),
        rounds=30,
        fp16_ms=100.0,
        quantized_ms=60.0,
        versions={"torch": "2.15.0"},
        created="2026-11-01",
        updated="2026-11-01",
        reason="measured",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_baselines_of_latency_stand_beside_the_others(tmp_path: Path) -> None:
    for folder, processor in (("a", "a"), ("b", "b")):
        store = Store(tmp_path / folder)
        store.write(record(RIGHT))
        machine = replace(latency_record().machine, processor=processor)
        store.write(latency_record(machine=machine, quantized_ms=61.0))

    found = compare_paths(tmp_path / "a", tmp_path / "b")
    single = compare_paths(*(next((tmp_path / f).rglob("latency-*.json")) for f in ("a", "b")))

    assert [c.text for c in found.changes] == [
        "another machine: clip latency onnxruntime-vision-batch8: processor: a -> b"
    ]
    assert [c.text for c in single.changes] == [c.text for c in found.changes]


def test_clock_times_of_a_machine_alone_are_no_change() -> None:
    name = "clip latency x"

    found = compare_records(
        {name: latency_record()}, {name: latency_record(fp16_ms=101.0)}, labels=LABELS
    )

    assert found.changes == ()


@pytest.mark.parametrize(
    ("lost", "won", "words"),
    [(0, 5, "a gain"), (2, 1, "no change that the samples can show"), (20, 0, "a loss")],
)
def test_interval_is_put_into_words(lost: int, won: int, words: str) -> None:
    after = [False] * lost + [True] * (95 - lost) + [True] * won + [False] * (5 - won)

    (change,) = compare_record(record(RIGHT), record(after), name=NAME)

    assert change.text.endswith(f"pp: {words}")


def test_flips_without_a_change_of_the_value_are_named() -> None:
    swapped = [False] + [True] * 94 + [True] + [False] * 4

    (change,) = compare_record(record(RIGHT), record(swapped), name=NAME)

    assert "95.00 % -> 95.00 %, change 0.00" in change.text
    assert change.figures["right_to_wrong"] == change.figures["wrong_to_right"] == 1


def test_fp16_that_moved_is_named_as_fp16() -> None:
    moved = replace(record(RIGHT), fp16=outcomes([True] * 99 + [False]))

    (change,) = compare_record(record(RIGHT), moved, name=NAME)

    assert change.text.startswith(f"{NAME}: FP16 100.00 % -> 99.00 %")


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (outcomes(RIGHT, ids="other"), "the samples differ (100 -> 100, ids "),
        (outcomes(RIGHT[:-1]), "the samples differ (100 -> 99, ids "),
        (outcomes(RIGHT, data="other"), "the data differs ("),
    ],
)
def test_other_samples_are_never_paired(after: StoredOutcomes, words: str) -> None:
    changes = compare_record(
        record(RIGHT), replace(record(RIGHT), accepted=after, first=after), name=NAME
    )

    assert [change.kind for change in changes] == ["not paired"]
    assert words in changes[0].text


def test_digests_versions_and_reasons_are_named() -> None:
    before = record(RIGHT)
    after = replace(
        before,
        fingerprint=replace(before.fingerprint, recipe="e" * 64),
        versions={"torch": "2.16.0", "numpy": "2.4.6"},
        reason="new torch",
        updated="2026-11-21",
    )

    assert [change.text for change in compare_record(before, after, name=NAME)] == [
        f"{NAME}: recipe or exclude list: dddddddddddd -> eeeeeeeeeeee",
        f"{NAME}: torch: 2.15.0 -> 2.16.0",
        f"{NAME}: numpy: 2.4.6 (was not there)",
        f"{NAME}: reason: measured -> new torch",
        f"{NAME}: updated: 2026-11-01 -> 2026-11-21",
    ]


def test_settings_recipe_entries_chains_and_verdicts_are_named() -> None:
    chain = Chain(
        first_accepted="2026-10-01",
        first_reason="why",
        ended="2026-11-01",
        reason="new set",
        samples=100,
        data_digest="7" * 64,
        first_fp16_value=0.9,
        first_value=0.9,
        last_fp16_value=0.9,
        last_value=0.88,
    )
    made = replace(
        record(RIGHT).fingerprint,
        settings={"dtype": "float16", "recipe exclude": ""},
        recipe_entries=("*: off", "*q: E4M3"),
    )
    before = replace(record(RIGHT), fingerprint=made, verdicts={"parity": "PASS"})
    after = replace(
        before,
        fingerprint=replace(
            made,
            settings={"dtype": "bfloat16", "recipe exclude": "text*"},
            recipe_entries=("*: off", "*q: INT8"),
        ),
        chains=(chain,),
        verdicts={"parity": "NOT_MEASURED"},
        first_fp16=outcomes([True] * 99 + [False]),
    )

    assert [change.text for change in compare_record(before, after, name=NAME)] == [
        f"{NAME}: FP16 of the first accepted 100.00 % -> 99.00 %, change -1.00 [-4.74, +2.25] pp: "
        f"no change that the samples can show",
        f"{NAME}: dtype: float16 -> bfloat16",
        f"{NAME}: recipe exclude: none -> text*",
        f"{NAME}: recipe entry removed: *q: E4M3",
        f"{NAME}: recipe entry added: *q: INT8",
        f"{NAME}: accepted before, 1: {chain.describe()} (was not there)",
        f"{NAME}: parity of its run: PASS -> NOT_MEASURED",
    ]


def test_order_of_the_recipe_and_unknown_settings_are_named() -> None:
    made = replace(record(RIGHT).fingerprint, settings={"dtype": "x"}, recipe_entries=("a", "b"))
    before = replace(record(RIGHT), fingerprint=made)
    turned = replace(before, fingerprint=replace(made, recipe_entries=("b", "a")))
    old = replace(before, fingerprint=replace(made, settings={}))

    (order,) = compare_record(before, turned, name=NAME)
    (unknown,) = compare_record(old, before, name=NAME)

    assert order.text == f"{NAME}: the entries of the recipe are in another order"
    assert unknown.text == f"{NAME}: settings: unknown -> recorded"


def test_baselines_that_came_or_went_are_named() -> None:
    one, two = record(RIGHT), record(RIGHT, suite="other")

    found = compare_records({"a": one}, {"b": two}, labels=LABELS)

    assert [(c.kind, c.subjects) for c in found.changes] == [("removed", ("a",)), ("added", ("b",))]
    assert "FP16 100.00%, quantized 95.00% on 100 samples" in found.changes[0].text


def test_two_named_files_are_compared_though_their_names_differ() -> None:
    found = compare_records(
        {"a x": record(RIGHT)}, {"b x": record(RIGHT)}, labels=LABELS, by_name=False
    )

    assert [change.text for change in found.changes] == ["baseline of: a x -> b x"]


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    path = Store(tmp_path).write(record(RIGHT))

    assert read_records(path) == read_records(tmp_path) == {NAME: record(RIGHT)}


def test_second_record_of_a_name_is_trouble(tmp_path: Path) -> None:
    path = Store(tmp_path).write(record(RIGHT))
    path.with_name("regression-z.json").write_text(path.read_text())

    with pytest.raises(DiffError, match="a second baseline of clip scenes"):
        read_records(tmp_path)


def test_damaged_record_is_trouble(tmp_path: Path) -> None:
    path = Store(tmp_path).write(record(RIGHT))
    path.write_text(path.read_text()[:-20])

    with pytest.raises(BaselineError, match="damaged baseline"):
        read_records(tmp_path)


RECORD = st.builds(
    lambda bits, ids, recipe, version, reason, dtype, gates: replace(
        record(bits),
        accepted=outcomes(bits, ids=ids),
        first=outcomes(bits, ids=ids),
        fingerprint=replace(
            record(bits).fingerprint,
            recipe=recipe * 64,
            settings={"dtype": dtype, "device": "cpu"} if dtype else {},
            recipe_entries=tuple(dtype),
        ),
        verdicts=dict.fromkeys(gates, "PASS"),
        versions={"torch": version} if version else {},
        reason=reason,
    ),
    st.lists(st.booleans(), min_size=3, max_size=3),
    st.sampled_from(["x", "y"]),
    st.sampled_from("ef"),
    st.sampled_from(["", "1", "2"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from(["", "ab", "ba", "cd"]),
    st.sampled_from(["", "x", "xy"]),
)
SETS = st.dictionaries(st.sampled_from(["one", "two", "three"]), RECORD, max_size=3)


@settings(max_examples=60, deadline=None)
@given(SETS)
def test_nothing_differs_from_itself(found: dict[str, Record]) -> None:
    assert compare_records(found, dict(found), labels=LABELS).changes == ()


@settings(max_examples=60, deadline=None)
@given(SETS, SETS)
def test_swapped_sides_mirror_each_other(one: dict[str, Record], two: dict[str, Record]) -> None:
    there = compare_records(one, two, labels=LABELS).changes
    back = compare_records(two, one, labels=LABELS).changes

    assert {(c.area, c.kind, c.subjects, c.before, c.after) for c in there} == {
        (c.area, mirror(c.kind), c.subjects, c.after, c.before) for c in back
    }
    gains = {c.subjects: c.figures.get("change_points", 0) for c in there}
    assert all(
        gains[c.subjects] == -float(c.figures.get("change_points", 0))
        for c in back
        if c.kind == "accuracy"
    )
