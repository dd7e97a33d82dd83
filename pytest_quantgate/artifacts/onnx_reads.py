"""How each operand of an ONNX node comes to it: stored or computed, quantized by which scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.onnx_file import OnnxGraph, layer_of
from pytest_quantgate.artifacts.onnx_packed import read_sizes
from pytest_quantgate.artifacts.rounding import round_to
from pytest_quantgate.formats.table import find_format, find_onnx_format, name_onnx_element
from pytest_quantgate.runtimes.onnx_nodes import (
    MOVES,
    is_dequantize,
    is_quantize,
    name_data_type,
    zero_of,
)

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_file import Array

PRODUCTS = frozenset(
    (
        *("MatMul", "Gemm", "QLinearMatMul", "QGemm", "MatMulInteger", "FusedMatMul"),
        *("MatMulNBits", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "FusedGemm"),
    )
)
CONVOLUTIONS = frozenset(("Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "FusedConv"))

#: Operators that hold their scales themselves: places of (value, scale, zero point), two operands.
QUANTIZED = {
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "QLinearConv": ((0, 1, 2), (3, 4, 5)),
    "QGemm": ((0, 1, 2), (3, 4, 5)),
    "MatMulIntegerToFloat": ((0, 2, 4), (1, 3, 5)),
}
INTEGER = {"MatMulInteger": (2, 3), "ConvInteger": (2, 3)}

#: Nobody quantizes a value more often.
_MOST_PAIRS = 4


@dataclass(frozen=True, kw_only=True)
class Read:
    """How an operand comes to its node: where it is from, and what it is quantized by.

    `scale` and `zero` name tensors; `whole` says whether both halves of its pair are there.
    `block` is how many values along `axis` share a scale, 0 for all of them, below 0 for a layout
    that is an operator's own.
    `inner` is how the value was quantized before it came to this pair, None where it was not.
    """

    source: str
    format: str = ""
    scale: str = ""
    zero: str = ""
    axis: int = 0
    block: int = 0
    dynamic: bool = False
    whole: bool = True
    inner: Read | None = None


def read_operands(graph: OnnxGraph, node: Any) -> tuple[Read, Read]:
    """Return how the two operands of a layer or product come to it."""

    def name(place: int) -> str:
        return str(node.input[place]) if place < len(node.input) else ""

    if node.op_type in QUANTIZED:
        one, two = (
            Read(
                source=graph.origin(name(value))[0],
                format=_type_behind(graph, name(value), zero=name(zero)),
                scale=name(scale),
                zero=name(zero),
                axis=0 if node.op_type == "QLinearConv" else 1,
            )
            for value, scale, zero in QUANTIZED[node.op_type]
        )
        return one, two
    if node.op_type in INTEGER:
        zeros = INTEGER[node.op_type]
        scale = _find_scale_behind(graph, node)
        one, two = (_read_integer(graph, name(p), zero=name(zeros[p]), scale=scale) for p in (0, 1))
        return one, two
    if node.op_type == "DynamicQuantizeMatMul":
        weight = Read(
            source=name(1), format=graph.type_of(name(1)), scale=name(2), zero=name(3), axis=1
        )
        return _read_dynamic(graph, name(0), format="INT8"), weight
    if node.op_type == "MatMulNBits":
        return _read_value(graph, name(0)), _read_packed(graph, node, *map(name, (1, 2, 3)))
    return _read_value(graph, name(0)), _read_value(graph, name(1))


def _read_packed(graph: OnnxGraph, node: Any, source: str, scale: str, zero: str) -> Read:
    """Return the weight of MatMulNBits: in blocks of its inputs where the graph has it unpacked."""
    sizes = read_sizes(node)
    bits, shape = sizes["bits"], [sizes["N"], sizes["K"]]
    is_unpacked = source in graph.tensors and list(graph.tensors[source].dims) == shape
    return Read(
        source=source,
        format=f"INT{bits}",
        scale=scale,
        zero=zero,
        axis=1,
        block=sizes["block_size"] if is_unpacked else -1,
    )


def _find_scale_behind(graph: OnnxGraph, node: Any) -> str:
    """Return the weight's scale of an integer operator: it is multiplied on behind it."""
    for value in graph.follow(node.output[0]):
        for reader in graph.readers.get(value, ()):
            others = [name for name in reader.input if name != value]
            maker = graph.makers.get(others[0]) if reader.op_type == "Mul" and others else None
            if maker is not None and maker.op_type == "Mul":
                found = [name for name in maker.input if name in graph.tensors]
                return found[0] if len(found) == 1 else ""
    return ""


def _read_integer(graph: OnnxGraph, value: str, *, zero: str, scale: str) -> Read:
    """Return an operand of MatMulInteger: computed by DynamicQuantizeLinear, or stored."""
    source, maker = graph.origin(value)
    if maker is not None and maker.op_type == "DynamicQuantizeLinear":
        return _read_dynamic(graph, str(maker.input[0]), format="UINT8")
    kind = graph.type_of(source) or "INT8"
    return Read(source=source, format=kind, scale=scale, zero=zero, axis=1, dynamic=True)


