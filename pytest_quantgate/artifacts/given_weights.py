"""The tensors of a given graph against those of the model: weights code by code, others by value.

Codes are compared and never dequantized values: each value of a rounded weight may be half a step
off, so that a layer of another model would look like rounding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.onnx_file import OnnxGraph
from pytest_quantgate.artifacts.onnx_places import (
    Prefix,
    Product,
    TowerModel,
    find_prefix,
    list_products,
)
from pytest_quantgate.artifacts.onnx_reads import (
    arrange_scales,
    can_scale,
    read_operands,
    turn,
)
from pytest_quantgate.artifacts.operands import largest_of
from pytest_quantgate.artifacts.rounding import round_to
from pytest_quantgate.formats.table import find_format
from pytest_quantgate.runtimes.onnx_nodes import (
    MOVES,
    is_dequantize,
    is_quantize,
    module_of_node,
)

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_file import Array

#: Codes that may be on the other side of a tie, by one step: of a scale that was rounded to half,
#: or a base that was never rounded to `dtype` (0.3 to 0.5 % were seen).
_TIES = 0.01

#: Two steps of the smallest halves: ONNX Runtime's converter makes 1e-7 of what is nearer to 0.
_TINY_HALF = 2.0**-23

#: Layers that differ for which it is looked whether they are another one of the model.
_NAMED = 5

_ELSEWHERE = "it lies at "

#: What stored tensors of one value say nothing of: constants of the arithmetic.
_FEW = 2


@dataclass(frozen=True, kw_only=True)
class WeightsFound:
    """Which tensors of the model are in a graph; `differing` and `unproven` as in GivenGraph."""

    tensors: int
    same: int
    differing: tuple[str, ...]
    unproven: tuple[str, ...]


def compare_weights(
    graph: OnnxGraph, *, products: Sequence[Product], model: TowerModel, prefix: Prefix
) -> WeightsFound:
    """Return what of the model's tensors a graph holds at their places."""
    by_layer = {p.module: p for p in products if p.module and p.weight is not None}
    sources = {p.weight.source for p in products if p.weight is not None}
    others = tuple(_list_others(graph, weights=sources, prefix=prefix))
    same = 0
    differing: list[str] = []
    unproven: list[str] = []
    for name, tensor in model.tensors.items():
        layer, _, kind = name.rpartition(".")
        product = by_layer.get(layer) if kind == "weight" else None
        if product is not None:
            problem = _differ(graph, product, layer=layer, model=model)
            if problem and len(differing) < _NAMED:
                other = _name_other_layer(graph, product, model=model, by_layer=by_layer)
                problem = f"it is the weight of {other}" if other else problem
        else:
            problem = _compare_other(name, tensor, others=others, model=model)
        if problem is None:
            unproven.append(name)
        elif problem:
            differing.append(f"{name}: {problem}")
        else:
            same += 1
    return WeightsFound(
        tensors=len(model.tensors),
        same=same,
        differing=tuple(differing),
        unproven=tuple(unproven),
    )


# -- layers ----------------------------------------------------------------------------------------


def _name_other_layer(
    graph: OnnxGraph, product: Product, *, model: TowerModel, by_layer: Mapping[str, Product]
) -> str:
    """Return the layer of the model whose weight a product holds, empty where it is of none."""
    shape = model.tensors[f"{product.module}.weight"].shape
    for name, other in model.tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer not in by_layer or layer == product.module:
            continue
        if other.shape == shape and _differ(graph, product, layer=layer, model=model) == "":
            return layer
    return ""


def _differ(graph: OnnxGraph, product: Product, *, layer: str, model: TowerModel) -> str | None:
    """Return how the weight of a product differs from that of a layer; None where not known.

    Codes are those of the scales that are in the graph, or of the calibrated ones: a scale that
    was changed is one finding, and not a second one of every code under it.
    """
    import numpy

    read, tensor = product.weight, model.tensors[f"{layer}.weight"]
    assert read is not None  # by_layer has layers alone
    while read.inner is not None:
        read = read.inner
    values = graph.values(read.source)
    if values is None or read.block < 0:
        return None

    def lay(value: Array) -> Array:
        return turn(graph, value, node=product.node, source=read.source)

    stored, is_float = graph.type_of(read.source), graph.is_float(read.source)
    problem = ""
    if is_float:
        problem = compare_values(lay(values), tensor, stored=stored, dtype=model.dtype)
        if not problem or not read.format:
            return problem
    if not can_scale(graph, read):
        return problem or "its scales cannot be laid over it"
    scale, offset = arrange_scales(graph, read, shape=values.shape)
    scales = lay(numpy.broadcast_to(scale, values.shape))
    codes = lay(values - offset) if not is_float else _round(lay(values), scales, read.format)
    if codes.shape != tensor.shape:
        return f"it is {list(codes.shape)}, not {list(tensor.shape)}"
    found = ""
    for wanted in (scales, _calibrated_scales(layer, model=model, format=read.format)):
        if wanted is not None:
            rounded = _round(tensor, wanted, read.format)
            found = _compare_codes(codes, rounded, format=read.format)
            if not found:
                return ""
    return problem or found


