"""`quantgate plan`: samples that each limit needs, and what the data cannot decide."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.commands.planning import DEFAULT, Rates, plan_suite
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.outcomes import Outcomes, round_score
from pytest_quantgate.statistics.intervals import Flips, Share, mean_over
from pytest_quantgate.statistics.looks import (
    PLANNED_SHARE,
    Step,
    confidences_of_looks,
    spend_share,
)
from pytest_quantgate.statistics.pairing import Pairs, pair_outcomes
from pytest_quantgate.statistics.sizes import chance_to_pass, samples_to_settle
from pytest_quantgate.store.baselines import Store, next_record
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {source: reference}
datasets:
  photos: {dataset: wds/photos, root: "${QUANTGATE_PHOTOS}"}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates:
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 1pp, floor: 70%, max_flips: 10%}
    - {task: photos/classification, metric: acc1, max_drop: 1pp}
  regression:
    - {task: scenes/classification, metric: acc1, max_fp16_drop: 0.5pp, max_drop: 1pp,
       max_drop_since_first: 1pp}
"""
KEY = "scenes/classification-acc1"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s.quantgate.yaml").write_text(SUITE, encoding="utf-8")


def outcomes(correct: list[bool], variant: str) -> Outcomes:
    return Outcomes(
        task="scenes/classification",
        metric="acc1",
        variant=variant,
        ids=tuple(f"{i:05d}" for i in range(len(correct))),
        correct=tuple(correct),
        answers=(0,) * len(correct),
        labels=(0,) * len(correct),
        class_names=("x",),
        value=sum(correct) / len(correct),
        data_digest="d" * 64,
    )


def _grade(found: Outcomes, *, by: float) -> Outcomes:
    correct = tuple(round_score(1 - by + by * right) for right in found.correct)
    return replace(found, correct=correct, value=sum(correct) / len(correct))


def write_baseline(
    *,
    lost: int,
    won: int,
    samples: int = 1000,
    key: str = KEY,
    grade: float = 1.0,
    **changes: Any,
) -> Pairs:
    """Write the baseline of a variant with these flips; the lost samples come first.

    A wrong sample scores less by `grade`.
    """
    before = [True] * (samples - 200) + [False] * 200
    after = [False] * lost + before[lost : samples - won] + [True] * won
    fp16 = replace(_grade(outcomes(before, "FP16"), by=grade), **changes)
    quantized = replace(_grade(outcomes(after, "fp8"), by=grade), **changes)
    pairs = pair_outcomes(before=fp16, after=quantized)
    record = next_record(
        None,
        suite="s",
        key=key,
        task=fp16.task,
        metric=fp16.metric,
        fp16=fp16,
        quantized=quantized,
        pairs=pairs,
        fingerprint=Fingerprint(
            model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64
        ),
        versions={},
        today=date(2026, 11, 21),
        reason="measured",
    )
    Store(Path("baselines")).write(record)
    return pairs


def plan(capsys: Captured, *arguments: str, environ: dict[str, str] | None = None) -> list[dict]:  # type: ignore[type-arg]
    main(["plan", "s.quantgate.yaml", "--json", *arguments], environ=environ or {})
    (found,) = json.loads(capsys.readouterr().out)
    return list(found["limits"])


def needed(flips: float, drop: float, limit: float) -> int | None:
    return samples_to_settle(
        Flips(right_to_wrong=(flips + drop) / 2, wrong_to_right=(flips - drop) / 2, samples=1),
        confidence=0.95,
        limit=limit,
    )


def test_assumed_rates_decide_how_many_are_needed(capsys: Captured) -> None:
    found = plan(capsys, "--flips", "4%", "--drop", "0.3pp")

    by_limit = {(limit["gate"], limit["limit"]): limit for limit in found}
    drop = by_limit[f"accuracy[{KEY}]", "max_drop"]
    assert drop["needed"] == needed(0.04, 0.003, 0.01)
    assert drop["samples"] == 5000
    assert drop["decision"] == ("enough" if drop["needed"] <= 5000 else "too few")
    assert by_limit[f"regression[{KEY}]", "max_fp16_drop"]["needed"] == needed(0.04, 0.003, 0.005)
    assert by_limit[f"accuracy[{KEY}]", "max_flips"]["decision"] == "enough"
    assert (f"accuracy[{KEY}]", "floor") not in by_limit  # nothing is known of the value


