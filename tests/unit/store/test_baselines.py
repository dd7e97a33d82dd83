"""Stored results: written whole or not at all, refused when damaged, pruned when orphaned."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_quantgate import bounds
from pytest_quantgate.errors import BaselineError, QuantGateError
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.outcomes import Outcomes, pack_scores, round_score, unpack_scores
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.store import baselines
from pytest_quantgate.store.acceptance import (
    complete_verdicts,
    refuse_red,
    refuse_unfit,
    why_unfit,
    with_verdicts,
)
from pytest_quantgate.store.baseline_mode import BaselineMode, check_write_allowed, refuse_ci
from pytest_quantgate.store.baselines import (
    Store,
    accept_obtained,
    discard_obtained,
    next_record,
    read_record,
    slug,
    store_outcomes,
    write_atomically,
    write_obtained,
)
from pytest_quantgate.store.records import (
    Record,
    canonical_text,
    parse_record,
    read_as,
    record_to_json,
)
from pytest_quantgate.suite.where import Where

SUITE = "demo"
KEY = "scenes/classification-acc1"
NAME = "demo/regression-scenes--classification-acc1.json"
FINGERPRINT = Fingerprint(model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64)
WHERE = Where(file="suites/demo.quantgate.yaml", line=1)
repeatable = settings(max_examples=100, deadline=None, derandomize=True, database=None)

Change = Callable[[dict[str, Any]], object]


def outcomes(
    correct: str = "1101100111", *, data: str = "e" * 64, value: float | None = None
) -> Outcomes:
    hits = tuple(mark == "1" for mark in correct)
    return Outcomes(
        task="scenes/classification",
        metric="acc1",
        variant="fp16",
        ids=tuple(f"id{i:03}" for i in range(len(hits))),
        correct=hits,
        answers=(0,) * len(hits),
        labels=(0,) * len(hits),
        class_names=("a",),
        value=sum(hits) / max(1, len(hits)) if value is None else value,
        data_digest=data,
    )


def make_record(
    record: Record | None = None,
    *,
    suite: str = SUITE,
    key: str = KEY,
    fp16: Outcomes | None = None,
    quantized: Outcomes | None = None,
    today: date = date(2026, 11, 21),
    reason: str = "first accepted",
) -> Record:
    made = next_record(
        record,
        suite=suite,
        key=key,
        task="scenes/classification",
        metric="acc1",
        fp16=fp16 or outcomes("1111100111"),
        quantized=quantized or outcomes(),
        fingerprint=FINGERPRINT,
        versions={"torch": "2.8", "modelopt": "0.47"},
        today=today,
        reason=reason,
    )
    return replace(made, verdicts={"sanity": "PASS", "coverage": "PASS"})


SUITE_TEXT = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: fp8}
gates:
  coverage: {}
"""
REGRESSION = (
    "    - {{task: {task}, metric: {metric}, max_fp16_drop: 1pp, max_drop: 1pp, "
    "max_drop_since_first: 1pp}}\n"
)


def write_suite(project: Path, name: str, *keys: tuple[str, str]) -> Path:
    """Write a suite with a regression gate for each task and metric."""
    text = SUITE_TEXT + ("  regression:\n" if keys else "")
    for task, metric in keys:
        text += REGRESSION.format(task=task, metric=metric)
    path = project / f"{name}.quantgate.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines", project=tmp_path)


def message(action: Callable[[], object], kind: type[QuantGateError] = BaselineError) -> str:
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind
    return str(caught.value)


# -- modes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["check", "create", "update", "prune"])
def test_mode_is_read_by_its_name(text: str) -> None:
    assert BaselineMode.parse(text).value == text


@pytest.mark.parametrize("text", ["", "Check", "updates"])
def test_other_mode_is_refused_with_those_there_are(text: str) -> None:
    assert message(lambda: BaselineMode.parse(text), QuantGateError) == (
        f"{text!r} is not a valid quantgate baselines mode. "
        f"Valid modes: check, create, update, prune."
    )


@pytest.mark.parametrize("mode", [m for m in BaselineMode if m is not BaselineMode.CHECK])
@pytest.mark.parametrize("variable", ["CI", "BUILD_NUMBER"])
def test_writing_mode_is_refused_under_ci(mode: BaselineMode, variable: str) -> None:
    def check() -> None:
        check_write_allowed(mode, environ={variable: "true"}, allow_ci_write=False)

    assert message(check, QuantGateError) == (
        f"--quantgate-baselines={mode.value} would write baselines under CI ({variable} is set): "
        f"run it where somebody reviews the change, or add --quantgate-allow-ci-write"
    )


@pytest.mark.parametrize(
    ("mode", "environ", "allow"),
    [
        (BaselineMode.CHECK, {"CI": "1"}, False),
        (BaselineMode.UPDATE, {"CI": "1"}, True),
        (BaselineMode.UPDATE, {}, False),
        (BaselineMode.UPDATE, {"CI": "", "BUILD_NUMBER": ""}, False),
    ],
)
def test_reading_or_allowed_mode_is_let_through(
    mode: BaselineMode, environ: dict[str, str], allow: bool
) -> None:
    check_write_allowed(mode, environ=environ, allow_ci_write=allow)


def test_refusal_under_ci_names_the_flag_of_its_caller() -> None:
    text = message(
        lambda: refuse_ci("quantgate accept", environ={"CI": "1"}, flag="--allow-ci-write"),
        QuantGateError,
    )

    assert text.startswith("quantgate accept would write")
    assert text.endswith("or add --allow-ci-write")


# -- records: what they say, what stays, what moves ------------------------------------------------


def test_outcomes_are_stored_in_the_order_of_their_ids() -> None:
    found = outcomes("100")
    turned = replace(found, ids=found.ids[::-1], correct=found.correct[::-1])

    assert store_outcomes(turned) == store_outcomes(found)
    assert store_outcomes(found).correct == (True, False, False)
    assert store_outcomes(found).samples == 3


def test_other_ids_have_another_digest() -> None:
    found = outcomes("100")

    other = replace(found, ids=("id000", "id001", "id003"))

    assert store_outcomes(other).ids_digest != store_outcomes(found).ids_digest


def test_first_record_is_its_own_first() -> None:
    record = make_record()

    assert record.first == record.accepted
    assert (record.created, record.updated, record.first_accepted) == ("2026-11-21",) * 3
    assert record.reason == record.first_reason == "first accepted"


def test_next_record_keeps_first_and_moves_accepted() -> None:
    before = make_record()

    after = make_record(
        before, quantized=outcomes("1111111111"), today=date(2027, 1, 2), reason="better"
    )

    assert after.first == before.first != after.accepted
    assert (after.created, after.updated) == ("2026-11-21", "2027-01-02")
    assert (after.first_accepted, after.first_reason) == ("2026-11-21", "first accepted")
    assert after.reason == "better"


def test_next_record_keeps_what_fp16_gave_when_the_first_was_accepted() -> None:
    before = make_record()

    after = make_record(before, fp16=outcomes("1111111111"))

    assert after.first_fp16 == before.fp16 != after.fp16