def _round(values: Array, scales: Array, format: str) -> Array:
    import numpy

    with numpy.errstate(all="ignore"):
        return round_to(values / numpy.where(scales == 0, 1, scales), format=format)


def _calibrated_scales(layer: str, *, model: TowerModel, format: str) -> Array | None:
    """Return the scales of a layer's weight as they were calibrated, None where unknown."""
    tensor = model.tensors[f"{layer}.weight"]
    amax = model.amax.get(model.find_quantizer(layer, "weight") or "")
    if amax is None or amax.size not in (1, len(tensor)):
        return None
    shape = (-1, *(1,) * (tensor.ndim - 1))
    scales: Array = (amax / largest_of(format)).astype("f4").reshape(shape)
    return scales


def _compare_codes(codes: Array, wanted: Array, *, format: str) -> str:
    """Return how codes differ from those that the model's weight rounds to."""
    import numpy

    kind = find_format(format)
    assert kind is not None  # can_scale looked
    apart = numpy.abs(codes - wanted)
    if kind.is_integer:
        step: Any = 1.0
    else:
        _, exponents = numpy.frexp(numpy.maximum(numpy.abs(codes), numpy.abs(wanted)))
        step = numpy.ldexp(
            numpy.float32(1), numpy.maximum(exponents - 1 - kind.mantissa_bits, kind.first_exponent)
        )
    other = int((apart > 0).sum())
    far = int((~(apart <= step * 1.01)).sum())
    if not far and other <= max(1, _TIES * codes.size):
        return ""
    return (
        f"{other} of {codes.size} codes are others, {far} by more than one step"
        if far
        else f"{other} of {codes.size} codes are others"
    )


def compare_values(found: Array, tensor: Array, *, stored: str, dtype: str) -> str:
    """Return how values differ, each rounded as the other one was."""
    import numpy

    if found.shape != tensor.shape:
        return f"it is {list(found.shape)}, not {list(tensor.shape)}"
    equal = numpy.asarray(found == tensor)
    for kind, one, two in ((dtype, found, tensor), (stored, tensor, found)):
        if not equal.all():
            equal |= _round_float(one, kind) == two
    if stored == "float16" and not equal.all():
        # Converters put the smallest value that they like in the place of smaller ones.
        equal |= numpy.abs(found - tensor) <= _TINY_HALF
    if equal.all():
        return ""
    with numpy.errstate(all="ignore"):
        apart = float(numpy.linalg.norm(found - tensor) / (numpy.linalg.norm(tensor) or 1.0))
    return f"{int((~equal).sum())} of {found.size} values are others, by {apart:.2g} of its size"


def _round_float(values: Array, kind: str) -> Array:
    import numpy

    if kind == "float16":
        with numpy.errstate(over="ignore"):
            return values.astype("f2").astype("f4")
    if kind == "bfloat16":
        bits = values.astype("f4").view(numpy.uint32).astype(numpy.uint64)
        rounded = (bits + 0x7FFF + ((bits >> numpy.uint64(16)) & numpy.uint64(1))) & ~numpy.uint64(
            0xFFFF
        )
        return rounded.astype(numpy.uint32).view("f4")
    return values


