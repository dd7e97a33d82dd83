"""Exports of other formats than one scale a tensor compute what the model computes, and say so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.export import ExportGate, judge_export
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.quantizers import list_amax
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes.onnx_export import ExportedOnnx, export_tower
from pytest_quantgate.runtimes.onnx_graph import read_graph
from pytest_quantgate.runtimes.onnx_reference import ReferenceModel, open_graph
from pytest_quantgate.runtimes.onnxruntime_session import NoKernel, OnnxRuntimeModel
from pytest_quantgate.suite.where import Where

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
MakeRecipe = Callable[[Any], Recipe]
Tower = Literal["vision", "text"]
TOWERS: tuple[Tower, ...] = ("vision", "text")

GATE = ExportGate(where=Where(file="suites/tiny.quantgate.yaml", line=7))
FC1 = "vision_model.encoder.layers.0.mlp.fc1"


def blocks(size: int, *, num_bits: Any = 4) -> dict[str, Any]:
    """Return a recipe of weights in blocks: layers of the tiny model have 32 and 64 inputs."""
    settings = {"num_bits": num_bits, "block_sizes": {-1: size, "type": "static"}}
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {
                "quantizer_name": "*weight_quantizer",
                "parent_class": "nn.Linear",
                "cfg": settings,
            },
        ],
        "algorithm": "max",
    }


RECIPES: dict[str, Any] = {
    "INT4, blocks of 16": blocks(16),
    "INT4, the last block in part": blocks(24),
    "INT8, blocks of 16": blocks(16, num_bits=8),
    "E4M3, blocks of 16": blocks(16, num_bits=[4, 3]),
    **{name: name for name in ("int4", "int4-awq", "int8-weight-only")},
    **{name: name for name in ("fp8-per-channel", "fp8-per-token")},
    **{name: name for name in ("mxfp8", "nvfp4")},
}


@pytest.fixture(scope="module")
def variant(
    make_quantized: Callable[..., Encoder], make_recipe: MakeRecipe, make_pairs: MakePairs
) -> Callable[[str], tuple[Encoder, Audit]]:
    """Give a variant and its audit by the name of its recipe, each built once."""
    built: dict[str, tuple[Encoder, Audit]] = {}

    def give(name: str) -> tuple[Encoder, Audit]:
        if name not in built:
            recipe = RECIPES.get(name, name)
            model = make_quantized(recipe)
            held_out = make_pairs(seed=9, batches=1)
            audit = audit_quantizers(model, recipe=make_recipe(recipe), held_out=held_out)
            built[name] = model, audit
        return built[name]

    return give


@pytest.fixture(scope="module")
def export(
    variant: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Tower], ExportedOnnx]:
    """Give the file of a tower by the name of its recipe, each written once."""
    folder = tmp_path_factory.mktemp("exported")

    @functools.cache
    def give(name: str, tower: Tower) -> ExportedOnnx:
        place = folder / f"{len(list(folder.iterdir()))}"
        place.mkdir()
        return export_tower(variant(name)[0], tower=tower, path=place / f"{tower}.onnx")

    return give


def read(model: Encoder, exported: ExportedOnnx) -> OnnxAudit:
    return read_graph(exported.path, amax=list_amax(model.module))


def distance(model: Encoder, exported: ExportedOnnx, batch: Batch, **session: Any) -> float:
    """Return the relative error of what runs the graph against fake quantization."""
    inputs = batch.inputs[exported.tower]
    with quiet_libraries():
        wanted = model.encode(exported.tower, inputs).numpy()
    found = open_graph(exported.path, **session).embed(
        {name: value.numpy() for name, value in inputs.items()}
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", RECIPES)
def test_export_computes_what_the_model_computes(
    name: str, variant: Any, export: Any, make_pairs: MakePairs
) -> None:
    model, audit = variant(name)
    (batch,) = make_pairs(seed=9, batches=1)
    files = {tower: export(name, tower) for tower in TOWERS}

    for exported in files.values():
        assert distance(model, exported, batch) < 5e-6
    verdict = judge_export(
        audit,
        quantized=[read(model, exported) for exported in files.values()],
        fp16_file_bytes=10**6,
        dtype="float32",
        gate=GATE,
    )
    assert verdict.passed, verdict.headline
    bits = 4 if "INT4" in name.upper() or "fp4" in name else 8
    assert f"weights in {bits} bits" in verdict.headline


def test_int4_is_packed_in_standard_blocks(variant: Any, export: Any) -> None:
    model, _ = variant("INT4, blocks of 16")
    exported = export("INT4, blocks of 16", "vision")
    graph = onnx.load(exported.path).graph
    found = read(model, exported)

    assert (exported.opset, found.opset, found.domains, found.problems) == (21, 21, ("",), ())
    (weight,) = (t for t in graph.initializer if t.name == f"{FC1}.weight")
    assert weight.data_type == onnx.TensorProto.INT4
    assert (list(weight.dims), len(weight.raw_data)) == ([32, 64], 32 * 64 // 2)
    (scale,) = (t for t in graph.initializer if t.name == f"{FC1}.weight_quantizer.scale")
    assert list(scale.dims) == [2, 64]
    (node,) = (n for n in graph.node if scale.name in n.input)
    assert {a.name: a.i for a in node.attribute} == {"axis": 0, "block_size": 16}
    assert {pair.format for pair in found.pairs} == {"INT4"}
    assert dict(found.weights_bytes)["INT4"] * 2 == sum(
        op.weights_count for op in found.operations if op.weight_type == "INT4"
    )


def test_int4_runs_as_it_is_written(variant: Any, export: Any, make_pairs: MakePairs) -> None:
    """ONNX Runtime's optimizer (1.24) rounds the inputs of INT4 products too: off by a percent."""
    model, _ = variant("INT4, blocks of 16")
    (batch,) = make_pairs(seed=9, batches=1)
    exported = export("INT4, blocks of 16", "vision")

    assert OnnxRuntimeModel(exported.path).optimization == "none"
    assert distance(model, exported, batch, optimization="all") > 1e-3


