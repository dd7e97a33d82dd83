"""Where in the PyTorch model each product of a graph stands, whoever exported it.

Names of nodes tell it where the exporter wrote them (`/vision_model/encoder/layers.0/...`), with
whatever it had in front. Where they do not, a stored weight is found by its values, and a product
of attention by the layers that its operands come from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.onnx_file import OnnxGraph, layer_of
from pytest_quantgate.artifacts.onnx_operands import name_slots
from pytest_quantgate.artifacts.onnx_reads import (
    CONVOLUTIONS,
    PRODUCTS,
    Read,
    dequantize,
    read_operands,
)
from pytest_quantgate.artifacts.operands import Slot
from pytest_quantgate.quantization.quantizers import owner_of, slot_of
from pytest_quantgate.runtimes.onnx_nodes import module_of_node

if TYPE_CHECKING:
    from pytest_quantgate.artifacts.onnx_file import Array

#: A weight in 8 bits is off by 2 to 4 % of its size, in 4 bits by about 12 %; two layers of one
#: shape are as far apart as 140 %.
_NEAR = 0.25

_REPEAT = re.compile(r"_\d+$")

#: Nodes between an operand of attention and the layer that it comes from.
_MAX_WALK = 64


@dataclass(frozen=True, kw_only=True)
class TowerModel:
    """What a graph of one tower is held against: the PyTorch model, as plain arrays.

    `modules` are the names of all modules of the tower, `quantizers` those of the quantizers,
    `amax` their calibrated ranges, flat. `tensors` are parameters and buffers as float32 by name,
    rounded to `dtype`. `inputs` are the names of the tower's inputs; `pooling` and `normalize` are
    those of its TextSpec.

    Where there is `no_module`, the graph is all that there is: its own names are those of modules.
    """

    tower: str
    inputs: tuple[str, ...]
    modules: frozenset[str]
    quantizers: tuple[str, ...]
    amax: Mapping[str, Array]
    tensors: Mapping[str, Array]
    dtype: str
    pooling: str = ""
    normalize: bool = False
    no_module: bool = False

    @cached_property
    def known(self) -> frozenset[str]:
        return self.modules.union(self.quantizers)

    @cached_property
    def _by_place(self) -> Mapping[tuple[str, str], str]:
        return {(owner_of(name), slot_of(name)): name for name in self.quantizers}

    def find_quantizer(self, module: str | None, slot: str) -> str | None:
        """Return the name of a quantizer by the module that it belongs to and its slot."""
        if self.no_module:
            return f"{module}.{slot}" if module else None
        return self._by_place.get((module or "", slot))


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What names in a graph have in front of the model's (`strip`), and what they lack (`add`).

    `known` are the names of modules and quantizers of the model.
    """

    strip: str = ""
    add: str = ""
    known: frozenset[str] = field(default=frozenset(), repr=False)

    def to_model(self, module: str) -> str | None:
        """Return a module's name in the model, None for one that does not begin so."""
        if module.partition(".")[0] not in self.known:
            # A part that stands beside the one whose names are short keeps its own.
            if self.strip:
                if module != self.strip and not module.startswith(f"{self.strip}."):
                    return None
                module = module[len(self.strip) + 1 :]
            module = ".".join(filter(None, (self.add, module)))
        return self._without_numbers(module)

    def _without_numbers(self, module: str) -> str:
        """Return a name without the numbers that PyTorch's tracer tells repeated scopes by."""
        found = ""
        for part in module.split("."):
            plain, whole = (f"{found}.{name}".strip(".") for name in (_REPEAT.sub("", part), part))
            found = plain if whole not in self.known and plain in self.known else whole
        return found


def find_prefix(graph: OnnxGraph, *, model: TowerModel) -> Prefix:
    """Return how a graph names the model's modules: as most of its products do."""
    modules = model.modules
    short: dict[str, set[str]] = {}
    for module in modules:
        parts = module.split(".")
        for start in range(1, len(parts)):
            short.setdefault(".".join(parts[start:]), set()).add(".".join(parts[:start]))
    found: Counter[Prefix] = Counter()
    for node in list_products(graph):
        parts = module_of_node(node.name).split(".")
        for start in range(len(parts)):
            rest = ".".join(parts[start:])
            strip = ".".join(parts[:start])
            if rest in modules:
                found[Prefix(strip=strip)] += 1
                break
            if not start and rest in short:
                found.update(Prefix(add=add) for add in sorted(short[rest]))
    ranked = sorted(found.items(), key=lambda item: (-item[1], len(str(item[0])), str(item[0])))
    return replace(ranked[0][0] if ranked else Prefix(), known=model.known)


