"""Records of machines: they go through their file, stay in their place, and mix with no others."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.evidence.latency import LatencyRun, Machine, RunnerTimes
from pytest_quantgate.store.baselines import (
    Store,
    accept_obtained,
    next_timed_record,
    read_any_record,
    read_record,
    write_obtained,
)
from pytest_quantgate.store.records import (
    LatencyRecord,
    Record,
    canonical_text,
    read_as,
    record_from_json,
    record_to_json,
)

MACHINE = Machine(system="Linux x86_64", processor="A", cores=2, threads=1, device="cpu")
KEY = "tensorrt-rtx-vision-batch8"


def make_record(**changes: Any) -> LatencyRecord:
    values: dict[str, Any] = {
        "suite": "demo",
        "key": KEY,
        "runtime": "tensorrt-rtx",
        "machine": MACHINE,
        "rounds": 30,
        "fp16_ms": 4.0,
        "quantized_ms": 2.5,
        "versions": {"torch": "2.15.0"},
        "created": "2026-11-01",
        "updated": "2026-11-02",
        "reason": "first",
        "verdicts": {"sanity": "PASS", "coverage": "PASS"},
        **changes,
    }
    return LatencyRecord(**values)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "baselines")


def test_a_record_goes_through_its_file(store: Store) -> None:
    path = store.write(make_record())
    assert path == store.root / "demo" / f"latency-{KEY}.json"
    assert store.read_timed("demo", KEY, kind=LatencyRecord) == make_record()
    assert path.read_text("utf-8") == canonical_text(make_record())
    assert list(json.loads(path.read_text("utf-8"))) == sorted(record_to_json(make_record()))
    assert read_any_record(path, root=store.root) == make_record()


def test_none_is_none(store: Store) -> None:
    assert store.read_timed("demo", KEY, kind=LatencyRecord) is None
    assert not store.root.exists()


@pytest.mark.parametrize("key", ["../x", "a/b", "", ".hidden", "a b", "x" * 200, "a\nb"])
def test_a_key_that_is_no_plain_name_has_no_place(store: Store, key: str) -> None:
    with pytest.raises(BaselineError, match="is of no latency gate"):
        store.write(make_record(key=key))
    assert not store.root.exists()


def test_what_compares_results_takes_no_machine(store: Store) -> None:
    path = store.write(make_record())
    with pytest.raises(BaselineError, match="damaged baseline: kind is 'latency', expected 're"):
        read_record(path, root=store.root)
    with pytest.raises(BaselineError, match="expected 'regression'"):
        read_as(Record, record_to_json(make_record()))
    assert isinstance(record_from_json(record_to_json(make_record())), LatencyRecord)


def test_a_regression_record_in_the_place_of_a_machine_is_refused(store: Store) -> None:
    path = store.path("demo", KEY, kind="latency")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"schema": 1, "suite": "demo"}), "utf-8")
    with pytest.raises(BaselineError, match="kind is 'regression', expected 'latency'"):
        store.read_timed("demo", KEY, kind=LatencyRecord)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 3}, "schema 3 is not supported: this release reads 1 and 2"),
        ({"schema": True}, "schema True is not supported"),
        ({"fp16_ms": "4"}, "LatencyRecord.fp16_ms: expected float, found '4'"),
        ({"fp16_ms": True}, "fp16_ms: expected float, found True"),
        ({"quantized_ms": 0}, "quantized_ms: 0.0 is no time in ms"),
        ({"quantized_ms": "inf"}, "quantized_ms: inf is no time in ms"),
        ({"rounds": True}, "rounds: expected int, found True"),
        ({"rounds": 0}, "rounds: 0 is no count from 1"),
        ({"rounds": 1.5}, "rounds: expected int, found 1.5"),
        ({"machine": []}, "machine: expected a mapping, found list"),
        ({"versions": {"torch": 2}}, "versions.torch: expected str, found 2"),
        ({"reason": "\x1b[31m"}, "reason: the character U\\+001B is not allowed"),
        ({"updated": "2026-13-01"}, "updated: '2026-13-01' is no day"),
        ({"reason": "another"}, "it was changed by hand"),
        ({"verdicts": {"coverage": "GREEN"}}, "verdicts.coverage: 'GREEN' is none of"),
    ],
)
def test_a_record_that_was_changed_by_hand_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BaselineError, match=words):
        record_from_json(record_to_json(make_record()) | change)


@pytest.mark.parametrize("field", ["system", "processor", "cores", "threads", "device"])
def test_every_property_of_the_machine_must_be_there(field: str) -> None:
    data = record_to_json(make_record())
    del data["machine"][field]
    with pytest.raises(BaselineError, match=f"machine: field '{field}' is missing"):
        record_from_json(data)


def test_the_same_machine_is_the_same_result() -> None:
    assert make_record().same_result(make_record(quantized_ms=9.0, rounds=5))
    assert not make_record().same_result(make_record(machine=replace(MACHINE, cores=3)))


def test_it_is_described_by_its_device() -> None:
    gpu = replace(MACHINE, device="NVIDIA L4")
    assert make_record().describe() == "FP16 4 ms, quantized 2.5 ms on A"
    assert make_record(machine=gpu).describe().endswith(" on NVIDIA L4")


def test_an_obtained_machine_is_accepted_with_its_reason(store: Store, tmp_path: Path) -> None:
    obtained = tmp_path / "obtained"
    write_obtained(obtained, make_record())
    assert accept_obtained(obtained, store=store, reason=" new ") == (store.path_of(make_record()),)
    found = store.read_timed("demo", KEY, kind=LatencyRecord)
    assert found == make_record(reason="new")


def test_a_record_in_anothers_place_is_not_accepted(store: Store, tmp_path: Path) -> None:
    obtained = tmp_path / "obtained"
    path = write_obtained(obtained, make_record())
    path.rename(path.with_name("latency-other.json"))
    with pytest.raises(BaselineError, match="belongs elsewhere"):
        accept_obtained(obtained, store=store, reason="r")
    assert not store.root.exists()


def test_machine_of_a_red_run_is_not_accepted(store: Store, tmp_path: Path) -> None:
    obtained = tmp_path / "obtained"
    write_obtained(obtained, make_record(verdicts={"coverage": "PASS", "parity": "FAIL"}))
    with pytest.raises(BaselineError, match="not accepted as a baseline: parity is FAIL"):
        accept_obtained(obtained, store=store, reason="r")
    assert not store.root.exists()


SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 32, batch_size: 16}
quantize: {recipe: int8}
gates:
  latency: {tower: vision, runtime: tensorrt-rtx, batch: 8, max_latency: LIMIT}
"""


