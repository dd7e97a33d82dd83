"""The vision tower and projector of a LLaVA, through every gate of a suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.llava_models import save_llava

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("timed_once")]

Run = Callable[..., pytest.RunResult]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: {model}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantize: {{recipe: {recipe}, exclude: ["*patch_embed*"]}}
gates:
{gates}"""

GATES = """\
  coverage: {}
  calibration: {max_clipped: 5%}
  fidelity: {min_sqnr: 10dB, samples: 32}
  roundtrip: {}
  export: {allow: [softmax]}
  parity: {samples: 16}
  latency: {tower: vision, batch: 4, max_ratio: 1000x}
"""

ENGINE = """\
  engine: {target: sm89, min_fp8_gemms: 14}
  memory: {target: sm89, max_weights_ratio: 0.9x}
  trace: {target: sm89}
"""


@pytest.fixture
def write(pytester: pytest.Pytester, tmp_path: Path) -> Callable[..., Path]:
    """Write a suite of a tiny LLaVA with these gates, and return the model's folder."""

    def make(gates: str, *, recipe: str = "fp8-attention") -> Path:
        save_llava(tmp_path / "llava")
        path = pytester.path / "suites" / "llava.quantgate.yaml"
        path.parent.mkdir()
        text = SUITE.format(model=tmp_path / "llava", gates=gates, recipe=recipe)
        path.write_text(text, encoding="utf-8")
        return tmp_path / "llava"

    return make


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
def test_it_passes_every_gate_that_needs_no_text(
    write: Callable[..., Path], run_gates: Run, recipe: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    fp8 = recipe == "fp8-attention"
    gates = GATES + ENGINE if fp8 else GATES.replace("allow: [softmax]", "") + "  trace: {}\n"
    write(gates, recipe=recipe)

    result = run_gates()

    result.assert_outcomes(passed=11 if fp8 else 9)
    result.stdout.fnmatch_lines(["*an image runs*", "*% of matrix weights*"])


def test_the_projector_that_a_preset_leaves_out_is_named(
    write: Callable[..., Path], run_gates: Run
) -> None:
    write("  coverage: {}\n", recipe="FP8_DEFAULT_CFG")

    result = run_gates()

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*multi_modal_projector*"])


def test_the_processor_of_another_model_is_red(write: Callable[..., Path], run_gates: Run) -> None:
    path = next(write("  coverage: {}\n").glob("pre*processor_config.json"))
    settings = json.loads(path.read_text("utf-8"))
    settings["crop_size"] = {"height": 64, "width": 64}
    path.write_text(json.dumps(settings), encoding="utf-8")

    result = run_gates()

    result.assert_outcomes(skipped=1, failed=1)
    result.stdout.fnmatch_lines(["*makes images of 3 x 64 x 64*sanity.image-size*"])
