"""Reads of an ONNX file what the report of its engine needs: its digest, layers and attentions."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.formats.table import TABLE
from pytest_quantgate.runtimes.engine_layers import (
    EngineError,
    OnnxAttention,
    OnnxGraph,
    read_block,
)
from pytest_quantgate.runtimes.onnx_nodes import (
    Graph,
    is_dequantize,
    is_quantize,
    name_data_type,
    zero_of,
)
from pytest_quantgate.untrusted import hash_file

# Operators that leave values as they are, and those that change them between a Q/DQ pair or the
# Softmax and a MatMul.
_LAYOUT = frozenset({"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten"})
_ARITHMETIC = frozenset(
    {"Mul", "Div", "Add", "Sub", "Cast", "Where", "Min", "Max", "Clip", "Dropout", "IsNaN"}
)
_WEIGHT_PATH = _LAYOUT | {"Cast"}
_MAX_WALK = 64


def read_onnx(path: Path) -> tuple[bytes, str, OnnxGraph]:
    """Return the bytes of an ONNX file, the SHA-256 of all that belongs to it, and its graph.

    Weights kept in other files (external data) are part of the digest. Raises EngineError where
    the file is damaged or refers to a file outside its own folder; MissingPackage without onnx.
    """
    try:
        import onnx

        decode_error: Any = importlib.import_module("google.protobuf.message").DecodeError
    except ImportError as error:
        raise MissingPackage("onnx", extra="clip", purpose="reading ONNX files") from error
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EngineError(
            f"{path}: cannot be read ({error.strerror or error}): export the model again"
        ) from error
    try:
        model = onnx.load_model_from_string(data)
    except (decode_error, ValueError) as error:
        raise EngineError(
            f"{path}: not an ONNX file, or damaged ({len(data)} bytes): export the model again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise EngineError(f"{path}: holds no graph ({len(data)} bytes): export the model again")
    digest = hashlib.sha256(data)
    for name in sorted(set(_list_external_files(model, path=path))):
        digest.update(f"\0{name}\0".encode() + bytes.fromhex(hash_file(path.parent / name)))
    return data, digest.hexdigest(), describe_graph(model)


def _list_external_files(model: Any, *, path: Path) -> Iterator[str]:
    """Yield the files that tensors refer to; raises EngineError where one is out of bounds."""
    folder = path.parent.resolve()
    for tensor in _list_tensors(model):
        if tensor.data_location != tensor.EXTERNAL:
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        where = f"{path}: the weights of {tensor.name!r} are kept in {location!r}"
        if (
            not location
            or "\\" in location
            or PurePosixPath(location).is_absolute()
            or PureWindowsPath(location).drive
            or ".." in PurePosixPath(location).parts
            or not (folder / location).resolve().is_relative_to(folder)
        ):
            raise EngineError(
                f"{where}, outside the folder of the ONNX file, and are not read: "
                f"keep the files of a model in one folder"
            )
        if not (folder / location).is_file():
            raise EngineError(f"{where}, which is missing: copy it next to the ONNX file")
        yield location


def _list_tensors(model: Any) -> Iterator[Any]:
    graphs = [model.graph]
    nodes = [list(function.node) for function in model.functions]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes.append(list(graph.node))
        for node in nodes.pop():
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("g"):
                    graphs.append(attribute.g)
                graphs.extend(attribute.graphs)


def describe_graph(model: Any) -> OnnxGraph:
    """Return what the report needs to know of an ONNX model (the outermost graph)."""
    walk = _Graph.index(model.graph)
    linear: list[str] = []
    conv: list[str] = []
    qdq: list[str] = []
    attentions: list[OnnxAttention] = []
    for node in model.graph.node:
        if node.op_type in ("MatMul", "Gemm") and any(walk.is_weight(i) for i in node.input[:2]):
            linear.append(name_of(node))
        elif node.op_type in ("Conv", "ConvTranspose"):
            conv.append(name_of(node))
        elif is_quantize(node) or is_dequantize(node):
            qdq.append(name_of(node))
        elif node.op_type == "Softmax":
            attention = walk.find_attention(node, index=len(attentions))
            if attention is not None:
                attentions.append(attention)
    return OnnxGraph(
        linear=tuple(linear), conv=tuple(conv), qdq=tuple(qdq), attentions=tuple(attentions)
    )


def name_of(node: Any) -> str:
    """Return a node's name as the engine's metadata give it."""
    return str(node.name) or f"node_of_{node.output[0] if node.output else ''}"


class _Graph(Graph):
    """Walks from tensor to tensor of one graph; no walk is longer than `_MAX_WALK` nodes."""

    def is_weight(self, name: str) -> bool:
        """Whether a tensor is a constant, as it is or behind Q/DQ and changes of layout."""
        for _ in range(_MAX_WALK):
            if name in self.tensors:
                return True
            node = self.makers.get(name)
            if node is None or not node.input:
                return node is not None and node.op_type == "Constant"
            if node.op_type not in _WEIGHT_PATH and not (is_quantize(node) or is_dequantize(node)):
                return False
            name = node.input[0]
        return False

    def find_attention(self, softmax: Any, *, index: int) -> OnnxAttention | None:
        """Return the attention block around a Softmax, None where there is no MatMul on a side."""
        scores = self._find_scores(softmax)
        found = self._find_values(softmax)
        if scores is None or found is None:
            return None
        values, side = found
        return OnnxAttention(
            index=index,
            block=read_block(name_of(softmax)),
            scores=name_of(scores),
            softmax=name_of(softmax),
            values=name_of(values),
            q=self.describe_operand(scores.input[0]),
            k=self.describe_operand(scores.input[1]),
            v=self.describe_operand(values.input[1 - side]),
            probabilities=self.describe_operand(values.input[side]),
        )

    def _find_scores(self, softmax: Any) -> Any:
        waiting, seen = list(softmax.input[:1]), set[str]()
        while waiting and len(seen) < _MAX_WALK:
            name = waiting.pop(0)
            node = self.makers.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            if node.op_type == "MatMul" and len(node.input) == 2:
                return node
            if node.op_type in _LAYOUT | _ARITHMETIC or is_quantize(node) or is_dequantize(node):
                waiting.extend(node.input)
        return None

    def _find_values(self, softmax: Any) -> tuple[Any, int] | None:
        """Return the MatMul behind a Softmax, and which of its inputs comes from there."""
        waiting, seen = list(softmax.output[:1]), set[str]()
        while waiting and len(seen) < _MAX_WALK:
            name = waiting.pop(0)
            if name in seen:
                continue
            seen.add(name)
            for node in self.readers.get(name, ()):
                if node.op_type == "MatMul" and len(node.input) == 2:
                    return node, list(node.input).index(name)
                if (
                    node.op_type in _LAYOUT | _ARITHMETIC
                    or is_quantize(node)
                    or is_dequantize(node)
                ):
                    waiting.extend(node.output[:1])
        return None

    def describe_operand(self, name: str) -> str:
        """Return whether a tensor comes to its MatMul through a Q/DQ pair: `fp8`, `int8`, `none`.

        A change of layout or a scaling in between does no harm: the library moves it.
        """
        for _ in range(_MAX_WALK):
            node = self.makers.get(name)
            if node is None or not node.input:
                return "none"
            if is_dequantize(node):
                return self._read_format(node)
            if node.op_type not in _LAYOUT | _ARITHMETIC:
                return "none"
            name = node.input[0]
        return "none"

    def _read_format(self, dequantize: Any) -> str:
        """Return `fp8`, `int8`, ... from the type of the zero point or of the stored weight."""
        if str(dequantize.op_type).startswith("TRT_FP8"):
            return "fp8"
        tensors = map(self.tensors.get, (zero_of(dequantize), dequantize.input[0]))
        kind = next((name_data_type(t.data_type) for t in tensors if t is not None), "")
        precisions = (row.precision for row in TABLE if row.onnx_type == kind and row.precision)
        return next(precisions, "fp8" if kind.startswith("FLOAT8") else "int8")