@pytest.mark.parametrize("limit", ["3ms", None])
def test_a_machine_is_kept_as_long_as_a_gate_has_a_limit_in_ms(
    tmp_path: Path, limit: str | None
) -> None:
    text = SUITE.replace(
        "max_latency: LIMIT", f"max_latency: {limit}" if limit else "max_ratio: 1x"
    )
    (tmp_path / "demo.quantgate.yaml").write_text(text, encoding="utf-8")
    store = Store(tmp_path / "baselines", project=tmp_path)
    path = store.write(make_record())

    assert [owned.path for owned in store.list_files()] == [path]
    assert [(owned.kind, owned.key) for owned in store.list_files()] == [("latency", KEY)]
    assert store.find("demo", KEY, kind="latency") is not None
    assert store.find("demo", KEY) is None
    assert [orphan.path for orphan in store.prune()] == ([] if limit else [path])
    assert path.exists() is bool(limit)


def test_a_machine_that_version_0_1_left_moves_when_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    text = SUITE.replace("LIMIT", "3ms")
    (tmp_path / "suites" / "clip.quantgate.yaml").write_text(text, encoding="utf-8")
    store = Store(tmp_path / "baselines", project=tmp_path)
    old = store.root / "clip" / f"latency-{KEY}.json"
    plain = record_to_json(make_record(suite="clip")) | {"schema": 1}
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps({k: v for k, v in plain.items() if k not in ("digest", "verdicts")}))

    found = store.read_timed("suites/clip", KEY, kind=LatencyRecord)

    assert found == make_record(suite="suites/clip", verdicts={})
    assert store.orphans() == ()
    assert store.write(replace(found, reason="next")).parent == store.root / "suites" / "clip"
    assert not old.exists()


def test_a_damaged_machine_that_version_0_1_left_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "baselines", project=tmp_path)
    old = store.root / "clip" / f"latency-{KEY}.json"
    old.parent.mkdir(parents=True)
    old.write_text("{")

    with pytest.raises(BaselineError, match=f"^{re.escape(str(old))}: damaged baseline"):
        store.read_timed("suites/clip", KEY, kind=LatencyRecord)
    assert (
        Store(store.root).read_timed("suites/clip", KEY, kind=LatencyRecord) is None
    )  # belongs to no project


def test_the_next_record_is_of_the_run_and_keeps_when_the_first_was_made() -> None:
    def times(name: str, time_ms: float) -> RunnerTimes:
        return RunnerTimes(
            name=name, times_ms=(time_ms,) * 30, runs=1, first_run_ms=1.0, warm_up_batches=1,
            warm=True,
        )  # fmt: skip

    run = LatencyRun(
        runtime="tensorrt-rtx", machine=MACHINE, tower="vision", batch_size=8,
        fp16=times("fp16", 4.0), quantized=times("quantized", 2.5), fp16_again=times("again", 4.0),
    )  # fmt: skip
    first, second = (
        next_timed_record(
            record, kind=LatencyRecord, suite="demo", key=KEY, run=run, reason="first",
            versions={"torch": "2.15.0"}, today=date(2026, 11, 2),
        )
        for record in (None, make_record())
    )  # fmt: skip

    assert replace(second, verdicts=make_record().verdicts) == make_record()
    assert (first.created, first.updated) == ("2026-11-02", "2026-11-02")
