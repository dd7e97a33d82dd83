"""ONNX files of any tool: which operands are quantized, and what a runtime would refuse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from pytest_quantgate.artifacts.dequantized import list_onnx_weights
from pytest_quantgate.artifacts.onnx_file import read_onnx_graph
from pytest_quantgate.artifacts.onnx_operands import describe_onnx
from pytest_quantgate.artifacts.operands import Operand
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.inspection.inspect import inspect_paths
from tests.unit.inspection.quantized_files import codes, inspect

# -- files of other tools ----------------------------------------------------------------------

#: Headline, findings, and (format of linear inputs, of weights, of attention q) as other tools
#: wrote them.
REAL = {
    "mo_int8_fp16": ("int8-attention", {"check.float-behind-qdq"}, ("INT8", "INT8", "INT8")),
    "mo_fp8_fp16": ("fp8-attention", {"check.float-behind-qdq"}, ("E4M3", "E4M3", "E4M3")),
    "ort_qdq": ("int8-attention", {"check.asymmetric"}, ("INT8", "INT8", "INT8")),
    "ort_qop": ("int8-attention", {"check.operators-refused"}, ("INT8", "INT8", "INT8")),
    "ort_dyn": ("int8-dynamic", {"check.operators-refused"}, ("UINT8", "INT8", "")),
    "ort_fp16": ("plain", {"check.not-quantized", "check.not-sorted"}, ("", "", "")),
    "base": ("plain", {"check.not-quantized"}, ("", "", "")),
    "external": ("plain", {"check.not-quantized"}, ("", "", "")),
}


@pytest.mark.parametrize("name", REAL)
def test_a_file_of_another_tool(handed_over: Path, base_folder: Path, name: str) -> None:
    recipe, expected, formats = REAL[name]
    path = handed_over / "onnx" / f"{name}.onnx"

    found = inspect(path, base=base_folder)

    assert found.headline.startswith(f"{recipe} ONNX file of ")
    assert codes(found) == expected
    artifact, _ = describe_onnx(read_onnx_graph(path))
    operands = artifact.operands
    linear = {
        slot: {o.format for o in operands if o.kind == "linear" and o.slot == slot}
        for slot in ("input", "weight")
    }
    attention = {o.format for o in operands if o.kind == "attention" and o.slot == "q"}
    assert (linear["input"], linear["weight"], attention) == tuple({f} for f in formats)
    assert len([o for o in operands if o.slot == "weight"]) == 26
    assert len([o for o in operands if o.slot == "softmax"]) == 4
    assert {o.tower for o in operands} == {"vision"}
    assert found.against is not None
    # Beside the layers: biases, norms and embeddings, but where integer operators hold them.
    compared = found.against.compared + len(found.against.layers)
    assert compared == (47 if name == "ort_qop" else 72)
    assert all(layer.sqnr_db > 30 for layer in found.against.layers)


def test_scales_of_weights_are_told_apart(handed_over: Path) -> None:
    operands = {}
    for name in ("mo_int8_fp16", "ort_qdq"):
        artifact, _ = describe_onnx(read_onnx_graph(handed_over / "onnx" / f"{name}.onnx"))
        operands[name] = next(o for o in artifact.operands if o.layer.endswith("layers.0.mlp.fc1")
                              and o.slot == "weight")  # fmt: skip

    per_channel, per_tensor = operands["mo_int8_fp16"], operands["ort_qdq"]
    assert (per_channel.granularity, len(per_channel.ranges or ())) == ("per-channel", 384)
    assert (per_channel.stored, per_channel.is_packed) == ("float16", False)
    assert (per_tensor.granularity, len(per_tensor.ranges or ())) == ("per-tensor", 1)
    assert (per_tensor.stored, per_tensor.is_packed) == ("INT8", True)


def test_ranges_of_asymmetric_operands_are_magnitudes(handed_over: Path) -> None:
    artifact, _ = describe_onnx(read_onnx_graph(handed_over / "onnx" / "ort_qdq.onnx"))
    softmax = [o for o in artifact.operands if o.slot == "softmax"]

    assert all(not o.symmetric for o in softmax)
    assert all(0.9 < max(o.ranges or (0,)) <= 1.01 for o in softmax)


def test_a_missing_file_of_tensors_is_refused_with_its_name(
    handed_over: Path, tmp_path: Path
) -> None:
    shutil.copyfile(handed_over / "onnx" / "external.onnx", tmp_path / "m.onnx")

    (refusal,) = inspect_paths([tmp_path / "m.onnx"]).refusals

    assert "lies in 'external.data', which is missing: copy it too" in refusal.reason


# -- graphs written here -----------------------------------------------------------------------


class Graph:
    """Nodes and tensors of a graph of Linear layers, each with Q/DQ pairs or without."""

    def __init__(self, *, kind: int = TensorProto.INT8, width: int = 8) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self.kind = kind
        self.width = width
        self.random = np.random.default_rng(1)

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        self.tensors.append(numpy_helper.from_array(np.asarray(value, dtype=dtype), name))
        return name

    def zero(self, name: str, count: int | None = None) -> str:
        shape = [] if count is None else [count]
        raw = bytes(count or 1)
        self.tensors.append(helper.make_tensor(name, self.kind, shape, raw, raw=True))
        return name

    def pair(self, value: str, name: str, *, scale: Any, axis: int | None = None) -> str:
        count = None if np.ndim(scale) == 0 else len(scale)
        attributes = {} if axis is None else {"axis": axis}
        inputs = [self.constant(f"{name}_s", scale), self.zero(f"{name}_z", count)]
        self.nodes += [
            helper.make_node("QuantizeLinear", [value, *inputs], [f"{name}_q"], f"{name}/q",
                             **attributes),  # type: ignore[arg-type]
            helper.make_node("DequantizeLinear", [f"{name}_q", *inputs], [f"{name}_d"],
                             f"{name}/d", **attributes),  # type: ignore[arg-type]
        ]  # fmt: skip
        return f"{name}_d"

    def linear(self, value: str, block: int, *, pairs: bool = True, scale: float = 0.02) -> str:
        name = f"/vision_model/encoder/layers.{block}/mlp/fc1"
        weight = self.random.normal(size=(8, 8)).astype("f4")
        made = self.constant(f"{name}_w", weight)
        if pairs:
            largest = {TensorProto.INT8: 127.0}.get(self.kind, 448.0)  # type: ignore[call-overload]
            value = self.pair(value, f"{name}_x", scale=scale + block / 100)
            made = self.pair(made, f"{name}_w", scale=np.abs(weight).max(axis=0) / largest, axis=1)
        self.nodes.append(
            helper.make_node("MatMul", [value, made], [f"{name}_o"], f"{name}/MatMul")
        )
        return f"{name}_o"

    def save(self, path: Path, *, opset: int = 21) -> Path:
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
            for name, width in (("pixel_values", self.width), (self.nodes[-1].output[0], None))
        ]
        graph = helper.make_graph(self.nodes, "g", values[:1], values[1:], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        onnx.save(model, path)
        return path


def chain(graph: Graph, *, pairs: Callable[[int], bool] = lambda _: True) -> Graph:
    value = "pixel_values"
    for block in range(4):
        value = graph.linear(value, block, pairs=pairs(block))
    return graph


FLOAT = {"check.float-behind-qdq"}


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23, 24])
def test_every_opset_is_read(tmp_path: Path, opset: int) -> None:
    found = inspect(chain(Graph()).save(tmp_path / "m.onnx", opset=opset))

    assert codes(found) == FLOAT
    assert found.facts["opset"] == str(opset)
    assert "4 of 4 Linear layers INT8" in found.headline


def test_opset_11_without_pairs_is_read(tmp_path: Path) -> None:
    found = inspect(chain(Graph(), pairs=lambda _: False).save(tmp_path / "m.onnx", opset=11))

    assert codes(found) == {"check.not-quantized"}


def test_fp8_pairs_are_read(tmp_path: Path) -> None:
    graph = chain(Graph(kind=TensorProto.FLOAT8E4M3FN))

    assert "4 of 4 Linear layers FP8 (E4M3)" in inspect(graph.save(tmp_path / "m.onnx")).headline


def test_a_block_without_pairs_is_named(tmp_path: Path) -> None:
    found = inspect(chain(Graph(), pairs=lambda block: block != 2).save(tmp_path / "m.onnx"))

    assert codes(found) == {*FLOAT, "check.layers-off"}
    subjects = next(f.subjects for f in found.findings if f.code == "check.layers-off")
    assert subjects == ("vision_model.encoder.layers.2.mlp.fc1",)


def scale(name: str, factor: float) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        for place, tensor in enumerate(graph.tensors):
            if tensor.name == name:
                values = (numpy_helper.to_array(tensor) * factor).astype("f4")
                graph.tensors[place] = numpy_helper.from_array(values, name)

    return edit


def cut_dequantize(graph: Graph) -> None:
    lost = next(n for n in graph.nodes if n.name == "/vision_model/encoder/layers.1/mlp/fc1_x/d")
    graph.nodes.remove(lost)
    for node in graph.nodes:
        node.input[:] = [lost.input[0] if n == lost.output[0] else n for n in node.input]


def split_pair(graph: Graph) -> None:
    name = "/vision_model/encoder/layers.1/mlp/fc1_x"
    graph.constant("other", 0.5)
    next(n for n in graph.nodes if n.name == f"{name}/d").input[1] = "other"


X1 = "/vision_model/encoder/layers.1/mlp/fc1_x_s"
W1 = "/vision_model/encoder/layers.1/mlp/fc1_w_s"


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (scale(X1, 0), "check.range-zero"),
        (scale(X1, float("nan")), "check.range-not-finite"),
        (scale(X1, -1), "check.range-negative"),
        (scale(W1, 10), "check.range-stale"),
        (cut_dequantize, "check.half-pair"),
        (split_pair, "check.pair-disagrees"),
        (lambda graph: graph.nodes.reverse(), "check.not-sorted"),
    ],
)
def test_each_spoiled_graph_is_caught_by_its_code(
    tmp_path: Path, edit: Callable[[Graph], None], code: str
) -> None:
    graph = chain(Graph())
    edit(graph)
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
              for n in ("pixel_values", "/vision_model/encoder/layers.3/mlp/fc1_o")]  # fmt: skip
    made = helper.make_graph(graph.nodes, "g", values[:1], values[1:], graph.tensors)
    onnx.save(helper.make_model(made), tmp_path / "m.onnx")

    assert code in codes(inspect(tmp_path / "m.onnx"))


def test_a_weight_that_cast_and_mul_dequantize_is_quantized(tmp_path: Path) -> None:
    """As a third party's INT8 file does: a search for DequantizeLinear calls it unquantized."""
    graph = Graph()
    graph.constant("w", np.ones((4, 4)), np.int8)
    graph.constant("s", 0.01)
    graph.nodes += [
        helper.make_node("Cast", ["w"], ["f"], "/layers.0/fc/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["d"], "/layers.0/fc/Mul"),
        helper.make_node("MatMul", ["pixel_values", "d"], ["o"], "/layers.0/fc/MatMul"),
    ]

    artifact, _ = describe_onnx(read_onnx_graph(graph.save(tmp_path / "m.onnx")))

    weight = next(o for o in artifact.operands if o.slot == "weight")
    assert (weight.format, weight.stored, weight.granularity) == ("INT8", "INT8", "per-tensor")
    assert weight.ranges == pytest.approx((1.27,))


def test_a_scale_that_is_multiplied_on_belongs_to_the_axis_that_it_has(tmp_path: Path) -> None:
    """A scale of [1, 6] is one an output of a weight [4, 6], also where the weight is square."""
    graph = Graph()
    generator = np.random.default_rng(0)
    whole = generator.normal(size=(4, 6)).astype(np.float32) * np.arange(1, 7, dtype=np.float32)
    scale = np.abs(whole).max(axis=0, keepdims=True) / 127
    graph.constant("w", np.round(whole / scale), np.int8)
    graph.constant("s", scale)
    graph.nodes += [
        helper.make_node("Cast", ["w"], ["f"], "/layers.0/fc/Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["d"], "/layers.0/fc/Mul"),
        helper.make_node("MatMul", ["pixel_values", "d"], ["o"], "/layers.0/fc/MatMul"),
    ]

    (weight,) = list_onnx_weights(read_onnx_graph(graph.save(tmp_path / "m.onnx")))

    np.testing.assert_allclose(weight.read(), whole.T, atol=float(scale.max()) / 2)


def coded_chain(edit: Callable[[Graph], None] = lambda _: None) -> Graph:
    """Return three layers whose weights are stored in INT8, one scale an output."""
    graph, value = Graph(), "pixel_values"
    for block in range(3):
        name = f"/vision_model/encoder/layers.{block}/mlp/fc1"
        weight = graph.random.normal(size=(8, 8)).astype("f4")
        scales = np.abs(weight).max(axis=0) / 127
        value = graph.pair(value, f"{name}_x", scale=0.02 + block / 100)
        inputs = [
            graph.constant(f"{name}_w", np.rint(weight / scales), np.int8),
            graph.constant(f"{name}_s", scales),
        ]
        graph.nodes += [
            helper.make_node("DequantizeLinear", inputs, [f"{name}_d"], f"{name}/d", axis=1),
            helper.make_node("MatMul", [value, f"{name}_d"], [f"{name}_o"], f"{name}/MatMul"),
        ]
        value = f"{name}_o"
    edit(graph)
    return graph


def with_scales(make: Callable[[Any], Any]) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        for place, tensor in enumerate(graph.tensors):
            if tensor.name == "/vision_model/encoder/layers.1/mlp/fc1_s":
                values = make(numpy_helper.to_array(tensor))
                graph.tensors[place] = numpy_helper.from_array(values, tensor.name)

    return edit


def lose_scales(graph: Graph) -> None:
    node = next(n for n in graph.nodes if n.name == "/vision_model/encoder/layers.1/mlp/fc1/d")
    node.input[1] = "nowhere"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda graph: None, set()),
        (with_scales(lambda scales: scales[:5]), {"check.scale-shape"}),
        (with_scales(lambda scales: np.tile(scales, (2, 1))), {"check.scale-shape"}),
        (with_scales(lambda scales: scales[:0]), {"check.range-missing"}),
        (lose_scales, {"check.range-missing", "check.graph-invalid"}),
    ],
)
def test_scales_that_do_not_fit_their_weight(
    tmp_path: Path, edit: Callable[[Graph], None], expected: set[str]
) -> None:
    base = coded_chain().save(tmp_path / "good.onnx")
    tensors = {w.layer: torch.from_numpy(w.read().copy())
               for w in list_onnx_weights(read_onnx_graph(base))}  # fmt: skip
    (tmp_path / "base").mkdir()
    save_file({f"{n}.weight": t for n, t in tensors.items()}, tmp_path / "base/model.safetensors")
    path = coded_chain(edit).save(tmp_path / "m.onnx")

    found = inspect(path, base=tmp_path / "base")

    assert codes(found) == codes(inspect(path)) == expected
    assert found.against is not None
    assert len(found.against.layers) == 3 - bool(expected)