def test_measured_rates_come_from_the_baseline(capsys: Captured) -> None:
    write_baseline(lost=20, won=10)

    by_limit = {
        (x["gate"].partition("[")[0], x["limit"]): x for x in plan(capsys) if "scenes" in x["gate"]
    }

    drop = by_limit["accuracy", "max_drop"]
    assert (drop["flips"], drop["drop"], drop["rates"]) == (0.03, 0.01, "measured")
    assert drop["decision"] == "cannot pass"
    assert by_limit["accuracy", "floor"]["decision"] == "enough"
    assert by_limit["regression", "max_fp16_drop"]["flips"] == 0
    assert by_limit["regression", "max_drop"]["drop"] == 0
    assert by_limit["regression", "max_drop"]["flips"] == 0.03


def test_named_rates_beat_the_baseline(capsys: Captured) -> None:
    write_baseline(lost=20, won=10)

    assert {limit["rates"] for limit in plan(capsys, "--flips", "2%")} == {"assumed"}


def test_data_that_is_not_here_is_unknown_and_said(capsys: Captured) -> None:
    photos = next(x for x in plan(capsys) if "photos" in x["gate"])

    assert photos["decision"] == "unknown"
    assert "environment variable QUANTGATE_PHOTOS is not set" in photos["notes"][0]


def test_webdataset_is_counted_without_decoding(capsys: Captured, tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "test"
    folder.mkdir(parents=True)
    (folder / "nshards.txt").write_text("2")
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as archive:
            for index in range(30):
                for suffix, data in (("jpg", b"no image"), ("cls", b"0")):
                    member = tarfile.TarInfo(f"{shard}{index:04d}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))

    found = plan(capsys, environ={"QUANTGATE_PHOTOS": str(tmp_path / "photos")})

    photos = next(x for x in found if "photos" in x["gate"])
    assert (photos["samples"], photos["decision"]) == (60, "too few")


def test_status_and_table_say_what_cannot_be_decided(capsys: Captured) -> None:
    assert main(["plan", "s.quantgate.yaml", "--flips", "5%", "--drop", "1pp"], environ={}) == 1

    out = capsys.readouterr().out
    assert "CANNOT PASS: a true drop of 1pp does not keep it (s.quantgate.yaml:9)" in out
    assert "of 6 limits cannot be decided in 80 % of runs" in out

    assert main(["plan", "s.quantgate.yaml", "--flips", "1%"], environ={}) == 0
    assert "limits can be decided, 1 unknown" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--flips", "5"], "5 needs a unit: 5%"),
        (["--drop", "1%"], "1% is relative; write percentage points"),
        (["--flips", "101%"], "out of range"),
    ],
)
def test_rates_without_a_unit_are_wrong_usage(
    capsys: Captured, arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "s.quantgate.yaml", *arguments])

    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_drop_is_made_of_flips(capsys: Captured) -> None:
    assert main(["plan", "s.quantgate.yaml", "--flips", "1%", "--drop", "2pp"]) == 1
    assert capsys.readouterr().err == (
        "quantgate: --drop 2pp is more than --flips 1%: a drop is made of flips\n"
    )


def test_damaged_baseline_is_refused(capsys: Captured) -> None:
    write_baseline(lost=1, won=0)
    path = next(Path("baselines").rglob("*.json"))
    path.write_text("{")

    assert main(["plan", "s.quantgate.yaml"], environ={}) == 1
    assert "damaged baseline" in capsys.readouterr().err


