"""A format that this machine cannot compute is NOT_MEASURED with the reason: never green or red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}}}
gates:
  coverage: {{towers: [text]}}
  calibration: {{}}
  roundtrip: {{}}
"""


#: E5M2 in blocks: the one that this package does not compute by itself.
BLOCKS = "{num_bits: [5, 2], block_sizes: {-1: 16, type: dynamic}}"
E5M2 = f"{{quant_cfg: {{'*weight_quantizer': {BLOCKS}, '*input_quantizer': {BLOCKS}}}}}"


@pytest.mark.parametrize(("recipe", "name"), [(E5M2, "E5M2")])
def test_every_gate_says_what_it_needs(
    recipe: str,
    name: str,
    tmp_path: Path,
    tiny_clip: Path,
    make_case: Callable[..., Case],
    assume_sane: Callable[[Case], Case],
) -> None:
    path = tmp_path / "tiny.quantgate.yaml"
    path.write_text(SUITE.format(model=tiny_clip, recipe=recipe), encoding="utf-8")
    case = assume_sane(make_case(load_suite(path)))

    for gate in ("coverage", "calibration", "roundtrip"):
        verdict = case.judge(kind=gate).verdict
        assert verdict.status is Status.NOT_MEASURED, verdict.headline
        assert f"ModelOpt computes {name} on an NVIDIA GPU alone" in verdict.headline


@pytest.mark.slow
def test_nvfp4_is_judged_by_reference_where_the_runtime_has_no_kernel(
    tmp_path: Path,
    tiny_clip: Path,
    make_case: Callable[..., Case],
    assume_sane: Callable[[Case], Case],
) -> None:
    path = tmp_path / "tiny.quantgate.yaml"
    text = SUITE.format(model=tiny_clip, recipe="nvfp4")
    gates = "gates:\n  export: {}\n  parity: {samples: 8}\n"
    path.write_text(text[: text.index("gates:")] + gates, encoding="utf-8")
    case = assume_sane(make_case(load_suite(path)))

    assert case.judge(kind="export").verdict.passed
    verdict = case.judge(kind="parity").verdict
    assert verdict.status is Status.NOT_MEASURED, verdict.headline
    assert "has no kernel for" in verdict.headline
    assert float(verdict.figures["vision_parity_error"]) < 1e-3
    assert float(verdict.figures["text_worst_block_error"]) < 1e-3
