"""`quantgate migrate`: baselines of version 0.1, and of suites that were moved."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.latency import Machine
from pytest_quantgate.evidence.outcomes import StoredOutcomes, pack_scores
from pytest_quantgate.store.baselines import Store
from pytest_quantgate.store.records import LatencyRecord, Record, canonical_text

Captured = pytest.CaptureFixture[str]
KEY = "scenes/classification-acc1"
FILE = "regression-scenes--classification-acc1.json"
LATENCY = "onnxruntime-vision-batch1"
SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: int8}
gates:
  regression:
    - {task: scenes/classification, metric: acc1, max_fp16_drop: 1pp, max_drop: 1pp,
       max_drop_since_first: 1pp}
  latency: {tower: vision, max_latency: 100 ms}
"""


def outcomes(bits: str) -> StoredOutcomes:
    correct = [bit == "1" for bit in bits]
    return StoredOutcomes(
        samples=len(bits),
        ids_digest="1" * 64,
        correct_bits=pack_scores(correct),
        value=sum(correct) / len(bits),
        data_digest="2" * 64,
    )


RECORD = Record(
    suite="clip",
    key=KEY,
    task="scenes/classification",
    metric="acc1",
    fp16=outcomes("1111"),
    accepted=outcomes("1101"),
    first=outcomes("1110"),
    first_fp16=outcomes("1111"),
    fingerprint=Fingerprint(model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64),
    versions={"torch": "2.8"},
    created=date(2026, 11, 1).isoformat(),
    updated=date(2026, 11, 21).isoformat(),
    reason="second",
    first_accepted=date(2026, 11, 1).isoformat(),
    first_reason="first",
)
MACHINE = LatencyRecord(
    suite="clip",
    key=LATENCY,
    runtime="onnxruntime",
    machine=Machine(system="Linux", processor="A", cores=2, threads=1, device="cpu"),
    rounds=30,
    fp16_ms=4.0,
    quantized_ms=2.5,
    versions={},
    created="2026-11-01",
    updated="2026-11-02",
    reason="first",
)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def leave_old(record: Record | LatencyRecord, name: str) -> Path:
    """Write a record as version 0.1 did."""
    plain = json.loads(canonical_text(record))
    new = ["digest", "verdicts", "first_fp16", "chains", "looks"]
    for field in (*new, *(["kind"] if isinstance(record, Record) else [])):
        plain.pop(field, None)
    if isinstance(record, Record):
        for field in ("recipe_entries", "settings", "data_parts"):
            del plain["fingerprint"][field]
        for field in ("fp16", "accepted", "first"):
            del plain[field]["effective_samples"]
    return write(f"baselines/clip/{name}", json.dumps({**plain, "schema": 1}))


@pytest.fixture
def old() -> tuple[Path, Path]:
    return leave_old(RECORD, FILE), leave_old(MACHINE, f"latency-{LATENCY}.json")


def test_old_baselines_move_to_their_suite_and_lose_nothing(
    capsys: Captured, old: tuple[Path, Path]
) -> None:
    write("suites/clip.quantgate.yaml", SUITE)

    assert main(["migrate", "suites"], environ={}) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"baseline moved: baselines/clip/{path.name} -> baselines/suites/clip/{path.name}"
        for path in old
    ]
    store = Store(Path("baselines"))
    assert store.read("suites/clip", KEY) == replace(RECORD, suite="suites/clip")
    assert store.read_timed("suites/clip", LATENCY, kind=LatencyRecord) == replace(
        MACHINE, suite="suites/clip"
    )
    assert not Path("baselines/clip").exists()
    assert main(["migrate", "suites"], environ={}) == 0
    assert capsys.readouterr().out == "nothing to move below baselines\n"


def test_two_owners_are_refused_until_one_is_named(
    capsys: Captured, old: tuple[Path, Path]
) -> None:
    for team in "ab":
        write(f"team_{team}/clip.quantgate.yaml", SUITE)
    before = [path.read_bytes() for path in old]

    assert main(["migrate", "."], environ={}) == 1
    error = capsys.readouterr().err
    assert "team_a/clip.quantgate.yaml and team_b/clip.quantgate.yaml may each own it" in error
    assert [path.read_bytes() for path in old] == before

    assert main(["migrate", "team_b/clip.quantgate.yaml"], environ={}) == 0
    store = Store(Path("baselines"), project=Path.cwd())
    assert store.read("team_b/clip", KEY) == replace(RECORD, suite="team_b/clip")
    assert store.read("team_a/clip", KEY) is None
    assert not any(path.exists() for path in old)