NAME = "/vision_model/encoder/layers.1/mlp/fc1"


def node_of(graph: Graph, name: str) -> Any:
    return next(node for node in graph.nodes if node.name == f"{NAME}{name}")


def set_attribute(name: str, key: str, value: int) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        next(a for a in node_of(graph, name).attribute if a.name == key).i = value

    return edit


def set_zero(name: str, value: Any) -> Callable[[Graph], None]:
    """Give one node of a pair a zero point of its own."""

    def edit(graph: Graph) -> None:
        graph.tensors.append(numpy_helper.from_array(np.asarray(value), "other_zero"))
        node_of(graph, name).input[2] = "other_zero"

    return edit


def quantize_again(place: int, scale: float) -> Callable[[Graph], None]:
    def edit(graph: Graph) -> None:
        node = node_of(graph, "/MatMul")
        node.input[place] = graph.pair(node.input[place], f"{NAME}_again", scale=scale)
        graph.nodes.remove(node)
        graph.nodes.insert(len(graph.nodes), node)

    return edit


def quantize_again_alike(graph: Graph) -> None:
    quantize_again(0, 0.03)(graph)  # the scale of this input


def repeat_name(graph: Graph) -> None:
    node_of(graph, "/MatMul").name = "/vision_model/encoder/layers.2/mlp/fc1/MatMul"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda _: None, set()),
        (quantize_again_alike, set()),
        (set_attribute("/d", "axis", 0), {"check.scale-axis"}),
        (set_zero("_x/d", np.int8(3)), {"check.pair-disagrees"}),
        (set_zero("_x/q", np.uint8(0)), {"check.pair-disagrees"}),
        (quantize_again(0, 0.5), {"check.quantized-twice"}),
        (quantize_again(1, 0.5), {"check.quantized-twice"}),
        (repeat_name, {"check.names-repeated"}),
    ],
    ids=[
        *("good", "twice by one scale", "axis", "zero point", "type", "input twice"),
        *("weight twice", "two of a name"),
    ],
)
def test_each_spoiled_pair_is_caught_by_its_code(
    tmp_path: Path, edit: Callable[[Graph], None], expected: set[str]
) -> None:
    found = codes(inspect(coded_chain(edit).save(tmp_path / "m.onnx")))

    # Nodes that an edit adds stand at the end, and another zero point may be of another type.
    assert found - {"check.not-sorted", "check.asymmetric", "check.graph-invalid"} == expected