def test_more_flips_and_more_drop_never_need_fewer_samples() -> None:
    suite = load_suite(Path("s.quantgate.yaml"))

    def most(flips: float, drop: float) -> list[float]:
        plans = plan_suite(
            suite,
            assumed=Rates(flips=flips, drop=drop, source="assumed"),
            store=None,
            environ={},
        )
        return [float("inf") if p.needed is None else p.needed for p in plans]

    for less, more in (((0.01, 0), (0.02, 0)), ((0.02, 0), (0.02, 0.002))):
        assert all(a <= b for a, b in zip(most(*less), most(*more), strict=True))


def test_limit_on_flips_needs_a_rate_that_somebody_named() -> None:
    plans = plan_suite(
        load_suite(Path("s.quantgate.yaml")),
        assumed=Rates(flips=0.05, drop=0, source=DEFAULT),
        store=None,
        environ={},
    )

    assert "max_flips" not in {p.limit_name for p in plans}


# -- samples that do not count alike ---------------------------------------------------------------

ONE_GATE = """\
quantgate: 1
model: {source: reference}
datasets:
  photos: {dataset: wds/photos, root: "${QUANTGATE_PHOTOS}"}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates:
  accuracy:
    - {GATE}
"""


def write_suite(gate: str, *, kind: str = "accuracy") -> None:
    text = ONE_GATE.replace("accuracy:", f"{kind}:").replace("{GATE}", f"{{{gate}}}")
    Path("s.quantgate.yaml").write_text(text, encoding="utf-8")


