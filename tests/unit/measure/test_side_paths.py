"""Input scales and low-rank branches: seen acting in good variants, and missed in planted ones."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.calibration import CalibrationGate, judge_ranges
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_module, audit_quantizers
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.recipes import Recipe, build_recipe, to_modelopt
from pytest_quantgate.suite.where import Where

pytestmark = pytest.mark.slow

MakeQuantized = Callable[..., Encoder]
MakePairs = Callable[..., list[Batch]]
MakeRecipe = Callable[[Any], Recipe]

WHERE = Where(file="suites/tiny.quantgate.yaml", line=7)
FC1 = "vision_model.encoder.layers.0.mlp.fc1"

#: Rank 4: that of the recipe, 32, is as wide as the tiny model.
SVDQUANT = {
    "quant_cfg": [
        {"quantizer_name": "*", "enable": False},
        *(
            {
                "quantizer_name": f"*{slot}_quantizer",
                "parent_class": "nn.Linear",
                "cfg": {
                    "num_bits": [2, 1],
                    "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": [4, 3]},
                },
            }
            for slot in ("weight", "input")
        ),
    ],
    "algorithm": {"method": "svdquant", "lowrank": 4},
}


@pytest.fixture
def audit(
    make_quantized: MakeQuantized, make_pairs: MakePairs, make_recipe: MakeRecipe
) -> Callable[..., tuple[Audit, Verdict, Verdict]]:
    """Quantize, plant something, and return the audit with what coverage and calibration say."""

    def run(
        recipe: Any, plant: Callable[[nn.Module], None] = lambda _module: None
    ) -> tuple[Audit, Verdict, Verdict]:
        model = make_quantized(recipe)
        plant(model.module)
        found = audit_quantizers(model, recipe=make_recipe(recipe), held_out=make_pairs(seed=9))
        coverage = judge_coverage(found, gate=CoverageGate(where=WHERE), today=date(2026, 11, 30))
        return found, coverage, judge_ranges(found, gate=CalibrationGate(where=WHERE))

    return run


@pytest.mark.parametrize(
    ("recipe", "layers"),
    [("int8-smoothquant", 26), ("int4-awq", 26), ("w4a8-awq", 26), ("nvfp4-awq", 26), ("fp8", 0)],
)
def test_scales_of_good_variants_are_applied(recipe: str, layers: int, audit: Any) -> None:
    found, coverage, _ = audit(recipe)

    assert len(found.input_scales) == layers
    for scale in found.input_scales:
        assert scale.applied is True
        assert scale.finite
        assert 0 < scale.smallest < scale.largest
        assert scale.count in (16, 32, 64)
    assert {scale.tower for scale in found.input_scales} in (set(), {"vision", "text"})
    assert coverage.passed
    assert from_json(Audit, to_json(found)) == found


@pytest.mark.parametrize("recipe", ["int4-awq", "nvfp4-awq", "fp8-per-token", "int4"])
def test_good_variants_pass(recipe: str, audit: Any) -> None:
    _, coverage, calibration = audit(recipe)

    assert coverage.passed
    assert calibration.passed or calibration.code == "calibration.clipping-open"


def test_a_branch_is_seen_with_its_share(audit: Any) -> None:
    found, coverage, calibration = audit(SVDQUANT)

    assert len(found.branches) == 26
    assert {branch.rank for branch in found.branches} == {4}
    assert all(0.05 < branch.output_share < 1.5 for branch in found.branches)
    assert coverage.passed, coverage.headline
    assert coverage.headline.startswith("coverage: 26 of 26 Linear quantized (NVFP4) and run")
    assert coverage.evidence[0].startswith("26 low-rank branches of rank 4, from ")
    assert coverage.figures["branches"] == 26
    assert calibration.passed or calibration.code == "calibration.clipping-open"
    # The branch's products are no weights that escaped.
    assert sum(op.function == "low-rank" for op in found.operations) == 52
    assert all(op.weights_count == 0 for op in found.operations if op.function == "low-rank")


def weight_quantizer(module: nn.Module, name: str = FC1) -> Any:
    return module.get_submodule(f"{name}.weight_quantizer")


def input_quantizer(module: nn.Module, name: str = FC1) -> Any:
    return module.get_submodule(f"{name}.input_quantizer")


def zero_branch(module: nn.Module) -> None:
    weight_quantizer(module)._svdquant_lora_b.zero_()


def drop_branch(module: nn.Module) -> None:
    quantizer = weight_quantizer(module)
    del quantizer._svdquant_lora_a, quantizer._svdquant_lora_b


def poison_scale(module: nn.Module) -> None:
    input_quantizer(module)._pre_quant_scale[3] = torch.nan


def zero_scale(module: nn.Module) -> None:
    input_quantizer(module)._pre_quant_scale[3] = 0.0


def drop_scale(module: nn.Module) -> None:
    del input_quantizer(module)._pre_quant_scale


def go_around(module: nn.Module) -> None:
    """A layer that multiplies with its quantized weight, and never asks its input quantizer."""
    layer: Any = module.get_submodule(FC1)

    def forward(value: torch.Tensor) -> torch.Tensor:
        return functional.linear(value, layer.weight_quantizer(layer.weight), layer.bias)

    layer.forward = forward


@pytest.mark.parametrize(
    ("recipe", "plant", "code", "says"),
    [
        (SVDQUANT, zero_branch, "coverage.branch-idle", "the low-rank branch of 1 layer adds "),
        (SVDQUANT, drop_branch, "coverage.branch-missing", "1 quantized layer of SVDQuant has no "),
        ("int4-awq", poison_scale, "calibration.scale-broken", "1 of 26 input scales hold NaN, "),
        ("int4-awq", zero_scale, "calibration.scale-broken", "1 of 26 input scales hold NaN, "),
        ("nvfp4-awq", drop_scale, "calibration.scale-missing", "1 layer of 26 has no input scale"),
        ("int4-awq", go_around, "calibration.scale-idle", "1 of 26 input scales are not applied"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_was_planted_is_red_with_its_cause(
    recipe: Any, plant: Callable[[nn.Module], None], code: str, says: str, audit: Any
) -> None:
    _, coverage, calibration = audit(recipe, plant)

    red = next(v for v in (coverage, calibration) if v.code == code)
    assert red.status is Status.FAIL
    assert says in red.headline
    assert any(FC1 in line for line in red.evidence)
    assert red.cause
    assert red.next_step


# -- blocks ------------------------------


def audit_layer(inputs: int, cfg: Any) -> Verdict:
    """Return what coverage says of one Linear layer with so many inputs a row."""
    recipe = build_recipe(
        [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "parent_class": "nn.Linear", "cfg": cfg},
        ],
        name="mine",
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(inputs, 8)).eval()
    sample = torch.randn(4, inputs)
    with quiet_libraries(), torch.no_grad():
        mtq = import_modelopt("modelopt.torch.quantization")
        mtq.quantize(module, to_modelopt(recipe), forward_loop=lambda m: m(sample))
        found = audit_module(module, runs={"vision": lambda: module(sample)}, recipe=recipe)
    gate = CoverageGate(where=WHERE, towers=("vision",))
    return judge_coverage(found, gate=gate, today=date(2026, 11, 30))


NVFP4 = {"num_bits": [2, 1], "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": [4, 3]}}
MXFP8 = {"num_bits": [4, 3], "block_sizes": {-1: 32, "type": "dynamic", "scale_bits": [8, 0]}}


@pytest.mark.parametrize(
    ("cfg", "inputs", "good"),
    [(NVFP4, 24, 48), (MXFP8, 48, 64)],
    ids=["NVFP4", "MXFP8"],
)
def test_rows_of_no_whole_blocks_are_red(cfg: Any, inputs: int, good: int) -> None:
    verdict = audit_layer(inputs, cfg)

    assert verdict.code == "coverage.block-partial"
    size = cfg["block_sizes"][-1]
    assert f"0.weight_quantizer has {inputs} values a row, blocks of " in verdict.headline
    assert f"have {size}" in verdict.headline
    assert audit_layer(good, cfg).passed


@pytest.mark.parametrize(
    "extra",
    [
        {"scale_bits": 8, "scale_block_sizes": {-1: 128}},
        {"scale_bits": [4, 3]},
    ],
)
def test_double_quantization_that_does_nothing_is_red(extra: dict[str, Any]) -> None:
    blocks = {-1: 32, "type": "static"}

    verdict = audit_layer(64, {"num_bits": 4, "block_sizes": {**blocks, **extra}})

    assert verdict.code == "coverage.scales-ignored"
    assert "double quantization does nothing in 1 quantizer (INT4)" in verdict.headline
    assert audit_layer(64, {"num_bits": 4, "block_sizes": blocks}).passed
    assert audit_layer(64, NVFP4).passed