def test_a_weight_that_is_quantized_twice_is_compared_as_it_is_computed(tmp_path: Path) -> None:
    layers = {}
    for label, edit in (("once", lambda _: None), ("twice", quantize_again(1, 0.5))):
        weights = list_onnx_weights(read_onnx_graph(coded_chain(edit).save(tmp_path / "m.onnx")))
        layers[label] = {weight.layer: weight.read() for weight in weights}

    once, twice = (layers[label][NAME.strip("/").replace("/", ".")] for label in layers)
    np.testing.assert_array_equal(twice, np.rint(once / np.float32(0.5)) * np.float32(0.5))


@pytest.mark.parametrize(
    ("data", "opset"), [(TensorProto.INT8, 10), (TensorProto.FLOAT8E4M3FN, 17)], ids=str
)
def test_an_opset_without_what_the_graph_has_is_named(
    tmp_path: Path, data: int, opset: int
) -> None:
    found = inspect(chain(Graph(kind=data)).save(tmp_path / "m.onnx", opset=opset))

    assert "check.graph-invalid" in codes(found)


def blocked_chain(edit: Callable[[Graph], None] = lambda _: None, *, size: int = 16) -> Graph:
    """Return three layers whose weights are stored in INT4, a scale for `size` inputs each."""
    graph, value = Graph(width=32), "pixel_values"
    for block in range(3):
        name = f"/vision_model/encoder/layers.{block}/mlp/fc1"
        weight = graph.random.normal(size=(32 // size, size, 32)).astype("f4")
        scales = np.abs(weight).max(axis=1) / 7
        found = np.rint(weight / scales[:, None]).reshape(32, 32).astype(int)
        graph.tensors.append(
            helper.make_tensor(f"{name}_w", TensorProto.INT4, [32, 32], found.ravel().tolist())
        )
        inputs = [f"{name}_w", graph.constant(f"{name}_s", scales)]
        graph.nodes += [
            helper.make_node("DequantizeLinear", inputs, [f"{name}_d"], f"{name}/d",
                             axis=0, block_size=size),
            helper.make_node("MatMul", [value, f"{name}_d"], [f"{name}_o"], f"{name}/MatMul"),
        ]  # fmt: skip
        value = f"{name}_o"
    edit(graph)
    return graph


def swap_halves(graph: Graph) -> None:
    tensor = next(t for t in graph.tensors if t.name == f"{NAME}_w")
    halves = numpy_helper.to_array(tensor).astype(int).reshape(-1, 2)[:, ::-1]
    swapped = helper.make_tensor(tensor.name, TensorProto.INT4, [32, 32], halves.ravel().tolist())
    tensor.CopyFrom(swapped)


def turn_scales(graph: Graph) -> None:
    """Give each column the scales of the one before it: an SQNR of 4 bits may stay above 8 dB."""
    tensor = next(t for t in graph.tensors if t.name == f"{NAME}_s")
    with_values(graph, tensor.name, np.roll(numpy_helper.to_array(tensor), 1, axis=1))


def add_zero_points(graph: Graph) -> None:
    """Have all blocks of a layer read as if their codes were one more."""
    zeros = helper.make_tensor(f"{NAME}_z", TensorProto.INT4, [2, 32], [-1] * 64)
    graph.tensors.append(zeros)
    node_of(graph, "/d").input.append(zeros.name)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda _: None, set()),
        (swap_halves, {"check.sqnr-low"}),
        (set_attribute("/d", "block_size", 32), {"check.scale-shape"}),
        (set_attribute("/d", "block_size", 8), {"check.scale-shape"}),
        (set_attribute("/d", "axis", 1), {"check.scale-shape"}),
        (scale(f"{NAME}_s", 5), {"check.sqnr-low"}),
        (turn_scales, {"check.scales-moved"}),
        (add_zero_points, {"check.zero-points-lost", "check.asymmetric"}),
    ],
    ids=[
        *("good", "halves of bytes", "block 32", "block 8", "axis", "scale"),
        *("scales of other blocks", "zero points"),
    ],
)
def test_weights_in_blocks_are_held_against_their_scales_and_the_base(
    tmp_path: Path, edit: Callable[[Graph], None], expected: set[str]
) -> None:
    weights = list_onnx_weights(read_onnx_graph(blocked_chain().save(tmp_path / "good.onnx")))
    (tmp_path / "base").mkdir()
    save_file(
        {f"{w.layer}.weight": torch.from_numpy(w.read().copy()) for w in weights},
        tmp_path / "base/model.safetensors",
    )

    found = inspect(blocked_chain(edit).save(tmp_path / "m.onnx"), base=tmp_path / "base")

    assert codes(found) - {"check.graph-invalid"} == expected