def test_range_of_each_token_comes_back_behind_the_product(variant: Any, export: Any) -> None:
    """So a kernel multiplies FP8 by FP8: what stands between a pair and its product is nothing."""
    model, _ = variant("fp8-per-token")
    exported = export("fp8-per-token", "vision")
    graph = onnx.load(exported.path).graph
    made = {name: node for node in graph.node for name in node.output}
    products = [n for n in graph.node if n.op_type == "MatMul" and "mlp/fc1" in n.name]

    assert len(products) == 2
    for product in products:
        assert [made[name].op_type for name in product.input] == ["DequantizeLinear"] * 2
        (reader,) = (n for n in graph.node if product.output[0] in n.input)
        assert reader.op_type == "Mul"
        assert made[reader.input[1]].op_type == "Where"
    found = read(model, exported)
    inputs = [pair for pair in found.pairs if pair.slot == "input"]
    assert {round(pair.amax_max, 6) for pair in inputs} == {1.0}
    layers = [op for op in found.operations if op.operator == "MatMul" and op.weights_count]
    assert len(layers) == 13
    assert all(all(op.operands_quantized) for op in layers)


def test_nvfp4_is_stored_in_four_bits_with_its_scales_in_eight(variant: Any, export: Any) -> None:
    model, _ = variant("nvfp4")
    exported = export("nvfp4", "vision")
    stored = {t.name: t for t in onnx.load(exported.path).graph.initializer}
    found = read(model, exported)

    assert (exported.opset, found.domains, found.problems) == (23, ("",), ())
    weight, scale = stored[f"{FC1}.weight"], stored[f"{FC1}.weight_quantizer.scale"]
    assert (weight.data_type, len(weight.raw_data)) == (onnx.TensorProto.FLOAT4E2M1, 32 * 64 // 2)
    assert (scale.data_type, list(scale.dims)) == (onnx.TensorProto.FLOAT8E4M3FN, [2, 64])
    assert {pair.format for pair in found.pairs} == {"NVFP4"}
    layers = [op for op in found.operations if op.weights_count]
    assert sum(all(op.operands_quantized) for op in layers) == 13
    with pytest.raises(NoKernel, match=r"no kernel for \w+\(23\), which vision.onnx needs for its"):
        OnnxRuntimeModel(exported.path)
    assert isinstance(open_graph(exported.path), ReferenceModel)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8"])
def test_a_narrow_graph_keeps_the_scales_of_blocks_wide(
    name: str, variant: Any, tmp_path: Path
) -> None:
    model, _ = variant(name)
    exported = export_tower(model, tower="text", path=tmp_path / "a.onnx", precision="float16")
    found = read(model, exported)

    assert found.problems == ()
    assert max(pair.amax_deviation or 0 for pair in found.pairs) < 1e-6
    assert {pair.scale_type for pair in found.pairs} == {"float32"}


@pytest.mark.parametrize("name", ["nvfp4", "nvfp4-mse", "mxfp8", "mxfp4", "mxint8"])
def test_blocks_of_zeros_and_huge_ranges_round_as_the_model_rounds_them(
    name: str, make_quantized: Callable[..., Encoder], make_pairs: MakePairs, tmp_path: Path
) -> None:
    """Rows of zeros, of one tiny value, and pixels of many magnitudes: no NaN, no other code."""
    model = make_quantized(name)
    pixels = make_pairs(seed=3, batches=1)[0].inputs["vision"]["pixel_values"].clone()
    pixels[0] = 0.0
    pixels[1] *= torch.logspace(-30, 3, pixels.shape[-1])
    pixels[2] *= 1e-38
    exported = export_tower(model, tower="vision", path=tmp_path / "vision.onnx")
    with quiet_libraries():
        wanted = model.encode("vision", {"pixel_values": pixels}).numpy()

    found = open_graph(exported.path).embed({"pixel_values": pixels.numpy()})

    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


# -- planted ------------------------------


def judge_planted(
    variant: Any, export: Any, folder: Path, name: str, plant: Callable[[Any], None]
) -> tuple[Status, str, str]:
    """Change a copy of the vision tower's file, and return what the export gate says of both."""
    model, audit = variant(name)
    files = {tower: export(name, tower) for tower in TOWERS}
    changed = onnx.load(files["vision"].path)
    plant(changed.graph)
    onnx.save(changed, folder / "vision.onnx")
    files["vision"] = replace(files["vision"], path=folder / "vision.onnx")
    verdict = judge_export(
        audit,
        quantized=[read(model, exported) for exported in files.values()],
        fp16_file_bytes=10**6,
        dtype="float32",
        gate=GATE,
    )
    return verdict.status, verdict.code or "", verdict.headline


def swap_block_scales(graph: Any) -> None:
    """The scales of two blocks exchanged: smallest and largest stay what they were."""
    (scale,) = (t for t in graph.initializer if t.name == f"{FC1}.weight_quantizer.scale")
    values = onnx.numpy_helper.to_array(scale)[::-1].copy()
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))


