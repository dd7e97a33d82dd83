"""Every preset and every PTQ recipe of ModelOpt goes through quantization, audit and fidelity.

What each comes to is written down: a preset that a later release adds or changes shows here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError, NotMeasured
from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.gates.calibration import CalibrationGate, judge_ranges
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.fidelity import compare_embeddings
from pytest_quantgate.quantization.modelopt import import_modelopt, read_version
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.suite.where import Where

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
MakeRecipe = Callable[[Any], Recipe]

WHERE = Where(file="suites/tiny.quantgate.yaml", line=7)

#: Presets switch `*vision_model*` off, and say nothing.
TOWER_OFF = "coverage.tower-off"
#: KV-cache presets have no entry that switches all else off: ModelOpt then leaves it on.
UNASKED = "coverage.unasked"
MISSING = "calibration.amax-missing"

#: What coverage and calibration say of each preset; '' is nothing (but for clipping, which two
#: batches do not settle), one text alone the reason why there is nothing to judge.
PRESETS: dict[str, tuple[str, str] | str] = {
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": (TOWER_OFF, ""),
    "FP8_AFFINE_KV_CFG": (UNASKED, MISSING),
    "FP8_DEFAULT_CFG": (TOWER_OFF, ""),
    "FP8_KV_CFG": (UNASKED, MISSING),
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": (TOWER_OFF, ""),
    "INT4_AWQ_CFG": (TOWER_OFF, ""),
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": (TOWER_OFF, ""),
    "INT8_DEFAULT_CFG": (TOWER_OFF, ""),
    "INT8_SMOOTHQUANT_CFG": (TOWER_OFF, ""),
    "INT8_WEIGHT_ONLY_CFG": (TOWER_OFF, ""),
    "MAMBA_MOE_FP8_AGGRESSIVE_CFG": (TOWER_OFF, ""),
    "MAMBA_MOE_FP8_CONSERVATIVE_CFG": (TOWER_OFF, ""),
    "MAMBA_MOE_NVFP4_AGGRESSIVE_CFG": (TOWER_OFF, ""),
    "MAMBA_MOE_NVFP4_CONSERVATIVE_CFG": (TOWER_OFF, ""),
    "MXFP4_DEFAULT_CFG": (TOWER_OFF, ""),
    "MXFP4_MLP_WEIGHT_ONLY_CFG": (TOWER_OFF, ""),
    "MXFP6_DEFAULT_CFG": (TOWER_OFF, ""),
    "MXFP8_DEFAULT_CFG": (TOWER_OFF, ""),
    "MXINT8_DEFAULT_CFG": (TOWER_OFF, ""),
    "NVFP4_AFFINE_KV_CFG": (UNASKED, MISSING),
    "NVFP4_AWQ_CLIP_CFG": (TOWER_OFF, ""),
    "NVFP4_AWQ_FULL_CFG": (TOWER_OFF, ""),
    "NVFP4_AWQ_LITE_CFG": (TOWER_OFF, ""),
    "NVFP4_DEFAULT_CFG": (TOWER_OFF, ""),
    "NVFP4_EXPERTS_ONLY_CFG": "asks for weight quantization but no weight quantizer is enabled",
    "NVFP4_FOUR_OVER_SIX_CFG": (TOWER_OFF, ""),
    "NVFP4_KV_CFG": (UNASKED, MISSING),
    "NVFP4_KV_ROTATE_CFG": "Package `fast_hadamard_transform` not found",
    "NVFP4_MLP_ONLY_CFG": (TOWER_OFF, ""),
    "NVFP4_MLP_WEIGHT_ONLY_CFG": (TOWER_OFF, ""),
    "NVFP4_OMLP_ONLY_CFG": (TOWER_OFF, ""),
    "NVFP4_SVDQUANT_DEFAULT_CFG": (TOWER_OFF, ""),
    "NVFP4_W4A4_WEIGHT_LOCAL_HESSIAN_CFG": (TOWER_OFF, ""),
    "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG": (TOWER_OFF, ""),
    "W4A16_NVFP4_CFG": (TOWER_OFF, ""),
    "W4A8_AWQ_BETA_CFG": (TOWER_OFF, ""),
    "W4A8_MXFP4_FP8_CFG": (TOWER_OFF, MISSING),
    "W4A8_NVFP4_FP8_CFG": (TOWER_OFF, ""),
}

CLIPPING = ("", "calibration.clipping-open", "calibration.clipped")

#: Recipes for models of another make name layers that this one has not; ModelOpt itself says so.
NOT_HERE = "asks for weight quantization but no weight quantizer is enabled"

#: What is said of recipe files that ModelOpt has since 0.48.
SAID_SINCE_048 = {
    "general/ptq/nvfp4_experts_only-kv_fp8_layerwise_export": "exports to export_dir",
    "models/MiniMaxAI/MiniMax-M3/ptq/mxfp8_nvfp4_experts": "Could not find transformer layers",
    (
        "models/Qwen/Qwen3.8-2.4T-A95B/ptq/"
        "nvfp4_experts_mse-fp8_self_attn-fp8_linear_attn-kv_fp8_cast"
    ): "",
    "models/Qwen/Qwen3.8-27B/ptq/nvfp4_w4a4_mlp_fp8_attn_max": "ModelOpt cannot load the recipe",
    # GGML's formats are calibrated layer by layer, and a CLIP has no decoder's layers.
    "general/ptq/iq1_m": "Could not find transformer layers",
    "general/ptq/iq1_s": "Could not find transformer layers",
    "general/ptq/iq2_s": "Could not find transformer layers",
    "general/ptq/iq2_xs": "Could not find transformer layers",
    "general/ptq/iq2_xxs": "Could not find transformer layers",
}

#: What is said of recipe files that do not just leave the vision tower out.
SAID = {
    "general/ptq/nvfp4_default-kv_none-gptq": "resumes its calibration from checkpoint_dir",
    "huggingface/minimax_m3_vl/ptq/mxfp8_nvfp4_experts": "Could not find transformer layers",
    "huggingface/nemotron_llama/ptq/fp8_output_quant_proj": "coverage.layers-off",
    "huggingface/nemotron_llama/ptq/nvfp4_output_quant_proj": "coverage.layers-off",
    "huggingface/vit/ptq/fp8": "coverage.attention-missing",
    "models/nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16/ptq/nvfp4_w4a16": "coverage.tower-off",
    "models/stepfun-ai/Step-3.5-Flash/ptq/nvfp4-mlp-only": "",
}


def list_recipe_ids() -> list[str]:
    """Return the id of every PTQ recipe file that ModelOpt ships, but for parts of others."""
    package = importlib.util.find_spec("modelopt_recipes")
    assert package is not None
    assert package.submodule_search_locations
    root = Path(package.submodule_search_locations[0])
    found = [*root.glob("general/ptq/*.yaml"), *root.glob("models/**/ptq/*.yaml")]
    for tier in ("huggingface", "model_type"):  # the same by its old name, and by that since 0.48
        found += root.glob(f"{tier}/*/ptq/*.yaml")
    names = (path.relative_to(root).with_suffix("").as_posix() for path in found)
    names = (name.replace("model_type/", "huggingface/", 1) for name in names)
    return sorted(name for name in names if not name.endswith(("disabled_quantizers", "quant_cfg")))


@pytest.fixture
def judge(
    tiny_fp16: Encoder, make_recipe: MakeRecipe, make_pairs: MakePairs
) -> Callable[[str], tuple[str, str]]:
    """Build a variant, audit it, compare it with FP16, and return what two gates say."""

    def run(name: str) -> tuple[str, str]:
        recipe = make_recipe(name)
        model = quantize(tiny_fp16, recipe=recipe, batches=make_pairs()).model
        held_out = make_pairs(seed=9)
        audit = audit_quantizers(model, recipe=recipe, held_out=held_out)
        for tower in model.tower_names:
            inputs = held_out[0].inputs[tower]
            with quiet_libraries():
                fp16, quantized = tiny_fp16.encode(tower, inputs), model.encode(tower, inputs)
            found = compare_embeddings(
                tower=tower, fp16=fp16, quantized=quantized, ids=held_out[0].ids
            )
            assert found.nonfinite == 0
            assert found.cosine_mean > 0.85, found
        coverage = judge_coverage(audit, gate=CoverageGate(where=WHERE), today=date(2026, 11, 30))
        ranges = judge_ranges(audit, gate=CalibrationGate(where=WHERE))
        return coverage.code or "", ranges.code or ""

    return run


def test_every_preset_is_here() -> None:
    mtq = import_modelopt("modelopt.torch.quantization")

    assert set(PRESETS) == {name for name in dir(mtq) if name.endswith("_CFG")}


@pytest.mark.parametrize(("name", "expected"), PRESETS.items(), ids=list(PRESETS))
def test_preset(name: str, expected: tuple[str, str] | str, judge: Any) -> None:
    if isinstance(expected, str):
        with pytest.raises((ModelError, NotMeasured), match=expected):
            judge(name)
        return
    if name == "W4A8_MXFP4_FP8_CFG" and read_version() >= (0, 48):
        expected = (expected[0], "")  # it had no algorithm, and calibrates since
    coverage, calibration = judge(name)
    assert coverage == expected[0]
    assert calibration == expected[1] or (not expected[1] and calibration in CLIPPING)


@pytest.mark.parametrize("name", RECIPES)
def test_own_recipe(name: str, judge: Any) -> None:
    coverage, calibration = judge(name)

    assert coverage == ""
    assert calibration in CLIPPING


@pytest.mark.parametrize("name", list_recipe_ids())
def test_recipe_file(name: str, judge: Any) -> None:
    """None is green by accident: most leave the vision tower out, or quantize nothing here."""
    try:
        coverage, _ = judge(name)
    except ModelError as error:
        coverage = str(error)
    expected = {**SAID, **SAID_SINCE_048}.get(name)
    if expected is not None:
        assert expected in coverage if expected else not coverage
    else:
        assert coverage in (TOWER_OFF, UNASKED) or NOT_HERE in coverage


def test_what_is_written_down_of_recipe_files_is_there() -> None:
    found = set(list_recipe_ids())

    assert len(found) > 40
    assert found.issuperset(SAID)
    assert found.issuperset(SAID_SINCE_048) == (read_version() >= (0, 48))
