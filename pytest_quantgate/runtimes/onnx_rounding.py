"""A float16 or bfloat16 graph as a float32 one that rounds each result, for a CPU to run.

On a CPU without kernels of its own for the type, ONNX Runtime 1.24 computes float16 graphs in
float32 and drops the casts in between: `Mul` by 1000 and by 0.001 gives 100.04 where a float16 GPU
gives Inf. It has no bfloat16 kernels at all. Here the rounding of every result stands in the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_quantgate.runtimes.onnx_model import parse_model
from pytest_quantgate.runtimes.onnx_narrow import describe_without_weights
from pytest_quantgate.runtimes.onnx_nodes import MOVES, module_of_node

#: What the graph that looks for overflow gives besides the embeddings: the largest magnitude of
#: each result before it is rounded, under this and the module's name, in the graph's order.
LARGEST = "largest:"


def widen_graph(source: Path, *, path: Path) -> None:
    """Write the graph of `source` to `path`, in float32 with nothing rounded; values stay."""
    _rewrite(source, path=path, rounds=False, look=False)


def round_results(source: Path, *, path: Path, look: bool = False) -> None:
    """Write the graph of `source` to `path`, in float32 with each narrow result rounded.

    With `look` it has an output more for each of them: see `LARGEST`.
    """
    _rewrite(source, path=path, rounds=True, look=look)


def _rewrite(source: Path, *, path: Path, rounds: bool, look: bool) -> None:
    import onnx

    model = parse_model(source.read_bytes(), path=source)
    narrow = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    inferred = onnx.shape_inference.infer_shapes(describe_without_weights(model)).graph
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
    }
    graph = model.graph
    for tensor in graph.initializer:
        if tensor.data_type in narrow:
            tensor.CopyFrom(_widen(tensor))
    nodes: list[Any] = []
    found: list[str] = []

    def round_to(kind: int, wide: str, result: str) -> None:
        name = f"{result}.rounded"
        nodes.append(onnx.helper.make_node("Cast", [wide], [name], to=kind))
        nodes.append(onnx.helper.make_node("Cast", [name], [result], to=onnx.TensorProto.FLOAT))

    for value in graph.input:
        kind = value.type.tensor_type.elem_type
        if kind in narrow and not rounds:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        elif kind in narrow:
            given = value.name
            for node in graph.node:
                for place, name in enumerate(node.input):
                    if name == given:
                        node.input[place] = f"{given}.narrow"
            round_to(kind, given, f"{given}.narrow")
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in graph.node:
        target = next(
            (a for a in node.attribute if node.op_type == "Cast" and a.name == "to"), None
        )
        if target is not None and target.i in narrow:
            target.i = onnx.TensorProto.FLOAT
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in narrow:
                attribute.t.CopyFrom(_widen(attribute.t))
        nodes.append(node)
        exact = node.op_type == "Constant" or (node.op_type in MOVES and target is None)
        for place, name in enumerate(node.output):
            kind = kinds.get(name)
            if kind not in narrow or exact or not rounds:
                continue
            wide = f"{name}.wide"
            node.output[place] = wide
            round_to(kind, wide, name)
            if look:
                found.append(f"{LARGEST}{len(found)}:{module_of_node(node.name)}")
                nodes.append(onnx.helper.make_node("Abs", [wide], [f"{name}.size"]))
                nodes.append(
                    onnx.helper.make_node("ReduceMax", [f"{name}.size"], [found[-1]], keepdims=0)
                )
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for value in graph.output:
        if value.type.tensor_type.elem_type in narrow:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in found
    )
    path.write_bytes(model.SerializeToString())


def _widen(tensor: Any) -> Any:
    import numpy as np
    import onnx

    values = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    return onnx.numpy_helper.from_array(values, name=tensor.name)
