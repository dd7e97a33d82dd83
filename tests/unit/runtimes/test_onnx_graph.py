"""The audit of a graph must show each way in which an export can go wrong unseen."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.onnx import OnnxAudit, OnnxOperation, QdqPair
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.measure.quantizers import list_amax
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import find_quantizers
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnx_graph import read_graph
from pytest_quantgate.runtimes.onnx_nodes import module_of_node

BLOCK = "vision_model.encoder.layers.1"
FC1 = f"{BLOCK}.mlp.fc1"
PATCH = "vision_model.embeddings.patch_embedding"
Sabotage = Callable[[Any], None]


@pytest.fixture(scope="module")
def sound(make_quantized: Callable[..., Encoder], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported vision tower: FP8 with attention, patch_embedding excluded."""
    model = make_quantized("fp8-attention", exclude=("*patch_embedding*",))
    path = tmp_path_factory.mktemp("onnx") / "sound.onnx"
    return export_tower(model, tower="vision", path=path).path


@pytest.fixture
def audit_after(sound: Path, tmp_path: Path) -> Callable[[Sabotage], OnnxAudit]:
    """Change a copy of the sound graph and read it."""

    def make(sabotage: Sabotage) -> OnnxAudit:
        model = onnx.load(sound)
        sabotage(model.graph)
        onnx.save(model, tmp_path / "changed.onnx")
        return read_graph(tmp_path / "changed.onnx")

    return make


def node_of(graph: Any, quantizer: str, operator: str) -> Any:
    names = [n for n in graph.node if module_of_node(n.name) == quantizer]
    return next(n for n in names if n.op_type == operator)


def tensor_of(graph: Any, name: str) -> Any:
    return next(t for t in graph.initializer if t.name == name)


def pair_of(audit: OnnxAudit, quantizer: str) -> QdqPair:
    return next(p for p in audit.pairs if p.quantizer == quantizer)


def operation_of(audit: OnnxAudit, module: str) -> OnnxOperation:
    return next(o for o in audit.operations if o.module == module)


def bypass(graph: Any, quantizer: str) -> None:
    """Take a pair of an activation out of the graph."""
    first = node_of(graph, quantizer, "QuantizeLinear")
    last = node_of(graph, quantizer, "DequantizeLinear")
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == last.output[0]:
                node.input[index] = first.input[0]
    graph.node.remove(first)
    graph.node.remove(last)


def put_float_weight(graph: Any, quantizer: str, weight: str) -> None:
    """Store a weight as float32 behind QuantizeLinear and DequantizeLinear."""
    last = node_of(graph, quantizer, "DequantizeLinear")
    stored, scale = tensor_of(graph, weight), tensor_of(graph, last.input[1])
    values = numpy_helper.to_array(stored).astype(np.float32) * numpy_helper.to_array(scale)
    graph.initializer.remove(stored)
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name=weight))
    place = list(graph.node).index(last)
    graph.node.insert(
        place,
        helper.make_node(
            "QuantizeLinear",
            [weight, *last.input[1:]],
            [f"{weight}_8bit"],
            name=last.name.replace("/DQ", "/Q"),
        ),
    )
    last.input[0] = f"{weight}_8bit"


def insert_pair(graph: Any, value: str, *, name: str, reader: Any, scale: float = 1.0) -> None:
    """Put a pair between a value and one node that reads it."""
    graph.initializer.append(numpy_helper.from_array(np.float32(scale), name=f"{name}.scale"))  # type: ignore[arg-type]
    graph.initializer.append(
        TensorProto(
            name=f"{name}.zero", data_type=TensorProto.FLOAT8E4M3FN, dims=[], raw_data=b"\0"
        )
    )
    place = list(graph.node).index(reader)
    for operator, source, result in (
        ("DequantizeLinear", f"{name}_8bit", f"{name}_out"),
        ("QuantizeLinear", value, f"{name}_8bit"),
    ):
        inputs = [source, f"{name}.scale", f"{name}.zero"]
        node = helper.make_node(operator, inputs, [result], name=f"{name}/{operator}")
        graph.node.insert(place, node)
    reader = graph.node[place + 2]
    reader.input[list(reader.input).index(value)] = f"{name}_out"