def write_shard(root: Path, samples: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Write a split with one image for each (suffix, text); returns the environment."""
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("1")
    with tarfile.open(root / "test" / "0.tar", "w") as archive:
        for index, (suffix, text) in enumerate(samples):
            for ending, data in (("jpg", b"no image"), (suffix, text.encode())):
                member = tarfile.TarInfo(f"{index:05d}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return {"QUANTGATE_PHOTOS": str(root)}


CAPTIONS = "task: photos/retrieval, metric: image_retrieval_recall@5, max_drop: 3pp"


def test_captions_count_as_their_images_until_a_baseline_says_more(
    capsys: Captured, tmp_path: Path
) -> None:
    write_suite(CAPTIONS)
    environ = write_shard(tmp_path / "photos", [("txt", "a\nb\nc\nd\n\ne\n")] * 40)

    (limit,) = plan(capsys, "--flips", "5%", environ=environ)

    alone = needed(0.05, 0, 0.03)
    assert alone is not None
    assert limit["samples"] == 200
    assert limit["worth"] == pytest.approx(0.2)
    assert limit["needed"] == alone * 5
    assert limit["notes"] == [
        "photos/retrieval image_retrieval_recall@5: the 200 captions of 40 images are counted as "
        "40 samples until a baseline says what they are worth"
    ]


def test_texts_are_found_by_their_images(capsys: Captured, tmp_path: Path) -> None:
    """`text_retrieval_recall@K` has one query an image."""
    write_suite(CAPTIONS.replace("image_retrieval", "text_retrieval"))
    environ = write_shard(tmp_path / "photos", [("txt", "a\nb\nc\nd\ne\n")] * 40)

    (limit,) = plan(capsys, "--flips", "5%", environ=environ)

    assert (limit["samples"], limit["worth"], limit["notes"]) == (40, 1, [])
    assert limit["needed"] == needed(0.05, 0, 0.03)


def test_samples_of_retrieval_are_images(capsys: Captured, tmp_path: Path) -> None:
    write_suite(f"{CAPTIONS}, samples: 10")
    environ = write_shard(tmp_path / "photos", [("txt", "a\nb\nc\nd\ne\n")] * 40)

    (limit,) = plan(capsys, "--flips", "5%", environ=environ)

    assert limit["samples"] == 50


def test_captions_are_worth_what_the_baseline_measured(capsys: Captured, tmp_path: Path) -> None:
    write_suite(f"{CAPTIONS}, floor: 50%")
    environ = write_shard(tmp_path / "photos", [("txt", "a\nb\nc\nd\ne\n")] * 200)
    pairs = write_baseline(
        lost=20,
        won=10,
        key="photos/retrieval-image_retrieval_recall@5",
        task="photos/retrieval",
        metric="image_retrieval_recall@5",
        class_names=(),
        labels=(-1,) * 1000,
        clusters=tuple(i // 5 for i in range(1000)),
    )
    assert pairs.worth is not None

    drop, floor = plan(capsys, environ=environ)

    one = Flips(right_to_wrong=0.02, wrong_to_right=0.01, samples=1)
    alone = samples_to_settle(one, confidence=0.95, limit=0.03)
    assert alone is not None
    assert 190 < pairs.worth.drop < 199.9
    assert drop["needed"] == math.ceil(alone * 1000 / pairs.worth.drop)
    right = samples_to_settle(Share(count=0.79, samples=1), confidence=0.95, limit=0.5)
    assert right is not None
    assert floor["needed"] == math.ceil(right * 1000 / pairs.worth.right)


CAUGHT = "positive: gore, max_drop: 3pp, samples: 900"
FILTER = f"""task: photos/filter, metric: recall@fpr1%, {CAUGHT}}}
    - {{task: photos/filter, metric: specificity@fpr1%, {CAUGHT}"""


def test_how_many_a_filter_is_to_catch_is_known_from_a_baseline(
    capsys: Captured, tmp_path: Path
) -> None:
    write_suite(FILTER)
    environ = write_shard(tmp_path / "photos", [("cls", str(i % 2)) for i in range(40)])

    limit, _ = plan(capsys, "--flips", "5%", environ=environ)
    assert limit["samples"] is None
    assert "is only known after a baseline was made" in limit["notes"][0]

    write_baseline(
        lost=5,
        won=5,
        samples=300,
        key="photos/filter-recall@fpr1%",
        task="photos/filter",
        metric="recall@fpr1%",
        class_names=(),
        labels=(-1,) * 300,
    )
    limit, _ = plan(capsys, environ=environ)
    assert (limit["samples"], limit["notes"]) == (300, [])


def test_a_planned_suite_is_told_the_sizes_of_its_looks(capsys: Captured, tmp_path: Path) -> None:
    """What the last look takes at what it is judged at, and why the first decides so little."""
    of = "task: scenes/classification, metric: acc1, max_drop: 1pp, samples: 1000"
    write_suite(of)
    (alone,) = plan(capsys, "--flips", "4%")
    write_suite(f"{of}, planned_samples: 4000")

    (limit,) = plan(capsys, "--flips", "4%")

    early, last = limit["looks"]
    assert (early["samples"], last["samples"], limit["samples"]) == (1000, 4000, 4000)
    spent = spend_share(0.25, spent=0.0, confidence=Fraction(95, 100))
    steps = [Step(samples=1000, spent=spent), Step(samples=4000, spent=PLANNED_SHARE)]
    levels = [float(x) for x in confidences_of_looks(Fraction(95, 100), steps)]
    assert [early["confidence"], last["confidence"]] == levels == [levels[0], limit["confidence"]]
    assert levels[0] > 0.999 > 0.96 > levels[1] > 0.95
    flips = Flips(right_to_wrong=0.02, wrong_to_right=0.02, samples=1)
    for look, level in zip(limit["looks"], levels, strict=True):
        assert look["needed"] == samples_to_settle(flips, confidence=level, limit=0.01)
    assert early["needed"] > 2 * alone["needed"]
    assert alone["needed"] < limit["needed"] == last["needed"] < 4000
    assert (alone["decision"], limit["decision"]) == ("too few", "enough")
    assert alone["looks"] == []
    assert limit["advice"] == (
        f"the look at 1000 is judged at {levels[0] * 100:.12g} % and would take {early['needed']}; "
        f"the last at {levels[1] * 100:.12g} %"
    )


def test_a_plan_that_the_data_cannot_keep_is_named(capsys: Captured) -> None:
    write_suite(
        "task: scenes/classification, metric: acc1, max_drop: 1pp, samples: 1000, "
        "planned_samples: 8000"
    )
    (limit,) = plan(capsys, "--flips", "4%")

    assert limit["samples"] == 5000
    assert "planned_samples: 8000 is asked for, the data has 5000 (s.quantgate" in limit["notes"][0]
    # At its end there is one look, as without a plan.
    write_suite(
        "task: scenes/classification, metric: acc1, max_drop: 1pp, samples: 1000, "
        "planned_samples: 1000"
    )
    (limit,) = plan(capsys, "--flips", "4%")
    assert (limit["samples"], limit["looks"], limit["confidence"]) == (1000, [], 0.95)


def test_grades_are_planned_by_what_they_are_worth(capsys: Captured, tmp_path: Path) -> None:
    write_suite("task: photos/catalogue, metric: ndcg@10, max_drop: 3pp")
    environ = write_shard(tmp_path / "photos", [("cls", str(i % 2)) for i in range(40)])
    about: Any = {"task": "photos/catalogue", "metric": "ndcg@10"}
    pairs = write_baseline(lost=60, won=40, grade=0.5, key="photos/catalogue-ndcg@10", **about)
    assert pairs.worth is not None

    (limit,) = plan(capsys, environ=environ)

    one = Flips(right_to_wrong=0.03, wrong_to_right=0.02, samples=1)
    alone = samples_to_settle(one, confidence=0.95, limit=0.03)
    assert alone is not None
    assert pairs.worth.drop == pytest.approx(1950, rel=0.05)
    assert limit["needed"] == math.ceil(alone * 1000 / pairs.worth.drop)


def test_a_mean_over_classes_is_planned_by_their_sizes(capsys: Captured, tmp_path: Path) -> None:
    write_suite("task: photos/classification, metric: mean_per_class_recall, max_drop: 3pp")
    labels = [0] * 300 + [1] * 40 + [2] * 30
    environ = write_shard(tmp_path / "photos", [("cls", str(label)) for label in labels])

    (limit,) = plan(capsys, "--flips", "5%", environ=environ)

    one = Flips(right_to_wrong=0.025, wrong_to_right=0.025, samples=1)
    found = mean_over([one.grow(size) for size in (300, 40, 30)])
    settled = samples_to_settle(found, confidence=0.95, limit=0.03)
    alone = needed(0.05, 0, 0.03)
    assert settled is not None
    assert alone is not None
    assert limit["samples"] == 370
    assert limit["needed"] == pytest.approx(settled * 370 / found.samples, rel=0.01)
    assert limit["needed"] > 2 * alone


def test_changed_answers_decide_about_max_flips(capsys: Captured) -> None:
    """Twice as many answers change as outcomes: those that are wrong before and after."""
    write_suite("task: scenes/classification, metric: acc1, max_drop: 3pp, max_flips: 10%")
    write_baseline(lost=20, won=10)
    path = next(Path("baselines").rglob("*.json"))
    record = Store(Path("baselines")).read("s", KEY)
    assert record is not None
    assert record.accepted.answers_changed == 0  # the builder's answers are all alike
    changed = replace(record, accepted=replace(record.accepted, answers_changed=60))
    path.unlink()
    Store(Path("baselines")).write(changed)

    _, flips = plan(capsys)

    assert flips["answers_changed"] == 0.06
    share = Share(count=0.06, samples=1)
    assert flips["needed"] == samples_to_settle(share, confidence=0.95, limit=0.1)


def test_answers_change_at_least_as_often_as_outcomes(capsys: Captured) -> None:
    write_suite("task: scenes/classification, metric: acc1, max_drop: 3pp, max_flips: 10%")

    _, flips = plan(capsys, "--flips", "2%", "--changed", "11%")

    assert flips["decision"] == "cannot pass"
    assert main(["plan", "s.quantgate.yaml", "--flips", "2%", "--changed", "11%"], environ={}) == 1
    assert "CANNOT PASS: 11% of answers changed does not keep it" in capsys.readouterr().out
    assert main(["plan", "s.quantgate.yaml", "--flips", "2%", "--changed", "1%"]) == 1
    assert capsys.readouterr().err == (
        "quantgate: --changed 1% is less than --flips 2%: a flip is an answer that changed\n"
    )


# -- the worst class -------------------------------------------------------------------------------


def class_suite(limit: str) -> str:
    return f"task: photos/classification, metric: acc1, max_drop: 10pp, max_class_drop: {limit}"


def test_limit_on_classes_that_chance_exceeds_is_refused(capsys: Captured, tmp_path: Path) -> None:
    """Good variants lose 10 pp in one of 200 classes of 20 by chance alone."""
    write_suite(class_suite("20pp"))
    labels = [label for label in range(200) for _ in range(20)]
    environ = write_shard(tmp_path / "photos", [("cls", str(label)) for label in labels])

    (_, limit) = plan(capsys, "--flips", "5%", environ=environ)
    arguments = ["plan", "s.quantgate.yaml", "--flips", "5%"]

    each = chance_to_pass(
        Flips(right_to_wrong=0.5, wrong_to_right=0.5, samples=20), confidence=0.95, limit=0.2
    )
    assert each**200 < 0.01
    assert limit["decision"] == "too few"
    assert limit["advice"] == ("200 classes of 20: all pass in 0 % of runs, from 37pp on in 80 %")
    assert main(arguments, environ=environ) == 1
    assert "TOO FEW" in capsys.readouterr().out


def test_number_that_all_classes_need_is_the_least(capsys: Captured, tmp_path: Path) -> None:
    write_suite(class_suite("20pp"))
    labels = [label for label in range(10) for _ in range(20)]
    environ = write_shard(tmp_path / "photos", [("cls", str(label)) for label in labels])

    (_, limit) = plan(capsys, "--flips", "5%", environ=environ)

    def chance(samples: int) -> float:
        one = Flips(right_to_wrong=0.025, wrong_to_right=0.025, samples=1)
        return chance_to_pass(one.grow(samples), confidence=0.95, limit=0.2) ** 10

    size = limit["needed"] / 10
    assert chance(round(size)) >= 0.8
    assert chance(round(size) - 2) < 0.8


def test_sizes_of_classes_come_from_the_baseline_where_they_need_loading(
    capsys: Captured,
) -> None:
    write_suite("task: scenes/classification, metric: acc1, max_drop: 9pp, max_class_drop: 30pp")
    labels = (*(i % 4 for i in range(999)), 4)
    write_baseline(lost=5, won=5, class_names=tuple("abcde"), labels=labels)
    record = Store(Path("baselines")).read("s", KEY)
    assert record is not None
    assert record.class_sizes == {"1": 1, "249": 1, "250": 3}
    assert record.list_class_sizes() == (1, 249, 250, 250, 250)
    write_suite(
        "task: scenes/classification, metric: acc1, max_drop: 9pp, max_class_drop: 30pp, "
        "samples: 1000"
    )

    (_, limit) = plan(capsys)

    assert limit["advice"].startswith("5 classes of 1 to 250: all pass in 0 % of runs")


def test_unknown_sizes_of_classes_are_said(capsys: Captured) -> None:
    write_suite(class_suite("20pp"))

    (drop,) = plan(capsys, "--flips", "5%")

    assert drop["limit"] == "max_drop"
    assert drop["notes"][-1] == (
        "s.quantgate.yaml:9: the sizes of the classes are only known after the data was loaded "
        "once, for a baseline"
    )


# -- the whole suite -------------------------------------------------------------------------------


def test_all_limits_together_need_more_than_each(capsys: Captured) -> None:
    found = plan(capsys, "--flips", "2%", "--drop", "0.1pp")

    one = Flips(right_to_wrong=0.0105, wrong_to_right=0.0095, samples=1)
    for limit in found:
        if limit["limit"] == "max_drop":
            assert limit["needed_for_all"] == samples_to_settle(
                one, confidence=0.95, limit=0.01, power=1 - 0.2 / len(found)
            )
        assert limit["needed_for_all"] > limit["needed"]


def test_last_line_says_what_all_limits_together_take(capsys: Captured) -> None:
    main(["plan", "s.quantgate.yaml", "--flips", "3%"], environ={})

    out = capsys.readouterr().out
    assert "  6 limits can be decided, 0" not in out
    assert (
        'all 6 limits together: green in 80 % of runs with the samples under "for all"; 1 of them '
        "has fewer"
    ) in out


def test_help_shows_an_example(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])

    assert "quantgate plan suites/ --flips 3% --drop 0.2pp" in capsys.readouterr().out


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_keeps_to_the_terminal(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))

    main(["plan", "s.quantgate.yaml", "--flips", "5%", "--drop", "1pp"], environ={})

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    text = " ".join(" ".join(lines).split())
    assert "CANNOT PASS: a true drop of 1pp does not keep it (s.quantgate.yaml:9)" in text
    assert all(text.count(head) for head in ("limit", "flips", "samples", "needed", "for all"))


# -- slices ----------------------------------------------------------------------------------------


def test_slices_by_class_need_what_classes_need(capsys: Captured, tmp_path: Path) -> None:
    labels = [label for label in range(10) for _ in range(20)]
    environ = write_shard(tmp_path / "photos", [("cls", str(label)) for label in labels])
    task = "task: photos/classification, metric: acc1, max_drop: 10pp"
    write_suite(f"{task}, max_class_drop: 20pp, slices: {{by: class, max_drop: 20pp}}")

    _, classes, slices = plan(capsys, "--flips", "5%", environ=environ)

    assert slices["limit"] == "slices.max_drop"
    assert slices["needed"] == classes["needed"]
    assert slices["advice"] == classes["advice"].replace("classes", "slices")


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        ("by: [light, class]", "5 slices of 20 to 360: "),
        ("by: [[light, class]]", "6 slices of 10 to 180: "),
        ("by: light, min_samples: 50", "1 slice of 360: "),
    ],
)
def test_slices_are_counted_from_the_columns_of_a_table(
    capsys: Captured, tmp_path: Path, asked: str, advice: str
) -> None:
    rows = [f"{i}.jpg,{'cat' if i % 2 else 'dog'},{_light(i)}" for i in range(420)]
    folder = tmp_path / "photos" / "test"
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,light", *rows]))
    for i in range(420):
        (folder / f"{i}.jpg").write_bytes(b"no image")
    write_suite(
        "task: photos/classification, metric: acc1, max_drop: 10pp, "
        f"slices: {{{asked}, max_drop: 20pp}}"
    )
    suite = Path("s.quantgate.yaml")
    suite.write_text(
        suite.read_text().replace(
            "{dataset: wds/photos", "{dataset: imagefolder, columns: {keep: [light]}"
        )
    )

    _, limit = plan(capsys, "--flips", "5%", environ={"QUANTGATE_PHOTOS": str(tmp_path / "photos")})

    assert limit["advice"].startswith(advice), limit["advice"]


def test_slices_against_a_baseline_are_planned_too(capsys: Captured, tmp_path: Path) -> None:
    labels = [label for label in range(10) for _ in range(20)]
    environ = write_shard(tmp_path / "photos", [("cls", str(label)) for label in labels])
    write_suite(
        "task: photos/classification, metric: acc1, max_drop: 10pp, max_fp16_drop: 9pp, "
        "max_drop_since_first: 10pp, "
        "slices: {by: class, max_drop: 20pp, max_drop_since_first: 30pp}",
        kind="regression",
    )

    *_, slices, since_first = plan(capsys, "--flips", "5%", environ=environ)

    assert (slices["limit"], slices["gate"]) == (
        "slices.max_drop",
        "regression[photos/classification-acc1]",
    )
    assert slices["advice"].startswith("10 slices of 20: ")
    assert since_first["limit"] == "slices.max_drop_since_first"
    assert since_first["where"] == slices["where"] == "s.quantgate.yaml:9"


def _light(index: int) -> str:
    return "dusk" if index < 40 else "dawn" if index < 60 else "day"


def test_slices_of_unknown_size_are_said(capsys: Captured) -> None:
    write_suite(
        "task: photos/classification, metric: acc1, max_drop: 10pp, "
        "slices: {by: light, max_drop: 20pp}"
    )

    (drop,) = plan(capsys, "--flips", "5%")

    assert drop["limit"] == "max_drop"
    assert drop["notes"][-1] == "s.quantgate.yaml:9: the sizes of these slices are not known here"
