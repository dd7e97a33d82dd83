"""Puts a finished float32 graph into float16 or bfloat16, and drops what no node needs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.formats.table import BFLOAT16, FLOAT16
from pytest_quantgate.runtimes.onnx_nodes import is_dequantize, is_quantize

#: The formats that a float32 graph can be narrowed to, and the largest value of each.
_NARROW: Mapping[str, float] = {kind.name: kind.largest for kind in (FLOAT16, BFLOAT16)}

#: Stored tensors of more values are not copied where types and shapes are all that is asked for.
_FEW_VALUES = 64


def narrow_graph(
    nodes: Sequence[Any],
    initializers: dict[str, Any],
    *,
    precision: str,
    inputs: Iterable[Any],
    output: str,
    wide: Collection[str],
) -> list[Any]:
    """Return nodes with every float narrower, but the pairs and those of the names `wide`.

    Those keep float32 between two casts; `inputs` are the graph's, its `output` is float32 again.
    A scale rounded to half is off by up to 0.05 %, a small one becomes 0, and dividing by it in
    half moves twice as many INT8 values to a neighbour as PyTorch's half model does. TensorRT
    for RTX 1.7 fuses the casts: FP8 gives the same kernels in both forms, INT8 too, but its
    GEMMs then hand on float instead of half. All pairs must have it: a matmul whose two scales
    differ in type is refused.
    """
    import onnx

    own = {id(n): n for n in nodes if is_quantize(n) or is_dequantize(n) or n.name in wide}
    inside = {name for node in own.values() for name in node.output}
    left = {name for node in nodes if id(node) not in own for name in node.input}
    found: list[Any] = []
    renamed: dict[str, str] = {}
    for node in nodes:
        if id(node) not in own:
            _convert_attributes(node, precision)
            found.append(node)
            continue
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
            if name and name not in inside and name not in initializers:
                node.input[index] = f"float32_{len(found)}"
                wide_kind = onnx.TensorProto.FLOAT
                found.append(_make_cast(name, node.input[index], number=len(found), to=wide_kind))
        found.append(node)
        result = node.output[0]
        if result in left:
            node.output[0] = renamed[result] = f"float32_{len(found)}"
            found.append(_make_cast(node.output[0], result, number=len(found), to=_kind(precision)))
    kept = {name for node in own.values() for name in node.input}
    for name, tensor in initializers.items():
        if name not in kept:
            initializers[name] = _round(tensor, precision, name=name)
    _convert_interface(found, precision, inputs=inputs, output=output)
    return found


def _kind(precision: str) -> int:
    import onnx

    return int(getattr(onnx.TensorProto, precision.upper()))


def _convert_attributes(node: Any, precision: str) -> None:
    """Narrow the floats that a node holds itself: constants, and what a Cast casts to."""
    import numpy as np
    import onnx

    largest = _NARROW[precision]
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            if attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = _kind(precision)
        elif (
            attribute.type == onnx.AttributeProto.TENSOR
            and attribute.t.data_type == onnx.TensorProto.FLOAT
        ):
            values = onnx.numpy_helper.to_array(attribute.t)
            # A mask holds the lowest float; the lowest of a narrower format says the same.
            clipped = np.clip(values, np.float32(-largest), np.float32(largest))
            finite = onnx.numpy_helper.from_array(np.where(np.isfinite(values), clipped, values))
            attribute.t.CopyFrom(_round(finite, precision, name=node.name))


def _round(tensor: Any, precision: str, *, name: str) -> Any:
    import numpy as np
    import onnx

    if tensor.data_type != onnx.TensorProto.FLOAT:
        return tensor
    values = onnx.numpy_helper.to_array(tensor)
    with np.errstate(over="ignore", under="ignore"):
        narrow = values.astype(onnx.helper.tensor_dtype_to_np_dtype(_kind(precision)))
    if bool((np.isinf(narrow.astype(np.float32)) & np.isfinite(values)).any()):
        raise ModelError(f"{name}: holds values that no {precision} can hold: export it in float32")
    return onnx.numpy_helper.from_array(narrow, name=name)


def _make_cast(source: str, result: str, *, number: int, to: int) -> Any:
    import onnx

    return onnx.helper.make_node("Cast", [source], [result], name=f"Cast_{number}", to=to)


def _convert_interface(
    nodes: list[Any], precision: str, *, inputs: Iterable[Any], output: str
) -> None:
    """Take narrow inputs, and give the result as float32."""
    import onnx

    for value in inputs:
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = _kind(precision)
    inner = f"{output}_narrow"
    for node in nodes:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == output:
                    names[index] = inner
    nodes.append(
        onnx.helper.make_node(
            "Cast", [inner], [output], name="/to_float32/Cast", to=onnx.TensorProto.FLOAT
        )
    )


def drop_idle_nodes(model: Any) -> None:
    """Drop casts to the type a value has already, Identity, and what nothing reads."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(describe_without_weights(model))
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.input)
    }
    outputs = {value.name for value in model.graph.output}
    renamed: dict[str, str] = {}
    kept = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
        target = next((a.i for a in node.attribute if a.name == "to"), None)
        idle = node.op_type == "Identity" or (
            node.op_type == "Cast" and kinds.get(node.input[0]) == target
        )
        if idle and node.output[0] not in outputs:
            renamed[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    needed = set(outputs)
    alive = []
    for node in reversed(kept):
        if needed.intersection(node.output):
            needed.update(node.input)
            alive.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(alive))
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in needed:
            del model.graph.initializer[index]


def describe_without_weights(model: Any, *, nodes: Sequence[Any] = ()) -> Any:
    """Return the model with a typed input in place of every initializer of more than a few values,
    or that lies in another file; `nodes` are its own in another order.

    For what needs only types and shapes, and would copy or write the weights.
    """
    import onnx

    large = [
        tensor
        for tensor in model.graph.initializer
        if math.prod(tensor.dims) > _FEW_VALUES or tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    names = {tensor.name for tensor in large}
    graph = onnx.helper.make_graph(
        list(nodes or model.graph.node),
        model.graph.name,
        [
            *(value for value in model.graph.input if value.name not in names),
            *(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large),
        ],
        list(model.graph.output),
        [tensor for tensor in model.graph.initializer if tensor.name not in names],
    )
    return onnx.helper.make_model(
        graph,
        opset_imports=list(model.opset_import),
        functions=list(model.functions),
        ir_version=model.ir_version,
    )
