"""Encoders that are no CLIP, through the gates of a suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vision_encoders import save_vision_encoder

Run = Callable[..., pytest.RunResult]

SUITE = """\
quantgate: 1
model: {{source: transformers, id: {model}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantize: {{recipe: fp8-attention, exclude: ["*patch_embed*"]}}
gates:
{gates}"""

GATES = """\
  coverage: {}
  calibration: {max_clipped: 5%}
  fidelity: {min_sqnr: 10dB, samples: 32}
  roundtrip: {}
  export: {allow: [softmax]}
  parity: {samples: 16}
  engine: {target: sm89, min_fp8_gemms: 12}
  memory: {target: sm89, max_weights_ratio: 0.9x}
  trace: {target: sm89}
"""


@pytest.fixture
def write(pytester: pytest.Pytester, tmp_path: Path) -> Callable[[str], None]:
    """Write a suite of a tiny ViT with these gates."""
    save_vision_encoder("vit", tmp_path / "vit")

    def make(gates: str) -> None:
        path = pytester.path / "suites" / "vit.quantgate.yaml"
        path.parent.mkdir()
        path.write_text(SUITE.format(model=tmp_path / "vit", gates=gates), encoding="utf-8")

    return make


def test_a_vision_encoder_passes_every_gate_that_needs_no_text(
    write: Callable[[str], None], run_gates: Run
) -> None:
    pytest.importorskip("tensorrt_rtx")
    write(GATES)

    result = run_gates()

    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines(
        [
            "*PASS  sanity*",
            "*an image runs*",
            "*attention q k v output in 2 blocks*",
            "*vision cosine*",
            "*amax and the vision tower bit-identical*",
            "*12 of 12 linear in FP8*",
            "*quantizers reach the engine*",
            "*may ship: 10 gates passed*",
        ]
    )
    assert "text tower" not in result.stdout.str()


def test_what_needs_texts_says_so(write: Callable[[str], None], run_gates: Run) -> None:
    write(
        "  coverage: {towers: [text]}\n"
        "  accuracy: {task: digits/classification, metric: acc1, max_drop: 3pp}\n"
    )

    result = run_gates()

    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*vit.quantgate.yaml:6: the model has no text tower: it has vision*",
            "*has no text tower, and digits/classification needs one*judge it by digits/knn*",
            "*vit: do not ship: coverage, accuracy*",
        ]
    )


def test_the_selftest_plants_in_one_tower_what_it_can(
    write: Callable[[str], None], run_gates: Run
) -> None:
    write("  calibration: {max_clipped: 5%}\n  fidelity: {min_sqnr: 10dB, samples: 32}\n")

    result = run_gates("--quantgate-selftest")

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*PROVEN        sanity: red on 2 of 2 sabotages",
            "*PROVEN        calibration: red on 7 of 7 sabotages*",
            "*red    one tower never calibrated: the vision tower was never*",
            "*PROVEN        fidelity: red on 3 of 3 sabotages",
            "*red    one tower never compared: no embeddings of the vision*",
        ]
    )
