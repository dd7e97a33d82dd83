"""Encoders that are no CLIP, through the gates of a suite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.reference import weights_dir
from tests.vision_encoders import save_vision_encoder, save_vision_tower

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
            "*attention q k v output in 2 blocks*",
            "*vision cosine*",
            "*amax and the vision tower bit-identical*",
            "*12 of 12 linear in FP8*",
            "*quantizers reach the engine*",
            "*may ship: 10 gates passed*",
        ]
    )
    assert "text tower" not in result.stdout.str()
    assert "an image runs" in result.stdout.str()


TASKS = """\
  accuracy:
    - {task: digits/knn, metric: acc1, max_drop: 4pp, max_flips: 8%, samples: 300}
    - {task: digits/knn, metric: mean_per_class_recall@5, max_drop: 6pp, samples: 200,
       bank: digits/train, bank_samples: 300}
    - {task: digits/neighbours, metric: overlap@3, max_drop: 20pp, samples: 300}
  regression:
    - {task: digits/knn, metric: acc1, samples: 300, max_fp16_drop: 3pp, max_drop: 3pp,
       max_drop_since_first: 3pp}
"""

#: Weights of the blocks in so many bits, and nothing else.
ROUGH = """recipe: [
  {quantizer_name: "*", enable: false},
  {quantizer_name: "*encoder*weight_quantizer", cfg: {num_bits: 2, axis: 0}, enable: true}]"""


@pytest.fixture
def trained(pytester: pytest.Pytester, tmp_path: Path) -> Callable[[str], None]:
    """Write a suite of the reference model's vision tower alone, with tasks for one tower."""
    folder = save_vision_tower(weights_dir(), tmp_path / "tower")

    def make(recipe: str) -> None:
        path = pytester.path / "suites" / "vit.quantgate.yaml"
        path.parent.mkdir(exist_ok=True)
        text = SUITE.format(model=folder, gates=TASKS)
        text = text.replace("recipe: fp8-attention", recipe)
        text = text.replace("scenes/calibration", "digits/train")
        path.write_text(text, encoding="utf-8")

    return make


def test_a_good_variant_of_one_tower_is_green_and_stays_so(
    trained: Callable[[str], None], run_gates: Run
) -> None:
    trained("recipe: fp8")

    run_gates("--quantgate-baselines=create").assert_outcomes(passed=5)
    result = run_gates()

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            "*PASS  accuracy?digits/knn-acc1?*",
            "*PASS  accuracy?digits/knn-mean_per_class_recall@5?*",
            "*PASS  accuracy?digits/neighbours-overlap@3?*",
            "*PASS  regression?digits/knn-acc1?*",
            "*vit: may ship: 5 gates passed*",
        ]
    )


def test_a_damaged_variant_of_one_tower_is_red(
    trained: Callable[[str], None], run_gates: Run
) -> None:
    trained("recipe: fp8")
    run_gates("--quantgate-baselines=create").assert_outcomes(passed=5)
    trained(ROUGH)

    result = run_gates()

    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(
        [
            "*FAIL accuracy: digits/knn: *over max_drop 4.00 pp*accuracy.drop*",
            "*vit: do not ship: accuracy*",
        ]
    )


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
