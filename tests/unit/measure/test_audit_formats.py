"""The audit names every format of ModelOpt's, also those that it has GPU kernels alone for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.audit import Quantizer
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.quantizers import Activity, count_clipped, describe_quantizer
from pytest_quantgate.measure.sensitivity import weights_bytes
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.recipes import Recipe, to_modelopt

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
MakeRecipe = Callable[[Any], Recipe]

mtq = import_modelopt("modelopt.torch.quantization")
TensorQuantizer = import_modelopt("modelopt.torch.quantization.nn").TensorQuantizer
Settings = import_modelopt("modelopt.torch.quantization.config").QuantizerAttributeConfig
PRESETS = sorted(name for name in dir(mtq) if name.endswith("_CFG"))

MX = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}
NVFP4 = {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}


def make_quantizer(**settings: Any) -> Any:
    return TensorQuantizer(Settings(**settings))


def describe(quantizer: Any) -> Quantizer:
    return describe_quantizer(
        "vision_model.fc1.weight_quantizer",
        quantizer,
        owner=nn.Linear(64, 64),
        activity=Activity(),
        ran_in=frozenset(),
    )


@pytest.mark.parametrize(
    ("settings", "format_", "granularity", "block_sizes", "dynamic"),
    [
        ({"num_bits": (4, 3)}, "E4M3", "per-tensor", (), False),
        ({"num_bits": (4, 3), "axis": 0}, "E4M3", "per-channel", (), False),
        ({"num_bits": (4, 3), "type": "dynamic"}, "E4M3", "per-tensor", (), True),
        ({"num_bits": (4, 3), "block_sizes": {-1: 64, -2: 128}}, "E4M3", "block", (128, 64), False),
        ({"num_bits": 4, "block_sizes": {-1: 128}}, "INT4", "block", (128,), False),
        ({"num_bits": 6}, "INT6", "per-tensor", (), False),
        (
            {"num_bits": (5, 2), "block_sizes": {-1: 8, "type": "dynamic"}},
            "E5M2",
            "block",
            (8,),
            True,
        ),
        ({"num_bits": (4, 3), "block_sizes": MX}, "MXFP8", "block", (32,), True),
        ({"num_bits": (5, 2), "block_sizes": MX}, "MXFP8 E5M2", "block", (32,), True),
        ({"num_bits": (3, 2), "block_sizes": MX}, "MXFP6", "block", (32,), True),
        ({"num_bits": (2, 3), "block_sizes": MX}, "MXFP6 E2M3", "block", (32,), True),
        ({"num_bits": (2, 1), "block_sizes": MX}, "MXFP4", "block", (32,), True),
        ({"num_bits": 8, "block_sizes": MX}, "MXINT8", "block", (32,), True),
        ({"num_bits": 8, "block_sizes": {**MX, -1: 64}}, "MXINT8 (block 64)", "block", (64,), True),
        ({"num_bits": (2, 1), "block_sizes": NVFP4}, "NVFP4", "block", (16,), True),
        (
            {"num_bits": (2, 1), "block_sizes": {**NVFP4, "type": "static"}},
            "NVFP4",
            "block",
            (16,),
            False,
        ),
    ],
)
def test_a_configured_quantizer_is_named_rightly(
    settings: dict[str, Any],
    format_: str,
    granularity: str,
    block_sizes: tuple[int, ...],
    dynamic: bool,
) -> None:
    found = describe(make_quantizer(**settings))

    assert (found.format, found.granularity) == (format_, granularity)
    assert (found.block_sizes, found.dynamic) == (block_sizes, dynamic)
    assert from_json(Quantizer, to_json(found)) == found


def test_a_backend_of_ones_own_is_not_taken_for_a_format() -> None:
    quantizer = make_quantizer(num_bits="mine", backend="mine")

    assert describe(quantizer).format == "unknown('mine')"
    quantizer.amax = torch.tensor(1.0)
    assert count_clipped(quantizer, torch.full((2, 3), 9.0)) == ([], 0)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_of_formats_that_have_a_row(preset: str, make_recipe: MakeRecipe) -> None:
    """A preset of a later release with a format that is not in the table shows here."""
    formats = make_recipe(preset).formats

    assert formats
    assert all(find_format(name) is not None for name in formats), formats
    weights = {"MXFP8": "MXFP8", "MXFP6": "MXFP6", "MXINT8": "MXINT8", "NVFP4_": "NVFP4"}
    for start, name in weights.items():
        assert not preset.startswith(start) or any(found.startswith(name) for found in formats)


@pytest.mark.parametrize(
    ("preset", "formats"),
    [
        ("W4A8_AWQ_BETA_CFG", ("INT4", "E4M3")),
        ("W4A8_MXFP4_FP8_CFG", ("MXFP4", "E4M3")),
        ("W4A8_NVFP4_FP8_CFG", ("NVFP4 (block 32)", "E4M3")),
        ("MXFP4_DEFAULT_CFG", ("MXFP4",)),
        ("NVFP4_DEFAULT_CFG", ("NVFP4",)),
    ],
)
def test_formats_of_a_preset(
    preset: str, formats: tuple[str, ...], make_recipe: MakeRecipe
) -> None:
    assert make_recipe(preset).formats == formats


def test_bits_written_as_modelopt_writes_them_in_its_own_files(make_recipe: MakeRecipe) -> None:
    cfg = {"num_bits": "e2m1", "block_sizes": {**NVFP4, "scale_bits": "e4m3"}}
    recipe = make_recipe([{"quantizer_name": "*weight_quantizer", "cfg": cfg}])

    assert recipe.formats == ("NVFP4",)
    (entry,) = to_modelopt(recipe)["quant_cfg"]
    assert entry["cfg"]["num_bits"] == (2, 1)
    assert entry["cfg"]["block_sizes"]["scale_bits"] == (4, 3)


# -- what ModelOpt has kernels for GPUs alone for ------------------------------


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("MXFP8_DEFAULT_CFG", "MXFP8"),
        ("MXFP4_DEFAULT_CFG", "MXFP4"),
        ("NVFP4_DEFAULT_CFG", "NVFP4"),
        ("NVFP4_SVDQUANT_DEFAULT_CFG", "NVFP4"),
        ("NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG", "NVFP4"),
        ("W4A8_MXFP4_FP8_CFG", "MXFP4"),
        ("W4A8_NVFP4_FP8_CFG", "NVFP4 (block 32)"),
    ],
)
def test_a_format_of_gpu_kernels_is_emulated_on_a_cpu_and_said(
    preset: str,
    name: str,
    tiny_fp16: Encoder,
    make_recipe: MakeRecipe,
    make_pairs: MakePairs,
) -> None:
    recipe = make_recipe(preset)
    model = quantize(tiny_fp16, recipe=recipe, batches=make_pairs()).model
    audit = audit_quantizers(model, recipe=recipe, held_out=make_pairs(seed=9))

    assert any(note.startswith(f"{name} was computed on this CPU") for note in audit.notes)
    found = [q for q in audit.quantizers if q.enabled and q.format == name]
    assert found
    assert all(q.changed and q.own_calls and not q.batch_dependent for q in found)


def test_a_rotation_without_its_package_is_not_measured(
    tiny_fp16: Encoder, make_recipe: MakeRecipe, make_pairs: MakePairs
) -> None:
    recipe = make_recipe("NVFP4_KV_ROTATE_CFG")

    with pytest.raises(
        NotMeasured,
        match=r"^ModelOpt needs another package for recipe 'NVFP4_KV_ROTATE_CFG': Package "
        r"`fast_hadamard_transform` not found",
    ):
        quantize(tiny_fp16, recipe=recipe, batches=make_pairs())


def test_values_above_the_range_of_the_tensor_are_clipped_in_nvfp4_too() -> None:
    quantizer = make_quantizer(num_bits=(2, 1), block_sizes=NVFP4)
    quantizer.amax = torch.tensor(6.0)
    value = torch.tensor([[6.0, 6.9, 7.1], [-8.0, 0.0, 1.0]])

    assert count_clipped(quantizer, value) == ([1, 1], 6)
    assert count_clipped(make_quantizer(num_bits=(4, 3), block_sizes=MX), value) == ([], 0)


# -- bytes ------------------------------


@pytest.mark.parametrize(
    ("preset", "bits"),
    [
        ("MXFP8_DEFAULT_CFG", 8.25),
        ("MXFP6_DEFAULT_CFG", 6.25),
        ("MXFP4_DEFAULT_CFG", 4.25),
        ("MXINT8_DEFAULT_CFG", 8.25),
        ("NVFP4_DEFAULT_CFG", 4.5),
        ("W4A8_NVFP4_FP8_CFG", 4.25),
        ("FP8_DEFAULT_CFG", 8),
        ("INT4_BLOCKWISE_WEIGHT_ONLY_CFG", 4 + 16 / 32),  # one block: a row is shorter than 128
    ],
)
def test_bytes_of_a_weight_with_its_scales(
    preset: str,
    bits: float,
    tiny_fp16: Encoder,
    make_recipe: MakeRecipe,
    make_pairs: MakePairs,
) -> None:
    name = "text_model.encoder.layers.0.mlp.fc1"
    model = quantize(tiny_fp16, recipe=make_recipe(preset), batches=make_pairs()).model
    parameters = sum(p.numel() for p in tiny_fp16.module.parameters())
    weight = tiny_fp16.module.get_submodule(name).weight
    assert weight.shape[1] == 32  # type: ignore[index]

    found = weights_bytes(model.module, names=[f"{name}.weight_quantizer"], full_bytes=2)

    assert found == 2 * (parameters - weight.numel()) + weight.numel() * bits / 8  # type: ignore[operator]


def test_bytes_of_a_low_rank_branch_count() -> None:
    """SVDQuant keeps two narrow matrices in full precision beside the quantized weight."""
    entries = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8, "axis": 0}},
        {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8}},
    ]
    module = nn.Sequential(nn.Linear(64, 32, bias=False))
    algorithm = {"method": "svdquant", "lowrank": 4}
    with quiet_libraries():
        mtq.quantize(
            module,
            {"quant_cfg": entries, "algorithm": algorithm},
            lambda found: found(torch.randn(8, 64)),
        )

    found = weights_bytes(module, names=["0.weight_quantizer"], full_bytes=2)

    assert found == 64 * 32 + 2 * 4 * (64 + 32)
