"""The nodes and tensors of an ONNX graph: who makes a value, who reads it, and what a node is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pytest_quantgate.formats.table import find_format, name_onnx_element

#: Operators that move values without computing: what they give is as quantized as what they get.
MOVES = frozenset(
    (
        *("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten"),
        *("Slice", "Expand", "Split"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph with its lookups: the node that makes a value, the nodes that read it, and what is
    stored, in an initializer or a Constant. Each value is made before it is read."""

    nodes: tuple[Any, ...]
    makers: Mapping[str, Any]
    readers: Mapping[str, tuple[Any, ...]]
    tensors: Mapping[str, Any]

    @classmethod
    def index(cls, graph: Any, **more: Any) -> Self:
        """Return the outermost graph of a model; `more` are further fields, or others."""
        makers: dict[str, Any] = {}
        readers: dict[str, list[Any]] = {}
        tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            makers |= dict.fromkeys(filter(None, node.output), node)
            for name in node.input:
                readers.setdefault(name, []).append(node)
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    tensors[node.output[0]] = attribute.t
        found = {
            "nodes": tuple(graph.node),
            "makers": makers,
            "readers": {name: tuple(nodes) for name, nodes in readers.items()},
            "tensors": tensors,
        }
        return cls(**(found | more))

    def origin(self, name: str) -> tuple[str, Any]:
        """Return the value that `name` was moved from, and the node that made it, None if none."""
        node = self.makers.get(name)
        for _ in range(len(self.nodes)):
            if node is None or node.op_type not in MOVES or not node.input:
                break
            name = node.input[0]
            node = self.makers.get(name)
        return name, None if node is None or node.op_type == "Constant" else node

    def follow(self, name: str) -> Iterator[str]:
        """Yield a value and every one that it is moved to, each once."""
        seen, waiting = {name}, [name]
        while waiting:
            value = waiting.pop()
            yield value
            for node in self.readers.get(value, ()):
                moved = set(node.output) - seen if self.moves(node) else set()
                seen |= moved
                waiting += sorted(moved)

    def moves(self, node: Any) -> bool:
        """Return whether a node gives what it gets."""
        return node.op_type in MOVES


def is_quantize(node: Any) -> bool:
    """Return whether a node is QuantizeLinear, of ONNX's or TensorRT's domain."""
    name = str(node.op_type)
    return name.endswith("QuantizeLinear") and name != "DynamicQuantizeLinear"


def is_dequantize(node: Any) -> bool:
    """Return whether a node is DequantizeLinear, of ONNX's or TensorRT's domain."""
    return str(node.op_type).endswith("DequantizeLinear")


def label_of(node: Any) -> str:
    """Return a node's name, or what it makes where the exporter gave it none."""
    return str(node.name or node.output[0])


def zero_of(node: Any) -> str:
    """Return the name of a Q/DQ node's zero point, empty where it has none."""
    return str(node.input[2]) if len(node.input) > 2 else ""


def attribute_of(node: Any, name: str) -> int | None:
    """Return an attribute that is a whole number, None where it is not set."""
    return next((int(a.i) for a in node.attribute if a.name == name), None)


def module_of_node(name: str) -> str:
    """Return the module that a node comes from (`/text_model/encoder/layers.0/Add` as a path)."""
    return name.strip("/").rpartition("/")[0].replace("/", ".")


def name_data_type(data_type: int) -> str:
    """Return ONNX's name of a type by its number, empty for a number of none."""
    import onnx

    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    return str(names.get(data_type, ""))


def count_bytes(tensor: Any) -> int:
    """Return the bytes that the values of a tensor take."""
    import onnx

    name = name_data_type(tensor.data_type)
    kind = find_format(name_onnx_element(name) or name)
    if kind is not None:
        bits = kind.bits
    else:
        bits = 8 * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return (int(math.prod(tensor.dims)) * bits + 7) // 8