def test_validate_names_the_command(capsys: Captured, old: tuple[Path, Path]) -> None:
    write("suites/clip.quantgate.yaml", SUITE)

    assert main(["validate", "suites"], environ={}) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"  note: {path} is as version 0.1 wrote it: quantgate migrate suites/clip.quantgate.yaml"
        for path in old
    ]
    assert main(["migrate", "suites/clip.quantgate.yaml"], environ={}) == 0
    capsys.readouterr()
    assert main(["validate", "suites"], environ={}) == 0
    assert "version 0.1" not in capsys.readouterr().out


def test_suite_that_was_moved_gets_its_baselines(capsys: Captured) -> None:
    store = Store(Path("baselines"))
    kept = store.write(replace(RECORD, suite="suites/clip"))
    write("models/vit.quantgate.yaml", SUITE)
    move = ["migrate", "models/vit.quantgate.yaml", "--from", "suites/clip"]

    assert main(move, environ={}) == 0
    assert capsys.readouterr().out == (
        f"baseline moved: {kept} -> baselines/models/vit/{kept.name}\n"
    )
    assert store.read("models/vit", KEY) == replace(RECORD, suite="models/vit")
    assert not kept.exists()


def test_what_a_moved_suite_does_not_have_is_passed_over(capsys: Captured) -> None:
    """The first of its gates never had a baseline, the second one has the machine's."""
    store = Store(Path("baselines"))
    kept = store.write(replace(MACHINE, suite="suites/clip"))
    write("models/vit.quantgate.yaml", SUITE)

    move = ["migrate", "models/vit.quantgate.yaml", "--from", "suites/clip"]
    assert main(move, environ={}) == 0
    assert store.read_timed("models/vit", LATENCY, kind=LatencyRecord) == replace(
        MACHINE, suite="models/vit"
    )
    assert not kept.exists()


def test_what_version_0_1_did_not_leave_is_passed_over(
    capsys: Captured, old: tuple[Path, Path]
) -> None:
    old[0].unlink()
    write("suites/clip.quantgate.yaml", SUITE)

    assert main(["migrate", "suites"], environ={}) == 0
    assert capsys.readouterr().out == (
        f"baseline moved: {old[1]} -> baselines/suites/clip/{old[1].name}\n"
    )


def test_suite_that_is_still_there_keeps_its_baselines(capsys: Captured) -> None:
    kept = Store(Path("baselines")).write(replace(RECORD, suite="suites/clip"))
    for name in ("suites/clip", "models/vit"):
        write(f"{name}.quantgate.yaml", SUITE)

    move = ["migrate", "models/vit.quantgate.yaml", "--from", "suites/clip"]
    assert main(move, environ={}) == 1
    told = capsys.readouterr().err
    assert f"{kept}: suites/clip.quantgate.yaml is still there and owns it" in told
    assert "make a baseline for models/vit.quantgate.yaml with --quantgate-baselines=create" in told
    assert kept.exists()


@pytest.mark.parametrize("record", [RECORD, MACHINE], ids=["baseline", "machine"])
def test_what_has_the_new_name_is_not_overwritten(
    capsys: Captured, record: Record | LatencyRecord
) -> None:
    store = Store(Path("baselines"))
    kept = [store.write(replace(record, suite=name)) for name in ("suites/clip", "models/vit")]
    write("models/vit.quantgate.yaml", SUITE)

    move = ["migrate", "models/vit.quantgate.yaml", "--from", "suites/clip"]
    assert main(move, environ={}) == 1
    assert f"{kept[1]} is there already, so {kept[0]} is not moved" in capsys.readouterr().err
    assert all(path.exists() for path in kept)


def test_one_damaged_file_leaves_all_where_they_were(
    capsys: Captured, old: tuple[Path, Path]
) -> None:
    write("suites/clip.quantgate.yaml", SUITE)
    old[1].write_text(old[1].read_text().replace('"rounds": 30', '"rounds": 0'))

    assert main(["migrate", "suites"], environ={}) == 1
    assert "rounds: 0 is no count" in capsys.readouterr().err
    assert all(path.exists() for path in old)
    assert not Path("baselines/suites").exists()


def test_it_is_refused_under_ci_and_for_several_suites_with_one_source(capsys: Captured) -> None:
    for name in ("a", "b"):
        write(f"suites/{name}.quantgate.yaml", SUITE)

    assert main(["migrate", "suites"], environ={"CI": "1"}) == 1
    assert "quantgate migrate would write baselines under CI" in capsys.readouterr().err
    assert main(["migrate", "suites", "--from", "x"], environ={}) == 1
    assert "--from x names one suite, and 2 are to get it" in capsys.readouterr().err