def list_products(graph: OnnxGraph) -> Iterator[Any]:
    """Yield the nodes that multiply: layers, and the two products of each attention."""
    for node in graph.nodes:
        if node.op_type in PRODUCTS | CONVOLUTIONS and len(node.input) >= 2:
            yield node


@dataclass(frozen=True, kw_only=True)
class Product:
    """A layer or a product of attention: its two operands, and its module in the model.

    `module` is None where that is not known; `by_name` says whether the node's name told it.
    """

    node: Any
    reads: tuple[Read, Read]
    slots: tuple[Slot, Slot]
    module: str | None
    by_name: bool

    @property
    def weight(self) -> Read | None:
        """The stored operand, None for a product of attention."""
        return next((r for r, s in zip(self.reads, self.slots, strict=True) if s == "weight"), None)


def place_products(graph: OnnxGraph, *, model: TowerModel, prefix: Prefix) -> tuple[Product, ...]:
    """Return every product of a graph with its place in the model."""
    found: list[Product] = []
    claimed: set[str] = set()
    for node in list_products(graph):
        reads = read_operands(graph, node)
        weights = [place for place, read in enumerate(reads) if read.source in graph.tensors]
        slots = name_slots(graph, node, reads=reads, weights=weights)
        name = module_of_node(node.name)
        module = prefix.to_model(name) if name else None
        if model.no_module:
            name = module = layer_of(node)
        wanted = model.no_module or (
            f"{module}.weight" in model.tensors if weights else module in model.modules
        )
        if wanted and module is not None:
            claimed.add(module)
        found.append(
            Product(
                node=node,
                reads=reads,
                slots=slots,
                module=module if wanted else None,
                by_name=wanted,
            )
        )
    for place, product in enumerate(found):
        if product.module is None and product.weight is not None:
            module = _find_by_values(graph, product, model=model, claimed=claimed)
            if module is not None:
                claimed.add(module)
                found[place] = _with_module(product, module)
    modules = {id(product.node): product.module for product in found if product.weight is not None}
    for place, product in enumerate(found):
        if product.module is None and product.slots[0] in ("q", "softmax"):
            module = _find_by_origin(graph, product, modules=modules, model=model)
            if module is not None:
                found[place] = _with_module(product, module)
    return tuple(found)


def _with_module(product: Product, module: str) -> Product:
    return replace(product, module=module, by_name=False)


def read_weight(graph: OnnxGraph, product: Product) -> Array | None:
    """Return the weight of a layer as the model has it ([out, in], or a kernel), dequantized.

    None where its scales cannot be laid over it.
    """
    return None if product.weight is None else dequantize(graph, product.node, product.weight)


def _find_by_values(
    graph: OnnxGraph, product: Product, *, model: TowerModel, claimed: Collection[str]
) -> str | None:
    """Return the one layer of the model whose weight a node holds, None where none is near."""
    import numpy

    weight = read_weight(graph, product)
    if weight is None:
        return None
    size = float(numpy.linalg.norm(weight)) or 1.0
    near = []
    for name, tensor in model.tensors.items():
        layer, _, kind = name.rpartition(".")
        if kind != "weight" or layer in claimed or layer not in model.modules:
            continue
        if tensor.shape == weight.shape and tensor.ndim > 1:
            near.append((float(numpy.linalg.norm(tensor - weight)) / size, layer))
    ranked: Sequence[tuple[float, str]] = sorted(near)
    if not ranked or not ranked[0][0] < _NEAR:
        return None
    return ranked[0][1] if len(ranked) == 1 or ranked[1][0] > 2 * ranked[0][0] else None


def _find_by_origin(
    graph: OnnxGraph,
    product: Product,
    *,
    modules: Mapping[int, str | None],
    model: TowerModel,
) -> str | None:
    """Return the attention that the layers in front of an operand (k, v) belong to."""
    waiting, seen = [product.node.input[1]], set[str]()
    while waiting and len(seen) < _MAX_WALK:
        name = waiting.pop(0)
        node = graph.makers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        layer = modules.get(id(node))
        if layer is not None:
            owner = layer.rpartition(".")[0]
            return owner if owner in model.modules else None
        waiting += node.input
    return None