def test_sound_graph_leaves_nothing_open(sound: Path) -> None:
    audit = read_graph(sound)
    assert (audit.tower, audit.precision, audit.opset) == ("vision", "float32", 20)
    assert (audit.domains, audit.problems, audit.extra) == (("",), (), ())
    assert (audit.lost, audit.undeclared) == ((), ())
    assert len(audit.pairs) == len(audit.declared) == 34
    # The patch embedding is excluded, and nothing quantizes what comes out of Softmax.
    assert [o.module for o in audit.unquantized] == [
        PATCH,
        "vision_model.encoder.layers.0.self_attn",
        f"{BLOCK}.self_attn",
    ]
    assert audit.dynamic_batch
    assert audit.file_bytes == sound.stat().st_size
    fc1 = operation_of(audit, FC1)
    assert fc1.quantizers == (f"{FC1}.input_quantizer", f"{FC1}.weight_quantizer")
    assert (fc1.operator, fc1.weights_count, fc1.weight_type) == ("MatMul", 32 * 64, "E4M3")
    scores = operation_of(audit, f"{BLOCK}.self_attn")
    assert scores.quantizers == tuple(f"{BLOCK}.self_attn.{n}_bmm_quantizer" for n in "qk")


def test_audit_survives_json(sound: Path) -> None:
    audit = read_graph(sound)
    assert from_json(OnnxAudit, to_json(audit)) == audit


def test_lost_pair_is_named(audit_after: Any) -> None:
    name = f"{FC1}.input_quantizer"
    audit = audit_after(lambda graph: bypass(graph, name))
    assert audit.lost == (name,)
    assert operation_of(audit, FC1).operands_quantized == (False, True)
    assert audit.problems == ()


def test_bypassed_dequantize_is_named(audit_after: Any) -> None:
    """A DequantizeLinear of a weight taken out: the matmul reads full precision."""
    name = f"{FC1}.weight_quantizer"

    def sabotage(graph: Any) -> None:
        last = node_of(graph, name, "DequantizeLinear")
        stored = tensor_of(graph, f"{FC1}.weight")
        scale = numpy_helper.to_array(tensor_of(graph, last.input[1]))
        values = numpy_helper.to_array(stored).astype(np.float32) * scale
        graph.initializer.append(numpy_helper.from_array(values, name=last.output[0]))
        graph.initializer.remove(stored)
        graph.node.remove(last)

    audit = audit_after(sabotage)
    assert audit.lost == (name,)
    found = operation_of(audit, FC1)
    assert (found.operands_quantized, found.weight_type) == ((True, False), "float32")


def test_attention_left_out_in_one_block(audit_after: Any) -> None:
    names = tuple(
        f"{BLOCK}.self_attn.{slot}_quantizer" for slot in ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
    )

    def sabotage(graph: Any) -> None:
        for name in names:
            bypass(graph, name)

    audit = audit_after(sabotage)
    assert set(audit.lost) == set(names)
    found = [o for o in audit.operations if o.module == f"{BLOCK}.self_attn"]
    assert [o.operands_quantized for o in found] == [(False, False)] * 2


def test_changed_scale_changes_amax(sound: Path, audit_after: Any) -> None:
    name = f"{FC1}.input_quantizer"

    def sabotage(graph: Any) -> None:
        scale = tensor_of(graph, f"{name}.scale")
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * 4, name=scale.name))

    before, after = pair_of(read_graph(sound), name), pair_of(audit_after(sabotage), name)
    assert after.amax_max == pytest.approx(4 * before.amax_max, rel=1e-6)
    assert after.scale_digest != before.scale_digest
    assert after.complete


@pytest.mark.parametrize(("recipe", "precision"), [("int8", "float32"), ("fp8", "float16")])
def test_every_scale_is_compared_with_the_amax_of_its_channel(
    make_quantized: Callable[..., Encoder], tmp_path: Path, recipe: str, precision: Any
) -> None:
    model = make_quantized(recipe)
    path = tmp_path / "tower.onnx"
    export_tower(model, tower="vision", path=path, precision=precision)
    name = f"{FC1}.weight_quantizer"
    amax = list_amax(model.module)
    mixed_up = {**amax, name: amax[name][::-1]}

    found = read_graph(path, amax=amax)
    swapped = pair_of(read_graph(path, amax=mixed_up), name)

    deviations = [pair.amax_deviation for pair in found.pairs]
    assert all(deviation is not None and deviation < 2**-10 for deviation in deviations)
    assert swapped.amax_deviation is not None
    assert (swapped.amax_deviation > 0.01) == (recipe == "int8")  # one scale cannot be mixed up
    assert pair_of(read_graph(path), name).amax_deviation is None