def _read_dynamic(graph: OnnxGraph, value: str, *, format: str) -> Read:
    """Return a value that each run scales anew, perhaps one that a pair has rounded before."""
    before = _read_value(graph, value)
    inner = before if before.format else None
    return Read(source=before.source, format=format, dynamic=True, inner=inner)


def _read_value(graph: OnnxGraph, value: str, *, pairs: int = _MOST_PAIRS) -> Read:
    """Return an operand of an ordinary node, quantized where a DequantizeLinear makes it.

    So many `pairs` behind each other are looked through.
    """
    source, maker = graph.origin(value)
    if maker is None:
        return Read(source=source)
    if maker.op_type == "Mul":
        return _read_scaled(graph, maker) or Read(source=value)
    if not is_dequantize(maker) or len(maker.input) < 2:
        return Read(source=source)
    zero = str(maker.input[2]) if len(maker.input) > 2 else ""
    inner, quantize = graph.origin(maker.input[0])
    attributes = {a.name: int(a.i) for a in maker.attribute if a.name in ("axis", "block_size")}
    read = Read(
        source=inner,
        format=_type_behind(graph, str(maker.input[0]), zero=zero),
        scale=str(maker.input[1]),
        zero=zero,
        axis=attributes.get("axis", 1),
        block=attributes.get("block_size", 0),
    )
    if quantize is not None and is_quantize(quantize):
        before = Read(source=graph.origin(quantize.input[0])[0])
        if pairs > 1:
            before = _read_value(graph, str(quantize.input[0]), pairs=pairs - 1)
        if not read.format:
            read = replace(
                read, format=_type_behind(graph, quantize.output[0], zero=zero_of(quantize))
            )
        return replace(read, source=before.source, inner=before if before.format else None)
    return replace(read, format=_name_blocks(graph, read), whole=inner in graph.tensors)


def _name_blocks(graph: OnnxGraph, read: Read) -> str:
    """Return the format of a stored value, which the scales of its blocks tell (NVFP4)."""
    maker = graph.makers.get(read.scale)
    if not read.block or maker is None or not is_dequantize(maker):
        return read.format
    kinds = (graph.tensors.get(read.source), graph.tensors.get(maker.input[0]))
    codes, scales = ("" if t is None else name_data_type(t.data_type) for t in kinds)
    found = find_onnx_format(codes, block_size=read.block, scale_type=scales)
    return found.name if found is not None else read.format


def _read_scaled(graph: OnnxGraph, node: Any) -> Read | None:
    """Return a weight that Cast and Mul dequantize, as some tools write it, None if it is none."""
    for one, two in ((0, 1), (1, 0)):
        source, maker = graph.origin(node.input[one])
        is_coded = maker is None and graph.type_of(source) in ("INT8", "UINT8", "E4M3")
        if is_coded and node.input[two] in graph.tensors:
            scale = node.input[two]
            return Read(
                source=source,
                format=graph.type_of(source),
                scale=scale,
                axis=_axis_of(graph.values(scale)),
            )
    return None


def _axis_of(scale: Array | None) -> int:
    """Return the axis that a scale of several values has, counted from the end as broadcast."""
    sizes = () if scale is None else scale.shape
    return next((place - len(sizes) for place, size in enumerate(sizes) if size > 1), 0)


def _type_behind(graph: OnnxGraph, value: str, *, zero: str) -> str:
    """Return the type of a quantized value: of its zero point or its codes, or ONNX's rule."""
    found = graph.type_of(zero) or graph.type_of(graph.origin(value)[0])
    if find_format(found) is not None:
        return found
    maker = graph.makers.get(value)
    if maker is not None and is_quantize(maker):
        if "FP8" in maker.op_type:
            return "E4M3"
        kind = graph.type_of(zero_of(maker)) if zero_of(maker) else ""
        said = next((int(a.i) for a in maker.attribute if a.name == "output_dtype"), 0)
        return kind or name_onnx_element(name_data_type(said)) or "UINT8"
    return "INT8" if maker is not None else ""


# -- weights ---------------------------------------------------------------------------------------


def read_weights(graph: OnnxGraph) -> Iterator[tuple[str, str, str, int, Callable[[], Array]]]:
    """Yield layer, format, stored type, values under one scale (`count_sharing`) and a reader of
    every weight, as [out, in]."""
    for node in graph.nodes:
        if node.op_type not in PRODUCTS | CONVOLUTIONS or len(node.input) < 2:
            continue
        for read in read_operands(graph, node):
            if can_dequantize(graph, read):
                stored = graph.type_of(read.source)
                block = count_sharing(graph, node, read) if read.format else 0
                yield layer_of(node), read.format, stored, block, _make_reader(graph, node, read)


def can_dequantize(graph: OnnxGraph, read: Read) -> bool:
    """Return whether an operand is stored, and each pair that it passes can be computed."""
    if read.source not in graph.tensors or (read.format and not can_scale(graph, read)):
        return False
    return read.inner is None or can_dequantize(graph, read.inner)


