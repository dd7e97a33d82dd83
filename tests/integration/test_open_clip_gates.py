"""A really trained open_clip model on photographs that it has not seen, through every gate.

The data is not part of the project: see `test_siglip_gates.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite
from tests.integration.test_siglip_gates import DATA, PHOTOS

MODEL = DATA / "openclip-cifar10-tiny"

pytestmark = pytest.mark.skipif(
    not (MODEL.is_dir() and PHOTOS.is_dir()),
    reason=f"{MODEL.name} or {PHOTOS.name} not in {DATA}: set QUANTGATE_TEST_DATA to their folder",
)

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
datasets:
  photos: {{dataset: wds/photos, root: "{photos}"}}
calibration: {{data: photos/train, samples: 128, batch_size: 64, held_out_samples: 64}}
quantize: {{recipe: {recipe}, exclude: [{exclude}]}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 0.5%}}
  fidelity: {{data: photos/test, samples: 128, min_cosine: 0.99, min_sqnr: 15dB}}
  accuracy: {{task: photos/classification, metric: acc1, max_drop: 2pp, floor: 55%}}
  roundtrip: {{}}
  export: {{allow: [{softmax}]}}
  parity: {{samples: 32}}
{more}"""

PROJECTIONS = '"text.text_projection*", "visual.proj*"'

ENGINE = """\
  engine:
    - {target: sm89, towers: [vision], min_fp8_gemms: 24, attention: fused-fp8}
    - {target: sm89, towers: [text], min_fp8_gemms: 12}
  memory: {target: sm89, towers: [vision], max_weights_ratio: 0.9x}
  trace: {target: sm89}
"""


def write_suite(
    folder: Path, *, model: Path = MODEL, recipe: str = "fp8-attention", more: str = "",
    exclude: str = PROJECTIONS,
) -> Path:  # fmt: skip
    path = folder / "suites" / "open_clip.quantgate.yaml"
    path.parent.mkdir(exist_ok=True)
    softmax = "softmax" if recipe == "fp8-attention" else ""
    text = SUITE.format(
        model=model, photos=PHOTOS, recipe=recipe, exclude=exclude, softmax=softmax, more=more
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def judge(tmp_path: Path, make_case: Callable[..., Case]) -> Callable[..., Verdict]:
    """Judge one gate of the suite, with changes."""

    def make(gate: str, **changes: Any) -> Verdict:
        case = make_case(load_suite(write_suite(tmp_path, **changes)))
        return case.judge(kind=gate).verdict

    return make


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
def test_every_gate_passes(
    pytester: pytest.Pytester, run_gates: Callable[..., pytest.RunResult], recipe: str
) -> None:
    pytest.importorskip("open_clip")
    pytest.importorskip("tensorrt_rtx")
    fp8 = recipe == "fp8-attention"
    write_suite(pytester.path, recipe=recipe, more=ENGINE if fp8 else "  trace: {}\n")

    result = run_gates("--quantgate-json=found.json")

    result.assert_outcomes(passed=12 if fp8 else 9)
    report = json.loads((pytester.path / "found.json").read_text("utf-8"))
    figures = {g["name"].partition("[")[0]: g["figures"] for g in report["suites"][0]["gates"]}
    # What it was handed over with: 59.8 % of 3,000 photographs with open_clip alone.
    assert figures["accuracy"]["fp16_value"] == pytest.approx(0.598, abs=0.001)
    assert figures["coverage"]["weights_covered_share"] == pytest.approx(0.973, abs=0.001)


def test_the_projections_must_be_named(judge: Callable[..., Verdict]) -> None:
    verdict = judge("coverage", exclude="")

    assert verdict.code == "coverage.weights-escaped"
    assert f"add exclude: [{PROJECTIONS}]" in verdict.next_step


def test_the_preprocessing_of_another_model_is_red(
    judge: Callable[..., Verdict], tmp_path: Path
) -> None:
    """Pixels that were never divided by 255: the mean and the deviation of such a model."""
    folder = tmp_path / "open_clip"
    folder.mkdir()
    for path in MODEL.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
    config["preprocess_cfg"].update(mean=[0.0, 0.0, 0.0], std=[0.0039, 0.0039, 0.0039])
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")

    assert judge("sanity", model=folder).code == "sanity.pixel-range"
