"""What a case remembers of its looks at the data, and what the next one is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.looks import remember_look
from pytest_quantgate.store.looks import Ledger, Looks
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.contents import Contents

GATE = AccuracyGate(
    where=Where(file="s.yaml", line=1),
    task="scenes/classification",
    metric="acc1",
    max_drop=0,  # type: ignore[arg-type]
)


def show(samples: int, **more: Any) -> Contents:
    pictures = tuple(f"picture {i}" for i in range(samples))
    return Contents(ids=pictures, pixels=pictures, looks=pictures, **more)


def judge_on(
    samples: int,
    *,
    ledger: Ledger | None,
    calibration: str = "c",
    stored: tuple[Any, ...] = (),
    name: str = "clip",
    contents: Any = None,
    gate: AccuracyGate = GATE,
) -> Any:
    """Return which look it is to judge a case on the first so many pictures."""
    gates = [SimpleNamespace(kind="regression", key=GATE.key)] if stored else []
    run: Any = SimpleNamespace(
        ledger=ledger,
        suite=SimpleNamespace(name=name, gates=gates),
        store=SimpleNamespace(read=lambda *_: SimpleNamespace(looks=stored)),
        today=date(2026, 11, 29),
        contents=contents or (lambda *_, **__: show(samples)),
        fingerprint=lambda data: Fingerprint(
            model="m", data=data, calibration=calibration, recipe="r"
        ),
    )
    outcomes: Any = SimpleNamespace(ids=range(samples), data_digest=f"digest of {samples}")
    return remember_look(run, gate, outcomes, planned=gate.planned_samples)


def test_raised_samples_are_a_second_look_and_a_rerun_is_none(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    numbers = [judge_on(n, ledger=ledger)[0].now.number for n in (500, 500, 1000, 500, 2000, 1000)]

    assert numbers == [1, 1, 2, 1, 3, 2]


def test_another_calibration_is_another_variant(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)

    looks = [judge_on(500, ledger=ledger, calibration=f"seed {n}")[0] for n in range(3)]

    assert [(look.now.number, look.variants) for look in looks] == [(1, 1), (1, 2), (1, 3)]


def test_another_suite_asks_a_question_of_its_own(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    judge_on(500, ledger=ledger)

    assert judge_on(1000, ledger=ledger, name="release")[0].now.number == 1


def test_a_fresh_machine_knows_the_looks_of_the_baseline(tmp_path: Path) -> None:
    developer = Ledger(tmp_path / "developer")
    judge_on(500, ledger=developer)
    stored = developer.read(f"clip {GATE.key}")

    looks, _ = judge_on(1000, ledger=Ledger(tmp_path / "ci"), stored=stored)

    assert (looks.now.number, looks.earlier) == (2, stored)


def test_without_the_package_that_hashes_pictures_a_gate_is_judged_all_the_same(
    tmp_path: Path,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MissingPackage("ImageHash", extra="clip", purpose="finding near copies")

    ledger = Ledger(tmp_path)

    numbers = [judge_on(n, ledger=ledger, contents=refuse)[0].now.number for n in (500, 500, 1000)]

    assert numbers == [1, 1, 1]


def test_what_is_no_look_is_not_remembered() -> None:
    """A sabotage of the self-test, or a study of sensitivity."""
    looks, notes = judge_on(500, ledger=None)

    assert (looks, notes) == (Looks(now=looks.now), ())
    assert (looks.now.number, looks.now.spent) == (1, 0.99)


def test_a_look_that_cannot_be_remembered_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pytest_quantgate.store.looks.write_whole", refuse)

    looks, notes = judge_on(500, ledger=Ledger(tmp_path))

    assert looks.now.number == 1
    assert notes == (
        "scenes/classification-acc1: this look at the data was not remembered: [Errno 28] No space "
        "left on device",
    )


@pytest.mark.parametrize("remembered", [True, False])
def test_what_was_guessed_and_changed_in_the_data_is_said(tmp_path: Path, remembered: bool) -> None:
    turned, cut = "not turned, though EXIF says so", "I;16 made RGB: values above 255 cut off"
    shown = show(4, changes=((), (turned,), (turned, cut), ()), notes=("column 'cls' is taken",))

    _, notes = judge_on(
        4, ledger=Ledger(tmp_path) if remembered else None, contents=lambda *_, **__: shown
    )

    assert notes == (
        "scenes: column 'cls' is taken",
        f"scenes: decoding changes 2 of 4 images: 1 {cut}, 2 {turned}",
    )


def test_a_plan_spends_by_how_much_of_it_is_seen(tmp_path: Path) -> None:
    """Half of them: a ninth of 5 %; all: all but a hundredth; then half of what is left."""
    ledger = Ledger(tmp_path)
    plan = [replace(GATE, samples=n, planned_samples=1000) for n in (500, 1000)]

    looks = [judge_on(g.samples or 0, ledger=ledger, gate=g)[0].now for g in plan]
    looks += [judge_on(2000, ledger=ledger)[0].now]

    assert [look.spent for look in looks] == [pytest.approx(0.1104, abs=1e-4), 0.99, 0.995]


def test_what_was_spent_is_not_given_back_by_another_plan(tmp_path: Path) -> None:
    """A plan that is written after a look, or taken out after one, does not change that look."""
    planned = replace(GATE, samples=500, planned_samples=1000)
    unplanned = replace(GATE, samples=500)
    early, late = Ledger(tmp_path / "early"), Ledger(tmp_path / "late")

    first, again = (judge_on(500, ledger=early, gate=g)[0].now for g in (planned, unplanned))
    spent, still = (judge_on(500, ledger=late, gate=g)[0].now for g in (unplanned, planned))

    assert first.spent == again.spent < 0.2
    assert spent.spent == still.spent == 0.99
