"""Exports of other formats than one scale a tensor compute what the model computes, and say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest

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
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
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


def export(model: Encoder, tower: Tower, folder: Path) -> ExportedOnnx:
    return export_tower(model, tower=tower, path=folder / f"{tower}.onnx")


def read(model: Encoder, exported: ExportedOnnx) -> OnnxAudit:
    return read_graph(exported.path, amax=list_amax(model.module))


def distance(model: Encoder, exported: ExportedOnnx, batch: Batch, **session: Any) -> float:
    """Return the relative error of ONNX Runtime against fake quantization."""
    inputs = batch.inputs[exported.tower]
    with quiet_libraries():
        wanted = model.encode(exported.tower, inputs).numpy()
    found = OnnxRuntimeModel(exported.path, **session).embed(
        {name: value.numpy() for name, value in inputs.items()}
    )
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", RECIPES)
def test_export_computes_what_the_model_computes(
    name: str, variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    model, audit = variant(name)
    (batch,) = make_pairs(seed=9, batches=1)
    files = {tower: export(model, tower, tmp_path) for tower in TOWERS}

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
    bits = 4 if name.upper().startswith("INT4") else 8
    assert f"weights in {bits} bits" in verdict.headline


def test_int4_is_packed_in_standard_blocks(variant: Any, tmp_path: Path) -> None:
    model, _ = variant("INT4, blocks of 16")
    exported = export(model, "vision", tmp_path)
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


def test_int4_runs_as_it_is_written(variant: Any, make_pairs: MakePairs, tmp_path: Path) -> None:
    """ONNX Runtime's optimizer (1.24) rounds the inputs of INT4 products too: off by a percent."""
    model, _ = variant("INT4, blocks of 16")
    (batch,) = make_pairs(seed=9, batches=1)
    exported = export(model, "vision", tmp_path)

    assert OnnxRuntimeModel(exported.path).optimization == "none"
    assert distance(model, exported, batch, optimization="all") > 1e-3


def test_range_of_each_token_comes_back_behind_the_product(variant: Any, tmp_path: Path) -> None:
    """So a kernel multiplies FP8 by FP8: what stands between a pair and its product is nothing."""
    model, _ = variant("fp8-per-token")
    exported = export(model, "vision", tmp_path)
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


# -- planted ------------------------------


def judge_planted(
    variant: Any, folder: Path, name: str, plant: Callable[[Any], None]
) -> tuple[Status, str, str]:
    """Change the vision tower's file, and return what the export gate says of both."""
    model, audit = variant(name)
    files = {tower: export(model, tower, folder) for tower in TOWERS}
    changed = onnx.load(files["vision"].path)
    plant(changed.graph)
    onnx.save(changed, files["vision"].path)
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


@pytest.mark.parametrize(
    ("name", "plant", "says"),
    [
        ("INT4, blocks of 16", swap_block_scales, "scales differ from the calibrated amax of"),
        ("INT4, blocks of 16", widen_blocks, "64 scales in the graph, 128 amax in the model"),
        ("fp8-per-token", widen_token_range, "amax 2 behind a range of each token, not 1"),
    ],
)
def test_a_file_that_holds_other_scales_is_red(
    name: str, plant: Callable[[Any], None], says: str, variant: Any, tmp_path: Path
) -> None:
    status, code, headline = judge_planted(variant, tmp_path, name, plant)

    assert (status, code) == (Status.FAIL, "export.values-differ")
    assert f"{FC1}." in headline
    assert says in headline


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("nvfp4", "its format is NVFP4, this export writes E4M3 and INT8, and weights in INT4"),
        ("mxfp8", "its format is MXFP8, this export writes E4M3 and INT8, and weights in INT4"),
        ("w4a8-awq", "it is one of several formats that are rounded to one after another"),
        ("fp8-blocks", "its blocks are along 2 axes, those of ONNX along one"),
    ],
)
def test_where_the_road_ends_is_said(
    recipe: str, reason: str, variant: Any, tmp_path: Path
) -> None:
    model, _ = variant(recipe)

    with pytest.raises(ModelError, match=rf"quantizer(\.0)? cannot become a Q/DQ pair: {reason}$"):
        export(model, "vision", tmp_path)