def test_a_bias_in_another_scale_than_the_product_is_named(tmp_path: Path) -> None:
    graph = Graph()
    value = graph.pair("pixel_values", f"{NAME}_x", scale=0.02)
    graph.constant(f"{NAME}_w", np.eye(8) * 127, np.int8)
    graph.constant(f"{NAME}_b", np.arange(8), np.int32)
    for name, scales in (("w", [0.01] * 8), ("b", [0.0002] * 7 + [0.0004])):
        inputs = [f"{NAME}_{name}", graph.constant(f"{NAME}_{name}s", scales)]
        graph.nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{NAME}_{name}d"], f"{NAME}/{name}",
                             axis=0)
        )  # fmt: skip
    graph.nodes.append(
        helper.make_node("Gemm", [value, f"{NAME}_wd", f"{NAME}_bd"], ["o"], f"{NAME}/Gemm",
                         transB=1)
    )  # fmt: skip

    assert "check.bias-scale" in codes(inspect(graph.save(tmp_path / "m.onnx")))
    scale(f"{NAME}_bs", 0)(graph)
    with_values(graph, f"{NAME}_bs", [0.0002] * 8)
    assert "check.bias-scale" not in codes(inspect(graph.save(tmp_path / "m.onnx")))


def spoil_bias_scale(graph: Graph) -> None:
    with_values(graph, f"{NAME}_x_s", [0.02, 0.02, 0.02])