def test_first_starts_anew_on_other_data_and_the_old_chain_stays() -> None:
    """Its drop must not be forgotten with the samples that showed it."""
    first = make_record()
    before = make_record(first, quantized=outcomes("1101100110"), today=date(2026, 12, 1))

    new = {"fp16": outcomes(data="f" * 64), "quantized": outcomes(data="f" * 64)}
    after = make_record(before, **new, today=date(2027, 1, 2), reason="new data")  # type: ignore[arg-type]
    again = make_record(after, **new, today=date(2027, 1, 3))  # type: ignore[arg-type]

    (chain,) = after.chains
    assert chain.drop == pytest.approx(0.1)
    assert chain.describe() == (
        "2026-11-21 to 2027-01-02, 10 samples (data eeeeeeeeeeee): quantized "
        "70.00% -> 60.00%, drop 10.00 pp"
    )
    assert again.chains == after.chains
    assert parse_record(canonical_text(again)) == again


def test_first_starts_anew_on_other_data() -> None:
    before = make_record()

    after = make_record(
        before, quantized=outcomes(data="f" * 64), today=date(2027, 1, 2), reason="new data"
    )

    assert after.first == after.accepted
    assert (after.first_accepted, after.first_reason) == ("2027-01-02", "new data")
    assert after.created == "2026-11-21"


def test_same_result_looks_at_outcomes_and_not_at_days() -> None:
    record = make_record()

    assert record.same_result(make_record(today=date(2027, 1, 2), reason="again"))
    assert not record.same_result(make_record(quantized=outcomes("1101100110")))
    assert not record.same_result(make_record(fp16=outcomes("1111111111")))
    assert not record.same_result(replace(record, fingerprint=replace(FINGERPRINT, model="0" * 64)))
    assert not record.same_result(replace(record, metric="acc5"))


def test_record_is_described_in_a_few_words() -> None:
    assert make_record().describe() == (
        "FP16 80.00%, quantized 70.00% on 10 samples (drop 10.00 pp)"
    )


# -- what must never become a baseline -------------------------------------------------------------


def verdict(gate: str, status: Status) -> Verdict:
    return Verdict(gate=gate.partition("[")[0], status=status, headline=f"{gate} headline")


OTHERS = ("sanity", "coverage", "accuracy[scenes/classification-acc1]", "roundtrip")


def judged(**changes: str) -> dict[str, Any]:
    """Return statuses of a run in which every other gate passed, but for some kinds."""
    return {gate: changes.get(gate.partition("[")[0], "PASS") for gate in OTHERS}


@pytest.mark.parametrize(
    "verdicts",
    [
        judged(),
        judged(roundtrip="NOT_MEASURED"),
        # These are judged against the baseline that is to be replaced.
        {**judged(), "regression[x]": "FAIL", "latency[y]": "INCOMPARABLE"},
    ],
)
def test_result_of_a_run_that_passed_is_accepted(verdicts: dict[str, Any]) -> None:
    record = replace(make_record(), verdicts=verdicts)

    assert why_unfit(record) == ""
    refuse_unfit(record)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("side", "name"), [("fp16", "FP16"), ("accepted", "quantized")])
def test_value_that_is_no_number_is_refused(side: str, name: str, value: float) -> None:
    record = make_record()
    record = replace(record, **{side: replace(getattr(record, side), value=value)})

    assert message(lambda: refuse_unfit(record)) == (
        f"{KEY}: not accepted as a baseline: {name} value is {value}"
    )


@pytest.mark.parametrize(("side", "name"), [("fp16", "FP16"), ("quantized", "quantized")])
def test_result_without_samples_is_refused(side: str, name: str) -> None:
    record = make_record(**{side: outcomes("")})  # type: ignore[arg-type]

    assert message(lambda: refuse_unfit(record)) == (
        f"{KEY}: not accepted as a baseline: {name} has no samples"
    )


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        ({}, "it does not say what the other gates of its run said"),
        ({"regression[x]": "PASS"}, "it does not say what the other gates of its run said"),
        (judged(coverage="FAIL"), "coverage is FAIL"),
        (judged(coverage="NOT_MEASURED"), "coverage is NOT_MEASURED"),
        (judged(sanity="NOT_MEASURED"), "sanity is NOT_MEASURED"),
        (judged(accuracy="INCONCLUSIVE"), f"{OTHERS[2]} is INCONCLUSIVE"),
        (judged(roundtrip="INCOMPARABLE"), "roundtrip is INCOMPARABLE"),
        (judged(coverage="FAIL", accuracy="FAIL"), f"coverage is FAIL, {OTHERS[2]} is FAIL"),
        (judged(roundtrip="DID_NOT_RUN"), "roundtrip did not run"),
        (
            judged(sanity="FAIL", coverage="DID_NOT_RUN", roundtrip="DID_NOT_RUN"),
            "sanity is FAIL, coverage, roundtrip did not run",
        ),
    ],
)
def test_result_of_a_run_that_is_not_green_is_refused(verdicts: dict[str, Any], words: str) -> None:
    record = replace(make_record(), verdicts=verdicts)

    assert why_unfit(record) == words
    assert message(lambda: refuse_unfit(record)) == (f"{KEY}: not accepted as a baseline: {words}")


def test_refusal_tells_the_first_red_verdict_in_full() -> None:
    verdicts = {gate: verdict(gate, Status.PASS) for gate in OTHERS}
    verdicts |= {gate: verdict(gate, Status.FAIL) for gate in ("coverage", "roundtrip")}
    record = with_verdicts(make_record(), gates=verdicts, verdicts=verdicts)

    assert message(lambda: refuse_unfit(record, verdicts=verdicts)) == (
        f"{KEY}: not accepted as a baseline: coverage is FAIL, roundtrip is FAIL: coverage headline"
    )


@repeatable
@given(
    statuses=st.lists(st.sampled_from(list(Status)), min_size=1, max_size=3),
    left_out=st.booleans(),
)
def test_a_record_is_fit_only_if_every_gate_of_its_run_was(
    statuses: list[Status], left_out: bool
) -> None:
    """In whatever order and process they ran, and however often."""
    gates = ["accuracy[a]", *(["roundtrip"] if left_out else [])]
    open_record = with_verdicts(make_record(), gates=gates, verdicts={})
    rows = [("accuracy[a]", verdict("accuracy[a]", status)) for status in statuses]

    forth = complete_verdicts(open_record, rows=rows)
    other = ("other", verdict("other", Status.FAIL))
    back = complete_verdicts(open_record, rows=[other, *rows[::-1]])

    assert forth == back
    green = all(status in (Status.PASS, Status.NOT_MEASURED) for status in statuses)
    assert (why_unfit(forth) == "") == (green and not left_out)
    assert ("accuracy[a] is" in why_unfit(forth)) == (not green)
    assert why_unfit(open_record).endswith("did not run")
    assert parse_record(canonical_text(forth)) == forth


# -- the text of a file ----------------------------------------------------------------------------

TEXT = st.characters(exclude_categories=["Cc", "Cs"])


@repeatable
@given(
    fp16=st.text("01", min_size=1, max_size=40),
    quantized=st.text("01", min_size=1, max_size=40),
    reason=st.text(TEXT, max_size=20),
    versions=st.dictionaries(st.text(TEXT, max_size=5), st.text(TEXT, max_size=5), max_size=3),
)
def test_record_comes_back_from_its_text(
    fp16: str, quantized: str, reason: str, versions: dict[str, str]
) -> None:
    record = replace(
        make_record(fp16=outcomes(fp16), quantized=outcomes(quantized), reason=reason),
        versions=versions,
    )

    text = canonical_text(record)

    assert parse_record(text) == record
    assert canonical_text(parse_record(text)) == text
    assert text.isascii()