def widen_blocks(graph: Any) -> None:
    (scale,) = (t for t in graph.initializer if t.name == f"{FC1}.weight_quantizer.scale")
    values = onnx.numpy_helper.to_array(scale)[:1].copy()
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))
    (node,) = (n for n in graph.node if scale.name in n.input)
    next(a for a in node.attribute if a.name == "block_size").i = 32


def widen_token_range(graph: Any) -> None:
    (scale,) = (t for t in graph.initializer if t.name == f"{FC1}.input_quantizer.scale")
    values = np.asarray(onnx.numpy_helper.to_array(scale) * 2)
    scale.CopyFrom(onnx.numpy_helper.from_array(values, scale.name))


def edit(graph: Any, name: str, change: Callable[[Any], Any]) -> None:
    (tensor,) = (t for t in graph.initializer if t.name == f"{FC1}.{name}")
    values = np.ascontiguousarray(change(onnx.numpy_helper.to_array(tensor)))
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def swap_fp4_scales(graph: Any) -> None:
    edit(graph, "weight_quantizer.scale", lambda values: values[::-1])


def take_another_tensor_scale(graph: Any) -> None:
    edit(graph, "weight_quantizer.tensor_scale", lambda value: value * np.float32(1.5))


def widen_fp4_blocks(graph: Any) -> None:
    edit(graph, "weight_quantizer.scale", lambda values: values[:1])
    (node,) = (n for n in graph.node if f"{FC1}.weight" in n.input)
    next(a for a in node.attribute if a.name == "block_size").i = 32


def take_another_input_range(graph: Any) -> None:
    for name in ("scale", "largest"):
        edit(graph, f"input_quantizer.{name}", lambda value: value * np.float32(0.5))


def forget_the_largest_value(graph: Any) -> None:
    """The scales of blocks are amax / 4, and not amax / 6."""
    edit(graph, "input_quantizer.largest", lambda value: value * np.float32(4 / 6))


def halve_the_range_of_mx(graph: Any) -> None:
    edit(graph, "input_quantizer.scale", lambda value: value * np.float32(0.5))


def store_other_powers(graph: Any) -> None:
    edit(graph, "weight_quantizer.scale", lambda values: values * np.float32(2.0))