def flatten_weight(graph: Graph) -> None:
    with_values(graph, f"{NAME}_w", 3.0)


def pair_for_ever(graph: Graph) -> None:
    """1500 pairs behind each other in front of one product."""
    node = node_of(graph, "/MatMul")
    inputs = [f"{NAME}_x_s", f"{NAME}_x_z"]
    for number in range(1500):
        value, code = f"again_{number}", f"code_{number}"
        graph.nodes += [
            helper.make_node("QuantizeLinear", [node.input[0], *inputs], [code], code),
            helper.make_node("DequantizeLinear", [code, *inputs], [value], value),
        ]
        node.input[0] = value


@pytest.mark.parametrize("edit", [spoil_bias_scale, flatten_weight, pair_for_ever])
def test_what_nobody_writes_is_no_traceback(tmp_path: Path, edit: Callable[[Graph], None]) -> None:
    path = coded_chain(edit).save(tmp_path / "m.onnx")

    report = inspect_paths([path])

    assert len(report.inspections) + len(report.refusals) == 1


def with_values(graph: Graph, name: str, values: Any) -> None:
    tensor = next(t for t in graph.tensors if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(values, dtype="f4"), name))


@pytest.mark.parametrize(
    ("tool", "tensor", "expected"),
    [
        ("ort_qdq", "m.vision_model.encoder.layers.1.mlp.fc1.bias_scale", {"check.base-changed"}),
        ("mo_fp8_fp16", "m.vision_model.encoder.layers.1.layer_norm2.weight",
         {"check.base-changed"}),
        ("base", "m.vision_model.encoder.layers.1.mlp.fc1.bias", {"check.base-changed"}),
    ],
)  # fmt: skip
def test_what_is_no_layer_is_compared_with_the_base(
    handed_over: Path, base_folder: Path, tmp_path: Path, tool: str, tensor: str, expected: set[str]
) -> None:
    model = onnx.load(handed_over / "onnx" / f"{tool}.onnx")
    found = next(t for t in model.graph.initializer if t.name == tensor)
    values = numpy_helper.to_array(found)
    found.CopyFrom(numpy_helper.from_array((values * 10).astype(values.dtype), tensor))
    onnx.save(model, tmp_path / "m.onnx")

    before = codes(inspect(handed_over / "onnx" / f"{tool}.onnx", base=base_folder))

    assert codes(inspect(tmp_path / "m.onnx", base=base_folder)) - before == expected


