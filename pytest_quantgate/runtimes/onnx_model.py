"""Reads an ONNX file within bounds, and says what is unsound in it before anything follows it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.runtimes.onnx_narrow import describe_without_weights
from pytest_quantgate.runtimes.onnx_nodes import MOVES, is_dequantize, is_quantize, label_of
from pytest_quantgate.untrusted import read_regular

#: Where integer operators take codes, and the numbers of ONNX's types that are none: float32,
#: float16, float64, bfloat16.
_CODED = {
    **dict.fromkeys(("QLinearMatMul", "QLinearConv", "QLinearAdd", "QLinearMul"), (0, 3)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), (0, 1)),
}
_WIDE = (1, 10, 11, 16)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """An ONNX file as onnx reads it, with its size and its SHA-256 (hex)."""

    path: Path
    model: Any
    file_bytes: int
    digest: str


def read_model(path: Path) -> ModelFile:
    """Return the model of a file; raises ModelError for a file that is none, or cannot be read,
    MissingPackage without onnx."""
    try:
        content = read_regular(path, max_bytes=bounds.ONNX_BYTES)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    return ModelFile(
        path=path,
        model=parse_model(content, path=path),
        file_bytes=len(content),
        digest=hashlib.sha256(content).hexdigest(),
    )


def parse_model(content: bytes, *, path: Path) -> Any:
    """Return the ONNX model of a file's bytes.

    Raises ModelError, naming the file, where it is none; MissingPackage without onnx.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingPackage("onnx", extra="clip", purpose="reading an ONNX graph") from error
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which comes without type information
        if type(error).__name__ != "DecodeError":
            raise
        raise ModelError(
            f"{path}: is no ONNX model ({len(content)} bytes; {error}): export the tower again"
        ) from error
    refuse_unsound(model, path=path)
    return model


def refuse_unsound(model: Any, *, path: Path) -> None:
    """Raise ModelError for a model of too many parts, or of names that are no text."""
    graph = model.graph
    parts = (graph.node, graph.initializer, graph.input, graph.output, model.metadata_props)
    if max(map(len, parts)) > bounds.ONNX_PARTS:
        raise ModelError(
            f"{path}: a graph of {max(map(len, parts))} nodes or values, at most "
            f"{bounds.ONNX_PARTS} are read"
        )
    # What is not UTF-8 in a text of the file is given as bytes.
    if any(isinstance(text, bytes) for text in _list_texts(model)):
        raise ModelError(f"{path}: a name in it is not UTF-8: export the tower again")


def _list_texts(model: Any) -> Iterator[Any]:
    """Yield every name that the readers of a graph compare or take apart."""
    for node in model.graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        yield from (attribute.name for attribute in node.attribute)
    for named in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        yield named.name
    for entry in model.metadata_props:
        yield from (entry.key, entry.value)
    yield from (entry.domain for entry in model.opset_import)


def find_disorder(model: Any, *, in_order: bool = True) -> str:
    """Return why a graph's values cannot be followed, empty where they can.

    ONNX demands of every graph that each value is made once and before it is read; in one without,
    whoever follows values back may walk in a circle. Not `in_order`: who asks sorts the nodes.
    """
    import onnx

    imports = {entry.domain: entry.version for entry in model.opset_import}
    opset = imports.get("", imports.get("ai.onnx", 0))
    known = set(onnx.helper.get_all_tensor_dtypes()) - {onnx.TensorProto.UNDEFINED}
    tensors = list(model.graph.initializer)
    late = {name for node in model.graph.node for name in node.output if name}
    made: set[str] = set()
    for node in model.graph.node:
        if not node.output:
            return f"node {node.name[:80]!r} makes nothing"
        label = repr(label_of(node)[:80])
        least = 2 if is_quantize(node) or is_dequantize(node) else int(node.op_type in MOVES)
        if node.domain in ("", "ai.onnx"):
            least = max(least, _count_needed(node.op_type, opset=opset))
        if len(node.input) < least:
            number = len(node.input)
            return f"node {label} has {number} inputs, too few for {node.op_type[:80]}"
        for name in node.input:
            if in_order and name in late:
                return f"node {label} reads {name[:80]!r} before it is made"
        for name in filter(None, node.output):
            if name in made:
                return f"value {name[:80]!r} is made twice"
        made.update(node.output)
        late.difference_update(node.output)
        tensors += [a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"]
    for tensor in tensors:
        if tensor.data_type not in known or any(size < 0 for size in tensor.dims):
            return f"tensor {tensor.name[:80]!r} has no type or size that there is"
    return ""


@cache
def _count_needed(operator: str, *, opset: int) -> int:
    """Return how many inputs an operator of ONNX has at least, 0 for what is none."""
    from onnx import defs

    version = opset or defs.onnx_opset_version()
    known = defs.has(operator, version, "")
    return int(defs.get_schema(operator, version, "").min_input) if known else 0


def find_problems(model: Any, *, nodes: Sequence[Any] = ()) -> tuple[str, ...]:
    """Return what ONNX's checker, with type inference, has against a graph, or its sorted `nodes`.

    Nothing of an opset that the installed onnx does not know yet.
    """
    import onnx

    opset = max((e.version for e in model.opset_import if e.domain in ("", "ai.onnx")), default=0)
    if opset > onnx.defs.onnx_opset_version():
        return ()
    try:
        # Without the weights: the checker would copy them.
        small = describe_without_weights(model, nodes=nodes)
        for value in [v for v in small.graph.output if not v.type.tensor_type.HasField("shape")]:
            small.graph.output.remove(value)  # optimizers leave it out, and every runtime takes it
        onnx.checker.check_model(small, full_check=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        ValueError,  # of a type that there is not
        RuntimeError,
    ) as error:
        return (" ".join(str(error).split())[:300],)
    return tuple(_list_wide_codes(small))


def _list_wide_codes(model: Any) -> Iterator[str]:
    """Yield operands of integer operators that are known to be no integers, which ONNX's checker
    does not look at."""
    import onnx

    if not any(node.op_type in _CODED for node in model.graph.node):
        return
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    for node in graph.node:
        for place in _CODED.get(node.op_type, ()):
            name = node.input[place] if place < len(node.input) else ""
            if types.get(name) in _WIDE:
                yield f"{node.op_type} {node.name!r} takes codes, and {name!r} is in full precision"