def test_halves_with_different_scales_are_no_pair(audit_after: Any) -> None:
    name = f"{FC1}.input_quantizer"

    def sabotage(graph: Any) -> None:
        scale = numpy_helper.to_array(tensor_of(graph, f"{name}.scale"))
        graph.initializer.append(numpy_helper.from_array(scale * 4, name="another"))
        node_of(graph, name, "DequantizeLinear").input[1] = "another"

    audit = audit_after(sabotage)
    assert not pair_of(audit, name).complete
    assert audit.lost == (name,)
    assert operation_of(audit, FC1).operands_quantized == (False, True)


def test_shifted_zero_point_is_seen(audit_after: Any) -> None:
    name = f"{FC1}.input_quantizer"
    audit = audit_after(
        lambda graph: setattr(tensor_of(graph, f"{name}.zero_point"), "raw_data", b"\x38")
    )
    assert [p.quantizer for p in audit.pairs if not p.symmetric] == [name]


def test_requantized_patch_embedding_is_seen(audit_after: Any) -> None:
    """What ModelOpt's exporter does to an excluded convolution."""

    def sabotage(graph: Any) -> None:
        conv = next(n for n in graph.node if n.op_type == "Conv")
        insert_pair(graph, conv.input[1], name="Conv_weight", reader=conv)

    audit = audit_after(sabotage)
    assert audit.lost == ()
    (extra,) = audit.undeclared
    assert (extra.quantizer, extra.node) == (None, "Conv_weight/DequantizeLinear")
    assert (extra.source, extra.consumers) == ("weight, float", (PATCH,))
    found = operation_of(audit, PATCH)
    assert (found.operands_quantized, found.quantizers) == ((False, True), (None, None))


def test_undeclared_softmax_pair_is_seen(audit_after: Any) -> None:
    def sabotage(graph: Any) -> None:
        softmax = next(n for n in graph.node if n.op_type == "Softmax")
        (reader,) = (n for n in graph.node if softmax.output[0] in n.input)
        insert_pair(graph, softmax.output[0], name="Softmax_1", reader=reader, scale=1 / 448)

    (extra,) = audit_after(sabotage).undeclared
    assert extra.quantizer is None
    assert extra.producer == "vision_model.encoder.layers.0.self_attn"
    assert extra.amax_max == pytest.approx(1.0)


def test_pair_with_anothers_name_does_not_stand_for_it(audit_after: Any) -> None:
    """A graph is not believed by its names alone."""
    name = f"{FC1}.input_quantizer"

    def sabotage(graph: Any) -> None:
        nodes = [node_of(graph, name, f"{kind}quantizeLinear") for kind in ("De",)]
        label = nodes[0].name.rpartition("/")[0]
        bypass(graph, name)
        conv = next(n for n in graph.node if n.op_type == "Conv")
        insert_pair(graph, conv.input[0], name=label, reader=conv)

    audit = audit_after(sabotage)
    assert pair_of(audit, name).consumers == (PATCH,)
    assert not pair_of(audit, name).feeds_owner
    assert audit.lost == (name,)


def test_float_weight_behind_a_pair_is_seen(sound: Path, audit_after: Any) -> None:
    name = f"{FC1}.weight_quantizer"
    audit = audit_after(lambda graph: put_float_weight(graph, name, f"{FC1}.weight"))
    assert audit.problems == ()
    assert pair_of(audit, name).source == "weight, float"
    assert pair_of(audit, name).complete
    assert [p.quantizer for p in audit.pairs if p.slot == "weight" and "8" not in p.source] == [
        name
    ]
    before, after = dict(read_graph(sound).weights_bytes), dict(audit.weights_bytes)
    assert after["E4M3"] == before["E4M3"] - 32 * 64
    assert after["float32"] == before["float32"] + 32 * 64 * 4
    assert operation_of(audit, FC1).weight_type == "float32"


