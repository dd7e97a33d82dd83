"""Faults of number formats on a small model: each is red by its code, and good ones pass."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_quantgate.evidence.sanity import NO_TEXTS, Sanity
from pytest_quantgate.evidence.verdict import Status

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.sabotage.bench import Bench  # noqa: E402
from benchmarks.sabotage.formats import (  # noqa: E402
    FAULTS,
    GOOD,
    RECIPE_LINE,
    FormatFault,
    good_case,
)

pytestmark = pytest.mark.slow

SUITE = f"""\
quantgate: 1
model: {{source: transformers, id: "{{model}}", dtype: float32}}
calibration: {{calibration}}
{RECIPE_LINE}
gates:
  coverage: {{{{}}}}
  calibration: {{{{max_clipped: 49%}}}}
  export: {{{{}}}}
  parity: {{{{samples: 8}}}}
"""
CALIBRATION = "{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}"


FEW_SAMPLES = "calibration.clipping-open"


@pytest.fixture(scope="module")
def bench(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    suite = SUITE.replace("{model}", str(tiny_clip)).replace("{calibration}", CALIBRATION)
    return Bench(
        tmp_path_factory.mktemp("formats"), suite=suite.replace("{{", "{").replace("}}", "}")
    )


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_red_by_the_code_of_its_cause(fault: FormatFault, bench: Bench) -> None:
    good = good_case(bench, fault.recipe)
    vars(good)["sanity"] = Sanity(data="noise", pairs=1, reading=NO_TEXTS)
    case = fault.make(bench)
    vars(case)["sanity"] = vars(good)["sanity"]

    verdict = case.judge(kind=fault.gate).verdict

    assert verdict.status is Status.FAIL, verdict.headline
    assert fault.code in (verdict.code, *verdict.other_codes), verdict.headline


@pytest.mark.parametrize("recipe", GOOD)
def test_a_good_variant_is_not_red(recipe: str, bench: Bench) -> None:
    case = good_case(bench, recipe)
    vars(case)["sanity"] = Sanity(data="noise", pairs=1, reading=NO_TEXTS)

    in_files = any(fault.to_graph and fault.recipe == recipe for fault in FAULTS)
    for gate in ("coverage", "calibration", *(("export", "parity") if in_files else ())):
        verdict = case.judge(kind=gate).verdict
        open_ = verdict.status is Status.NOT_MEASURED or verdict.code == FEW_SAMPLES
        assert verdict.passed or open_, verdict.headline