def test_text_is_sorted_indented_and_ends_with_one_newline() -> None:
    text = canonical_text(make_record())

    assert text == json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n"
    assert text.startswith('{\n  "accepted": {\n    "answers_changed": ')
    assert json.loads(text)["schema"] == 2


def test_equal_records_have_equal_bytes_in_any_order_of_keys() -> None:
    record = make_record()
    turned = replace(record, versions=dict(reversed(list(record.versions.items()))))

    assert list(turned.versions) != list(record.versions)
    assert canonical_text(turned) == canonical_text(record)


def test_value_that_is_no_number_is_never_written(store: Store) -> None:
    record = make_record(fp16=outcomes(value=float("nan")))

    assert message(lambda: store.write(record)).endswith("fp16.value: nan is not in [0, 1]")
    assert not store.root.exists()


@repeatable
@given(bits=st.lists(st.booleans(), max_size=70))
@example(bits=[])
def test_bits_come_back(bits: list[bool]) -> None:
    packed = pack_scores(tuple(bits))

    assert unpack_scores(packed, count=len(bits)) == tuple(bits)
    assert len(base64.b64decode(packed)) == (len(bits) + 7) // 8


GRADES = st.one_of(st.booleans(), st.floats(0, 1))


@repeatable
@given(grades=st.lists(GRADES, max_size=40))
@example(grades=[True, 0.1, 1 / 3, False])
@example(grades=[1e-46, 1 - 1e-12])
def test_grades_come_back_as_they_are_kept(grades: list[float]) -> None:
    """Whole ones are true or false, also where 32 bits make them whole."""
    kept = tuple(map(round_score, grades))

    back = unpack_scores(pack_scores(kept), count=len(kept))

    assert back == kept
    assert [*map(type, back)] == [*map(type, kept)]
    assert kept == pytest.approx(grades, abs=1e-7)
    assert pack_scores(kept).startswith("float32:") is any(type(grade) is float for grade in kept)


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), float("inf")])
def test_what_is_no_score_is_refused(value: float) -> None:
    packed = base64.b64encode(struct.pack(">2f", 0.5, value)).decode()

    with pytest.raises(ValueError, match=r"is no score in \[0, 1\]"):
        round_score(value)
    with pytest.raises(ValueError, match=r"is no score in \[0, 1\]"):
        unpack_scores(f"float32:{packed}", count=2)


def test_first_sample_is_the_highest_bit() -> None:
    assert base64.b64decode(pack_scores((True,) + (False,) * 8 + (True,))) == b"\x80\x40"


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("gEA=", 7, "2 bytes cannot hold 7 outcomes"),
        ("gEA=", 17, "2 bytes cannot hold 17 outcomes"),
        ("gEA=", 9, "there are more than 9 outcomes"),
        ("float32:PwAAAD8AAAA=", 1, "8 bytes cannot hold 1 outcomes"),
        ("float32:PwAAAD8AAAA=", 3, "8 bytes cannot hold 3 outcomes"),
        ("float16:gEA=", 9, "Only base64 data is allowed"),
        ("gEA", 9, "Incorrect padding"),
        ("gE*A=", 9, "Only base64 data is allowed"),
        ("gEAä", 9, "string argument should contain only ASCII characters"),
    ],
)
def test_bits_that_are_not_just_so_many_are_refused(text: str, count: int, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        unpack_scores(text, count=count)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema=3), "schema 3 is not supported: this release reads 1 and 2"),
        (lambda d: d.pop("schema"), "schema None is not supported: this release reads 1 and 2"),
        (lambda d: d.update(kind="speed"), "kind is 'speed', expected 'regression'"),
        (lambda d: d.pop("first"), "Record: field 'first' is missing"),
        (lambda d: d.update(note="x"), "Record: unknown fields ['note']"),
        (lambda d: d.update(reason=1), "Record.reason: expected str, found 1"),
        (lambda d: d.update(suite=None), "Record.suite: expected str, found None"),
        (lambda d: d.update(versions=[]), "Record.versions: expected a mapping, found list"),
        (lambda d: d["versions"].update(torch=2), "Record.versions.torch: expected str, found 2"),
        (lambda d: d.update(fingerprint="x"), "Record.fingerprint: expected a mapping, found str"),
        (lambda d: d["fingerprint"].pop("data"), "Record.fingerprint: field 'data' is missing"),
        (lambda d: d["fingerprint"].update(x="y"), "Record.fingerprint: unknown fields ['x']"),
        (lambda d: d["fingerprint"].update(data="B" * 64), "fingerprint.data: not a SHA-256"),
        (
            lambda d: d["fingerprint"].update(settings={"dtype": 1}),
            "Record.fingerprint.settings.dtype: expected str, found 1",
        ),
        (lambda d: d.update(fp16=[]), "Record.fp16: expected a mapping, found list"),
        (lambda d: d["fp16"].pop("value"), "Record.fp16: field 'value' is missing"),
        (lambda d: d["first"].update(x=1), "Record.first: unknown fields ['x']"),
        (lambda d: d["fp16"].update(samples="10"), "Record.fp16.samples: expected int, found '10'"),
        (lambda d: d["fp16"].update(samples=True), "Record.fp16.samples: expected int, found True"),
        (lambda d: d["fp16"].update(samples=0), "fp16.samples: 0 is no count from 1 to 10000000"),
        (
            lambda d: d["fp16"].update(samples=10**8 + 1),
            "fp16.samples: 100000001 is no count from 1 to 10000000",
        ),
        (
            lambda d: d["fp16"].update(effective_samples=0),
            "fp16.effective_samples: 0.0 is no number of samples",
        ),
        (
            lambda d: d["accepted"].update(answers_changed=11),
            "accepted.answers_changed: 11 is no number of answers",
        ),
        (
            lambda d: d["accepted"].update(answers_changed=-1),
            "accepted.answers_changed: -1 is no number of answers",
        ),
        (
            lambda d: d.update(class_sizes={"3": 3}),
            "class_sizes add up to 9, but there are 10 samples",
        ),
        (
            lambda d: d.update(class_sizes={"9999999999": 10**7}),
            "class_sizes.9999999999: 10000000 is no count from 1 to 10",
        ),
        (
            lambda d: d.update(class_sizes={"0": 1, "10": 1}),
            "class_sizes: '0' is no number of samples",
        ),
        (
            lambda d: d["fp16"].update(effective_samples="nan"),
            "fp16.effective_samples: nan is no number of samples",
        ),
        (lambda d: d["fp16"].update(value="0.5"), "Record.fp16.value: expected float, found '0.5'"),
        (lambda d: d["fp16"].update(value="nan"), "fp16.value: nan is not in [0, 1]"),
        (lambda d: d["fp16"].update(value=True), "Record.fp16.value: expected float, found True"),
        (lambda d: d.update(looks=[{}]), "Record.looks: field 'samples' is missing"),
        (
            lambda d: d.update(
                looks=[{"samples": 0, "data_digest": "a" * 64, "day": "2026-11-21"}]
            ),
            "looks.samples: 0 is no count from 1 to 10000000",
        ),
        (lambda d: d.update(chains=[1]), "Record.chains: expected a mapping, found int"),
        (
            lambda d: d["first_fp16"].update(data_digest="0" * 64),
            "first and first_fp16 are of different data",
        ),
        (
            lambda d: d.update(verdicts={"coverage": "GREEN"}),
            "Record.verdicts.coverage: 'GREEN' is none of ('PASS', 'FAIL', 'INCONCLUSIVE', "
            "'INCOMPARABLE', 'NOT_MEASURED', 'DID_NOT_RUN')",
        ),
        (
            lambda d: d.update(reason="another"),
            "it was changed by hand: its digest is not that of its content",
        ),
        (
            lambda d: d.pop("digest"),
            "it was changed by hand: its digest is not that of its content",
        ),
        (lambda d: d["accepted"].update(value=1.01), "accepted.value: 1.01 is not in [0, 1]"),
        (lambda d: d["accepted"].update(value=-0.1), "accepted.value: -0.1 is not in [0, 1]"),
        (
            lambda d: d["accepted"].update(ids_digest=1),
            "Record.accepted.ids_digest: expected str, found 1",
        ),
        (lambda d: d["accepted"].update(data_digest="x"), "accepted.data_digest: not a SHA-256"),
        (
            lambda d: d["accepted"].update(correct_bits=3),
            "Record.accepted.correct_bits: expected str, found 3",
        ),
        (
            lambda d: d["accepted"].update(correct_bits="2c="),
            "accepted.correct_bits: Incorrect padding",
        ),
        (
            lambda d: d["accepted"].update(correct_bits="2cA!"),
            "accepted.correct_bits: Only base64 data is allowed",
        ),
        (
            lambda d: d["accepted"].update(correct_bits="2cDA"),
            "accepted.correct_bits: 3 bytes cannot hold 10 outcomes",
        ),
        (
            lambda d: d["accepted"].update(correct_bits="2cE="),
            "accepted.correct_bits: there are more than 10 outcomes",
        ),
    ],
)
def test_damaged_record_is_refused_and_named(store: Store, change: Change, words: str) -> None:
    path = store.write(make_record())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))

    assert message(lambda: store.read(SUITE, KEY)) == (
        f"{path}: damaged baseline: {words}: restore it with git checkout -- {path}, "
        f"or make it anew with --quantgate-baselines=update"
    )


