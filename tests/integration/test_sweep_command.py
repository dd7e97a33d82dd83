"""`quantgate sweep` on a tiny model: each recipe is judged as a suite of its own would be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.run.workers import ProcessWorker

if TYPE_CHECKING:
    from pytest_quantgate.run.workers import Embedded

WriteSuite = Callable[..., Path]


def test_recipes_side_by_side(
    write_suite: WriteSuite,
    run_gates: Callable[..., pytest.RunResult],
    shared_cache: Path,
    pytester: pytest.Pytester,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suite = write_suite(name="tiny")
    out = pytester.path / "sweep.json"
    given = ["--cache-dir", str(shared_cache), "--json", str(out)]

    status = main(["sweep", str(suite), "--recipes", "fp8-attention,int8", *given], environ={})

    shown = capsys.readouterr().out
    found = json.loads(out.read_text("utf-8"))["sweep"]
    candidates = {c["recipe"]: c for c in found["candidates"]}
    assert list(candidates) == ["fp8-attention", "int8"]
    assert found["left_out"] == ["regression[scenes/classification-acc1]"]
    assert "not judged in a sweep: regression[scenes/classification-acc1]" in shown
    assert status == (0 if any(c["status"] == "PASS" for c in candidates.values()) else 1)
    for candidate in candidates.values():
        assert 0.25 < candidate["weights_bytes"] / found["fp16_bytes"] < 1
    # The same figures as pytest gives of the suite.
    run_gates("--quantgate-baselines=create", "--quantgate-report=report")
    (report,) = json.loads((pytester.path / "report" / "report.json").read_text("utf-8"))["suites"]
    (gate,) = [g for g in report["gates"] if g["kind"] == "accuracy"]
    (loss,) = candidates["fp8-attention"]["losses"]
    assert loss["drop_points"] == gate["figures"]["drop_points"]


@pytest.mark.slow
def test_workers_give_the_sweep_of_one_process(
    write_suite: WriteSuite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names one recipe; workers embed with the one that is asked for."""
    suite = write_suite(
        recipe="fp8",
        replace={
            "  roundtrip: {}\n": "",
            "max_flips: 90%, samples: 64}": "max_flips: 90%, samples: 300}",
        },
    )
    asked: list[str] = []
    embed = ProcessWorker.embed

    def remember(self: ProcessWorker, question: Mapping[str, Any], part: range) -> Embedded:
        asked.append(question["suite"]["recipe"])
        return embed(self, question, part)

    monkeypatch.setattr(ProcessWorker, "embed", remember)
    found = []
    for workers in ("1", "2"):
        out = pytester.path / f"{workers}.json"
        given = ["--cache-dir", str(pytester.path / f"cache-{workers}"), "--json", str(out)]
        given += ["--recipes", "fp8-attention,int8", "--workers", workers]
        main(["sweep", str(suite), *given], environ={})
        found.append(out.read_bytes())
        assert bool(asked) is (workers == "2")

    assert found[0] == found[1]
    assert set(asked) == {"fp8-attention", "int8"}


@pytest.mark.parametrize("text", ["0", "many", "257"])
def test_a_number_of_workers_that_is_none_is_refused(
    text: str, write_suite: WriteSuite, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", str(write_suite()), "--recipes", "fp8", "--workers", text], environ={})
    assert "expected a number from 1 to 256, or gpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ("fp8,fp9", "unknown recipe 'fp9'"),
        ("fp8,fp8", "names a recipe twice"),
        (",", "names no recipe"),
    ],
)
def test_wrong_names_are_refused_before_anything_runs(
    write_suite: WriteSuite, recipes: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite()

    try:
        status = main(["sweep", str(suite), "--recipes", recipes], environ={})
    except SystemExit as error:
        status = int(str(error.code))

    assert status in (1, 2)
    assert message in capsys.readouterr().err


def test_a_checkpoint_that_is_handed_over_is_of_one_recipe(
    write_suite: WriteSuite, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write_suite(
        replace={"quantize: {recipe: fp8-attention": "quantized: {checkpoint: ./out"}
    )

    assert main(["sweep", str(suite), "--recipes", "fp8"], environ={}) == 1
    assert "what is handed over is of one recipe" in capsys.readouterr().err