def save_blocks(path: Path, weight: Any, scale: Any, *, block_size: int) -> Path:
    """Write a product with a weight of [64, 64] in blocks along its columns."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=1, block_size=block_size),
        helper.make_node("MatMul", ["x", "wf"], ["y"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 64]) for name in "xy"
    ]
    graph = helper.make_graph(nodes, "blocks", values[:1], values[1:], [weight, scale])
    opsets = [helper.make_opsetid("", 23)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def test_powers_of_two_are_those_of_microscaling_in_float32_too(tmp_path: Path) -> None:
    """No runtime takes E8M0 yet, so exports keep such scales in float32."""
    weight = helper.make_tensor("w", TensorProto.FLOAT8E4M3FN, [64, 64], [1.0] * 4096)
    scale = helper.make_tensor("s", TensorProto.FLOAT, [64, 2], [0.5, 2.0**-9] * 64)

    audit = read_graph(save_blocks(tmp_path / "b.onnx", weight, scale, block_size=32))

    assert [pair.format for pair in audit.pairs] == ["MXFP8"]


@pytest.mark.parametrize(
    ("kind", "block_size", "scale_kind", "name", "weight_bytes"),
    [
        (TensorProto.INT4, 32, TensorProto.FLOAT, "INT4", 64 * 32),
        (TensorProto.FLOAT8E4M3FN, 32, TensorProto.FLOAT, "E4M3", 64 * 64),
        (TensorProto.FLOAT8E5M2, 32, TensorProto.FLOAT, "E5M2", 64 * 64),
        (TensorProto.FLOAT4E2M1, 16, TensorProto.FLOAT, "NVFP4", 64 * 32),
        (TensorProto.FLOAT4E2M1, 16, TensorProto.FLOAT8E4M3FN, "NVFP4", 64 * 32),
        (TensorProto.FLOAT4E2M1, 32, TensorProto.FLOAT8E8M0, "MXFP4", 64 * 32),
        (TensorProto.FLOAT8E4M3FN, 32, TensorProto.FLOAT8E8M0, "MXFP8", 64 * 64),
    ],
)
def test_weights_in_blocks_are_named_and_counted(
    kind: int, block_size: int, scale_kind: int, name: str, weight_bytes: int, tmp_path: Path
) -> None:
    weight = helper.make_tensor("w", kind, [64, 64], [1.0, -2.0] * (64 * 32))
    count = 64 * 64 // block_size
    one = 0.3 if scale_kind == TensorProto.FLOAT else 0.5
    scale = helper.make_tensor("s", scale_kind, [64, 64 // block_size], [one] * count)

    audit = read_graph(save_blocks(tmp_path / "b.onnx", weight, scale, block_size=block_size))

    (pair,) = audit.pairs
    assert (pair.format, pair.source, pair.scale_count) == (name, "weight, 8 bit", count)
    kind_of = find_format(name)
    assert kind_of is not None
    assert pair.amax_max == pytest.approx(one * kind_of.largest)
    scale_bytes = count * (4 if scale_kind == TensorProto.FLOAT else 1)
    sizes = sorted(size for _, size in audit.weights_bytes)
    assert sizes == sorted([weight_bytes, scale_bytes])


def test_lone_quantize_is_no_pair(audit_after: Any) -> None:
    name = f"{FC1}.input_quantizer"

    def sabotage(graph: Any) -> None:
        last = node_of(graph, name, "DequantizeLinear")
        last.op_type = "Cast"
        del last.input[1:]
        last.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))

    audit = audit_after(sabotage)
    assert not pair_of(audit, name).complete
    assert audit.lost == (name,)
    assert operation_of(audit, FC1).operands_quantized == (False, True)


def test_other_domains_are_seen(audit_after: Any) -> None:
    def sabotage(graph: Any) -> None:
        node_of(graph, f"{FC1}.input_quantizer", "DequantizeLinear").domain = "trt"

    audit = audit_after(sabotage)
    assert audit.domains == ("", "trt")
    assert len(audit.problems) == 1


def test_invalid_graph_is_seen(audit_after: Any) -> None:
    def sabotage(graph: Any) -> None:
        node_of(graph, f"{FC1}.input_quantizer", "QuantizeLinear").op_type = "QuantiseLinear"

    (problem,) = audit_after(sabotage).problems
    assert "QuantiseLinear" in problem


def test_a_type_that_there_is_not_is_seen(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    scale = helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("z", TensorProto.INT8, [], [0])
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], name="a.input_quantizer/Q")
    graph = helper.make_graph(
        [node], "g", [value("x", 1, [2])], [value("y", 3, [2])], [scale, zero]
    )
    graph.input[0].type.tensor_type.elem_type = 0
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    assert "type" in read_graph(tmp_path / "model.onnx").problems[0]


def test_zero_points_may_be_left_out_of_dequantize(audit_after: Any) -> None:
    def sabotage(graph: Any) -> None:
        for node in graph.node:
            if node.op_type == "DequantizeLinear":
                del node.input[2:]

    audit = audit_after(sabotage)
    assert (audit.problems, audit.lost) == ((), ())
    assert {p.format for p in audit.pairs} == {"E4M3"}


def test_graph_of_another_exporter_declares_nothing(sound: Path, tmp_path: Path) -> None:
    model = onnx.load(sound)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    audit = read_graph(tmp_path / "other.onnx")
    assert (audit.tower, audit.declared, audit.lost) == ("other", (), ())
    assert len(audit.undeclared) == len(audit.pairs) == 34
    assert all(p.quantizer is not None and p.feeds_owner for p in audit.pairs)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no model", "is no ONNX model"), (b"", "holds no ONNX graph"), (None, "cannot be read")],
)
def test_damaged_file_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"damaged.onnx.*{message}"):
        read_graph(path)


def test_truncated_file_is_refused(sound: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(sound.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"cut.onnx: is no ONNX model"):
        read_graph(path)


def test_audit_sees_what_modelopts_exporter_does(
    make_quantized: Callable[..., Encoder], tmp_path: Path
) -> None:
    """The real thing: a custom domain, an excluded convolution quantized, pairs at Softmax."""
    pytest.importorskip("onnx_graphsurgeon")  # comes with nvidia-modelopt[onnx]
    deploy = import_modelopt("modelopt.torch._deploy.utils")
    model = make_quantized("fp8", exclude=("*patch_embedding*",))
    module: Any = model.module

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_model = module.vision_model
            self.visual_projection = module.visual_projection

        def forward(self, pixel_values: torch.Tensor) -> Any:
            return self.visual_projection(self.vision_model(pixel_values).pooler_output)

    with quiet_libraries():
        content, _ = deploy.get_onnx_bytes_and_metadata(
            Tower(),
            (torch.zeros(1, 3, 48, 48),),
            weights_dtype="fp32",
            model_name="tower",
            onnx_opset=20,
        )
    path = tmp_path / "modelopt.onnx"
    path.write_bytes(deploy.OnnxBytes.from_bytes(content).get_onnx_model_file_bytes())
    audit = read_graph(path)
    wanted = {
        name
        for name, quantizer in find_quantizers(module).items()
        if quantizer.is_enabled and name.startswith("vis")
    }
    # All that was to be there is recognised by its own name, although the file says nothing of us.
    assert wanted <= {p.quantizer for p in audit.pairs if p.complete and p.feeds_owner}
    assert audit.domains == ("", "trt")
    added = [p for p in audit.pairs if p.quantizer not in wanted]
    assert [(p.source, p.consumers) for p in added] == [
        ("weight, 8 bit", (PATCH,)),
        ("activation", ("vision_model.encoder.layers.0.self_attn",)),
        ("activation", ("vision_model.encoder.layers.1.self_attn",)),
    ]
    assert operation_of(audit, PATCH).operands_quantized == (False, True)


@pytest.mark.parametrize(
    ("names", "words"),
    [("5", "it is no list"), ("{}", "it is no list"), ("[", "Expecting value"), ("[" * 10**5, "")],
    ids=["number", "mapping", "cut", "deep"],
)
def test_a_list_of_quantizers_that_is_none_is_refused(
    tmp_path: Path, names: str, words: str
) -> None:
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    )
    onnx.helper.set_model_props(model, {"quantgate.quantizers": names})
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())

    with pytest.raises(ModelError, match=f"its list of quantizers is damaged: .*{words}"):
        read_graph(path)


def write_model(path: Path, nodes: list[Any], tensors: list[Any], outputs: list[str]) -> Path:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    model = helper.make_model(helper.make_graph(nodes, "g", [], ends, tensors))
    path.write_bytes(model.SerializeToString())
    return path


SCALE = numpy_helper.from_array(np.float32(0.5), name="s")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ([("Identity", ["b"], ["a"]), ("Identity", ["a"], ["b"])], "reads 'b' before it is made"),
        ([("MatMul", ["a", "x"], ["a"])], "reads 'a' before it is made"),
        ([("Relu", ["x"], ["a"]), ("Cast", ["a"], ["a"])], "'a' is made twice|reads 'a' before"),
        ([("Relu", ["x"], ["a"]), ("Relu", ["x"], ["a"])], "value 'a' is made twice"),
        ([("QuantizeLinear", ["x"], ["q"])], "node 'q' has 1 inputs, too few for Quantize"),
        ([("TRT_FP8DequantizeLinear", ["x"], ["q"])], "node 'q' has 1 inputs, too few for T"),
        ([("Identity", [], ["q"])], "node 'q' has 0 inputs, too few for Identity"),
        ([("Relu", ["x"], [])], "node '' makes nothing"),
    ],
)
def test_a_graph_whose_values_cannot_be_followed_is_refused(
    tmp_path: Path, nodes: list[tuple[str, list[str], list[str]]], reason: str
) -> None:
    path = write_model(tmp_path / "m.onnx", [helper.make_node(*node) for node in nodes], [], ["q"])

    with pytest.raises(ModelError, match=f"m.onnx: is no sound ONNX graph: .*({reason})"):
        read_graph(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data_type": 99}, "tensor 's' has no type or size that there is"),
        ({"data_type": 0}, "tensor 's' has no type or size that there is"),
        ({"dims": [-1]}, "tensor 's' has no type or size that there is"),
        ({"dims": [2]}, "tensor 's' is damaged"),
        ({"dims": [0], "raw_data": b""}, "tensor 's' is damaged"),
        ({"data_type": TensorProto.STRING, "string_data": [b"a"]}, "tensor 's' is damaged"),
        ({"data_location": TensorProto.EXTERNAL}, "keeps 's' in another file, which is not read"),
    ],
    ids=str,
)
def test_a_scale_that_is_none_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    fields = {"name": "s", "data_type": 1, "dims": [], "raw_data": b"\0\0\0\x3f", **change}
    nodes = [helper.make_node("QuantizeLinear", ["x", "s"], ["q"])]
    path = write_model(tmp_path / "m.onnx", nodes, [TensorProto(**fields)], ["q"])

    with pytest.raises(ModelError, match=f"m.onnx: .*{reason}"):
        read_graph(path)


def test_values_that_are_moved_in_many_ways_are_followed_once(tmp_path: Path) -> None:
    """Each node reads its input twice: 2^60 ways through the graph."""
    nodes = [helper.make_node("QuantizeLinear", ["x", "s"], ["q"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "s"], ["v0"])]
    nodes += [helper.make_node("Expand", [f"v{i}", f"v{i}"], [f"v{i + 1}"]) for i in range(60)]
    path = write_model(tmp_path / "m.onnx", nodes, [SCALE], ["v60"])

    (pair,) = read_graph(path).pairs

    assert pair.complete


def test_dynamic_quantization_is_no_pair(tmp_path: Path) -> None:
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"])]
    nodes += [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]

    (pair,) = read_graph(write_model(tmp_path / "m.onnx", nodes, [], ["y"])).pairs

    assert not pair.complete


def test_a_pipe_in_the_place_of_a_model_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.onnx")

    with pytest.raises(ModelError, match=r"m\.onnx: cannot be read: .*it is no regular file"):
        read_graph(tmp_path / "m.onnx")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Protobuf gives a text that is not UTF-8 as bytes."""
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"], name="/name/Relu")], "g", [], []
        )
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"/name/", b"/n\xffme/"))

    with pytest.raises(ModelError, match="a name in it is not UTF-8: export the tower again"):
        read_graph(path)