def written_by_01(record: Record, **changes: object) -> str:
    """Return a record's text as version 0.1 wrote it."""
    plain = json.loads(canonical_text(record))
    for name in ("kind", "digest", "first_fp16", "chains", "verdicts", "looks"):
        del plain[name]
    for name in ("recipe_entries", "settings", "data_parts"):
        del plain["fingerprint"][name]
    for name in ("fp16", "accepted", "first"):
        del plain[name]["effective_samples"], plain[name]["answers_changed"]
    return json.dumps({**plain, "schema": 1, **changes}, sort_keys=True, indent=2) + "\n"


def test_what_version_0_1_wrote_is_read_and_what_it_does_not_say_is_unknown() -> None:
    record = make_record(make_record(), fp16=outcomes("1111111111"), quantized=outcomes("1" * 10))

    found = parse_record(written_by_01(record))

    assert found == replace(record, first_fp16=record.fp16, verdicts={})
    assert found.fingerprint.settings == found.verdicts == {}
    assert parse_record(canonical_text(found)) == found


def test_old_schema_is_no_way_around_a_check() -> None:
    text = written_by_01(make_record())

    with pytest.raises(BaselineError, match=r"accepted\.value is 0\.9, but 7 of 10"):
        parse_record(text.replace("0.7", "0.9", 1))
    with pytest.raises(BaselineError, match="field 'first' is missing"):
        parse_record(text.replace('"first"', '"first_fp16"'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "not JSON: Expecting value: "),
        (lambda text: text[: len(text) // 2], "not JSON: "),
        (lambda text: text + "}", "not JSON: Extra data: "),
        (lambda text: "<<<<<<< HEAD\n" + text, "not JSON: Expecting value: line 1 column 1"),
        (lambda text: "[]", "expected a mapping: "),
        (lambda text: "null", "expected a mapping: "),
        (lambda text: text.replace("0.7", "NaN", 1), "not JSON: NaN is no number here: "),
        (lambda text: text.replace("0.7", "-Infinity", 1), "not JSON: -Infinity is no number"),
        (lambda text: text.replace("0.7", "1e999", 1), "not JSON: 1e999 is out of range: "),
        (lambda text: text.replace("0.7", "9" * 5000, 1), f"not JSON: {'9' * 40} is out of range"),
        (lambda text: '{"a": 1, ' + text[1:], "Record: unknown fields ['a']: "),
        (lambda text: '{"reason": "x", ' + text[1:], "not JSON: key 'reason' stands twice: "),
        (lambda text: "[" * 100_000, "not JSON: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_text_is_refused_and_named(
    store: Store, damage: Callable[[str], str], words: str
) -> None:
    path = store.write(make_record())
    path.write_text(damage(path.read_text()))

    text = message(lambda: store.read(SUITE, KEY))

    assert text.startswith(f"{path}: damaged baseline: {words}")
    assert text.endswith("or make it anew with --quantgate-baselines=update")


def test_bytes_that_are_no_text_are_refused(store: Store) -> None:
    path = store.write(make_record())
    path.write_bytes(b"\xff" + path.read_bytes())

    assert message(lambda: store.read(SUITE, KEY)).startswith(
        f"{path}: damaged baseline: not UTF-8: restore it with git checkout"
    )


@repeatable
@given(data=st.data())
def test_any_damage_is_read_as_a_record_or_refused(data: st.DataObject) -> None:
    text = canonical_text(make_record())
    start = data.draw(st.integers(0, len(text)))
    end = start + data.draw(st.integers(0, 30))
    part = data.draw(
        st.text(max_size=8) | st.sampled_from(["NaN", "{", "[]", "null", '"', "1e999"])
    )

    try:
        record = parse_record(text[:start] + part + text[end:])
    except BaselineError:
        return
    assert parse_record(canonical_text(record)) == record


# -- the store -------------------------------------------------------------------------------------


def test_record_is_read_from_where_it_was_written(store: Store) -> None:
    record = make_record()

    path = store.write(record)

    assert path == store.root / NAME
    assert store.read(SUITE, KEY) == record
    assert path.read_text() == canonical_text(record)
    assert path.stat().st_mode & 0o777 == 0o644


def test_what_was_never_stored_is_none(store: Store) -> None:
    assert store.read(SUITE, KEY) is None
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../b", "a//b", "/a", "a/"])
def test_suite_that_is_not_below_the_root_has_no_place(store: Store, name: str) -> None:
    words = (
        f"suite {name!r} is not below the root of this run, so its baselines have no place: run "
        f"pytest with --rootdir=FOLDER, a folder above the suite"
    )

    assert message(lambda: store.path(name, KEY)) == words
    assert message(lambda: store.read(name, KEY)) == words
    assert message(lambda: store.write(make_record(suite=name))) == words
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("suites/clip", "suites/clip"),
        ("team_a/suites/clip", "team_a/suites/clip"),
        ("vision models/clip", "vision-models-a84da6f7/clip"),
        (".hidden/clip", "hidden-16924190/clip"),
        ("ä", "33e6d73f"),
        ("a\nb", "a-b-7e18f737"),
        ("._-XZ a", "XZ-a-dd7bb9b5"),
        (f"{'x' * 79}YZ ", f"{'x' * 79}Y-7d3e98e2"),
        ("clip \udce9", "clip---bab71c5b"),  # a name that is not UTF-8, as Python reads it
    ],
)
def test_folder_of_a_suite_is_its_path(store: Store, name: str, folder: str) -> None:
    assert store.path(name, KEY).parent.relative_to(store.root).as_posix() == folder


@repeatable
@given(names=st.lists(st.text("ab/ .-é", min_size=1, max_size=6), min_size=2, unique=True))
def test_no_two_suites_share_a_folder(names: list[str]) -> None:
    places = []
    for name in names:
        try:
            places.append(Store(Path("baselines")).path(name, KEY))
        except BaselineError:
            continue
    assert len(set(places)) == len(places)
    assert all(re.fullmatch(r"[A-Za-z0-9._/-]+", place.as_posix()) for place in places)
    assert all(".." not in place.parts for place in places)


@pytest.mark.parametrize(("suite", "key"), [("other", KEY), (SUITE, "digits/classification-acc1")])
def test_record_of_another_gate_is_refused(store: Store, suite: str, key: str) -> None:
    path = store.root / NAME
    path.parent.mkdir(parents=True)
    path.write_text(canonical_text(make_record(suite=suite, key=key)))

    assert message(lambda: store.read(SUITE, KEY)) == (
        f"{path}: holds {suite} {key}, expected {SUITE} {KEY}: "
        f"restore the file with git checkout -- {path}"
    )


def test_link_is_never_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(canonical_text(make_record()))
    path = store.root / NAME
    path.parent.mkdir(parents=True)
    path.symlink_to(outside)
    words = f"{path}: leads out of {store.root}: replace the link by the file itself"

    assert message(lambda: store.read(SUITE, KEY)) == words
    assert message(lambda: store.write(make_record(reason="other"))) == words
    assert outside.read_text() == canonical_text(make_record())


def test_folder_that_leads_out_is_never_followed(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / Path(NAME).name).write_text(canonical_text(make_record()))
    store.root.mkdir()
    (store.root / SUITE).symlink_to(outside)
    words = f"{store.root / NAME}: leads out of {store.root}: replace the link by the file itself"

    assert message(lambda: store.read(SUITE, KEY)) == words
    assert message(lambda: store.write(make_record(reason="other"))) == words
    assert (outside / Path(NAME).name).read_text() == canonical_text(make_record())
    assert len(list(outside.iterdir())) == 1


def test_file_too_large_for_a_baseline_is_not_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write(make_record())
    monkeypatch.setattr(bounds, "BASELINE_BYTES", 100)

    assert message(lambda: store.read(SUITE, KEY)).startswith(
        f"{path}: larger than 100 bytes, no baseline is: restore it with git checkout"
    )


def test_folder_in_place_of_the_file_cannot_be_read(store: Store) -> None:
    path = store.root / NAME
    path.mkdir(parents=True)

    assert message(lambda: store.read(SUITE, KEY)) == f"{path}: cannot be read: Is a directory"


def test_record_outside_of_any_store_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(canonical_text(make_record()))

    assert read_record(path, root=tmp_path) == make_record()
    assert read_record(tmp_path / "no.json", root=tmp_path) is None


# -- names of files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("scenes/classification-acc1", "scenes--classification-acc1"),
        ("wds/photos/classification-acc5", "wds--photos--classification-acc5"),
        (
            "a/retrieval-image_retrieval_recall@5",
            "a--retrieval-image_retrieval_recall-at-5-15067c50",
        ),
        (f"{'x' * 79}YZ@", f"{'x' * 79}Y-8fe30ca3"),
        ("\udce9", "--b136e1f3"),
    ],
)
def test_file_name_is_readable(key: str, name: str) -> None:
    assert slug(key) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a/b-acc1", "a--b-acc1"),
        ("a/b/classification-acc1", "a--b/classification-acc1"),
        ("a-b/classification-acc1", "a b/classification-acc1"),
        ("a/retrieval-r@5", "a/retrieval-r-at-5"),
        ("x" * 200 + "a/classification-a@1", "x" * 200 + "b/classification-a@1"),
        ("ä/classification-acc1", "ö/classification-acc1"),
    ],
)
def test_keys_that_look_alike_do_not_share_a_file(one: str, other: str) -> None:
    assert slug(one) != slug(other)