def read_plain(*ends: str) -> Callable[[Graph], None]:
    """Have the layers read what their pairs quantize, not what these make."""

    def edit(graph: Graph) -> None:
        pairs = {n.output[0]: n.output[0][:-2] for n in graph.nodes if n.name.endswith("/d")}
        before = {n.name: n.input[0] for n in graph.nodes if n.name.endswith("/q")}
        for node in graph.nodes:
            if node.op_type == "MatMul":
                node.input[:] = [
                    before[f"{pairs[n]}/q"] if n.endswith(ends) else n for n in node.input
                ]

    return edit


def dequantize_for_nobody(graph: Graph) -> None:
    inputs = [graph.constant("w", np.ones((4, 4)), np.int8), graph.constant("s", 0.1)]
    graph.nodes.insert(0, helper.make_node("DequantizeLinear", inputs, ["d"], "nobody"))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (dequantize_for_nobody, {*FLOAT, "check.pair-unread"}),
        (read_plain("x_d"), {*FLOAT, "check.pair-unread"}),
        (read_plain("w_d"), {"check.not-quantized", "check.pair-unread"}),
        (read_plain("x_d", "w_d"), {"check.not-quantized", "check.pair-unread"}),
    ],
)
def test_pairs_that_nothing_reads(
    tmp_path: Path, edit: Callable[[Graph], None], expected: set[str]
) -> None:
    graph = chain(Graph())
    edit(graph)

    assert codes(inspect(graph.save(tmp_path / "m.onnx"))) == expected


