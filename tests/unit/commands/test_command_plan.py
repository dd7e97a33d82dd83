"""`quantgate plan`: samples that each limit needs, and what the data cannot decide."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import date
from pathlib import Path

import pytest

from pytest_quantgate.baselines import Store, next_record
from pytest_quantgate.cli import main
from pytest_quantgate.fingerprint import Fingerprint
from pytest_quantgate.gates.statistics import Flips, samples_to_settle
from pytest_quantgate.measurement import Outcomes
from pytest_quantgate.planning import DEFAULT, Rates, plan_suite
from pytest_quantgate.suite_file import load_suite

SUITE = """\
quantgate: 1
model: {source: reference}
datasets:
  photos: {dataset: wds/photos, root: "${PHOTOS}"}
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


def write_baseline(*, lost: int, won: int, samples: int = 1000) -> None:
    fp16 = [True] * (samples - 200) + [False] * 200
    after = [False] * lost + fp16[lost : samples - won] + [True] * won
    record = next_record(
        None,
        suite="s",
        key=KEY,
        task="scenes/classification",
        metric="acc1",
        fp16=outcomes(fp16, "FP16"),
        quantized=outcomes(after, "fp8"),
        fingerprint=Fingerprint(
            model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64
        ),
        versions={},
        today=date(2026, 11, 21),
        reason="measured",
    )
    Store(Path("baselines")).write(record)


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
    assert "environment variable PHOTOS is not set" in photos["notes"][0]


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

    found = plan(capsys, environ={"PHOTOS": str(tmp_path / "photos")})

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


def test_help_shows_an_example(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["plan", "--help"])

    assert "quantgate plan suites/ --flips 3% --drop 0.2pp" in capsys.readouterr().out