@pytest.mark.parametrize(
    ("name", "plant", "code", "says"),
    [
        ("nvfp4", swap_fp4_scales, "values-differ", "the scales of its blocks differ"),
        ("nvfp4", take_another_tensor_scale, "values-differ", "by up to 0.5 of one"),
        ("nvfp4", widen_fp4_blocks, "values-differ", "NVFP4 (block 32) in the graph, NVFP4 in"),
        ("nvfp4", take_another_input_range, "values-differ", "smallest amax"),
        ("nvfp4", forget_the_largest_value, "quantizers-lost", "as half a pair or at another"),
        ("mxfp8", halve_the_range_of_mx, "values-differ", "amax 224 behind a range of each block"),
        ("mxfp8", store_other_powers, "values-differ", "by up to 1 of one"),
    ],
)
def test_a_file_with_other_blocks_is_red(
    name: str,
    plant: Callable[[Any], None],
    code: str,
    says: str,
    variant: Any,
    export: Any,
    tmp_path: Path,
) -> None:
    status, found, headline = judge_planted(variant, export, tmp_path, name, plant)

    assert (status, found) == (Status.FAIL, f"export.{code}")
    assert says in headline


@pytest.mark.parametrize(
    ("name", "plant", "says"),
    [
        ("INT4, blocks of 16", swap_block_scales, "scales differ from the calibrated amax of"),
        ("INT4, blocks of 16", widen_blocks, "64 scales in the graph, 128 amax in the model"),
        ("fp8-per-token", widen_token_range, "amax 2 behind a range of each token, not 1"),
    ],
)
def test_a_file_that_holds_other_scales_is_red(
    name: str, plant: Callable[[Any], None], says: str, variant: Any, export: Any, tmp_path: Path
) -> None:
    status, code, headline = judge_planted(variant, export, tmp_path, name, plant)

    assert (status, code) == (Status.FAIL, "export.values-differ")
    assert f"{FC1}." in headline
    assert says in headline


def swap_nibbles(graph: Any) -> None:
    (weight,) = (t for t in graph.initializer if t.name == f"{FC1}.weight")
    weight.raw_data = bytes((code << 4 | code >> 4) & 255 for code in weight.raw_data)


def drop_the_branch(graph: Any) -> None:
    for tensor in graph.initializer:
        if tensor.name.startswith(FC1) and tensor.name.endswith("_svdquant_lora_b"):
            tensor.raw_data = bytes(len(tensor.raw_data))


def forget_the_scale_of_awq(graph: Any) -> None:
    edit(graph, "input_quantizer._pre_quant_scale", np.ones_like)


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        ("INT4, blocks of 16", swap_nibbles),
        ("nvfp4", swap_nibbles),
        ("nvfp4-svdquant", drop_the_branch),
        ("nvfp4-awq", forget_the_scale_of_awq),
    ],
)
def test_what_stands_beside_the_scales_is_seen_where_the_graph_is_computed(
    name: str,
    plant: Callable[[Any], None],
    make_quantized: Callable[..., Encoder],
    make_pairs: MakePairs,
    tmp_path: Path,
) -> None:
    """The export gate compares scales; codes, branches and factors are what parity is for."""
    model = make_quantized(RECIPES.get(name, name))
    exported = export_tower(model, tower="vision", path=tmp_path / "good.onnx")
    (batch,) = make_pairs(seed=9, batches=1)
    assert distance(model, exported, batch) < 5e-6
    before = exported.path.read_bytes()
    changed = onnx.load(exported.path)
    plant(changed.graph)
    onnx.save(changed, tmp_path / "vision.onnx")
    assert (tmp_path / "vision.onnx").read_bytes() != before

    planted = replace(exported, path=tmp_path / "vision.onnx")

    assert distance(model, planted, batch) > 1e-2


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("mxfp6", "its format is MXFP6, this export writes E4M3, INT8, NVFP4, MXFP8, MXFP4, "),
        ("w4a8-awq", "it is one of several formats that are rounded to one after another"),
        ("fp8-blocks", "its blocks are along 2 axes, those of ONNX along one"),
    ],
)
def test_where_the_road_ends_is_said(
    recipe: str, reason: str, make_quantized: Callable[..., Encoder], tmp_path: Path
) -> None:
    model = make_quantized(recipe)

    with pytest.raises(ModelError, match=rf"quantizer(\.0)? cannot become a Q/DQ pair: {reason}"):
        export_tower(model, tower="vision", path=tmp_path / "vision.onnx")


@pytest.mark.parametrize("tower", TOWERS)
def test_rows_that_are_cut_into_blocks_of_fp4_have_a_known_length(
    tower: Tower, export: Any
) -> None:
    """TensorRT takes no other, and attention computes the shape of its output."""
    graph = onnx.load(export("nvfp4", tower).path).graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    found = [
        made_by[node.input[0]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and any(a.name == "block_size" for a in node.attribute)
    ]

    assert len(found) == 13
    for node in found:
        assert node.op_type == "Reshape"
        assert int(constants[node.input[1]][-1]) > 0
