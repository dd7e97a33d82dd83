"""Text encoders alone, through every gate of a suite: calibrated and judged with texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.text_encoders import KINDS, save_text_encoder

Run = Callable[..., pytest.RunResult]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: {model}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantize: {{recipe: {recipe}}}
gates:
{gates}"""

GATES = """\
  coverage: {}
  calibration: {max_clipped: 10%}
  fidelity: {data: scenes/test, min_sqnr: 10dB, samples: 32}
  roundtrip: {}
  export: {}
  parity: {samples: 16}
  latency: {tower: text, batch: 4, max_ratio: 1000x}
"""

ENGINE = """\
  engine: {target: sm89, min_fp8_gemms: 12}
  memory: {target: sm89, max_weights_ratio: 0.9x}
  trace: {target: sm89}
"""


@pytest.fixture
def write(pytester: pytest.Pytester, tmp_path: Path) -> Callable[..., None]:
    """Write a suite of a tiny text encoder of a kind."""

    def make(kind: str, gates: str, *, recipe: str = "fp8-attention") -> None:
        save_text_encoder(kind, tmp_path / kind)
        path = pytester.path / "suites" / "text.quantgate.yaml"
        path.parent.mkdir()
        text = SUITE.format(model=tmp_path / kind, gates=gates, recipe=recipe)
        path.write_text(text, encoding="utf-8")

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_every_gate_that_needs_no_images(
    write: Callable[..., None], run_gates: Run, kind: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    write(kind, GATES.replace("export: {}", "export: {allow: [softmax]}") + ENGINE)

    result = run_gates()

    result.assert_outcomes(passed=11)
    result.stdout.fnmatch_lines(
        [
            "*PASS  sanity*",
            "*a text runs*",
            "*attention q k v output in 2 blocks*",
            "*text cosine*",
            "*12 of 12 linear in FP8*",
            "*may ship: 11 gates passed*",
        ]
    )
    assert "vision tower" not in result.stdout.str()
