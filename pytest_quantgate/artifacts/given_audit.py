"""What a given graph holds of the model's quantizers, whichever tool wrote it.

A pair of another tool has no quantizer's name, and an integer operator has no pair at all: an
operand is known by the product that reads it and by its side. What has a quantizer's name already
is left to `read_graph`, which holds the name against the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.given_weights import compare_weights
from pytest_quantgate.artifacts.onnx_file import OnnxGraph, index_graph
from pytest_quantgate.artifacts.onnx_operands import (
    describe_style,
    is_integer_operator,
    list_asymmetric,
    name_tool,
)
from pytest_quantgate.artifacts.onnx_places import (
    Prefix,
    Product,
    TowerModel,
    place_products,
)
from pytest_quantgate.artifacts.onnx_reads import Read
from pytest_quantgate.artifacts.operands import Slot, largest_of
from pytest_quantgate.evidence.onnx import GivenGraph, OnnxAudit, OnnxOperation, QdqPair
from pytest_quantgate.runtimes.onnx_graph import audit_model
from pytest_quantgate.runtimes.onnx_model import read_model
from pytest_quantgate.runtimes.onnx_nodes import is_dequantize, is_quantize, label_of

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_file import Array


def audit_given(path: Path, *, model: TowerModel, name: str, digest: str) -> OnnxAudit:
    """Return what the prepared graph at `path` holds, and how it stands to the model.

    `name` and `digest` are those of the file that was handed over.
    Raises ModelError or ArtifactError for what cannot be read.
    """
    file = read_model(path)
    audit = audit_model(file, amax=model.amax)
    graph = index_graph(file.model, path=path)
    products = place_products(graph, model=model, prefix=Prefix())
    pairs = tuple(_list_pairs(graph, audit.pairs, products=products, model=model))
    weights = compare_weights(graph, products=products, model=model, prefix=Prefix())
    return replace(
        audit,
        pairs=pairs,
        operations=tuple(
            _list_operations(graph, audit.operations, products, pairs=pairs, model=model)
        ),
        given=GivenGraph(
            name=name,
            digest=digest,
            tool=graph.metadata.get("quantgate.tool") or name_tool(graph),
            tensors=weights.tensors,
            same=weights.same,
            differing=weights.differing,
            unproven=weights.unproven,
            unmapped=tuple(label_of(p.node) for p in products if p.module is None),
            refused=find_refusal(graph),
            batch=_find_batch(graph),
        ),
    )


def _find_batch(graph: OnnxGraph) -> int:
    """Return the size that every batch must have, 0 where it is free."""
    shapes = (value.type.tensor_type.shape.dim for value in graph.model.graph.input)
    return max((int(shape[0].dim_value) for shape in shapes if shape), default=0)


def find_refusal(graph: OnnxGraph) -> str:
    """Return why TensorRT takes no such graph, empty where nothing is known against it."""
    asymmetric = tuple(dict.fromkeys(list_asymmetric(graph)))
    if any(map(is_integer_operator, graph.nodes)):
        return (
            f"it computes with {describe_style(graph)}, TensorRT reads QuantizeLinear and "
            f"DequantizeLinear alone: quantize it as Q/DQ (quant_format=QuantFormat.QDQ)"
        )
    if asymmetric:
        return (
            f"{len(asymmetric)} of its Q/DQ nodes have a zero point that is not 0 "
            f"({asymmetric[0]}), TensorRT takes symmetric ranges alone: quantize it with "
            f"ActivationSymmetric and WeightSymmetric"
        )
    return ""


# -- pairs -----------------------------------------------------------------------------------------


def _list_pairs(
    graph: OnnxGraph, found: Sequence[QdqPair], *, products: Sequence[Product], model: TowerModel
) -> Iterator[QdqPair]:
    """Yield the pairs that bear a name, then one a quantized operand, then those of no product."""
    by_label = {pair.node: pair for pair in found}
    named = {pair.node: pair for pair in found if pair.quantizer is not None}
    held = {pair.quantizer for pair in named.values() if pair.complete and pair.feeds_owner}
    read: set[str] = set()
    derived = []
    for product in products:
        for place, (operand, slot) in enumerate(zip(product.reads, product.slots, strict=True)):
            label = _find_label(graph, product.node, place=place)
            read |= {label, *_list_feeders(graph, product.node, place=place)}
            if not operand.format or label in named:
                continue
            quantizer = model.find_quantizer(product.module, slot)
            if quantizer in held:
                continue
            derived.append(
                _derive(
                    graph,
                    product,
                    operand,
                    quantizer=quantizer,
                    slot=slot,
                    base=by_label.get(label),
                    model=model,
                )
            )
    yield from named.values()
    yield from derived
    by_node = {id(product.node): product for product in products}
    labels = {label_of(node): node for node in graph.nodes}
    for pair in found:
        # A lone half in front of an integer operator is that operator's own.
        if pair.quantizer is None and pair.node not in read:
            owner, slot = _find_maker(graph, labels[pair.node], by_node=by_node)
            quantizer = model.find_quantizer(owner, slot)
            if quantizer is None or quantizer in held:
                yield pair
                continue
            yield replace(pair, quantizer=quantizer, slot=slot, feeds_owner=True)


def _find_maker(graph: OnnxGraph, node: Any, *, by_node: Mapping[int, Product]) -> tuple[str, Slot]:
    """Return the layer or attention whose result a pair quantizes, and the slot of that."""
    _, maker = graph.origin(node.input[0])
    for _ in range(4):  # its own QuantizeLinear, a bias, a change of layout
        if maker is None:
            break
        product = by_node.get(id(maker))
        if product is not None:
            is_layer = product.weight is not None
            return product.module or "", "output" if is_layer else "attention_output"
        if maker.op_type != "Add" and not is_quantize(maker):
            break
        makers = [graph.origin(value)[1] for value in maker.input]
        maker = next((found for found in makers if found is not None), None)
    return "", "other"


def _find_label(graph: OnnxGraph, node: Any, *, place: int) -> str:
    """Return the name of the DequantizeLinear that an operand comes from, empty where none."""
    value = node.input[place] if place < len(node.input) else ""
    _, maker = graph.origin(value)
    is_undone = maker is not None and is_dequantize(maker)
    return label_of(maker) if is_undone else ""


def _list_feeders(graph: OnnxGraph, node: Any, *, place: int) -> Iterator[str]:
    """Yield the QuantizeLinear that an integer operator reads codes of."""
    if not is_integer_operator(node):
        return
    for value in node.input:
        _, maker = graph.origin(value)
        if maker is not None and is_quantize(maker):
            yield label_of(maker)


def _derive(
    graph: OnnxGraph,
    product: Product,
    operand: Read,
    *,
    quantizer: str | None,
    slot: Slot,
    base: QdqPair | None,
    model: TowerModel,
) -> QdqPair:
    """Return the pair of an operand, under the name of the quantizer that it stands for."""
    import numpy

    scale = graph.values(operand.scale) if operand.scale else None
    flat = numpy.full(1, numpy.nan) if scale is None or not scale.size else scale.astype("f8")
    flat = flat.ravel()
    zero = graph.values(operand.zero) if operand.zero else None
    ranges = flat * largest_of(operand.format)
    consumer = product.module or label_of(product.node)
    pair = base or QdqPair(
        node=label_of(product.node),
        quantizer=None,
        slot="other",
        format=operand.format,
        scale_type=graph.type_of(operand.scale) or "computed",
        scale_min=float(flat.min()),
        scale_max=float(flat.max()),
        scale_count=int(flat.size),
        scale_digest=hashlib.sha256(flat.astype("f4").tobytes()).hexdigest(),
        amax_min=float(ranges.min()),
        amax_max=float(ranges.max()),
        symmetric=zero is None or not zero.any(),
        source=_name_source(graph, operand, slot=slot),
        complete=operand.whole and _has_one_scale(graph, operand, product),
        producer=None,
        consumers=(consumer,),
        feeds_owner=True,
    )
    return replace(
        pair,
        quantizer=quantizer,
        slot=slot,
        feeds_owner=True,
        amax_deviation=_deviate(ranges, model.amax.get(quantizer or "")),
    )


def _deviate(ranges: Array, amax: Array | None) -> float | None:
    """Return the largest relative difference from the calibrated ranges, None where not known."""
    if amax is None or amax.shape != ranges.shape or not amax.all():
        return None
    return float(abs(ranges / amax - 1).max())


def _name_source(graph: OnnxGraph, operand: Read, *, slot: str) -> Any:
    if slot != "weight":
        return "activation"
    return "weight, float" if graph.is_float(operand.source) else "weight, 8 bit"


def _has_one_scale(graph: OnnxGraph, operand: Read, product: Product) -> bool:
    """Return whether the codes that an integer operator reads were made with the scale it reads."""
    for value in product.node.input:
        origin, maker = graph.origin(value)
        if maker is None or not is_quantize(maker):
            continue
        if graph.origin(maker.input[0])[0] == operand.source or origin == operand.source:
            return _equals(graph.values(maker.input[1]), graph.values(operand.scale))
    return True


def _equals(one: Array | None, two: Array | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.shape == two.shape and bool((one == two).all())


# -- operations ------------------------------------------------------------------------------------


def _list_operations(
    graph: OnnxGraph,
    found: Sequence[OnnxOperation],
    products: Sequence[Product],
    *,
    pairs: Sequence[QdqPair],
    model: TowerModel,
) -> Iterator[OnnxOperation]:
    """Yield each product once, with the quantizers of its operands."""
    known = {operation.node: operation for operation in found}
    held = {pair.quantizer for pair in pairs if pair.complete and pair.feeds_owner}
    for product in products:
        label = label_of(product.node)
        operation = known.get(label)
        if operation is not None and all(operation.quantizers):
            yield operation
            continue
        names = (model.find_quantizer(product.module, slot) for slot in product.slots)
        weight = product.weight
        yield OnnxOperation(
            node=label,
            module=product.module or label,
            operator=product.node.op_type,
            operands_quantized=tuple(bool(r.format) and r.whole for r in product.reads),
            quantizers=tuple(name if name in held else None for name in names),
            weights_count=graph.count(weight.source) if weight is not None else 0,
            weight_type=graph.type_of(weight.source) if weight is not None else None,
        )
