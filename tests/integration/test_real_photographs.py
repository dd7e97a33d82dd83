"""The suite clip_cifar10 on a really trained CLIP and 10,000 photographs.

The data is not part of the project. QUANTGATE_TEST_DATA names the folder (`clip-cifar10-tiny/`,
`cifar10/`); by default it is looked for beside the checkout, in `shared/data`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
SUITE = REPOSITORY / "suites" / "clip_cifar10.quantgate.yaml"

pytestmark = pytest.mark.skipif(
    not (DATA / "cifar10").is_dir(),
    reason=f"no photographs in {DATA}: set QUANTGATE_TEST_DATA to the folder with cifar10/",
)

WEIGHT_ONLY = """[
  {{quantizer_name: "*", enable: false}},
  {{quantizer_name: "*weight_quantizer", parent_class: nn.Linear,
    cfg: {{num_bits: {bits}, axis: 0}}}}]"""


@pytest.fixture
def judge_photographs(
    tmp_path: Path, make_case: Callable[..., Case]
) -> Callable[..., dict[str, Verdict]]:
    """Judge gates of the shipped suite with another recipe; `without` removes text from it."""

    def judge(recipe: str, *gates: str, without: str = "") -> dict[str, Verdict]:
        text = SUITE.read_text(encoding="utf-8")
        assert without in text
        text = text.replace("recipe: fp8-attention", f"recipe: {recipe}").replace(without, "")
        if "attention" not in recipe:
            text = text.replace("coverage: {attention: [q, k, v, output]}", "coverage: {}")
        path = tmp_path / "photographs.quantgate.yaml"
        path.write_text(text, encoding="utf-8")
        case = make_case(
            load_suite(path),
            environ={
                "QUANTGATE_CLIP": str(DATA / "clip-cifar10-tiny"),
                "QUANTGATE_DATASET": str(DATA / "cifar10"),
            },
        )
        keys = {"accuracy": "photos/classification-acc1"}
        return {gate: case.judge(kind=gate, key=keys.get(gate, "")).verdict for gate in gates}

    return judge


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
def test_good_recipes_pass(
    judge_photographs: Callable[..., dict[str, Verdict]], recipe: str
) -> None:
    verdicts = judge_photographs(recipe, "coverage", "calibration", "fidelity", "accuracy")

    assert {name: v.status for name, v in verdicts.items()} == dict.fromkeys(verdicts, Status.PASS)


def test_eight_bits_pass(judge_photographs: Callable[..., dict[str, Verdict]]) -> None:
    verdicts = judge_photographs(WEIGHT_ONLY.format(bits=8), "coverage", "accuracy")

    assert verdicts["coverage"].passed, verdicts["coverage"]
    assert verdicts["accuracy"].passed, verdicts["accuracy"]


def test_too_few_bits_fail(judge_photographs: Callable[..., dict[str, Verdict]]) -> None:
    verdict = judge_photographs(WEIGHT_ONLY.format(bits=3), "accuracy", without=", max_flips: 3%")[
        "accuracy"
    ]

    assert verdict.status is Status.FAIL
    assert "over max_drop 0.50 pp" in verdict.headline


def test_four_bits_are_not_decided_by_the_average_and_caught_by_flips(
    judge_photographs: Callable[..., dict[str, Verdict]],
) -> None:
    """The average lost is about the limit; one answer in twenty is another one."""
    recipe = WEIGHT_ONLY.format(bits=4)
    average = judge_photographs(recipe, "accuracy", without=", max_flips: 3%")["accuracy"]
    flips = judge_photographs(recipe, "accuracy")["accuracy"]

    assert average.status is Status.INCONCLUSIVE
    assert float(average.figures["drop_points"]) == pytest.approx(0.5, abs=0.1)
    assert "one-sided 95 % limits [" in average.headline
    assert "not decided against max_drop 0.50 pp" in average.headline
    assert flips.status is Status.FAIL
    assert "over max_flips 3.00 %" in flips.headline
    assert float(flips.figures["flips_share"]) > 0.04