@pytest.mark.parametrize("operator", ["Mul", "Where", "DequantizeLinear"])
def test_a_node_with_too_few_inputs_is_refused(tmp_path: Path, operator: str) -> None:
    graph = Graph()
    graph.nodes += [
        helper.make_node(operator, ["pixel_values"], ["a"], "one"),
        helper.make_node("MatMul", ["a", "a"], ["b"], "two"),
    ]

    (refusal,) = inspect_paths([graph.save(tmp_path / "m.onnx")]).refusals

    assert f"'one' has 1 inputs, too few for {operator}" in refusal.reason


def test_layers_of_other_names_are_found_by_their_values(tmp_path: Path) -> None:
    graph = Graph()
    generator = np.random.default_rng(0)
    weights = {f"layers.{i}.fc": generator.normal(size=(8, 8)).astype("f4") for i in range(3)}
    value = "pixel_values"
    for name, weight in zip(("val_7", "val_3", "val_5"), reversed(weights.values()), strict=True):
        scale = float(np.abs(weight).max()) / 127
        graph.constant(name, np.round(weight.T / scale), np.int8)
        graph.constant(f"{name}_s", scale)
        graph.nodes += [
            helper.make_node("Cast", [name], [f"{name}_f"], f"{name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_f", f"{name}_s"], [f"{name}_d"], f"{name}_mul"),
            helper.make_node("MatMul", [value, f"{name}_d"], [f"{name}_o"], f"node_{name}"),
        ]
        value = f"{name}_o"
    path = graph.save(tmp_path / "m.onnx")
    base = tmp_path / "base"
    tensors = {f"{name}.weight": torch.from_numpy(weight) for name, weight in weights.items()}
    base.mkdir()
    save_file(tensors, base / "model.safetensors")

    found = inspect(path, base=base)

    assert found.against is not None
    assert found.against.by_values
    assert len(found.against.layers) == 3
    assert all(30 < error.sqnr_db < 60 for error in found.against.layers)

    other = {name: torch.randn(8, 8) for name in tensors}
    save_file(other, base / "model.safetensors")
    report = inspect_paths([path], base=base)
    assert "neither by name nor by its values" in report.refusals[0].reason


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin", ""])
def test_tensors_outside_of_the_folder_are_not_read(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"\1" * 256)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = chain(Graph()).save(folder / "m.onnx")
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("layers.0/mlp/fc1_w"))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ArtifactError, match="outside of the folder, which is not read"):
        describe_onnx(read_onnx_graph(path))


