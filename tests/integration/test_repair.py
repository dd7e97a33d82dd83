"""`quantgate repair`: from a suite that is too coarse in one place to a recipe that meets it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pytest_quantgate.commands.cli import main

pytestmark = pytest.mark.slow

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize:
  recipe:
    algorithm: max
    quant_cfg:
      - {{quantizer_name: "*", enable: false}}
      - {{quantizer_name: "*weight_quantizer", parent_class: nn.Linear,
         cfg: {{num_bits: 8, axis: 0}}}}
      - {{quantizer_name: "*{planted}*weight_quantizer", parent_class: nn.Linear,
         cfg: {{num_bits: 2, axis: 0}}}}
gates:
  coverage: {{}}
  fidelity: {{data: scenes/test, samples: 32, min_sqnr: 16dB}}
  accuracy:
    - {{task: digits/classification, metric: acc1, max_drop: 100pp, max_flips: 80%, samples: 64}}
"""


@pytest.mark.parametrize(
    ("planted", "label"),
    [
        ("vision_model.encoder.layers.1.mlp", "vision block 1 mlp"),
        ("text_projection", "text text_projection"),
    ],
)
def test_one_coarse_place_is_repaired_and_nothing_else_changes(
    planted: str,
    label: str,
    tiny_clip: Path,
    shared_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pytest_quantgate.quantization.recipes import build_recipe, resolve_recipe
    from pytest_quantgate.suite.load import load_suite

    suite, written = tmp_path / "tiny.quantgate.yaml", tmp_path / "repaired.yaml"
    suite.write_text(SUITE.format(model=tiny_clip, planted=planted))
    figures = tmp_path / "repair.json"
    places = ["--samples", "16", "--cache-dir", str(shared_cache)]

    status = main(["repair", str(suite), *places, "--write", str(written), "--json", str(figures)])

    out = capsys.readouterr().out
    found = json.loads(figures.read_text())["repair"]
    assert status == 0, out
    assert [group["label"] for group in found["found"]["groups"]] == [label]
    assert [group["label"] for group in found["in_fp8"]] == [label]
    assert f"in FP8: {label}" in out
    checks = {check["gate"]: (check["before"], check["after"]) for check in found["checks"]}
    assert checks["fidelity"] == ("FAIL", "PASS")
    before, after = found["weights_bytes"]
    assert before < after < before + found["found"]["extra_bytes"]

    # ModelOpt reads the recipe as it was judged; what it fills in are its defaults.
    assert yaml.safe_load(written.read_text())["metadata"] == {"recipe_type": "ptq"}
    own = load_suite(suite).quantize
    assert own is not None
    read = resolve_recipe(replace(own, recipe=str(written)), environ={})
    judged = build_recipe(found["recipe"], name="again")
    assert read.algorithm == judged.algorithm == "max"
    assert read.formats == judged.formats
    for mine, theirs in zip(judged.quant_cfg, read.quant_cfg, strict=True):
        for key in ("quantizer_name", "parent_class", "enable"):
            assert mine[key] == theirs[key]
        for key, value in (mine["cfg"] or {}).items():
            assert theirs["cfg"][key] == value

    # A recipe that somebody else wrote is not overwritten.
    written.write_text("mine: true\n")
    assert main(["repair", str(suite), *places, "--write", str(written)]) == 1
    assert written.read_text() == "mine: true\n"


def test_a_checkpoint_that_was_handed_over_is_not_repaired_here(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SUITE.format(model=tiny_clip, planted="text_projection")
    start, end = text.index("quantize:"), text.index("gates:")
    suite = tmp_path / "given.quantgate.yaml"
    suite.write_text(f"{text[:start]}quantized: {{checkpoint: {tmp_path}}}\n{text[end:]}")

    assert main(["repair", str(suite), "--cache-dir", str(tmp_path / "cache")]) == 1
    assert "hands over a checkpoint, which no recipe of this suite built" in " ".join(
        capsys.readouterr().err.split()
    )