# -- what is no layer's weight ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """A stored tensor that is no product's weight, with the modules that read it.

    `step` is half a step of its scale where it is kept in codes (a bias of another tool).
    """

    values: Array
    stored: str
    modules: frozenset[str]
    step: Array | float


def list_changed(graph: OnnxGraph, *, model: TowerModel) -> Iterator[tuple[str, bool]]:
    """Yield the tensors of a model that are at their places in a graph, and whether with other
    values; `model.tensors` has none of a layer. What was folded into another is not found."""
    weights = {
        read.source
        for node in list_products(graph)
        for read in read_operands(graph, node)
        if read.source in graph.tensors
    }
    prefix = find_prefix(graph, model=model)
    others = tuple(_list_others(graph, weights=weights, prefix=prefix))
    for name, tensor in model.tensors.items():
        problem = _compare_other(name, tensor, others=others, model=model)
        if problem is not None:
            yield name, bool(problem) and not problem.startswith(_ELSEWHERE)


def _list_others(
    graph: OnnxGraph, *, weights: Collection[str], prefix: Prefix
) -> Iterator[_Stored]:
    scales = {
        str(name)
        for node in graph.nodes
        if is_quantize(node) or is_dequantize(node)
        for name in node.input[1:]
    }
    for name in graph.tensors:
        if name in weights or name in scales or graph.count(name) < _FEW:
            continue
        stored, values, step = graph.type_of(name), graph.values(name), 0.0
        undo = _find_undo(graph, name)
        if values is None or (undo is None and not graph.is_float(name)):
            continue
        if undo is not None and len(undo.input) > 1:
            scale = graph.values(undo.input[1])
            zero = graph.values(undo.input[2]) if len(undo.input) > 2 else None
            if scale is None or scale.size not in (1, values.size):
                continue
            values = (values - (0 if zero is None else zero.ravel()[0])) * scale
            step = float(abs(scale).max())
        yield _Stored(
            values=values,
            stored=stored,
            modules=frozenset(_list_readers(graph, name, prefix=prefix)),
            step=step,
        )


def _find_undo(graph: OnnxGraph, name: str) -> Any:
    """Return the DequantizeLinear that undoes stored codes, perhaps of rows that were looked up."""
    waiting = [name]
    for _ in range(4):
        if not waiting:
            break
        for node in graph.readers.get(waiting.pop(), ()):
            if is_dequantize(node):
                return node
            if node.op_type in (*MOVES, "Gather"):
                waiting.append(node.output[0])
    return None


def _list_readers(graph: OnnxGraph, name: str, *, prefix: Prefix) -> Iterator[str]:
    """Yield the modules that read a value, through moves and what dequantizes it."""
    seen, waiting = {name}, [name]
    while waiting:
        for node in graph.readers.get(waiting.pop(), ()):
            if node.op_type in MOVES or is_quantize(node) or is_dequantize(node):
                new = set(node.output) - seen
                seen |= new
                waiting += sorted(new)
            module = module_of_node(node.name)
            if module:
                yield prefix.to_model(module) or module


def _compare_other(
    name: str, tensor: Array, *, others: Sequence[_Stored], model: TowerModel
) -> str | None:
    """Return how a parameter differs, empty where it is in the graph, None where it is not found.

    One that is at its place with other values differs; one that the exporter folded into another
    is not found.
    """
    owner = name.rpartition(".")[0]
    problems: list[str] = []
    for stored in others:
        if stored.values.size != tensor.size:
            continue
        at_home = any(
            module == owner or owner.startswith(f"{module}.") for module in stored.modules
        )
        nameless = not stored.modules
        problem = _compare_stored(stored, tensor, model=model)
        if not problem and (at_home or nameless or not _is_telling(tensor)):
            return ""
        if not problem:
            problems.insert(0, f"{_ELSEWHERE}{min(stored.modules)}")
        elif owner in stored.modules and stored.values.ndim == tensor.ndim:
            problems.append(problem)
    # A bias and a norm's weight have one shape: what is at home and another one may be that.
    equal_shapes = sum(
        other.rpartition(".")[0] == owner and value.size == tensor.size
        for other, value in model.tensors.items()
    )
    return problems[0] if len(problems) >= equal_shapes else None


def _is_telling(tensor: Array) -> bool:
    """Return whether values tell a tensor from others: zeros and ones of a new model do not."""
    return tensor.size > 1 and bool((tensor != tensor.ravel()[0]).any())


def _compare_stored(stored: _Stored, tensor: Array, *, model: TowerModel) -> str:
    import numpy

    values = stored.values.reshape(tensor.shape)
    if stored.step:
        apart = float(numpy.abs(values - tensor).max())
        return "" if apart <= 0.51 * float(numpy.max(stored.step)) else f"off by up to {apart:.3g}"
    problem = compare_values(values, tensor, stored=stored.stored, dtype=model.dtype)
    if problem and tensor.ndim == 2 and math.prod(stored.values.shape) == tensor.size:
        turned = stored.values.reshape(tensor.shape[::-1]).T
        if not compare_values(turned, tensor, stored=stored.stored, dtype=model.dtype):
            return ""  # a table that is multiplied by lies turned
    return problem