@repeatable
@given(keys=st.lists(st.text("ab/-@. ", min_size=1, max_size=8), min_size=2, unique=True))
def test_no_two_keys_share_a_file(keys: list[str]) -> None:
    names = [slug(key) for key in keys]

    assert len(set(names)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)


@repeatable
@given(key=st.text(min_size=1))
def test_any_key_becomes_a_plain_file_name(key: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+", slug(key))


# -- writing: whole or not at all ------------------------------------------------------------------


def no_space(*_arguments: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["fsync", "fdopen", "replace", "mkstemp"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the disk be full at each step of a write."""

    def fail(*_arguments: object, **_more: object) -> None:
        no_space()

    with monkeypatch.context() as patched:
        if request.param == "replace":
            patched.setattr(Path, "replace", fail)
        elif request.param == "mkstemp":
            patched.setattr(tempfile, "mkstemp", fail)
        else:
            patched.setattr(os, request.param, fail)
        yield


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / SUITE / "x.json"
    path.parent.mkdir()
    path.write_text("old")

    said = message(lambda: write_atomically(path, "new", root=tmp_path))
    assert said.startswith(f"cannot write {path}: No space left on device (free without it: ")
    assert said.endswith("); what was there is unchanged")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("full_disk")
def test_full_disk_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    store = Store(tmp_path)

    assert message(lambda: store.write(make_record())).endswith("what was there is unchanged")
    assert list((tmp_path / SUITE).iterdir()) == []


def test_interrupted_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "x.json", "new", root=tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_synced_does_not_undo_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network file systems refuse it; "what was there is unchanged" would be wrong by then."""
    sync = os.fsync
    refused = []

    def refuse_folders(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):  # noqa: PTH112
            refused.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)

    write_atomically(tmp_path / "x.json", "new", root=tmp_path)

    assert len(refused) == 1
    assert (tmp_path / "x.json").read_text() == "new"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(refused[0])


def test_store_whose_root_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    root = tmp_path / "baselines"
    root.write_text("")

    assert message(lambda: Store(root).write(make_record())) == (
        f"cannot write {root / NAME}: Not a directory; what was there is unchanged"
    )


def test_only_what_a_killed_run_left_is_swept_away(store: Store) -> None:
    """A run that still writes is younger than an hour; other files are somebody's."""
    folder = store.write(make_record()).parent
    age_s = {".writing-old": 3700, ".writing-young": 3500, "old.json": 10**6}
    for name, seconds in age_s.items():
        (folder / name).write_text("x")
        os.utime(folder / name, (0, time.time() - seconds))

    store.write(make_record(reason="again"))

    assert sorted(path.name for path in folder.iterdir()) == sorted(
        {".writing-young", "old.json", Path(NAME).name}
    )


# -- whose a baseline is ---------------------------------------------------------------------------

ACC1 = ("scenes/classification", "acc1")
DIGITS = ("digits/classification", "acc1")


def test_suites_of_one_name_in_two_folders_have_baselines_of_their_own(store: Store) -> None:
    one = make_record(suite="team_a/clip", reason="a")
    other = make_record(suite="team_b/clip", reason="b")

    paths = [store.write(record) for record in (one, other)]

    assert [path.parent.relative_to(store.root).as_posix() for path in paths] == [
        "team_a/clip",
        "team_b/clip",
    ]
    assert store.read("team_a/clip", KEY) == one
    assert store.read("team_b/clip", KEY) == other


def test_file_that_no_gate_names_is_an_orphan(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "demo", ACC1)
    write_suite(tmp_path, "empty")
    kept = store.write(make_record())
    other_key = store.write(make_record(key="digits/classification-acc1"))
    other_suite = store.write(make_record(suite="suites/gone"))

    assert [(orphan.path, orphan.reason) for orphan in store.orphans()] == [
        (other_key, "demo.quantgate.yaml has no such gate"),
        (other_suite, "there is no suites/gone.quantgate.yaml"),
    ]
    assert [orphan.path for orphan in store.prune()] == [other_key, other_suite]
    assert kept.exists()
    assert not other_key.exists()
    assert not other_suite.parent.parent.exists()
    assert store.prune() == ()


def test_suite_anywhere_below_the_root_keeps_its_baseline(store: Store, tmp_path: Path) -> None:
    """Not the folder `suites/` says whose it is, and not what was asked to run."""
    for name in ("models/clip/quality", "clip", "a b/ü"):
        write_suite(tmp_path, name, ACC1)
        store.write(make_record(suite=name))

    assert store.orphans() == ()


def test_baseline_of_a_suite_that_cannot_be_read_is_kept(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "demo", ACC1).write_text("quantgate: [", encoding="utf-8")
    path = store.write(make_record())

    assert store.orphans() == store.prune() == ()
    assert path.exists()


@pytest.mark.parametrize("text", ["{}", "[]", "no", '{"schema": 2, "suite": 1, "key": "x"}'])
def test_what_is_no_baseline_is_never_deleted(store: Store, text: str) -> None:
    path = store.write(make_record(suite="gone"))
    other = path.with_name("regression-notes.json")
    other.write_text(text, encoding="utf-8")
    moved = store.root / "elsewhere" / path.name
    moved.parent.mkdir()
    moved.write_text(path.read_text())

    assert [orphan.path for orphan in store.prune()] == [path]
    assert other.read_text() == text
    assert moved.exists()


def test_store_that_is_not_there_has_no_orphans(store: Store) -> None:
    assert store.orphans() == ()
    assert store.prune() == ()


def test_orphan_that_cannot_be_deleted_is_named(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.write(make_record())

    def refuse(_path: Path, **_more: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "unlink", refuse)

    assert message(store.prune) == f"cannot delete {path}: Permission denied"
    assert path.exists()


# -- what version 0.1 left -------------------------------------------------------------------------


def leave_old(store: Store, record: Record, *, name: str = "clip") -> Path:
    """Write a record where version 0.1 kept it: under the name of the suite's file alone."""
    path = store.root / name / Path(NAME).name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(written_by_01(record, suite=name), encoding="utf-8")
    return path


def test_old_baseline_is_the_one_suites_that_it_can_be(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "suites/clip", ACC1)
    write_suite(tmp_path, "other/clip", DIGITS)  # of the same name, with another gate
    old = leave_old(store, make_record())

    found = store.read("suites/clip", KEY)

    assert found == replace(make_record(suite="suites/clip"), verdicts={})
    assert store.orphans() == ()
    assert store.read("other/clip", "digits/classification-acc1") is None
    # What is accepted next goes to its own place, and the old file goes.
    written = store.write(make_record(found, suite="suites/clip", reason="next"))
    assert not old.parent.exists()
    assert store.read("suites/clip", KEY) == parse_record(written.read_text())


@pytest.mark.parametrize("other", ["team_b/clip", "clip"])
def test_old_baseline_that_two_suites_may_own_is_refused(
    store: Store, tmp_path: Path, other: str
) -> None:
    write_suite(tmp_path, "team_a/clip", ACC1)
    write_suite(tmp_path, other, ACC1)
    old = leave_old(store, make_record())
    before = old.read_bytes()
    files = " and ".join(sorted(f"{name}.quantgate.yaml" for name in ("team_a/clip", other)))

    for name in ("team_a/clip", other):
        assert message(lambda name=name: store.read(name, KEY)) == (  # type: ignore[misc]
            f"{old}: version 0.1 kept it for every suite called clip, and {files} may each own "
            f"it: name the one that does: quantgate migrate {name}.quantgate.yaml"
        )
        assert message(lambda name=name: store.write(make_record(suite=name)))  # type: ignore[misc]
    assert store.prune() == ()
    assert old.read_bytes() == before


def test_suite_that_cannot_be_read_may_own_an_old_baseline(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "team_a/clip", ACC1)
    write_suite(tmp_path, "team_b/clip", ACC1).write_text("quantgate: [", encoding="utf-8")
    leave_old(store, make_record())

    assert "may each own it" in message(lambda: store.read("team_a/clip", KEY))
    assert store.prune() == ()


def test_suites_of_others_own_nothing(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "suites/clip", ACC1)
    for folder in (".git", "node_modules", "venv/lib"):
        write_suite(tmp_path, f"{folder}/clip", ACC1)
    (tmp_path / "venv" / "pyvenv.cfg").write_text("")
    leave_old(store, make_record())

    assert store.read("suites/clip", KEY) is not None


def test_damaged_old_baseline_is_not_passed_over_as_if_there_were_none(
    store: Store, tmp_path: Path
) -> None:
    """A new one in its place would begin anew, and what was accepted would be forgotten."""
    write_suite(tmp_path, "suites/clip", ACC1)
    old = leave_old(store, make_record())
    old.write_text(old.read_text()[:-40])

    text = message(lambda: store.read("suites/clip", KEY))

    assert text.startswith(f"{old}: damaged baseline: not JSON")
    assert f"restore it with git checkout -- {old}" in text


def test_old_baseline_of_no_suite_is_an_orphan(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "suites/clip", DIGITS)
    old = leave_old(store, make_record())

    (orphan,) = store.orphans()

    assert (orphan.path, orphan.reason) == (old, "no suite called clip has this gate")


def test_old_baseline_beside_one_of_today_is_not_read_and_an_orphan(
    store: Store, tmp_path: Path
) -> None:
    write_suite(tmp_path, "suites/clip", ACC1)
    record = make_record(suite="suites/clip", reason="today")
    store.write(record)
    old = leave_old(store, make_record())

    assert store.read("suites/clip", KEY) == record
    (orphan,) = store.orphans()
    assert (orphan.path, orphan.reason) == (
        old,
        "no suite called clip needs it: each has another one",
    )


def test_old_baseline_of_a_suite_in_the_root_stands_in_its_place(
    store: Store, tmp_path: Path
) -> None:
    write_suite(tmp_path, "clip", ACC1)
    path = leave_old(store, make_record())

    found = store.read("clip", KEY)
    assert found == replace(make_record(suite="clip"), verdicts={})
    assert store.orphans() == ()
    assert store.write(found) == path
    assert json.loads(path.read_text())["schema"] == 2


def test_record_of_today_is_never_taken_for_an_old_one(store: Store, tmp_path: Path) -> None:
    """A suite in the root has the place that version 0.1 gave to all of its name."""
    write_suite(tmp_path, "clip", ACC1)
    write_suite(tmp_path, "suites/clip", ACC1)
    store.write(make_record(suite="clip"))

    assert store.read("suites/clip", KEY) is None


# -- obtained results ------------------------------------------------------------------------------


def test_obtained_record_is_accepted_with_its_reason(store: Store, tmp_path: Path) -> None:
    obtained = tmp_path / "obtained"
    before = store.write(make_record()).read_text()
    record = make_record(make_record(), quantized=outcomes("1111111111"), reason="")
    assert write_obtained(obtained, record) == obtained / NAME

    written = accept_obtained(obtained, store=store, reason="  looked at it \n")

    assert written == (store.root / NAME,)
    assert store.read(SUITE, KEY) == replace(record, reason="looked at it")
    assert written[0].read_text() != before


def test_all_obtained_records_are_accepted_in_order(store: Store, tmp_path: Path) -> None:
    for key in ("b/classification-acc1", "a/classification-acc1"):
        write_obtained(tmp_path / "obtained", make_record(key=key))

    written = accept_obtained(tmp_path / "obtained", store=store, reason="why")

    assert [path.name for path in written] == [
        "regression-a--classification-acc1.json",
        "regression-b--classification-acc1.json",
    ]


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_accepting_needs_a_reason(store: Store, tmp_path: Path, reason: str) -> None:
    write_obtained(tmp_path / "obtained", make_record())

    assert (
        message(lambda: accept_obtained(tmp_path / "obtained", store=store, reason=reason))
        == "accepting needs a reason: it is kept in the baseline"
    )
    assert not store.root.exists()


def test_nothing_to_accept_is_said(store: Store, tmp_path: Path) -> None:
    missing, empty = tmp_path / "missing", tmp_path / "empty"
    empty.mkdir()

    assert message(lambda: accept_obtained(missing, store=store, reason="r")) == (
        f"{missing} is no directory: nothing to accept"
    )
    assert message(lambda: accept_obtained(empty, store=store, reason="r")) == (
        f"{empty} holds no obtained results: nothing to accept"
    )


def plant(obtained: Path, name: str, text: str) -> Path:
    path = obtained / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("zzz/report.json", '{"hello": 1}', "schema None is not supported"),
        ("zzz/x.json", "{", "damaged baseline: not JSON"),
        (
            "zzz/regression-scenes--classification-acc1.json",
            canonical_text(make_record(suite="demo2")),
            "holds demo2 scenes/classification-acc1, which belongs elsewhere: "
            "run the suite again to obtain it anew",
        ),
        (
            "zzz/x.json",
            canonical_text(make_record(suite="zzz")),
            "holds zzz scenes/classification-acc1, which belongs elsewhere: ",
        ),
        (
            "zzz/regression-scenes--classification-acc1.json",
            canonical_text(make_record(suite="../../etc")),
            "suite '../../etc' is not below the root of this run",
        ),
        (
            "zzz/x.json",
            canonical_text(make_record(suite="zzz", key="../../../etc/passwd")),
            "which belongs elsewhere",
        ),
    ],
    ids=lambda value: value[:30],
)
def test_one_unfit_file_leaves_all_as_it_was(
    store: Store, tmp_path: Path, name: str, text: str, words: str
) -> None:
    obtained = tmp_path / "obtained"
    write_obtained(obtained, make_record(reason="new"))  # sorts before the bad one
    plant(obtained, name, text)
    before = store.write(make_record()).read_bytes()
    files = sorted(tmp_path.rglob("*"))

    assert words in message(lambda: accept_obtained(obtained, store=store, reason="r"))
    assert (store.root / NAME).read_bytes() == before
    assert sorted(tmp_path.rglob("*")) == files


def test_key_that_climbs_stays_in_its_folder(store: Store, tmp_path: Path) -> None:
    """Where the file's own name fits the key, the key is still only a part of a file name."""
    record = make_record(key="../../etc/passwd")
    write_obtained(tmp_path / "obtained", record)

    (written,) = accept_obtained(tmp_path / "obtained", store=store, reason="r")

    assert written.parent == store.root / SUITE
    assert written.resolve().is_relative_to(store.root.resolve())


def test_link_among_the_obtained_is_refused(store: Store, tmp_path: Path) -> None:
    obtained = tmp_path / "obtained"
    outside = plant(tmp_path, "outside.json", canonical_text(make_record()))
    (obtained / SUITE).mkdir(parents=True)
    (obtained / NAME).symlink_to(outside)

    assert "leads out of" in message(lambda: accept_obtained(obtained, store=store, reason="r"))
    assert not store.root.exists()


def test_obtained_without_samples_is_refused(store: Store, tmp_path: Path) -> None:
    obtained = tmp_path / "obtained"
    plant(obtained, NAME, canonical_text(make_record(quantized=outcomes(""))))

    assert "accepted.samples: 0 is no count" in message(
        lambda: accept_obtained(obtained, store=store, reason="r")
    )


def test_unfit_record_is_refused_even_if_it_could_be_read(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfit = make_record(fp16=outcomes(value=float("nan")))
    path = plant(tmp_path / "obtained", NAME, "")
    monkeypatch.setattr(baselines, "parse_any_record", lambda _text: unfit)

    assert message(lambda: accept_obtained(tmp_path / "obtained", store=store, reason="r")) == (
        f"{path}: {KEY}: not accepted as a baseline: FP16 value is nan"
    )
    assert not store.root.exists()


@pytest.mark.parametrize("status", ["FAIL", "INCONCLUSIVE", "DID_NOT_RUN"])
def test_result_of_a_red_run_is_not_accepted(store: Store, tmp_path: Path, status: str) -> None:
    """As `create` and `update` refuse it: one path to a baseline must not be wider."""
    write_obtained(tmp_path / "obtained", make_record(key="digits/classification-acc1"))
    record = replace(make_record(), verdicts=judged(accuracy=status))
    path = write_obtained(tmp_path / "obtained", record)

    words = f"{path}: {KEY}: not accepted as a baseline: {OTHERS[2]} "
    assert message(
        lambda: accept_obtained(tmp_path / "obtained", store=store, reason="r")
    ).startswith(words)
    assert not store.root.exists()


def test_verdict_that_was_changed_by_hand_is_not_accepted(store: Store, tmp_path: Path) -> None:
    record = replace(make_record(), verdicts=judged(accuracy="FAIL"))
    path = write_obtained(tmp_path / "obtained", record)
    path.write_text(path.read_text().replace('"FAIL"', '"PASS"'))

    assert message(lambda: accept_obtained(tmp_path / "obtained", store=store, reason="r")) == (
        f"{path}: damaged baseline: it was changed by hand: its digest is not that of its "
        f"content: run the suite again to obtain it anew"
    )


def test_what_version_0_1_obtained_is_not_accepted(store: Store, tmp_path: Path) -> None:
    plant(tmp_path / "obtained", NAME, written_by_01(make_record()))

    assert message(
        lambda: accept_obtained(tmp_path / "obtained", store=store, reason="r")
    ).endswith("it does not say what the other gates of its run said")


def test_gate_that_came_since_the_run_is_not_passed_over(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "demo", ACC1)
    record = replace(make_record(), verdicts={"sanity": "PASS"})
    path = write_obtained(tmp_path / "obtained", record)

    assert message(lambda: accept_obtained(tmp_path / "obtained", store=store, reason="r")) == (
        f"{path}: demo.quantgate.yaml has gates that its run did not know (coverage): run the "
        f"suite again to obtain it anew"
    )


def test_accepting_follows_the_baseline_that_is_there(store: Store, tmp_path: Path) -> None:
    """Not the one of the run: it may have been made elsewhere, or be older."""
    first = make_record(quantized=outcomes("1" * 10), reason="the first")
    store.write(make_record(first, today=date(2026, 12, 1), reason="the second"))
    write_obtained(tmp_path / "obtained", make_record(today=date(2026, 12, 24)))

    accept_obtained(tmp_path / "obtained", store=store, reason="the third")

    found = store.read(SUITE, KEY)
    assert found is not None
    assert (found.first, found.first_fp16) == (first.first, first.first_fp16)
    assert (found.first_reason, found.reason) == ("the first", "the third")
    assert (found.created, found.updated) == ("2026-11-21", "2026-12-24")


def test_other_data_is_accepted_only_where_that_is_said(store: Store, tmp_path: Path) -> None:
    store.write(make_record())
    new = make_record(
        fp16=outcomes(data="f" * 64), quantized=outcomes(data="f" * 64), today=date(2027, 1, 1)
    )
    path = write_obtained(tmp_path / "obtained", new)

    assert message(lambda: accept_obtained(tmp_path / "obtained", store=store, reason="r")) == (
        f"{path}: its evaluation data is not that on which the first variant was accepted "
        f"(2026-11-21 to 2026-11-21, 10 samples (data eeeeeeeeeeee): quantized 70.00% -> 70.00%, "
        f"drop 0.00 pp), so what it has lost since could not be seen any more: if that is meant, "
        f"add --new-data"
    )
    accept_obtained(tmp_path / "obtained", store=store, reason="new set", new_data=True)
    found = store.read(SUITE, KEY)
    assert found is not None
    assert found.first == found.accepted == new.accepted
    assert [chain.reason for chain in found.chains] == ["new set"]


@pytest.mark.parametrize("name", ["fp16", "accepted", "first", "first_fp16"])
def test_an_edited_value_or_bit_shows_in_the_other(name: str) -> None:
    data = record_to_json(make_record())
    data[name] |= {"value": 0.9}

    with pytest.raises(BaselineError, match=rf"{name}\.value is 0\.9, but \d of 10 .* by hand"):
        read_as(Record, data)
    with pytest.raises(BaselineError, match="its digest is not that of its content"):
        read_as(Record, data | {"metric": "mean_per_class_recall"})


def test_obtained_results_are_not_deleted_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, outside = tmp_path / "checkout", tmp_path / "outside"
    for folder in (checkout, outside):
        folder.mkdir()
    monkeypatch.chdir(checkout)
    record = make_record()
    place = Store(outside).path_of(record)
    place.parent.mkdir(parents=True)
    place.write_text("somebody else's")
    (checkout / "obtained").symlink_to(outside, target_is_directory=True)

    with pytest.raises(BaselineError, match="link"):
        discard_obtained(Path("obtained"), record)
    assert place.read_text() == "somebody else's"

    (checkout / "obtained").unlink()
    (checkout / "obtained").mkdir()
    (checkout / "obtained" / place.parent.name).symlink_to(place.parent)
    with pytest.raises(BaselineError, match="link"):
        discard_obtained(Path("obtained"), record)
    assert place.read_text() == "somebody else's"


def test_baselines_are_not_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, outside = tmp_path / "checkout", tmp_path / "outside"
    for folder in (checkout, outside):
        folder.mkdir()
    monkeypatch.chdir(checkout)
    record = make_record()
    (checkout / "baselines").symlink_to(outside, target_is_directory=True)
    with pytest.raises(BaselineError, match="link"):
        Store(checkout / "baselines", project=checkout).write(record)

    (checkout / "baselines").unlink()
    (checkout / "baselines").mkdir()
    folder = Store(checkout / "baselines").path_of(record).parent
    folder.symlink_to(outside, target_is_directory=True)
    with pytest.raises(BaselineError, match="link"):
        Store(checkout / "baselines", project=checkout).write(record)

    assert list(outside.iterdir()) == []


def test_a_baseline_of_a_red_run_is_no_reference() -> None:
    refuse_red(make_record(), command="-c")
    refuse_red(replace(make_record(), verdicts={}), command="-c")  # version 0.1 did not say

    record = replace(make_record(), verdicts=judged(coverage="FAIL"))
    with pytest.raises(BaselineError, match="coverage is FAIL: take one of a green run: -c") as it:
        refuse_red(record, command="-c")
    assert it.value.code == "regression.baseline-of-red-run"


def test_classes_are_recorded_by_their_sizes() -> None:
    record = replace(make_record(), class_sizes={"3": 2, "1": 4})

    assert record.list_class_sizes() == (1, 1, 1, 1, 3, 3)
    assert replace(record, class_sizes={}).list_class_sizes() == ()


def test_a_text_that_is_too_long_is_refused(store: Store) -> None:
    path = store.write(make_record(reason="x" * 100))
    path.write_text(path.read_text().replace("x" * 100, "x" * 10**6))

    assert "reason: 1000000 characters, at most" in message(lambda: store.read(SUITE, KEY))


def test_what_stands_in_a_place_is_read_by_what_it_says_of_itself(store: Store) -> None:
    assert store.find(SUITE, KEY) is None
    store.write(make_record())
    owned = store.find(SUITE, KEY)
    assert owned is not None

    assert store.read_file(owned) == make_record()
    owned.path.unlink()
    assert message(lambda: store.read_file(owned)) == f"{owned.path}: it is gone"


def test_without_a_project_nothing_is_an_orphan(tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines")
    store.write(make_record(suite="gone"))

    assert store.orphans() == ()


def test_what_cannot_be_deleted_of_the_obtained_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, **_: bool) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)

    assert message(lambda: discard_obtained(tmp_path, make_record())) == (
        f"cannot delete {tmp_path / NAME}: Read-only file system"
    )


def test_worth_of_samples_that_hang_together_is_recorded() -> None:
    pairs: Any = SimpleNamespace(worth=SimpleNamespace(right=8.0, drop=6.0), changed=2)
    alone: Any = SimpleNamespace(worth=None, changed=0)

    found = [
        next_record(
            None, suite=SUITE, key=KEY, task="t", metric="acc1", fp16=outcomes(),
            quantized=outcomes(), fingerprint=FINGERPRINT, versions={}, today=date(2026, 11, 21),
            reason="r", pairs=given,
        )
        for given in (pairs, alone)
    ]  # fmt: skip

    sides = [(r.fp16.effective_samples, r.accepted.effective_samples) for r in found]
    assert sides == [(8.0, 6.0), (None, None)]


def test_a_suite_that_has_the_gates_of_its_run_is_accepted(store: Store, tmp_path: Path) -> None:
    write_suite(tmp_path, "demo", ACC1)
    write_obtained(tmp_path / "obtained", make_record())

    assert accept_obtained(tmp_path / "obtained", store=store, reason="r") == (store.root / NAME,)
