"""`quantgate review`: what is shown, what an answer does, and that nothing is lost."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.store.baselines import Store, write_obtained
from tests.unit.store.test_baselines import KEY, SUITE, make_record, outcomes

A, B = "a/classification-acc1", "b/classification-acc1"

Review = Callable[..., int]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / "baselines")


@pytest.fixture
def review(monkeypatch: pytest.MonkeyPatch) -> Review:
    def run(answers: str, *options: str, environ: Mapping[str, str] = {}) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(answers))
        return main(["review", "obtained", *options], environ=environ)

    return run


def list_files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_each_answer_does_what_it_says(
    store: Store, review: Review, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("a", "b", "c", "d")
    for name in names:
        write_obtained(Path("obtained"), make_record(key=f"{name}/classification-acc1", reason=""))

    status = review("a\nr\ns\n", "--reason", "looked at it")

    out = capsys.readouterr().out
    assert status == 1
    assert "1 of 4: obtained/demo/regression-a--classification-acc1.json" in out
    assert out.endswith("4 results: 1 accepted, 1 rejected, 1 skipped, 1 left\n")
    kept = store.read(SUITE, A)
    assert kept is not None
    assert kept.reason == "looked at it"
    assert store.read(SUITE, B) is None
    assert [path.name for path in sorted(Path("obtained").rglob("*.*"))] == [
        "regression-a--classification-acc1.json",
        "regression-b--classification-acc1.json.rejected",
        "regression-c--classification-acc1.json",
        "regression-d--classification-acc1.json",
    ]


def test_what_is_replaced_is_shown_beside_what_is_new(
    store: Store, review: Review, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write(make_record())
    record = make_record(make_record(), quantized=outcomes("1111111111"), reason="")
    write_obtained(Path("obtained"), record)

    assert review("a\na better recipe\n") == 0

    out = capsys.readouterr().out
    assert "reason, kept in the baseline: " in out
    assert f"{SUITE} {KEY}" in out
    assert "100.00 %" in out
    assert store.read(SUITE, KEY) == replace(record, reason="a better recipe")


def test_what_accept_refuses_cannot_be_accepted(
    store: Store, review: Review, capsys: pytest.CaptureFixture[str]
) -> None:
    red = replace(make_record(key=A), verdicts={"accuracy": "FAIL", "coverage": "PASS"})
    write_obtained(Path("obtained"), red)
    (Path("obtained") / "demo" / "regression-b.json").write_text("{")
    write_obtained(Path("obtained"), make_record(key="c/classification-acc1"))

    assert review("a\ns\nr\na\n", "--reason", "because") == 1

    out = capsys.readouterr().out
    assert "may not be accepted: " in out
    assert "accuracy is FAIL" in out
    assert "'a' is none of r, s, q" in out
    assert out.endswith("3 results: 1 accepted, 1 rejected, 1 skipped\n")
    assert store.read(SUITE, A) is None
    assert store.read(SUITE, "c/classification-acc1") is not None


@pytest.mark.parametrize("answers", ["", "\n\n", "x\ny\n", "q\n", "a\n\n"])
def test_without_an_answer_nothing_changes(store: Store, review: Review, answers: str) -> None:
    """The end of the input, other letters, quit, and no reason."""
    store.write(make_record())
    write_obtained(Path("obtained"), make_record(make_record(), quantized=outcomes("1" * 10)))
    before = list_files(Path())

    assert review(answers) == 1

    assert list_files(Path()) == before


def test_a_rejected_result_overwrites_none_before_it(store: Store, review: Review) -> None:
    for reason in ("one", "two", "three"):
        write_obtained(Path("obtained"), make_record(key=A, reason=reason))
        assert review("r\n") == 0

    kept = sorted(Path("obtained").rglob("*.rejected*"))
    assert len({path.read_bytes() for path in kept}) == 3


def test_in_ci_nothing_is_reviewed(
    store: Store, review: Review, capsys: pytest.CaptureFixture[str]
) -> None:
    write_obtained(Path("obtained"), make_record(key=A))

    assert review("a\n", "--reason", "x", environ={"CI": "true"}) == 1
    assert "quantgate review" in capsys.readouterr().err
    assert not store.root.exists()
    assert review("a\n", "--reason", "x", "--allow-ci-write", environ={"CI": "true"}) == 0


@pytest.mark.parametrize("folder", [None, "empty"])
def test_nothing_to_review_is_said(
    store: Store, review: Review, folder: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if folder:
        Path("obtained").mkdir()

    assert review("") == 1
    assert "nothing to accept" in capsys.readouterr().err