def test_files_of_a_snapshot_of_the_hub_are_links_to_blobs(
    handed_over: Path, tmp_path: Path
) -> None:
    blobs, snapshot = tmp_path / "model/blobs", tmp_path / "model/snapshots/abc"
    (snapshot / "onnx").mkdir(parents=True)
    blobs.mkdir()
    for name in ("external.onnx", "external.data"):
        shutil.copyfile(handed_over / "onnx" / name, blobs / name)
        (snapshot / "onnx" / name).symlink_to(f"../../../blobs/{name}")

    found = inspect(snapshot)

    assert found.facts["opset"] == "20"
    assert codes(found) == {"check.not-quantized"}


@pytest.mark.parametrize(
    ("offset", "length"), [("0", "9999"), ("-4", "8"), ("x", "8"), ("9" * 30, "8")]
)
def test_tensors_beyond_their_file_are_refused(tmp_path: Path, offset: str, length: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(256))
    path = chain(Graph()).save(tmp_path / "m.onnx")
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name.endswith("layers.0/mlp/fc1_w"))
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ArtifactError, match=r"ends beyond|its place is no number"):
        describe_onnx(read_onnx_graph(path))


def test_a_circle_is_refused(tmp_path: Path) -> None:
    graph = Graph()
    graph.nodes += [
        helper.make_node("Relu", ["b"], ["a"], "one"),
        helper.make_node("Relu", ["a"], ["b"], "two"),
    ]

    with pytest.raises(ArtifactError, match="wait for each other in a circle"):
        read_onnx_graph(graph.save(tmp_path / "m.onnx"))


def list_operands(path: Path) -> Iterator[Operand]:
    yield from describe_onnx(read_onnx_graph(path))[0].operands


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), keep=st.floats(0.2, 1))
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: float, byte: int, keep: float
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    content = bytearray(chain(Graph()).save(folder / "m.onnx").read_bytes())
    content[int(place * len(content))] = byte
    (folder / "m.onnx").write_bytes(content[: int(keep * len(content))])

    report = inspect_paths([folder / "m.onnx"])

    assert len(report.inspections) + len(report.refusals) == 1


def test_what_nothing_is_quantized_of_is_counted_by_what_it_is(tmp_path: Path) -> None:
    """Of a file of convolutions alone it said "0 Linear layers in full precision"."""
    weight = numpy_helper.from_array(np.ones((4, 3, 2, 2), dtype="f4"), "w")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="/conv/Conv")],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [value("y", TensorProto.FLOAT, ["n", 4, 7, 7])],
        [weight],
    )
    path = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)

    found = inspect(path)

    assert found.headline.endswith("nothing is quantized (1 Conv layer)")
    assert found.findings[0].headline == "nothing is quantized: 1 Conv layer in full precision"


def test_a_file_that_tensorrt_refuses_is_not_sent_to_trtexec(handed_over: Path) -> None:
    steps = {
        name: " ".join(inspect(handed_over / "onnx" / f"{name}.onnx").next_steps)
        for name in ("ort_qop", "mo_int8_fp16")
    }

    assert "trtexec" not in steps["ort_qop"]
    assert "trtexec" in steps["mo_int8_fp16"]
    assert "--base" in steps["ort_qop"]


def test_what_lies_in_branches_is_said_with_its_size(tmp_path: Path) -> None:
    made = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
    weight = numpy_helper.from_array(np.ones((500, 500), dtype="f4"), "w")
    branch = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["made"])], "b", [], [made], [weight]
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=branch)],
        "g",
        [value("x", TensorProto.FLOAT, ["n", 500]), value("which", TensorProto.BOOL, [])],
        [value("y", TensorProto.FLOAT, ["n", 500])],
    )
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)

    found = inspect(path)

    assert found.findings[0].headline == (
        "nothing is quantized: no layer with a stored weight was found"
    )
    assert (
        "2 nodes and 2.00 MB of tensors lie in branches and loops, which were not looked into"
        in found.notes
    )