def can_scale(graph: OnnxGraph, read: Read) -> bool:
    """Return whether a stored value can be dequantized: its scales are there, and fit its shape.

    They are one, one a row, or one a block of `read.block` values along the axis.
    """
    scale = read_scales(graph, read)
    if scale is None or find_format(read.format) is None or read.block < 0:
        return False
    sizes = list(graph.tensors[read.source].dims)
    if not -len(sizes) <= read.axis < len(sizes):
        return scale.size == 1 and not read.block
    fits = scale.size in (1, sizes[read.axis])
    if read.block:
        sizes[read.axis] = -(-sizes[read.axis] // read.block)
        fits = list(scale.shape) == sizes
    return fits and (read.zero not in graph.tensors or graph.count(read.zero) in (1, scale.size))


def read_scales(graph: OnnxGraph, read: Read) -> Array | None:
    """Return the scales of an operand as float32: stored, or stored codes under one scale more."""
    scale = graph.values(read.scale)
    maker = graph.makers.get(read.scale)
    if scale is not None or maker is None or not is_dequantize(maker):
        return scale
    codes, whole = (graph.values(str(name)) for name in maker.input[:2])
    return codes * whole if codes is not None and whole is not None and whole.size == 1 else None


def _make_reader(graph: OnnxGraph, node: Any, read: Read) -> Callable[[], Array]:
    def read_it() -> Array:
        values = dequantize(graph, node, read)
        assert values is not None  # read_weights looked whether it can be
        return values

    return read_it


def dequantize(graph: OnnxGraph, node: Any, read: Read) -> Array | None:
    """Return a stored operand as the node computes with it, as [out, in] or a kernel.

    None for one that is not stored, or whose scales cannot be laid over it.
    """
    if not can_dequantize(graph, read):
        return None
    return turn(graph, _compute(graph, read), node=node, source=read.source)


def _compute(graph: OnnxGraph, read: Read) -> Array:
    """Return a stored operand behind all pairs that it passes; `can_dequantize` looked."""
    import numpy

    values = graph.values(read.source) if read.inner is None else _compute(graph, read.inner)
    assert values is not None
    if not read.format:
        return values
    scale, offset = arrange_scales(graph, read, shape=values.shape)
    is_coded = read.inner is None and not graph.is_float(read.source)
    with numpy.errstate(all="ignore"):
        if not is_coded:
            return round_to(values / scale, format=read.format) * scale
        return (values - offset) * scale


def arrange_scales(graph: OnnxGraph, read: Read, *, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return scale and zero point of an operand, of shapes that its values broadcast with."""
    import numpy

    found = []
    zero = graph.values(read.zero) if read.zero else None
    for values in (read_scales(graph, read), zero):
        if values is None:
            found.append(numpy.zeros(1, "f4"))
        elif read.block and values.size > 1:
            size = min(read.block, shape[read.axis])
            blocks = numpy.repeat(values, size, axis=read.axis)
            found.append(blocks.take(range(shape[read.axis]), axis=read.axis))
        else:
            sizes = [1] * len(shape)
            if values.size > 1:
                sizes[read.axis] = -1
            found.append(values.reshape(sizes))
    return found[0], found[1]


def turn(graph: OnnxGraph, values: Array, *, node: Any, source: str) -> Array:
    """Return a weight as [out, in]: a product reads it as [in, out], perhaps through Transpose."""
    if node.op_type not in PRODUCTS or values.ndim != 2:
        return values
    return values.T if _is_turned(graph, node, source=source) else values


def _is_turned(graph: OnnxGraph, node: Any, *, source: str) -> bool:
    """Return whether a product's weight is stored as [in, out]."""
    is_product = node.op_type != "MatMulNBits" and not any(
        a.name == "transB" and a.i for a in node.attribute
    )
    return is_product != _is_transposed(graph, node, source=source)


def count_sharing(graph: OnnxGraph, node: Any, read: Read) -> int:
    """Return how many values of a weight's row, as [out, in], share a scale; 0 where rows do."""
    scale, sizes = read_scales(graph, read), list(graph.tensors[read.source].dims)
    if scale is None or scale.size == 1 or len(sizes) < 2:
        return 0
    turned = node.op_type in PRODUCTS and _is_turned(graph, node, source=read.source)
    inputs = 0 if turned and len(sizes) == 2 else 1
    is_along = read.axis % len(sizes) == inputs
    if read.block:
        return read.block if is_along and len(sizes) == 2 and not sizes[inputs] % read.block else 0
    return 0 if is_along else math.prod(sizes) // sizes[read.axis]


def _is_transposed(graph: OnnxGraph, node: Any, *, source: str) -> bool:
    """Return whether an odd number of Transpose stands between a stored tensor and its node."""
    waiting, seen = [(str(name), False) for name in node.input], set[str]()
    while waiting:
        name, turned = waiting.pop()
        if name == source:
            return turned
        maker = graph.makers.get(name)
        if maker is None or name in seen:
            continue
        seen.add(name)
        if maker.op_type in MOVES or maker.op_type.endswith("QuantizeLinear"):
            waiting.append((str(maker.input[0]), turned != (maker.op_type == "Transpose")))
        elif is_dequantize(maker) or maker.op_type == "Mul":
            waiting += [(str(value), turned) for value in maker.input]
    return False
